"""The activities of the lane of batch jobs: items sent to the model's server, looked at, withdrawn, results taken.

A batch job has the items' own key in its metadata and is looked for before one is created, so that a repeated activity
does not pay for the same requests twice. A result becomes an attempt of its job, as a live call does: with a claim, a
place in the ledger and a seal. What has no result is left for live calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import failures
from activities.attempt import AttemptContext
from activities.batch import Announce, ending_of
from activities.completer import HANDED_OVER, Completer
from activities.heartbeats import heartbeating
from chatjobs.contracts import ChatRequest, JobStatus
from chatjobs.errors import ChatJobsError
from domain.errors import FenceLost, UpstreamError, UpstreamRefused
from domain.outcomes import AttemptOutcome
from domain.payloads import (
    Ending,
    PartOrder,
    PartsOrder,
    PartsReport,
    ResultsReport,
    SendOrder,
    SendReport,
    SentPart,
)
from domain.ports import BatchAnswer, BatchModel, ChatModel, LineOutcome, ModelBatch
from domain.timings import Timings
from storage.batches.lane import BatchLaneStore
from storage.batches.runs import BatchRunStore
from storage.engine.schema import micros
from storage.jobs.seals import SealStore
from storage.rate_limits.limiter import Limiter

UNAVAILABLE = "batch_lane_unavailable"
"""The code of the error where the worker's model has no batch jobs."""
CLOCKS_DIFFER = timedelta(days=1)
"""How far the server's clock may be from ours."""
AT_ONCE = 50
"""Results that are stored at once."""
WITHDRAWAL_LOOK_SECONDS = 1.0
ANSWER_SECONDS = 30.0
"""The time of a live call, in the estimate of how long live calls need for what is left."""
SAFETY = 1.25
FILE_ATTEMPTS = 10
"""Attempts to read the results of a job that has ended, over some minutes, if their file is missing."""
GOES_ON = frozenset(
    {AttemptOutcome.SEGMENT.value, AttemptOutcome.TOPPED_UP.value, AttemptOutcome.SCHEMA_MISMATCH.value}
)
"""Outcomes of an attempt whose answer another call continues."""

log = logging.getLogger(__name__)


