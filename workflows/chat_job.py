"""ChatJob: complete the chat, store the result, notify the webhook."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError

from chatjobs.contracts import ChatResult, JobError, JobOutcome, JobStatus, WorkflowStatus
from domain.errors import FenceLost
from domain.names import ACCEPTED_UPDATE, CHAT_JOB, REVISION, STATUS_QUERY, job_id_of_run
from domain.payloads import (
    Accepted,
    DeliveryReport,
    Ending,
    JobRef,
    NoJob,
    ScheduledAnswer,
    ScheduledRef,
    Sealed,
)
from workflows import options
from workflows.inputs import Input, lenient
from workflows.steps import first_try, shielded

with workflow.unsafe.imports_passed_through():
    from activities.completion import CompletionActivities
    from activities.failures import job_error
    from activities.result import AcceptOrder, ResultActivities, SealOrder

T = TypeVar("T")
OWN_JOB = "cron-run-has-own-job"
"""A patch: a cron that names a stored job is refused. Earlier versions gave that job's answer from each of its runs."""
CANCEL_ARRIVES = timedelta(seconds=30)
STATUS, MODEL, TENANT = (SearchAttributeKey.for_keyword(name) for name in ("ChatStatus", "ChatModel", "ChatTenant"))


@workflow.defn(name=CHAT_JOB)
class ChatJob:
    """One durable chat job. The argument is ``{"jobId"}`` of a stored job, ``{"request"}`` inline, or ``{"schedule"}``
    where one of our schedules starts it.

    The workflow's id is the job's; each run of a cron or Schedule is a job of its own (domain/names.py).
    """

    def __init__(self) -> None:
        info = workflow.info()
        self._cron = bool(info.cron_schedule)
        run_id = info.original_execution_run_id or info.run_id
        self._job_id = job_id_of_run(info.workflow_id, run_id, cron=self._cron)
        # A run that was started for a resumed job ends with it. If the job has failed again by then, another such run
        # was started at the same time, and only an operator's Reset of one reopens the job.
        self._reopens = run_id != info.run_id or workflow.memo_value(REVISION, None) is None
        self._inline = False
        self._refused: JobError | None = None
        self._status = JobStatus.QUEUED
        self._step: Literal["accepting", "completing", "storing", "notifying", "done"] = "accepting"

    @workflow.run
    @lenient
    async def run(self, start: Input) -> JobOutcome | ChatResult | NoJob:
        ending = await shielded(self._accept(start))
        if isinstance(ending, NoJob):
            return ending
        if ending is None:
            ending = await self._complete()
        # From the seal onward nothing changes the outcome, not even a late cancel.
        sealed = await shielded(self._store(ending))
        await shielded(self._notify(sealed))
        return await self._end(sealed)

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> WorkflowStatus:
        return WorkflowStatus(job_id=self._job_id, status=self._status, step=self._step)

    # Abandoned: a run whose id cannot be a job's ends without a row, and the server tells the update's caller so.
    @workflow.update(name=ACCEPTED_UPDATE, unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON)
    async def accepted(self) -> WorkflowStatus:
        """The status once the job is stored: with Update-with-Start the answer of a caller who does not wait for the
        result. Fails with the error of a request that is not valid."""
        await workflow.wait_condition(lambda: self._step != "accepting")
        if self._refused is not None:
            raise ApplicationError(self._refused.message, type=self._refused.code, non_retryable=True)
        return self.status()

    async def _accept(self, start: Input) -> Ending | NoJob | None:
        """Create the row of a job that has none. Returns an ending if the job can never run."""
        if (scheduled := start.scheduled) is not None:
            return await self._accept_scheduled(scheduled)
        if start.names_stored(workflow.info().workflow_id) and not (self._cron and workflow.patched(OWN_JOB)):
            return None
        self._inline = True
        with _readable():
            accepted: Accepted = await workflow.execute_local_activity_method(
                ResultActivities.accept_inline,
                AcceptOrder(job_id=self._job_id, start=start.value, problem=start.problem),
                summary="accept",
                **options.local(),
            )
        return self._begin(accepted)

    async def _accept_scheduled(self, scheduled: ScheduledRef) -> Ending | NoJob | None:
        with _readable():
            answer: ScheduledAnswer = await workflow.execute_local_activity_method(
                ResultActivities.accept_scheduled,
                scheduled,
                summary="accept",
                **options.local(),
            )
        if answer.accepted is None:
            self._step = "done"
            return NoJob(schedule=scheduled.schedule, reason=answer.reason or "")
        return self._begin(answer.accepted)

    def _begin(self, accepted: Accepted) -> Ending | None:
        self._job_id = accepted.job_id  # a run that was accepted by an earlier version keeps the id that it had
        if accepted.indexed:
            known = {MODEL: accepted.model, TENANT: accepted.tenant, STATUS: "open"}
            workflow.upsert_search_attributes([key.value_set(value) for key, value in known.items() if value])
        if accepted.error:
            self._refused = accepted.error
            return Ending(job_id=self._job_id, status=JobStatus.FAILED, error=accepted.error)
        return None

    async def _complete(self) -> Ending:
        self._step, self._status = "completing", JobStatus.IN_PROGRESS
        workflow.set_current_details("outcome: in progress; how far it is stands under Pending Activities")
        try:
            if workflow.cancellation_reason() is not None:
                raise asyncio.CancelledError
            summary = await workflow.execute_activity_method(
                CompletionActivities.complete_chat,
                JobRef(job_id=self._job_id, reopens=self._reopens),
                summary="stream the answer",
                **options.completion(),
            )
        except (ActivityError, asyncio.CancelledError) as error:
            return self._failed_ending(_reason(error))
        if summary.outcome == "cancel_requested":
            return Ending(job_id=self._job_id, status=JobStatus.CANCELLED)
        return Ending(job_id=self._job_id, status=JobStatus.COMPLETED, position=summary.position)

    def _failed_ending(self, reason: JobError) -> Ending:
        if reason.code == FenceLost.code:  # another run has the job, and stores its outcome
            raise ApplicationError(reason.message, type=reason.code, non_retryable=True)
        if workflow.cancellation_reason() is not None:
            return Ending(job_id=self._job_id, status=JobStatus.CANCELLED)
        return Ending(job_id=self._job_id, status=JobStatus.FAILED, error=reason)

    async def _store(self, ending: Ending) -> Sealed:
        self._step = "storing"
        workflow.set_current_details("outcome: being stored")
        with _readable():
            sealed: Sealed = await workflow.execute_local_activity_method(
                ResultActivities.store_result,
                SealOrder(
                    ending=ending,
                    inline=self._inline,
                    # The activity must not cancel the run of a cron: Temporal would end the whole cron with it.
                    run_cancelled=self._cron or workflow.cancellation_reason() is not None,
                ),
                summary="seal the result",
                **options.local(),
            )
        self._status = sealed.status
        if sealed.indexed:
            changes = [STATUS.value_set(sealed.status.value)]
            if sealed.model and workflow.info().typed_search_attributes.get(MODEL) != sealed.model:
                changes.append(MODEL.value_set(sealed.model))  # another one has taken over
            workflow.upsert_search_attributes(changes)
        workflow.set_current_details(_details(sealed, None))
        return sealed

    async def _notify(self, sealed: Sealed) -> None:
        """Make the first try of the webhook; if it fails, a child workflow continues and this job ends."""
        self._step = "notifying"
        if sealed.delivery_id is not None:
            report = await first_try(sealed.delivery_id, of=self._job_id)
            workflow.set_current_details(_details(sealed, report))
        self._step = "done"

    async def _end(self, sealed: Sealed) -> JobOutcome | ChatResult:
        """End the run with the job's outcome."""
        if sealed.status is JobStatus.FAILED:
            error = sealed.error or JobError(code="internal", message="The job failed")
            raise ApplicationError(error.message, type=error.code, non_retryable=True)
        if sealed.status is JobStatus.CANCELLED:
            if self._cron and workflow.cancellation_reason() is None:
                raise ApplicationError("The job was cancelled; the cron goes on", type="cancelled", non_retryable=True)
            await _end_cancelled()
        if sealed.result is not None:
            return sealed.result
        return JobOutcome(job_id=sealed.job_id, status=sealed.status, position=sealed.position, sha256=sealed.sha256)


