"""Schedules of jobs: the row in storage first, Temporal's Schedule second.

The row is the promise. While Temporal is unavailable, what was asked for waits in storage, and the sweeper makes
Temporal's Schedule the same as the row later, also where Temporal has lost it. Temporal decides when a run is due and
what happens if an earlier one still runs. A run is the workflow ``ChatJob``, whose first step reads the request from
storage, so that none is in Temporal; that of a batch is ``ScheduledBatch``, which lasts as long as the batch.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.schedule.v1 import SchedulePatch, TriggerImmediatelyRequest
from temporalio.api.workflowservice.v1 import PatchScheduleRequest
from temporalio.client import (
    Client,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleBackfill,
    ScheduleDescription,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
)
from temporalio.client import Schedule as TemporalSchedule
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.contracts import (
    BATCH_PRIORITY,
    USUAL_PRIORITY,
    BatchSettings,
    JsonObject,
    Schedule,
    ScheduleRequest,
    ScheduleRun,
    ScheduleTiming,
    parse,
    without_nulls,
)
from chatjobs.errors import InvalidRequest, Problem
from chatjobs.validation import did_you_mean
from dispatch.intake import LARGE_BYTES, TASK_TIMEOUT, Intake, place_in_queues
from dispatch.temporal import RPC_TIMEOUT
from domain.batches import BatchHash, check_settings, new_items
from domain.errors import TemporalUnavailable
from domain.names import CHAT_JOB, JOBS_QUEUE, SCHEDULED_BATCH, new_batch_id, new_schedule_id
from domain.payloads import ScheduledRef
from domain.timings import Timings
from domain.values import StoredSchedule
from storage.engine.schema import micros, moment
from storage.jobs.store import JobStore

log = logging.getLogger(__name__)

LEAST_BACKFILL = timedelta(seconds=1)
ONE_CONVERSATION = "must be left out: that job is removed some time; give its conversation itself in messages"
NEW_JOB = "must be left out: each run of a schedule is a new job"
NO_ZONES = frozenset({"Factory", "localtime"})
"""Names in the database of time zones that are none, or are another one on each machine."""


class JobSchedules:
    """``intake`` knows the rules for requests. ``client``: None where Temporal is not needed at once."""

    def __init__(self, *, jobs: JobStore, intake: Intake, client: Client | None, timings: Timings = Timings()) -> None:
        self._store = jobs.schedules
        self._intake = intake
        self._client = client
        self._look_after = timedelta(seconds=timings.schedule_look_seconds)

    async def put(self, body: Any, *, tenant: str, size: int = 0) -> tuple[StoredSchedule, bool]:
        """Commit the schedule in a decoded JSON body; whether it is a new one. It is durable when this returns.

        Raises InvalidRequest, WebhookUrlRefused, StorageUnavailable.
        """
        large = size >= LARGE_BYTES
        wish = await asyncio.to_thread(parse, ScheduleRequest, body) if large else parse(ScheduleRequest, body)
        if wish.timezone not in _zones():
            hint = did_you_mean(wish.timezone, sorted(_zones()))
            raise InvalidRequest([Problem("/timezone", f"must be an IANA time zone, such as Europe/Berlin{hint}")])
        request = batch = None
        if wish.request is not None:
            request = await self._request(wish.request, tenant, size)
        elif wish.batch is not None:
            batch = await asyncio.to_thread(self._batch, wish.batch)
        given = {name: getattr(wish, name) for name in ScheduleTiming.model_fields}
        schedule_id, timing = wish.id or new_schedule_id(), ScheduleTiming(**given)
        return await self._store.put(tenant, schedule_id, timing, request=request, batch=batch)

    def _batch(self, batch: JsonObject) -> str:
        """The batch as it is stored, whose items are all checked. Raises InvalidRequest, WebhookUrlRefused."""
        settings = {name: value for name, value in batch.items() if name != "items"}
        values = batch.get("items")
        try:
            if not isinstance(values, list):
                raise InvalidRequest([Problem("/items", "must be an array of items")])
            if settings.get("deadline") is not None:
                raise InvalidRequest([Problem("/deadline", "must be left out: each run would have the same")])
            policy = self._intake.policy
            checked = check_settings(parse(BatchSettings, settings), policy)
            new_items(values, new_batch_id(), checked, BatchHash(), policy)
        except InvalidRequest as error:
            raise InvalidRequest([Problem(f"/batch{place}", why) for place, why in error.problems]) from None
        return json.dumps({**without_nulls(BatchSettings, settings), "items": values}, ensure_ascii=False)

    async def _request(self, request: JsonObject, tenant: str, size: int) -> str:
        """The request as it is stored. Raises InvalidRequest, WebhookUrlRefused."""
        try:
            job = await self._intake.checked(request, tenant=tenant, size=size)
            if job.request is None or job.request.job_id is not None:
                raise InvalidRequest([Problem("/jobId", NEW_JOB)])
            if job.request.start_at is not None:
                raise InvalidRequest([Problem("/startAt", "must be left out: the schedule says when")])
            if job.previous_job_id is not None:
                raise InvalidRequest([Problem("/previousJobId", ONE_CONVERSATION)])
        except InvalidRequest as error:
            problems = [Problem(f"/request{place}", why) for place, why in error.problems]
            raise InvalidRequest(problems) from None
        return job.request_json or ""

    async def due(self) -> Sequence[StoredSchedule]:
        """The schedules that are to be compared with Temporal's now, each for one caller."""
        return await self._store.take_due()

    # ------------------------------------------------------------------------------------------- Temporal

    async def apply(self, schedule: StoredSchedule) -> None:
        """Make Temporal have the schedule as it is stored now; calling again has no effect.

        Raises TemporalUnavailable, StorageUnavailable.
        """
        if self._client is None:
            raise TemporalUnavailable
        newest = await self._store.newest(schedule.uid)
        if newest is not None:
            await self._apply(self._client, newest)

    async def _apply(self, client: Client, schedule: StoredSchedule) -> None:
        handle = client.get_schedule_handle(schedule.name)
        try:
            if schedule.deleted:
                await _delete(handle)
                await self._store.remove(schedule)
                return
            found = await self._made_same(client, handle, schedule)
        except (RPCError, RuntimeError) as error:  # the latter: a lazy client that cannot connect
            name = error.status.name if isinstance(error, RPCError) else "not reachable"
            raise TemporalUnavailable(f"Temporal did not take the schedule ({name}); it will") from None
        times = () if found.schedule.state.paused else tuple(map(micros, found.info.next_action_times))
        await self._store.record_applied(schedule, times, self._look_after)

    async def _made_same(self, client: Client, handle: ScheduleHandle, schedule: StoredSchedule) -> ScheduleDescription:
        """Create or update Temporal's schedule, and trigger it. Raises RPCError, RuntimeError."""
        found = await _described(handle) if schedule.applied else None
        if found is None:
            await _create(client, handle, schedule)
        elif _revision(found) != schedule.revision:
            await _update(handle, schedule)
        elif found.schedule.state.paused != schedule.paused:
            # Somebody did it in Temporal's UI.
            await self._store.adopt_pause(schedule, found.schedule.state.paused, found.schedule.state.note)
        elif schedule.trigger_at is None:
            return found
        if schedule.trigger_at is not None:
            await _trigger(client, schedule, schedule.trigger_at)
        return await handle.describe(rpc_timeout=RPC_TIMEOUT)


