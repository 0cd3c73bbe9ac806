"""The baselines' setting: a trusted server aggregates the gradients of all peers. Nobody is ever banned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from btard.drivers.compute import CohortCompute, Mode
from btard.drivers.history import ParameterHistory, steps_kept
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import HONEST, Behaviour, View
from btard.protocol.collusion import Collusion
from btard.protocol.commit import NoGradient, clip_gradient
from btard.protocol.effects import Compute
from btard.protocol.hashing import batch_seed, digest
from btard.protocol.ledger import Entry
from btard.protocol.messages import is_finite
from btard.task import Task

Rule = Callable[[torch.Tensor], torch.Tensor]


class ServerDriver:
    """Applies `rule` ([n, d] -> [d]) to the gradients of `peers` peers; attackers act through their gradients alone.

    `history_folder` and `repeatable` are those of `LocalDriver`. Batches come from a coin as under BTARD, which the
    server here draws by itself. Errors: ValueError for a behaviour that needs validators, which there are none of.

    >>> import btard, torch
    >>> server = btard.ServerDriver("docs", 8, btard.AGGREGATORS["coordinate_median"], btard.QuadraticTask(8, noise=0))
    >>> server.step(torch.ones(8)).gradient
    tensor([1., 1., 1., 1., 1., 1., 1., 1.])
    """

    def __init__(
        self,
        run_id: str,
        peers: int,
        rule: Rule,
        task: Task,
        *,
        behaviours: Mapping[int, Behaviour] | None = None,
        collusion: Collusion | None = None,
        mode: Mode = "batched",
        clip_lambda: float | None = None,
        history_folder: Path | None = None,
        repeatable: int = 0,
    ) -> None:
        for behaviour in (behaviours or {}).values():
            behaviour.check_validators(0)
        self.run_id, self.n, self.rule, self.task = run_id, peers, rule, task
        self.behaviours, self.collusion, self.clip_lambda = dict(behaviours or {}), collusion, clip_lambda
        self.history = ParameterHistory(task.d, steps_kept(self.behaviours, repeatable), history_folder)
        self.compute = CohortCompute(task, self.history, mode)
        self.coins = [digest("first coin", run_id)]
        self.active = tuple(range(peers))

    def step(self, params: torch.Tensor, *_: Any) -> StepResult:
        """The rule's aggregate of all peers' gradients at `params` [d]. Nobody ever goes back to an earlier state.

        Errors: NoGradient if an honest gradient is not finite, which no rule can aggregate.
        """
        now = len(self.coins) - 1
        peers = self.active
        self.history.record(now, params, len(peers))
        started = time.perf_counter()
        views = {i: View(now, i, self.run_id, self.coins, peers) for i in peers}
        attacking = [i for i in peers if self.behaviours.get(i, HONEST).acts(views[i])]
        acting = {i: b if i in attacking else b.resting for i in peers for b in [self.behaviours.get(i, HONEST)]}
        requests = [
            acting[i].request(views[i], Compute(now, i, batch_seed(self.run_id, now, i, self.coins[-1]))) for i in peers
        ]
        answers = dict(zip(peers, self.compute.answer(now, requests), strict=True))
        computed = time.perf_counter()
        honest = {i: answers[i] for i in peers if not self.behaviours.get(i, HONEST).byzantine}
        if not all(is_finite(gradient) for gradient in honest.values()):
            raise NoGradient(f"step {now}: the training has diverged, an honest gradient is not finite")
        if self.collusion is not None:
            self.collusion.observe(now, honest)
        rows = [acting[i].gradient(views[i], clip_gradient(answers[i], self.clip_lambda)) for i in peers]
        gradient = self.rule(torch.stack(rows))
        self.coins.append(digest("server coin", self.coins[-1]))
        seconds = {"gradients": computed - started, "aggregate": time.perf_counter() - computed}
        removed = self._ban(now, [i for i in attacking if self.behaviours.get(i, HONEST).byzantine])
        return StepResult(now, gradient, self.coins[-1], removed, self.active, peers, seconds=seconds)

    def _ban(self, step: int, attacking: Sequence[int]) -> tuple[Entry, ...]:
        """Whom a step costs its place; nobody here."""
        return ()

    def state(self) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
        """What a checkpoint needs to go on to the same bits: JSON values, and tensors."""
        return {"coins": [coin.hex() for coin in self.coins]}, self.history.state()

    def restore(
        self, state: Mapping[str, object], tensors: Mapping[str, torch.Tensor], *, life: bytes | None = None
    ) -> None:
        """Take over what `state` returned. A server's peers say nothing that could be repeated in another `life`."""
        coins = state["coins"]
        assert isinstance(coins, list)
        self.coins = [bytes.fromhex(coin) for coin in coins]
        self.history.restore(tensors, {})
