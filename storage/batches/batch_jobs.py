"""Batch jobs of Mistral's batch API: a row for what was asked, beside the batch that its files become.

A gateway claims a job, reads and checks its files and makes the batch; if it dies, another one does. A cancellation is
recorded first, and ``due`` tells of it until the batch knows of it. The end is that of the batch: ``settle`` then makes
the files of the results, whose content is that of the batch's output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import BatchStatus, BatchWebhook, JobError
from chatjobs.errors import IdempotencyMismatch
from domain.batch_jobs import (
    ENDED,
    BatchJobClaim,
    BatchJobFilter,
    BatchJobOrder,
    BatchJobRecord,
    BatchJobState,
    batch_key,
    first_batch_id,
)
from domain.errors import BatchJobNotFound, StorageRefused
from domain.files import BATCH, BATCH_ERROR, BATCH_RESULT, JSONL, MADE_HERE, new_file_id
from domain.names import new_batch_id
from domain.text import clean, clean_json
from storage.batches.tally import BatchTally
from storage.engine.database import Database, retried
from storage.engine.schema import batch_jobs, batches, files, jobs, micros, moment, now
from storage.files.queries import COMPLETE
from storage.files.uploads import DELETED
from storage.jobs.retention import delete_contents
from storage.jobs.rows import LOCKED_ALL

CLAIM_LASTS = timedelta(seconds=60)
"""A claim that was not renewed for so long is over: its process died."""
AT_ONCE = 20
"""Jobs that one look finds of each kind."""
ERASED_AT_ONCE = 20
"""Jobs of a batch whose contents one transaction deletes."""

JOB = batch_jobs.c
OF = batch_jobs.outerjoin(batches, batches.c.id == JOB.batch_id)
WITHOUT_BATCH = JOB.batch_id.is_(None)
SEEN = and_(JOB.deleted_at.is_(None), or_(WITHOUT_BATCH, batches.c.id.is_not(None)))
"""Neither deleted, nor left alone by the retention, which removes batches first."""
NEVER_RESUMED = batches.c.revision == 1
"""A batch that was cancelled and goes on has nothing to do with the cancellation any more."""
STATE = case(
    (JOB.errors.is_not(None), BatchJobState.FAILED.value),
    (and_(JOB.completed_at.is_not(None), JOB.timed_out_at.is_not(None)), BatchJobState.TIMEOUT_EXCEEDED.value),
    (JOB.completed_at.is_not(None), BatchJobState.CANCELLED.value),
    (WITHOUT_BATCH, BatchJobState.QUEUED.value),
    (batches.c.status == BatchStatus.COMPLETED.value, BatchJobState.SUCCESS.value),
    (batches.c.status == BatchStatus.FAILED.value, BatchJobState.FAILED.value),
    (
        and_(batches.c.status == BatchStatus.CANCELLED.value, JOB.timed_out_at.is_not(None)),
        BatchJobState.TIMEOUT_EXCEEDED.value,
    ),
    (batches.c.status == BatchStatus.CANCELLED.value, BatchJobState.CANCELLED.value),
    (
        and_(
            or_(batches.c.cancel_requested_at.is_not(None), and_(JOB.cancel_requested_at.is_not(None), NEVER_RESUMED)),
            JOB.timed_out_at.is_(None),
        ),
        BatchJobState.CANCELLATION_REQUESTED.value,
    ),
    (batches.c.started_at.is_(None), BatchJobState.QUEUED.value),
    else_=BatchJobState.RUNNING.value,
)
"""The status of a job, from its row and that of its batch."""
SHOWN = select(
    batch_jobs,
    STATE.label("state"),
    batches.c.started_at.label("batch_started_at"),
    batches.c.completed_at.label("batch_completed_at"),
    batches.c.total.label("batch_total"),
    batches.c.tally.label("batch_tally"),
    batches.c.error.label("batch_error"),
    batches.c.revision.label("batch_revision"),
).select_from(OF)
MADE = select(batches.c.id).where(batches.c.tenant == bindparam("of"), batches.c.idempotency_key == bindparam("given"))
LOCKED = select(batch_jobs).where(JOB.id == bindparam("key")).with_for_update()
CHANGED = update(batch_jobs).where(JOB.id == bindparam("key"))
UNCLAIMED = or_(JOB.claimed_at.is_(None), JOB.claimed_at < bindparam("stale"))
CLAIMABLE = and_(WITHOUT_BATCH, JOB.completed_at.is_(None), UNCLAIMED)
UNREAD = and_(WITHOUT_BATCH, JOB.completed_at.is_not(None), UNCLAIMED)
"""It ended without a batch, and nobody is making one any more."""
UNWANTED = and_(
    or_(
        *(JOB.cancel_requested_at.is_not(None), JOB.timed_out_at.is_not(None)),
        *(JOB.errors.is_not(None), JOB.deleted_at.is_not(None)),
    ),
    *(batches.c.completed_at.is_(None), batches.c.cancel_requested_at.is_(None), NEVER_RESUMED),
)
"""Its batch is to be cancelled, and nobody has told the batch."""


class BatchJobPage(NamedTuple):
    """A page of batch jobs, and the number of all that match."""

    jobs: Sequence[BatchJobRecord]
    total: int


class DueBatchJobs(NamedTuple):
    """Ids of jobs to look after: files to read, time that is over, an end to record, contents to delete; and of
    batches to cancel, because their jobs were cancelled."""

    unread: Sequence[str]
    late: Sequence[str]
    ended: Sequence[str]
    deleted: Sequence[str]
    unwanted: Sequence[str]


class BatchJobStore:
    """In all methods ``tenant`` None is any."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------------------------------------------ callers

    async def create(self, order: BatchJobOrder) -> BatchJobRecord:
        """Store a job, durably. If the tenant has one with the same idempotency key, that one is returned.

        Raises IdempotencyMismatch, StorageError.
        """
        try:
            return await self._create(order)
        except StorageRefused:
            if order.idempotency_key is None or (found := await self.existing(order)) is None:
                raise
            return found  # another request with the same key was there a moment earlier

    @retried
    async def _create(self, order: BatchJobOrder) -> BatchJobRecord:
        found = await self.existing(order)
        if found is not None:
            return found
        async with self._database.write() as connection:
            await connection.execute(insert(batch_jobs).values(_new_row(order)))
            row = await _shown(connection, order.job_id, order.tenant)
        return replace(_record(row), created=True)

    async def existing(self, order: BatchJobOrder) -> BatchJobRecord | None:
        """The tenant's job with the same idempotency key. Raises IdempotencyMismatch."""
        if order.idempotency_key is None:
            return None
        same = (JOB.tenant == order.tenant, JOB.idempotency_key == order.idempotency_key)
        async with self._database.single() as connection:
            row = (await connection.execute(SHOWN.where(*same))).first()
        if row is not None and row.body_hash != order.body_hash:
            raise IdempotencyMismatch
        return None if row is None else _record(row)

    async def get(self, job_id: str, tenant: str | None = None) -> BatchJobRecord:
        """A job. Raises BatchJobNotFound."""
        async with self._database.single() as connection:
            return _record(await _shown(connection, job_id, tenant))

    async def list(self, tenant: str, wanted: BatchJobFilter, *, page: int, page_size: int) -> BatchJobPage:
        """A page of the tenant's jobs; pages count from 0."""
        order = (JOB.created_at, JOB.id) if wanted.oldest_first else (JOB.created_at.desc(), JOB.id.desc())
        sqlite = self._database.is_sqlite
        query = _matching(SHOWN, tenant, wanted, sqlite=sqlite).order_by(*order)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.offset(page * page_size).limit(page_size))).all()
            counting = _matching(select(func.count()).select_from(OF), tenant, wanted, sqlite=sqlite)
            total = int(await connection.scalar(counting) or 0)
        return BatchJobPage([_record(row) for row in rows], total)

    @retried
    async def cancel(self, job_id: str, tenant: str | None = None, *, late: bool = False) -> BatchJobRecord:
        """Record that a job is to be cancelled, durably; with ``late``, because its time is over. One without a batch
        ends at once. The batch of another one is still to be cancelled; ``due`` tells of it until it is.

        Raises BatchJobNotFound.
        """
        async with self._database.write() as connection:
            found = _record(await _shown(connection, job_id, tenant))
            row = (await connection.execute(LOCKED, {"key": found.job_id})).one()
            if found.state not in ENDED:
                time = micros(now())
                changes: dict[str, Any] = {"timed_out_at": time} if late else {}
                if row.cancel_requested_at is None and not late:
                    changes["cancel_requested_at"] = time
                if row.batch_id is None:
                    # If its files were read before, a batch may be there, or come: whoever settles it looks for one.
                    changes |= {"completed_at": time, "settled": None if row.tries else 0}
                if changes:
                    await connection.execute(CHANGED, {"key": row.id, **changes})
            return _record(await _shown(connection, job_id, tenant))

    @retried
    async def delete(self, job_id: str, tenant: str | None = None) -> BatchJobRecord:
        """Let nobody see a job any more, nor the files of its results and the one made of its body, durably. Returns it
        as it was; ``erase`` then deletes what its batch has.

        Raises BatchJobNotFound.
        """
        async with self._database.write() as connection:
            found = _record(await _shown(connection, job_id, tenant))
            time = micros(now())
            gone = {"deleted_at": time, "idempotency_key": None, "settled": None}
            await connection.execute(CHANGED, {"key": found.job_id, **gone})
            mine = files.c.batch_job == found.job_id
            if found.inline:
                mine = or_(mine, files.c.id.in_(found.input_files))
            await connection.execute(update(files).where(mine).values(status=DELETED, progressed_at=time))
        return found

    # --------------------------------------------------------------------------------------------- its reading

    async def due(self) -> DueBatchJobs:
        """The jobs that something is to be done about."""
        time = now()
        still = select(JOB.id).select_from(OF).where(JOB.settled.is_(None)).order_by(JOB.created_at).limit(AT_ONCE)
        kept, deleted = still.where(JOB.deleted_at.is_(None)), still.where(JOB.deleted_at.is_not(None))
        unread = kept.where(CLAIMABLE)
        late = kept.where(
            *(JOB.expires_at <= micros(time), JOB.timed_out_at.is_(None)),
            *(JOB.completed_at.is_(None), batches.c.completed_at.is_(None)),
        )
        ended = kept.where(or_(batches.c.completed_at.is_not(None), UNREAD))
        deleted = deleted.where(or_(batches.c.completed_at.is_not(None), and_(batches.c.id.is_(None), UNCLAIMED)))
        unwanted = still.with_only_columns(JOB.batch_id).where(UNWANTED)
        queries = (unread, late, ended, deleted, unwanted)
        async with self._database.single() as connection:
            stale = {"stale": micros(time - CLAIM_LASTS)}
            found = [(await connection.execute(query, stale)).scalars() for query in queries]
            return DueBatchJobs(*map(list, found))

    @retried
    async def claim(self, job_id: str) -> BatchJobClaim | None:
        """The right to read a job's files; None: another process has it, or there is nothing left to read."""
        time = now()
        async with self._database.write("fast") as connection:
            row = (await connection.execute(LOCKED.where(CLAIMABLE), {"key": job_id, **_stale()})).first()
            if row is None or row.deleted_at is not None:
                return None
            await connection.execute(CHANGED, {"key": row.id, "tries": row.tries + 1, "claimed_at": micros(time)})
            made = await connection.scalar(MADE, {"of": row.tenant, "given": batch_key(row.id)}) if row.tries else None
        return BatchJobClaim(
            job_id=row.id,
            tenant=row.tenant,
            batch_id=made or (new_batch_id() if row.tries else first_batch_id(row.id)),
            made=made is not None,
            input_files=json.loads(row.input_files),
            inline=row.inline,
            model=row.model,
            lane=row.lane,
            webhook=BatchWebhook.model_validate_json(row.webhook) if row.webhook else None,
            expires_at=moment(row.expires_at),
        )

    @retried
    async def renew(self, job_id: str) -> bool:
        """Renew a claim. Returns whether the job still wants its files read."""
        async with self._database.write("fast") as connection:
            still = CHANGED.where(WITHOUT_BATCH, JOB.completed_at.is_(None), JOB.deleted_at.is_(None))
            done = await connection.execute(still, {"key": job_id, "claimed_at": micros(now())})
            return bool(done.rowcount)

    @retried
    async def release(self, job_id: str) -> None:
        """Give a claim back: the files are to be read again, by whomever. Raises StorageError."""
        async with self._database.write("fast") as connection:
            await connection.execute(CHANGED, {"key": job_id, "claimed_at": None})

    @retried
    async def refuse(self, job_id: str, errors: Sequence[str]) -> None:
        """End a job whose files are not valid, durably; one that was cancelled stays so. Raises StorageError."""
        time = micros(now())
        async with self._database.write() as connection:
            still = CHANGED.where(WITHOUT_BATCH, JOB.completed_at.is_(None))
            settled = case((JOB.tries > 1, null()), else_=0)  # a reader that was taken for dead may make a batch yet
            values = {"errors": json.dumps(list(errors)), "completed_at": time}
            await connection.execute(still.values(settled=settled), {"key": job_id, **values})

    @retried
    async def made(self, job_id: str, batch_id: str) -> bool:
        """Record the batch that a job's files became, durably. Returns whether it is to run: it is to be cancelled if
        the job was cancelled or deleted meanwhile. Raises StorageError."""
        async with self._database.write() as connection:
            row = (await connection.execute(LOCKED, {"key": job_id})).first()
            if row is None:
                return False
            wanted = row.completed_at is None and row.cancel_requested_at is None and row.deleted_at is None
            changes: dict[str, Any] = {"batch_id": batch_id, "completed_at": None, "settled": None}
            await connection.execute(CHANGED, {"key": row.id, **changes})
            return wanted

    # ------------------------------------------------------------------------------------------------- its end

    @retried
    async def settle(self, job_id: str) -> None:
        """Record the end of a job, with the files of its results; again, if its batch was resumed and has ended once
        more. One that ended without a batch gets the batch that a gateway made of its files before it died, and ``due``
        tells to cancel it. Raises BatchJobNotFound, StorageError."""
        async with self._database.write() as connection:
            unread = LOCKED.where(UNREAD, JOB.deleted_at.is_(None), JOB.settled.is_(None))
            left = (await connection.execute(unread, {"key": job_id, **_stale()})).first()
            if left is not None:
                if not await _given_its_batch(connection, left):
                    await connection.execute(CHANGED, {"key": job_id, "settled": 0})
                return
            await connection.execute(LOCKED, {"key": job_id})
            found = _record(await _shown(connection, job_id, None))
            if found.settled or found.batch_id is None or found.state not in ENDED:
                return
            output = await _results(connection, found, found.output_file, BATCH_RESULT, found.succeeded)
            errors = await _results(connection, found, found.error_file, BATCH_ERROR, found.unanswered)
            changes: dict[str, Any] = {"settled": found.revision, "output_file": output, "error_file": errors}
            await connection.execute(CHANGED, {"key": found.job_id, **changes})

    async def erase(self, job_id: str) -> None:
        """Delete the requests and answers of a deleted job, in steps, and then the job; unless it turns out to have a
        batch, which is to be cancelled first. Raises StorageError."""
        if await self._has_a_batch_yet(job_id):
            return
        after: str | None = ""
        while after is not None:
            after = await self._erase_some(job_id, after)
        await self._forget(job_id)

    @retried
    async def _has_a_batch_yet(self, job_id: str) -> bool:
        """Whether a deleted job without a batch has got one now: that of a gateway that died before it recorded it."""
        async with self._database.write("fast") as connection:
            gone = LOCKED.where(WITHOUT_BATCH, JOB.deleted_at.is_not(None))
            row = (await connection.execute(gone, {"key": job_id})).first()
            return row is not None and await _given_its_batch(connection, row)

    @retried
    async def _erase_some(self, job_id: str, after: str) -> str | None:
        """Erase some of its jobs, those after an id. Returns the id to go on after; None: there are no others."""
        async with self._database.write("fast") as connection:
            job = (await connection.execute(LOCKED.where(JOB.deleted_at.is_not(None)), {"key": job_id})).first()
            if job is None or job.batch_id is None:
                return None
            mine = select(jobs.c.id).where(jobs.c.batch_id == job.batch_id, jobs.c.id > after)
            ids = list((await connection.execute(mine.order_by(jobs.c.id).limit(ERASED_AT_ONCE))).scalars())
            rows = (await connection.execute(LOCKED_ALL, {"keys": ids})).all() if ids else []
            for row in rows:
                if row.completed_at is not None and row.deleted_at is None:
                    await delete_contents(connection, row)
            await self._database.hint(connection)
        return ids[-1] if ids else None

    @retried
    async def _forget(self, job_id: str) -> None:
        """Remove a deleted job, whose jobs' contents are gone. Raises StorageError."""
        async with self._database.write("fast") as connection:
            await connection.execute(delete(batch_jobs).where(JOB.id == job_id, JOB.deleted_at.is_not(None)))


