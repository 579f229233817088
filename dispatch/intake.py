"""Accepts, starts and cancels jobs: the row in storage first, Temporal second (a transactional outbox).

The row is the promise. While Temporal is unavailable, accepted jobs and requests to cancel wait in storage, and the
sweeper sends them later (dispatch/sweeper.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import (
    Priority,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.contracts import JOB_ID
from chatjobs.errors import InvalidRequest, JobNotFound, Problem
from dispatch.server_knowledge import PrefixRule
from dispatch.temporal import RPC_TIMEOUT, search_attributes
from domain.conversations import NO_PREVIOUS, ThreadPlace, follow_up
from domain.errors import TemporalUnavailable
from domain.names import CHAT_JOB, JOBS_QUEUE, REVISION
from domain.new_jobs import new_job
from domain.payloads import JobRef
from domain.replays import replayed
from domain.schemas import names_schema
from domain.settings import USUAL_BODY_BYTES
from domain.values import JobHandle, NewJob, ResponseForm
from domain.webhook_urls import WebhookPolicy
from storage.jobs.store import JobStore

log = logging.getLogger(__name__)

FAILED_ONLY = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
"""After a run that failed or was cancelled another one may follow; after one that completed, none."""
LARGE_BYTES = 64 * 1024
"""Bodies from this size on are decoded, validated and hashed in a thread, so that others are answered meanwhile."""
TASK_TIMEOUT = timedelta(seconds=5)
"""How long a workflow task may hang in a frozen worker; the default is 10 s. Local activities take milliseconds, or
report that they wait for the database."""
GLANCE_TIMEOUT = timedelta(seconds=0.5)
"""A request for a job that does not exist is answered within this time even if Temporal hangs."""


def place_in_queues(tenant: str, priority: int) -> Priority:
    """The priority of a job's run. Tenants take turns in Temporal's queues, too."""
    name = tenant.encode()
    fairness = tenant if len(name) <= 64 else hashlib.sha256(name).hexdigest()  # the server takes 64 bytes
    return Priority(priority_key=priority, fairness_key=fairness)


class Intake:
    """``client``: None where Temporal is not needed at once; the sweeper of another process then starts the jobs.

    ``indexed``: whether the namespace has our search attributes; None: looked up when the first job is started.
    ``policy`` gives the rules for webhook URLs; without it they are judged only when they are called. ``prefixes``
    refuses a caller's own prefix that the model's server is known not to continue; without it the attempt does so.
    ``most_bytes``: of a request with the whole conversation that it goes on with.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        client: Client | None,
        indexed: bool | None = False,
        policy: Callable[[], WebhookPolicy] | None = None,
        prefixes: PrefixRule | None = None,
        most_bytes: int = USUAL_BODY_BYTES,
    ) -> None:
        self._jobs = jobs
        self._client = client
        self._indexed = indexed
        self._policy = policy
        self._prefixes = prefixes
        self._most_bytes = most_bytes

    @property
    def policy(self) -> WebhookPolicy | None:
        """The rules for webhook URLs now."""
        return self._policy() if self._policy is not None else None

    async def accept(
        self,
        body: Any,
        *,
        tenant: str,
        idempotency_key: str | None = None,
        replay_of: str | None = None,
        place: ThreadPlace | None = None,
        size: int = 0,
        response: ResponseForm | None = None,
    ) -> JobHandle:
        """Commit the job in a decoded JSON body; it is durable when this returns.

        ``size``: bytes of the body as received; a large one is read in a thread. ``place``: that of the job that is
        replayed. ``response``: see ``new_job``. Raises InvalidRequest, IdempotencyMismatch, JobIdConflict,
        StorageUnavailable; for a request that goes on with a conversation also JobNotFound, JobRunning, ContentDeleted.
        """
        identity = {"idempotency_key": idempotency_key, "replay_of": replay_of, "place": place, "response": response}
        job = await self.checked(body, tenant=tenant, size=size, **identity)
        if job.lacks_history:
            # The same request again is the same job, whatever has become of the previous one.
            if (known := await self._jobs.acceptance.known(job)) is not None:
                return known
            job = await self._followed(job)
        return await self._jobs.acceptance.accept(job)

    async def _followed(self, job: NewJob) -> NewJob:
        """The job with the whole conversation. Raises JobNotFound, JobRunning, ContentDeleted, InvalidRequest."""
        try:
            turn = await self._jobs.queries.conversation_turn(job.previous_job_id or "", job.tenant)
        except JobNotFound:
            raise JobNotFound(NO_PREVIOUS) from None
        return await asyncio.to_thread(follow_up, job, turn, self._most_bytes)

    async def checked(self, body: Any, *, tenant: str, size: int = 0, **identity: Any) -> NewJob:
        """The job in a decoded JSON body, which is not stored yet. ``identity``: see ``new_job``.

        Raises InvalidRequest, WebhookUrlRefused.
        """
        make = partial(new_job, body, tenant=tenant, policy=self.policy, **identity)
        job = await asyncio.to_thread(make) if size >= LARGE_BYTES or names_schema(body) else make()
        if self._prefixes is not None and job.request is not None:
            await self._prefixes.check(job.request)
        return job

    async def replay(
        self, job_id: str, *, tenant: str, overrides: Any = None, idempotency_key: str | None = None
    ) -> JobHandle:
        """A new job with the request of another one, and the fields that ``overrides`` changes (null unsets one). It
        starts at once unless they have a ``startAt``.

        Raises JobNotFound, InvalidRequest, ContentDeleted and what ``accept`` raises.
        """
        changes = {} if overrides is None else overrides
        if not isinstance(changes, dict):
            raise InvalidRequest([Problem("", "must be an object with the fields to change")])
        stored = (await self._jobs.queries.request(job_id, tenant)).model_dump_json(exclude_unset=True)
        place = ThreadPlace.of(await self._jobs.queries.outline(job_id, tenant))
        body = replayed(json.loads(stored), changes)
        return await self.accept(
            body, tenant=tenant, replay_of=job_id, place=place, idempotency_key=idempotency_key, size=len(stored)
        )

    async def start(self, job: JobHandle) -> None:
        """Start a job's workflow; calling again has no effect. Raises TemporalUnavailable.

        A job that goes on after its end has another run of the same workflow. While the earlier run is still at its end
        (it sends the webhook), the job is left to a sweeper.
        """
        if self._client is None:
            raise TemporalUnavailable
        if self._indexed is None:
            self._indexed = await search_attributes(self._client)
        again = job.revision > 1
        try:
            await self._client.start_workflow(
                CHAT_JOB,
                JobRef(job_id=job.job_id),
                id=job.job_id,
                task_queue=JOBS_QUEUE,
                id_reuse_policy=FAILED_ONLY if again else WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL if again else WorkflowIDConflictPolicy.USE_EXISTING,
                memo={REVISION: job.revision} if again else None,
                static_summary=f"chat with {job.model}",
                search_attributes=self._search_attributes(job) if self._indexed else None,
                priority=place_in_queues(job.tenant, job.priority),
                task_timeout=TASK_TIMEOUT,
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            if again and not await _has_run(self._client, job):
                raise TemporalUnavailable("The job's earlier run is still at its end; another one follows") from None
            log.info("job has run already", extra={"action": "job_started_before", "job_id": job.job_id})
        except (RPCError, RuntimeError) as error:
            name = error.status.name if isinstance(error, RPCError) else "not reachable"
            raise TemporalUnavailable(f"Temporal did not start the job ({name}); it will be") from None
        await self._jobs.acceptance.workflow_started(job.job_id, job.revision)

    def _search_attributes(self, job: JobHandle) -> TypedSearchAttributes:
        values = {"ChatStatus": "open", "ChatModel": job.model, "ChatTenant": job.tenant, "ChatReplayOf": job.replay_of}
        return TypedSearchAttributes(
            [
                SearchAttributePair(SearchAttributeKey.for_keyword(name), value)
                for name, value in values.items()
                if value is not None
            ]
        )

    async def runs(self, job_id: str) -> bool:
        """Whether Temporal has an open run of a job; False also where Temporal does not answer soon."""
        if self._client is None or not re.fullmatch(JOB_ID, job_id):
            return False
        try:
            # rpc_timeout limits each of the SDK's tries, which go on for ten seconds.
            async with asyncio.timeout(GLANCE_TIMEOUT.total_seconds()):
                found = await self._client.get_workflow_handle(job_id).describe(rpc_timeout=GLANCE_TIMEOUT)
        except (RPCError, RuntimeError, TimeoutError):
            return False
        if found.status is not WorkflowExecutionStatus.RUNNING or found.workflow_type != CHAT_JOB:
            return False
        first = found.raw_description.workflow_execution_info.first_run_id
        return first in ("", found.run_id)  # a cron is running for ever, and its runs are jobs with other ids

    async def send_cancel(self, job_id: str) -> None:
        """Cancel a job's workflow; one that is not running any more is not an error. Raises TemporalUnavailable.

        The workflow of a cron or batch is not cancelled, which would end more than this job: the attempt reads the
        request from the row.
        """
        if self._client is None:
            raise TemporalUnavailable
        run = await self._jobs.queries.run_of(job_id)
        if run.is_cron or run.shared:
            return
        try:
            handle = self._client.get_workflow_handle(run.workflow_id, run_id=run.run_id)
            await handle.cancel(rpc_timeout=RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            if not isinstance(error, RPCError) or error.status is not RPCStatusCode.NOT_FOUND:
                raise TemporalUnavailable from None


async def _has_run(client: Client, job: JobHandle) -> bool:
    """Whether the newest run of a job's workflow is one of this revision, not the one that ended the job before.

    Raises TemporalUnavailable.
    """
    try:
        found = await client.get_workflow_handle(job.job_id).describe(rpc_timeout=RPC_TIMEOUT)
        revision = await found.memo_value(REVISION, 1, type_hint=int)
    except (RPCError, RuntimeError):
        raise TemporalUnavailable from None
    return found.status is WorkflowExecutionStatus.COMPLETED or revision == job.revision
