"""What each peer did in a step, in a few bytes per peer: for run folders, and for pages that show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from btard.protocol.record import StepRecord

WORKED, VALIDATED, IDLE, AWAY, PROBATION, OUT = "w", "v", "i", "a", "p", "."
ROLES = {
    WORKED: "worked: its gradient went in, or was to",
    VALIDATED: "validated: it recomputed the gradient of another peer of the step before",
    IDLE: "here without a gradient",
    AWAY: "away: not heard when the step began",
    PROBATION: "on probation: its gradient is checked and does not go in",
    OUT: "not in the run",
}


@dataclass(frozen=True)
class Account:
    """A step as all honest peers have it. Its size is bounded by the number of peers, whatever they do."""

    roles: str
    """A letter of `ROLES` for each peer, by number."""
    checks: tuple[tuple[int, int], ...] = ()
    """(validator, target), ascending, of the validators that were here."""
    accused: tuple[int, ...] = ()
    """Peers about whom a claim was tried, ascending."""
    skipped: tuple[int, ...] = ()
    """Parts whose parameters got a zero gradient, ascending."""
    sent: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Peer -> phase -> bytes that it put on the wire; of the peers of this process."""

    @classmethod
    def of(cls, record: StepRecord, sent: Mapping[int, Mapping[str, int]]) -> Account:
        """The account of the finished step in `record`."""
        active, here = set(record.active), set(record.active if record.here is None else record.here)
        checks = tuple(sorted((peer, target) for peer, target in record.assignments.items() if peer in here))
        validators, workers = {peer for peer, _ in checks}, set(record.workers)

        def role(peer: int) -> str:
            if peer in record.standings:
                return PROBATION
            if peer not in active:
                return OUT
            if peer not in here:
                return AWAY
            return VALIDATED if peer in validators else WORKED if peer in workers else IDLE

        numbers = max((*active, *record.standings), default=-1) + 1
        tried = {claim.accused for claims in record.trials.values() for claim in claims}
        return cls(
            "".join(map(role, range(numbers))), checks, tuple(sorted(tried)), tuple(sorted(record.skipped)), sent
        )

    def fields(self, peer: int | None = None) -> dict[str, Any]:
        """JSON values for a line of metrics; for `peer`, also the bytes that it sent. Empty fields are left out."""
        sent = self.sent.get(-1 if peer is None else peer, {})
        found = {
            "roles": self.roles,
            "checks": [list(pair) for pair in self.checks],
            "accused": list(self.accused),
            "skipped": list(self.skipped),
            "bytes": {phase: count for phase, count in sent.items() if count},
        }
        return {name: value for name, value in found.items() if value}