def _stale() -> dict[str, int]:
    return {"stale": micros(now() - CLAIM_LASTS)}


async def _given_its_batch(connection: AsyncConnection, job: Row[Any]) -> bool:
    """Give a locked job without a batch the one that was made of its files, if there is one. Returns whether."""
    if not job.tries:
        return False
    made = await connection.scalar(MADE, {"of": job.tenant, "given": batch_key(job.id)})
    if made is None:
        return False
    await connection.execute(CHANGED, {"key": job.id, "batch_id": made, "completed_at": None, "settled": None})
    return True


async def _shown(connection: AsyncConnection, job_id: str, tenant: str | None) -> Row[Any]:
    """Raises BatchJobNotFound."""
    query = SHOWN.where(JOB.id == clean(job_id), SEEN)
    row = (await connection.execute(query)).first()
    if row is None or tenant not in (None, row.tenant):
        raise BatchJobNotFound
    return row


async def _results(
    connection: AsyncConnection, job: BatchJobRecord, known: str | None, sample_type: str, lines: int
) -> str | None:
    """The id of the file of a job's results, made or made anew; None if it would be empty."""
    values = {"num_lines": lines, "size": None}
    if known is not None:
        await connection.execute(update(files).where(files.c.id == known).values(**values))
        return known
    if not lines:
        return None
    file_id, time = new_file_id(), micros(now())
    await connection.execute(
        insert(files).values(
            id=file_id,
            tenant=job.tenant,
            status=COMPLETE,
            filename=f"{job.job_id}_{'output' if sample_type == BATCH_RESULT else 'errors'}.jsonl",
            purpose=BATCH,
            sample_type=sample_type,
            source=MADE_HERE,
            mimetype=JSONL,
            visibility="workspace",
            batch_job=job.job_id,
            created_at=time,
            progressed_at=time,
            **values,
        )
    )
    return file_id


