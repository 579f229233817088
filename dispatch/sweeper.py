"""The sweeper: finishes in Temporal and storage what the process that began it could not.

Each gateway and each worker runs one. It starts accepted jobs whose workflow was not started, sends cancellations until
they are confirmed, starts jobs again that Temporal lost, ends jobs whose time in the queue is over, starts the runs of
deliveries that have none, makes Temporal's Schedules the same as ours, and deletes content that is not to be kept. All
of it is idempotent, so that several sweepers may run at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError

from chatjobs.contracts import JobError, JobStatus
from dispatch.batches import BatchDispatch
from dispatch.deliveries import adopt, try_now
from dispatch.first_tries import FirstTries
from dispatch.intake import Intake
from dispatch.job_schedules import JobSchedules
from dispatch.temporal import runs_of
from domain.errors import StorageUnavailable, TemporalUnavailable
from domain.payloads import Ending
from domain.timings import Timings
from domain.values import JobHandle, RunRef, StoredSchedule
from storage.jobs.store import JobStore
from storage.webhooks.deliveries import DeliveryStore, OutgoingWebhook, RedeliveryRequest

log = logging.getLogger(__name__)

T = TypeVar("T", JobHandle, OutgoingWebhook, RedeliveryRequest, StoredSchedule)
PAGE = 100
MOST_PAGES = 20
"""After an outage thousands of jobs may have to be started; cancellations must not wait for all of them."""
AT_ONCE = 10
"""Items that a sweep processes at the same time."""
TERMINATED = JobError(code="terminated", message="The job's workflow was ended from outside", retryable=True)


class Sweeper:
    """Runs the sweeps of one process.

    Jobs whose time in the queue is over are sealed here, whether or not there is a worker; ``first_tries`` sends their
    webhooks, without it Temporal does.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        jobs: JobStore,
        deliveries: DeliveryStore,
        client: Client,
        timings: Timings = Timings(),
        first_tries: FirstTries | None = None,
        batches: BatchDispatch | None = None,
    ) -> None:
        self._intake = intake
        self._jobs = jobs
        self._deliveries = deliveries
        self._schedules = JobSchedules(jobs=jobs, intake=intake, client=client, timings=timings)
        self._client = client
        self._timings = timings
        self._first_tries = first_tries
        self._batches = batches

    async def run(self) -> None:
        """Sweep until cancelled. Queue times end independently of Temporal's answers."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_every(self._timings.sweep_seconds, self.sweep))
            group.create_task(_every(self._timings.expiry_seconds, self.expire))
            group.create_task(_every(self._timings.sweep_seconds, self.sweep_batches))
            group.create_task(_every(self._timings.due_seconds, self.start_due))

    # --------------------------------------------------------------------------------------------- expiry

    async def expire(self) -> None:
        """Fail the jobs whose time in the queue is over, each once, without a call of the model."""
        try:
            expired = await self._jobs.seals.expire()
        except StorageUnavailable as error:
            log.warning("queue times are not looked at: %s", error, extra={"action": "expiry_waits"})
            return
        except Exception:
            log.exception("expiry failed", extra={"action": "expiry_failed"})
            return
        for sealed in expired:
            log.info("job waited too long", extra={"action": "job_expired", "job_id": sealed.job_id})
            if self._first_tries is not None:
                self._first_tries.soon(sealed)

    # ---------------------------------------------------------------------------------------------- sweep

    async def start_due(self) -> None:
        """Start the delayed jobs whose ``startAt`` has come."""
        taken_before = timedelta(seconds=self._timings.unstarted_after_seconds)
        for _ in range(MOST_PAGES):
            if await self._each(self._jobs.sweep.due(older_than=taken_before, limit=PAGE), self._start) < PAGE:
                break

    async def sweep(self) -> None:
        """Process everything that is due, once."""
        unstarted_after = timedelta(seconds=self._timings.unstarted_after_seconds)
        for _ in range(MOST_PAGES):
            unstarted = self._jobs.sweep.unstarted(older_than=unstarted_after, limit=PAGE)
            if await self._each(unstarted, self._start) < PAGE:
                break
        await self._each(self._jobs.sweep.to_cancel(), self._cancel)
        silent_after = timedelta(seconds=self._timings.silent_after_seconds)
        await self._each(self._jobs.sweep.silent(since=silent_after), self._check)
        await self._each(self._deliveries.take_requests(), self._try_now)
        overdue_after = timedelta(seconds=self._timings.overdue_after_seconds)
        await self._each(self._deliveries.overdue(overdue_after), self._adopt)
        await self._each(self._schedules.due(), self._schedules.apply)
        unkept_after = timedelta(seconds=self._timings.unkept_seconds)
        await self._each(self._jobs.sweep.unkept(ended=unkept_after), self._delete)

    async def sweep_batches(self) -> None:
        """Process the batches that are due, beside the jobs: the end of a large batch takes seconds."""
        if self._batches is not None:
            unstarted_after = timedelta(seconds=self._timings.unstarted_after_seconds)
            await self._batches.sweep(unstarted_after, timedelta(seconds=self._timings.silent_after_seconds))

    async def _each(self, found: Awaitable[Sequence[T]], process: Callable[[T], Awaitable[None]]) -> int:
        """Process what was found, and return its number; 0 if Temporal or the database is unavailable.

        An item that fails does not keep the others waiting.
        """
        count = 0
        try:
            items = await found
            count = len(items)
            rest = iter(items)
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._process(rest, process))
        except* (TemporalUnavailable, StorageUnavailable, RPCError) as errors:
            error, count = errors.exceptions[0], 0
            log.warning("sweep waits: %s", error, extra={"action": "sweep_waits", "sweep": process.__name__})
        except* Exception:
            count = 0
            log.exception("sweep failed", extra={"action": "sweep_failed", "sweep": process.__name__})
        return count

    async def _process(self, rest: Iterator[T], process: Callable[[T], Awaitable[None]]) -> None:
        for item in rest:
            try:
                await process(item)
            except (TemporalUnavailable, StorageUnavailable, RPCError):
                raise
            except Exception:
                # Of a delivery only the id: it has the job's answer.
                which = item.job_id if isinstance(item, JobHandle) else item.id
                extra = {"action": "sweep_failed", "sweep": process.__name__}
                log.exception("sweep failed for %s", which, extra=extra)

    async def _start(self, job: JobHandle) -> None:
        await self._intake.start(job)
        log.info("job started by the sweeper", extra={"action": "job_swept", "job_id": job.job_id})

    async def _cancel(self, job: JobHandle) -> None:
        await self._intake.send_cancel(job.job_id)

    async def _check(self, job: JobHandle) -> None:
        """Whether a job that has not moved for a while still has a run; if not, it is started again or failed."""
        match await self._status(job.job_id):
            case None:
                await self._intake.start(job)
                log.warning("Temporal lost a job; started again", extra={"action": "job_lost", "job_id": job.job_id})
            case WorkflowExecutionStatus.RUNNING:
                await self._jobs.sweep.touch(job.job_id)
            case _:
                ending = Ending(job_id=job.job_id, status=JobStatus.FAILED, error=TERMINATED)
                await self._jobs.seals.seal(ending, run_id="")
                log.warning("job was terminated", extra={"action": "job_terminated", "job_id": job.job_id})

    async def _status(self, job_id: str) -> WorkflowExecutionStatus | None:
        """The status of a job's newest run; None if Temporal does not know it."""
        run = await self._jobs.queries.run_of(job_id)
        try:
            found = await runs_of(self._client, run)
            if not found and run.workflow_id != job_id:  # lost, and started again under the job's own id
                found = await runs_of(self._client, RunRef(job_id))
        except RuntimeError:  # a lazy client that cannot connect
            raise TemporalUnavailable from None
        return found[-1].status if found else None

    async def _delete(self, job: JobHandle) -> None:
        await self._jobs.seals.delete(job.job_id)

    async def _try_now(self, request: RedeliveryRequest) -> None:
        await try_now(self._client, self._deliveries, request)

    async def _adopt(self, webhook: OutgoingWebhook) -> None:
        await adopt(self._client, webhook)


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await work()
        await asyncio.sleep(seconds)
