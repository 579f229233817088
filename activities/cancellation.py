"""Cancels that the database knows, while Temporal may be slow to say so, or away."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from domain.errors import StorageError
from storage.jobs.attempts import AttemptStore

LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


class Cancels:
    """One look at the database every half second for all attempts of this process, while there are any."""

    def __init__(self, attempts: AttemptStore) -> None:
        self._attempts = attempts
        self._waiting: dict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Future[None]]:
        """Has a result as soon as somebody has asked to cancel the job."""
        wanted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[job_id].add(wanted)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="cancels")
        try:
            yield wanted
        finally:
            self._waiting[job_id].discard(wanted)
            if not self._waiting[job_id]:
                del self._waiting[job_id]
            if not self._waiting and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                found = await self._attempts.cancels(list(self._waiting))
            except StorageError as error:  # Temporal tells the same, a little later
                log.warning("cancels not read: %s", error, extra={"action": "cancels_unread"})
                continue
            for wanted in [wanted for job_id in found for wanted in self._waiting.get(job_id, ())]:
                if not wanted.done():
                    wanted.set_result(None)
