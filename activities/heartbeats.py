"""Heartbeats from a task of their own, whatever the activity does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from temporalio import activity

HEARTBEAT_SECONDS = 1.0
"""Between heartbeats, whatever else happens. Cancellation reaches an activity only with a heartbeat's response
(sdk-python README, "Heartbeating and Cancellation")."""


@asynccontextmanager
async def heartbeating(details: Callable[[], Any] = lambda: None) -> AsyncIterator[asyncio.Task[None]]:
    """Heartbeat every second (four times per heartbeat timeout, if that is less than 4 s) while the block runs, with
    the value of ``details``. A block that is shorter costs no call at all.

    Yields the heartbeating task: once it ends, the activity can no longer be cancelled.
    """

    timeout = activity.info().heartbeat_timeout
    pause = min(HEARTBEAT_SECONDS, timeout.total_seconds() / 4) if timeout else HEARTBEAT_SECONDS

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
