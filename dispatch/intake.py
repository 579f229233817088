"""Accept a job: row first, workflow second; and the sweeper that finishes what was left.

The row is the promise (a transactional outbox). Temporal may be away for as long as it likes: whoever runs a sweeper
(gateway, worker) starts what waits, sends cancels until they are confirmed, restarts what Temporal lost, and adopts
deliveries that nobody owns.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import (
    Priority,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.contracts import JOB_ID, JobError, JobStatus
from chatjobs.errors import ChatJobsError, InvalidRequest, Problem
from dispatch.server_knowledge import PrefixRule
from dispatch.temporal import runs_of, search_attributes
from domain.errors import StorageUnavailable, TemporalUnavailable
from domain.names import (
    CHAT_JOB,
    JOBS_QUEUE,
    RETRY_NOW,
    WEBHOOK_DELIVERY,
    delivery_workflow_id,
)
from domain.new_jobs import new_job
from domain.payloads import DeliveryOrder, DeliveryReport, DeliveryStart, Ending, Sealed
from domain.timings import Timings
from domain.values import JobHandle, RunRef
from domain.webhook_urls import WebhookPolicy
from storage.jobs.store import JobStore
from storage.webhooks.deliveries import DeliveryStore, OutgoingWebhook, RedeliveryRequest

log = logging.getLogger(__name__)

T = TypeVar("T", JobHandle, OutgoingWebhook, RedeliveryRequest)
LARGE_BYTES = 64 * 1024
"""Bodies from this size on are validated and hashed in a thread, so that other requests are answered meanwhile."""
RPC_TIMEOUT = timedelta(seconds=5)
TASK_TIMEOUT = timedelta(seconds=5)
"""How long a step of a job may hang in a frozen worker; the default is 10 s. Steps take milliseconds, or say that they
wait for the database."""
GLANCE_TIMEOUT = timedelta(seconds=0.5)
"""Whoever asks for a job that does not exist gets the answer at once, even if Temporal hangs."""
MOST_TOLD = 50
"""Webhooks of expired jobs that are being sent."""
SECOND_TRY_SECONDS = 5.0
"""After the first try of a webhook (workflows/webhook_delivery.py has the whole schedule)."""
PAGE = 100
MOST_PAGES = 20
"""After an outage thousands may wait to be started; but they must not keep the cancels waiting."""
AT_ONCE = 10
"""How many of those that wait a sweep looks after at the same time."""
TERMINATED = JobError(code="terminated", message="The job's workflow was ended from outside", retryable=True)


class Intake:
    """``client`` may be None where Temporal is not needed at once: then the sweeper of another process starts the job.

    ``indexed``: the namespace has our search attributes; None finds out when the first job is started. ``policy``
    gives the rules for webhook URLs; without it they are judged only when they are called. ``prefixes`` refuses a
    caller's own prefix that the model's server is known not to continue; without it the attempt does, before it calls.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        client: Client | None,
        indexed: bool | None = False,
        policy: Callable[[], WebhookPolicy] | None = None,
        prefixes: PrefixRule | None = None,
    ) -> None:
        self._jobs = jobs
        self._client = client
        self._indexed = indexed
        self._policy = policy
        self._prefixes = prefixes

    async def accept(
        self,
        body: Any,
        *,
        tenant: str,
        idempotency_key: str | None = None,
        replay_of: str | None = None,
        size: int = 0,
    ) -> JobHandle:
        """Commit the job in a decoded JSON body. From here on it is durable.

        ``size``: bytes of the body as received; a large one is read in a thread.
        Raises InvalidRequest, IdempotencyMismatch, JobIdConflict, StorageUnavailable.
        """
        make = partial(
            new_job,
            body,
            tenant=tenant,
            policy=self._policy() if self._policy is not None else None,
            idempotency_key=idempotency_key,
            replay_of=replay_of,
        )
        job = make() if size < LARGE_BYTES else await asyncio.to_thread(make)
        if self._prefixes is not None and job.request is not None:
            await self._prefixes.check(job.request)
        return await self._jobs.acceptance.accept(job)

    async def replay(
        self, job_id: str, *, tenant: str, overrides: Any = None, idempotency_key: str | None = None
    ) -> JobHandle:
        """A new job with the request of another one, and the fields that ``overrides`` changes (null unsets one).

        Raises JobNotFound, InvalidRequest, ContentDeleted and what ``accept`` raises.
        """
        changes = {} if overrides is None else overrides
        if not isinstance(changes, dict):
            raise InvalidRequest([Problem("", "must be an object with the fields to change")])
        stored = (await self._jobs.queries.request(job_id, tenant)).model_dump_json(exclude_unset=True)
        original = json.loads(stored)
        original.pop("jobId", None)
        if "webhook" in changes or "callback" in changes:  # either is the whole target
            original.pop("callback", None)
            original.pop("webhook", None)
        body = {name: value for name, value in (original | changes).items() if value is not None}
        return await self.accept(
            body, tenant=tenant, replay_of=job_id, idempotency_key=idempotency_key, size=len(stored)
        )

    async def start(self, job: JobHandle) -> None:
        """Start a job's workflow, once, however often it is asked for. Raises TemporalUnavailable."""
        if self._client is None:
            raise TemporalUnavailable
        if self._indexed is None:
            self._indexed = await search_attributes(self._client)
        try:
            await self._client.start_workflow(
                CHAT_JOB,
                {"jobId": job.job_id},
                id=job.job_id,
                task_queue=JOBS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary=f"chat with {job.model}",
                search_attributes=self._search_attributes(job) if self._indexed else None,
                priority=Priority(priority_key=job.priority, fairness_key=_fairness_key(job.tenant)),
                task_timeout=TASK_TIMEOUT,
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            log.info("job has run already", extra={"action": "job_started_before", "job_id": job.job_id})
        except (RPCError, RuntimeError) as error:
            name = error.status.name if isinstance(error, RPCError) else "not reachable"
            raise TemporalUnavailable(f"Temporal did not start the job ({name}); it will be") from None
        await self._jobs.acceptance.workflow_started(job.job_id)

    def _search_attributes(self, job: JobHandle) -> TypedSearchAttributes:
        values = {"ChatStatus": "open", "ChatModel": job.model, "ChatTenant": job.tenant, "ChatReplayOf": job.replay_of}
        return TypedSearchAttributes(
            [
                SearchAttributePair(SearchAttributeKey.for_keyword(name), value)
                for name, value in values.items()
                if value is not None
            ]
        )

    async def cancel(self, job_id: str, *, tenant: str | None = None) -> JobStatus:
        """Commit the wish to cancel, then tell the workflow; if that fails, the sweeper tells it.

        Raises JobNotFound, JobFinished.
        """
        status = await self._jobs.seals.request_cancel(job_id, tenant)
        if not status.terminal:
            try:
                await self.send_cancel(job_id)
            except TemporalUnavailable as error:
                log.warning("cancel will be sent again: %s", error, extra={"action": "cancel_waits", "job_id": job_id})
        return status

    async def runs(self, job_id: str) -> bool:
        """Whether Temporal has an open run of a job. False, too, where Temporal does not say so soon."""
        if self._client is None or not re.fullmatch(JOB_ID, job_id):
            return False
        try:
            # The timeout of a call is that of each of its tries; the SDK makes them for ten seconds.
            async with asyncio.timeout(GLANCE_TIMEOUT.total_seconds()):
                found = await self._client.get_workflow_handle(job_id).describe(rpc_timeout=GLANCE_TIMEOUT)
        except (RPCError, RuntimeError, TimeoutError):
            return False
        if found.status is not WorkflowExecutionStatus.RUNNING or found.workflow_type != CHAT_JOB:
            return False
        first = found.raw_description.workflow_execution_info.first_run_id
        return first in ("", found.run_id)  # a cron is running for ever, and its runs are jobs with other ids

    async def send_cancel(self, job_id: str) -> None:
        """Raises TemporalUnavailable; a workflow that is not running any more is not an error.

        A cron's is not told: Temporal would end the cron. The attempt that has the job reads the wish from the row.
        """
        if self._client is None:
            raise TemporalUnavailable
        run = await self._jobs.queries.run_of(job_id)
        if run.is_cron:
            return
        try:
            handle = self._client.get_workflow_handle(run.workflow_id, run_id=run.run_id)
            await handle.cancel(rpc_timeout=RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            if not isinstance(error, RPCError) or error.status is not RPCStatusCode.NOT_FOUND:
                raise TemporalUnavailable from None


def _fairness_key(tenant: str) -> str:
    """Tenants take turns in Temporal's queues, too; the server takes 64 bytes."""
    return tenant if len(tenant.encode()) <= 64 else hashlib.sha256(tenant.encode()).hexdigest()


async def try_now(client: Client, deliveries: DeliveryStore, wanted: RedeliveryRequest) -> None:
    """Have the run of a delivery make its next try now, or start one, whose schedule begins anew.

    Raises TemporalUnavailable; then a sweeper does it.
    """
    try:
        await client.start_workflow(
            WEBHOOK_DELIVERY,
            DeliveryStart(delivery_id=wanted.id, earlier=wanted.tries),
            id=delivery_workflow_id(wanted.id),
            task_queue=JOBS_QUEUE,
            start_signal=RETRY_NOW,
            static_summary="made again",
            rpc_timeout=RPC_TIMEOUT,
        )
    except (RPCError, RuntimeError) as error:
        name = error.status.name if isinstance(error, RPCError) else "not reachable"
        raise TemporalUnavailable(f"Temporal did not take the delivery ({name}); it will") from None
    await deliveries.mark_notified(wanted)
    log.info("delivery is made again", extra={"action": "delivery_wanted", "delivery_id": wanted.id})


Wake = Callable[[str], Awaitable[None]]
"""Has a waiting job's activity run now, as far as that is possible (activities/waker.py)."""
TryOnce = Callable[[DeliveryOrder], Awaitable[DeliveryReport]]
"""Makes one try of a delivery."""


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await work()
        await asyncio.sleep(seconds)


class Sweeper:
    """Finishes what was left. Several may run at once: everything it does is idempotent.

    Jobs whose time in the queue is over are sealed by it, whether or not there is a worker. With ``try_once`` it makes
    the first try of their webhooks itself, and with ``wake`` their workflows end at once where there is a worker.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        jobs: JobStore,
        deliveries: DeliveryStore,
        client: Client,
        timings: Timings = Timings(),
        try_once: TryOnce | None = None,
        wake: Wake | None = None,
    ) -> None:
        self._intake = intake
        self._jobs = jobs
        self._deliveries = deliveries
        self._client = client
        self._timings = timings
        self._try_once = try_once
        self._wake = wake
        self._told: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Sweep until cancelled. The ends of queue times do not wait for what Temporal is asked."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_every(self._timings.sweep_seconds, self.sweep))
                group.create_task(_every(self._timings.expiry_seconds, self.expire))
        finally:
            for task in self._told:
                task.cancel()
            await asyncio.gather(*self._told, return_exceptions=True)

    async def expire(self) -> None:
        """End the jobs that waited longer than they may, each once, without a call of the model."""
        try:
            ended = await self._jobs.seals.expire()
        except StorageUnavailable as error:
            log.warning("queue times are not looked at: %s", error, extra={"action": "expiry_waits"})
            return
        except Exception:
            log.exception("expiry failed", extra={"action": "expiry_failed"})
            return
        for sealed in ended:
            log.info("job waited too long", extra={"action": "job_expired", "job_id": sealed.job_id})
            if len(self._told) < MOST_TOLD:  # else a sweeper has Temporal send it
                task = asyncio.create_task(self._tell(sealed))
                self._told.add(task)
                task.add_done_callback(self._told.discard)

    async def _tell(self, sealed: Sealed) -> None:
        """The first try of its webhook, then its workflow."""
        try:
            if sealed.delivery_id is not None and self._try_once is not None:
                await self._first_try(sealed.delivery_id, self._try_once)
            if self._wake is not None:
                await self._wake(sealed.job_id)
        except (ChatJobsError, ApplicationError, RPCError, RuntimeError) as error:
            extra = {"action": "expired_untold", "job_id": sealed.job_id}
            log.warning("a sweeper sends this webhook later: %s", error, extra=extra)
        except Exception:
            log.exception("telling failed", extra={"action": "expired_untold", "job_id": sealed.job_id})

    async def _first_try(self, delivery_id: str, try_once: TryOnce) -> None:
        """One try here; the rest of the schedule is for Temporal."""
        report = await try_once(DeliveryOrder(delivery_id=delivery_id, retry_in=SECOND_TRY_SECONDS))
        if report.retry_in is not None:
            tries = 1 if report.counted else 0
            start = DeliveryStart(delivery_id=delivery_id, tries_made=tries, first_pause=report.retry_in)
            await self._client.start_workflow(
                WEBHOOK_DELIVERY,
                start,
                id=delivery_workflow_id(delivery_id),
                task_queue=JOBS_QUEUE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary="of a job that waited too long",
                rpc_timeout=RPC_TIMEOUT,
            )
        await self._deliveries.clear_request(delivery_id)

    async def sweep(self) -> None:
        """Look after everything once."""
        unstarted_after = timedelta(seconds=self._timings.unstarted_after_seconds)
        for _ in range(MOST_PAGES):
            unstarted = self._jobs.sweep.unstarted(older_than=unstarted_after, limit=PAGE)
            if await self._each(unstarted, self._start) < PAGE:
                break
        await self._each(self._jobs.sweep.to_cancel(), self._cancel)
        silent_after = timedelta(seconds=self._timings.silent_after_seconds)
        await self._each(self._jobs.sweep.silent(since=silent_after), self._look_after)
        await self._each(self._deliveries.take_requests(), self._try_now)
        overdue_after = timedelta(seconds=self._timings.overdue_after_seconds)
        await self._each(self._deliveries.overdue(overdue_after), self._adopt)

    async def _each(self, found: Awaitable[Sequence[T]], look_after: Callable[[T], Awaitable[None]]) -> int:
        """How many were found, 0 if they all have to wait: Temporal or the database is away.

        One that cannot be helped does not keep the others waiting.
        """
        count = 0
        try:
            waiting = await found
            count = len(waiting)
            each = iter(waiting)
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._work_off(each, look_after))
        except* (TemporalUnavailable, StorageUnavailable, RPCError) as errors:
            error, count = errors.exceptions[0], 0
            log.warning("sweep waits: %s", error, extra={"action": "sweep_waits", "sweep": look_after.__name__})
        except* Exception:
            count = 0
            log.exception("sweep failed", extra={"action": "sweep_failed", "sweep": look_after.__name__})
        return count

    async def _work_off(self, waiting: Iterator[T], look_after: Callable[[T], Awaitable[None]]) -> None:
        for one in waiting:
            await self._guarded(look_after, one)

    async def _guarded(self, look_after: Callable[[T], Awaitable[None]], one: T) -> None:
        try:
            await look_after(one)
        except (TemporalUnavailable, StorageUnavailable, RPCError):
            raise
        except Exception:
            which = (
                one.job_id if isinstance(one, JobHandle) else one.id
            )  # of a delivery never more: it holds the answer
            log.exception("sweep failed for %s", which, extra={"action": "sweep_failed", "sweep": look_after.__name__})

    async def _start(self, job: JobHandle) -> None:
        await self._intake.start(job)
        log.info("job started by the sweeper", extra={"action": "job_swept", "job_id": job.job_id})

    async def _cancel(self, job: JobHandle) -> None:
        await self._intake.send_cancel(job.job_id)

    async def _look_after(self, job: JobHandle) -> None:
        """A job that has not moved for a while: is there still a run?"""
        match await self._state(job.job_id):
            case None:
                await self._intake.start(job)
                log.warning("Temporal lost a job; started again", extra={"action": "job_lost", "job_id": job.job_id})
            case WorkflowExecutionStatus.RUNNING:
                await self._jobs.sweep.touch(job.job_id)
            case _:
                ending = Ending(job_id=job.job_id, status=JobStatus.FAILED, error=TERMINATED)
                await self._jobs.seals.seal(ending, run_id="")
                log.warning("job was terminated", extra={"action": "job_terminated", "job_id": job.job_id})

    async def _state(self, job_id: str) -> WorkflowExecutionStatus | None:
        """The state of a job's newest run; None if Temporal does not know it."""
        run = await self._jobs.queries.run_of(job_id)
        try:
            found = await runs_of(self._client, run)
            if not found and run.workflow_id != job_id:  # lost, and started again under the job's own id
                found = await runs_of(self._client, RunRef(job_id))
        except RuntimeError:  # a lazy client that cannot connect
            raise TemporalUnavailable from None
        return found[-1].status if found else None

    async def _try_now(self, wanted: RedeliveryRequest) -> None:
        await try_now(self._client, self._deliveries, wanted)

    async def _adopt(self, webhook: OutgoingWebhook) -> None:
        await self._client.start_workflow(
            WEBHOOK_DELIVERY,
            DeliveryStart(delivery_id=webhook.id, tries_made=webhook.tries),
            id=delivery_workflow_id(webhook.id),
            task_queue=JOBS_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary="adopted by the sweeper",
            rpc_timeout=RPC_TIMEOUT,
        )
        log.info("delivery adopted", extra={"action": "delivery_adopted", "delivery_id": webhook.id})
