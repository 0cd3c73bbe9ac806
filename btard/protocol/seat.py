"""A peer's place in the run: what the phases of a step may ask of their peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.commitments import Commitments
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Effect, Exchange
from btard.protocol.hashing import batch_seed, digest
from btard.protocol.hearing import EQUIVOCATION, MALFORMED, Heard
from btard.protocol.identity import Identity, Roster
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.limits import Limits
from btard.protocol.memory import Memory
from btard.protocol.messages import UNKNOWN, JoinRequest, P, Packet, Signed
from btard.protocol.record import Probation, StepRecord


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


class Seat(ABC):
    """What peer `id` knows and can do in a phase. `d`: number of parameters.

    A phase may read all of it. These files write to it, each to these attributes:

        seat.py: ledger
        peer.py: current, last, coins, absences, probation, requests
        commit.py: absences
        join.py: roster, probation, requests
        snapshot.py: roster, ledger, coins, requests, last
        audit/observer.py: ledger, coins, last
    """

    def __init__(
        self,
        id: int,
        identity: Identity,
        roster: Roster,
        config: ProtocolConfig,
        d: int,
        behaviour: Behaviour,
        commitments: Commitments,
        memory: Memory,
    ) -> None:
        self.id, self.identity, self.roster, self.config, self.d = id, identity, roster, config, d
        self.behaviour, self.commitments, self.memory = behaviour, commitments, memory
        self.ledger = Ledger()
        self.coins: list[bytes] = [digest("first coin", config.run_id)]
        """coins[t] is r^{t-1}, the coin that seeds the batches of step t."""
        self.absences: dict[int, int] = {}
        """Peer -> its count of absences, see `commit.py`."""
        self.elapsed = UNKNOWN
        """Milliseconds between the beginnings of the step before and of the one at hand, by this peer's clock; UNKNOWN
        if it has none, or was not there. Whoever runs the peer sets it before each step."""
        self.probation: dict[int, Probation] = {}
        """Newcomer -> how far it is."""
        self.requests: dict[bytes, JoinRequest] = {}
        """Requests of peers that want to join, by key, the oldest first."""
        self.current: StepRecord
        """The record of the current step."""
        self.last: StepRecord | None = None
        """The record of the step before."""

    @abstractmethod
    def hear(
        self,
        record: StepRecord,
        phase: str,
        message: Signed | None,
        faces: Mapping[int, Signed | None],
        limit: int,
        before: Heard | None,
    ) -> Generator[Effect, Any, Heard]:
        """Say `message`, and along with it what was heard `before`, which is then agreed on; what was said."""

    @abstractmethod
    def exchange(
        self,
        record: StepRecord,
        phase: str,
        packets: Mapping[int, Sequence[Packet]],
        limit: int,
        load: int,
        before: Heard,
    ) -> Generator[Effect, Any, Mapping[int, Sequence[Packet]]]:
        """Send packets, and along with them what was heard `before`, which is then agreed on; the packets that came."""

    @abstractmethod
    def agree(self, record: StepRecord, heard: Heard) -> Generator[Effect, Any, None]:
        """Agree on what was `heard`, where nothing follows that all say."""

    @abstractmethod
    def heard_anew(self, record: StepRecord, heard: Heard) -> None:
        """Take into account that speakers have fallen out since."""

    def behaviour_at(self, record: StepRecord) -> Behaviour:
        """This peer's behaviour in the step of `record`: honest in the steps in which it does not act."""
        if self.behaviour is HONEST:  # asked hundreds of times in a step
            return HONEST
        return self.behaviour if self.behaviour.acts(self.context(record)) else self.behaviour.resting

    def context(self, record: StepRecord) -> Context:
        """What the hooks of this peer's behaviour may use in the step of `record`."""
        start = (record.step, self.id, self.config.run_id, self.coins, record.active, record.assignments, record.tau)
        return Context(
            *start,
            self.last,
            record=record,
            config=self.config,
            identity=self.identity,
            commitments=self.commitments,
            memory=self.memory,
        )

    def limits(self, record: StepRecord) -> Limits:
        """How much an honest peer can have to say in the step of `record`: this follows from the state at its start.

        Those that are gone do not count, or keys that cost nothing could make all limits grow, and all deadlines.
        """
        there = len(record.active) + len(record.probation)
        return Limits(max(self.config.peers, there), self.config.directions)

    def seed_of(self, step: int, peer: int) -> bytes:
        """xi_i^t for a step whose coin is known."""
        return batch_seed(self.config.run_id, step, peer, self.coins[step])

    def record_of(self, step: int) -> StepRecord | None:
        """This peer's record of the current step or of the one before; None for any other."""
        known = (self.current, self.last)
        return next((record for record in known if record is not None and record.step == step), None)

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
        before: Heard | None = None,
    ) -> Generator[Effect, Any, dict[int, P]]:
        """Say `payload` (None: nothing) and agree with everybody on what was said: {sender: message}, ascending.

        Who sent two different messages or something malformed under its signature, or is in `expected` and said
        nothing, is removed: everybody sees that. A message with a bad signature counts as none.
        """
        expected = tuple(expected)
        heard = yield from self.say(record, phase, kind, payload, before=before)
        yield from self.agree(record, heard)
        return self.settled(record, heard, kind, expected=expected)

    def say(
        self, record: StepRecord, phase: str, kind: type[P], payload: P | None, *, before: Heard | None = None
    ) -> Generator[Effect, Any, Heard]:
        """Say `payload` (None: nothing), and along with it what was heard `before`, on which all have agreed then.

        What was said now has to be compared along with a later message, or by `agree`.
        """
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
        return (yield from self.hear(record, phase, message, faces, self.limits(record).message(kind), before))

    def so_far(self, record: StepRecord, heard: Heard, kind: type[P]) -> dict[int, P]:
        """{sender: message} as this peer has heard it itself, before all agree; what is malformed is left out."""
        self.heard_anew(record, heard)
        read = heard.direct.opened(kind, heard.limit, self.memory)
        return {sender: read[sender] for sender in heard.speakers if isinstance(read.get(sender), kind)}

    def settled(self, record: StepRecord, heard: Heard, kind: type[P], *, expected: Iterable[int]) -> dict[int, P]:
        """{sender: message}, on which all agree, as of `broadcast`."""
        assert heard.agreed is not None
        record.heard[heard.phase] = heard.agreed.messages
        read = heard.agreed.opened(kind, heard.limit, self.memory)
        opened: dict[int, P] = {}
        for sender in heard.speakers:
            said = read.get(sender)
            if said is None:
                if sender in expected:
                    self.expel(record, sender, "silent")
            elif said is EQUIVOCATION:
                self.expel(record, sender, "equivocation")
            elif said is MALFORMED:
                self.expel(record, sender, f"malformed_{heard.phase.partition('/')[0]}")
            else:
                opened[sender] = said
        return opened

    def void(self, record: StepRecord, heard: Heard, before: Heard) -> None:
        """What was said along with the comparison of `before` does not count.

        If not all had heard the same before, the phase leaves nothing. Otherwise nobody honest had anything to say:
        that is left of it, so that an audit knows the one from the other.
        """
        if before.certified:
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
        before: Heard | None = None,
    ) -> Generator[Effect, Any, Mapping[int, Sequence[Packet]]]:
        """Send each recipient its packets; returns the packets for this peer, by sender.

        `limit`: bytes that anybody may send me; `load`: of the phase, see `loads.py`; `before`: as of `say`.
        """
        self._crash(record, phase)
        packets = self.behaviour_at(record).dispatch(self.context(record), phase, packets)
        if before is None:
            arrived = yield Exchange(phase, packets, limit, load)
        else:
            arrived = yield from self.exchange(record, phase, packets, limit, load, before)
        # A relayed broadcast is well formed too, but no packet.
        return {who: [item for item in items if isinstance(item, Packet)] for who, items in arrived.items()}

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
