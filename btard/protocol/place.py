"""A peer's place in the run: what it knows in a step."""

from __future__ import annotations

from dataclasses import dataclass

from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.commitments import Commitments, Hashed
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import batch_seed, digest
from btard.protocol.identity import Identity, Roster
from btard.protocol.ledger import Ledger
from btard.protocol.limits import Limits
from btard.protocol.memory import NOTHING, Memory
from btard.protocol.messages import UNKNOWN, JoinRequest
from btard.protocol.record import Probation, StepRecord


@dataclass(eq=False, repr=False)
class Place:
    """What peer `id` knows. `d`: number of parameters. A `Seat` is a place from which it speaks.

    A phase may read all of it. These files write to it, each to these attributes:

        seat.py: ledger
        peer.py: current, last, coins, absences, probation, requests
        commit.py: absences
        join.py: roster, probation, requests
        snapshot.py: roster, ledger, coins, requests, last
        audit/observer.py: ledger, coins, last
        audit/replay.py: ledger
        swarm/driver.py: elapsed
        place.py: _context
    """

    id: int
    identity: Identity
    roster: Roster
    config: ProtocolConfig
    d: int
    behaviour: Behaviour = HONEST
    commitments: Commitments = None  # type: ignore[assignment]  # by default its own
    memory: Memory = NOTHING

    def __post_init__(self) -> None:
        self.commitments = self.commitments or Hashed(self.config.run_id)
        self.ledger = Ledger()
        self.coins: list[bytes] = [digest("first coin", self.config.run_id)]
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
        self._context: Context | None = None
        """Of the record that was asked for last: a step asks dozens of times."""

    def behaviour_at(self, record: StepRecord) -> Behaviour:
        """This peer's behaviour in the step of `record`: honest in the steps in which it does not act."""
        if self.behaviour is HONEST:  # asked hundreds of times in a step
            return HONEST
        return self.behaviour if self.behaviour.acts(self.context(record)) else self.behaviour.resting

    def context(self, record: StepRecord) -> Context:
        """What the hooks of this peer's behaviour may use in the step of `record`."""
        if self._context is None or self._context.record is not record:
            start = (
                record.step,
                self.id,
                self.config.run_id,
                self.coins,
                record.active,
                record.assignments,
                record.tau,
            )
            self._context = Context(
                *start,
                self.last,
                record=record,
                config=self.config,
                identity=self.identity,
                commitments=self.commitments,
                memory=self.memory,
            )
        return self._context

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
