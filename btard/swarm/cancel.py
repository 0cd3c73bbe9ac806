"""How tasks of the network's thread end."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN = 0.1
"""Seconds after which a task is cancelled again."""


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel these tasks and wait until they have ended.

    Before Python 3.12, `asyncio.wait_for` forgets a cancellation that comes just when what it waited for is done. So
    a task that has not ended soon is cancelled again.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)  # so that nobody warns of errors that nobody asks for