async def _create(client: Client, handle: ScheduleHandle, schedule: StoredSchedule) -> None:
    """Create Temporal's schedule, and have it make up for the runs that it missed while it had none."""
    backfill, made = _missed(schedule, datetime.now(UTC)), temporal_schedule(schedule)
    try:
        await client.create_schedule(schedule.name, made, backfill=backfill, rpc_timeout=RPC_TIMEOUT)
    except ScheduleAlreadyRunningError:
        await _update(handle, schedule)
        return
    extra = {"action": "schedule_made", "schedule_id": schedule.id, "tenant": schedule.tenant}
    if schedule.applied:
        log.warning("Temporal lost a schedule; made again", extra=extra)
    else:
        log.info("schedule made", extra=extra)


async def _trigger(client: Client, schedule: StoredSchedule, at: int) -> None:
    """Start a run now. Its given time makes a repetition of this call the same run."""
    time = Timestamp()
    time.FromDatetime(moment(at))
    request = PatchScheduleRequest(
        namespace=client.namespace,
        schedule_id=schedule.name,
        identity=client.identity,
        request_id=f"{schedule.uid}-{at}",
        patch=SchedulePatch(trigger_immediately=TriggerImmediatelyRequest(scheduled_time=time)),
    )
    await client.workflow_service.patch_schedule(request, timeout=RPC_TIMEOUT)


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones()) - NO_ZONES


