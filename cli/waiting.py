"""Reports every few seconds why a job makes no progress."""

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
from cli.output import local_time
from dispatch.temporal import pollers
from domain.errors import TemporalUnavailable
from domain.names import COMPLETIONS_QUEUE, JOBS_QUEUE

QUIET_SECONDS = 3.0
"""Time without progress until the reason is determined, and between two reports."""
ASK_SECONDS = 2.0
HEARTBEAT_LOST = timedelta(seconds=12)
"""Time without a heartbeat after which a worker counts as gone; a live one sends one every 3 s."""
START_ONE = "start one with `make run` or `python worker.py`"


class WaitReporter:
    """``connect`` returns a client of Temporal or raises TemporalUnavailable; ``report`` is called with each reason.
    ``start_at``: a delayed job starts no earlier. ``queue``: that of its activities; ``what``: what waits, in words."""

    def __init__(
        self,
        job_id: str,
        connect: Callable[[], Awaitable[Client]],
        report: Callable[[str], None],
        start_at: datetime | None = None,
        *,
        queue: str = COMPLETIONS_QUEUE,
        what: str = "job",
    ) -> None:
        self._job_id = job_id
        self._queue = queue
        self._what = what
        self._start_at = start_at
        self._connect = connect
        self._report = report
        self._last_progress = time.monotonic()
        self._place: QueuePlace | None = None

    def progress(self) -> None:
        """The job has made progress."""
        self._last_progress, self._place = time.monotonic(), None

    def queued(self, place: QueuePlace) -> None:
        """The job waits for its turn in a lane."""
        self._place = place

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Report the reason while the block runs, whenever there has been no progress for a while."""
        watching = asyncio.create_task(self._watch(), name="waiting")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})  # without its error: a failed report must not change the exit code

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(QUIET_SECONDS)
            if time.monotonic() - self._last_progress < QUIET_SECONDS:
                continue
            reason = queue_position(self._place) if self._place else await self._reason()
            if reason and time.monotonic() - self._last_progress >= QUIET_SECONDS:
                self._report(reason)

    async def _reason(self) -> str | None:
        if self._start_at is not None and self._start_at > datetime.now(UTC):
            return f"it starts at {local_time(self._start_at)}"
        try:
            async with asyncio.timeout(ASK_SECONDS + QUIET_SECONDS):
                return await self._by_run(await self._connect())
        except ChatJobsError as error:
            return f"{error.message}; the {self._what} goes on when Temporal is back"
        except TimeoutError:
            return f"Temporal does not answer; the {self._what} goes on when it does"

    async def _by_run(self, client: Client) -> str | None:
        """The reason by the state of the job's run. Raises TemporalUnavailable."""
        try:
            run = await client.get_workflow_handle(self._job_id).describe(rpc_timeout=timedelta(seconds=ASK_SECONDS))
            return await self._pending(client, run) if run.status is WorkflowExecutionStatus.RUNNING else None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return f"Temporal does not have the {self._what} yet; a worker or gateway hands it over: {START_ONE}"
            raise TemporalUnavailable(f"Temporal does not answer ({error.status.name})") from None

    async def _pending(self, client: Client, run: WorkflowExecutionDescription) -> str | None:
        """What the run's pending task waits for. Raises RPCError."""
        raw = run.raw_description
        if raw.HasField("pending_workflow_task"):
            return await self._no_worker(client, JOBS_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
        for activity in raw.pending_activities:
            if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED:
                return _next_attempt(activity) or await self._no_worker(
                    client, self._queue, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
                )
            if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED:
                return _started_activity(activity, self._what)
        return None

    async def _no_worker(self, client: Client, queue: str, kind: TaskQueueType.ValueType) -> str:
        """Raises RPCError."""
        what = self._what
        if await pollers(client, queue, kind):
            return f"no worker has a free place for the {what}: all are busy, or one has just died; the {what} waits"
        return f"no worker polls the queue {queue}: {START_ONE}; the {what} waits"


def queue_position(place: QueuePlace | QueuedEvent) -> str:
    """A queued job's position, the reason why it waits, and its expected start, in words."""
    if place.expected_start_at is None:
        return f"number {place.position} in the queue{WHY_UNKNOWN.get(place.reason, '')}"
    wait = max(place.expected_start_at - datetime.now(UTC), timedelta())
    why = WHY_QUEUED.get(getattr(place, "reason", "rate_limit"), "")
    return f"number {place.position} in the queue{why}, expected in {wait.total_seconds():.0f} s"


WHY_UNKNOWN = {
    "at_once": " (as many calls run as the lane may have at once)",
    "paused": "; it is paused (`starter.py limits` says since when, and why)",
}
"""Why a job waits whose start nobody can foretell."""
WHY_QUEUED = {
    "rate_limit": " for the model's rate limit",
    "paused": " (the model asked for a pause)",
    "model_down": " (the model fails every call; one job at a time tries it)",
}


def _next_attempt(activity: PendingActivityInfo) -> str | None:
    """When the activity's next attempt begins; None if within a second."""
    if not activity.HasField("next_attempt_schedule_time"):
        return None
    wait = activity.next_attempt_schedule_time.ToDatetime(UTC) - datetime.now(UTC)
    return f"the next attempt begins in {wait.total_seconds():.0f} s" if wait > timedelta(seconds=1) else None


def _started_activity(activity: PendingActivityInfo, what: str) -> str:
    last = (
        activity.last_heartbeat_time if activity.HasField("last_heartbeat_time") else activity.last_started_time
    ).ToDatetime(UTC)
    if datetime.now(UTC) - last > HEARTBEAT_LOST:
        return f"the worker that has the {what} is silent; another one takes over"
    return f"a worker has the {what}; the model has not sent anything for some seconds"
