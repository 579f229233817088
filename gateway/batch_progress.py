"""The progress of batches that somebody watches, read once for all readers of a process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatjobs.contracts import BatchProgress
from chatjobs.errors import BatchNotFound
from domain.errors import StorageError
from storage.batches.queries import BatchQueries

LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


class Watched:
    """One batch while it is watched. ``number`` counts its states; ``state`` is None once the batch is gone."""

    def __init__(self, state: BatchProgress) -> None:
        self.state: BatchProgress | None = state
        self.number = 1
        self.readers = 0
        self._changed = asyncio.Event()

    async def after(self, number: int) -> BatchProgress | None:
        """The state, once there is a newer one than that number."""
        while self.number <= number:
            await self._changed.wait()
        return self.state

    def change(self, state: BatchProgress | None) -> None:
        if state == self.state:
            return
        self.state, self.number = state, self.number + 1
        self._changed.set()
        self._changed = asyncio.Event()


class ProgressFeeds:
    """Reads the state of each watched batch every LOOK_SECONDS."""

    def __init__(self, queries: BatchQueries) -> None:
        self._queries = queries
        self._watched: dict[str, Watched] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def watching(self, batch_id: str) -> AsyncIterator[Watched]:
        """Watch a batch while the block runs. Raises BatchNotFound, StorageUnavailable."""
        watched = self._watched.get(batch_id)
        if watched is None:
            first = await self._queries.progress(batch_id)
            watched = self._watched.setdefault(batch_id, Watched(first))
            if batch_id not in self._tasks:
                self._tasks[batch_id] = asyncio.create_task(self._poll(batch_id, watched), name="batch progress")
        watched.readers += 1
        try:
            yield watched
        finally:
            watched.readers -= 1
            if not watched.readers and self._watched.get(batch_id) is watched:
                del self._watched[batch_id]
                self._tasks.pop(batch_id).cancel()

    async def _poll(self, batch_id: str, watched: Watched) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                watched.change(await self._queries.progress(batch_id))
            except BatchNotFound:
                watched.change(None)
                return
            except StorageError as error:
                log.warning("progress not read: %s", error, extra={"action": "progress_unread"})
