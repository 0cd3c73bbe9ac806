"""Programs that are forked from one parent, which has imported what takes long: a start costs next to nothing.

What starts a program as its user does stays as it is: there is a test of that for each of them.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch.distributed as dist

Main = Callable[[list[str]], "int | None"]

PRELOADED = ["btard.swarm.trainer", "btard.swarm.coordinator", "albert.task", "resnet.experiments.sweep"]
# What these import only when they begin to train.
PRELOADED += ["torch.utils.tensorboard", "torch._dynamo"]

PATIENCE = 30.0
"""Seconds that ranks have to end after one of them has failed."""

_context = multiprocessing.get_context("forkserver")


class Program:
    """A program that runs `main(words)`; what it prints is in two files of `folder`. `pid` and the like are its own."""

    def __init__(self, main: Main, words: Sequence[str], folder: Path, name: str, **environment: str) -> None:
        self.files = folder / f"{name}.out", folder / f"{name}.err"
        # Takes effect with the first process; a server that runs already has imported what the swarm needs.
        _context.set_forkserver_preload(PRELOADED)
        arguments = main, list(words), tuple(map(str, self.files)), environment
        self.process: Any = _context.Process(target=_live, args=arguments, name=name)
        self.process.start()
        self.pid = int(self.process.pid)

    def code(self, timeout: float | None = None) -> int | None:
        """Its exit code after at most so many seconds, negative for a signal; None while it runs."""
        self.process.join(timeout)
        code: int | None = self.process.exitcode
        return code

    @property
    def errors(self) -> str:
        """What it has said to standard error so far."""
        return self.files[1].read_text(encoding="utf-8") if self.files[1].exists() else ""


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that is started as its user does. In the end neither it nor what it has started is left."""
    with subprocess.Popen(command, text=True, **options) as program:
        try:
            yield program
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*(of := psutil.Process(program.pid)).children(recursive=True), of]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


def ranks(main: Main, words: Sequence[str], size: int, folder: Path, timeout: float) -> list[Program]:
    """A program for each rank, as torchrun starts them: when one fails the others are told to end, and then ended.

    Errors: AssertionError if they have not ended after `timeout` seconds.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    programs = [
        Program(main, words, folder, f"rank-{rank}", RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in range(size)
    ]
    running = {program.process.sentinel: program for program in programs}
    try:
        while running:
            ended = connection.wait(list(running), timeout)
            assert ended, f"{len(running)} of {size} ranks still run after {timeout:g} s"
            if any(running.pop(sentinel).code() for sentinel in ended):
                for program in running.values():
                    program.process.terminate()
                timeout = PATIENCE
    finally:
        for program in running.values():
            program.process.kill()
            program.code()
    return programs


def _live(main: Main, words: list[str], files: tuple[str, str], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    gc.callbacks.clear()  # a Ctrl-C that falls into one of hypothesis's is lost
    # A sweep in this process may have started the server, where Ctrl-C does not reach it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for number, file in enumerate(files, start=1):
        with open(file, "w", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = map(_lines_to, (1, 2))
    try:
        code = main(words) or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    if sys.stdout is not None:  # as where a shell has closed it
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _lines_to(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", closefd=False)
