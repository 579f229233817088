"""Requests to cancel jobs, read from the database: Temporal may report them later, or be away."""

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
    """Reads cancel requests every LOOK_SECONDS, once for all attempts of this process, while there are any."""

    def __init__(self, attempts: AttemptStore) -> None:
        self._attempts = attempts
        self._waiting: dict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._polling: asyncio.Task[None] | None = None

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Future[None]]:
        """A future that has a result once the job's cancel was requested."""
        requested: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[job_id].add(requested)
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="cancels")
        try:
            yield requested
        finally:
            self._waiting[job_id].discard(requested)
            if not self._waiting[job_id]:
                del self._waiting[job_id]
            if not self._waiting and self._polling is not None:
                self._polling.cancel()
                self._polling = None

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                found = await self._attempts.cancels(list(self._waiting))
            except StorageError as error:  # Temporal reports them too, a little later
                log.warning("cancels not read: %s", error, extra={"action": "cancels_unread"})
                continue
            for requested in [future for job_id in found for future in self._waiting.get(job_id, ())]:
                if not requested.done():
                    requested.set_result(None)
