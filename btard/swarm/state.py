"""The swarm's state for peers that were away or join, and for checkpoints: from any member, vouched for by most.

Members take a snapshot at the beginning of a step if somebody has asked for one: of the next step, or of a certain one.
`fetch.py` has what the asking peer does.
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
from btard.protocol.download import Download, Vouch
from btard.protocol.envelope import DTYPES
from btard.protocol.hashing import tensor_digest
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Peer
from btard.protocol.snapshot import serve, vouched
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.cancel import cancel
from btard.swarm.deadlines import ANSWER
from btard.swarm.doors import Doors
from btard.swarm.links import Refused
from btard.swarm.node import Node
from btard.swarm.places import Places

MAX_STATUS = 2**18
"""Largest size of a status as JSON in bytes. 16 peers need a third of it; with a thousand it still has some steps."""
KEPT = 2
"""Number of snapshots that are given away: a peer that begins to load one has a step's time for it."""
HELD = 6
"""Number of snapshots that are in memory as long as somebody is loading them. A state is some four vectors, and a step
moves one, so an honest peer has the time that it needs; a peer that reads slowly, or nothing, holds no more than
these."""
AHEAD = 256
"""Number of steps that a peer may wait for a snapshot; then it must ask again."""
WAIT, LOAD, JOIN = 64, 8, 2**10
"""Strangers that may at once wait for a snapshot, load one, or have asked to join; members have their own places."""
EACH = 4
"""Requests that each may have open: one, and earlier ones that are still being closed."""
WATCH = 0.1
"""Seconds between two looks whether anybody still loads the final state."""
PREVIOUS = "previous"
"""In a state: the parameters of the step before, which validators and judges need."""
OVER = "over"
"""The last question of an observer of a run."""


@dataclass(frozen=True)
class Snapshot:
    """The state at the beginning of `step` as this member gives and vouches for it; None if it gives nothing."""

    step: int
    download: Download | None
    vouched: bytes | None


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
        self._newest: Snapshot | None = None
        """The one that was taken last."""
        self._loads: dict[int, set[asyncio.Future[None]]] = {}
        """Step -> the loads of its snapshot."""
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

        `last`: the run is over, and a peer that asks for the next state gets this one.
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
        while not self._released.wait(WATCH):
            now = time.monotonic()
            if now > deadline or (not len(self._loading) and now > self._asked + quiet):
                return

    def take_requests(self) -> list[JoinRequest]:
        """The requests to join since the last call; for the trainer's thread."""
        taken, self._requests = self._requests, {}  # the network's thread may be in the middle of the old one
        return [request for _, request in taken.values()]

    async def _announce(self, snapshot: Snapshot, peer: Peer) -> None:
        async with self._published:
            # Where the others had all stopped, this peer may have come back to an earlier step than it was at.
            self._snapshots = {step: kept for step, kept in self._snapshots.items() if step < snapshot.step}
            self._snapshots[snapshot.step] = self._newest = snapshot
            for old in sorted(self._snapshots)[:-KEPT]:
                del self._snapshots[old]
            later = [step for step in self._loads if step > snapshot.step]
            for old in (*later, *sorted({*self._snapshots, *self._loads} - {*later})[:-HELD]):
                for load in self._loads[old]:
                    load.cancel()
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
            begun, hashed = snapshot.step, snapshot.vouched
            del snapshot  # a peer that does not read the answer shall not hold it
        if hashed is None:
            raise Refused("state: I vouch for none")
        member = self._member
        vouch = Vouch.create(member.identity, member.config.run_id, member.id, key, hashed)
        await frames.send(writer, ("vouch", begun, vouch.digest, vouch.signature))

    async def _next(self) -> Snapshot:
        """The snapshot of the next step that begins, or of the end."""
        before = None if self._over else self._newest
        self._next_wanted = True
        async with self._published:
            try:
                await asyncio.wait_for(self._published.wait_for(lambda: self._newest is not before), self.patience)
            except asyncio.TimeoutError:
                raise Refused(f"state: no step has begun within {self.patience:g} s; ask again") from None
            assert self._newest is not None
            return self._newest

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
            load = asyncio.ensure_future(send())
            self._loads.setdefault(snapshot.step, set()).add(load)
            try:
                await asyncio.wait({load}, timeout=max(ANSWER, self.patience))
                if not load.done() or load.cancelled():
                    raise ConnectionError("the peer that loads this state takes too long")
                load.result()
            finally:
                await cancel(load)
                self._loads[snapshot.step].discard(load)
                if not self._loads[snapshot.step]:
                    del self._loads[snapshot.step]

    async def _tell(
        self, key: bytes, arguments: list[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        body = json.dumps(self.status()).encode()
        await asyncio.wait_for(frames.send(writer, ("status", len(body)), [body]), ANSWER)
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
        requests = self._requests
        if key not in requests and len(requests) >= JOIN:
            oldest = next(iter(requests))
            if now - requests[oldest][0] < self.patience:
                raise Refused("join: too many have asked; ask again later")
            del requests[oldest]
        requests.setdefault(key, (now, request))
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