def _new_row(order: BatchJobOrder) -> dict[str, Any]:
    return {
        "id": order.job_id,
        "tenant": order.tenant,
        "idempotency_key": order.idempotency_key,
        "body_hash": order.body_hash,
        "input_files": json.dumps(list(order.input_files)),
        "inline": order.inline,
        "model": order.model,
        "metadata": None if order.metadata is None else clean_json(dict(order.metadata)),
        "lane": order.lane,
        "webhook": order.webhook.model_dump_json() if order.webhook else None,
        "created_at": micros(now()),
        "expires_at": micros(order.expires_at),
        "tries": 0,
    }


def _record(row: Row[Any]) -> BatchJobRecord:
    tally = BatchTally.read(row.batch_tally) if row.batch_tally else BatchTally()
    state = BatchJobState(row.state)
    ended = row.completed_at or (row.batch_completed_at if state in ENDED else None)
    # A request that was cancelled alone has failed; those of a cancelled job were not answered, and are not counted.
    alone = tally.cancelled if state is BatchJobState.SUCCESS else 0
    return BatchJobRecord(
        job_id=row.id,
        tenant=row.tenant,
        state=state,
        input_files=json.loads(row.input_files),
        inline=row.inline,
        model=row.model,
        metadata=row.metadata,
        errors=_errors(row, state),
        batch_id=row.batch_id,
        created_at=moment(row.created_at),
        started_at=_moment(row.batch_started_at),
        completed_at=_moment(ended),
        total=row.batch_total or 0,
        succeeded=tally.completed,
        failed=tally.failed + alone,
        unanswered=tally.failed + tally.cancelled,
        settled=row.settled is not None and row.settled == (row.batch_revision or 0),
        revision=row.batch_revision or 0,
        output_file=row.output_file if state in ENDED else None,
        error_file=row.error_file if state in ENDED else None,
    )


