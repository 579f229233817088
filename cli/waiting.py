"""Why a job makes no progress, for someone who waits for it: found out and said every few seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import PendingActivityState, TaskQueueType
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.contracts import QueuedEvent, QueuePlace
from chatjobs.errors import ChatJobsError
from dispatch.temporal import pollers
from domain.errors import TemporalUnavailable
from domain.names import COMPLETIONS_QUEUE, JOBS_QUEUE

QUIET_SECONDS = 3.0
"""How long nothing may come before the reason is looked for, and how often it is said."""
ASK_SECONDS = 2.0
SILENT = timedelta(seconds=12)
"""A worker that works sends a heartbeat every 3 s."""
START_ONE = "start one with `make run` or `python worker.py`"


class WaitReporter:
    """``connect`` gives a client of Temporal or raises TemporalUnavailable; ``say`` gets each reason."""

    def __init__(self, job_id: str, connect: Callable[[], Awaitable[Client]], say: Callable[[str], None]) -> None:
        self._job_id = job_id
        self._connect = connect
        self._say = say
        self._moved = time.monotonic()
        self._place: QueuePlace | None = None

    def moved(self) -> None:
        """Something came of the job."""
        self._moved, self._place = time.monotonic(), None

    def stands(self, place: QueuePlace) -> None:
        """It waits for its turn in a lane."""
        self._place = place

    @asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """While the block runs, the reason is said whenever nothing has come for a while."""
        telling = asyncio.create_task(self._tell(), name="waiting")
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.wait({telling})

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(QUIET_SECONDS)
            if time.monotonic() - self._moved < QUIET_SECONDS:
                continue
            reason = standing(self._place) if self._place else await self._reason()
            if reason and time.monotonic() - self._moved >= QUIET_SECONDS:
                self._say(reason)

    async def _reason(self) -> str | None:
        try:
            async with asyncio.timeout(ASK_SECONDS + QUIET_SECONDS):
                return await self._by_run(await self._connect())
        except ChatJobsError as error:
            return f"{error.message}; the job goes on when Temporal is back"
        except TimeoutError:
            return "Temporal does not answer; the job goes on when it does"

    async def _by_run(self, client: Client) -> str | None:
        """What the job's run waits for. Raises TemporalUnavailable."""
        try:
            run = await client.get_workflow_handle(self._job_id).describe(rpc_timeout=timedelta(seconds=ASK_SECONDS))
            return await _awaited(client, run) if run.status is WorkflowExecutionStatus.RUNNING else None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return f"Temporal does not have the job yet; a worker or gateway hands it over: {START_ONE}"
            raise TemporalUnavailable(f"Temporal does not answer ({error.status.name})") from None


def standing(place: QueuePlace | QueuedEvent) -> str:
    """Where a job stands that waits for its turn, as of now, and why it waits."""
    wait = max(place.expected_start_at - datetime.now(UTC), timedelta())
    why = WHY_QUEUED.get(getattr(place, "reason", "rate_limit"), "")
    return f"number {place.position} in the queue{why}, expected in {wait.total_seconds():.0f} s"


WHY_QUEUED = {
    "rate_limit": " for the model's rate limit",
    "paused": " (the model asked for a pause)",
    "model_down": " (the model fails every call; one job at a time tries it)",
}


async def _awaited(client: Client, run: WorkflowExecutionDescription) -> str | None:
    raw = run.raw_description
    if raw.HasField("pending_workflow_task"):
        return await _no_worker(client, JOBS_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
    for activity in raw.pending_activities:
        if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED:
            return _later(activity) or await _no_worker(
                client, COMPLETIONS_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
            )
        if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED:
            return _under_way(activity)
    return None


def _later(activity: PendingActivityInfo) -> str | None:
    """Of an attempt that is made again, but not yet."""
    if not activity.HasField("next_attempt_schedule_time"):
        return None
    wait = activity.next_attempt_schedule_time.ToDatetime(UTC) - datetime.now(UTC)
    return f"the next attempt begins in {wait.total_seconds():.0f} s" if wait > timedelta(seconds=1) else None


async def _no_worker(client: Client, queue: str, kind: TaskQueueType.ValueType) -> str:
    """Raises RPCError."""
    if await pollers(client, queue, kind):
        return "no worker has a free place for the job: all are busy, or one has just died; the job waits"
    return f"no worker polls the queue {queue}: {START_ONE}; the job waits"


def _under_way(activity: PendingActivityInfo) -> str:
    last = (
        activity.last_heartbeat_time if activity.HasField("last_heartbeat_time") else activity.last_started_time
    ).ToDatetime(UTC)
    if datetime.now(UTC) - last > SILENT:
        return "the worker that has the job is silent; another one takes over"
    return "a worker has the job; the model has not sent anything for some seconds"
