"""What was asked of batches, read from the database: pause, resume and cancel work without Temporal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from domain.batches import BatchWishes
from domain.errors import StorageError
from storage.batches.runs import BatchRunStore

LOOK_SECONDS = 0.25
"""A turn is granted a quarter of a second ahead: a wish has to show in the calls within two seconds, also where the
machine is busy."""
TOUCH_SECONDS = 10.0
"""How often the database is told that a batch is being worked on."""
NOTHING = BatchWishes(paused=False, cancelled=False, ended=False)

log = logging.getLogger(__name__)


class BatchWatch:
    """Reads the wishes every LOOK_SECONDS, once for all parts of batches in this process, while there are any."""

    def __init__(self, runs: BatchRunStore) -> None:
        self._runs = runs
        self._watched: Counter[str] = Counter()
        self._wishes: dict[str, BatchWishes] = {}
        self._polling: asyncio.Task[None] | None = None
        self._touched = 0.0

    @contextmanager
    def watched(self, batch_id: str) -> Iterator[None]:
        """Keep the wishes of a batch up to date while the block runs."""
        self._watched[batch_id] += 1
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="batch wishes")
        try:
            yield
        finally:
            self._watched[batch_id] -= 1
            if not self._watched[batch_id]:
                del self._watched[batch_id]
                self._wishes.pop(batch_id, None)
            if not self._watched and self._polling is not None:
                self._polling.cancel()
                self._polling = None

    def of(self, batch_id: str) -> BatchWishes:
        """The wishes as they were last read."""
        return self._wishes.get(batch_id, NOTHING)

    async def look(self, batch_id: str) -> BatchWishes:
        """The wishes as they are now. Raises StorageError."""
        found = await self._runs.wishes([batch_id])
        self._wishes[batch_id] = found.get(batch_id, BatchWishes(paused=False, cancelled=True, ended=True))
        return self._wishes[batch_id]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                ids = list(self._watched)
                found = await self._runs.wishes(ids)
                self._wishes |= {batch_id: wishes for batch_id, wishes in found.items() if batch_id in self._watched}
                if time.monotonic() - self._touched > TOUCH_SECONDS:
                    self._touched = time.monotonic()
                    await self._runs.touch(ids)
            except StorageError as error:
                log.warning("wishes of batches not read: %s", error, extra={"action": "batch_wishes_unread"})
