"""Gradients that verdicts are about, recomputed at recorded parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from btard.audit.report import AuditError, NotReproduced, Unwitnessed
from btard.protocol.commit import clip_gradient
from btard.protocol.commitments import Hashed
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute, Purpose
from btard.protocol.hashing import batch_seed
from btard.protocol.record import StepRecord
from btard.task import Task, sharing


class Recomputation:
    """Gradients at the stored parameters, once these have reproduced the commitment of a peer that nobody convicted.

    A gradient's last bits may depend on which others were computed with it: alone, and with the other workers of the
    step, are both tried.
    """

    def __init__(self, task: Task, config: ProtocolConfig, params: torch.Tensor | None, removed: Iterable[int]) -> None:
        self.task, self.config, self.params, self.removed = task, config, params, frozenset(removed)
        self._compute: Callable[[int], torch.Tensor] | None = None
        self.confirmed = True
        """Whether the parameters have reproduced a commitment; without that only tolerant validation continues."""

    def __call__(self, request: Compute, record: StepRecord) -> torch.Tensor:
        if self._compute is None:
            self._compute = self._reproducing(record)
        return self._compute(request.peer)

    def _reproducing(self, record: StepRecord) -> Callable[[int], torch.Tensor]:
        """Peer -> its gradient [d] of the step, computed as it was in the run."""
        if self.params is None or self.params.numel() != self.task.d:
            raise AuditError(f"the parameters of step {record.step} are missing or of another size")
        planned = [peer for peer in (*record.active, *record.probation) if peer not in record.assignments]
        commitments = Hashed(self.config.run_id)
        trusted = [peer for peer in record.workers if peer not in self.removed]

        def together(peer: int, others: Sequence[int]) -> torch.Tensor:
            group = sorted({*others, peer})
            return self._rows(record, group)[group.index(peer)]

        staying = [peer for peer in planned if peer not in self.removed]
        for others in ([], planned, staying):
            for witness in trusted:
                gradient = clip_gradient(together(witness, others), self.config.clip_lambda)
                digests = commitments.parts(witness, record.step, gradient, record.cut)
                if digests == record.commits[witness].digests:
                    return lambda peer, others=others: together(peer, others)  # type: ignore[misc]
        if self.config.validation == "tolerant":
            self.confirmed = False
            return lambda peer: together(peer, [])
        if len(trusted) <= record.byzantine:
            raise Unwitnessed(
                f"step {record.step}: nobody's work confirms its parameters: {len(trusted)} of the peers that worked "
                f"in it were never convicted, and up to {record.byzantine} may be liars"
            )
        raise NotReproduced(
            f"the parameters of step {record.step} give nobody's committed gradient: they were altered, or this "
            "machine does not compute to the bit as the run's did"
        )

    def _rows(self, record: StepRecord, peers: Sequence[int]) -> torch.Tensor:
        """[len(peers), d]."""
        requests = [
            Compute(
                record.step,
                peer,
                batch_seed(self.config.run_id, record.step, peer, record.previous_coin),
                Purpose.JUDGE,
            )
            for peer in peers
        ]
        out = torch.empty(len(peers), self.task.d)
        if self.params is not None:
            with asked(record.step):
                self.task.gradients(self.params, requests, out, workers=sharing(record.active, record.assignments))
        return out


@contextmanager
def asked(step: int) -> Iterator[None]:
    """Inside, a task computes: somebody's own function, on settings that the folder chose. Errors: NotReproduced."""
    try:
        yield
    except Exception as error:
        raise NotReproduced(f"step {step}: the task fails: {type(error).__name__}: {error}") from error