def _errors(row: Row[Any], state: BatchJobState) -> list[str]:
    if row.errors:
        return [str(one) for one in json.loads(row.errors)]
    if state is BatchJobState.FAILED and row.batch_error:
        return [JobError.model_validate_json(row.batch_error).message]
    return []


def _moment(value: int | None) -> Any:
    return None if value is None else moment(value)


def _has(name: str, value: str, *, sqlite: bool) -> ColumnElement[bool]:
    """Whether a job's metadata has an entry. SQLite's JSON paths cannot express every name."""
    if not sqlite:
        same: ColumnElement[bool] = JOB.metadata[name].as_string() == literal(value)
        return same
    pairs = func.json_each(JOB.metadata).table_valued("key", "value")
    return select(pairs.c.key).where(pairs.c.key == name, pairs.c.value == value).exists()


def _matching(query: Select[Any], tenant: str, wanted: BatchJobFilter, *, sqlite: bool) -> Select[Any]:
    query = query.where(JOB.tenant == tenant, SEEN)
    if wanted.model is not None:
        query = query.where(JOB.model == clean(wanted.model))
    if wanted.created_after is not None:
        query = query.where(JOB.created_at >= micros(wanted.created_after))
    if wanted.states is not None:
        query = query.where(STATE.in_([state.value for state in wanted.states]))
    for name, value in (wanted.metadata or {}).items():
        query = query.where(_has(clean(name), clean(value), sqlite=sqlite))
    return query
