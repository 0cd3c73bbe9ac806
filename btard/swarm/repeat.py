"""What the network's thread does again and again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from btard.boundary import one_line
from btard.swarm.lines import Once


async def repeat(what: str, pause: float, work: Callable[[], Awaitable[object]]) -> None:
    """Do `work` for ever, `pause` seconds apart; if it fails, say so once, and go on.

    A disk that is full, or a daemon that does not answer, may be so for a moment.
    """
    told: Once[str] = Once()
    while True:
        try:
            await work()
        except Exception as error:
            line = one_line(f"{what}: {error or type(error).__name__}")
            if told.new(line):
                print(f"warning: {line}", file=sys.stderr)
        await asyncio.sleep(pause)
