"""Starts batches and passes on what is asked of them: the row in storage first, Temporal second."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.contracts import JobError
from chatjobs.errors import ChatJobsError
from dispatch.temporal import RPC_TIMEOUT
from domain.batches import BatchHandle
from domain.errors import StorageUnavailable, TemporalUnavailable
from domain.names import CHAT_BATCH, JOBS_QUEUE, LOOK
from domain.payloads import BatchStart
from storage.batches.drafts import DraftStore
from storage.batches.runs import BatchRunStore

TERMINATED = JobError(code="terminated", message="The batch's workflow was ended from outside", retryable=True)

log = logging.getLogger(__name__)


class BatchDispatch:
    """``client``: None where Temporal is not needed at once; a sweeper of another process then starts the batches."""

    def __init__(self, runs: BatchRunStore, drafts: DraftStore, client: Client | None) -> None:
        self._runs = runs
        self._drafts = drafts
        self._client = client

    async def start(self, batch_id: str) -> None:
        """Start a batch's workflow, or let the one that runs look at the batch's row. Raises TemporalUnavailable.

        A batch that has ended may have another run, which finds that nothing is left.
        """
        if self._client is None:
            raise TemporalUnavailable
        try:
            await self._client.start_workflow(
                CHAT_BATCH,
                BatchStart(batch_id=batch_id),
                id=batch_id,
                task_queue=JOBS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                start_signal=LOOK,
                static_summary="batch",
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            log.info("batch runs already", extra={"action": "batch_started_before", "batch_id": batch_id})
        except (RPCError, RuntimeError) as error:
            name = error.status.name if isinstance(error, RPCError) else "not reachable"
            raise TemporalUnavailable(f"Temporal did not start the batch ({name}); it will be") from None
        await self._runs.workflow_started(batch_id)

    async def cancel(self, batch_id: str) -> None:
        """Do what a cancellation wants, with or without Temporal, and let the workflow know.

        Raises StorageError, TemporalUnavailable.
        """
        await self._runs.cancel_rest(batch_id)
        await self._runs.seal(batch_id, run_id="")
        if self._client is None:
            raise TemporalUnavailable
        try:
            await self._client.get_workflow_handle(batch_id).signal(LOOK, rpc_timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise TemporalUnavailable from None
        except RuntimeError:  # a lazy client that cannot connect
            raise TemporalUnavailable from None

    async def sweep(self, unstarted_after: timedelta, silent_after: timedelta) -> None:
        """Start what was not started, finish what was to be cancelled, delete the drafts of uploads that broke off."""
        await self._each(self._runs.to_start(older_than=unstarted_after), self.start)
        await self._each(self._runs.silent(since=silent_after), self._check)
        await self._each(self._runs.to_cancel(), self.cancel)
        try:
            await self._runs.cancel_unconfirmed()
            await self._drafts.discard_abandoned()
        except StorageUnavailable as error:
            log.warning("cancelled jobs and drafts are not looked at: %s", error, extra={"action": "sweep_waits"})

    async def _check(self, batch_id: str) -> None:
        """Whether a batch that has not moved for a while still has a run; if not, it is started again or failed."""
        if self._client is None:
            raise TemporalUnavailable
        try:
            found = await self._client.get_workflow_handle(batch_id).describe(rpc_timeout=RPC_TIMEOUT)
            status = found.status
        except (RPCError, RuntimeError) as error:
            if not isinstance(error, RPCError) or error.status is not RPCStatusCode.NOT_FOUND:
                raise TemporalUnavailable from None
            status = None
        if status in (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.FAILED):
            await self._runs.cancel(batch_id, error=TERMINATED)
            log.warning("batch was terminated", extra={"action": "batch_terminated", "batch_id": batch_id})
        else:
            await self.start(batch_id)

    async def _each(self, found: Awaitable[Sequence[BatchHandle]], process: Callable[[str], Awaitable[None]]) -> None:
        try:
            for batch in await found:
                await process(batch.batch_id)
        except ChatJobsError as error:
            log.warning("sweep of batches waits: %s", error, extra={"action": "sweep_waits"})
        except Exception:
            log.exception("sweep of batches failed", extra={"action": "sweep_failed"})
