"""The activities of a batch: its jobs made, worked through in parts, cancelled, and its end.

A part of a batch is one activity that makes attempts at many jobs at once. Each job has the same fences, ledger,
continuation and rate limits as one with a workflow of its own. If the worker dies, the next attempt of the activity
goes on with the jobs that have not ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import failures
from activities.attempt import AttemptContext, TurnQueue
from activities.batch_wishes import BatchWatch
from activities.completer import HANDED_OVER, Completer
from activities.heartbeats import heartbeating
from activities.rate_limits import WAITING
from chatjobs.contracts import JobStatus
from chatjobs.errors import BatchFinished, ChatJobsError
from domain.errors import FenceLost, StorageUnavailable
from domain.outcomes import AttemptOutcome
from domain.payloads import (
    BatchRef,
    BatchSealed,
    CompletionSummary,
    Ending,
    PreparedBatch,
    Sealed,
    SliceOrder,
    SliceReport,
)
from domain.timings import Timings
from storage.batches.runs import BatchRunStore
from storage.engine.schema import micros
from storage.jobs.seals import SealStore

AGAIN_SECONDS = 0.5
"""Between two attempts at a job whose failure names no other pause."""
PAUSED_SECONDS = 60.0
"""A batch that is paused for longer gives its activities back: each of them heartbeats."""
LOOK_SECONDS = 0.25

log = logging.getLogger(__name__)

Announce = Callable[[Sealed], None]
"""Has the first try of a sealed job's webhook made, without waiting for it."""


class BatchActivities:
    """``places``: the jobs of batches that this process runs at once. ``indexed``: see payloads.Accepted."""

    def __init__(
        self,
        completer: Completer,
        runs: BatchRunStore,
        seals: SealStore,
        *,
        announce: Announce,
        places: int,
        indexed: bool,
        timings: Timings = Timings(),
    ) -> None:
        self._completer = completer
        self._runs = runs
        self._seals = seals
        self._announce = announce
        self._watch = BatchWatch(runs)
        self._place_count = places
        self._places = asyncio.Semaphore(places)
        self._indexed = indexed
        self._timings = timings

    @activity.defn
    async def prepare_batch(self, ref: BatchRef) -> PreparedBatch:
        """Make the jobs of a batch's items; what an earlier attempt has made stays."""
        async with heartbeating(timings=self._timings):
            try:
                while await self._runs.prepare(ref.batch_id):
                    pass
                plan = await self._runs.plan(ref.batch_id)
            except ChatJobsError as error:
                raise failures.from_storage(error) from None
        return PreparedBatch(
            tenant=plan.tenant,
            total=plan.total,
            concurrency=plan.concurrency,
            lane="batch" if plan.lane == "batch" else "live",
            deadline=plan.deadline,
            ended=plan.ended,
            indexed=self._indexed,
        )

    @activity.defn
    async def run_slice(self, order: SliceOrder) -> SliceReport:
        """Work through a part of a batch, until all its jobs have ended or the batch is paused or cancelled."""
        part = _Slice(order, self._completer, self._runs, self._seals, self._announce, self._watch, self._places)
        with self._watch.watched(order.batch_id):
            async with heartbeating(part.details, timings=self._timings) as beats:
                try:
                    await self._watch.look(order.batch_id)
                    job_ids = await self._runs.open_items(order.batch_id, order.first, order.end)
                except ChatJobsError as error:
                    raise failures.from_storage(error) from None
                return await part.run(job_ids, min(order.at_once or self._place_count, self._place_count), beats)

    @activity.defn
    async def cancel_rest(self, ref: BatchRef) -> None:
        """Seal the jobs of a cancelled batch: at once, or where they run, once their workers have confirmed it."""
        async with heartbeating(timings=self._timings):
            try:
                await self._runs.cancel_rest(ref.batch_id)
            except ChatJobsError as error:
                raise failures.from_storage(error) from None

    @activity.defn
    async def request_cancel(self, ref: BatchRef) -> None:
        """Write a cancellation that came through Temporal to the batch's row, where all workers see it."""
        try:
            await self._runs.cancel(ref.batch_id)
        except BatchFinished:
            return
        except ChatJobsError as error:
            raise failures.from_storage(error, pause=None) from None

    @activity.defn
    async def seal_batch(self, ref: BatchRef) -> BatchSealed:
        """End a batch all of whose jobs have ended: final status and stored delivery in one transaction. If some are
        left, nothing is changed."""
        run_id = activity.info().workflow_run_id or ""
        try:
            sealed = await self._runs.seal(ref.batch_id, run_id=run_id)
        except ChatJobsError as error:
            raise failures.from_storage(error, pause=None) from None
        return BatchSealed(
            batch_id=sealed.batch_id,
            status=sealed.status,
            left=sealed.left,
            delivery_id=sealed.delivery_id,
            indexed=self._indexed,
        )


