"""One peer of a swarm: answers its protocol's effects over the network, each with a deadline.

The same protocol code as in the simulator. What is different is time: whoever is not heard by the deadline is absent
from the answer. A peer that finds that the others have gone on without it says nothing more in that step, so that its
view of the step stays that of the others, and asks them for the state if it cannot catch up.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from btard.drivers.decoding import decode
from btard.drivers.history import ParameterHistory
from btard.drivers.task import StepResult
from btard.drivers.threads import kernel_threads
from btard.protocol import wire
from btard.protocol.coin import NoQuorum
from btard.protocol.collusion import Collusion
from btard.protocol.effects import Broadcast, Compare, Compute, Effect, Exchange, Idle, Purpose
from btard.protocol.envelope import encode_items, encode_signed
from btard.protocol.peer import Outcome, Peer
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.links import Refused
from btard.swarm.node import Node
from btard.swarm.outbox import Gone, Position, Said
from btard.swarm.rounds import Rounds

FOLLOW = 30.0
"""Seconds after which a follower's stream is looked at, if there was nothing to send."""
ATTEST = "attest"


class OutOfStep(Exception):
    """The others have gone on without this peer: it needs their state to go on."""


class Fallen(Exception):
    """This peer is out of the run: banned or gone, by the word of more members than can lie."""


class SwarmTask(Protocol):
    """What computes this peer's gradients."""

    d: int

    def gradient(self, params: torch.Tensor, request: Compute, workers: int, too_late: Callable[[], bool]) -> Any:
        """The gradient [d] of the request's batch when `workers` peers share a step; None once it is `too_late()`."""
        ...


