"""Background tasks of asyncio and their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run ``work`` beside the block, and cancel it at its end."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        await cancel_and_wait(task)


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended. Raises the error of a task that had failed before."""
    task.cancel()
    # `await task` could not tell the task's cancellation from one of the caller, and would swallow both.
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