@contextmanager
def _readable() -> Iterator[None]:
    """Raise a step's error as the run's own, so that the first line of the Temporal UI shows its message."""
    try:
        yield
    except ActivityError as error:
        reason = _reason(error)
        raise ApplicationError(reason.message, type=reason.code, non_retryable=True) from error


async def _end_cancelled() -> None:
    """End the run as cancelled, which Temporal allows only for a cancelled run. If the cancel came through our
    database, the step that sealed the job has requested the run's, which arrives soon."""
    with contextlib.suppress(TimeoutError):
        await workflow.wait_condition(lambda: workflow.cancellation_reason() is not None, timeout=CANCEL_ARRIVES)
    raise asyncio.CancelledError


def _reason(error: BaseException) -> JobError:
    """The reason for which complete_chat failed, from the error that it raised."""
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError) and cause.type:
        return job_error(cause)
    return JobError(code="internal", message=f"The completion failed: {type(cause).__name__}", retryable=True)


def _details(sealed: Sealed, report: DeliveryReport | None) -> str:
    """Markdown for the Temporal UI: model, outcome, delivery."""
    outcome = f"**{sealed.status.value}**" + (f" ({sealed.error.code})" if sealed.error else "")
    lines = [f"model: {sealed.model}", f"outcome: {outcome}, {sealed.position} characters"]
    if sealed.delivery_id is None:
        lines.append("webhook: none")
    elif report is None:
        lines.append("webhook: first try")
    else:
        lines.append(f"webhook: {'delivered' if report.delivered else f'not delivered ({report.reason})'}")
    return "\n\n".join(lines)