class SwarmDriver:
    """Runs `peer` among the others of `doors`' swarm.

    `collusion` are an attacker's fellows: they show each other their gradients where an attack asks for the honest
    ones, for nobody shows them more. `watch` is told each phase as it begins.
    """

    def __init__(
        self,
        peer: Peer,
        task: SwarmTask,
        node: Node,
        doors: Doors,
        deadlines: Deadlines,
        history: ParameterHistory,
        *,
        collusion: Collusion | None = None,
        watch: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self.peer, self.task, self.node, self.doors, self.deadlines = peer, task, node, doors, deadlines
        self.history, self.collusion, self.watch = history, collusion, watch
        self.workers: dict[int, int] = {}
        """Step -> how many peers were to work in it, of the steps whose gradients may still be asked for."""
        self.members = peer.active
        """A_t of the latest step, whatever has become of it in this peer's view."""
        self.rounds = Rounds(node, deadlines.give_up)
        self._members: dict[bytes, int] = {}
        self._own: dict[int, torch.Tensor] = {}
        self._sent = 0
        self._behind: int | None = None
        doors.add("follow", self._follow, members_only=True)
        doors.add("fellow", self._show_fellow, members_only=True)
        self.refresh()

    @property
    def others(self) -> tuple[int, ...]:
        """Everybody in the run but this peer: members, and newcomers on probation."""
        known = {*self.peer.active, *self.peer.probation}
        return tuple(sorted(known - {self.peer.id}))

    def refresh(self) -> None:
        """Bring doors and links in line with the peer's roster and ledger."""
        peer = self.peer
        keys = peer.roster.keys
        inside = {*peer.active, *peer.probation}
        self.doors.banned = {
            keys[out]: f"{entry.kind}, step {entry.step}" for entry in peer.ledger.entries for out in entry.peers
        }
        self.doors.members = frozenset(keys[i] for i in inside)
        self._members = {keys[i]: i for i in inside}
        self.node.run(self._link())

    async def _link(self) -> None:
        for other in self.others:
            if other not in self.rounds.links:
                key = self.peer.roster.keys[other]
                self.rounds.follow(other, lambda at, key=key: self.doors.knock(key, "follow", *at))
        for gone in self.rounds.links.keys() - set(self.others):
            self.rounds.unfollow(gone)

    # A step.

    def step(self, params: torch.Tensor) -> StepResult:
        """One step at `params` [d], in time with the others.

        Errors: OutOfStep if the others have gone on without this peer; Fallen if they have removed it; NoGradient if
        nobody has a gradient.
        """
        now = self.peer.t
        self.members = self.peer.active
        self.history.record(now, params, deep=self.peer.behaviour.lookback > 1)
        self.workers = {
            s: count for s, count in self.workers.items() if s > now - max(2, 1 + self.peer.behaviour.lookback)
        }
        self.workers[now] = len(self.peer.active) - len(set(self.peer.assignments) & set(self.peer.active))
        self._own = {s: x for s, x in self._own.items() if s >= now - 1}
        self._sent, seconds = 0, defaultdict(float)
        wait = self.deadlines.phase
        generator, answer = self.peer.step(), None
        outcome: Outcome | None = None
        while True:
            started = time.perf_counter()
            try:
                with kernel_threads(1):
                    effect = generator.send(answer)
            except StopIteration as stop:
                outcome = stop.value
                break
            except NoQuorum as error:
                raise OutOfStep(str(error)) from None
            phase = effect.phase.partition("/")[0]
            seconds[phase] += time.perf_counter() - started
            self.watch(effect.phase)
            started = time.perf_counter()
            if isinstance(effect, Compute | Idle):
                answer = self._gradient(now, effect, params) if isinstance(effect, Compute) else None
                seconds["gradients"] += time.perf_counter() - started
                continue
            wait += self.deadlines.allowance(effect.phase)
            answer = self._talk(effect, params.device, wait)
            seconds[phase] += time.perf_counter() - started
        self.node.run(self.rounds.finish(now))
        self._trust_majority("the end")
        if outcome is None and self.peer.behaviour.byzantine:
            raise Fallen(f"step {now}: its behaviour ends here")
        if outcome is None:
            why = self.peer.current.expelled.get(self.peer.id, "it crashed")
            raise OutOfStep(f"step {now}: this peer is out in its own view ({why})")
        self.refresh()
        assert self.peer.last is not None
        return StepResult(
            step=now,
            gradient=outcome.gradient(torch.empty_like(params)),
            coin=outcome.coin,
            removed=outcome.removed,
            active=self.peer.active,
            workers=self.peer.last.workers,
            tau=self.peer.last.tau,
            seconds=dict(seconds),
            sent={self.peer.id: self._sent},
        )

    def restart(self, peer: Peer, *, behind: bool = False) -> None:
        """Go on as `peer`, which has the state at the beginning of its next step.

        `behind`: the others are in that step already, and do not wait for this peer. So it does not commit in it: they
        could go on without its commitment, and hold it to what it then says in their roll call.
        """
        self.peer = peer
        self._behind = peer.t if behind else None
        self.node.run(self.rounds.restart(peer.t))
        self.refresh()

    def attest(self, said: bytes, limit: int) -> dict[int, bytes]:
        """A last round after the last step: what I say, and what the others say, by peer."""
        self.node.run(self.rounds.say(Said(ATTEST, [said])))
        heard = self.node.run(self.rounds.hear(ATTEST, self.others, limit, 2 * self.deadlines.phase))
        return {peer: bytes(body) for peer, body in heard.items()} | {self.peer.id: said}

    def linger(self, timeout: float) -> None:
        """Wait until everybody who follows has been sent everything, at most so long."""
        deadline = time.monotonic() + timeout
        last = self.rounds.outbox.newest
        while time.monotonic() < deadline:
            reached = [self.rounds.outbox.sent_to.get(other, (-1, 0)) >= last for other in self.others]
            if all(done or self.rounds.links[o].down_for() > 0 for o, done in zip(self.others, reached, strict=True)):
                return
            time.sleep(0.05)

    # Effects.

    def _talk(self, effect: Effect, device: torch.device, wait: float) -> dict[int, Any]:
        record, me = self.peer.current, self.peer.id
        others = tuple(p for p in (*record.remaining, *record.newcomers) if p != me)
        said: Any = None
        special: dict[int, frames.Pieces | None] = {}
        body: frames.Pieces | None = None
        if isinstance(effect, Broadcast):
            late = self.rounds.outrun_by() > self.peer.config.byzantine
            late = late or (effect.phase == "commit" and self._behind == record.step)
            if not late or self._owes(effect.phase):
                if effect.message is not None:
                    body = [encode_signed(effect.message)]
                special = {to: None if m is None else [encode_signed(m)] for to, m in effect.faces.items()}
                said = effect.message if effect.message is None or effect.message.nbytes <= effect.limit else None
            limit = effect.limit
            self._sent += sum(frames.size_of(special.get(to, body) or ()) for to in others)
        elif isinstance(effect, Compare):
            body, limit, said = [effect.digest], len(effect.digest), effect.digest
            self._sent += len(effect.digest) * len(others)
        elif isinstance(effect, Exchange):
            encoded: dict[int, frames.Pieces] = {}  # what goes to many is encoded once
            for to, items in effect.packets.items():
                if id(items) not in encoded:
                    encoded[id(items)] = encode_items(items)
                special[to] = encoded[id(items)]
                self._sent += frames.size_of(special[to] or ())
            limit = effect.limit
        else:
            raise TypeError(f"no driver answers {type(effect).__name__}")
        heard = self.node.run(self._round(Said(effect.phase, body, special), others, limit, wait))
        answers: dict[int, Any] = {}
        for sender in sorted(heard):
            try:
                answers[sender] = decode(effect, heard[sender], device)
            except Malformed:
                continue  # as if nothing had come: what it is worth is the protocol's to say
        self._stay(effect.phase)
        return answers if said is None else {**answers, me: said}

    def _owes(self, phase: str) -> bool:
        """Whether the others remove whoever is not heard in this broadcast; to be late is better then."""
        record, me = self.peer.current, self.peer.id
        if "coin_commit/0" in record.heard:
            return me in record.present
        return phase != "commit" and record.split is not None and me in record.owing

    async def _round(self, said: Said, others: Sequence[int], limit: int, wait: float) -> dict[int, bytearray]:
        await self.rounds.say(said)
        heard = await self.rounds.hear(said.phase, others, limit, wait)
        self.rounds.advance()
        return heard

    def _stay(self, phase: str) -> None:
        """Errors: Fallen or OutOfStep, if that is what more members say than can lie."""
        enough = self.peer.config.byzantine
        refusals = self.rounds.refusals()
        banned = [why for why in refusals.values() if why.startswith("banned")]
        if len(banned) > enough:
            raise Fallen(f"step {self.peer.t}, {phase}: {len(banned)} members refuse this peer: {banned[0]}")
        if self.rounds.left_behind_by() > enough:
            raise OutOfStep(f"step {self.peer.t}, {phase}: the others are some steps ahead")
        self._trust_majority(phase)

    def _trust_majority(self, phase: str) -> None:
        """Errors: OutOfStep if half of the members are silent to me: then it is me who is out of step, not they."""
        record = self.peer.current
        silent = [peer for peer, kind in record.expelled.items() if kind == "silent" and peer != self.peer.id]
        if 2 * len(silent) >= len(record.active) > 1:
            raise OutOfStep(f"step {record.step}, {phase}: {len(silent)} of {len(record.active)} peers say nothing")

    def _gradient(self, now: int, request: Compute, params: torch.Tensor) -> torch.Tensor | None:
        """The gradient [d] that is asked for, None if it is not ready in time; colluders show each other theirs."""
        deadline = time.monotonic() + self.deadlines.compute
        judging = request.purpose is Purpose.JUDGE

        def too_late() -> bool:
            return not judging and (time.monotonic() > deadline or self.rounds.outrun_by() > self.peer.config.byzantine)

        try:
            at = self.history.at(request.step, now)
        except LookupError:
            return None  # a validator that has only just come back
        gradient = self.task.gradient(at, request, self.workers.get(request.step, self.workers[now]), too_late)
        if request.purpose is Purpose.TRAIN and gradient is not None and self.collusion is not None:
            self._collude(now, gradient)
        return gradient

    # Attackers among themselves.

    def _collude(self, now: int, gradient: torch.Tensor) -> None:
        assert self.collusion is not None
        self._own[now] = gradient
        rows = {self.peer.id: gradient}
        if getattr(self.peer.behaviour, "requires_cohort", False):
            fellows = sorted(self.collusion.members & set(self.peer.active) - {self.peer.id})
            working = [fellow for fellow in fellows if fellow not in self.peer.assignments]
            rows |= self.node.run(self._ask_fellows(now, working))
        self.collusion.observe(now, dict(sorted(rows.items())))

    async def _ask_fellows(self, now: int, fellows: Sequence[int]) -> dict[int, torch.Tensor]:
        async def ask(fellow: int) -> tuple[int, torch.Tensor]:
            async with self.doors.visit(self.peer.roster.keys[fellow], "fellow", now) as (reader, _):
                await frames.receive(reader, 2**10, "gradient")
                body = await frames.receive_body(reader, 4 * self.task.d)
            return fellow, torch.frombuffer(body, dtype=torch.float32)

        asked = [asyncio.wait_for(ask(fellow), self.deadlines.phase) for fellow in fellows]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return dict(answer for answer in answers if isinstance(answer, tuple))

    async def _show_fellow(self, key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
        members = self.collusion.members if self.collusion is not None else frozenset()
        if self._members.get(key) not in members or len(arguments) != 1:
            raise Refused("fellow: I am none")
        step = wire.check_int(arguments[0], "step")
        deadline = time.monotonic() + self.deadlines.phase
        while step not in self._own and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        if step not in self._own:
            raise Refused("fellow: I have no gradient")
        body = self._own[step].to("cpu").contiguous().view(torch.uint8).numpy().data
        await frames.send(writer, ("gradient",), [body])

    # What others follow.

    async def _follow(self, key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
        recipient = self._members.get(key)
        if recipient is None or len(arguments) != 2:
            raise Refused("follow: your key is not in the roster of this run")
        at: Position = (wire.check_int(arguments[0], "step"), wire.check_int(arguments[1], "phase"))
        while key in self._members:
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
            body = said.to(recipient)
            size = -1 if body is None else frames.size_of(body)
            await frames.send(writer, (step, number, said.phase, size), body or ())
            self.rounds.outbox.sent_to[recipient] = (step, number)
            at = (step, number + 1)
        await frames.send(writer, ("refused", "banned"))
