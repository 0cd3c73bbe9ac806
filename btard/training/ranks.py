"""`btard.distributed`: one process per peer, started by torchrun."""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from btard.audit.recorder import Recorder
from btard.drivers.collective import CollectiveDriver
from btard.drivers.loop import Fallen
from btard.drivers.mesh import Mesh, RankLost, torchrun_mesh
from btard.training.begin import begin
from btard.training.layout import layout_digest
from btard.training.loop import Training
from btard.training.optimizer import MakeOptimizer, MakeScheduler
from btard.training.plan import MakeAttack, Plan
from btard.training.resume import claim, differing_names
from btard.training.run import Run
from btard.training.torch_task import TorchTask

FIRST = 0
"""The rank that handles the run folder at the start."""


def distributed(
    task: TorchTask,
    *,
    optimizer: MakeOptimizer,
    steps: int,
    scheduler: MakeScheduler | None = None,
    byzantine: int = 0,
    attack: MakeAttack | None = None,
    attack_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    run_id: str | None = None,
    tau: float | Literal["auto"] = "auto",
    heal: int | Literal["auto", "off"] = "auto",
    out: Path | str | None = None,
    checkpoint_every: int = 100,
    progress: bool = False,
    on_step: Callable[[Run], None] | None = None,
    timeout: float = 120.0,
    mesh: Mesh | None = None,
    **protocol: Any,
) -> Run:
    """Train as `btard.simulate` does, with a process for each peer: `torchrun --nproc-per-node PEERS script.py`.

    Every process makes the same task and calls this with the same arguments, which mean what they mean to `simulate`;
    there are as many peers as processes, and rank i is peer i. With the same seeds and numbers of threads the bans and
    the parameters are those of `simulate`, to the bit.

    The model of each rank holds the trained parameters afterwards, and this peer's own buffers. A rank whose peer is
    banned returns early, and `run.fallen` says why. `run.leads` is true at one rank, the lowest honest one: let that
    one print. `timeout`: seconds that a rank may take for a step, `on_step` included. `mesh`: the ranks, if not those
    of torchrun.

    Errors: as of `simulate`; ValueError if the ranks have made different tasks; RuntimeError outside of torchrun. If a
    rank ends or hangs, a line says which, and all processes end with code 1.

    >>> import torch, btard
    >>> data = [(torch.full((3,), float(i)), torch.tensor([3.0 * i])) for i in range(8)]
    >>> model = torch.nn.Linear(3, 1)
    >>> task = btard.TorchTask(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), data, 4)
    >>> alone = btard.Mesh(torch.distributed.HashStore(), rank=0, size=1, timeout=30)  # for torchrun leave it out
    >>> btard.distributed(task, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), steps=3, mesh=alone).steps
    3
    """
    ours = mesh is None
    if mesh is None:
        mesh = torchrun_mesh(timeout)
    try:
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
        return _distributed(task, mesh, plan)
    except (ValueError, TypeError) as error:
        if not ours or mesh.rank == FIRST:
            raise
        sys.exit(f"error: {error}" if not str(error).startswith("rank") else 2)  # one is enough
    except RankLost as lost:
        if not ours:
            raise
        there = [rank for rank in mesh.ranks if rank not in lost.missing]
        if mesh.rank == min(there, default=mesh.rank):
            print(f"error: {lost}", file=sys.stderr)
        # What waits for a lost rank in the background would keep the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _distributed(task: TorchTask, mesh: Mesh, plan: Plan) -> Run:
    rank, out = mesh.rank, plan.out
    problem: Exception | None = None
    try:
        behaviours, collusion, config, training, made = begin(plan, task, len(mesh.ranks))
        made |= {"processes": "one for each peer"}
        folder = claim(out, training.begun(made)) if rank == FIRST or out is None else Path(out)
        training.keep(folder, rank)
        made |= {"steps": str(plan.steps), "checkpoint_every": str(plan.checkpoint_every)}
    except (ValueError, TypeError) as error:
        problem, made = error, {}
    _compare(mesh, problem, made)
    honest = rank not in behaviours
    with tempfile.TemporaryDirectory() as past:
        driver = CollectiveDriver(
            config,
            task,
            mesh,
            behaviours=behaviours,
            collusion=collusion,
            history_folder=Path(past),
            recorder=Recorder(folder, config, task.made_by) if folder is not None and honest else None,
            note=lambda: struct.pack("<d", task.losses.get(rank, float("nan"))),
        )

        def losses() -> dict[int, float]:
            return {i: struct.unpack("<d", note)[0] for i, note in driver.notes.items()}

        try:
            _go_on(training, driver)
            training.run.leads = driver.leads
            run = training.train(driver, losses=losses, me=lambda: rank, leads=lambda: driver.leads)
            if run.diverged_at is None:
                driver.attest(training.optimizer.params, layout_digest(task.layout()))
            training.write_summary(rank)
        except Fallen as fallen:
            run = training.run
            run.fallen, run.leads = str(fallen), False
            run.lrs = run.lrs[: run.steps]
            training.show(rank)
        finally:
            training.release()
    return run


def _go_on(training: Training, driver: CollectiveDriver) -> None:
    """Have all ranks at the newest checkpoint that each one has that was in the run then; at the start without one.

    A rank that was killed before it had written its first one brings all back to the start.
    Errors: Fallen at a rank that was out of the run by then.
    """
    mesh = driver.mesh
    saved = {} if training.checkpoints is None else {found.step: found for found in training.checkpoints.intact()}
    mine = {step: found.state["driver"]["ranks"] for step, found in saved.items()}
    gathered = mesh.gather("resume", json.dumps(mine).encode())
    said = {rank: {int(step): there for step, there in json.loads(text).items()} for rank, text in gathered.items()}
    steps = {step: there for has in said.values() for step, there in has.items()}
    common = [step for step, there in steps.items() if all(step in said[rank] for rank in there)]
    if not common:
        return
    if mesh.rank not in steps[max(common)]:
        raise Fallen(f"step {max(common)}: peer {mesh.rank} was out of the run before it was stopped")
    training.restore(driver, saved[max(common)])


def _compare(mesh: Mesh, problem: Exception | None, made: Mapping[str, Any]) -> None:
    """Return at all ranks if they have created the same; else raise ValueError at all, or the `problem` at its rank."""
    mine = json.dumps([str(problem) if problem else "", made]).encode()
    said = {rank: json.loads(text) for rank, text in mesh.gather("compare", mine).items()}
    if problem is not None:
        raise problem
    for rank, (trouble, theirs) in said.items():
        if trouble:
            raise ValueError(f"rank {rank}: {trouble}")
        if differing := differing_names(said[FIRST][1], theirs):
            raise ValueError(
                f"ranks {FIRST} and {rank} differ in {', '.join(differing)}: make the same task in each process, with "
                "torch.manual_seed before the model is made"
            )
