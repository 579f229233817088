"""Wakes waiting jobs when their turn is near, before the delay of their retry is over.

A job that waits long for its turn is an activity in Temporal's backoff, with the delay that was right at its request.
When a limit is raised, a pause ends or others leave the queue, its turn comes earlier. Changing the options of such an
activity makes Temporal compute the end of its backoff anew, from the retry policy, which is half a second: it runs
at once, and its attempt number goes on (a reset would let it start again).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import UpdateActivityOptionsRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from domain.errors import StorageError
from domain.names import COMPLETE_CHAT
from storage.jobs.queries import JobQueries
from storage.rate_limits.limiter import Limiter

LOOK_SECONDS = 0.2
AT_ONCE = 20
"""Concurrent calls of Temporal."""
RPC_TIMEOUT = timedelta(seconds=2)
UNSUPPORTED = (RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.PERMISSION_DENIED)

log = logging.getLogger(__name__)


class Waker:
    """Wakes jobs through Temporal. ``heartbeat`` is the activity's own timeout: one option has to be changed."""

    def __init__(self, *, limiter: Limiter, jobs: JobQueries, client: Client, heartbeat: timedelta) -> None:
        self._limiter = limiter
        self._jobs = jobs
        self._client = client
        self._heartbeat = heartbeat
        self._warned = False

    async def run(self) -> None:
        """Wake jobs until cancelled. Several worker processes may run this: a job is woken by one of them."""
        while True:
            try:
                await self.wake_due()
            except StorageError as error:  # jobs still run again when their own delay is over
                log.warning("waiting jobs are not woken: %s", error, extra={"action": "waker_waits"})
            except Exception:
                log.exception("waker failed", extra={"action": "waker_failed"})
            await asyncio.sleep(LOOK_SECONDS)

    async def wake_due(self) -> None:
        """Wake the jobs whose turn is near."""
        due = iter(await self._limiter.take_due())
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._wake_each(due))

    async def _wake_each(self, due: Iterator[str]) -> None:
        for job_id in due:
            await self.wake(job_id)

    async def wake(self, job_id: str) -> None:
        """Have a job's completion run now if it waits for a retry. Any other is left as it is."""
        run = await self._jobs.run_of(job_id)
        options = ActivityOptions(heartbeat_timeout=_duration(self._heartbeat))
        request = UpdateActivityOptionsRequest(
            namespace=self._client.namespace,
            execution=WorkflowExecution(workflow_id=run.workflow_id, run_id=run.run_id or ""),
            type=COMPLETE_CHAT,
            activity_options=options,
            update_mask=FieldMask(paths=["heartbeat_timeout"]),
        )
        try:
            async with asyncio.timeout(RPC_TIMEOUT.total_seconds()):
                await self._client.workflow_service.update_activity_options(request, timeout=RPC_TIMEOUT)
        except RPCError as error:
            self._failed(job_id, error)
        except (RuntimeError, TimeoutError):  # without Temporal nothing runs anyway
            log.debug("job not woken: Temporal is not reachable", extra={"action": "job_not_woken", "job_id": job_id})

    def _failed(self, job_id: str, error: RPCError) -> None:
        if error.status in UNSUPPORTED:
            if not self._warned:
                words = "this Temporal server cannot wake waiting jobs; they run again when their own delay is over"
                log.warning("%s (%s)", words, error.status.name, extra={"action": "waker_unsupported"})
            self._warned = True
        elif error.status is not RPCStatusCode.NOT_FOUND:  # not found: it has just started, or ended
            log.info("job not woken: %s", error.status.name, extra={"action": "job_not_woken", "job_id": job_id})


def _duration(value: timedelta) -> Duration:
    found = Duration()
    found.FromTimedelta(value)
    return found
