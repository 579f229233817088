"""The activities of a batch: its jobs made, worked through in parts, cancelled, and its end.

A part of a batch is one activity that makes attempts at many jobs at once. Each job has the same fences, ledger,
continuation and rate limits as one with a workflow of its own. If the worker dies, the next attempt of the activity
goes on with the jobs that have not ended.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import failures
from activities.attempt import AttemptContext
from activities.batch_places import JobPlace, Places
from activities.batch_wishes import BatchWatch
from activities.completer import HANDED_OVER, Completer
from activities.heartbeats import heartbeating
from chatjobs.contracts import JobStatus
from chatjobs.errors import BatchFinished, ChatJobsError
from domain.batches import OpenItem
from domain.errors import FenceLost, StorageUnavailable
from domain.outcomes import AttemptOutcome
from domain.payloads import (
    BatchRef,
    BatchSealed,
    CanaryReport,
    CompletionSummary,
    Ending,
    PreparedBatch,
    Sealed,
    SliceOrder,
    SliceReport,
)
from domain.timings import Timings
from domain.webhook_urls import WebhookPolicy
from storage.batches.replays import ReplayStore
from storage.batches.runs import BatchRunStore
from storage.engine.schema import micros
from storage.jobs.seals import SealStore

AGAIN_SECONDS = 0.5
"""Between two attempts at a job whose failure names no other pause."""
LOOK_SECONDS = 0.25

log = logging.getLogger(__name__)

Announce = Callable[[Sealed], None]
"""Has the first try of a sealed job's webhook made, without waiting for it."""


class BatchActivities:
    """``places``: the jobs of batches that this process runs at once. ``indexed``: see payloads.Accepted. ``policy``
    gives the rules for webhook URLs; without it those of replays are judged only when they are called."""

    def __init__(
        self,
        completer: Completer,
        runs: BatchRunStore,
        seals: SealStore,
        replays: ReplayStore,
        policy: Callable[[], WebhookPolicy] | None = None,
        *,
        announce: Announce,
        places: int,
        indexed: bool,
        timings: Timings = Timings(),
    ) -> None:
        self._runs = runs
        self._replays = replays
        self._policy = policy
        self._indexed = indexed
        self._timings = timings
        self._watch = BatchWatch(runs)
        self._shared = _Shared(completer, seals, announce, self._watch, Places(places), timings)

    @activity.defn
    async def prepare_batch(self, ref: BatchRef) -> PreparedBatch:
        """Make the items of a replay and the jobs of a batch's items, and reopen those of one that was resumed after
        its end; what an earlier attempt has done stays."""
        async with heartbeating(timings=self._timings):
            try:
                policy = self._policy() if self._policy is not None else None
                while await self._replays.gather(ref.batch_id, policy):
                    pass
                while await self._runs.prepare(ref.batch_id):
                    pass
                while await self._runs.reopen(ref.batch_id):
                    pass
                plan = await self._runs.plan(ref.batch_id)
                if not plan.ended:
                    await self._runs.begin(ref.batch_id)
            except ChatJobsError as error:
                raise failures.from_storage(error) from None
        return PreparedBatch(
            tenant=plan.tenant,
            total=plan.total,
            concurrency=plan.concurrency,
            lane="batch" if plan.lane == "batch" else "live",
            deadline=plan.deadline,
            ended=plan.ended,
            canary=plan.canary,
            indexed=self._indexed,
        )

    @activity.defn
    async def run_slice(self, order: SliceOrder) -> SliceReport:
        """Work through a part of a batch, until all its jobs have ended or the batch is paused or cancelled."""
        part = _Slice(order, self._shared)
        with self._watch.watched(order.batch_id):
            async with heartbeating(part.details, timings=self._timings) as beats:
                try:
                    await self._watch.look(order.batch_id)
                    items = await self._runs.open_items(order.batch_id, order.first, order.end)
                except ChatJobsError as error:
                    raise failures.from_storage(error) from None
                report = await part.run(items, beats)
                try:
                    if report.stopped is None and self._watch.of(order.batch_id).bounded:
                        await self._replays.judge(order.batch_id, order.first, order.end)
                except ChatJobsError as error:
                    raise failures.from_storage(error) from None
                return report

    @activity.defn
    async def judge_canary(self, ref: BatchRef) -> CanaryReport:
        """Let the rest of a replay follow its canary, or stop the replay if too many jobs of the canary failed."""
        try:
            verdict = await self._replays.judge_canary(ref.batch_id)
        except ChatJobsError as error:
            raise failures.from_storage(error) from None
        return CanaryReport(end=verdict.end, left=verdict.left)

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
            first=sealed.first,
            unprepared=sealed.unprepared,
            delivery_id=sealed.delivery_id,
            indexed=self._indexed,
        )


