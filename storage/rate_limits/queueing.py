"""Where waiting jobs stand, for many who look on: looked up once for all of them."""

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
from storage.rate_limits.limiter import Limiter

LOOK_SECONDS = 1.0
TOGETHER_SECONDS = 0.02
"""Who comes within this time is looked up together."""
NEWS = timedelta(seconds=1)
"""A start that moves by less is no news."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Onlooker:
    job_id: str
    tell: Callable[[QueuePlace], None]
    told: QueuePlace | None = None
    """None, too, since it does not wait any more."""

    def hear(self, place: QueuePlace | None) -> None:
        """``tell`` of a place that is another than the one told before."""
        if place is None or not self.told or _differ(self.told, place):
            self.told = place
            if place:
                self.tell(place)


def _differ(one: QueuePlace, other: QueuePlace) -> bool:
    if (one.position, one.reason) != (other.position, other.reason):
        return True
    return abs(one.expected_start_at - other.expected_start_at) >= NEWS


class QueueReader:
    """Tells of places in the lanes' queues; ``running`` must be entered.

    A job that waits for a free worker has no place: Temporal hands those out, and does not say in which order.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._onlookers: set[_Onlooker] = set()
        self._newcomers: set[_Onlooker] = set()
        self._arrived = asyncio.Event()

    @contextmanager
    def watched(self, job_id: str, tell: Callable[[QueuePlace], None]) -> Iterator[None]:
        """While the block runs, ``tell`` is called with the place of a job that waits: at once, and when it changes."""
        onlooker = _Onlooker(job_id, tell)
        self._onlookers.add(onlooker)
        self._newcomers.add(onlooker)
        self._arrived.set()
        try:
            yield
        finally:
            self._onlookers.discard(onlooker)
            self._newcomers.discard(onlooker)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[QueueReader]:
        """Looks while the block runs and somebody looks on."""
        task = asyncio.create_task(self._look_for_ever(), name="queue reader")
        try:
            yield self
        finally:
            await cancel_and_wait(task)

    async def _look_for_ever(self) -> None:
        clock, due = asyncio.get_running_loop().time, 0.0
        while True:
            await self._wait(until=due)
            await asyncio.sleep(TOGETHER_SECONDS)
            everybody = clock() >= due
            if everybody:
                due = clock() + LOOK_SECONDS
            those, self._newcomers = list(self._onlookers if everybody else self._newcomers), set()
            try:
                await self._look(those)
            except StorageError as error:  # the next look tells what this one could not
                log.warning("queue not readable: %s", error, extra={"action": "queue_unread"})
            except Exception:
                log.exception("queue reader failed", extra={"action": "queue_reader_failed"})

    async def _wait(self, until: float) -> None:
        """For a newcomer; where somebody looks on, not longer than ``until``."""
        self._arrived.clear()
        if self._newcomers:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until if self._onlookers else None):
                await self._arrived.wait()

    async def _look(self, those: Sequence[_Onlooker]) -> None:
        if not those:
            return
        places = await self._limiter.queued_of({onlooker.job_id for onlooker in those})
        for onlooker in those:
            if onlooker in self._onlookers:
                onlooker.hear(places.get(onlooker.job_id))
