"""Doors, links and downloads against whoever differs, lies, babbles or floods."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from btard.protocol.hashing import PROTOCOL_VERSION
from btard.protocol.identity import Identity
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.doors import PROTOCOL, STREAMS, Doors
from btard.swarm.links import AHEAD, Link, Refused
from btard.swarm.node import Node

HOST, GUEST = Identity.from_seed("doors", 0), Identity.from_seed("doors", 1)
SETTINGS = {"peers": 2, "protocol.tau": "0.125"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    host = Node(HOST).start()
    guest = Node(GUEST, initial_peers=host.addresses[:1]).start()
    yield host, guest
    guest.close()
    host.close()


@pytest.fixture(scope="module")
def house(nodes: tuple[Node, Node]) -> Doors:
    doors = Doors(nodes[0], "run", SETTINGS)

    async def echo(key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
        await frames.send(writer, ("heard", key, *arguments))

    doors.add("echo", echo)
    doors.add("private", echo, members_only=True)
    nodes[0].run(doors.open())
    return doors


def visit(node: Node, doors: Doors, door: str = "echo") -> list[Any]:
    async def ask() -> list[Any]:
        async with doors.visit(HOST.public_key, door, 7) as (reader, _):
            return await frames.receive(reader, 2**10, "answer")

    return node.run(ask())


def raw(node: Node, data: bytes, wait: float = 5.0) -> bytes:
    """What comes back for bytes that are no hello; b"" if the stream is just closed."""

    async def talk() -> bytes:
        reader, writer = await node.dial(HOST.public_key, PROTOCOL)
        try:
            writer.write(data)
            await writer.drain()
            return await asyncio.wait_for(reader.read(2**16), wait)
        except (OSError, asyncio.TimeoutError):
            return b""
        finally:
            writer.close()

    return node.run(talk())


def test_a_guest_is_known_by_its_key(nodes: tuple[Node, Node], house: Doors) -> None:
    assert visit(nodes[1], Doors(nodes[1], "run", SETTINGS)) == ["heard", GUEST.public_key, 7]


@pytest.mark.parametrize(
    ("run", "settings", "door", "words"),
    [
        ("other", SETTINGS, "echo", "run_id: yours is 'other', mine is 'run'"),
        ("run", {**SETTINGS, "protocol.tau": "1.0"}, "echo", "protocol.tau is '1.0' with you, '0.125' with me"),
        ("run", {"peers": 2}, "echo", "protocol.tau is None with you"),
        ("run", {f"key {i}": 1 for i in range(9)}, "echo", "and 6 more"),
        ("run", {"\x1b]0;owned\x07\x1b[2J\ud800" + "x" * 20000: 1}, "echo", r"\x1b]0;owned\x07\x1b[2J\ud800xx"),
        ("run", SETTINGS, "cellar", "door: there is no 'cellar'"),
        ("run", SETTINGS, "private", "member: your key is not in the roster"),
    ],
)
def test_whoever_differs_is_told_in_what(
    nodes: tuple[Node, Node], house: Doors, run: str, settings: dict[str, Any], door: str, words: str
) -> None:
    with pytest.raises(Refused) as refused:
        visit(nodes[1], Doors(nodes[1], run, settings), door)
    assert words in str(refused.value)
    assert str(refused.value).isascii() and str(refused.value).isprintable() and len(str(refused.value)) < 1000


def test_another_version_is_told_so(nodes: tuple[Node, Node], house: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[Any]:
        reader, writer = await nodes[1].dial(HOST.public_key, PROTOCOL)
        await frames.send(writer, ("btard", PROTOCOL_VERSION + 1, "a hello of the future"))
        answer = await frames.receive(reader, 2**12, "answer")
        writer.close()
        return answer

    kind, words = nodes[1].run(ask())
    assert (
        kind == "refused"
        and f"protocol version: you speak {PROTOCOL_VERSION + 1}, I speak {PROTOCOL_VERSION};" in words
    )


def test_members_enter_and_the_banned_do_not(nodes: tuple[Node, Node], house: Doors) -> None:
    guest = Doors(nodes[1], "run", SETTINGS)
    house.members = {GUEST.public_key: 1}
    try:
        assert visit(nodes[1], guest, "private")[0] == "heard"
        house.banned = {GUEST.public_key: "wrong_gradient, step 3"}
        for door in ("private", "echo"):
            with pytest.raises(Refused, match="banned: wrong_gradient, step 3"):
                visit(nodes[1], guest, door)
    finally:
        house.banned, house.members = {}, {}


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x05\x00\x00\x00\xc1\xc1\xc1\xc1\xc1", bytes(2**16)],
)
def test_garbage_ends_its_own_stream_alone(nodes: tuple[Node, Node], house: Doors, data: bytes) -> None:
    raw(nodes[1], data, wait=0.5)
    assert visit(nodes[1], Doors(nodes[1], "run", SETTINGS))[0] == "heard"


def test_a_flood_of_oversized_hellos_costs_no_memory(nodes: tuple[Node, Node], house: Doors) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    chunk = (2**31).to_bytes(4, "little") + bytes(2**20)
    raw(nodes[1], chunk)
    gc.collect()
    before = resident()
    for _ in range(60):  # 60 MB, of hellos that say they are 2 GB long
        raw(nodes[1], chunk)
    gc.collect()
    assert resident() - before < 30e6
    assert house.refused["Malformed"] >= 61
    assert visit(nodes[1], Doors(nodes[1], "run", SETTINGS))[0] == "heard"


def test_nobody_keeps_all_streams(nodes: tuple[Node, Node], house: Doors) -> None:
    async def many() -> list[Any]:
        return [await nodes[1].dial(HOST.public_key, PROTOCOL) for _ in range(2 * STREAMS)]

    streams = nodes[1].run(many())
    deadline = time.monotonic() + 10
    while house._open[GUEST.public_key] < STREAMS and time.monotonic() < deadline:
        time.sleep(0.02)
    assert house._open[GUEST.public_key] == STREAMS

    async def close() -> None:
        for _, writer in streams:
            writer.close()

    nodes[1].run(close())
    while house._open[GUEST.public_key] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert visit(nodes[1], Doors(nodes[1], "run", SETTINGS))[0] == "heard"


class Speaker:
    """The other end of a link: a local server that says what it is told to."""

    def __init__(self, frames_said: list[tuple[Any, bytes]]) -> None:
        self.said, self.dialled = frames_said, 0

    async def run(self, check: Any, seconds: float = 5.0) -> Link:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                for header, body in self.said[:1] if self.dialled > 1 else self.said:
                    await frames.send(writer, header, [body])
                await asyncio.sleep(seconds)
            except OSError:
                pass
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def dial(_: Any) -> Any:
            self.dialled += 1
            return await asyncio.open_connection("127.0.0.1", port)

        link = Link(dial, (0, 0), lambda: None)
        task = asyncio.ensure_future(link.follow())
        try:
            deadline = time.monotonic() + seconds
            while not check(link) and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert check(link)
            return link
        finally:
            task.cancel()
            server.close()


def test_frames_come_in_order_and_larger_ones_when_they_are_wanted() -> None:
    large = bytes(AHEAD + 1)
    speaker = Speaker([((0, 0, "commit", 3), b"one"), ((0, 1, "part", len(large)), large)])

    def check(link: Link) -> bool:
        if link.at == (0, 0) and link.frame() is not None and link.position == (0, 1):
            assert bytes(link.frame().body or b"") == b"one"  # type: ignore[union-attr]
            assert link._held() == 3  # the large one waits
            link.want((0, 1), len(large))
        return link.at == (0, 1) and link.frame() is not None

    link = asyncio.run(speaker.run(check))
    frame = link.frame()
    assert frame is not None and frame.body == large and frame.phase == "part"


def test_a_frame_longer_than_anybody_may_send_is_not_read() -> None:
    speaker = Speaker([((0, 0, "part", 2**40), b"")])

    def check(link: Link) -> bool:
        link.want((0, 0), 1000)
        return link.frame() is not None

    frame = asyncio.run(speaker.run(check)).frame()
    assert frame is not None and frame.body is None


@pytest.mark.parametrize(
    "header", [("nonsense",), (0, 0, 7, 3), (0, 0, "x" * 65, 3), (0, -9, "commit", 3), (0, 0, "c", "3")]
)
def test_malformed_frames_end_the_stream(header: Any) -> None:
    link = asyncio.run(Speaker([(header, b"")]).run(lambda link: link._failures > 0))
    assert link.frame() is None


def test_headers_are_bounded() -> None:
    async def read(data: bytes) -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await frames.receive(reader, 100, "header")

    for data in (b"\xff\xff\xff\xff", (101).to_bytes(4, "little") + bytes(101), (1).to_bytes(4, "little") + b"\x01"):
        with pytest.raises(Malformed):
            asyncio.run(read(data))


def test_a_refusal_in_the_words_of_a_stranger_is_fit_to_be_printed() -> None:
    words = str(Refused.by(["refused", "banned: \x1b[2J\n\u202eyes" + "x" * 10000]))
    assert words.startswith(r"banned: \x1b[2J\n\u202eyesxx") and len(words) == 2000
    assert str(Refused.by(["refused"])) == "refused without a reason"
