"""Retention in Temporal: the schedule of the removals, and the deletion of deleted jobs' runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from dispatch.temporal import RPC_TIMEOUT, runs_of
from domain.errors import TemporalUnavailable
from domain.names import CHAT_JOB, JOBS_QUEUE, RETENTION, RETENTION_SCHEDULE
from domain.payloads import RetentionOrder
from domain.values import RunRef

log = logging.getLogger(__name__)

EVERY = timedelta(hours=1)
JITTER = timedelta(minutes=5)
AGAIN_SECONDS = 30.0
PERMANENT = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.UNAUTHENTICATED)


async def ensure_retention_schedule(client: Client, days: float) -> None:
    """Schedule the hourly removals; retried until Temporal accepts the schedule.

    If Temporal forbids schedules, the log says what to run instead.
    """
    while True:
        try:
            await schedule_retention(client, days)
            return
        except RPCError as error:
            log.warning(
                "the schedule %s was not made (%s); until it is, old jobs stay, unless somebody starts the workflow %s",
                *(RETENTION_SCHEDULE, error.status.name, RETENTION),
                extra={"action": "retention_not_scheduled"},
            )
            if error.status in PERMANENT:
                return
        await asyncio.sleep(AGAIN_SECONDS)


async def schedule_retention(client: Client, days: float) -> None:
    """Create the schedule, or update the existing one to this number of days. Raises RPCError.

    Workers that start together may both do it; a schedule that an operator has paused stays paused.
    """

    def renewed(found: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule.state = found.description.schedule.state
        return ScheduleUpdate(schedule=schedule)

    schedule = _schedule(days)
    try:
        await client.create_schedule(RETENTION_SCHEDULE, schedule, rpc_timeout=RPC_TIMEOUT)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(RETENTION_SCHEDULE).update(renewed, rpc_timeout=RPC_TIMEOUT)


def _schedule(days: float) -> Schedule:
    action = ScheduleActionStartWorkflow(
        RETENTION,
        RetentionOrder(days=days),
        id=RETENTION_SCHEDULE,
        task_queue=JOBS_QUEUE,
        static_summary=f"remove jobs that ended more than {days:g} days ago",
    )
    return Schedule(
        action=action,
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=EVERY)], jitter=JITTER),
        # No second run starts beside a long one; runs that Temporal missed while it was down are not caught up.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(minutes=10)),
    )


async def delete_runs(client: Client, run: RunRef) -> None:
    """Have Temporal delete the runs of a job that was started straight through it: their histories hold its request.

    It does so within about a minute. Raises TemporalUnavailable; then, and for a run that is not indexed yet, the
    history is deleted by the namespace's retention.
    """
    count = 0
    try:
        async for run_id in _run_ids(client, run):
            await _delete(client, WorkflowExecution(workflow_id=run.workflow_id, run_id=run_id))
            count += 1
    except (RPCError, RuntimeError) as error:  # the latter: a lazy client that cannot connect
        name = error.status.name if isinstance(error, RPCError) else "not reachable"
        raise TemporalUnavailable(f"Temporal did not delete the job's history ({name})") from None
    extra = {"action": "history_deleted", "workflow_id": run.workflow_id, "runs": count}
    log.info("Temporal deletes a job's history", extra=extra)


async def _run_ids(client: Client, run: RunRef) -> AsyncIterator[str]:
    """All runs of a workflow that is one job; of a cron only the runs of the job."""
    if run.run_id is not None:
        for found in await runs_of(client, run):
            yield found.run_id
        return
    query = (
        f"WorkflowId = '{run.workflow_id}' AND WorkflowType = '{CHAT_JOB}'"  # the id has no quotes (contracts.JobId)
    )
    async for listed in client.list_workflows(query, limit=100, rpc_timeout=RPC_TIMEOUT):
        yield listed.run_id


async def _delete(client: Client, run: WorkflowExecution) -> None:
    """Delete a run. Raises RPCError, unless it was deleted already."""
    request = DeleteWorkflowExecutionRequest(namespace=client.namespace, workflow_execution=run)
    try:
        await client.workflow_service.delete_workflow_execution(request, timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
