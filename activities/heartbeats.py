"""Heartbeats that do not depend on what the activity does meanwhile."""

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
async def heartbeating(details: Callable[[], Any] = lambda: None) -> AsyncIterator[None]:
    """Beat at once and every second while the block runs, with what ``details`` says."""

    async def beat() -> None:
        while True:
            activity.heartbeat(details())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
