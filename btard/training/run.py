"""The result of a training, and the loop that all programs of this package share."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from btard.attacks import Attack, make_attack
from btard.attacks.own import LabelFlip
from btard.audit.files import LEDGER, METRICS, SUMMARY
from btard.audit.vouching import FILES, digests, lost_proof, proofs
from btard.checks import FieldError
from btard.drivers.collective import CollectiveDriver
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.drivers.server import ServerDriver
from btard.protocol.attackers import draw_attackers
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.commit import NoGradient
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import tensor_digest
from btard.protocol.heal import described
from btard.protocol.ledger import Entry, Ledger
from btard.training.checking import check_peers
from btard.training.layout import FINAL, write_final
from btard.training.optimizer import MakeOptimizer, MakeScheduler, VectorOptimizer
from btard.training.resume import Checkpoints, Saved, under
from btard.training.torch_task import TorchTask

SHOWN = 20
"""How many times a training that shows its progress prints a line."""

MakeAttack = str | type[Attack] | Callable[[Collusion], Behaviour]


class Ban(NamedTuple):
    """A peer that was removed.

    >>> import btard
    >>> btard.Ban(step=3, peer=2, reason="wrong_gradient", attacker=True)
    Ban(step=3, peer=2, reason='wrong_gradient', attacker=True)
    """

    step: int
    peer: int
    reason: str
    """The ledger's kind, such as wrong_gradient."""
    attacker: bool
    """Whether it was one of the attackers of the simulation."""


class Return(NamedTuple):
    """A step that ended with an earlier state, after a ban."""

    step: int
    back_to: int


