"""A group commit: whoever comes while a transaction is under way is in the next one.

A commit waits for the disk, and on SQLite only one can be under way: with one change in each, a burst would wait in
line. Nobody waits for company: alone, a change is committed at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from chatjobs.errors import ChatJobsError
from domain.errors import StorageError, StorageRefused

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

MOST_AT_ONCE = 200
"""Changes in one transaction."""
LARGEST_AT_ONCE = 16 * 1024 * 1024
"""What they may weigh together; one that is larger is alone in its own."""


class _Waiting(Generic[T, R]):
    """A change and whoever waits for it."""

    def __init__(self, change: T, weight: int) -> None:
        self.change = change
        self.weight = weight
        self.outcome: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: R | ChatJobsError) -> None:
        if self.outcome.done():  # whoever waited was cancelled; the change stands
            return
        if isinstance(outcome, ChatJobsError):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class Group(Generic[T, R]):
    """``commit`` makes one transaction of some changes, and returns the outcome of each in their order."""

    def __init__(self, commit: Callable[[Sequence[T]], Awaitable[Sequence[R | ChatJobsError]]]) -> None:
        self._commit = commit
        self._waiting: list[_Waiting[T, R]] = []
        self._working: asyncio.Task[None] | None = None

    async def add(self, change: T, *, weight: int = 0) -> R:
        """The outcome of a change once it is committed. Raises it where it is an error.

        Cancelled, the change may be made all the same. Raises StorageError.
        """
        waiting: _Waiting[T, R] = _Waiting(change, weight)
        self._waiting.append(waiting)
        if self._working is None:
            self._working = asyncio.create_task(self._work(), name="group commit")
        return await waiting.outcome

    async def _work(self) -> None:
        """Until nobody waits any more."""
        try:
            while self._waiting:
                await self._settle(self._next())
        finally:
            self._working = None
            left, self._waiting = self._waiting, []
            for waiting in left:  # only where this task was cancelled, with the whole event loop
                waiting.outcome.cancel()

    def _next(self) -> list[_Waiting[T, R]]:
        weight = count = 0
        for waiting in self._waiting[:MOST_AT_ONCE]:
            weight += waiting.weight
            if count and weight > LARGEST_AT_ONCE:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    async def _settle(self, group: list[_Waiting[T, R]]) -> None:
        """What the database refuses is not the others' misfortune: then each has a transaction of its own."""
        outcomes: Sequence[R | ChatJobsError]
        try:
            outcomes = await self._commit([waiting.change for waiting in group])
        except StorageRefused as error:
            if len(group) > 1:
                for waiting in group:
                    await self._settle([waiting])
                return
            outcomes = [error]
        except ChatJobsError as error:
            outcomes = [type(error)(error.message) for _ in group]
        except Exception as error:
            log.exception("group commit failed", extra={"action": "group_commit_failed"})
            outcomes = [StorageError(f"The change was not stored ({type(error).__name__})") for _ in group]
        for waiting, outcome in zip(group, outcomes, strict=True):
            waiting.settle(outcome)
