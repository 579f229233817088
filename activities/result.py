"""The local activities: insert the row of a job that was started inline or by a schedule, and seal a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.service import RPCError

from activities import failures
from activities.schedules import schedule_of
from chatjobs.contracts import (
    MAX_INLINE_RESULT_BYTES,
    ChatResult,
    JobError,
    JobStart,
    JobStatus,
    JsonObject,
    WireModel,
    parse,
)
from chatjobs.errors import (
    ChatJobsError,
    ContentDeleted,
    InvalidRequest,
    JobNotFound,
    JobRunning,
    Problem,
    WebhookUrlRefused,
)
from domain.conversations import NO_PREVIOUS, follow_up
from domain.names import job_id_of_scheduled, status_path
from domain.new_jobs import invalid_job, new_job
from domain.payloads import Accepted, Ending, ScheduledAnswer, ScheduledRef, Sealed
from domain.settings import USUAL_BODY_BYTES
from domain.values import JobHandle, NewJob, RunRef, StoredSchedule
from domain.webhook_urls import WebhookPolicy
from storage.jobs.store import JobStore

USAGE = 'start ChatJob with {"request": {…}} or {"jobId": "…"}'
OWN_ID = 'must be left out: each run of a cron or Schedule is a new job; give {"request": {…}}'
BAD_ID = (
    "The workflow's id is the job's, and it cannot be one: use 1 to 128 letters, digits, - and _ "
    "(for a cron or Schedule at most 96, the rest is added for each run)"
)
NOT_FOLLOWED = "/previousJobId: could not be followed when the job was accepted; start it again under another id"
RPC_TIMEOUT = timedelta(seconds=5)


class AcceptOrder(WireModel):
    """``start`` is the workflow's argument as it came, valid or not; ``problem`` says why it could not be read."""

    job_id: str
    start: Any
    problem: str | None = None


class SealOrder(WireModel):
    ending: Ending
    inline: bool
    """The answer goes back through Temporal, as the request came."""
    run_cancelled: bool
    """The run was cancelled through Temporal (and not, or not yet, only through our database)."""


