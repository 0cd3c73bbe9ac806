"""The loop over steps that `btard.simulate` and `btard.distributed` share, and what it keeps in the run folder."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from btard.audit.files import FINAL, KEPT_FILE, LEDGER, METRICS, SUMMARY
from btard.audit.vouching import FILES, digests, lost_proof, proofs
from btard.checkpoints import Checkpoints, Saved, checkpoints_of, under
from btard.drivers.collective import CollectiveDriver
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.drivers.server import ServerDriver
from btard.files import write_file
from btard.protocol.commit import NoGradient
from btard.protocol.heal import described
from btard.protocol.ledger import Ledger
from btard.training.checking import check_peers
from btard.training.layout import write_final, write_layout
from btard.training.optimizer import VectorOptimizer, optimizer_for
from btard.training.plan import Plan
from btard.training.run import Ban, Return, Run
from btard.training.torch_task import TorchTask
from btard.training.vector import write

SHOWN = 20
"""How many times a training that shows its progress prints a line."""


class Training:
    """A task, its optimizer and a driver between two steps; `run` is the result so far.

    Errors: those of `TorchTask.check` and `optimizer_for`, and ValueError for more peers than parameters.
    """

    def __init__(self, task: TorchTask, peers: int, attackers: frozenset[int], plan: Plan) -> None:
        check_peers(task.d, peers)
        task.check()
        self.task, self.optimizer = task, optimizer_for(task.model, plan.optimizer, plan.scheduler)
        self.run = Run(attackers, active=tuple(range(peers)))
        self.plan = plan
        self.out: Path | None = None
        """The run folder, if there is one."""
        self.checkpoints: Checkpoints | None = None
        """This process's own in it."""
        self.metrics = ""
        """The lines of the steps that were done before this process began."""

    def keep(self, folder: Path | None, rank: int | None = None) -> None:
        """Have the run folder, and in it this rank's checkpoints."""
        self.out = folder
        self.checkpoints = None if folder is None else checkpoints_of(folder, rank)

    def newest(self) -> Saved | None:
        """The newest checkpoint of this process; None if there is none."""
        return None if self.checkpoints is None else next(self.checkpoints.intact(), None)

    def restore(self, driver: LocalDriver | ServerDriver | CollectiveDriver, saved: Saved) -> None:
        """Go on where the checkpoint was made; what the folder has of later steps is forgotten.

        Errors: ValueError if more steps were done than are asked for, or the folder has lost a proof.
        """
        task, optimizer = self.task, self.optimizer
        if saved.step > self.plan.steps:
            raise ValueError(
                f"{self.out} holds {saved.step} steps of this run, and steps={self.plan.steps} asks for fewer: give at "
                "least as many, or another folder"
            )
        tensors = {name: x.to(optimizer.params.device) for name, x in saved.tensors.items()}
        optimizer.load(under("training/", tensors))
        task.load_local_state(under("local/", tensors))
        driver.restore(saved.state["driver"], under("driver/", tensors), life=None)
        self.run.restore(saved.state["run"])
        self.metrics = saved.state["metrics"]
        if self.out is None or not self.run.leads or not self.metrics:
            return
        if (problem := lost_proof(self.out, saved.state["proofs"])) is not None:
            raise ValueError(f"{problem}: copy the folder again as a whole, or remove it")

    def _save(self, driver: LocalDriver | ServerDriver | CollectiveDriver, step: int) -> None:
        if self.checkpoints is None:
            return
        values, own = driver.state()
        groups = {"training": self.optimizer.state(), "local": self.task.local_state(), "driver": own}
        tensors = {f"{group}/{name}": x for group, found in groups.items() for name, x in found.items()}
        state: dict[str, Any] = {"driver": values, "run": self.run.state(), "metrics": "", "proofs": {}}
        if self.out is not None and self.run.leads:
            state |= {"metrics": (self.out / METRICS).read_text(encoding="utf-8"), "proofs": proofs(self.out, step)}
        self.checkpoints.save_checkpoint(step, tensors, state)

    def _forget_later(self) -> None:
        """Have in the run folder what belongs to the steps that are done, also what it had lost of it.

        So a checkpoint can be exported at any time.
        """
        if self.out is None or not self.run.leads:
            return
        (self.out / SUMMARY).unlink(missing_ok=True)
        (self.out / FINAL).unlink(missing_ok=True)
        write_file(self.out / METRICS, self.metrics)
        self._write_ledger(self.out)
        write_layout(self.out, self.task.layout(), self.task.agreed(), self.task.kept())

    def train(
        self,
        driver: LocalDriver | ServerDriver | CollectiveDriver,
        *,
        losses: Callable[[], Mapping[int, float]],
        me: Callable[[], int],
        leads: Callable[[], bool] = lambda: True,
    ) -> Run:
        """Do the steps left. `losses`: peer -> its loss in the latest step; `me`: whose buffers the model gets."""
        run, optimizer, task, steps = self.run, self.optimizer, self.task, self.plan.steps
        first = run.steps
        if first < steps or (self.out is not None and not (self.out / SUMMARY).exists()):
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
            result.move(optimizer, task, step)
            run.leads = leads()
            self._note(result, losses())
            if self.plan.on_step is not None:
                self.show(me())
                self.plan.on_step(run)
            self._show(step, steps, result)
            if (step + 1) % self.plan.checkpoint_every == 0 or step + 1 == steps:
                self._save(driver, step + 1)
        self.show(me())
        return run

    def show(self, peer: int) -> None:
        """Have the present parameters, and the buffers of `peer`, in the task's model."""
        if not isinstance(self.optimizer, VectorOptimizer):
            write(self.task.model, self.optimizer.params)
        self.task.write_buffers(peer)

    def release(self) -> None:
        """Give the parameters of the task's model their own memory again."""
        if isinstance(self.optimizer, VectorOptimizer):
            self.optimizer.release()

    def agreed(self) -> dict[str, str]:
        """What all peers must share of task and optimizer."""
        optimizer = self.optimizer
        own = {"optimizer": type(optimizer).__qualname__}
        return {**self.task.agreed(), **(optimizer.agreed() if isinstance(optimizer, VectorOptimizer) else own)}

    def begun(self, made: Mapping[str, str]) -> dict[str, str]:
        """What a run that goes on must have as it was begun: what was `made`, and the loss of the gradient on trial.

        The loss tells what has no name: the model's layers, the function, dropout. Its last digits are the machine's.
        """
        return {**made, "loss at the start": f"{self.task.first_loss:.3g}"}

    def write_summary(self, peer: int) -> None:
        """Write the run's result, at the very end: the summary vouches for the other files of the folder.

        `peer`: whose buffers are kept.
        """
        if self.out is not None and self.run.leads:
            write_final(self.out, self.optimizer.params, self.task.layout(), self.task.agreed(), self.task.kept(peer))
            (self.out / KEPT_FILE).unlink(missing_ok=True)  # the final state has all of it
            summary = {**self.run.summary(), FILES: digests(self.out)}
            write_file(self.out / SUMMARY, json.dumps(summary, indent=1) + "\n")

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
        write_file(out / LEDGER, "".join(lines))

    def _show(self, step: int, steps: int, result: StepResult) -> None:
        if not self.plan.progress or not self.run.leads:
            return
        for entry in result.removed:
            who = ", ".join(map(str, entry.peers))
            line = f"step {entry.step}: banned {who}: {entry.kind}" if entry.peers else described(entry)
            print(line, file=sys.stderr)
        if (step + 1) % max(1, steps // SHOWN) == 0 or step + 1 == steps:
            left = f"{len(result.active)} peers"
            print(f"step {step + 1} of {steps}: loss {self.run.losses[-1]:.4g}, {left}", file=sys.stderr)
