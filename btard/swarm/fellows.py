"""What attackers do among themselves: they show each other their gradients, which honest peers show nobody so early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import torch

from btard.protocol import wire
from btard.protocol.collusion import Collusion
from btard.protocol.peer import Peer
from btard.swarm import frames
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.links import Refused

WATCH = 0.02
"""Seconds between two looks for this peer's own gradient, for a fellow that asks for it."""


class Fellows:
    """This peer's gradients for its fellows of `collusion`, and theirs for this peer. An honest peer has no collusion.

    `d`: number of parameters.
    """

    def __init__(self, collusion: Collusion | None, doors: Doors, deadlines: Deadlines, d: int) -> None:
        self.collusion, self.doors, self.deadlines, self.d = collusion, doors, deadlines, d
        self._own: dict[int, torch.Tensor] = {}
        """Step -> this peer's gradient."""
        doors.add("fellow", self._show, members_only=True)

    def forget(self, before: int) -> None:
        """Forget the steps before `before`: no fellow asks for them any more."""
        self._own = {step: gradient for step, gradient in self._own.items() if step >= before}

    def collude(self, peer: Peer, step: int, gradient: torch.Tensor) -> None:
        """Have the attack of `peer` know its gradient [d], and those of its fellows if the attack needs them."""
        if self.collusion is None:
            return
        self._own[step] = gradient
        rows = {peer.id: gradient}
        if peer.behaviour.requires_cohort:
            fellows = sorted(self.collusion.members & set(peer.active) - {peer.id})
            working = {fellow: peer.roster.keys[fellow] for fellow in fellows if fellow not in peer.assignments}
            rows |= self.doors.node.run(self._ask(step, working))
        self.collusion.observe(step, dict(sorted(rows.items())))

    async def _ask(self, step: int, keys: Mapping[int, bytes]) -> dict[int, torch.Tensor]:
        async def ask(fellow: int, key: bytes) -> tuple[int, torch.Tensor]:
            async with self.doors.visit(key, "fellow", step) as (reader, _):
                await frames.receive(reader, 2**10, "gradient")
                body = await frames.receive_body(reader, 4 * self.d)
            return fellow, torch.frombuffer(body, dtype=torch.float32)

        asked = [asyncio.wait_for(ask(*fellow), self.deadlines.phase) for fellow in keys.items()]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return dict(answer for answer in answers if isinstance(answer, tuple))

    async def _show(self, key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
        members = self.collusion.members if self.collusion is not None else frozenset()
        if self.doors.members.get(key) not in members or len(arguments) != 1:
            raise Refused("fellow: I am none")
        step = wire.check_int(arguments[0], "step")
        deadline = time.monotonic() + self.deadlines.phase
        while step not in self._own and time.monotonic() < deadline:
            await asyncio.sleep(WATCH)
        if step not in self._own:
            raise Refused("fellow: I have no gradient")
        body = self._own[step].to("cpu").contiguous().view(torch.uint8).numpy().data
        await frames.send(writer, ("gradient",), [body])
