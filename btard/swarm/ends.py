"""Statements that a step is over, signed by members that have reached its end.

Among b_t + 1 of them one is honest. Waits grow from phase to phase, and begin anew at each step. So at its beginning
the peers' clocks have to be close again, although liars that are silent to some in the last phase keep these waiting
for long. So a peer's wait for the first phase begins only when it has this word about the step before. Each peer
passes the word on. A peer that is still in that step then waits no longer than a message may take (T. K. Srikanth and
S. Toueg, Optimal Clock Synchronization, J. ACM 1987).

That this cuts off no honest peer: let Z be honest and at the end of the step. Every honest peer has then said what it
says in the last phase that Z was in, for Z has waited for it; so it arrives within one message of Z's word. Z may have
passed the last rounds of relays by, with a certificate, and has waited for nobody in them. But then Z shows the
certificate to each peer that speaks in the first of these rounds: two messages, so that round's wait is that long. Or Z
has accepted it in a later round. Then Z has passed it on in the next one, before its word that the step is over.

A peer that is still in step t knows only A_t and b_t. So peers that are past it count by these as well, whatever the
step has made of them: what is enough for one peer is then enough for all to which it passes the word on.
"""

from __future__ import annotations

from collections import Counter

from btard.protocol import wire
from btard.protocol.hashing import signed_digest
from btard.protocol.identity import SIGNATURE_SIZE
from btard.protocol.peer import Peer
from btard.protocol.wire import Malformed

OVER = "over"
"""The phase of the frames with such statements: one after a step's last, one after the first of the next."""
FRAMES = 4
"""How many of them are read from one peer about one step: both, and once more if its stream broke off."""


class Ends:
    """Which steps are over, by the statements that came, as `peer` sees its members."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._signed: dict[int, dict[int, bytes]] = {}
        """Step -> member -> its genuine signature."""
        self._looked_at: Counter[tuple[int, int]] = Counter()

    def sign(self, step: int) -> bytes:
        """This peer's own statement that `step` is over, as a frame's body."""
        self._signed.setdefault(step, {})[self.peer.id] = self.peer.identity.sign(self._digest(step))
        return self._packed(step, {self.peer.id: self._signed[step][self.peer.id]})

    def over(self, step: int) -> bool:
        """Whether more of its members have said so than can lie."""
        return len(self._of_members(step)) > self._deciding(step)[1]

    def proof(self, step: int) -> bytes:
        """What proves to others that `step` is over; all statements that this peer has, if they are not enough."""
        return self._packed(step, dict(list(self._of_members(step).items())[: self._deciding(step)[1] + 1]))

    def hear(self, sender: int, body: bytes | bytearray) -> None:
        """Accept what `sender` passes on. Anything malformed, or of no interest, is ignored."""
        try:
            said = wire.unpack(bytes(body), max_bytes=self.limit, what=OVER)
            step, *signatures = wire.check_list(said, OVER, lambda value, what: value, max_len=1 + len(self._signers()))
            step = wire.check_int(step, "step")
            if abs(step - self.peer.t) > 1 or self._looked_at[sender, step] == FRAMES:
                return
            self._looked_at[sender, step] += 1
            for item in signatures:
                member, signature = wire.check_fields(item, "signature", 2)
                self._take(step, wire.check_int(member, "member"), signature)
        except (Malformed, ValueError):
            pass

    def forget(self, before: int) -> None:
        """Forget steps before `before`: nobody asks about them any more."""
        self._signed = {step: signed for step, signed in self._signed.items() if step >= before}
        self._looked_at = Counter({key: count for key, count in self._looked_at.items() if key[1] >= before})

    @property
    def limit(self) -> int:
        """Largest size of a frame in bytes."""
        return 16 + (SIGNATURE_SIZE + 16) * len(self.peer.roster.keys)

    def _take(self, step: int, member: int, signature: object) -> None:
        known = self._signed.setdefault(step, {})
        if member in known or member not in self._signers() or not isinstance(signature, bytes):
            return
        if self.peer.roster.verify(member, self._digest(step), signature):
            known[member] = signature

    def _deciding(self, step: int) -> tuple[tuple[int, ...], int]:
        """A_t and b_t of `step`, as the peers that were in it had them."""
        last = self.peer.last
        if last is not None and last.step == step:
            return last.active, last.byzantine
        return self.peer.active, self.peer.byzantine

    def _signers(self) -> frozenset[int]:
        """The peers whose statements about the current steps may count."""
        last = self.peer.last
        return frozenset(self.peer.active if last is None else (*self.peer.active, *last.active))

    def _of_members(self, step: int) -> dict[int, bytes]:
        members, _ = self._deciding(step)
        return {i: s for i, s in self._signed.get(step, {}).items() if i in members}

    def _digest(self, step: int) -> bytes:
        return signed_digest("step over", self.peer.config.run_id, self.peer.epoch, step)

    @staticmethod
    def _packed(step: int, signatures: dict[int, bytes]) -> bytes:
        return wire.pack((step, *signatures.items()))
