"""The swarm's state for peers that were away or join, and for checkpoints: from any member, vouched for by most.

Members take a snapshot at the beginning of a step if somebody has asked for one: of the next step, or of a certain one.
Who asks takes nothing of it before its digest is the one that more than half of the members have signed.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from btard.protocol import wire
from btard.protocol.download import Download, Vouch, WrongState, agreed_digest, check_download
from btard.protocol.envelope import DTYPES
from btard.protocol.hashing import digest, tensor_digest
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Peer
from btard.protocol.snapshot import serve, vouched
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.links import Refused
from btard.swarm.node import Node
from btard.swarm.places import Places
from btard.swarm.tasks import cancel

MAX_STATE = 2**26
"""Largest size of the state as JSON in bytes: 32 for each step, and some hundred for each ledger entry."""
MAX_STATUS = 2**17
KEPT = 2
"""Number of snapshots that are kept: a peer that begins to load one has a step's time for it."""
AHEAD = 256
"""Number of steps that a peer may wait for a snapshot; then it must ask again."""
WAIT, LOAD, JOIN = 64, 8, 2**10
"""Strangers that may at once wait for a snapshot, load one, or have asked to join; members have their own places."""
EACH = 4
"""Requests that each may have open: one, and earlier ones that are still being closed."""
MAX_NAMES = 2**12
OVER = "over"
"""The last question of an observer of a run."""
MORE = 1.0
"""Seconds that more members have to vouch for a state that has enough already: the first could all be hostile."""
GRACE = 10.0
"""Seconds that a donor has in addition to the time that its bytes take."""
NEXT_DONOR = 10.0
"""Seconds after which another donor is asked too; from one to the next they double."""

Template = Mapping[str, torch.Tensor]
"""Tensors with the names, shapes and dtypes that a download must have."""


@dataclass(frozen=True)
class Snapshot:
    """The state at the beginning of `step` as this member gives and vouches for it; None if it gives nothing."""

    step: int
    download: Download | None
    vouched: bytes | None


@dataclass(frozen=True)
class Fetched:
    """The state at the beginning of `step`, checked, and the members that signed its digest, ascending."""

    step: int
    download: Download
    vouched_by: tuple[int, ...]


