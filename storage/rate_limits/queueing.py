"""Places of waiting jobs in the lanes' queues, read once for all watchers of this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from chatjobs.contracts import QueuePlace
from domain.errors import StorageError
from domain.tasks import cancel_and_wait
from domain.timings import Timings
from storage.rate_limits.limiter import Limiter

TOGETHER_SECONDS = 0.02
"""Who comes within this time is looked up together."""
SMALLEST_SHIFT = timedelta(seconds=1)
"""An expected start that moves by less is not reported."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Watcher:
    job_id: str
    notify: Callable[[QueuePlace], None]
    reported: QueuePlace | None = None
    """The place reported last; None if the job does not wait."""

    def report(self, place: QueuePlace | None) -> None:
        """``notify`` of a place that differs from the one reported last."""
        if place is None or not self.reported or _differ(self.reported, place):
            self.reported = place
            if place:
                self.notify(place)


def _differ(one: QueuePlace, other: QueuePlace) -> bool:
    if (one.position, one.reason) != (other.position, other.reason):
        return True
    if one.expected_start_at is None or other.expected_start_at is None:
        return one.expected_start_at is not other.expected_start_at
    return abs(one.expected_start_at - other.expected_start_at) >= SMALLEST_SHIFT


class QueueReader:
    """Reports places in the lanes' queues; ``running`` must be entered.

    A job that waits for a free worker has no place: Temporal assigns those, and does not say in which order.
    """

    def __init__(self, limiter: Limiter, *, timings: Timings = Timings()) -> None:
        self._limiter = limiter
        self._look_seconds = timings.queue_look_seconds
        self._watchers: set[_Watcher] = set()
        self._new_watchers: set[_Watcher] = set()
        self._added = asyncio.Event()

    @contextmanager
    def watched(self, job_id: str, notify: Callable[[QueuePlace], None]) -> Iterator[None]:
        """Call ``notify`` with a waiting job's place while the block runs: at once, and when it changes."""
        watcher = _Watcher(job_id, notify)
        self._watchers.add(watcher)
        self._new_watchers.add(watcher)
        self._added.set()
        try:
            yield
        finally:
            self._watchers.discard(watcher)
            self._new_watchers.discard(watcher)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[QueueReader]:
        """Read places while the block runs and there are watchers."""
        task = asyncio.create_task(self._poll(), name="queue reader")
        try:
            yield self
        finally:
            await cancel_and_wait(task)

    async def _poll(self) -> None:
        clock, due = asyncio.get_running_loop().time, 0.0
        while True:
            await self._wait(until=due)
            await asyncio.sleep(TOGETHER_SECONDS)
            everybody = clock() >= due
            if everybody:
                due = clock() + self._look_seconds
            watchers, self._new_watchers = list(self._watchers if everybody else self._new_watchers), set()
            try:
                await self._report_places(watchers)
            except StorageError as error:  # the next query reports what this one could not
                log.warning("queue not readable: %s", error, extra={"action": "queue_unread"})
            except Exception:
                log.exception("queue reader failed", extra={"action": "queue_reader_failed"})

    async def _wait(self, until: float) -> None:
        """Wait for a new watcher; no longer than ``until`` if there are others."""
        self._added.clear()
        if self._new_watchers:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until if self._watchers else None):
                await self._added.wait()

    async def _report_places(self, watchers: Sequence[_Watcher]) -> None:
        if not watchers:
            return
        places = await self._limiter.queue_places({watcher.job_id for watcher in watchers})
        for watcher in watchers:
            if watcher in self._watchers:
                watcher.report(places.get(watcher.job_id))
