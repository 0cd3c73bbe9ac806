"""Aggregates for a peer that is behind: it fetches what it lacks at the end of a step from any member that has it.

The others are past that step, and hear no questions about it in their phases. So the question has a stream of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from btard.protocol import wire
from btard.protocol.effects import Fetch
from btard.protocol.envelope import decode_items, encode_items
from btard.protocol.hashing import digest
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from btard.protocol.signed import Packet
from btard.protocol.split import Split
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.fetch import GRACE, InTime, answer, first_of
from btard.swarm.links import Refused
from btard.swarm.outbox import Served

DOOR, ONE = "aggregates", 2**8
"""The door's name, and the largest size in bytes of the head of one aggregate."""


class Aggregates:
    """Gives the aggregates of the step at hand and the one before, as `peer` has them, to those that listened in it.

    A peer that had a say in a step has its aggregates. A key has one stream at a time, for as long as its bytes may
    take, and is sent each aggregate once, and what broke off once more. All of that is checked before anything is made.
    A stream holds the aggregates that were asked for, and nothing else of the step.
    """

    def __init__(self, doors: Doors, deadlines: Deadlines, peer: Callable[[], Peer]) -> None:
        self.doors, self.deadlines, self.peer = doors, deadlines, peer
        self._served = Served()
        self._streams: dict[bytes, asyncio.Task[None]] = {}
        doors.add(DOOR, self._give, members_only=True)

    def restart(self) -> None:
        """Forget what was sent: this peer begins anew at another place."""
        self._served = Served()

    async def _give(self, key: bytes, arguments: list[Any], reader: Any, writer: asyncio.StreamWriter) -> None:
        step, *parts = (wire.check_int(value, DOOR) for value in arguments)
        record = self._record(key, step, parts)
        self._served.forget(self.doors.members, self.peer().t)
        if (before := self._streams.get(key)) is not None:
            before.cancel()
        cut, held = (
            record.cut,
            [Packet("aggregate", record.owner(i), step, i, record.aggregates[i], b"") for i in parts],
        )
        del record
        stream = self._streams[key] = asyncio.ensure_future(self._send(key, cut, held, writer))
        del held  # a stream that has been replaced holds nothing
        load = sum(cut.nbytes(part, "aggregate") for part in parts)
        try:
            await asyncio.wait({stream}, timeout=GRACE + self.deadlines.seconds(load))
            if stream.cancelled() or not stream.done():
                raise asyncio.TimeoutError  # ends the connection, with what is left in it
            stream.result()
        finally:
            stream.cancel()
            if self._streams.get(key) is stream:
                del self._streams[key]

    def _record(self, key: bytes, step: int, parts: Sequence[int]) -> StepRecord:
        """The step's record. Errors: Refused, unless this peer has all these aggregates and may give them to `key`."""
        peer = self.peer()
        for record in (getattr(peer, "current", None), peer.last):  # before its first step a peer has neither
            if record is None or record.step != step:
                continue
            if self.doors.members.get(key) not in record.listeners:
                raise Refused("aggregates: you had a say in that step")
            if len(set(parts)) == len(parts) and set(parts) <= record.aggregates.keys():
                if any(self._often(key, record, part) for part in parts):
                    raise Refused("aggregates: you have had them")
                return record
        raise Refused("aggregates: I do not have them")

    def _often(self, key: bytes, record: StepRecord, part: int) -> bool:
        size = record.cut.nbytes(part, "aggregate")
        return self._served.sent(key, (record.step, -1 - part)) >= size

    async def _send(self, key: bytes, cut: Split, held: Sequence[Packet], writer: asyncio.StreamWriter) -> None:
        """Send what is `held`, in the form in which it travels, one after the other."""
        for packet in held:
            pieces = encode_items([replace(packet, body=cut.body("aggregate", packet.body))])
            counted = frames.Counted(writer)
            try:
                await frames.send(counted, ("aggregate", frames.size_of(pieces)), pieces)
            finally:  # what was made counts, too, also if nothing of it was sent: nobody has it made more than twice
                least = cut.nbytes(packet.part, "aggregate") // 2 + 1
                self._served.note(key, (packet.step, -1 - packet.part), max(counted.bytes, least))


async def fetch_aggregates(
    doors: Doors, members: Mapping[int, bytes], me: bytes, step: int, wanted: Fetch, deadlines: Deadlines
) -> dict[int, Packet]:
    """The aggregates that are `wanted`, each found to be the announced one; {} if none of `members` has them all."""

    async def load(donor: int) -> dict[int, Packet]:
        found: dict[int, Packet] = {}
        async with doors.visit(members[donor], DOOR, step, *wanted.parts) as (stream, _):
            reader = InTime(stream, deadlines)
            for part in wanted.parts:
                size = wire.check_int((await answer(reader, ONE, "aggregate", 2))[1], "size")
                if size > wanted.limit:
                    raise Malformed(f"aggregate: {size} bytes, at most {wanted.limit} are allowed")
                items = decode_items(await frames.receive_body(reader, size), wanted.limit)
                if len(items) != 1 or not isinstance(items[0], Packet) or not wanted.fits(part, items[0]):
                    raise Malformed("aggregate: another one than its owner has announced")
                found[part] = items[0]
        return found

    order = sorted(members, key=lambda donor: digest("aggregates", step, me, members[donor]))
    pause = 2 * deadlines.message + deadlines.seconds(wanted.limit * len(wanted.parts))
    return await first_of(order, load, {}, pause) or {}