class StateService:
    """Gives this member's state away. `patience`: seconds that a request waits for the next step to begin.

    `status`: what this peer says of itself, JSON values. `known`: keys of others than members, such as the
    coordinator's, whose requests no stranger's can crowd out either.
    """

    def __init__(
        self,
        node: Node,
        doors: Doors,
        patience: float,
        status: Callable[[], Mapping[str, Any]],
        known: frozenset[bytes] = frozenset(),
    ) -> None:
        self.node, self.doors, self.patience, self.status, self.known = node, doors, patience, status, known

        def has_place(key: bytes) -> bool:
            return key in known or key in doors.members

        self._waiting = Places("state", WAIT, EACH, has_place)
        self._loading = Places("state", LOAD, EACH, has_place)
        self._next_wanted = self._over = False
        self._wanted: list[int] = []
        """The steps whose beginnings somebody waits for, to get a snapshot."""
        self._begun = -1
        self._requests: dict[bytes, tuple[float, JoinRequest]] = {}
        """Key -> when its holder asked to join, and the request, the oldest first."""
        self._snapshots: dict[int, Snapshot] = {}
        self._published = asyncio.Condition()
        self._released = threading.Event()
        self._asked = 0.0
        """When somebody last asked for the status or for a state."""
        self._member: Peer
        doors.add("vouch", self._vouch)
        doors.add("state", self._give)
        doors.add("status", self._tell)
        doors.add("join", self._join)

    def begins(self, step: int) -> bool:
        """Record that this step begins; return whether somebody waits for its snapshot. For the trainer's thread."""
        self._begun = step
        if any(wish < step for wish in self._wanted):
            self.node.submit(self._wake())
        return self._next_wanted or step in self._wanted

    def publish(self, peer: Peer, tensors: Mapping[str, torch.Tensor], *, last: bool = False) -> None:
        """Take a snapshot of `peer` and of the training's `tensors` (copied); for the trainer's thread.

        `last`: the run is over, and whoever asks for the next state gets this one.
        """
        self._next_wanted = False
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        hashed = {name: tensor_digest(tensor, name) for name, tensor in copies.items()}
        snapshot = Snapshot(peer.t, serve(peer, copies), vouched(peer, hashed))
        self._over = last
        self.node.run(self._announce(snapshot, peer))

    def wait_until_told(self, quiet: float, longest: float) -> None:
        """Wait until observers need nothing more, or nobody has asked for `quiet` seconds; for the trainer's thread.

        It waits at most `longest` seconds, however often somebody asks.
        """
        self._asked = time.monotonic()
        deadline = self._asked + longest
        while not self._released.wait(0.1):
            now = time.monotonic()
            if now > deadline or (not len(self._loading) and now > self._asked + quiet):
                return

    def take_requests(self) -> list[JoinRequest]:
        """The requests to join since the last call; for the trainer's thread."""
        return [self._requests.pop(key)[1] for key in list(self._requests)]

    async def _announce(self, snapshot: Snapshot, peer: Peer) -> None:
        async with self._published:
            self._snapshots[snapshot.step] = snapshot
            for old in sorted(self._snapshots)[:-KEPT]:
                del self._snapshots[old]
            self._member = peer
            self._published.notify_all()

    async def _wake(self) -> None:
        async with self._published:
            self._published.notify_all()

    async def _vouch(
        self, key: bytes, arguments: list[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        step = wire.check_int(arguments[0], "step") if arguments else None
        self._asked = time.monotonic()
        with self._waiting.of(key):
            snapshot = await _unless_gone(reader, self._next() if step is None else self._at(step))
        if snapshot.vouched is None:
            raise Refused("state: I vouch for none")
        member = self._member
        vouch = Vouch.create(member.identity, member.config.run_id, member.id, key, snapshot.vouched)
        await frames.send(writer, ("vouch", snapshot.step, vouch.digest, vouch.signature))

    async def _next(self) -> Snapshot:
        """The snapshot of the next step that begins, or of the end."""
        after = -1 if self._over else max(self._snapshots, default=-1)
        self._next_wanted = True
        async with self._published:
            try:
                await asyncio.wait_for(
                    self._published.wait_for(lambda: max(self._snapshots, default=-1) > after), self.patience
                )
            except asyncio.TimeoutError:
                raise Refused(f"state: no step has begun within {self.patience:g} s; ask again") from None
            return self._snapshots[max(self._snapshots)]

    async def _at(self, step: int) -> Snapshot:
        """The snapshot of the beginning of `step`, however far away that is."""
        self._wanted.append(step)
        try:
            async with self._published:
                await asyncio.wait_for(
                    self._published.wait_for(lambda: step in self._snapshots or self._begun > step),
                    min(max(1, step - self._begun), AHEAD) * self.patience,
                )
                if step not in self._snapshots:
                    raise Refused(f"state: step {step} has begun already, without a snapshot; ask for a later one")
                return self._snapshots[step]
        except asyncio.TimeoutError:
            raise Refused(f"state: step {step} has not begun in time; ask again") from None
        finally:
            self._wanted.remove(step)

    async def _give(
        self, key: bytes, arguments: list[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        snapshot = self._snapshots.get(wire.check_int(arguments[0], "step")) if arguments else None
        if snapshot is None or snapshot.download is None:
            raise Refused("state: I do not have that of this step; ask another member")
        state, tensors = snapshot.download.state, snapshot.download.tensors
        shapes = [(name, DTYPES.index(x.dtype), tuple(x.shape)) for name, x in tensors.items()]

        async def send() -> None:
            await frames.send(writer, ("state", snapshot.step, len(state), shapes), [state])
            for tensor in tensors.values():
                body = tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
                await frames.send(writer, ("tensor",), [body])

        with self._loading.of(key):
            await asyncio.wait_for(send(), max(10.0, self.patience))  # whoever takes nothing keeps no snapshot alive

    async def _tell(
        self, key: bytes, arguments: list[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        body = json.dumps(self.status()).encode()
        await frames.send(writer, ("status", len(body)), [body])
        self._asked = time.monotonic()
        if arguments == [OVER] and key in self.known:
            self._released.set()

    async def _join(
        self, key: bytes, arguments: list[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(arguments) != 1 or not isinstance(arguments[0], bytes):
            raise Malformed("join: expected a signature")
        request, now = JoinRequest(key, arguments[0]), time.monotonic()
        if not request.authentic(self.doors.run_id):
            raise Refused("join: this is not your signature of a request to join this run")
        if key not in self._requests and len(self._requests) >= JOIN:
            oldest = next(iter(self._requests))
            if now - self._requests[oldest][0] < self.patience:
                raise Refused("join: too many have asked; ask again later")
            del self._requests[oldest]
        self._requests.setdefault(key, (now, request))
        await frames.send(writer, ("noted",))


async def _unless_gone(reader: asyncio.StreamReader, work: Coroutine[Any, Any, Snapshot]) -> Snapshot:
    """What `work` returns; it ends with the stream of the asking peer, which has nothing more to say.

    Errors: ConnectionError if the stream ends first; those of `work`.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ConnectionError("the peer that asked for a state is gone")
        return await working
    finally:
        await cancel(working, gone)


async def _answer(reader: frames.Source, limit: int, kind: str, count: int) -> list[Any]:
    """The `count` fields of a frame of this kind. Errors: Refused, in the other's words; Malformed."""
    fields = await frames.receive(reader, limit, kind)
    if fields[:1] == ["refused"]:
        raise Refused.by(fields)
    fields = wire.check_fields(fields, kind, count)
    if fields[0] != kind:
        raise Malformed(f"{kind}: another answer than that")
    return fields


async def ask_status(doors: Doors, key: bytes, timeout: float = 10.0, *, last: bool = False) -> dict[str, Any]:
    """What a peer says about itself, unverified. Errors: those of `Doors.knock`; Malformed.

    `last`: the asker needs nothing more of it, so it may end.
    """

    async def ask() -> dict[str, Any]:
        async with doors.visit(key, "status", *([OVER] if last else [])) as (reader, _):
            size = wire.check_int((await _answer(reader, 2**12, "status", 2))[1], "size")
            if size > MAX_STATUS:
                raise Malformed(f"status: {size} bytes, at most {MAX_STATUS} are allowed")
            try:
                status = json.loads(bytes(await frames.receive_body(reader, size)))
            except (ValueError, RecursionError):
                raise Malformed("status: not JSON") from None
            if not isinstance(status, dict):
                raise Malformed("status: expected an object")
            return status

    return await asyncio.wait_for(ask(), timeout)


async def ask_to_join(doors: Doors, key: bytes, request: JoinRequest) -> None:
    """Ask one member to name this peer to the others."""
    async with doors.visit(key, "join", request.signature) as (reader, _):
        await asyncio.wait_for(_answer(reader, 2**12, "noted", 1), 10.0)


async def fetch_state(
    doors: Doors,
    me: bytes,
    members: Mapping[int, bytes],
    template: Template,
    deadlines: Deadlines,
    timeout: float,
    at: int | None = None,
) -> Fetched:
    """The state at the beginning of the next step, or of step `at`, which has not begun yet.

    `me`: my public key; `members`: number -> key of all that count. What step it is follows from the state itself: a
    donor may call it another. Errors: WrongState if no state has a majority within `timeout` seconds, or nobody gives
    the one that has.

    Donors are asked in an order that is another one for each state and each asker, so that no member can be the first
    each time. A donor slower than `deadlines.uplink` is given up; and where one takes long the next is asked
    too, since the members soon drop what they vouched for.
    """
    wish = () if at is None else (at,)
    vouches: dict[int, tuple[int, Vouch]] = {}
    problems: dict[int, str] = {}

    async def ask(number: int, key: bytes) -> None:
        try:
            async with doors.visit(key, "vouch", *wish) as (reader, _):
                _, step, hashed, signature = await _answer(reader, 2**12, "vouch", 4)
            if not isinstance(signature, bytes):
                raise Malformed("vouch: expected a signature")
            vouches[number] = wire.check_int(step, "step"), Vouch(number, hashed, signature)
        except Exception as error:
            problems[number] = wire.shown(str(error) or type(error).__name__, 300)

    asking = {asyncio.ensure_future(ask(number, key)) for number, key in members.items() if key != me}
    deadline = asyncio.get_running_loop().time() + timeout
    agreed: bytes | None = None
    try:
        while agreed is None:
            try:
                agreed = agreed_digest(doors.run_id, me, members, [vouch for _, vouch in vouches.values()])
                break
            except WrongState as error:
                left = deadline - asyncio.get_running_loop().time()
                if not asking or left <= 0:
                    told = "; ".join(f"peer {i}: {why}" for i, why in sorted(problems.items()))
                    raise WrongState(f"{error}" + (f" ({told})" if told else "")) from None
            _, asking = await asyncio.wait(asking, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if asking:
            await asyncio.wait(asking, timeout=MORE)
    finally:
        await cancel(*asking)
    donors = {
        number: step
        for number, (step, vouch) in sorted(vouches.items())
        if vouch.digest == agreed and vouch.authentic(members[number], doors.run_id, me)
    }
    order = sorted(donors, key=lambda donor: digest("donor", agreed, me, members[donor]))
    loading: dict[asyncio.Task[Download], int] = {}
    pause = NEXT_DONOR
    try:
        while order or loading:
            if order:
                donor = order.pop(0)
                load = _load(doors, members[donor], donors[donor], template, deadlines)
                loading[asyncio.ensure_future(load)] = donor
            done, _ = await asyncio.wait(loading, timeout=pause if order else None, return_when=asyncio.FIRST_COMPLETED)
            pause *= 1 if done else 2
            for task in done:
                donor = loading.pop(task)
                try:
                    download = task.result()
                    check_download(download, donor, agreed, doors.run_id)
                    return Fetched(len(json.loads(download.state)["coins"]) - 1, download, tuple(donors))
                except Exception as error:
                    problems[donor] = wire.shown(str(error) or type(error).__name__, 300)
    finally:
        await cancel(*loading)
    told = "; ".join(f"peer {i}: {why}" for i, why in sorted(problems.items()))
    raise WrongState(f"nobody gives the state that the majority vouches for ({told}): ask again in the next step")


class _InTime:
    """A stream whose bytes must come as fast as `deadlines.uplink`, with `GRACE` seconds extra in total."""

    def __init__(self, reader: asyncio.StreamReader, deadlines: Deadlines) -> None:
        self._reader, self._deadlines, self._bytes = reader, deadlines, 0
        self._begun = time.monotonic()

    async def read(self, n: int) -> bytes:
        return await self._timed(self._reader.read(n), n)

    async def readexactly(self, n: int) -> bytes:
        return await self._timed(self._reader.readexactly(n), n)

    async def _timed(self, reading: Coroutine[Any, Any, bytes], n: int) -> bytes:
        left = self._begun + GRACE + self._deadlines.seconds(self._bytes + n) - time.monotonic()
        try:
            chunk = await asyncio.wait_for(reading, max(0.0, left))
        except asyncio.TimeoutError:
            raise WrongState(
                f"only {self._bytes} bytes in {time.monotonic() - self._begun:.0f} s, more slowly than deadlines.uplink"
            ) from None
        self._bytes += len(chunk)
        return chunk


async def _load(doors: Doors, key: bytes, step: int, template: Template, deadlines: Deadlines) -> Download:
    """One donor's state, unchecked except for sizes. Errors: WrongState, Malformed, Refused, those of the stream."""
    async with doors.visit(key, "state", step) as (stream, _):
        reader = _InTime(stream, deadlines)
        _, said, size, shapes = await _answer(reader, 2**18, "state", 4)
        wanted = [[name, DTYPES.index(x.dtype), list(x.shape)] for name, x in template.items()]
        if said != step or len(shapes) > MAX_NAMES or sorted(shapes) != sorted(wanted):
            raise Malformed("state: other tensors than those of this run")
        if not 0 <= wire.check_int(size, "size") <= MAX_STATE:
            raise Malformed(f"state: {size} bytes, at most {MAX_STATE} are allowed")
        state = bytes(await frames.receive_body(reader, size))
        tensors: dict[str, torch.Tensor] = {}
        for name, _, _ in shapes:
            like = template[name]
            await frames.receive(reader, 2**10, "tensor")
            body = await frames.receive_body(reader, like.nbytes)
            tensors[name] = torch.frombuffer(body, dtype=like.dtype).view(like.shape) if like.numel() else like.clone()
        return Download(state, tensors)
