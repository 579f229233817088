"""Heartbeats from a task of their own, whatever the activity does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from temporalio import activity

from domain.timings import Timings


@asynccontextmanager
async def heartbeating(
    details: Callable[[], Any] = lambda: None, *, timings: Timings = Timings()
) -> AsyncIterator[asyncio.Task[None]]:
    """Heartbeat every second (four times per heartbeat timeout, if that is less than 4 s) while the block runs, with
    the value of ``details``. A block that is shorter costs no call at all.

    Yields the heartbeating task: once it ends, the activity can no longer be cancelled.
    """

    timeout, pause = activity.info().heartbeat_timeout, timings.heartbeat_seconds
    if timeout:
        pause = min(pause, timeout.total_seconds() / 4)

    async def beat() -> None:
        while True:
            await asyncio.sleep(pause)
            activity.heartbeat(details())

    beating = asyncio.create_task(beat())
    try:
        yield beating
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
