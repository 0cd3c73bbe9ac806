"""The doors of a peer: every stream begins with a hello, which says what for, and a banned peer is refused everywhere.

A hello names the protocol's version, the run and the settings that all peers have to agree on; a peer that differs is
told in which of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from hivemind.p2p import P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from btard.drivers.letters import Pieces
from btard.protocol import wire
from btard.protocol.hashing import PROTOCOL_VERSION
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.deadlines import ANSWER
from btard.swarm.keys import public_key_of
from btard.swarm.links import Refused
from btard.swarm.node import Node

PROTOCOL = "/btard/swarm"
"""The name of our streams among libp2p's. It never changes, so that versions can tell each other that they differ."""
LOBBY = "/btard/lobby"
"""The name of streams to the peer that lists the first peers, before anybody knows the list."""
HELLO = 2**16
"""Largest size of a hello in bytes: most of it are the settings."""
STREAMS = 8
"""Streams that one peer may have open at once: one to follow, and some for its other requests."""

log = logging.getLogger(__name__)

Door = Callable[[bytes, list[Any], asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves one stream: the asking peer's public key, its arguments, the stream. Raises Refused for what it denies."""


class Doors:
    """The doors of this peer, by name. `settings`: what all peers must agree on, JSON values by dotted key.

    `banned`: public key -> why; `members`: public key -> number of those that may enter the doors for members alone.
    `on_refused` is called with the key of each peer that is refused at its hello, and why.
    """

    def __init__(
        self,
        node: Node,
        run_id: str,
        settings: Mapping[str, Any],
        *,
        protocol: str = PROTOCOL,
        on_refused: Callable[[bytes, str], None] = lambda key, why: None,
    ) -> None:
        self.node, self.run_id, self.settings = node, run_id, dict(settings)
        self.protocol, self.on_refused = protocol, on_refused
        self.banned: dict[bytes, str] = {}
        self.members: dict[bytes, int] = {}
        self.refused: Counter[str] = Counter()
        """Reason why streams were refused -> how often: for a monitor."""
        self._doors: dict[str, tuple[Door, bool]] = {}
        self._open: Counter[bytes] = Counter()
        self._hello = json.dumps(self.settings, sort_keys=True)

    def add(self, name: str, door: Door, *, members_only: bool = False) -> None:
        self._doors[name] = door, members_only

    async def open(self) -> None:
        """Admit the others from now on."""
        await self.node.listen(self.protocol, self._serve)

    async def knock(
        self, key: bytes, door: str, *arguments: Any, body: Pieces = ()
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to `door` of the holder of `key`. Errors: Refused, in its words; Malformed; those of `Node.dial`.

        `body`: what the door is to read at once. It goes out with the hello: nobody waits for the welcome first.
        """
        reader, writer = await asyncio.wait_for(self.node.dial(key, self.protocol), ANSWER)
        try:
            hello = ("btard", PROTOCOL_VERSION, door, self.run_id, self._hello, arguments)
            await asyncio.wait_for(frames.send(writer, hello, body), ANSWER)
            answer = await asyncio.wait_for(frames.receive(reader, HELLO, "answer"), ANSWER)
            if answer[:1] != ["welcome"]:
                raise Refused.by(answer)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    @asynccontextmanager
    async def visit(
        self, key: bytes, door: str, *arguments: Any, body: Pieces = ()
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """`knock`, and close the stream afterwards."""
        reader, writer = await self.knock(key, door, *arguments, body=body)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def _serve(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = public_key_of(info.peer_id)
        if key is None or self._open[key] >= STREAMS:
            writer.close()
            return
        self._open[key] += 1
        try:
            await self._answer(key, reader, writer)
        except (
            Malformed,
            P2PDaemonError,
            OSError,
            asyncio.IncompleteReadError,
            asyncio.TimeoutError,
            ValueError,
        ) as error:
            self.refused[type(error).__name__] += 1
            writer.transport.abort()  # `close` waits until all is read, and holds what is being sent as long
        except asyncio.CancelledError:
            pass  # this node is closed
        except Exception:  # a bug of ours; the asking peer must see no more than a closed stream
            log.exception("a stream of %s failed", info.peer_id)
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]  # strangers make up keys as they like
            writer.close()

    async def _answer(self, key: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await asyncio.wait_for(frames.receive(reader, HELLO, "hello"), ANSWER)
        try:
            door, arguments = self._check(key, hello)
            await frames.send(writer, ("welcome",))
        except Refused as refused:
            self.refused[str(refused).partition(":")[0]] += 1
            self.on_refused(key, str(refused))
            await frames.send(writer, ("refused", str(refused)))
            return
        try:
            await door(key, arguments, reader, writer)
        except Refused as refused:
            await frames.send(writer, ("refused", str(refused)))

    def _check(self, key: bytes, hello: list[Any]) -> tuple[Door, list[Any]]:
        if hello[:1] != ["btard"] or len(hello) < 2:
            raise Malformed("hello: no peer of ours")
        if hello[1] != PROTOCOL_VERSION:
            theirs = wire.shown(repr(hello[1]), 20)
            raise Refused(f"protocol version: you speak {theirs}, I speak {PROTOCOL_VERSION}; install the same version")
        _, _, name, run_id, settings, arguments = wire.check_fields(hello, "hello", 6)
        if run_id != self.run_id:
            theirs = wire.shown(repr(run_id), 80)
            raise Refused(f"run_id: yours is {theirs}, mine is {self.run_id!r}; use the swarm's configuration")
        if key in self.banned:
            raise Refused(f"banned: {self.banned[key]}")
        if settings != self._hello:
            raise Refused(f"settings: {self._difference(settings)}; use the swarm's configuration")
        if not isinstance(name, str) or name not in self._doors:
            raise Refused(f"door: there is no {wire.shown(repr(name), 40)}")
        door, members_only = self._doors[name]
        if members_only and key not in self.members:
            raise Refused("member: your key is not in the roster of this run")
        if not isinstance(arguments, list):
            raise Malformed("hello: expected a list of arguments")
        return door, arguments

    def _difference(self, text: Any) -> str:
        """Which settings differ, in words."""
        try:
            theirs = json.loads(text)
            if not isinstance(theirs, dict):
                raise ValueError
            names = [k for k in sorted({*theirs, *self.settings}) if theirs.get(k) != self.settings.get(k)]
            both = [(name, repr(theirs.get(name)), repr(self.settings.get(name))) for name in names[:5]]
        except (ValueError, TypeError, RecursionError):
            return "yours cannot be read"
        told = [f"{wire.shown(k, 60)} is {wire.shown(t, 60)} with you, {wire.shown(m, 60)} with me" for k, t, m in both]
        return ", ".join(told) + (f", and {len(names) - 5} more" if len(names) > 5 else "")
