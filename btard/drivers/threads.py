"""Peers of one process in threads, with one kernel thread each: no peer's kernel waits for another peer's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Team:
    """`size` threads with one kernel thread each."""

    def __init__(self, size: int) -> None:
        before = torch.get_num_threads()
        ready = threading.Barrier(size + 1)

        def start() -> None:
            torch.get_num_threads()  # A thread's first use of torch sets its number to the default; let that be over.
            torch.set_num_threads(1)
            ready.wait()

        self.size = size
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="peers", initializer=start)
        for _ in range(size):
            self._pool.submit(int)
        ready.wait()
        # torch keeps the number per thread, but also the last one set as the default of threads to come.
        torch.set_num_threads(before)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """[function(item) for item in items], several at a time. An exception is raised here, the first one first."""
        results: list[R] = [None] * len(items)  # type: ignore[list-item]
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(items)):
            waiting.put(index)

        def work(_: int) -> None:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                results[index] = function(items[index])

        list(self._pool.map(work, range(min(self.size, len(items)))))  # list: waits for all
        return results

    def close(self) -> None:
        """End the threads. Without it they end with this object."""
        self._pool.shutdown()
