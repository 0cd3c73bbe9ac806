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
from btard.drivers.rules import Plain, Rule, RuleView, applied
from btard.protocol.behaviour import HONEST, Behaviour, View, sent_by
from btard.protocol.collusion import Collusion
from btard.protocol.commit import NoGradient, clip_gradient
from btard.protocol.effects import Compute
from btard.protocol.hashing import batch_seed, digest, stream
from btard.protocol.ledger import Entry
from btard.protocol.signed import is_finite
from btard.task import Task

MOMENTUM, LAST = "server/momentum/", "server/last"
"""Names of a checkpoint's tensors [d]: prefix of a peer's momentum, and the last aggregate."""


class ServerDriver:
    """Applies `rule` to the gradients of `peers` peers; attackers act only through their gradients.

    `rule` is a `Rule`, such as `make_rule` makes of a name, or a function [n, d] -> [d]. With `momentum` beta > 0 the
    peers send m_i <- beta m_i + (1 - beta) g_i instead of g_i (m_i = g_i in the first step), as in Karimireddy, He and
    Jaggi (ICML 2021): then attackers see the honest momenta and replace their own.

    `history_folder` and `repeatable` are those of `LocalDriver`. Batches come from a coin as under BTARD, which the
    server here draws by itself. Errors: ValueError for a behaviour that needs validators, which there are none of, and
    for `momentum` not in [0, 1).

    >>> import btard, torch
    >>> server = btard.ServerDriver("docs", 8, btard.AGGREGATORS["coordinate_median"], btard.QuadraticTask(8, noise=0))
    >>> server.step(torch.ones(8)).gradient
    tensor([1., 1., 1., 1., 1., 1., 1., 1.])
    """

    def __init__(
        self,
        run_id: str,
        peers: int,
        rule: Rule | Callable[[torch.Tensor], torch.Tensor],
        task: Task,
        *,
        behaviours: Mapping[int, Behaviour] | None = None,
        collusion: Collusion | None = None,
        mode: Mode = "batched",
        clip_lambda: float | None = None,
        momentum: float = 0.0,
        history_folder: Path | None = None,
        repeatable: int = 0,
    ) -> None:
        for behaviour in (behaviours or {}).values():
            behaviour.check_validators(0)
        if not 0 <= momentum < 1:
            raise ValueError(f"the workers' momentum must be >= 0 and < 1, got {momentum}")
        self.run_id, self.n, self.task = run_id, peers, task
        self.rule = rule if isinstance(rule, Rule) else Plain(function=rule)
        self.behaviours, self.collusion, self.clip_lambda = dict(behaviours or {}), collusion, clip_lambda
        self.history = ParameterHistory(task.d, steps_kept(self.behaviours, repeatable), history_folder)
        self.compute = CohortCompute(task, self.history, mode)
        self.coins = [digest("first coin", run_id)]
        self.momentum = momentum
        self._momenta: dict[int, torch.Tensor] = {}
        self._last: torch.Tensor | None = None
        self.active = tuple(range(peers))

    def step(self, params: torch.Tensor, *_: Any) -> StepResult:
        """The rule's aggregate of all peers' gradients at `params` [d]. Nobody ever goes back to an earlier state.

        Errors: NoGradient if an honest gradient is not finite, which no rule can aggregate; RuleError if what the rule
        returns is no aggregate; ValueError, in one line, for an attack that sends no vector [d].
        """
        now = len(self.coins) - 1
        peers = self.active
        self.history.record(now, params, len(peers))
        started = time.perf_counter()
        views = {i: View(now, i, self.run_id, self.coins, peers, rule=self._rule_of(now)) for i in peers}
        attacking = [i for i in peers if self.behaviours.get(i, HONEST).acts(views[i])]
        acting = {i: b if i in attacking else b.resting for i in peers for b in [self.behaviours.get(i, HONEST)]}
        requests = [
            acting[i].request(views[i], Compute(now, i, batch_seed(self.run_id, now, i, self.coins[-1]))) for i in peers
        ]
        answers = dict(zip(peers, self.compute.answer(now, requests), strict=True))
        computed = time.perf_counter()
        honest = [i for i in peers if not self.behaviours.get(i, HONEST).byzantine]
        if not all(is_finite(answers[i]) for i in honest):
            raise NoGradient(f"step {now}: the training has diverged, an honest gradient is not finite")
        sent = self._with_momentum({i: clip_gradient(answers[i], self.clip_lambda) for i in peers})
        if self.collusion is not None:
            self.collusion.observe(now, {i: sent[i] for i in honest})
        rows = [sent_by(acting[i], views[i], sent[i]) for i in peers]
        gradient = self._rule_of(now)(torch.stack(rows))
        self._last = gradient.clone()  # optimizers may write into the gradient that they are given
        self.coins.append(digest("server coin", self.coins[-1]))
        seconds = {"gradients": computed - started, "aggregate": time.perf_counter() - computed}
        removed = self._ban(now, [i for i in attacking if self.behaviours.get(i, HONEST).byzantine])
        return StepResult(now, gradient, self.coins[-1], removed, self.active, peers, seconds=seconds)

    def _ban(self, step: int, attacking: Sequence[int]) -> tuple[Entry, ...]:
        """The peers that a step removes; nobody here."""
        return ()

    def _rule_of(self, step: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The rule's result for rows [n, d] at `step`, with the same random numbers at every call."""
        last = self._last

        def rule(x: torch.Tensor) -> torch.Tensor:
            before = None if last is None else last.to(x.device)
            return applied(self.rule, x, RuleView(step, before, stream("aggregation rule", self.run_id, step)))

        return rule

    def _with_momentum(self, gradients: Mapping[int, torch.Tensor]) -> Mapping[int, torch.Tensor]:
        """Peer -> what it would send honestly [d]."""
        if not self.momentum:
            return gradients
        before = {i: self._momenta.get(i, gradient).to(gradient.device) for i, gradient in gradients.items()}
        # An attacker's own gradient may be infinite; that must not stay with it as momentum for ever.
        self._momenta = {i: torch.lerp(g, before[i].nan_to_num(), self.momentum) for i, g in gradients.items()}
        return self._momenta

    def state(self) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
        """What a checkpoint needs to resume to the same bits: JSON values, and tensors."""
        tensors = self.history.state() | {f"{MOMENTUM}{i}": x for i, x in self._momenta.items()}
        if self._last is not None:
            tensors[LAST] = self._last
        if self.collusion is not None:
            tensors |= self.collusion.state()
        return {"coins": [coin.hex() for coin in self.coins]}, tensors

    def restore(
        self, state: Mapping[str, object], tensors: Mapping[str, torch.Tensor], *, life: bytes | None = None
    ) -> None:
        """Restore what `state` returned. A server's peers say nothing that could be repeated in another `life`."""
        coins = state["coins"]
        assert isinstance(coins, list)
        self.coins = [bytes.fromhex(coin) for coin in coins]
        self.history.restore(tensors, {})
        self._last = tensors.get(LAST)
        momenta = {name: x for name, x in tensors.items() if name.startswith(MOMENTUM)}
        self._momenta = {int(name.removeprefix(MOMENTUM)): x for name, x in momenta.items()}
        if self.collusion is not None:
            self.collusion.restore(tensors)
