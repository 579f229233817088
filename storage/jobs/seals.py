"""The end of a job: sealed, cancelled, expired, deleted; and resumed after it. sealing.py has the transactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, update

from chatjobs.contracts import JobStatus
from chatjobs.errors import ChatJobsError, ContentDeleted, JobFinished, JobNotFound, JobRunning, NothingToResume
from domain.payloads import Ending, Sealed
from domain.text import clean
from domain.values import JobHandle, RunRef
from storage.engine.database import Database, retried
from storage.engine.group_commit import Group
from storage.engine.schema import jobs, micros, now
from storage.jobs import delays, mapping, retention, sealing
from storage.jobs.ledger import is_called
from storage.jobs.rows import LOCKED_ALL, locked
from storage.jobs.sealing import JobEnding


class SealStore:
    """Gives jobs their outcome, once each. ``webhook_body`` makes the body of the webhook that announces it."""

    def __init__(self, database: Database, webhook_body: sealing.WebhookBody) -> None:
        self._database = database
        self._webhook_body = webhook_body
        self._ending: Group[tuple[Ending, str], Sealed] = Group(self._seal_all)

    @retried
    async def request_cancel(self, job_id: str, tenant: str | None = None) -> JobStatus:
        """Commit the request to cancel, durably; a job that was never started, or whose ``startAt`` is ahead, is sealed
        at once, as is a batch's job that is not being called: its batch may be paused.

        Repeating the call has no effect. Raises JobNotFound, JobFinished.
        """
        async with self._database.write() as connection:
            row = await locked(connection, job_id, tenant)
            status = JobStatus(row.status)
            if status is JobStatus.CANCELLED:
                return status
            if status.terminal:
                raise JobFinished(f"The job has ended ({status.value}) and can no longer be cancelled")
            time = row.cancel_requested_at or micros(now())
            await connection.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested_at=time))
            waits = row.workflow_started_at is None or (row.batched and not await is_called(connection, row))
            if waits or await delays.seconds_ahead(self._database, connection, row) > 0:
                order = JobEnding(await locked(connection, job_id), sealing.CANCELLED, "")
                await sealing.seal_all(connection, [order], self._webhook_body)
                await self._database.hint(connection)
                return JobStatus.CANCELLED
            return status

    @retried
    async def resume(self, job_id: str, tenant: str | None = None) -> JobHandle:
        """Let a job that failed or was cancelled go on from its text, durably, in a workflow of its own, which the
        caller starts. A job of a batch leaves the batch's run; its batch still counts it.

        Raises JobNotFound, ContentDeleted, JobRunning, JobFinished, NothingToResume.
        """
        async with self._database.write() as connection:
            row = await locked(connection, job_id, tenant)
            _check_resumable(row)
            await sealing.reopen_all(connection, [row], _with_own_workflow(row))
            row = await locked(connection, job_id)
            await self._database.hint(connection)
        return mapping.handle(row)

    async def seal(self, ending: Ending, *, run_id: str) -> Sealed:
        """Give a job its outcome; the jobs of one moment share a transaction. For a job that is sealed already, its
        outcome is returned.

        Raises JobNotFound, SealConflict, StorageError.
        """
        self._database.not_writing()
        return await self._ending.add((ending, run_id))

    @retried
    async def _seal_all(self, group: Sequence[tuple[Ending, str]]) -> Sequence[Sealed | ChatJobsError]:
        """Seal jobs; two endings of one job in a group are the same as one after the other."""
        async with self._database.write() as connection:
            keys = sorted({clean(ending.job_id) for ending, _ in group})
            rows = {row.id: row for row in (await connection.execute(LOCKED_ALL, {"keys": keys})).all()}
            first = {ending.job_id: (ending, run_id) for ending, run_id in reversed(group)}
            orders = [
                JobEnding(rows[job_id], ending, run_id)
                for job_id, (ending, run_id) in first.items()
                if job_id in rows and rows[job_id].completed_at is None
            ]
            made = await sealing.seal_all(connection, orders, self._webhook_body)
            outcomes: dict[str, Sealed | ChatJobsError] = {
                order.row.id: outcome for order, outcome in zip(orders, made, strict=True)
            }
            for job_id in first:
                if job_id not in rows:
                    outcomes[job_id] = JobNotFound()
                elif job_id not in outcomes:
                    outcomes[job_id] = await sealing.sealed(connection, rows[job_id])
            if orders:
                await self._database.hint(connection)
        return [outcomes[ending.job_id] for ending, _ in group]

    async def expire(self, limit: int = 100) -> Sequence[Sealed]:
        """Seal jobs whose time in the queue is over before their first call of the model. Their workflows take no part:
        there may be no worker to run them. Several processes may do it at once.

        The caller sends their webhooks within FIRST_TRY_SECONDS; after that a sweeper has Temporal send them.
        """
        async with self._database.single() as connection:
            time = await self._database.time(connection)
            due = select(jobs.c.id).where(jobs.c.queue_until <= time).order_by(jobs.c.queue_until).limit(limit)
            found = (await connection.execute(due)).scalars().all()
        sealed = [await self._expire(job_id) for job_id in found]
        return [one for one in sealed if one is not None]

    @retried
    async def _expire(self, job_id: str) -> Sealed | None:
        async with self._database.write() as connection:
            row = await locked(connection, job_id)
            time = await self._database.time(connection)
            if row.completed_at is not None or row.queue_until is None or row.queue_until > time:
                return None
            ending = Ending(job_id=job_id, status=JobStatus.FAILED, error=sealing.QUEUE_TIMEOUT)
            order = JobEnding(row, ending, sealing.EXPIRED)
            (sealed,) = await sealing.seal_all(connection, [order], self._webhook_body)
            await self._database.hint(connection)
            return sealed if isinstance(sealed, Sealed) else None

    @retried
    async def delete(self, job_id: str, tenant: str | None = None) -> RunRef | None:
        """Delete a finished job's request, texts, metadata, webhook and deliveries, durably; its row stays.

        Repeating the call has no effect. Returns the run of a job that was started straight through Temporal, whose
        history also has the request. Raises JobNotFound, JobRunning.
        """
        async with self._database.write() as connection:
            row = await locked(connection, job_id, tenant)
            if row.completed_at is None:
                raise JobRunning
            if row.deleted_at is None:
                await retention.delete_contents(connection, row)
                await self._database.hint(connection)
        return mapping.inline_run(row)


def _with_own_workflow(row: Row[Any]) -> dict[str, Any]:
    """The columns of a job that waits for a workflow of its own, whatever ran it before."""
    inline = mapping.inline_run(row)
    return {
        "status": JobStatus.QUEUED.value,
        "batched": False,
        "workflow_id": None,
        "workflow_run_id": None,
        "workflow_started_at": None,
        "inline_workflow_id": inline.workflow_id if inline else None,
        "inline_run_id": inline.run_id if inline else None,
    }


def _check_resumable(row: Row[Any]) -> None:
    """Raises ContentDeleted, JobRunning, JobFinished, NothingToResume."""
    if row.deleted_at is not None:
        raise ContentDeleted
    if row.completed_at is None:
        raise JobRunning("The job has not ended, so that there is nothing to resume; wait for its end")
    if row.status not in (JobStatus.FAILED.value, JobStatus.CANCELLED.value):
        raise JobFinished(f"The job has its answer ({row.status}); replay it for another one")
    if not row.position:
        raise NothingToResume
