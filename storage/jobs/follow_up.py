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
        self._wiped = time.monotonic()
        self._wipe_pause = 0.0
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
        folded = await self._rollups.fold(older_than=self._lag)
        refreshed = await self._index.refresh(older_than=self._lag)
        if refreshed.removed:
            await self._wipe(refreshed.removed)
        if time.monotonic() > self._prune_at:
            await self._rollups.prune()
            self._prune_at = time.monotonic() + PRUNE_SECONDS
        return folded + refreshed.taken > 0

    async def _wipe(self, removed: list[int]) -> None:
        began = time.monotonic()
        if (left := self._wiped + self._wipe_pause - began) > 0:
            await self._index.postpone(removed, timedelta(seconds=left))
            return
        await self._index.wipe(removed)
        self._wiped = time.monotonic()
        self._wipe_pause = WIPE_REST * (self._wiped - began)


async def catch_up(database: Database, seconds: float) -> None:
    """Follow up on what is due, for at most so many seconds. Raises StorageUnavailable."""
    upkeep, until = FollowUp(database), time.monotonic() + seconds
    async with upkeep.ready():
        while time.monotonic() < until and await upkeep.step():
            pass


def behind(database: Database) -> FollowUp:
    """The loop of a worker."""
    return FollowUp(database, lag=LAG)