@dataclass(frozen=True)
class _Shared:
    """What all parts of batches in a process use. ``suspects`` lets one job after the other run (see OpenItem)."""

    completer: Completer
    seals: SealStore
    announce: Announce
    watch: BatchWatch
    places: Places
    timings: Timings
    suspects: asyncio.Lock = field(default_factory=asyncio.Lock)


class _Slice:
    """A part of a batch while this activity works through it."""

    def __init__(self, order: SliceOrder, shared: _Shared) -> None:
        self._batch_id = order.batch_id
        self._at_once = order.at_once
        self._shared = shared
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By model: a model whose lane is paused does not hold up another one's items."""
        self._waiting: deque[OpenItem] = deque()
        self._places: set[JobPlace] = set()
        self._workers: list[asyncio.Task[None]] = []
        self._attempts: Counter[str] = Counter()
        self._ended = 0
        self._changed = asyncio.Event()
        """Jobs may begin again, or the activity ends."""
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beats: asyncio.Future[None] = self._stopping
        self._leaves = False
        """The activity was cancelled or fails: no further attempt is made."""
        info = activity.info()
        self._began = time.monotonic()
        self._scheduled = (info.started_time - info.scheduled_time).total_seconds()
        self._fence = micros(info.current_attempt_scheduled_time)
        self._heartbeat = info.heartbeat_timeout.total_seconds() if info.heartbeat_timeout else float("inf")

    def details(self) -> dict[str, Any]:
        """What the Temporal UI shows of the activity; nothing private."""
        waiting = len(self._waiting) + len(self._places) - self._running
        return {"waiting": waiting, "running": self._running, "ended": self._ended}

    async def run(self, items: Sequence[OpenItem], beats: asyncio.Task[None]) -> SliceReport:
        """Work through the jobs. Raises ApplicationError if the rest is for another worker."""
        self._waiting.extend(items)
        self._beats = beats
        self._stopping = asyncio.create_task(activity.wait_for_worker_shutdown())
        for _ in range(min(self._at_once or self._shared.places.count, len(items))):
            self._workers.append(asyncio.create_task(self._work()))
        watching = asyncio.create_task(self._watch())
        try:
            while running := [task for task in self._workers if not task.done()]:
                done, _ = await asyncio.wait((watching, *running), return_when=asyncio.FIRST_COMPLETED)
                if watching in done or any(task.exception() for task in done):
                    break
        finally:
            ended = watching.done()
            self._leaves = True
            self._changed.set()
            for task in (*self._workers, watching, self._stopping):
                task.cancel()
            outcomes = await asyncio.gather(*self._workers, return_exceptions=True)
            await asyncio.gather(watching, self._stopping, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        if not self._waiting:
            return SliceReport()
        if ended and (stopped := watching.result()):
            return SliceReport(stopped=stopped)
        raise failures.again(HANDED_OVER.outcome, "This worker stops; another one goes on", 0)

    @property
    def _begins(self) -> bool:
        """Whether a job may begin now, or call the model again."""
        wishes = self._shared.watch.of(self._batch_id)
        return not (wishes.paused or wishes.cancelled or self._over)

    @property
    def _over(self) -> bool:
        """Whether this activity ends, whatever is left."""
        return self._leaves or self._stopping.done() or self._beats.done()

    @property
    def _running(self) -> int:
        """Jobs that have a place. Those that wait for one can be left at any time: they are in no transaction."""
        return sum(place.held for place in self._places)

    async def _watch(self) -> Literal["paused", "cancelled"] | None:
        """Wait until the activity ends before its jobs have, and none runs any more. Returns why; None: it is over."""
        paused_since = float("inf")
        while True:
            wishes, now = self._shared.watch.of(self._batch_id), time.monotonic()
            if self._begins or self._over:
                self._changed.set()
            paused_since = min(paused_since, now) if wishes.paused else float("inf")
            if not self._running:
                if self._over:
                    return None
                if wishes.cancelled:
                    return "cancelled"
                if now - paused_since > self._shared.timings.batch_paused_seconds:
                    return "paused"
            ends = [one for one in (self._stopping, self._beats) if not one.done()]
            await asyncio.wait(ends, timeout=LOOK_SECONDS) if len(ends) == 2 else await asyncio.sleep(LOOK_SECONDS)

    async def _work(self) -> None:
        """Run one job after the other."""
        while self._waiting and await self._may_begin():
            if not self._waiting:
                return
            item, ended = self._waiting.popleft(), False
            try:
                ended = await self._job(item)
            finally:
                if ended:
                    self._ended += 1
                else:
                    self._waiting.appendleft(item)

    def _begin_another(self) -> None:
        """A job waits without its place: if the batch sets no limit, another one may begin."""
        if self._at_once is None and self._waiting and not self._leaves:
            self._workers.append(asyncio.create_task(self._work()))

    async def _may_begin(self) -> bool:
        """Wait while the batch is paused or cancelled; whether another job may begin then."""
        while not (self._begins or self._over):
            self._changed.clear()
            await self._changed.wait()
        return not self._over

    async def _job(self, item: OpenItem) -> bool:
        """Make attempts at a job until it has ended, and seal it; False if it is left for later."""
        if item.problem is not None:
            await self._seal(Ending(job_id=item.job_id, status=JobStatus.FAILED, error=item.problem))
            return True
        place = JobPlace(
            *(self._shared.places, self._batch_id, self._turns[item.model]),
            given_up=lambda: not self._begins,
            left=self._begin_another,
        )
        self._places.add(place)
        try:
            if not item.suspect:
                return await self._attempts_at(item.job_id, place)
            self._begin_another()
            async with self._shared.suspects:  # if it ends this worker again, it does so alone
                return await self._attempts_at(item.job_id, place)
        finally:
            place.give_back()
            self._places.discard(place)

    async def _attempts_at(self, job_id: str, place: JobPlace) -> bool:
        while await place.take():
            self._attempts[job_id] += 1
            context = self._context(self._attempts[job_id], place)
            try:
                ending = ending_of(job_id, await self._shared.completer.attempt(job_id, context))
            except ApplicationError as error:
                if error.type == FenceLost.code:
                    return True  # another worker has it
                if error.type == AttemptOutcome.FROZEN:
                    self._leaves = True  # Temporal has given this part to another worker
                if not error.non_retryable:
                    place.leave()
                    await self._pause(job_id, error)
                    continue
                ending = Ending(job_id=job_id, status=JobStatus.FAILED, error=failures.job_error(error))
            if ending is not None:
                await self._seal(ending)
            return True
        return False

    async def _pause(self, job_id: str, error: ApplicationError) -> None:
        """Wait until the next attempt is due, the job's cancel is requested, or the activity ends."""
        delay = error.next_retry_delay
        seconds = AGAIN_SECONDS if delay is None else delay.total_seconds()
        with self._shared.completer.cancel_of(job_id) as cancel:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 and not self._over and not cancel.done():
                await asyncio.wait((cancel, self._stopping), timeout=min(left, LOOK_SECONDS))

    async def _seal(self, ending: Ending) -> None:
        """Give a job its outcome. While the database is away this waits, as no other job could be sealed either. A job
        that cannot be sealed holds up no other one: the batch returns to it when it is through."""
        while True:
            try:
                sealed = await self._shared.seals.seal(ending, run_id=self._batch_id)
                break
            except StorageUnavailable as error:
                if self._over:
                    raise failures.from_storage(error) from None
                log.warning("job not sealed, waiting: %s", error, extra={"action": "seal_waits"})
                await asyncio.wait((self._stopping,), timeout=failures.STORAGE_PAUSE)
            except ChatJobsError as error:
                extra = {"action": "seal_failed", "job_id": ending.job_id}
                log.error("job not sealed, left for later: %s", error, extra=extra)
                return
        if sealed.delivery_id is not None or sealed.endpoint_deliveries:
            self._shared.announce(sealed)

    def _context(self, number: int, place: JobPlace) -> AttemptContext:
        return AttemptContext(
            # Grows over the attempts at a job, and over those of this activity, by Temporal's clock.
            fence=self._fence + number,
            run_id=self._batch_id,
            # Other activities may have made attempts before: the ledger alone counts them.
            number=sys.maxsize,
            seconds_since_scheduled=self._scheduled + time.monotonic() - self._began,
            heartbeat_seconds=self._heartbeat,
            beats=self._beats,
            stopping=self._stopping,
            job_cancelled=lambda: False,
            turns=place,
            reopens=False,
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
