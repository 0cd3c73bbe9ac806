"""The processes of a swarm on one machine are forked from one server, which imports what they need once."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext as Context


def begin_forking(task: str) -> Context:
    """Have a server that forks the processes of a swarm import what they need, while this process continues.

    Importing torch, hivemind and the task's own takes longer than all else at the start: once is enough.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["btard.swarm.trainer", "btard.swarm.coordinator", task.partition(":")[0]])
    forkserver.ensure_running()
    return context
