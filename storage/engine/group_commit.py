"""A group commit: changes that arrive during a transaction are committed together in the next one.

A commit waits for the disk, and SQLite makes one at a time: with one change in each, a burst would queue up. A single
change is committed at once.
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
"""Their largest total weight; a heavier change has a transaction of its own."""


class _Waiting(Generic[T, R]):
    """A change and the future for its outcome."""

    def __init__(self, change: T, weight: int) -> None:
        self.change = change
        self.weight = weight
        self.outcome: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: R | ChatJobsError) -> None:
        if self.outcome.done():  # the caller was cancelled; the change is committed all the same
            return
        if isinstance(outcome, ChatJobsError):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class Group(Generic[T, R]):
    """Commits changes in groups: ``commit`` makes one transaction of some, and returns their outcomes in order."""

    def __init__(self, commit: Callable[[Sequence[T]], Awaitable[Sequence[R | ChatJobsError]]]) -> None:
        self._commit = commit
        self._waiting: list[_Waiting[T, R]] = []
        self._working: asyncio.Task[None] | None = None

    async def add(self, change: T, *, weight: int = 0) -> R:
        """Commit a change and return its outcome, which is raised if it is an error. Raises StorageError.

        A caller that is cancelled may find its change committed all the same.
        """
        waiting: _Waiting[T, R] = _Waiting(change, weight)
        self._waiting.append(waiting)
        if self._working is None:
            self._working = asyncio.create_task(self._work(), name="group commit")
        return await waiting.outcome

    async def _work(self) -> None:
        """Commit groups until no change waits."""
        try:
            while self._waiting:
                await self._settle(self._next())
        finally:
            self._working = None
            rest, self._waiting = self._waiting, []
            for waiting in rest:  # only where this task was cancelled, with the whole event loop
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
        """Commit a group. If the database refuses it, each change has a transaction of its own, so that only the
        refused one fails."""
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
