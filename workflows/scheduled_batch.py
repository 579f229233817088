"""ScheduledBatch: a run of a schedule that makes a batch, and lasts as long as the batch."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, WorkflowAlreadyStartedError

from domain.names import SCHEDULED_BATCH
from domain.payloads import BatchRef, BatchSealed, BatchStart, NoJob, ScheduledBatchAnswer, ScheduledRef
from workflows import options
from workflows.chat_batch import ChatBatch
from workflows.inputs import Input, lenient
from workflows.steps import shielded

with workflow.unsafe.imports_passed_through():
    from activities.batch import BatchActivities
    from activities.schedules import ScheduledBatchActivities

LOOK_AGAIN = timedelta(seconds=30)
"""Between two looks at a batch whose workflow a sweeper has started."""


@workflow.defn(name=SCHEDULED_BATCH)
class ScheduledBatch:
    """Started by our schedules, so that their overlap policy sees the batch. The argument is a ScheduledRef."""

    @workflow.run
    @lenient
    async def run(self, start: Input) -> BatchSealed | NoJob:
        scheduled = start.as_a(ScheduledRef)
        answer = await shielded(self._make(scheduled))
        if answer.batch_id is None:
            return NoJob(schedule=scheduled.schedule, reason=answer.reason or "")
        workflow.set_current_details(f"batch {answer.batch_id}")
        try:
            return await workflow.execute_child_workflow(
                ChatBatch.run,
                BatchStart(batch_id=answer.batch_id),
                id=answer.batch_id,
                static_summary=f"batch of schedule {scheduled.schedule}",
            )
        except WorkflowAlreadyStartedError:
            return await self._end_of(BatchRef(batch_id=answer.batch_id))

    async def _make(self, scheduled: ScheduledRef) -> ScheduledBatchAnswer:
        try:
            answer: ScheduledBatchAnswer = await workflow.execute_activity_method(
                ScheduledBatchActivities.make_batch, scheduled, summary="make the batch", **options.batch_step()
            )
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError):  # so that the first line of the Temporal UI shows its message
                raise ApplicationError(cause.message, type=cause.type, non_retryable=True) from error
            raise
        return answer

    async def _end_of(self, ref: BatchRef) -> BatchSealed:
        """The outcome of a batch that another run works through."""
        while True:
            sealed: BatchSealed = await workflow.execute_local_activity_method(
                BatchActivities.seal_batch, ref, summary="look for the end", **options.local()
            )
            if not sealed.left:
                return sealed
            await workflow.sleep(LOOK_AGAIN)
