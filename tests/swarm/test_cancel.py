"""Tasks end when they are cancelled, also at the worst moment."""

from __future__ import annotations

import asyncio
import contextlib

from btard.swarm.cancel import cancel


def test_a_cancellation_that_is_lost_is_repeated() -> None:
    async def deaf(lost: int, started: asyncio.Event) -> None:
        """Forgets `lost` cancellations, as `asyncio.wait_for` may."""
        started.set()
        for _ in range(lost):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def play() -> list[asyncio.Task[None]]:
        started = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.ensure_future(deaf(lost, started[lost])) for lost in range(3)]
        for event in started:
            await event.wait()
        await asyncio.wait_for(cancel(*tasks), 30)
        return tasks

    assert all(task.cancelled() for task in asyncio.run(play()))


def test_errors_of_cancelled_tasks_are_nobodys() -> None:
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the stream has ended")

    async def play() -> None:
        task = asyncio.ensure_future(fails())
        await asyncio.sleep(0)
        await cancel(task)
        assert isinstance(task.exception(), OSError)

    asyncio.run(play())
