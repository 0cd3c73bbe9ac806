"""The streams between this peer and the other members: each follows what the other says, and brings it certificates."""

from __future__ import annotations

import asyncio
from typing import Any

from btard.drivers.letters import Pieces
from btard.protocol import wire
from btard.protocol.messages import NOBODY
from btard.swarm import frames
from btard.swarm.certificates import Deliver
from btard.swarm.deadlines import ANSWER, Deadlines
from btard.swarm.doors import Doors
from btard.swarm.links import HEADER, Dial, Refused
from btard.swarm.outbox import Gone, Position, Served
from btard.swarm.rounds import Rounds

FOLLOW = 30.0
"""Seconds after which a follower's stream is checked, if there was nothing to send."""
TAKEN = 2**8
"""Largest size in bytes of the answer to a certificate."""


def dial(doors: Doors, key: bytes) -> Dial:
    """How to follow the holder of `key`."""
    return lambda at: doors.knock(key, "follow", *at)


def deliver(doors: Doors, key: bytes) -> Deliver:
    """How to bring the holder of `key` a certificate."""

    async def bring(at: Position, certificate: Pieces) -> None:
        size = frames.size_of(certificate)
        async with doors.visit(key, "certificate", *at, size, body=certificate) as (reader, _):
            await asyncio.wait_for(frames.receive(reader, TAKEN, "answer"), ANSWER)

    return bring


class Followers:
    """Sends the members of `doors` what this peer says in `rounds`, one stream each, and takes their certificates."""

    def __init__(self, doors: Doors, rounds: Rounds, deadlines: Deadlines) -> None:
        self.doors, self.rounds, self.deadlines = doors, rounds, deadlines
        self._streams: dict[bytes, asyncio.Task[Any]] = {}
        """Public key -> the stream that its holder follows this peer with."""
        self._served = Served()
        doors.add("follow", self._follow, members_only=True)
        doors.add("certificate", self._take_certificate, members_only=True)

    def restart(self) -> None:
        """Forget what was sent: this peer begins anew at another place."""
        self._served = Served()

    def drop_strangers(self) -> None:
        """End the streams of those that are no members any more. For the network's thread."""
        for key in self._streams.keys() - self.doors.members.keys():
            self._streams.pop(key).cancel()  # a follower that reads nothing would keep its frame in memory for ever
        self._served.forget(self.doors.members, self.rounds.outbox.step)

    async def _take_certificate(self, key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
        fields = wire.check_fields(arguments, "certificate", 3)
        step, number, size = (wire.check_int(value, "certificate") for value in fields)
        await self.rounds.certificates.take(self.doors.members.get(key, NOBODY), (step, number), size, reader)
        await frames.send(writer, ("taken",))

    async def _follow(self, key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
        recipient = self.doors.members.get(key)
        if recipient is None or len(arguments) != 2:
            raise Refused("follow: your key is not in the roster of this run")
        at: Position = (wire.check_int(arguments[0], "step"), wire.check_int(arguments[1], "phase"))
        task = asyncio.current_task()
        assert task is not None
        if (before := self._streams.get(key)) is not None:
            before.cancel()  # its holder has lost it, or wants to be sent everything twice
        self._streams[key] = task
        try:
            await self._send(at, key, recipient, writer)
        except asyncio.CancelledError:
            writer.transport.abort()  # what is left in it, too
            raise
        finally:
            if self._streams.get(key) is task:
                del self._streams[key]

    async def _send(self, at: Position, key: bytes, recipient: int, writer: asyncio.StreamWriter) -> None:
        while key in self.doors.members:
            try:
                found = await self.rounds.outbox.after(at, FOLLOW)
            except Gone as gone:
                await frames.send(writer, ("gone", gone.step))
                at = (gone.step, 0)
                continue
            if writer.is_closing():
                return
            if found is None:
                continue
            (step, number), said = found
            body = said.to(self.doors.members.get(key, recipient))  # in another life its number may be another
            size = -1 if body is None else frames.size_of(body)
            whole = max(0, size) + HEADER
            pause = self._served.pause(
                key, (step, number), whole, self.deadlines.seconds(whole), len(self.doors.members)
            )
            await asyncio.sleep(pause)
            counted = frames.Counted(writer)
            try:
                await frames.send(counted, (step, number, said.phase, size), body or ())
            finally:
                self._served.note(key, (step, number), counted.bytes)
            at = (step, number + 1)
        await frames.send(writer, ("refused", "banned"))
