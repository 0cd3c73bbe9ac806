"""`btard.simulate`: all peers in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch

from btard.attacks import Attack
from btard.audit.recorder import Recorder
from btard.drivers.compute import Mode
from btard.drivers.local import LocalDriver
from btard.drivers.rules import Rule, RuleView, applied, make_rule, rule_of
from btard.drivers.server import ServerDriver
from btard.protocol.behaviour import Behaviour
from btard.training.begin import begin
from btard.training.layout import layout_digest
from btard.training.optimizer import MakeOptimizer, MakeScheduler
from btard.training.plan import MakeAttack, Plan, named
from btard.training.resume import claim
from btard.training.run import Run
from btard.training.torch_task import TorchTask

RowsRule = Callable[[torch.Tensor], torch.Tensor]


def simulate(
    task: TorchTask,
    *,
    optimizer: MakeOptimizer,
    steps: int,
    scheduler: MakeScheduler | None = None,
    peers: int = 16,
    byzantine: int = 0,
    attack: MakeAttack | None = None,
    attack_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    run_id: str | None = None,
    tau: float | Literal["auto"] = "auto",
    heal: int | Literal["auto", "off"] = "auto",
    rule: str | type[Rule] | Rule | RowsRule | None = None,
    rule_options: Mapping[str, Any] | None = None,
    mode: Mode = "batched",
    out: Path | str | None = None,
    checkpoint_every: int = 100,
    progress: bool = False,
    on_step: Callable[[Run], None] | None = None,
    **protocol: Any,
) -> Run:
    """Train the task's model for `steps` steps among `peers` peers in this process, and return the result.

    The model holds the trained parameters afterwards, and peer 0's buffers. All peers run the whole protocol.

    `optimizer`: a torch optimizer over the model's parameters, or a class or function that makes one of their list; or
    an object that moves a vector by itself, as swarms also take one (`btard.training.optimizer.OwnOptimizer`).
    `scheduler`: a learning-rate scheduler of a torch optimizer, or a function that makes one of it; it moves on every
    step.

    `byzantine` peers attack if there is an `attack`: a name of `btard.ATTACKS`, a class that extends `btard.Attack`, or
    a function that makes the `btard.Behaviour` of one peer of the `btard.Collusion` that the attackers share.
    `attack_options`: such as {"start": 100, "scale": 10.0}. `seed` draws who attacks, never peer 0, and what they send.

    `tau` and `heal`, and all other keywords, are settings of `btard.ProtocolConfig`: `validators`, `clip_lambda` and so
    on. The defaults need no tuning: a clipping radius that follows the gradients, and a return to an earlier state
    where an attack did harm before its ban. One peer per step validates, none of fewer than three. `run_id` names the
    run; by default it follows from `seed`. `rule` trains at a trusted server instead, by a name of `btard.AGGREGATORS`,
    module:Class, a `btard.Rule`, its class, or a function [n, d] -> [d]; `rule_options` are what an own class declares.
    A server has no protocol: of its settings only `clip_lambda` counts, and `tau`, the radius of a rule that clips.

    `mode`: "batched" remembers what validators would compute again, "per_peer" computes it. `out` gets metrics, the
    ledger, what `python -m btard.audit` needs, and a checkpoint after each `checkpoint_every` steps. After a kill the
    same call goes on from there, to the same bits, and so does one with more `steps`; other arguments, fewer steps and
    another loss are refused.
    `progress` prints lines to stderr. `on_step(run)` is called after each step; the model has the parameters of then.

    Errors: ValueError or TypeError, in one line, for what cannot work. A training that diverges ends early with a
    warning.

    >>> import torch, btard
    >>> x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    >>> data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    >>> model = torch.nn.Linear(5, 1)
    >>> task = btard.TorchTask(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), data, 8)
    >>> run = btard.simulate(
    ...     task, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), steps=30, peers=5, byzantine=1, attack="sign_flip"
    ... )
    >>> [ban.peer for ban in run.bans] == list(run.attackers), run.losses[-1] < 0.1
    (True, True)
    """
    plan = Plan(
        optimizer=optimizer,
        steps=steps,
        scheduler=scheduler,
        byzantine=byzantine,
        attack=attack,
        attack_options=attack_options,
        seed=seed,
        run_id=run_id,
        protocol={"tau": tau, "heal": heal, **protocol},
        out=out,
        checkpoint_every=checkpoint_every,
        progress=progress,
        on_step=on_step,
    )
    behaviours, collusion, config, training, made = begin(plan, task, peers)
    _check_options(rule, rule_options)
    chosen = _numbers(rule) if isinstance(rule, Rule) else rule_options or {}
    made |= {"rule": named(rule), "processes": "one"}
    made |= {f"rule_options.{name}": repr(value) for name, value in chosen.items()}
    folder = claim(out, training.begun(made))
    training.keep(folder)
    with tempfile.TemporaryDirectory() as past:
        shared: dict[str, Any] = {
            "behaviours": behaviours,
            "collusion": collusion,
            "mode": mode,
            "history_folder": Path(past),
        }
        driver: LocalDriver | ServerDriver
        try:
            if rule is None:
                recorder = None if folder is None else Recorder(folder, config, task.made_by)
                driver = LocalDriver(config, task, recorder=recorder, **shared)
            else:
                _check_rule(behaviours, rule)
                served = _rule(rule, rule_options or {}, byzantine, tau, peers)
                driver = ServerDriver(plan.name, peers, served, task, clip_lambda=config.clip_lambda, **shared)
            saved = training.newest()
            if saved is not None:
                training.restore(driver, saved)
            run = training.train(driver, losses=lambda: task.losses, me=lambda: 0)
            if isinstance(driver, LocalDriver) and run.diverged_at is None:
                driver.attest(training.optimizer.params, layout_digest(task.layout()))
            training.write_summary(0)
        finally:
            training.release()
    return run


def _rule(
    rule: str | type[Rule] | Rule | RowsRule, options: Mapping[str, Any], byzantine: int, tau: float | str, peers: int
) -> Rule | RowsRule:
    """The server's rule. Errors: ValueError or TypeError for a name, options or numbers that it does not take."""
    radius = None if isinstance(tau, str) else tau
    if isinstance(rule, str):
        made = make_rule(rule, byzantine=byzantine, tau=radius, options=options)
    elif isinstance(rule, type):
        made = rule_of(rule, byzantine=byzantine, tau=radius, options=options)
    elif options:
        raise TypeError("rule_options are for a rule by its name or class; give an object its own when you make it")
    else:
        return rule
    applied(made, torch.zeros(peers, peers + 1), RuleView())
    return made


