"""One peer of BTARD-SGD (the paper's Algorithm 1). `Peer.step` reads like "A step" in docs/protocol.md."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from btard.protocol.accuse import judge
from btard.protocol.aggregate import offer
from btard.protocol.choose import draw_check, draw_validators
from btard.protocol.coin import toss
from btard.protocol.commit import Incomplete, commit, compute
from btard.protocol.disclose import disclose
from btard.protocol.effects import Effect
from btard.protocol.exchange import exchange
from btard.protocol.hashing import digest
from btard.protocol.heal import heal, is_kept, oldest, went_back
from btard.protocol.join import admit, bring_up, count_probation
from btard.protocol.ledger import Entry, still_byzantine
from btard.protocol.limits import WAITING
from btard.protocol.messages import JoinRequest
from btard.protocol.radius import next_radius
from btard.protocol.record import Start, StepRecord
from btard.protocol.recover import settle_exclusions, settle_missing
from btard.protocol.report import report
from btard.protocol.seat import Expelled, Seat
from btard.protocol.validate import validate
from btard.protocol.verify import verify


@dataclass(frozen=True)
class Outcome:
    """The result of a step for one peer. All honest peers have the same."""

    step: int
    parts: tuple[torch.Tensor | None, ...]
    """a[j] of every part; None where the parameters get a zero gradient in this step."""
    hashes: tuple[bytes, ...]
    """H(a[j]), b"" if there is none: what honest peers compare."""
    sizes: tuple[int, ...]
    coin: bytes
    removed: tuple[Entry, ...]
    """The ledger's new entries."""
    back_to: int | None = None
    """The step to whose beginning all peers go back; the gradient is then not used."""

    def gradient(self, out: torch.Tensor) -> torch.Tensor:
        """concat_j a[j], written to and returned as `out` [d]."""
        for piece, value in zip(out.split(list(self.sizes)), self.parts, strict=True):
            piece.zero_() if value is None else piece.copy_(value)
        return out


