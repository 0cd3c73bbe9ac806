"""One peer of BTARD-SGD (the paper's Algorithm 1). `Peer.step` reads like section 3 of the protocol."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from btard.protocol.accuse import judge, verify
from btard.protocol.aggregate import aggregate, settle_exclusions, settle_missing
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.broadcast import Heard, hear
from btard.protocol.coin import toss
from btard.protocol.commit import commit, compute
from btard.protocol.config import ProtocolConfig
from btard.protocol.disclose import disclose
from btard.protocol.effects import Effect, Exchange
from btard.protocol.exchange import exchange
from btard.protocol.hashing import batch_seed, digest
from btard.protocol.identity import Identity, Roster
from btard.protocol.join import WAITING, Probation, admit, bring_up, count_probation, draw_check
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.messages import (
    Announce,
    Claims,
    CoinCommit,
    CoinReveal,
    Commit,
    Join,
    JoinRequest,
    Packet,
    Report,
    Signed,
    Votes,
    max_message,
)
from btard.protocol.radius import next_radius
from btard.protocol.record import StepRecord, step_context
from btard.protocol.report import report
from btard.protocol.validate import draw_validators, validate
from btard.protocol.wire import Malformed

M = TypeVar("M", Commit, Announce, CoinCommit, CoinReveal, Report, Claims, Votes, Join)


class Expelled(Exception):
    """This peer is no longer part of the run; its step ends here."""


@dataclass(frozen=True)
class Outcome:
    """What a step came to for one peer. All honest peers have the same."""

    step: int
    parts: tuple[torch.Tensor | None, ...]
    """a[j] of every part; None where the parameters get a zero gradient in this step."""
    hashes: tuple[bytes, ...]
    """H(a[j]), b"" where there is none: what honest peers compare."""
    sizes: tuple[int, ...]
    coin: bytes
    removed: tuple[Entry, ...]
    """The ledger's new entries."""

    def gradient(self, out: torch.Tensor) -> torch.Tensor:
        """concat_j a[j], written to and returned as `out` [d]."""
        for piece, value in zip(out.split(list(self.sizes)), self.parts, strict=True):
            piece.zero_() if value is None else piece.copy_(value)
        return out


