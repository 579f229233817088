"""The end of a job: sealed, cancelled, expired, deleted. sealing.py has the transaction that seals."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update

from chatjobs.contracts import JobStatus
from chatjobs.errors import JobFinished, JobRunning
from domain.payloads import Ending, Sealed
from domain.values import RunRef
from storage.engine.database import Database, retried
from storage.engine.schema import jobs, micros, now
from storage.jobs import mapping, retention, sealing
from storage.jobs.rows import locked


class SealStore:
    """Gives jobs their outcome, once each. ``webhook_body`` makes the body of the webhook that announces it."""

    def __init__(self, database: Database, webhook_body: sealing.WebhookBody) -> None:
        self._database = database
        self._webhook_body = webhook_body

    @retried
    async def request_cancel(self, job_id: str, tenant: str | None = None) -> JobStatus:
        """Commit the request to cancel, durably; a job that was never started is sealed at once.

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
            if row.workflow_started_at is None:
                await sealing.seal(
                    connection, await locked(connection, job_id), sealing.CANCELLED, "", self._webhook_body
                )
                await self._database.hint(connection)
                return JobStatus.CANCELLED
            return status

    @retried
    async def seal(self, ending: Ending, *, run_id: str) -> Sealed:
        """Give a job its outcome. For a job that is sealed already, its outcome is returned.

        Raises JobNotFound, SealConflict.
        """
        async with self._database.write() as connection:
            row = await locked(connection, ending.job_id)
            if row.completed_at is None:
                sealed = await sealing.seal(connection, row, ending, run_id, self._webhook_body)
                await self._database.hint(connection)
                return sealed
            return await sealing.sealed(connection, row)

    async def expire(self, limit: int = 100) -> Sequence[Sealed]:
        """Seal jobs whose time in the queue is over before their first call of the model. Their workflows take no part:
        there may be no worker to run them. Several processes may do it at once.

        The caller sends their webhooks within FIRST_TRY_SECONDS; after that a sweeper has Temporal send them.
        """
        due = select(jobs.c.id).where(jobs.c.queue_until <= micros(now())).order_by(jobs.c.queue_until).limit(limit)
        async with self._database.single() as connection:
            found = (await connection.execute(due)).scalars().all()
        sealed = [await self._expire(job_id) for job_id in found]
        return [one for one in sealed if one is not None]

    @retried
    async def _expire(self, job_id: str) -> Sealed | None:
        async with self._database.write() as connection:
            row = await locked(connection, job_id)
            if row.completed_at is not None or row.queue_until is None or row.queue_until > micros(now()):
                return None
            ending = Ending(job_id=job_id, status=JobStatus.FAILED, error=sealing.QUEUE_TIMEOUT)
            sealed = await sealing.seal(connection, row, ending, sealing.EXPIRED, self._webhook_body)
            await self._database.hint(connection)
            return sealed

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
        # The row of a job that was started inline has both times from its insertion; that of others never.
        return mapping.run_of(row) if row.workflow_started_at == row.created_at else None
