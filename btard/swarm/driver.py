"""One peer of a swarm: answers its protocol's effects over the network, each with a deadline.

The same protocol code as in the simulator. What is different is time: a peer that is not heard by the deadline is
absent from the answer. A peer that finds that the others have gone on without it says nothing more in that step, so
that its view of the step stays that of the others, and asks them for the state if it cannot catch up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from msgspec.structs import replace

from btard.drivers.letters import Letters, on_device
from btard.drivers.loop import Fallen, Heard, StepResult, run_step
from btard.drivers.past import Past
from btard.drivers.trail import State
from btard.protocol.collusion import Collusion
from btard.protocol.commit import CutOff
from btard.protocol.effects import QUIET, Compute, Fetch, Purpose, Relay, Speech
from btard.protocol.envelope import encode_items
from btard.protocol.messages import UNKNOWN, Certificate
from btard.protocol.peer import Peer
from btard.protocol.signed import Packet
from btard.swarm import frames
from btard.swarm.aggregates import Aggregates, fetch_aggregates
from btard.swarm.clock import StepClock
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.ends import Ends
from btard.swarm.fellows import Fellows
from btard.swarm.fetch import fetch_training
from btard.swarm.followers import Followers, deliver, dial
from btard.swarm.node import Node
from btard.swarm.outbox import Said
from btard.swarm.rounds import Rounds
from btard.swarm.state import PREVIOUS
from btard.task import PARAMETERS, Task

ATTEST, FAREWELL = "attest", "farewell"
ROLL_CALL = ("join", "commit")


class OutOfStep(Exception):
    """The others have continued without this peer: it needs their state to continue."""


class SwarmDriver:
    """Runs `peer` among the others of `doors`' swarm.

    `collusion` are an attacker's fellows: they show each other their gradients where an attack asks for the honest
    ones, for nobody shows them more. `watch` is told each phase as it begins.
    """

    def __init__(
        self,
        peer: Peer,
        task: Task,
        node: Node,
        doors: Doors,
        deadlines: Deadlines,
        past: Past,
        *,
        collusion: Collusion | None = None,
        watch: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self.peer, self.task, self.node, self.doors, self.deadlines = peer, task, node, doors, deadlines
        self.past, self.watch = past, watch
        self.members = peer.active
        """A_t of the latest step, whatever this peer thinks of it."""
        self.rounds = Rounds(node, deadlines.give_up, Ends(peer))
        self.followers = Followers(doors, self.rounds, deadlines)
        self.aggregates = Aggregates(doors, deadlines, lambda: self.peer)
        self.fellows = Fellows(collusion, doors, deadlines, task.d)
        self._clock = StepClock(deadlines, self._others_have_gone_on)
        self._behind: int | None = None
        self._began: tuple[int, float] | None = None
        """The step that this peer began last, and when."""
        self._hold = 0.0
        """Seconds during which others may still be in the last step."""
        self._loading = 0.0
        """Seconds that others may take to load the state that all have gone back to."""
        self._linked: dict[int, bytes] = {}
        """Number -> key of each peer that is followed."""
        self.refresh()

    @property
    def others(self) -> tuple[int, ...]:
        """All peers in the run except this one: members, and newcomers on probation."""
        known = {*self.peer.active, *self.peer.probation}
        return tuple(sorted(known - {self.peer.id}))

    def refresh(self) -> None:
        """Make doors and links match the peer's roster and ledger."""
        peer = self.peer
        keys = peer.roster.keys
        inside = {*peer.active, *peer.probation}
        self.doors.banned = {
            keys[out]: f"{entry.kind}, step {entry.step}" for entry in peer.ledger.entries for out in entry.peers
        }
        self.doors.members = {keys[i]: i for i in inside}
        self.node.run(self._link())

    async def _link(self) -> None:
        self.rounds.newcomers = frozenset(self.peer.probation)
        keys = {other: self.peer.roster.keys[other] for other in self.others}
        # In another life of the run, a number may be another peer's.
        for gone in [number for number, key in self._linked.items() if keys.get(number) != key]:
            del self._linked[gone]
            await self.rounds.unfollow(gone)
        for other in keys.keys() - self._linked.keys():
            self._linked[other] = key = keys[other]
            self.rounds.follow(other, dial(self.doors, key), deliver(self.doors, key))
        self.followers.drop_strangers()

    # A step.

    def step(
        self,
        params: torch.Tensor,
        shared: Mapping[str, torch.Tensor] | None = None,
        local: Mapping[str, torch.Tensor] | None = None,
    ) -> StepResult:
        """One step at `params` [d], in time with the others. `shared` and `local`: as of `LocalDriver.step`.

        Errors: OutOfStep if the others have gone on without this peer, or back to a state that it lacks; Fallen if they
        have removed it; NoGradient if nobody has a gradient.
        """
        now = self.past.begin([self.peer], State.of(params, shared, local))
        self.members = self.peer.active
        self.peer.elapsed = self._elapsed(now)
        self.fellows.forget(now - 1)
        self._clock = StepClock(self.deadlines, self._others_have_gone_on)
        measure = partial(self.past.measure, too_late=self._others_have_gone_on)
        course = run_step(
            {self.peer.id: self.peer}, self, measure=measure, fetch=self._fetch, clock=self._clock, watch=self.watch
        )
        failure = course.failures.get(self.peer.id)
        if isinstance(failure, CutOff):
            raise OutOfStep(str(failure))
        if failure is not None:
            raise failure
        self.node.run(self.rounds.finish(now, sign=self._owes()))
        self._hold = self._clock.longest + self.deadlines.message
        self._trust_majority("the end")
        outcome = course.outcomes[self.peer.id]
        if outcome is None and self.peer.behaviour.byzantine:
            raise Fallen(f"step {now}: its behaviour ends here")
        if outcome is None:
            why = self.peer.current.expelled.get(self.peer.id, "it crashed")
            raise OutOfStep(f"step {now}: this peer is out in its own view ({why})")
        self.refresh()
        try:
            result = self.past.trail.completed(course.result(self.peer, params), self._agreed_state)
        except LookupError as error:
            raise OutOfStep(str(error)) from None
        self._loading = 0.0 if result.back_to is None else self.deadlines.loading(self.task.d)
        return result

    def _fetch(self, wanted: Fetch) -> dict[int, Packet]:
        """The aggregates that this peer lacks, from any member that still has them."""
        step, keys, me = self.peer.t, self.peer.roster.keys, self.peer.id
        members = {i: keys[i] for i in self.peer.current.members if i != me}
        found = self.node.run(fetch_aggregates(self.doors, members, keys[me], step, wanted, self.deadlines))
        return {part: on_device(self.past.at(step).device, packet) for part, packet in found.items()}

    def _agreed_state(self, hashed: bytes) -> Mapping[str, torch.Tensor] | None:
        """What is agreed of the state with this digest, from any member that goes on with it; None if none has it."""
        now = self.past.trail.now.agreed
        template = {name: tensor.cpu() for name, tensor in {**now, PREVIOUS: now[PARAMETERS]}.items()}

        def agreed(tensors: Mapping[str, torch.Tensor]) -> State:
            return State({name: tensors[name] for name in now}, {})

        found = self.node.run(
            fetch_training(
                self.doors,
                {i: self.peer.roster.keys[i] for i in self.peer.active if i != self.peer.id},
                self.peer.t,
                template,
                lambda tensors: agreed(tensors).digest() == hashed,
                self.deadlines,
                self.deadlines.loading(self.task.d),
            )
        )
        return None if found is None else {name: found[name].to(now[name].device) for name in now}

    def _elapsed(self, step: int) -> int:
        """Milliseconds since this peer began the step before this one; UNKNOWN if it did not."""
        before, self._began = self._began, (step, time.monotonic())
        if before is None or before[0] != step - 1:
            return UNKNOWN
        return min(int(1000 * (self._began[1] - before[1])), 2**31 - 1)

    def restart(self, peer: Peer, *, behind: bool = False) -> None:
        """Continue as `peer`, which has the state at the beginning of its next step.

        `behind`: the others are in that step already, and do not wait for this peer. So it says nothing in the commit
        phase, which is the roll call, and is out for the step: else it could be in it, and owe what it cannot say in
        time.
        """
        self.peer = peer
        self._began = None
        self._behind = peer.t if behind else None
        self._hold = self.deadlines.patience(self.task.d) if behind else 0.0
        self.followers.restart()
        self.aggregates.restart()
        self.node.run(self.rounds.restart(peer.t, Ends(peer), behind=behind))
        self.refresh()

    def attest(self, said: bytes, limit: int) -> dict[int, bytes]:
        """A last round after the last step: sends this peer's message, and returns the others' messages, by peer."""
        self.node.run(self.rounds.say(Said(ATTEST, [said])))
        heard = self.node.run(self.rounds.hear(ATTEST, self.others, limit, 2 * self.deadlines.phase, hold=self._hold))
        self.rounds.advance()
        return {peer: bytes(body) for peer, body in heard.items()} | {self.peer.id: said}

    def linger(self, timeout: float) -> None:
        """Wait until everybody has what this peer said in the last round, at most this long.

        What is written into a stream has not been received yet, and is lost if this process ends too early. So
        everybody says farewell once it has heard the others.
        """
        self.node.run(self.rounds.say(Said(FAREWELL, [b""])))
        self.node.run(self.rounds.hear(FAREWELL, self.others, 0, timeout))

    # How messages move, and where gradients come from (`btard.drivers.loop`).

    def talk(self, step: int, letters: Mapping[int, Letters]) -> Heard:
        record, me = self.peer.current, self.peer.id
        others = tuple(p for p in (*record.remaining, *record.newcomers) if p != me)
        said = letters[me]
        if said.broadcast:
            late = self._others_have_gone_on() or (said.phase in ROLL_CALL and self._behind == step)
            if late and not self._owes():
                # The others certify the first of these phases without this peer: it must not be in the second.
                self._behind = step
                said = said.of_one_outside
        if isinstance(said.effect, Relay) and said.effect.settled:
            return Heard({me: QUIET}, {me: self.node.run(self._pass_by(said, said.effect))})
        common, special = said.encoded()
        mail = Said(said.phase, common, special)
        sent = sum(frames.size_of(mail.to(to) or ()) for to in {*others, *(special if said.exchanged else ())})
        heard = self.node.run(self._round(mail, others, said.limit, said.effect))
        answer = said.answer(heard, me, self.past.at(step).device)
        self._stay(said.phase)
        return Heard({me: answer}, {me: sent})

    async def _pass_by(self, said: Letters, effect: Relay) -> int:
        """Leave out this round of relays and those that follow, of which this peer needs none; returns the bytes sent.

        Others may need all of them. So whatever comes next is waited for as if this peer had been in them.
        """
        for left in range(effect.left, -1, -1):
            self._clock.wait(replace(effect, first=effect.first and left == effect.left))
        _, special = said.encoded()
        if special:
            await self.rounds.say(Said(said.phase, None, special))
        if effect.proof is not None:
            self.rounds.show(self.peer.current.members, encode_items([effect.proof.look()]))
        self.rounds.pass_by(1 + effect.left)
        return sum(frames.size_of(body or ()) for body in special.values())

    def _others_have_gone_on(self) -> bool:
        """Whether more members are past the current phase than can lie about it."""
        return self.rounds.outrun_by(self.peer.active) > self.peer.byzantine

    def _owes(self) -> bool:
        """Whether this peer is in the step: then the others remove it if they do not hear it, and being late is better.

        Before the roll call, which is the commit phase, nobody owes anything; a peer that was not heard in it is out.
        """
        record = self.peer.current
        return record.here is not None and self.peer.id in record.members

    async def _round(self, said: Said, others: Sequence[int], limit: int, effect: Speech) -> dict[int, bytearray]:
        record, answered = self.peer.current, isinstance(effect, Relay) and effect.first
        if answered:
            asked = [peer for peer in record.members if peer in others]
            self.rounds.certificates.want(self.rounds.position, asked, self.peer.limits(record).message(Certificate))
        await self.rounds.say(said)
        wait = self._clock.wait(effect) + self._loading
        self._loading = 0.0
        hurry = self.deadlines.allowance(effect.phase, effect.load, answered=answered)
        heard = await self.rounds.hear(said.phase, others, limit, wait, hurry=hurry, hold=self._hold)
        self.rounds.advance()
        return heard

    def _stay(self, phase: str) -> None:
        """Errors: Fallen or OutOfStep, if more members than can lie say so."""
        enough = self.peer.byzantine
        banned = [why for why in self.rounds.refusals(self.peer.active) if why.startswith("banned")]
        if len(banned) > enough:
            raise Fallen(f"step {self.peer.t}, {phase}: {len(banned)} members refuse this peer: {banned[0]}")
        if self.rounds.left_behind_by(self.peer.active) > enough:
            raise OutOfStep(f"step {self.peer.t}, {phase}: the others are some steps ahead")
        self._trust_majority(phase)

    def _trust_majority(self, phase: str) -> None:
        """Errors: OutOfStep if half of the members are silent to this peer: then it is out of step, and not they."""
        record = self.peer.current
        silent = [peer for peer, kind in record.expelled.items() if kind == "silent" and peer != self.peer.id]
        if 2 * len(silent) >= len(record.active) > 1:
            raise OutOfStep(f"step {record.step}, {phase}: {len(silent)} of {len(record.active)} peers say nothing")

    def gradients(
        self, step: int, phase: str, asked: Mapping[int, Compute], too_late: Callable[[], bool]
    ) -> dict[int, torch.Tensor]:
        """This peer's gradient [d], if it is ready in time; colluders show each other theirs."""
        request = asked.get(self.peer.id)
        if request is None:
            return {}
        try:
            at = self.past.at(request.step)
        except LookupError:
            return {}  # a validator that has only just come back
        rows = torch.empty(1, self.task.d, device=at.device)  # fresh: frames of the last steps are views of theirs
        workers = self.past.history.sharing(request.step, step)
        self.task.gradients(at, [request], rows, workers=workers, too_late=too_late)
        gradient = rows[0]
        if request.purpose is Purpose.TRAIN:
            self.fellows.collude(self.peer, step, gradient)
        return {self.peer.id: gradient}