class Peer:
    """State and behaviour of peer `id` between steps. `d`: number of parameters.

    A newcomer (`id` beyond the configured peers, the roster grown) needs the downloaded state before its first step.
    Errors: ValueError if the roster's size is not the configured number of peers or d is smaller than it, or if
    `behaviour` needs validators and there are none.
    """

    def __init__(
        self,
        id: int,
        identity: Identity,
        roster: Roster,
        config: ProtocolConfig,
        d: int,
        behaviour: Behaviour = HONEST,
    ) -> None:
        if len(roster.keys) != config.peers and (config.probation is None or len(roster.keys) < config.peers):
            raise ValueError(f"peer {id}: the roster has {len(roster.keys)} keys, the config says {config.peers} peers")
        if d < config.peers:
            raise ValueError(f"peer {id}: a model of {d} parameters cannot be shared among {config.peers} peers")
        behaviour.check_validators(config.validators)
        self.id, self.identity, self.roster, self.config, self.d, self.behaviour = (
            id,
            identity,
            roster,
            config,
            d,
            behaviour,
        )
        self.ledger = Ledger()
        self.active: tuple[int, ...] = tuple(range(config.peers))
        self.assignments: dict[int, int] = {}
        self.coins: list[bytes] = [digest("first coin", config.run_id)]
        self.tau = config.first_tau
        """The clipping radius of the next step."""
        self.absences: dict[int, int] = {}
        self.last: StepRecord | None = None
        self.probation: dict[int, Probation] = {}
        self.requests: dict[bytes, JoinRequest] = {}
        """Of those that want to join, by key, the oldest first."""
        self.current: StepRecord

    @property
    def t(self) -> int:
        """The next step."""
        return len(self.coins) - 1

    def step(self) -> Generator[Effect, Any, Outcome | None]:
        """One step of BTARD-SGD up to the agreed gradient; applying it is the caller's. None once this peer is out."""
        record = self.current = self.begin()
        already = len(self.ledger.entries)
        try:
            if self.config.probation is not None:
                yield from admit(self, record)
            gradient = yield from compute(self, record)
            recomputed = gradient if self.id in record.assignments else None
            gradient = yield from commit(self, record, None if self.id in record.assignments else gradient)
            yield from exchange(self, record, gradient)
            yield from aggregate(self, record)
            yield from toss(self, record)
            yield from report(self, record, gradient)
            yield from settle_missing(self, record)
            yield from disclose(self, record, recomputed)
            watching = self.id in record.probation  # a newcomer accuses nobody
            yield from judge(self, record, [] if watching else verify(self, record) + validate(self, recomputed))
            if self.id in record.expelled:
                return None
            if record.newcomers:
                yield from bring_up(self, record)
        except Expelled:
            return None
        return self._finish(record, already)

    def begin(self) -> StepRecord:
        """The record of the next step, of which all that is known is the agreed state at its start."""
        coin, head = self.coins[-1], self.ledger.head
        context = step_context(self.config.run_id, self.t, self.active, self.assignments, coin, head, self.tau)
        record = StepRecord(self.t, self.active, self.assignments, coin, self.tau, context)
        record.probation = tuple(sorted(self.probation))
        record.head, record.absences, record.standings = head, dict(self.absences), dict(self.probation)
        return record

    def _finish(self, record: StepRecord, already: int) -> Outcome | None:
        """A_{t+1}, V_{t+1} and the coin of the next step (phases 7 and 8)."""
        settle_exclusions(record)
        graduates = count_probation(self, record) if self.probation else ()
        self.active = tuple(sorted((*record.remaining, *graduates)))
        if self.id not in self.active and self.id not in self.probation:
            return None
        self.coins.append(record.coin)
        self.tau = next_radius(self.config, record)
        there = tuple(p for p in self.active if p not in record.away)  # whoever is away could only fail at the duty
        self.assignments = draw_validators(record.coin, record.workers, there, self.config.validators)
        working = {i: standing.cleared for i, standing in self.probation.items() if i in record.commits}
        self.assignments |= draw_check(record.coin, working, there, self.assignments)
        self.last = record
        usable = [j for j in range(record.cut.k) if j in record.aggregates and j not in record.skipped]
        return Outcome(
            record.step,
            tuple(record.aggregates[j] if j in usable else None for j in range(record.cut.k)),
            tuple(record.announced[j].digest if j in usable else b"" for j in range(record.cut.k)),
            tuple(record.cut.size(j) for j in range(record.cut.k)),
            record.coin,
            tuple(self.ledger.entries[already:]),
        )

    def receive(self, request: JoinRequest) -> bool:
        """Keep a request to join, to be named in the next steps; False if it is forged, used up or one too many."""
        if request.key in self.roster.keys or len(self.requests) >= WAITING:
            return False
        if not request.authentic(self.config.run_id):
            return False
        self.requests.setdefault(request.key, request)
        return True

    # What the phases share.

    def behaviour_at(self, record: StepRecord) -> Behaviour:
        """My behaviour in the step of `record`: at rest in the steps in which it does not act."""
        return self.behaviour if self.behaviour.acts(self.context(record)) else self.behaviour.resting

    def context(self, record: StepRecord) -> Context:
        return Context(
            record.step, self.id, record, self.coins, self.config.run_id, self.config, self.last, self.identity
        )

    def seed_of(self, step: int, peer: int) -> bytes:
        """xi_i^t for a step whose coin is known."""
        return batch_seed(self.config.run_id, step, peer, self.coins[step])

    def record_of(self, step: int) -> StepRecord | None:
        """My record of the present step or of the one before; None for any other."""
        known = (self.current, self.last)
        return next((record for record in known if record is not None and record.step == step), None)

    def packet(
        self, record: StepRecord, kind: str, part: int, body: torch.Tensor | bytes, *, hashed: bytes | None
    ) -> Packet:
        return Packet.create(self.identity, self.config.run_id, kind, self.id, record.step, part, body, hashed=hashed)

    def broadcast(
        self, record: StepRecord, phase: str, kind: type[M], payload: M | None, *, expected: Iterable[int]
    ) -> Generator[Effect, Any, dict[int, M]]:
        """Say `payload` (None: nothing) and hear everybody: {sender: message}, ascending.

        Who sent two different messages or something malformed under its signature, or is in `expected` and said
        nothing, is removed: everybody sees that. A message with a bad signature counts as none.
        """
        if self.id in record.expelled:
            raise Expelled
        expected = tuple(expected)
        behaviour, ctx = self.behaviour_at(record), self.context(record)
        self._crash(record, phase)
        limit = max_message(kind, len(self.roster.keys), self.config.directions)
        record.phase = phase
        speakers = record.speakers
        if self.id in record.probation and self.id not in speakers:
            payload = None  # a newcomer listens

        def sign(said: Any) -> Signed:
            return Signed.create(self.identity, record.context, self.id, record.step, phase, said)

        message, faces = behaviour.say(ctx, phase, payload, None if payload is None else sign(payload), sign)
        heard = yield from self.hear(record, phase, message, faces, limit)
        record.heard[phase] = {sender: tuple(said.values()) for sender, said in heard.items()}
        opened: dict[int, M] = {}
        for sender in speakers:
            said = record.heard[phase].get(sender, ())
            if len(said) > 1:
                self.expel(record, sender, "equivocation")
            elif said:
                try:
                    opened[sender] = said[0].open(kind, limit)
                except Malformed:
                    self.expel(record, sender, f"malformed_{phase.partition('/')[0]}")
            elif sender in expected:
                self.expel(record, sender, "silent")
        return opened

    def hear(
        self, record: StepRecord, phase: str, message: Signed | None, faces: Mapping[int, Signed | None], limit: int
    ) -> Generator[Effect, Any, Heard]:
        """What everybody said in this phase; an auditor, who was not there, takes it from a record."""
        return hear(self, record, phase, message, faces, limit)

    def send(
        self, record: StepRecord, phase: str, packets: Mapping[int, Sequence[Packet]], *, limit: int
    ) -> Generator[Effect, Any, Mapping[int, Sequence[Packet]]]:
        """Send each recipient its packets and get mine, by sender; `limit`: bytes that anybody may send me."""
        self._crash(record, phase)
        packets = self.behaviour_at(record).dispatch(self.context(record), phase, packets)
        arrived = yield Exchange(phase, packets, limit)
        # A relayed broadcast is well formed too, but no packet.
        return {who: [item for item in items if isinstance(item, Packet)] for who, items in arrived.items()}

    def _crash(self, record: StepRecord, phase: str) -> None:
        """The end of a peer whose behaviour is to die here."""
        if self.behaviour_at(record).crashed(self.context(record), phase):
            raise Expelled

    def expel(self, record: StepRecord, peer: int, kind: str) -> None:
        """Remove `peer` for what the broadcasts show to everybody."""
        if peer not in record.expelled:
            self.remove(
                record, Entry(record.step, kind, "public", peer, accusers=(), peers=(peer,), about_step=record.step)
            )

    def remove(self, record: StepRecord, entry: Entry) -> None:
        """Write `entry` to the ledger and strike its peers."""
        self.ledger.append(entry)
        record.expelled |= dict.fromkeys(entry.peers, entry.kind)

    def count_absences(self, record: StepRecord, planned: tuple[int, ...]) -> None:
        """Section 8: missing the commit phase costs the step; `max_absences` in a row mean that the peer is gone."""
        for peer in planned:
            missed = 0 if peer in record.workers else self.absences.get(peer, 0) + 1
            self.absences[peer] = missed
            if missed >= self.config.max_absences:
                self.expel(record, peer, "gone")
