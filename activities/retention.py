"""The activity that removes the jobs whose retention is over, in small steps."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities import failures
from activities.heartbeats import heartbeating
from chatjobs.errors import ChatJobsError
from domain.payloads import RetentionOrder, RetentionReport
from domain.timings import Timings
from storage.batches.retention import BatchRetention
from storage.events.feed import REMOVED_AT_ONCE, EventFeed
from storage.files.retention import FileRetention
from storage.jobs.retention import RemovalPosition, Removed, RetentionStore
from storage.webhooks.endpoints import DELETED_AT_ONCE, EndpointStore

log = logging.getLogger(__name__)

REST = 1.0
"""After a transaction the database is left alone for so many times as long as it took."""
SHORTEST_REST, LONGEST_REST = 0.01, 1.0
OLDEST = datetime(1970, 1, 2, tzinfo=UTC)


class RetentionActivities:
    def __init__(
        self,
        *,
        retention: RetentionStore,
        batches: BatchRetention,
        endpoints: EndpointStore,
        files: FileRetention,
        events: EventFeed,
        timings: Timings = Timings(),
    ) -> None:
        self._retention = retention
        self._batches = batches
        self._endpoints = endpoints
        self._files = files
        self._events = events
        self._timings = timings

    @activity.defn
    async def remove_old_jobs(self, order: RetentionOrder) -> RetentionReport:
        """Remove every event and every job that ended more than ``days`` ago; a retry continues where the last attempt
        ended.

        A stopping worker leaves the rest to the next run; its report is not ``complete``.
        """
        details = activity.info().heartbeat_details
        progress = RetentionReport.model_validate(details[0]) if details else RetentionReport()
        before = cutoff(order.days, datetime.now(UTC))
        async with heartbeating(lambda: progress, timings=self._timings):
            await self._remove_events(before)  # first: an event is older than the end of its job
            while not progress.complete and not activity.is_worker_shutdown():
                began = time.monotonic()
                progress = _after(progress, await self._remove(before, progress))
                await asyncio.sleep(pause_after(time.monotonic() - began))
            if progress.complete:
                await self._remove_batches(before)
                await self._remove_files(before)
                await self._delete_unused_endpoints(before)
        if progress.removed:
            log.info("old jobs removed", extra={"action": "jobs_removed", "jobs": progress.removed})
        return progress

    async def _remove_events(self, before: datetime) -> None:
        try:
            removed = REMOVED_AT_ONCE
            while removed == REMOVED_AT_ONCE and not activity.is_worker_shutdown():
                began = time.monotonic()
                removed = await self._events.remove(before)
                await asyncio.sleep(pause_after(time.monotonic() - began))
        except ChatJobsError as error:
            raise failures.from_storage(error, pause=None) from None

    async def _remove_batches(self, before: datetime) -> None:
        """Remove the batches that ended before a time; their jobs are gone."""
        try:
            while not activity.is_worker_shutdown() and (batch_id := await self._batches.oldest(before)):
                await self._batches.remove_some(batch_id)
                await asyncio.sleep(SHORTEST_REST)
        except ChatJobsError as error:
            raise failures.from_storage(error, pause=None) from None

    async def _remove_files(self, before: datetime) -> None:
        """Remove the files that were made before a time, and the batch jobs whose batches are gone."""
        try:
            while not activity.is_worker_shutdown():
                if not await self._files.remove_some(before):
                    return
                await asyncio.sleep(SHORTEST_REST)
        except ChatJobsError as error:
            raise failures.from_storage(error, pause=None) from None

    async def _delete_unused_endpoints(self, before: datetime) -> None:
        """Delete the endpoints without a delivery since then; there may be as many as jobs, each with its own URL."""
        try:
            while not activity.is_worker_shutdown():
                if await self._endpoints.delete_unused(before) < DELETED_AT_ONCE:
                    return
                await asyncio.sleep(SHORTEST_REST)
        except ChatJobsError as error:
            raise failures.from_storage(error, pause=None) from None

    async def _remove(self, before: datetime, progress: RetentionReport) -> Removed:
        try:
            return await self._retention.remove(before, after=RemovalPosition(progress.completed_at, progress.job_id))
        except ChatJobsError as error:
            raise failures.from_storage(error, pause=None) from None


def pause_after(seconds: float) -> float:
    """How long the database is left alone after a transaction of so many seconds."""
    return min(max(REST * seconds, SHORTEST_REST), LONGEST_REST)


def cutoff(days: float, now: datetime) -> datetime:
    """The time before which jobs have ended that are too old."""
    return max(OLDEST, now - timedelta(days=min(days, (now - OLDEST).days)))


def _after(progress: RetentionReport, found: Removed) -> RetentionReport:
    place = found.place or RemovalPosition(progress.completed_at, progress.job_id)
    return RetentionReport(
        removed=progress.removed + found.jobs,
        completed_at=place.completed_at,
        job_id=place.job_id,
        complete=found.place is None,
    )