class BatchLaneActivities:
    """``completer``: without rate limits, which do not hold for batch jobs. ``model``: names the lanes of live calls,
    whose ``limiter`` and ``places`` (calls at once) tell how long they need. ``batches`` None: the model has none."""

    def __init__(
        self,
        batches: BatchModel | None,
        model: ChatModel,
        runs: BatchRunStore,
        items: BatchLaneStore,
        seals: SealStore,
        *,
        completer: Completer,
        announce: Announce,
        limiter: Limiter,
        places: int,
        timings: Timings = Timings(),
    ) -> None:
        self._batches = batches
        self._model = model
        self._completer = completer
        self._runs = runs
        self._items = items
        self._seals = seals
        self._announce = announce
        self._limiter = limiter
        self._places = places
        self._timings = timings

    @property
    def _server(self) -> BatchModel:
        if self._batches is None:
            raise failures.permanent(UNAVAILABLE, "The model has no batch jobs; its items go on as live calls")
        return self._batches

    @activity.defn
    async def send_items(self, order: SendOrder) -> SendReport:
        """Send the items of a part that no live call has begun, a batch job for each model; what an earlier attempt has
        sent stays."""
        async with heartbeating(timings=self._timings):
            try:
                wishes = (await self._runs.wishes([order.batch_id])).get(order.batch_id)
                if wishes is None or wishes.cancelled:
                    return SendReport(stopped="cancelled")
                if wishes.paused:
                    return SendReport(stopped="paused")
                if await self._is_late(order.batch_id, order.deadline):
                    return SendReport(stopped="late")
                await self._runs.touch([order.batch_id])
                models = await self._items.models(order.batch_id, order.first, order.end)
                for lane in {self._model.lane(model) for model in models}:
                    if await self._items.is_held(order.batch_id, lane):
                        return SendReport(stopped="held")
                parts = [await self._sent(order, model) for model in models]
            except ChatJobsError as error:
                raise await self._failure(error, order.batch_id, order.deadline) from None
        return SendReport(parts=tuple(parts))

    async def _sent(self, order: SendOrder, model: str) -> SentPart:
        key = f"{order.batch_id}.{order.first}.{hashlib.sha256(model.encode()).hexdigest()[:8]}"
        created_at = await self._items.created_at(order.batch_id)
        since = (created_at or datetime.now(UTC)) - CLOCKS_DIFFER
        batch = await self._server.find(key, since=since)
        if batch is None:
            lines = self._items.lines(order.batch_id, order.first, order.end, model)
            async with aclosing(lines):
                file_id = await self._server.upload(key, lines)
            batch = await self._server.create(key, file_id, model, timeout_hours=order.timeout_hours)
            log.info("items sent", extra={"action": "batch_items_sent", "batch": order.batch_id, "key": key})
        return SentPart(key=key, model_batch_id=batch.id)

    @activity.defn
    async def look_at_parts(self, order: PartsOrder) -> PartsReport:
        """How far batch jobs are, and how much time is left until the rest has to be withdrawn."""
        async with heartbeating(timings=self._timings):
            try:
                wishes = (await self._runs.wishes([order.batch_id])).get(order.batch_id)
                if wishes is None or wishes.cancelled:
                    return PartsReport(cancelled=True)
                await self._runs.touch([order.batch_id], ahead=timedelta(seconds=order.pause))
                seconds = await self._seconds_left(order.batch_id, order.deadline)
                if seconds is not None and seconds <= 0:
                    return PartsReport(seconds_left=seconds)
                found = {part.key: await self._look(part) for part in order.parts}
            except ChatJobsError as error:
                raise await self._failure(error, order.batch_id, None) from None
        return PartsReport(
            ended=tuple(key for key, batch in found.items() if batch is None or batch.phase.ended),
            complete=tuple(key for key, batch in found.items() if batch is None or batch.complete),
            answered=sum(batch.succeeded + batch.failed for batch in found.values() if batch is not None),
            seconds_left=seconds,
        )

    async def _look(self, part: SentPart) -> ModelBatch | None:
        """The batch job; None if the server does not know it any more."""
        try:
            return await self._server.look(part.model_batch_id)
        except UpstreamRefused as error:
            if error.http_status != 404:
                raise
            return None

    async def _seconds_left(self, batch_id: str, deadline: datetime | None) -> float | None:
        if deadline is None:
            return None
        left = await self._items.left(batch_id)
        known = {lane.name: lane for lane in await self._limiter.lanes()}
        calls = sum(left.values()) * ANSWER_SECONDS / self._places
        for model, count in left.items():
            lane = known.get(self._model.lane(model))
            at_once = self._places if lane is None or lane.at_once is None else max(lane.at_once, 1)
            rate = self._limiter.per_second if lane is None else lane.per_second
            calls = max(calls, count / rate, count * ANSWER_SECONDS / at_once)
        needed = calls * SAFETY + self._timings.batch_withdrawal_seconds + self._timings.batch_margin_seconds
        return (deadline - datetime.now(UTC)).total_seconds() - needed

    @activity.defn
    async def withdraw_parts(self, order: PartsOrder) -> None:
        """Cancel batch jobs, and wait a while for their end. Where results are not wanted, delete their files."""
        async with heartbeating(timings=self._timings):
            try:
                for part in order.parts:
                    await self._withdraw(part)
                found = await self._ended(order.parts)
                for part, batch in () if order.keep else zip(order.parts, found, strict=True):
                    await self._delete_files(part, batch)
            except ChatJobsError as error:
                raise await self._failure(error, order.batch_id, None) from None

    async def _ended(self, parts: Sequence[SentPart]) -> Sequence[ModelBatch | None]:
        """Batch jobs, once all have ended or the time for it is over."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._timings.batch_withdrawal_seconds
        while True:
            found = [await self._look(part) for part in parts]
            if all(batch is None or batch.complete for batch in found) or clock() > until:
                return found
            await asyncio.sleep(WITHDRAWAL_LOOK_SECONDS)

    async def _withdraw(self, part: SentPart) -> None:
        try:
            await self._server.cancel(part.model_batch_id)
        except UpstreamRefused as error:
            if error.http_status != 404:
                raise

    @activity.defn
    async def take_results(self, order: PartOrder) -> ResultsReport:
        """Give the jobs of a batch job that has ended their outcomes, and delete its files."""
        async with heartbeating(timings=self._timings) as beats:
            taking = _Results(order, self._completer, self._seals, self._announce, beats)
            try:
                batch = await self._look(order.part)
                if batch is not None:
                    await self._take(order, batch, taking)
                await self._delete_files(order.part, batch)
            except ChatJobsError as error:
                raise await self._failure(error, order.batch_id, order.deadline) from None
            finally:
                await taking.close()
        return ResultsReport(ended=taking.ended, left=taking.left)

    async def _take(self, order: PartOrder, batch: ModelBatch, taking: _Results) -> None:
        async def pending(job_ids: Collection[str]) -> Mapping[str, ChatRequest]:
            return await self._items.pending(order.batch_id, set(job_ids) - taking.busy)

        async with aclosing(self._server.results(batch, pending)) as results:
            async for job_id, outcome in results:
                await taking.add(job_id, outcome)
        await taking.settled()

    async def _failure(self, error: ChatJobsError, batch_id: str, deadline: datetime | None) -> ApplicationError:
        """What ends a call of these activities: retried, unless the server refused, the database's error is final, or
        another call would come too late."""
        if not isinstance(error, UpstreamError):
            return failures.from_storage(error)
        missing = error.http_status == 404 and activity.info().attempt >= FILE_ATTEMPTS
        if not error.retryable or missing or await self._is_late(batch_id, deadline):
            return failures.permanent(error.reason, error.message)
        return failures.again(error.reason, error.message, error.retry_after)

    async def _is_late(self, batch_id: str, deadline: datetime | None) -> bool:
        try:
            seconds = await self._seconds_left(batch_id, deadline)
        except ChatJobsError:
            return False
        return seconds is not None and seconds <= 0

    async def _delete_files(self, part: SentPart, batch: ModelBatch | None) -> None:
        """Files that are left cost nothing, and the server deletes them after some weeks."""
        try:
            await self._server.delete_files(part.key, batch)
        except UpstreamError as error:
            log.warning("files not deleted: %s", error, extra={"action": "batch_files_left", "key": part.key})


class _Results:
    """Results that become attempts, AT_ONCE at a time."""

    def __init__(
        self,
        order: PartOrder,
        completer: Completer,
        seals: SealStore,
        announce: Announce,
        beats: asyncio.Future[None],
    ) -> None:
        self._batch_id = order.batch_id
        self._completer, self._seals, self._announce, self._beats = completer, seals, announce, beats
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._stopping = asyncio.create_task(activity.wait_for_worker_shutdown())
        self.ended = self.left = 0
        info = activity.info()
        self._fence = micros(info.current_attempt_scheduled_time)
        self._heartbeat = info.heartbeat_timeout.total_seconds() if info.heartbeat_timeout else float("inf")

    @property
    def busy(self) -> set[str]:
        """Jobs whose result is being stored."""
        return set(self._tasks.values())

    async def add(self, job_id: str, outcome: LineOutcome) -> None:
        """Store a result, once there is room. Raises ApplicationError for an earlier one that could not be stored."""
        while len(self._tasks) >= AT_ONCE:
            await self._some()
        self._tasks[asyncio.create_task(self._store(job_id, outcome))] = job_id

    async def settled(self) -> None:
        """Wait until all results are stored. Raises as ``add``."""
        while self._tasks:
            await self._some()

    async def close(self) -> None:
        tasks = [*self._tasks, self._stopping]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _some(self) -> None:
        ends = (self._stopping, self._beats)
        done, _ = await asyncio.wait((*self._tasks, *ends), return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in self._tasks if task in done]:
            del self._tasks[task]
            task.result()
        if any(end.done() for end in ends):
            raise failures.again(HANDED_OVER.outcome, "This worker stops; another one goes on", 0)

    async def _store(self, job_id: str, outcome: LineOutcome) -> None:
        try:
            ending = ending_of(job_id, await self._completer.attempt(job_id, self._context(outcome)))
        except ApplicationError as error:
            if error.type == FenceLost.code:
                return  # another attempt has the job
            if not error.non_retryable:
                if isinstance(outcome, BatchAnswer) and error.type not in GOES_ON:
                    raise  # the answer is there, and could not be stored now
                self.left += 1
                return
            ending = Ending(job_id=job_id, status=JobStatus.FAILED, error=failures.job_error(error))
        self.ended += 1
        if ending is None:
            return
        try:
            sealed = await self._seals.seal(ending, run_id=self._batch_id)
        except ChatJobsError as error:
            raise failures.from_storage(error) from None
        if sealed.delivery_id is not None:
            self._announce(sealed)

    def _context(self, outcome: LineOutcome) -> AttemptContext:
        return AttemptContext(
            fence=self._fence,
            run_id=self._batch_id,
            number=1,
            seconds_since_scheduled=0,
            heartbeat_seconds=self._heartbeat,
            beats=self._beats,
            stopping=self._stopping,
            job_cancelled=lambda: False,
            outcome=outcome,
        )
