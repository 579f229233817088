"""The newest number of the feed, looked up once for all readers of a process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from domain.errors import StorageError
from storage.events.feed import EventFeed

LOOK_SECONDS = 0.25

log = logging.getLogger(__name__)


class FeedWatch:
    """Looks every LOOK_SECONDS while there are readers."""

    def __init__(self, feed: EventFeed) -> None:
        self._feed = feed
        self._last = 0
        self._readers = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def beyond(self, number: int) -> None:
        """Return once there is an event with a greater number. Inside of ``reading`` only."""
        while self._last <= number:
            await self._changed.wait()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Look for events while the block runs."""
        self._readers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._poll(), name="event feed")
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._task.cancel()
                self._task = None

    async def _poll(self) -> None:
        while True:
            try:
                if (last := await self._feed.last()) != self._last:
                    self._last = last
                    self._changed.set()
                    self._changed = asyncio.Event()
            except StorageError as error:
                log.warning("the feed is not read: %s", error, extra={"action": "feed_unread"})
            await asyncio.sleep(LOOK_SECONDS)
