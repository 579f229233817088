"""The loop that follows up on what jobs do: it folds numbers of ended jobs, and keeps the search's index up to date.

Each gateway runs one. A worker runs one, too, which stays LAG behind: it has work only where no gateway runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from domain.errors import StorageUnavailable
from storage.engine.database import Database
from storage.jobs.rollups import Rollups
from storage.jobs.search import SearchIndex

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks when there is nothing to do."""
REST = 1.0
"""After a step the database is left alone for so many times as long as it took."""
WIPE_REST = 10.0
"""A wipe writes the whole index of words anew: the next one waits for so many times as long as it took."""
PRUNE_SECONDS = 3600.0
LAG = timedelta(minutes=1)


class FollowUp:
    def __init__(self, database: Database, *, lag: timedelta = timedelta(0)) -> None:
        self._rollups = Rollups(database)
        self._index = SearchIndex(database)
        self._lag = lag
        self._wipe_at = 0.0
        self._prune_at = 0.0

    async def run(self) -> None:
        """Work until cancelled."""
        async with self.ready():
            while True:
                began = time.monotonic()
                try:
                    worked = await self.step()
                except StorageUnavailable as error:
                    worked = False
                    log.warning("follow-up waits: %s", error, extra={"action": "follow_up_waits"})
                except Exception:
                    worked = False
                    log.exception("follow-up failed", extra={"action": "follow_up_failed"})
                await asyncio.sleep(REST * (time.monotonic() - began) if worked else LOOK_SECONDS)

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[None]:
        """The context in which ``step`` may be called."""
        async with self._index.running():
            yield

    async def step(self) -> bool:
        """One step of each kind of work; whether there may be more. Raises StorageUnavailable."""
        worked = await self._rollups.fold(older_than=self._lag)
        worked += await self._index.refresh(older_than=self._lag)
        removed = await self._index.unindex()
        if not removed and time.monotonic() > self._wipe_at:
            began = time.monotonic()
            if await self._index.wipe():
                self._wipe_at = time.monotonic() + WIPE_REST * (time.monotonic() - began)
        if time.monotonic() > self._prune_at:
            await self._rollups.prune()
            self._prune_at = time.monotonic() + PRUNE_SECONDS
        return worked + removed > 0


async def catch_up(database: Database, seconds: float) -> None:
    """Follow up on what is due, for at most so many seconds. Raises StorageUnavailable."""
    following, until = FollowUp(database), time.monotonic() + seconds
    async with following.ready():
        while time.monotonic() < until and await following.step():
            pass


def behind(database: Database) -> FollowUp:
    """The loop of a worker."""
    return FollowUp(database, lag=LAG)