class _Slice:
    """A part of a batch while this activity works through it."""

    def __init__(
        self,
        order: SliceOrder,
        completer: Completer,
        runs: BatchRunStore,
        seals: SealStore,
        announce: Announce,
        watch: BatchWatch,
        places: asyncio.Semaphore,
    ) -> None:
        self._batch_id = order.batch_id
        self._completer = completer
        self._runs = runs
        self._seals = seals
        self._announce = announce
        self._watch = watch
        self._places = places
        self._turns = TurnQueue(given_up=lambda: not self._begins)
        self._waiting: deque[str] = deque()
        self._running = self._ended = 0
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beats: asyncio.Future[None] = self._stopping
        self._leaves = False
        """The activity was cancelled or fails: no further attempt is made."""
        self._paused_since: float | None = None
        self._shown = False
        """The batch's status says that it is in progress."""
        info = activity.info()
        self._began = time.monotonic()
        self._scheduled = (info.started_time - info.scheduled_time).total_seconds()
        self._fence = micros(info.current_attempt_scheduled_time)
        self._heartbeat = info.heartbeat_timeout.total_seconds() if info.heartbeat_timeout else float("inf")

    def details(self) -> dict[str, Any]:
        """What the Temporal UI shows of the activity; nothing private."""
        return {"waiting": len(self._waiting), "running": self._running, "ended": self._ended}

    async def run(self, job_ids: Sequence[str], at_once: int, beats: asyncio.Task[None]) -> SliceReport:
        """Work through the jobs, ``at_once`` at a time. Raises ApplicationError if the rest is for another worker."""
        self._waiting.extend(job_ids)
        self._beats = beats
        self._stopping = asyncio.create_task(activity.wait_for_worker_shutdown())
        workers = [asyncio.create_task(self._work()) for _ in range(min(at_once, len(job_ids)))]
        try:
            if workers:
                await asyncio.gather(*workers)
        finally:
            self._leaves = True
            for task in (*workers, self._stopping):
                task.cancel()
            await asyncio.gather(*workers, self._stopping, return_exceptions=True)
        if not self._waiting:
            return SliceReport()
        if self._watch.of(self._batch_id).cancelled:
            return SliceReport(stopped="cancelled")
        if self._paused_since is not None:
            return SliceReport(stopped="paused")
        raise failures.again(HANDED_OVER.outcome, "This worker stops; another one goes on", 0)

    @property
    def _begins(self) -> bool:
        """Whether a job may begin now."""
        wishes = self._watch.of(self._batch_id)
        return not (wishes.paused or wishes.cancelled or self._over)

    @property
    def _over(self) -> bool:
        """Whether this activity ends, whatever is left."""
        return self._leaves or self._stopping.done() or self._beats.done()

    async def _work(self) -> None:
        """Run one job after the other."""
        while self._waiting and await self._may_begin():
            async with self._places:
                if not self._begins or not self._waiting:
                    continue
                if not self._shown:
                    self._shown = True
                    await self._show_progress()
                if not self._waiting:
                    continue
                job_id = self._waiting.popleft()
                self._running += 1
                try:
                    ended = await self._job(job_id)
                finally:
                    self._running -= 1
                if ended:
                    self._ended += 1
                else:
                    self._waiting.appendleft(job_id)

    async def _show_progress(self) -> None:
        try:
            await self._runs.begin(self._batch_id)
        except ChatJobsError as error:  # the next part does it
            log.warning("status not stored: %s", error, extra={"action": "batch_status_unstored"})

    async def _may_begin(self) -> bool:
        """Wait while the batch is paused; whether another job may begin then."""
        while not self._begins:
            wishes = self._watch.of(self._batch_id)
            if self._over or wishes.cancelled:
                return False
            self._paused_since, self._shown = self._paused_since or time.monotonic(), False
            if not self._running and time.monotonic() - self._paused_since > PAUSED_SECONDS:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        self._paused_since = None
        return True

    async def _job(self, job_id: str) -> bool:
        """Make attempts at a job until it has ended, and seal it; False if it is left for later."""
        number = 0
        while True:
            number += 1
            try:
                ending = ending_of(job_id, await self._completer.attempt(job_id, self._context(number)))
            except ApplicationError as error:
                if error.type == FenceLost.code:
                    return True  # another worker has it
                if error.type == AttemptOutcome.FROZEN:
                    self._leaves = True  # Temporal has given this part to another worker
                if not error.non_retryable:
                    if (error.type == WAITING and not self._begins) or not await self._pause(job_id, error):
                        return False
                    continue
                ending = Ending(job_id=job_id, status=JobStatus.FAILED, error=failures.job_error(error))
            if ending is not None:
                await self._seal(ending)
            return True

    async def _pause(self, job_id: str, error: ApplicationError) -> bool:
        """Wait until the next attempt, or until the job's cancel is requested; False if there is no next one here."""
        delay = error.next_retry_delay
        seconds = AGAIN_SECONDS if delay is None else delay.total_seconds()
        with self._completer.cancel_of(job_id) as cancel:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 and not self._over and not cancel.done():
                await asyncio.wait((cancel, self._stopping), timeout=min(left, LOOK_SECONDS))
        return not self._over

    async def _seal(self, ending: Ending) -> None:
        """Give a job its outcome. While the database is away this waits, as no other job could be sealed either."""
        while True:
            try:
                sealed = await self._seals.seal(ending, run_id=self._batch_id)
                break
            except StorageUnavailable as error:
                if self._over:
                    raise failures.from_storage(error) from None
                log.warning("job not sealed, waiting: %s", error, extra={"action": "seal_waits"})
                await asyncio.wait((self._stopping,), timeout=failures.STORAGE_PAUSE)
            except ChatJobsError as error:
                raise failures.from_storage(error) from None
        if sealed.delivery_id is not None:
            self._announce(sealed)

    def _context(self, number: int) -> AttemptContext:
        return AttemptContext(
            # Grows over the attempts at a job, and over those of this activity, by Temporal's clock.
            fence=self._fence + number,
            run_id=self._batch_id,
            number=number,
            seconds_since_scheduled=self._scheduled + time.monotonic() - self._began,
            heartbeat_seconds=self._heartbeat,
            beats=self._beats,
            stopping=self._stopping,
            job_cancelled=lambda: False,
            turns=self._turns,
        )


def ending_of(job_id: str, summary: CompletionSummary) -> Ending | None:
    """The ending of a job whose attempt needs no other; None if it is sealed already."""
    match summary.outcome:
        case "sealed":
            return None
        case "cancel_requested":
            return Ending(job_id=job_id, status=JobStatus.CANCELLED)
        case "finished":
            return Ending(job_id=job_id, status=JobStatus.COMPLETED, position=summary.position)
