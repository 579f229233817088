"""Background tasks and their end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from domain.tasks import cancel_and_wait, in_background


async def failing() -> None:
    raise ValueError("broken")


async def test_an_error_in_the_background_is_logged_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with in_background(failing(), "sweeper"):
            await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records] == ["sweeper failed"]


async def test_a_task_that_is_cancelled_has_ended_afterwards() -> None:
    task = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    await cancel_and_wait(task)
    assert task.cancelled()


async def test_the_callers_own_cancellation_is_not_lost() -> None:
    """While it waits for a task that is slow to end."""
    ending = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await ending.wait()

    task = asyncio.create_task(slow())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(cancel_and_wait(task))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    ending.set()
    await asyncio.wait({task})
