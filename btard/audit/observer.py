"""An observer replays a recorded step with the peers' own code and reaches its own verdicts; it is no member.

What a member would hear comes from the record, what it would say is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from btard.aggregation.threads import kernel_threads
from btard.audit.proof import Proof
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.broadcast import genuine
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Broadcast, Compute, Effect, Exchange, Fetch, Purpose, Together
from btard.protocol.hashing import batch_seed
from btard.protocol.hearing import Heard, Hearing
from btard.protocol.identity import Identity, Roster
from btard.protocol.limits import FACES
from btard.protocol.memory import NOTHING, Memory
from btard.protocol.messages import NOBODY, Claim
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord, Transcript
from btard.protocol.report import take_reports
from btard.protocol.signed import Bundle, Packet, Signed

JUDGEMENT = "accuse/0"
"""The first phase in which a step is judged: everything that verdicts are based on happens before."""


class Witness(Behaviour):
    """Records the verdict on every claim; changes nothing."""

    def __init__(self) -> None:
        self.verdicts: dict[Claim, str] = {}

    def active(self, step: int) -> bool:
        return True

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        self.verdicts[claim] = verdict
        return verdict


class Observer(Peer):
    """Takes the state of the peers at the start of `transcript`; `last` is the step before, as it was replayed."""

    def __init__(
        self,
        roster: Roster,
        config: ProtocolConfig,
        d: int,
        transcript: Transcript,
        last: StepRecord | None = None,
        memory: Memory = NOTHING,
    ) -> None:
        super().__init__(NOBODY, Identity.from_seed("observer"), roster, config, d, Witness(), memory=memory)
        self.transcript, self.last = transcript, last
        self.said = transcript.heard()
        self.resume(transcript)
        self.coins, self.ledger.head = [transcript.previous_coin], transcript.head
        self._compared: Heard | None = None

    @property
    def t(self) -> int:
        return self.transcript.step

    @property
    def verdicts(self) -> Mapping[Claim, str]:
        """This observer's verdict on every claim that was tried."""
        return self.behaviour.verdicts if isinstance(self.behaviour, Witness) else {}

    def seed_of(self, step: int, peer: int) -> bytes:
        return batch_seed(self.config.run_id, step, peer, self.coins[-1])

    def compare(self, record: StepRecord, heard: Heard) -> None:
        """Nothing: what is recorded is agreed on.

        What is said along with it is void, and not recorded, unless all had heard the same.
        """
        self.heard_anew(record, heard)
        heard.certified = record.phase in (heard.phase, *self.said)
        self._compared = heard

    def heard_anew(self, record: StepRecord, heard: Heard) -> None:
        """The recorded messages of those that may still speak: all agree on these."""
        if heard.agreed is not None and heard.speakers == record.speakers:
            return
        found: dict[int, dict[bytes, Signed]] = {}
        for sender in record.speakers:
            for signed in heard.came.get(sender, ())[:FACES]:
                hashed = genuine(self, record, heard.phase, signed, record.speakers, heard.limit)
                if hashed is not None:
                    found.setdefault(sender, {})[hashed] = signed
        heard.speakers = record.speakers
        heard.direct = heard.agreed = Hearing(found)

    def replay(
        self,
        proof: Proof,
        recompute: Callable[[Compute, StepRecord], torch.Tensor] | None = None,
        *,
        judge: bool = True,
    ) -> StepRecord:
        """The step as the messages have it; its entries are in `ledger` then. Without `judge` it ends before that.

        `recompute` answers for gradients, given the request and the record of the step that it is about.
        """
        steps = self.step()
        answer: Any = None
        while True:
            try:
                with kernel_threads(1):  # as the peers', whatever this machine has; not what recomputes gradients
                    effect = steps.send(answer)
            except StopIteration:
                break
            if isinstance(effect, Broadcast) and effect.phase == JUDGEMENT and not judge:
                steps.close()
                if self._compared is not None:
                    take_reports(self, self.current, self._compared)
                break
            answer = self._answer(effect, proof, recompute)
        return self.current

    def _answer(
        self, effect: Effect, proof: Proof, recompute: Callable[[Compute, StepRecord], torch.Tensor] | None
    ) -> Any:
        if isinstance(effect, Together):
            answers = [self._answer(one, proof, recompute) for one in effect.effects]
            senders = dict.fromkeys(sender for came in answers for sender in came)
            return {sender: Bundle(tuple(came.get(sender) for came in answers)) for sender in senders}
        if isinstance(effect, Broadcast):
            return self.said.get(effect.phase, {})
        if isinstance(effect, Compute) and effect.purpose is Purpose.JUDGE:
            if recompute is not None and self.last is not None:
                return recompute(effect, self.last)
            # Equal to no gradient, and finite nowhere: it convicts nobody where distances decide. As large as one only
            # where one was disclosed to be compared with: d is but a number in a file.
            shown = sum(
                packet.nbytes for said in proof.shown.values() for packets in said.values() for packet in packets
            )
            return torch.full((1,), torch.nan).expand(self.d if self.d <= 2**10 * shown else 1)
        if isinstance(effect, Fetch):
            return {}  # nobody is there to give any
        if not isinstance(effect, Exchange):
            return None
        if effect.phase == "aggregate":
            return self._aggregates(proof)
        phase, _, attempt = effect.phase.partition("/")
        return proof.shown.get(int(attempt), {}) if phase == "evidence" else {}

    def _aggregates(self, proof: Proof) -> dict[int, list[Packet]]:
        """The recorded aggregates of this step, as from their owners: only their digest counts."""
        arrived: dict[int, list[Packet]] = {}
        for (step, part), value in proof.aggregates.items():
            if step == self.transcript.step:
                owner, body = self.current.owner(part), self.current.cut.body("aggregate", value)
                arrived.setdefault(owner, []).append(Packet("aggregate", owner, step, part, body, b""))
        return arrived
