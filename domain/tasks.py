"""Background tasks of asyncio and their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

log = logging.getLogger(__name__)


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run ``work`` beside the block, and cancel it at its end. An error of it is logged."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        try:
            await cancel_and_wait(task)
        except Exception:
            log.exception("%s failed", name, extra={"action": "background_task_failed"})


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended. Raises the error of a task that had failed before."""
    task.cancel()
    # `await task` could not tell the task's cancellation from one of the caller, and would swallow both.
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
