"""Jobs: accepted, claimed by attempts, cancelled, listed. (Sealing has its own page: sealing.py.)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Attempt, ChatRequest, Job, JobStatus
from chatjobs.errors import FenceLost, IdempotencyMismatch, JobFinished, JobIdConflict, JobNotFound
from chatjobs.steps import Ending, Sealed
from storage import presenting, sealing
from storage.database import Database, retried
from storage.rows import CHANGED, REQUEST, by_id, close_open_attempts, locked, past, store_tail
from storage.schema import attempts, jobs, micros, now, requests, transcript
from storage.text import clean, clean_json
from storage.values import (
    SEGMENT,
    AcceptedJob,
    AttemptEnd,
    Claim,
    FinishRecord,
    NewJob,
    Past,
    TextPiece,
    Waiting,
)

TERMINAL = [status.value for status in JobStatus if status.terminal]
NOT_FAILURES = (
    *("finished", SEGMENT, "nothing_left"),
    *("lost", "handed_over", "cancelled", "upstream_rate_limited"),
    "continuation_refused",  # it follows an interruption, and the next attempt starts over
)
"""Outcomes that do not use up the budget of real failures."""


INSERT_ON_SQLITE = sqlite.insert(jobs).on_conflict_do_nothing().returning(jobs.c.id)
INSERT_ON_POSTGRES = postgresql.insert(jobs).on_conflict_do_nothing().returning(jobs.c.id)
STARTED = CHANGED.where(jobs.c.workflow_started_at.is_(None))


class JobStore:
    """``run_url`` makes the link to a job's run in the Temporal UI."""

    def __init__(self, database: Database, run_url: Callable[[str], str]) -> None:
        self._database = database
        self.run_url = run_url

    # ---------------------------------------------------------------------------------------------- accept

    @retried
    async def accept(self, job: NewJob) -> AcceptedJob:
        """Commit a job, durably. The same job again, by its idempotency key, is answered as it stands; so is one that
        comes from its own workflow again, by its id.

        Raises IdempotencyMismatch, JobIdConflict.
        """
        values = _new_row(job, micros(now()))
        async with self._database.write() as connection:
            # Insert first and look afterwards: of 100 parallel posts with one key exactly one inserts.
            row = await connection.execute(INSERT_ON_SQLITE if self._database.is_sqlite else INSERT_ON_POSTGRES, values)
            if row.first() is None:
                return await self._existing(connection, job)
            if job.request is not None:
                body = job.request.model_dump_json(exclude_unset=True)
                await connection.execute(insert(requests), {"job_id": job.job_id, "body": body})
        return AcceptedJob(
            job.job_id, job.request_id, JobStatus.QUEUED, True, job.tenant, str(values["model"]), job.replay_of
        )

    async def _existing(self, connection: AsyncConnection, job: NewJob) -> AcceptedJob:
        same_key = and_(jobs.c.tenant == job.tenant, jobs.c.idempotency_key == job.idempotency_key)
        found = (await connection.execute(select(jobs).where(or_(same_key, jobs.c.id == job.job_id)))).all()
        keyed = next((r for r in found if job.idempotency_key and r.idempotency_key == job.idempotency_key), None)
        row = keyed or found[0]
        if row.tenant != job.tenant or row.body_hash != job.body_hash:
            raise IdempotencyMismatch if keyed else JobIdConflict
        if keyed is None and not job.started:
            raise JobIdConflict
        return AcceptedJob(row.id, row.request_id, JobStatus(row.status), False, row.tenant, row.model, row.replay_of)

    @retried
    async def workflow_started(self, job_id: str) -> None:
        async with self._database.write("fast") as connection:
            await connection.execute(STARTED, {"key": job_id, "workflow_started_at": micros(now())})

    # ----------------------------------------------------------------------------------------------- claim

    @retried
    async def claim(self, job_id: str, *, fence: int, claimant: str, run_id: str) -> Claim:
        """Take a job over for an attempt, if no later attempt has it.

        ``fence`` grows over all attempts of a job, also across Resets. ``claimant`` is unique to the caller, so that
        it may ask again after a lost answer. A failed job that another workflow run sealed is reopened.
        Raises JobNotFound (also where the request was not kept), FenceLost.
        """
        async with self._database.write("fast") as connection:
            row = await locked(connection, job_id)
            if sealing.reopens(row, run_id):
                await sealing.reopen(connection, row)
                row = await locked(connection, job_id)
            found = _nothing_to_do(row)
            if found:
                return _claim(row, found, fence)
            if row.fence > fence or (row.fence == fence and row.claimant != claimant):
                raise FenceLost
            return await self._take(connection, row, fence, claimant)

    async def _take(self, connection: AsyncConnection, row: Row[Any], fence: int, claimant: str) -> Claim:
        body = await connection.scalar(REQUEST, {"key": row.id})
        if body is None:
            raise JobNotFound("The job's request was not kept")
        time = micros(now())
        started, number = row.started_at or time, row.attempt
        if row.fence < fence:
            number += 1
            await self._begin_attempt(connection, row, fence, claimant, started, time)
        before = await past(connection, row, number, lambda outcome: outcome not in NOT_FAILURES)
        return _claim(row, "taken", fence, number, before, ChatRequest.model_validate_json(body), started)

    async def _begin_attempt(
        self, connection: AsyncConnection, row: Row[Any], fence: int, claimant: str, started: int, time: int
    ) -> None:
        await connection.execute(
            CHANGED,
            {
                "key": row.id,
                "fence": fence,
                "claimant": claimant,
                "attempt": row.attempt + 1,
                "status": JobStatus.IN_PROGRESS.value,
                "workflow_started_at": row.workflow_started_at or time,
                "started_at": started,
                "progressed_at": time,
                "tail": "",
            },
        )
        await store_tail(connection, row)
        if row.attempt:
            await close_open_attempts(connection, row, AttemptEnd("lost"))
        first = {"job_id": row.id, "number": row.attempt + 1, "started_at": time, "tokens_before": row.token_count}
        await connection.execute(insert(attempts), first | {"estimated": False})

    async def written(self, job_id: str, *, fence: int, epoch: int) -> Sequence[TextPiece]:
        """The text of an epoch so far, in order. Raises FenceLost."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, None))).first()
            if row is None or (row.fence, row.epoch) != (fence, epoch):
                raise FenceLost
            return await presenting.transcript_pieces(connection, row)

    @retried
    async def restart(self, job_id: str, *, fence: int, reason: str) -> int:
        """Throw the text so far away: a new epoch, whose number is returned. Raises FenceLost."""
        async with self._database.write("fast") as connection:
            epoch = await connection.scalar(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.completed_at.is_(None))
                .where(jobs.c.finish.is_(None))
                .values(epoch=jobs.c.epoch + 1, position=0, token_count=0, tail="", reset_reason=clean(reason)[:64])
                .returning(jobs.c.epoch)
            )
            if epoch is None:
                raise FenceLost
            await connection.execute(
                delete(transcript).where(transcript.c.job_id == job_id, transcript.c.epoch < epoch)
            )
            await connection.execute(
                update(attempts)
                .where(attempts.c.job_id == job_id, attempts.c.ended_at.is_(None))
                .values(tokens_before=0)
            )
            await self._database.hint(connection)
        return int(epoch)

    @retried
    async def end_attempt(self, job_id: str, fence: int, end: AttemptEnd) -> None:
        """Write into the ledger how the attempt under ``fence`` ended that did not finish its answer."""
        async with self._database.write("fast") as connection:
            row = await locked(connection, job_id)
            if row.fence == fence:
                await close_open_attempts(connection, row, end)

    # ---------------------------------------------------------------------------------------------- cancel

    @retried
    async def request_cancel(self, job_id: str, tenant: str | None = None) -> JobStatus:
        """Commit the wish to cancel, durably; a job that was never started is sealed at once.

        Asking again is the same. Raises JobNotFound, JobFinished.
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
                await sealing.seal(connection, await locked(connection, job_id), sealing.CANCELLED, run_id="")
                await self._database.hint(connection)
                return JobStatus.CANCELLED
            return status

    # ------------------------------------------------------------------------------------------------ seal

    @retried
    async def seal(self, ending: Ending, *, run_id: str) -> Sealed:
        """Give a job its outcome. Sealed already: that outcome is returned, whatever was asked for.

        Raises JobNotFound, SealConflict.
        """
        async with self._database.write() as connection:
            row = await locked(connection, ending.job_id)
            if row.completed_at is None:
                sealed = await sealing.seal(connection, row, ending, run_id)
                await self._database.hint(connection)
                return sealed
            return await sealing.sealed(connection, row)

    # ------------------------------------------------------------------------------------------------ read

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        """A job with its attempts and deliveries, in one snapshot. Raises JobNotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, tenant))).first()
            if row is None:
                raise JobNotFound
            return await presenting.job(connection, row, self.run_url(job_id))

    async def exists(self, job_id: str, tenant: str | None = None) -> bool:
        async with self._database.read() as connection:
            return (await connection.execute(by_id(job_id, tenant))).first() is not None

    async def request(self, job_id: str, tenant: str | None = None) -> ChatRequest:
        """What was asked. Raises JobNotFound, also where the request was not kept."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, tenant))).first()
            body = await connection.scalar(REQUEST, {"key": clean(job_id)})
        if row is None or body is None:
            raise JobNotFound
        return ChatRequest.model_validate_json(body)

    async def list(
        self,
        *,
        tenant: str | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[int, str] | None = None,
        limit: int = 50,
    ) -> Sequence[Job]:
        """Jobs, newest first, without their texts. ``before`` is the place of the last one seen: (created_at, id)."""
        query = presenting.listed().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        conditions = {jobs.c.tenant: tenant, jobs.c.status: status and status.value, jobs.c.model: model}
        for column, value in conditions.items():
            query = query.where(column == value) if value is not None else query
        for key, value in clean_json(dict(metadata or {})).items():
            query = query.where(self._has(key, value))
        if since:
            query = query.where(jobs.c.created_at >= micros(since))
        if until:
            query = query.where(jobs.c.created_at < micros(until))
        if before:
            earlier = and_(jobs.c.created_at == before[0], jobs.c.id < before[1])
            query = query.where(or_(jobs.c.created_at < before[0], earlier))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [presenting.summary(row, self.run_url(row.id)) for row in rows]

    def _has(self, key: str, value: str) -> Any:
        """A condition on metadata. SQLite's paths have no way to write every key that JSON may have."""
        if not self._database.is_sqlite:
            return jobs.c.metadata[key].as_string() == value
        pairs = func.json_each(jobs.c.metadata).table_valued("key", "value")
        return select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists()

    async def ledger(self, job_id: str) -> Sequence[Attempt]:
        async with self._database.read() as connection:
            return await presenting.ledger(connection, job_id)

    async def empty(self) -> bool:
        """No job was ever accepted."""
        async with self._database.read() as connection:
            return (await connection.execute(select(jobs.c.id).limit(1))).first() is None

    # ------------------------------------------------------------------------------------------- the sweep

    async def unstarted(self, *, older_than: timedelta, limit: int = 100) -> Sequence[Waiting]:
        """Accepted jobs whose workflow was not started."""
        query = select(jobs).where(jobs.c.completed_at.is_(None), jobs.c.workflow_started_at.is_(None))
        return await self._waiting(query.where(jobs.c.created_at <= micros(now() - older_than)), limit)

    async def silent(self, *, since: timedelta, limit: int = 100) -> Sequence[Waiting]:
        """Started jobs that have not ended and have not moved for a while."""
        query = select(jobs).where(jobs.c.completed_at.is_(None), jobs.c.workflow_started_at.is_not(None))
        return await self._waiting(query.where(jobs.c.progressed_at <= micros(now() - since)), limit)

    async def to_cancel(self, limit: int = 100) -> Sequence[Waiting]:
        """Jobs that somebody asked to cancel and that have not ended."""
        query = select(jobs).where(jobs.c.completed_at.is_(None), jobs.c.cancel_requested_at.is_not(None))
        return await self._waiting(query, limit)

    @retried
    async def touch(self, job_id: str) -> None:
        """The job is known to be alive: look again later."""
        async with self._database.write("fast") as connection:
            await connection.execute(update(jobs).where(jobs.c.id == job_id).values(progressed_at=micros(now())))

    async def _waiting(self, query: Any, limit: int) -> Sequence[Waiting]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(jobs.c.created_at).limit(limit))).all()
        return [Waiting(row.id, row.tenant, row.model, row.replay_of) for row in rows]


