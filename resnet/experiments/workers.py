"""Worker processes that train the tasks of a plan, and the parent that hands them out.

A worker keeps its imports and the data set from task to task, and ends with its parent, however that ends. What a task
has done is in its folder: nothing is lost but the steps since its last checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any

from btard.audit.files import CHECKPOINTS
from resnet.experiments.plan import Branch, Plan, Segment, Task

POLL = 0.5
"""Seconds between two checks of the workers' progress."""

PATIENCE = 10
"""Seconds that a worker without a task has to end by itself."""


@dataclass
class Progress:
    """What `run_tasks` tells its listener."""

    running: dict[Task, int] = field(default_factory=dict)
    """Task -> steps that its run has done."""
    finished: list[tuple[Task, float]] = field(default_factory=list)
    """(task, seconds), in the order of their ends, since the last call."""
    failed: dict[Task, str] = field(default_factory=dict)
    skipped: list[Task] = field(default_factory=list)
    """The tasks that need a failed task."""


def run_tasks(
    plan: Plan, tasks: Sequence[Task], jobs: int, listen: Callable[[Progress], None], *, keep_checkpoints: bool = False
) -> Progress:
    """Train `tasks` of `plan`, `jobs` at a time, each as soon as what it needs is done; returns what failed, and why.

    A task that fails does not stop the others.
    """
    waiting, progress = list(tasks), Progress()
    workers = [_Worker(number, keep_checkpoints) for number in range(min(jobs, len(tasks)))]
    open_tasks = set(tasks)  # not finished: what needs one of them has to wait
    try:
        while waiting or any(worker.task for worker in workers):
            for worker in workers:
                if worker.task is None and (task := _next(waiting, plan, open_tasks)) is not None:
                    waiting.remove(task)
                    worker.begin(task)
            connection.wait([worker.pipe for worker in workers if worker.task], timeout=POLL)
            for worker in workers:
                task, ended = worker.task, worker.poll()
                if task is None or ended is None:
                    continue
                if ended.problem:
                    progress.failed[task] = ended.problem
                    lost = _dependent(waiting, plan, {task})
                    progress.skipped += lost
                    waiting = [other for other in waiting if other not in lost]
                else:
                    open_tasks.remove(task)
                    progress.finished.append((task, ended.seconds))
            progress.running = {worker.task: worker.steps for worker in workers if worker.task}
            listen(progress)
            progress.finished.clear()
    finally:
        for worker in workers:
            worker.stop()
    return progress


def _next(waiting: Sequence[Task], plan: Plan, unfinished: set[Task]) -> Task | None:
    return next((task for task in waiting if plan.needs.get(task) not in unfinished), None)


def _dependent(waiting: Sequence[Task], plan: Plan, failed: set[Task]) -> list[Task]:
    """Tasks that need one of `failed`, directly or not."""
    lost: list[Task] = []
    for task in waiting:  # a task comes after what it needs
        if plan.needs.get(task) in failed:
            failed.add(task)
            lost.append(task)
    return lost


PRELOADED = ["resnet.train", "resnet.experiments.warmup", "torch._dynamo"]
"""Modules that workers find imported. The last one takes seconds: optimizers need it."""


@dataclass(frozen=True)
class _Ended:
    seconds: float
    problem: str


class _Worker:
    """One process, restarted if it dies."""

    def __init__(self, number: int, keep_checkpoints: bool) -> None:
        self._number, self._keep = number, keep_checkpoints
        self.task: Task | None = None
        self._start()

    def _start(self) -> None:
        # CUDA and threads do not survive a fork: the parent of all workers has neither, but has imported torch.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        _start_server()
        self._steps = context.Value("q", 0, lock=False)
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._steps, self._number, self._keep), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def steps(self) -> int:
        return int(self._steps.value)

    def begin(self, task: Task) -> None:
        self.task, self._steps.value = task, 0
        with contextlib.suppress(OSError):  # a process that died while it had nothing to do: `poll` finds out
            self.pipe.send(task)

    def poll(self) -> _Ended | None:
        """How the task ended, None if it has not."""
        if self.task is None or not self.pipe.poll():
            return None
        try:
            ended = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            death = _death(self._process.exitcode)
            ended = _Ended(0, f"its process died ({death}); run the sweep again to continue it")
            self._start()
        self.task = None
        return ended

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # its process has died
            self.pipe.send(None)
        self.pipe.close()
        if self.task is None:
            self._process.join(PATIENCE)  # it ends by itself, and tidies up
        self._process.terminate()
        self._process.join()


def _start_server() -> None:
    """Start the parent of all workers where Ctrl-C does not reach it: there it would come out of an import."""
    resource_tracker.ensure_running()  # first, as it lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, often a lack of memory: fewer --jobs" if name == "SIGKILL" else name
    return f"exit code {code}"


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(pipe: connection.Connection, steps: Any, number: int, keep_checkpoints: bool) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _choose_gpu(number)

    def on_step(done: int) -> None:
        steps.value = done

    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        if task is None:
            return
        started = time.monotonic()
        try:
            _train(task, on_step, keep_checkpoints)
            problem = ""
        except Exception as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())
        pipe.send(_Ended(time.monotonic() - started, problem))


def _choose_gpu(number: int) -> None:
    """Distribute the workers over the machine's visible GPUs."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


@functools.lru_cache(maxsize=1)
def _data(name: str, path: str | None, label: str | None) -> Any:
    from resnet.data import load_dataset

    return load_dataset(name, path, label=label)


def _train(task: Task, on_step: Callable[[int], None], keep_checkpoints: bool) -> None:
    from resnet.experiments.warmup import branch, extend
    from resnet.training import knowing, train

    config = task.config if isinstance(task, Segment) else task.cell.config
    data = _data(config.data.name, config.data.path, config.data.label)
    config = knowing(config, data)
    if isinstance(task, Segment):
        extend(config, task.folder, task.last, on_step=on_step, data=data)
        return
    assert isinstance(task, Branch)
    if task.warm_up is not None:
        branch(config, task.folder, task.warm_up, task.fork)
    train(config, task.folder, progress=False, events=False, on_step=on_step, data=data)
    if not keep_checkpoints:
        shutil.rmtree(task.folder / CHECKPOINTS)