@dataclass
class Run:
    """The result of a training. It grows with each step, and the model holds the present parameters.

    >>> import btard
    >>> btard.Run(attackers=frozenset({2}), bans=[btard.Ban(3, 2, "wrong_gradient", True)], losses=[1.0, 0.5])
    Run: 2 steps, loss 1 to 0.5, 1 of 1 attackers banned, 0 honest peers banned
    """

    attackers: frozenset[int] = frozenset()
    """The numbers of the peers that attack."""
    losses: list[float] = field(default_factory=list)
    """Step -> the mean loss of the honest peers on their own batches; NaN if none of them trained in it."""
    bans: list[Ban] = field(default_factory=list)
    """The peers that were removed, in the order of the ledger."""
    ledger: list[Entry] = field(default_factory=list)
    """Every verdict, with its votes; the same at all honest peers."""
    returns: list[Return] = field(default_factory=list)
    """The steps after which the peers went back to an earlier state, as healing does."""
    lrs: list[float] = field(default_factory=list)
    """Step -> the learning rate, of the first parameter group."""
    radii: list[float | None] = field(default_factory=list)
    """Step -> the clipping radius tau; None with a rule at a server."""
    active: tuple[int, ...] = ()
    """The remaining peers."""
    diverged_at: int | None = None
    """The step at which no honest gradient was finite, which ended the run; None if all went well."""
    leads: bool = True
    """Whether this process speaks for the run: the lowest honest rank under torchrun, always in one process."""
    fallen: str | None = None
    """Why the peer of this rank is out of the run, under torchrun; None if it reached the end."""

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return len(self.losses)

    @property
    def honest_banned(self) -> list[Ban]:
        """Bans of honest peers: none, unless the protocol is used beyond its promises."""
        return [ban for ban in self.bans if not ban.attacker]

    def summary(self) -> dict[str, Any]:
        """The run in JSON values."""
        return {
            "steps": self.steps,
            "loss": self.losses[-1] if self.losses else None,
            "byzantine": sorted(self.attackers),
            "bans": [ban._asdict() for ban in self.bans],
            "went_back": [back._asdict() for back in self.returns],
            "active": list(self.active),
            "diverged_at": self.diverged_at,
        }

    def state(self) -> dict[str, Any]:
        """All that a checkpoint has to hold of it, as JSON values."""
        listed = {name: list(getattr(self, name)) for name in ("losses", "lrs", "radii", "active", "returns", "bans")}
        return {**listed, "ledger": [entry.to_json() for entry in self.ledger]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.losses, self.lrs, self.radii = state["losses"], state["lrs"], state["radii"]
        self.active = tuple(state["active"])
        self.bans, self.returns = [Ban(*x) for x in state["bans"]], [Return(*x) for x in state["returns"]]
        self.ledger = [Entry.from_json(line) for line in state["ledger"]]

    def __repr__(self) -> str:
        attackers = len({ban.peer for ban in self.bans if ban.attacker})
        loss = f"loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}, " if self.losses else ""
        ended = f", diverged at step {self.diverged_at}" if self.diverged_at is not None else ""
        ended += f", out of the run: {self.fallen}" if self.fallen else ""
        return (
            f"Run: {self.steps} steps, {loss}{attackers} of {len(self.attackers)} attackers banned, "
            f"{len(self.honest_banned)} honest peers banned{ended}"
        )


def protocol_of(peers: int, byzantine: int, run_id: str, settings: Mapping[str, Any]) -> ProtocolConfig:
    """What the peers agree on; one validator, or none if nobody could be a target. Errors: ValueError."""
    known = set(ProtocolConfig.__dataclass_fields__) - {"peers", "byzantine", "run_id"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise TypeError(f"unknown argument {unknown[0]!r}; settings of the protocol are {', '.join(sorted(known))}")
    chosen = {"validators": int(peers > 2), **settings}
    working = peers - chosen["validators"]
    if chosen.get("tau") == "auto" and "tau_quantile" not in settings and 0 < working <= 2 * byzantine:
        raise ValueError(
            f"byzantine must be < (peers - validators) / 2 = {working / 2:g} with tau auto, got {byzantine}, or liars "
            "choose the radius; use more peers, fewer validators, or a number as tau"
        )
    return ProtocolConfig(peers, byzantine, run_id, **chosen)


def behaviours_of(
    attack: MakeAttack | None,
    options: Mapping[str, Any],
    task: TorchTask,
    peers: int,
    byzantine: int,
    seed: int,
) -> tuple[dict[int, Behaviour], Collusion]:
    """Attacker -> what it does, and what the attackers share. Errors: ValueError or TypeError."""
    if not isinstance(task, TorchTask):
        raise TypeError(f"task must be a btard.TorchTask, got {type(task).__name__}; LocalDriver runs other tasks")
    if attack is None:
        if options:
            raise TypeError(f"unknown argument {next(iter(options))!r} without an attack")
        return {}, Collusion(frozenset(), peers, seed)
    if byzantine < 1:
        raise ValueError(f"the attack needs attackers: byzantine must be > 0, got {byzantine}")
    if 2 * byzantine >= peers:
        raise FieldError("byzantine", f"must be < peers / 2 = {peers / 2:g}, got {byzantine}")
    collusion = Collusion(draw_attackers(peers, byzantine, seed), peers, seed, tensors=task.tensors)

    def make() -> Behaviour:
        if isinstance(attack, str):
            return make_attack(attack, collusion, **options)
        if isinstance(attack, type) and issubclass(attack, Attack):
            return attack(collusion=collusion, **options)
        if not callable(attack) or options:
            raise TypeError(
                "attack must be a name, a class that extends btard.Attack, or a function that makes the behaviour of "
                "one peer of what the attackers share; only the first two take options"
            )
        return cast(Callable[[Collusion], Behaviour], attack)(collusion)

    behaviours = {peer: make() for peer in sorted(collusion.members)}
    if task.poison is None and any(isinstance(behaviour, LabelFlip) for behaviour in behaviours.values()):
        raise ValueError("the attack flips labels: give TorchTask poison=, which returns a batch as it sees it")
    return behaviours, collusion


class Training:
    """A task, its optimizer and a driver between two steps; `run` is the result so far.

    Errors: those of `TorchTask.check` and `VectorOptimizer`, and ValueError for more peers than parameters.
    """

    def __init__(
        self,
        task: TorchTask,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None,
        peers: int,
        attackers: frozenset[int],
        *,
        progress: bool,
        on_step: Callable[[Run], None] | None,
    ) -> None:
        check_peers(task.d, peers)
        task.check()
        self.task, self.optimizer = task, VectorOptimizer(task.model, optimizer, scheduler)
        self.run = Run(attackers, active=tuple(range(peers)))
        self.progress, self.on_step = progress, on_step
        self.out: Path | None = None
        """The run folder, if there is one."""
        self.checkpoints: Checkpoints | None = None
        """This process's own in it."""
        self.every = 0
        """Steps between two of them."""

    def made(self, config: ProtocolConfig, seed: int, attack: Any, options: Mapping[str, Any]) -> dict[str, str]:
        """What ranks must have alike, and a run that goes on what it was begun with, by name."""
        settings = {name: repr(value) for name, value in asdict(config).items()}
        chosen = {f"attack_options.{name}": repr(value) for name, value in options.items()}
        own = {"seed": repr(seed), "attack": named(attack)}
        first = {"first parameters": tensor_digest(self.optimizer.params).hex()}
        return {**self.task.agreed(), **self.optimizer.agreed(), **settings, **own, **chosen, **first}

    def keep(self, folder: Path | None, every: int, rank: int | None = None) -> None:
        """Have the run folder, with a checkpoint after each `every` steps. Errors: ValueError for less than 1."""
        if every < 1:
            raise ValueError(f"checkpoint_every must be a number of steps >= 1, got {every!r}")
        self.out, self.every = folder, every
        self.checkpoints = None if folder is None else Checkpoints(folder, rank)

    def newest(self) -> Saved | None:
        """The newest checkpoint of this process; None if there is none."""
        saved = {} if self.checkpoints is None else self.checkpoints.intact()
        return saved[max(saved)] if saved else None

    def restore(self, driver: LocalDriver | ServerDriver | CollectiveDriver, saved: Saved) -> None:
        """Go on where the checkpoint was made; what the folder has of later steps is forgotten."""
        task, optimizer = self.task, self.optimizer
        tensors = {name: x.to(optimizer.params.device) for name, x in saved.tensors.items()}
        optimizer.load(under("training/", tensors))
        task.load_local_state(under("local/", tensors))
        driver.restore(saved.state["driver"], under("driver/", tensors), life=None)
        self.run.restore(saved.state["run"])
        self._put_back(saved)

    def _put_back(self, saved: Saved) -> None:
        """Have in the run folder what the checkpoint vouches for. Errors: ValueError for a proof that is lost."""
        if self.out is None or not self.run.leads or saved.state["metrics"] is None:
            return
        if (problem := lost_proof(self.out, saved.state["proofs"])) is not None:
            raise ValueError(f"{problem}: copy the folder again as a whole, or remove it")
        (self.out / METRICS).write_text(saved.state["metrics"], encoding="utf-8")
        self._write_ledger(self.out)

    def _save(self, driver: LocalDriver | ServerDriver | CollectiveDriver, step: int) -> None:
        if self.checkpoints is None:
            return
        values, own = driver.state()
        groups = {"training": self.optimizer.state(), "local": self.task.local_state(), "driver": own}
        tensors = {f"{group}/{name}": x for group, found in groups.items() for name, x in found.items()}
        state: dict[str, Any] = {"driver": values, "run": self.run.state(), "metrics": None, "proofs": {}}
        if self.out is not None and self.run.leads:
            state |= {"metrics": (self.out / METRICS).read_text(encoding="utf-8"), "proofs": proofs(self.out, step)}
        self.checkpoints.save(step, tensors, state)

    def _forget_later(self) -> None:
        """Have in the run folder what belongs to the steps that are done."""
        if self.out is None or not self.run.leads:
            return
        (self.out / SUMMARY).unlink(missing_ok=True)
        (self.out / FINAL).unlink(missing_ok=True)
        file = self.out / METRICS
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        file.write_text("".join(lines[: self.run.steps]), encoding="utf-8")
        self._write_ledger(self.out)

    def train(
        self,
        driver: LocalDriver | ServerDriver | CollectiveDriver,
        steps: int,
        *,
        losses: Callable[[], Mapping[int, float]],
        me: Callable[[], int],
        leads: Callable[[], bool] = lambda: True,
    ) -> Run:
        """Do `steps` steps. `losses`: peer -> its loss in the latest step; `me`: whose buffers the model gets."""
        run, optimizer, task = self.run, self.optimizer, self.task
        first = run.steps
        if first < steps:
            self._forget_later()
        for step in range(first, steps):
            run.lrs.append(optimizer.lr(step))
            try:
                result = driver.step(optimizer.params, optimizer.state(), task.local_state())
            except NoGradient as error:
                run.diverged_at = step
                run.lrs.pop()
                warnings.warn(f"step {step}: {error}; the run ends here", stacklevel=3)
                break
            if result.back_to is None:
                optimizer.apply(result.gradient, step)
            else:
                optimizer.load(result.state)
                task.load_local_state(result.state)
            run.leads = leads()
            self._note(result, losses())
            if self.on_step is not None:
                task.write_buffers(me())
                self.on_step(run)
            self._show(step, steps, result)
            if (step + 1) % max(1, self.every) == 0 or step + 1 == steps:
                self._save(driver, step + 1)
        task.write_buffers(me())
        return run

    def write_summary(self, peer: int) -> None:
        """Write the run's result, at the very end: the summary vouches for the other files of the folder.

        `peer`: whose buffers are kept.
        """
        if self.out is not None and self.run.leads:
            write_final(self.out, self.optimizer.params, self.task.layout(), self.task.agreed(), self.task.kept(peer))
            summary = {**self.run.summary(), FILES: digests(self.out)}
            temporary = self.out / f".{SUMMARY}"
            temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.out / SUMMARY)

    def _note(self, result: StepResult, losses: Mapping[int, float]) -> None:
        """Record a step."""
        run = self.run
        honest = [losses[i] for i in result.workers if i not in run.attackers and i in losses]
        run.losses.append(sum(honest) / len(honest) if honest else float("nan"))
        run.radii.append(result.tau)
        run.active = result.active
        run.ledger += result.removed
        run.bans += [
            Ban(entry.step, peer, entry.kind, peer in run.attackers) for entry in result.removed for peer in entry.peers
        ]
        if result.back_to is not None:
            run.returns.append(Return(result.step, result.back_to))
        if self.out is not None and run.leads:
            self._write(self.out, result)

    def _write(self, out: Path, result: StepResult) -> None:
        """Add a step to the run folder. The ledger is written whole, as another rank may have written it so far."""
        if result.removed or len(self.run.losses) == 1:
            self._write_ledger(out)
        run = self.run
        said = {"step": result.step, "loss": run.losses[-1], "lr": run.lrs[-1], "tau": result.tau}
        line: dict[str, Any] = {k: x if x is None or math.isfinite(x) else None for k, x in said.items()}
        line["active"] = len(result.active)
        if result.account is not None:
            honest = [peer for peer in result.sent if peer in result.active and peer not in run.attackers]
            line |= result.account.fields(min(honest, default=None))
        if result.back_to is not None:
            line["back_to"] = result.back_to
        with (out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _write_ledger(self, out: Path) -> None:
        chain = Ledger()
        lines = [chain.append(entry) + "\n" for entry in self.run.ledger]
        (out / LEDGER).write_text("".join(lines), encoding="utf-8")

    def _show(self, step: int, steps: int, result: StepResult) -> None:
        if not self.progress or not self.run.leads:
            return
        for entry in result.removed:
            who = ", ".join(map(str, entry.peers))
            line = f"step {entry.step}: banned {who}: {entry.kind}" if entry.peers else described(entry)
            print(line, file=sys.stderr)
        if (step + 1) % max(1, steps // SHOWN) == 0 or step + 1 == steps:
            left = f"{len(result.active)} peers"
            print(f"step {step + 1} of {steps}: loss {self.run.losses[-1]:.4g}, {left}", file=sys.stderr)


def named(choice: Any) -> str:
    """A name for something given by name, as a class or function, or as an object of one."""
    if choice is None or isinstance(choice, str):
        return str(choice)
    kind = choice if hasattr(choice, "__qualname__") else type(choice)
    return f"{kind.__module__}:{kind.__qualname__}"
