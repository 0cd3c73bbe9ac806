"""What a peer remembers of one step: everybody's broadcasts, its own parts, its aggregates, and who fell out.

A verdict about step t can fall at t + 1, so a peer keeps the record of the step before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from btard.protocol.hashing import digest
from btard.protocol.messages import NOBODY, AnnouncedPart, Commit, Packet, Report, Signed


@dataclass
class Split:
    """How d parameters are cut into k parts: sizes differ by at most one, so nothing is padded or copied."""

    d: int
    k: int

    def __post_init__(self) -> None:
        if self.d < self.k:
            raise ValueError(f"a model of {self.d} parameters cannot be cut into {self.k} parts, one per worker")
        size, longer = divmod(self.d, self.k)
        self._starts = [part * size + min(part, longer) for part in range(self.k + 1)]

    def bounds(self, part: int) -> tuple[int, int]:
        return self._starts[part], self._starts[part + 1]

    def size(self, part: int) -> int:
        return self._starts[part + 1] - self._starts[part]

    def runs(self) -> list[tuple[int, int]]:
        """Ranges of neighbouring parts of equal size, at most two: what can be handled as the rows of a matrix."""
        longer = self.d % self.k
        return [(first, last) for first, last in ((0, longer), (longer, self.k)) if first < last]

    def view(self, vector: torch.Tensor, part: int) -> torch.Tensor:
        """Part `part` of `vector` [d], without a copy."""
        return vector[self._starts[part] : self._starts[part + 1]]


def step_context(
    run_id: str,
    step: int,
    active: Sequence[int],
    assignments: Mapping[int, int],
    coin: bytes,
    ledger: bytes,
    tau: float,
) -> bytes:
    """What a signature of step `step` is bound to: the run, A_t, V_t, r^{t-1}, the head of the ledger, the radius.

    A message of another step or run, or of a peer that sees another history, is no message here.
    """
    pairs = [peer for pair in sorted(assignments.items()) for peer in pair]
    return digest("context", run_id, step, len(active), *active, *pairs, coin, ledger, tau.hex())


@dataclass(frozen=True)
class Probation:
    """How far a newcomer is. Everybody counts the same, for all of it follows from broadcasts."""

    served: int = 0
    """Steps in a row whose gradient it committed to."""
    missed: int = 0
    """Commit phases in a row that it missed; one of them starts its probation again."""
    cleared: frozenset[int] = frozenset()
    """Members that recomputed one of its gradients and had nothing to say against it."""


@dataclass
class StepRecord:
    """One step as one peer saw it.

    Broadcasts give most of it, so it is the same at all honest peers. Not so `received`, `aggregates`, `own`,
    `disclosed`, `suspects` and `shown`, which hold what came to this peer alone.

    These files write to it, each to these fields:

        seat.py: phase, heard, expelled
        broadcast.py: heard
        commit.py: split, commits, workers, owners, own
        exchange.py: received, suspects
        aggregate.py: announced, aggregates, suspects, skipped
        coin.py: away, missing, coin
        report.py: reports
        disclose.py: disclosed
        accuse.py: shown, skipped
        join.py: aggregates
        snapshot.py: aggregates, received, own
        audit/recorder.py: heard, head, absences, standings
    """

    step: int
    active: tuple[int, ...]
    """A_t, ascending."""
    assignments: dict[int, int]
    """V_t: validator -> its target, a worker of step t - 1."""
    previous_coin: bytes
    """r^{t-1}, the seed of this step's batches."""
    tau: float = math.inf
    """The clipping radius of this step, whenever it is judged; inf clips nothing."""
    context: bytes = b""
    """Digest of the run and of the agreed state at the start of the step: what signatures of the step are bound to."""
    probation: tuple[int, ...] = ()
    """Newcomers on probation, ascending: they commit, and hear everything, and that is all (section 7)."""
    phase: str = ""
    """The broadcast phase at hand."""
    workers: tuple[int, ...] = ()
    """W_t, ascending: those who committed and are not on probation."""
    split: Split | None = None
    owners: tuple[int, ...] = ()
    """owners[j] aggregates part j; NOBODY where the worker that would have owned it is not here. Nobody inherits a part,
    so that a minority of the workers never owns half of the parts that count."""
    commits: dict[int, Commit] = field(default_factory=dict)
    """Of the workers, and of the newcomers."""
    announced: dict[int, AnnouncedPart] = field(default_factory=dict)
    """Part -> H(a[j]) and the workers that went in."""
    reports: dict[int, Report] = field(default_factory=dict)
    coin: bytes = b""
    """r^t."""
    received: dict[int, dict[int, Packet]] = field(default_factory=dict)
    """Part that I own -> sender -> its packet, as it came (my own part included)."""
    aggregates: dict[int, torch.Tensor] = field(default_factory=dict)
    """Part -> a[j] that matches its announced hash."""
    own: torch.Tensor | None = None
    """What I committed to, [d], kept in tolerant validation: my validator wants to see it in the next step."""
    disclosed: dict[int, torch.Tensor] = field(default_factory=dict)
    """Peer -> what it committed to in the step before, [d], as it was shown to me in this one (tolerant validation)."""
    suspects: dict[tuple[str, int, int], Packet | None] = field(default_factory=dict)
    """(claim kind, accused, part) -> the packet that proves it, None if it never came."""
    missing: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Peer -> parts whose aggregate it said it lacks; each of them needs an accusation."""
    unheld: frozenset[int] = frozenset()
    """Announced parts whose aggregate half of M_t or more lacked before the coin."""
    expelled: dict[int, str] = field(default_factory=dict)
    """Peers that fell out during this step -> why."""
    here: tuple[int, ...] | None = None
    """M_t, ascending: those of A_t that were heard in the commit phase. Whoever is not among them is out of the step: it
    says nothing that counts, owes nothing, and is tried for nothing that it would have to answer. None: not known yet."""
    skipped: set[int] = field(default_factory=set)
    """Parts without a trustworthy aggregate: their parameters get a zero gradient in this step."""

    heard: dict[str, dict[int, tuple[Signed, ...]]] = field(default_factory=dict)
    """Phase -> sender -> its message, or both of them: the transcript of the step."""
    head: bytes = b""
    """The ledger's head at the start of the step."""
    absences: dict[int, int] = field(default_factory=dict)
    """Peer -> its count of absences at the start of the step, see `commit.py`."""
    standings: dict[int, Probation] = field(default_factory=dict)
    """Newcomer -> how far it was at the start of the step."""
    shown: dict[int, dict[int, tuple[Packet, ...]]] = field(default_factory=dict)
    """Round of accusations -> peer -> the evidence it disclosed."""

    @property
    def remaining(self) -> tuple[int, ...]:
        """A_t without those that already fell out."""
        return tuple(peer for peer in self.active if peer not in self.expelled) if self.expelled else self.active

    @property
    def members(self) -> tuple[int, ...]:
        """M_t without those that already fell out: who may speak, and who owes every further broadcast of the step.

        Until the commit phase has shown who is here, all of A_t.
        """
        if self.here is None or len(self.here) == len(self.active):
            return self.remaining
        return tuple(peer for peer in self.here if peer not in self.expelled)

    @property
    def newcomers(self) -> tuple[int, ...]:
        """Those on probation without the ones that already fell out."""
        return tuple(peer for peer in self.probation if peer not in self.expelled)

    @property
    def speakers(self) -> tuple[int, ...]:
        """Whose broadcasts count in the present phase: the members', and the newcomers' commitments."""
        return (*self.members, *self.newcomers) if self.phase == "commit" else self.members

    def committed(self) -> Iterator[tuple[tuple[str, int, int, int], torch.Tensor, bytes]]:
        """What peers committed to and is still here: (kind, sender, step, part), the tensor and its digest."""
        for part, packets in self.received.items():
            for sender, packet in packets.items():
                if isinstance(packet.body, torch.Tensor):
                    yield ("part", sender, self.step, part), packet.body, self.commits[sender].digests[part]
        for part, value in self.aggregates.items():
            yield ("aggregate", self.owner(part), self.step, part), value, self.announced[part].digest

    @property
    def cut(self) -> Split:
        if self.split is None:
            raise RuntimeError(f"step {self.step}: parts are only known once the gradient's size is")
        return self.split

    def held(self, part: int) -> bool:
        """Whether a majority of M_t had a[part] before the coin: then an honest peer did and gave it to all.

        Only such parts count, and only reports about them can be held against anybody.
        """
        return part not in self.unheld

    def owner(self, part: int) -> int:
        return self.owners[part] if 0 <= part < len(self.owners) else NOBODY