async def _described(handle: ScheduleHandle) -> ScheduleDescription | None:
    """What Temporal has; None for nothing. Raises RPCError, RuntimeError."""
    try:
        return await handle.describe(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


def _revision(found: ScheduleDescription) -> int | None:
    """The revision of our row that Temporal has; None if it cannot be read."""
    action = found.schedule.action
    arguments = action.args if isinstance(action, ScheduleActionStartWorkflow) else ()
    try:
        return int(json.loads(arguments[0].data)["revision"])
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):  # somebody has edited it
        return None


async def _update(handle: ScheduleHandle, schedule: StoredSchedule) -> None:
    made = temporal_schedule(schedule)
    await handle.update(lambda _: ScheduleUpdate(schedule=made), rpc_timeout=RPC_TIMEOUT)


async def _delete(handle: ScheduleHandle) -> None:
    try:
        await handle.delete(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


def temporal_schedule(schedule: StoredSchedule) -> TemporalSchedule:
    """The schedule as Temporal has it."""
    timing = schedule.timing
    kind, priority = (SCHEDULED_BATCH, BATCH_PRIORITY) if schedule.batch is not None else (CHAT_JOB, USUAL_PRIORITY)
    priority = json.loads(schedule.request or "{}").get("priority", priority)
    intervals = [ScheduleIntervalSpec(every=timedelta(seconds=timing.every))] if timing.every else []
    return TemporalSchedule(
        action=ScheduleActionStartWorkflow(
            kind,
            ScheduledRef(schedule=schedule.name, revision=schedule.revision),
            id=schedule.name,
            task_queue=JOBS_QUEUE,
            task_timeout=TASK_TIMEOUT,
            priority=place_in_queues(schedule.tenant, priority),
            static_summary=f"run of schedule {schedule.id}",
        ),
        spec=ScheduleSpec(
            cron_expressions=[timing.cron] if timing.cron else [], intervals=intervals, time_zone_name=timing.timezone
        ),
        policy=SchedulePolicy(
            overlap=ScheduleOverlapPolicy[timing.overlap.upper()],
            catchup_window=timedelta(seconds=timing.catchup_seconds),
        ),
        state=ScheduleState(paused=schedule.paused, note=schedule.note),
    )


def _missed(schedule: StoredSchedule, now: datetime) -> Sequence[ScheduleBackfill]:
    """The time in which Temporal had no such schedule, as far as its runs are still to be made up for."""
    caught_up = now - timedelta(seconds=schedule.timing.catchup_seconds)
    start = max(moment(max(schedule.updated_at, schedule.seen_at or 0)), caught_up)
    if schedule.paused or now - start < LEAST_BACKFILL:
        return ()
    return [ScheduleBackfill(start_at=start, end_at=now)]


def shown(
    schedule: StoredSchedule, runs: Sequence[ScheduleRun], *, url: str, with_request: bool, now: datetime
) -> Schedule:
    """The schedule as callers see it, with its newest jobs and the link to Temporal's UI."""
    timing = {name: getattr(schedule.timing, name) for name in ScheduleTiming.model_fields}
    upcoming = () if schedule.paused else (moment(time) for time in schedule.next_runs if time > micros(now))
    return Schedule(
        **timing,
        id=schedule.id,
        request=json.loads(schedule.request) if with_request and schedule.request else None,
        batch=json.loads(schedule.batch) if with_request and schedule.batch else None,
        paused=schedule.paused,
        note=schedule.note,
        created_at=moment(schedule.created_at),
        updated_at=moment(schedule.updated_at),
        next_runs=tuple(upcoming),
        last_runs=tuple(runs),
        pending=schedule.pending,
        temporal_url=url,
    )