def _numbers(rule: Rule) -> dict[str, Any]:
    """The numbers and texts that a rule was made with, by name."""
    values = {item.name: getattr(rule, item.name) for item in fields(rule)}
    return {name: value for name, value in values.items() if isinstance(value, (int, float, str))}


def _check_options(rule: Any, options: Any) -> None:
    """Raise TypeError for a rule that is none, and for options without one."""
    if not (rule is None or isinstance(rule, (str, Rule)) or callable(rule)) or (
        isinstance(rule, type) and not issubclass(rule, Rule)
    ):
        kind = f"the class {rule.__name__}" if isinstance(rule, type) else type(rule).__name__
        raise TypeError(f"rule must be a name, a btard.Rule or its class, or a function [n, d] -> [d], got {kind}")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"rule_options must be a dictionary of options by name or None, got {type(options).__name__}")
    if options and rule is None:
        raise TypeError(f"rule_options are for a rule, got {next(iter(options))!r} without one; give rule=")


def _check_rule(behaviours: Mapping[int, Behaviour], rule: str | type[Rule] | Rule | RowsRule) -> None:
    """Raise ValueError for attackers that have nothing to attack at a server."""
    for behaviour in behaviours.values():
        if isinstance(behaviour, Attack) and behaviour.level == "protocol":
            name = behaviour.name or type(behaviour).__name__
            raise ValueError(f"the attack {name} is on the protocol, which a rule at a server does not run")
