"""What the phases of a step may ask of their peer."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from btard.protocol import loads
from btard.protocol.broadcast import directly, relay_rounds, resolve
from btard.protocol.certificate import vouch
from btard.protocol.commitments import Commitments
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Broadcast, Compare, Effect, Exchange, Together
from btard.protocol.hearing import EQUIVOCATION, MALFORMED, Heard, Hearing, opened, well_formed
from btard.protocol.ledger import Entry
from btard.protocol.memory import Memory
from btard.protocol.messages import P
from btard.protocol.place import Place
from btard.protocol.record import StepRecord
from btard.protocol.signed import Bundle, Packet, Signed

ACCUSE, CONVICT = 2.0, 1.0
"""Multiples of a tolerance: an accuser wants to be sure that the judges agree."""


class Expelled(Exception):
    """This peer is no longer part of the run; its step ends here."""


class Court(Protocol):
    """The part of a seat that a verdict may depend on, or use: the same at all judges."""

    @property
    def config(self) -> ProtocolConfig: ...
    @property
    def commitments(self) -> Commitments: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def convict(self) -> float: ...


class Seat(Place):
    """What peer `id` knows and can do in a phase: say, send, expel.

    An auditor overrides `compare` and `heard_anew`: what is recorded needs no agreement.
    """

    convict = CONVICT
    """Multiple of the tolerances above which its verdicts convict. Only auditors try others."""

    def packet(
        self, record: StepRecord, kind: str, part: int, body: torch.Tensor | bytes, *, hashed: bytes | None
    ) -> Packet:
        """This peer's signed packet of `kind` about `part`; `hashed`: the commitment to `body`, if already known.

        `body`: values [p], which travel in the form that was agreed on, or whatever else a hostile peer sends.
        """
        body = record.cut.body(kind, body)
        hashed = hashed or self.commitments.digest(kind, self.id, record.step, part, body)
        return Packet.create(
            self.identity,
            kind,
            self.id,
            record.step,
            part,
            body,
            hashed=hashed,
            context=record.context,
            memory=self.memory,
        )

    def broadcast(
        self,
        record: StepRecord,
        phase: str,
        kind: type[P],
        payload: P | None,
        *,
        expected: Iterable[int],
        before: Sequence[Heard] = (),
    ) -> Generator[Effect, Any, Mapping[int, P]]:
        """Say `payload` (None: nothing) and agree with everybody on what was said: {sender: message}, ascending.

        Who sent two different messages or something malformed under its signature, or is in `expected` and said
        nothing, is removed: everybody sees that. A message with a bad signature counts as none.
        """
        expected = tuple(expected)
        heard = yield from self.say(record, phase, kind, payload, before=before)
        yield from self.agree(record, heard)
        return self.settled(record, heard, kind, expected=expected)

    def say(
        self,
        record: StepRecord,
        phase: str,
        kind: type[P],
        payload: P | None,
        *,
        before: Sequence[Heard] = (),
    ) -> Generator[Effect, Any, Heard]:
        """Say `payload` (None: nothing), and along with it what was heard `before`, on which all have agreed then.

        What was said now has to be compared along with a later message, or by `agree`.
        """
        saying = self.saying(record, phase, kind, payload)
        [heard] = yield from self.speak(record, phase, [saying], before=before)
        return heard

    def saying(self, record: StepRecord, phase: str, kind: type[P], payload: P | None) -> Broadcast:
        """What this peer says in a phase, signed; `speak` says it."""
        if self.id in record.expelled:
            raise Expelled
        behaviour, ctx = self.behaviour_at(record), self.context(record)
        self._crash(record, phase)
        record.phase = phase
        if self.id in record.probation and self.id not in record.speakers:
            payload = None  # a newcomer listens

        def sign(said: Any) -> Signed:
            return Signed.create(self.identity, record.context, self.id, record.step, phase, said, self.memory)

        message, faces = behaviour.say(ctx, phase, payload, None if payload is None else sign(payload), sign)
        limit = self.limits(record).message(kind)
        return Broadcast(phase, message, faces, limit, loads.of_broadcast(record, limit))

    def sending(
        self, record: StepRecord, phase: str, packets: Mapping[int, Sequence[Packet]], *, limit: int, load: int
    ) -> Exchange:
        """What this peer sends each recipient in a phase; `speak` sends it.

        `limit`: bytes that anybody may send me; `load`: of the phase, see `loads.py`.
        """
        self._crash(record, phase)
        return Exchange(phase, self.behaviour_at(record).dispatch(self.context(record), phase, packets), limit, load)

    def speak(
        self,
        record: StepRecord,
        phase: str,
        speeches: Sequence[Broadcast | Exchange],
        *,
        before: Sequence[Heard] = (),
    ) -> Generator[Effect, Any, list[Any]]:
        """Say all of `speeches` in one message of `phase`, and along with them what was heard `before`.

        All agree on that then. Returns for each broadcast what this peer has `Heard`, for each exchange the packets for
        this peer, by sender.
        """
        compared = [(heard, comparison) for heard in before if (comparison := self.compare(record, heard)) is not None]
        effects = (*(comparison for _, comparison in compared), *speeches)
        if len(effects) == 1:
            answers = [(yield effects[0])]
        else:
            answers = _parted((yield Together(phase, effects)), len(effects))
        vouches, answers = answers[: len(compared)], answers[len(compared) :]
        heard = [self._received(record, speech, came) for speech, came in zip(speeches, answers, strict=True)]
        for (earlier, _), said in zip(compared, vouches, strict=True):
            yield from resolve(self, record, earlier, said)
        return heard

    def _received(self, record: StepRecord, speech: Broadcast | Exchange, came: Mapping[int, Any]) -> Any:
        if isinstance(speech, Exchange):
            # A relayed broadcast is well formed too, but no packet.
            return {who: [item for item in items if isinstance(item, Packet)] for who, items in came.items()}
        heard = Heard(speech.phase, speech.limit, (), came, Hearing({}))
        self.heard_anew(record, heard)
        # For the hooks to see: liars hear it before all agree on what was said before.
        record.heard[speech.phase] = heard.direct.messages
        return heard

    def heard_anew(self, record: StepRecord, heard: Heard) -> None:
        """Keep what was heard from those that may still speak: the phase before may have shown that some are out."""
        if heard.speakers != record.speakers:
            heard.speakers = record.speakers
            heard.direct = directly(self, record, heard)

    def compare(self, record: StepRecord, heard: Heard) -> Compare | None:
        """What this peer says that it has heard; None if all trust the network to show everybody the same."""
        self.heard_anew(record, heard)
        if not relay_rounds(self.config, record, heard.phase):
            heard.agreed, heard.certified = heard.direct, True
            return None
        view, faces = self.behaviour_at(record).compare(self.context(record), heard.phase, heard.direct.view)
        heard.vouched_plainly = view == heard.direct.view and not faces
        special = {to: vouch(self, record, heard.phase, other) for to, other in faces.items()}
        return Compare(f"{heard.phase}/compare", vouch(self, record, heard.phase, view), special)

    def agree(self, record: StepRecord, heard: Heard) -> Generator[Effect, Any, None]:
        """Agree on what was `heard` by a comparison of its own, where nothing follows that all say."""
        comparison = self.compare(record, heard)
        if comparison is not None:
            yield from resolve(self, record, heard, (yield comparison))

    def so_far(self, record: StepRecord, heard: Heard, kind: type[P]) -> Mapping[int, P]:
        """{sender: message} as this peer has heard it itself, before all agree; what is malformed is left out."""
        self.heard_anew(record, heard)
        return heard.direct.once(well_formed, heard.speakers, kind, heard.limit, self.memory)

    def settled(self, record: StepRecord, heard: Heard, kind: type[P], *, expected: Iterable[int]) -> Mapping[int, P]:
        """{sender: message}, on which all agree, as of `broadcast`."""
        assert heard.agreed is not None
        record.heard[heard.phase] = heard.agreed.messages
        found = heard.agreed.once(well_formed, heard.speakers, kind, heard.limit, self.memory)
        if len(found) < len(heard.speakers):
            read = heard.agreed.once(opened, kind, heard.limit, self.memory)
            for sender in heard.speakers:
                if read.get(sender) is EQUIVOCATION:
                    self.expel(record, sender, "equivocation")
                elif read.get(sender) is MALFORMED:
                    self.expel(record, sender, f"malformed_{heard.phase.partition('/')[0]}")
                elif sender not in read and sender in expected:
                    self.expel(record, sender, "silent")
        # By what was said in the same message, too.
        return {i: said for i, said in found.items() if i not in record.expelled} if record.expelled else found

    def void(self, record: StepRecord, heard: Heard, *, certified: bool) -> None:
        """What was said along with a comparison does not count; `certified`: whether all had heard the same before.

        If not all had heard the same before, the phase leaves nothing. Otherwise nobody honest had anything to say:
        that is left of it, so that an audit knows the one from the other.
        """
        if certified:
            record.heard[heard.phase] = {}
        else:
            record.heard.pop(heard.phase, None)

    def send(
        self,
        record: StepRecord,
        phase: str,
        packets: Mapping[int, Sequence[Packet]],
        *,
        limit: int,
        load: int,
        before: Sequence[Heard] = (),
    ) -> Generator[Effect, Any, Mapping[int, Sequence[Packet]]]:
        """Send each recipient its packets; returns those for this peer, by sender. As `sending`; `before`: of `say`."""
        sending = self.sending(record, phase, packets, limit=limit, load=load)
        [arrived] = yield from self.speak(record, phase, [sending], before=before)
        return arrived

    def _crash(self, record: StepRecord, phase: str) -> None:
        """End the peer if its behaviour is to die here."""
        if self.behaviour_at(record).crashed(self.context(record), phase):
            raise Expelled

    def expel(self, record: StepRecord, peer: int, kind: str) -> None:
        """Remove `peer` for what the broadcasts show to everybody."""
        if peer not in record.expelled:
            self.enter(
                record, Entry(record.step, kind, "public", peer, accusers=(), peers=(peer,), about_step=record.step)
            )

    def enter(self, record: StepRecord, entry: Entry) -> None:
        """Write `entry` to the ledger and strike the peers that it removes."""
        self.ledger.append(entry)
        record.expelled |= dict.fromkeys(entry.peers, entry.kind)


def _parted(came: Mapping[int, Any], count: int) -> list[Mapping[int, Any]]:
    """What came of each of `count` things that were said together."""
    bundles = {peer: said.letters for peer, said in came.items() if isinstance(said, Bundle)}
    whole = {peer: letters for peer, letters in bundles.items() if len(letters) == count}
    return [{peer: of[i] for peer, of in whole.items() if of[i] is not None} for i in range(count)]