def _new_row(job: NewJob, time: int) -> dict[str, Any]:
    webhook = job.request.target() if job.request else None
    return {
        "id": job.job_id,
        "tenant": job.tenant,
        "request_id": job.request_id,
        "idempotency_key": job.idempotency_key,
        "body_hash": job.body_hash,
        "webhook": webhook.model_dump_json() if webhook else None,
        "model": job.request.model if job.request else "",
        "metadata": clean_json(dict(job.request.metadata)) if job.request else {},
        "replay_of": job.replay_of,
        "batch_id": job.batch_id,
        "status": JobStatus.QUEUED.value,
        "created_at": time,
        "workflow_started_at": time if job.started else None,
        "progressed_at": time,
        "fence": 0,
        "epoch": 1,
        "position": 0,
        "token_count": 0,
        "tail": "",
        "tail_channel": 0,
        "attempt": 0,
        "revision": 1,
    }


def _nothing_to_do(row: Row[Any]) -> Any:
    if row.completed_at is not None:
        return "sealed"
    if row.cancel_requested_at is not None:
        return "cancel_requested"
    return "finished" if row.finish is not None else None


def _claim(
    row: Row[Any],
    outcome: Any,
    fence: int,
    attempt: int = 0,
    before: Past = Past(),  # noqa: B008 - frozen
    request: ChatRequest | None = None,
    started_at: int = 0,
) -> Claim:
    finish = FinishRecord.model_validate_json(row.finish) if row.finish else None
    return Claim(
        outcome=outcome,
        job_id=row.id,
        fence=fence,
        epoch=row.epoch,
        position=row.position,
        token_count=row.token_count,
        finish_reason=finish.reason if finish else None,
        attempt=attempt,
        past=before,
        request=request,
        created_at=row.created_at,
        started_at=started_at,
    )