class ResultActivities:
    """``tenant`` owns the jobs that are started straight through Temporal; ``indexed``: see payloads.Accepted.

    ``run_url`` makes the link to a run in the Temporal UI. ``policy`` gives the rules for webhook URLs; without it they
    are judged only when they are called. ``most_bytes``: of a request with the conversation that it goes on with.
    ``announce`` has the first tries of deliveries to endpoints of all jobs made, without waiting for them; without it a
    sweeper has.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        run_url: Callable[[RunRef], str],
        tenant: str,
        indexed: bool,
        policy: Callable[[], WebhookPolicy] | None = None,
        most_bytes: int = USUAL_BODY_BYTES,
        announce: Callable[[Sealed], None] | None = None,
    ) -> None:
        self._jobs = jobs
        self._run_url = run_url
        self._tenant = tenant
        self._indexed = indexed
        self._policy = policy
        self._most_bytes = most_bytes
        self._announce = announce

    @activity.defn
    async def accept_inline(self, order: AcceptOrder) -> Accepted:
        """Insert the row of a job that was started with its request inline, if it is absent.

        Fails with `job_id_conflict` if the row of another request is there, and with `validation_failed` where the
        workflow's id cannot be a job's: then there can be no row.
        """
        _check_id(order.job_id)
        job, error = await asyncio.to_thread(self._read, order, _own_run(order.job_id))
        try:
            accepted, refused = await self._stored_before(job)
            if accepted is None and job.lacks_history:
                job, refused = await self._followed(job, order)
            accepted = accepted or await self._jobs.acceptance.accept(job)
        except ChatJobsError as problem:
            raise failures.from_storage(problem, pause=None) from None
        return Accepted(
            job_id=accepted.job_id,
            tenant=job.tenant,
            model=job.request.model if job.request else "",
            indexed=self._indexed,
            error=error or refused,
        )

    def _read(self, order: AcceptOrder, run: RunRef | None) -> tuple[NewJob, JobError | None]:
        """The job in a workflow's argument, and why it can never run."""
        body = order.problem or order.start
        try:
            body = _body(order, repeated=run is not None)
            policy = self._policy() if self._policy is not None else None
            job = new_job(body, job_id=order.job_id, tenant=self._tenant, policy=policy, started=True, run=run)
        except (InvalidRequest, WebhookUrlRefused) as problem:  # without a request, no webhook is sent either
            error = JobError(code=problem.code, message=problem.message)
            return invalid_job(body, job_id=order.job_id, tenant=self._tenant, run=run), error
        if job.request is not None and job.request.job_id not in (None, order.job_id):
            why = OWN_ID if run else "must be the workflow's id, or be left out"
            wrong_id = InvalidRequest([Problem("/jobId", why)])
            return job, JobError(code=wrong_id.code, message=wrong_id.message)
        return job, None

    async def _stored_before(self, job: NewJob) -> tuple[JobHandle | None, JobError | None]:
        """A job that goes on with a conversation, where an earlier try of the activity has stored it, and why it can
        never run. The previous job may have ended or been deleted since: what was decided then stays."""
        known = await self._jobs.acceptance.known(job) if job.lacks_history else None
        if known is None or (await self._jobs.queries.conversation_turn(known.job_id)).request is not None:
            return known, None
        return known, JobError(code=InvalidRequest.code, message=NOT_FOLLOWED)

    async def _followed(self, job: NewJob, order: AcceptOrder) -> tuple[NewJob, JobError | None]:
        """The job with the conversation that it goes on with, or a job that can only fail, and why."""
        try:
            turn = await self._jobs.queries.conversation_turn(job.previous_job_id or "", self._tenant)
            return follow_up(job, turn, self._most_bytes), None
        except JobNotFound:
            refused: ChatJobsError = JobNotFound(NO_PREVIOUS)
        except (JobRunning, ContentDeleted, InvalidRequest) as problem:
            refused = problem
        body = _body(order, repeated=job.run is not None)
        failing = invalid_job(body, job_id=order.job_id, tenant=self._tenant, run=job.run)
        return failing, JobError(code=refused.code, message=refused.message)

    @activity.defn
    async def accept_scheduled(self, order: ScheduledRef) -> ScheduledAnswer:
        """Insert the row of the job that this run of a schedule is, if it is absent."""
        info = activity.info()
        run = RunRef(info.workflow_id or "", info.workflow_run_id)
        try:
            schedule = await schedule_of(self._jobs.schedules, order, run.workflow_id)
            if isinstance(schedule, str):
                return ScheduledAnswer(reason=schedule)
            return ScheduledAnswer(accepted=await self._scheduled(schedule, run))
        except ChatJobsError as problem:
            raise failures.from_storage(problem, pause=None) from None

    async def _scheduled(self, schedule: StoredSchedule, run: RunRef) -> Accepted:
        job_id, error = job_id_of_scheduled(run.workflow_id), None
        if await self._jobs.queries.exists(job_id, schedule.tenant):  # also where the schedule has changed since
            known = await self._jobs.queries.outline(job_id, schedule.tenant)
            return Accepted(job_id=job_id, tenant=schedule.tenant, model=known.model, indexed=self._indexed)
        identity: dict[str, Any] = {"job_id": job_id, "tenant": schedule.tenant, "run": run, "schedule_id": schedule.id}
        body = json.loads(schedule.request or "{}")
        try:
            policy = self._policy() if self._policy is not None else None
            job = await asyncio.to_thread(new_job, body, policy=policy, started=True, **identity)
        except (InvalidRequest, WebhookUrlRefused) as problem:  # the rules have changed since the schedule was made
            error = JobError(code=problem.code, message=problem.message)
            job = invalid_job(body, **identity)
        await self._jobs.acceptance.accept(job)
        model = job.request.model if job.request else ""
        return Accepted(job_id=job_id, tenant=schedule.tenant, model=model, indexed=self._indexed, error=error)

    @activity.defn
    async def store_result(self, order: SealOrder) -> Sealed:
        """Seal a job: final row, terminal event, compacted transcript and stored delivery in one transaction."""
        run_id = activity.info().workflow_run_id or ""
        try:
            sealed = await self._jobs.seals.seal(order.ending, run_id=run_id)
            result = await self._inline(sealed.job_id) if order.inline else None
        except ChatJobsError as problem:
            raise failures.from_storage(problem, pause=None) from None
        if sealed.status is JobStatus.CANCELLED and not order.run_cancelled:
            await _cancel_run()
        if self._announce is not None and sealed.endpoint_deliveries:
            self._announce(sealed)
        changes = {"indexed": self._indexed, "result": result, "endpoint_deliveries": ()}
        return sealed.model_copy(update=changes)

    async def _inline(self, job_id: str) -> ChatResult:
        job = await self._jobs.queries.get(job_id)
        fields = {name: getattr(job, name) for name in ChatResult.model_fields}
        result = ChatResult(**fields | {"temporal_url": self._run_url(job.run)})
        if len(result.model_dump_json().encode()) <= MAX_INLINE_RESULT_BYTES:
            return result
        left_out = {"content": None, "reasoning": None, "tool_calls": None, "content_parts": None, "extra": None}
        url = status_path(job_id)
        return result.model_copy(update={**left_out, "content_omitted": True, "status_url": url})


async def _cancel_run() -> None:
    """Cancel this run through Temporal: a run may end as cancelled only if it was."""
    info = activity.info()
    handle = activity.client().get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
    try:
        await handle.cancel(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        raise failures.again("temporal_unavailable", f"The run was not cancelled: {error.status.name}", None) from None


def _own_run(job_id: str) -> RunRef | None:
    """The run of a cron or Schedule, whose workflow id is not the job's."""
    info = activity.info()
    if info.workflow_id in (None, job_id):
        return None
    return RunRef(info.workflow_id, info.workflow_run_id)


def _check_id(job_id: str) -> None:
    try:
        parse(JobStart, {"jobId": job_id})
    except InvalidRequest as problem:
        raise failures.permanent(problem.code, BAD_ID) from None


def _body(order: AcceptOrder, *, repeated: bool) -> JsonObject:
    """The request in a workflow's argument, not yet validated. Raises InvalidRequest."""
    if order.problem is not None:
        raise InvalidRequest([Problem("", f"{order.problem}; {USAGE}")])
    start = parse(JobStart, order.start)
    if start.request is None and repeated:
        raise InvalidRequest([Problem("/jobId", OWN_ID)])
    if start.request is None:
        raise InvalidRequest([Problem("/jobId", "must be the id of this workflow")])
    return start.request