class Peer(Seat):
    """The peer between steps: its seat, and what the next step begins with.

    A newcomer (`id` beyond the configured peers, the roster grown) needs the downloaded state before its first step.
    `commitments` and `memory`: those of the cohort in this process; by default this peer has its own.
    Errors: ValueError if the roster's size is not the configured number of peers or d is smaller than it, or if
    `behaviour` needs validators and there are none.

    >>> import btard
    >>> peers = btard.LocalDriver(btard.ProtocolConfig(peers=3, validators=1), btard.QuadraticTask(8)).peers
    >>> peers[2].id, peers[2].t, peers[2].active
    (2, 0, (0, 1, 2))
    """

    def __post_init__(self) -> None:
        config, keys, n = self.config, len(self.roster.keys), self.config.peers
        if keys != n and (config.probation is None or keys < n):
            raise ValueError(f"peer {self.id}: the roster has {keys} keys, the config says {n} peers")
        if self.d < n:
            raise ValueError(f"peer {self.id}: a model of {self.d} parameters cannot be shared among {n} peers")
        self.behaviour.check_validators(config.validators)
        super().__post_init__()
        self.active: tuple[int, ...] = tuple(range(n))
        """A_t of the next step."""
        self.assignments: dict[int, int] = {}
        """V_t of the next step: validator -> target."""
        self.tau = config.first_tau
        """The clipping radius of the next step."""
        self.byzantine = config.byzantine
        """b_t of the next step."""
        self.epoch = b""
        """Which life of the run this is."""
        self.taus = {0: self.tau}
        """The radii of the steps to which everybody may go back."""

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
            said = yield from commit(self, record, None if self.id in record.assignments else gradient)
            yield from exchange(self, record, said)
            tossed = yield from toss(self, record, offer(self, record))
            reports = yield from report(self, record, said.gradient, tossed)
            yield from settle_missing(self, record)
            yield from disclose(self, record, recomputed)
            yield from judge(self, record, lambda: verify(self, record) + validate(self, recomputed), reports)
            if self.id in record.expelled:
                return None
            yield from heal(self, record)
            if record.listeners:
                yield from bring_up(self, record)
        except Expelled:
            return None
        return self._finish(record, already)

    def begin(self) -> StepRecord:
        """The record of the next step, which holds only the agreed state at its start."""
        start = (self.t, self.active, self.assignments, self.coins[-1], self.tau, self.ledger.head)
        record = StepRecord(*start, dict(self.absences), dict(self.probation), self.epoch)
        record.byzantine = self.byzantine
        record.context = record.binding(self.config)
        return record

    def resume(self, start: Start) -> None:
        """Take the state of the peers at the start of a step. Coins and ledger, which end there, are set separately."""
        self.active, self.assignments, self.tau = start.active, dict(start.assignments), start.tau
        self.absences, self.probation = dict(start.absences), dict(start.standings)
        self.epoch = start.epoch

    def begin_life(self, name: bytes) -> None:
        """Continue after a common restart, which may repeat steps: no message of the life before counts any more.

        `name`: the same at all peers, and one that no restart from the same checkpoint had. Simulated peers repeat
        their secrets, so that a resumed run is the same run; others have new ones in each life.
        """
        self.epoch = digest("life", self.config.run_id, self.epoch, name)

    def _finish(self, record: StepRecord, already: int) -> Outcome | None:
        """A_{t+1}, V_{t+1} and the coin of the next step."""
        settle_exclusions(record)
        counting = [j for j in range(record.cut.k) if j in record.announced and j not in record.skipped]
        lacking = [j for j in counting if j not in record.aggregates]
        graduates = count_probation(self, record) if self.probation else ()
        self.active = tuple(sorted((*record.remaining, *graduates)))
        if self.id not in self.active and self.id not in self.probation:
            return None
        back_to = went_back(self.ledger.entries, record.step)
        if lacking and back_to is None:
            # Zero would do for nobody else: this peer would train another model, and be banned for its gradients.
            raise Incomplete(f"step {record.step}: parts {lacking} count, and did not reach peer {self.id}")
        self.coins.append(record.coin)
        self.byzantine = still_byzantine(self.config, self.ledger.entries)
        self.tau = next_radius(self.config, record) if back_to is None else self.taus.get(back_to, record.tau)
        if is_kept(self.config, self.ledger.entries, self.t):
            first = oldest(self.config, self.ledger.entries, self.t)
            self.taus = {step: tau for step, tau in self.taus.items() if step >= first} | {self.t: self.tau}
        # A peer that is away could only fail at the duty. The same newcomers are there as before the coin: else a
        # validator could choose between two draws by clearing one or not. So a new member has no duty yet.
        there = tuple(p for p in self.active if p in (record.here or ()))
        pairs = draw_validators(record.coin, record.workers, there, self.config.validators, self.memory)
        # For the same reason the validator that has just checked a newcomer counts as one that has cleared it.
        checked = {target: validator for validator, target in record.assignments.items()}
        working = {
            i: standing.cleared | ({checked[i]} if i in checked else set())
            for i, standing in record.standings.items()
            if i in record.commits
        }
        checks = draw_check(record.coin, working, there, pairs, self.byzantine)
        out = {*graduates, *record.expelled}
        self.assignments = {validator: target for validator, target in checks.items() if target not in out}
        self.last = record
        return Outcome(
            record.step,
            tuple(record.aggregates.get(j) if j in counting else None for j in range(record.cut.k)),
            tuple(record.announced[j].digest if j in counting else b"" for j in range(record.cut.k)),
            record.cut.sizes,
            record.coin,
            tuple(self.ledger.entries[already:]),
            back_to,
        )

    def receive(self, request: JoinRequest) -> bool:
        """Keep a request to join, to be named in the next steps; False if it is forged, used up or one too many."""
        if request.key in self.roster.keys or len(self.requests) >= WAITING:
            return False
        if not request.authentic(self.config.run_id, self.memory):
            return False
        self.requests.setdefault(request.key, request)
        return True
