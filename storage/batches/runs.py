"""The run of a batch: its jobs made and worked through, what was asked of it, and its end."""

from __future__ import annotations

import asyncio
import time as clocks
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, and_, bindparam, case, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import BatchEventType, BatchStatus, BatchWebhook, JobError, JobStatus, rfc3339
from chatjobs.errors import BatchFinished, BatchNotFound
from domain.batches import BatchHandle, BatchPlan, BatchWishes, OpenItem, SealedBatch
from domain.names import delivery_id, item_number
from domain.payloads import Ending
from domain.text import clean
from storage.batches import mapping, reopening
from storage.batches.drafts import DRAFT
from storage.engine.database import Database, retried
from storage.engine.schema import batch_items, batches, deliveries, jobs, micros, moment, now
from storage.jobs import sealing
from storage.jobs.ledger import lost_in_a_row
from storage.jobs.rows import LOCKED_ALL
from storage.jobs.sealing import JobEnding
from storage.webhooks.tenant_endpoints import subscribers, urls_for

PREPARED_AT_ONCE = 500
"""Jobs that one transaction makes."""
SUSPECT_AFTER = 2
"""Workers that died with a job, which may be what ended them: the jobs beside it were lost as often at first."""
CONFIRM_SECONDS = 4.0
LOOK_SECONDS = 0.25
CANCELLED_AT_ONCE = 200
"""Jobs that one transaction cancels."""

BY_ID = select(batches).where(batches.c.id == bindparam("key"), batches.c.status != DRAFT)
LOCKED = BY_ID.with_for_update()
CHANGED = update(batches).where(batches.c.id == bindparam("key"))
OPEN_BATCHES = (
    select(batches).where(batches.c.completed_at.is_(None), batches.c.status != DRAFT).order_by(batches.c.progressed_at)
)
WISHES = select(batches).where(batches.c.id.in_(bindparam("keys", expanding=True)))
OPEN_ITEMS = (
    select(jobs.c.id, jobs.c.model, jobs.c.attempt, jobs.c.position, batch_items.c.problem)
    .select_from(batch_items.join(jobs, jobs.c.id == batch_items.c.job_id))
    .where(
        batch_items.c.batch_id == bindparam("key"),
        batch_items.c.number >= bindparam("first"),
        batch_items.c.number < bindparam("end"),
        jobs.c.completed_at.is_(None),
        jobs.c.batched,
    )
    .order_by(batch_items.c.number)
)
OPEN_IDS = select(batches.c.id).where(batches.c.completed_at.is_(None))
UNCONFIRMED = (
    select(jobs.c.id)
    .where(jobs.c.batch_id.in_(OPEN_IDS), jobs.c.status == JobStatus.IN_PROGRESS.value, jobs.c.batched)
    .where(jobs.c.completed_at.is_(None), jobs.c.cancel_requested_at <= bindparam("before"))
)
OPEN_STATUSES = [status.value for status in JobStatus if not status.terminal]
IN_BATCH = jobs.c.batch_id == bindparam("key")
COUNT_OPEN = select(func.count()).select_from(jobs).where(IN_BATCH, jobs.c.status.in_(OPEN_STATUSES))
FIRST_OPEN = select(func.min(jobs.c.id)).where(IN_BATCH, jobs.c.status.in_(OPEN_STATUSES), jobs.c.batched)
WAITING = select(jobs.c.id).where(IN_BATCH, jobs.c.status == JobStatus.QUEUED.value).limit(CANCELLED_AT_ONCE)
RUNNING = select(jobs.c.id).where(IN_BATCH, jobs.c.status == JobStatus.IN_PROGRESS.value)
ASK_RUNNING = (
    update(jobs)
    .where(jobs.c.id.in_(RUNNING), jobs.c.completed_at.is_(None), jobs.c.cancel_requested_at.is_(None))
    .values(cancel_requested_at=bindparam("time"))
)


def _item_jobs() -> Any:
    """The statement that makes jobs of a part of the items."""
    item, batch, original = batch_items.c, batches.c, jobs.alias("original")
    values: dict[Any, Any] = {
        jobs.c.id: item.job_id,
        jobs.c.tenant: batch.tenant,
        jobs.c.request_id: item.request_id,
        jobs.c.body_hash: item.body_hash,
        jobs.c.webhook: item.webhook,
        jobs.c.model: item.model,
        jobs.c.metadata: item.metadata,
        jobs.c.batch_id: item.batch_id,
        jobs.c.batched: literal(True),
        jobs.c.priority: item.priority,
        jobs.c.max_lost: item.max_lost,
        jobs.c.status: literal(JobStatus.QUEUED.value),
        jobs.c.created_at: batch.created_at,
        # Its batch takes the place of a workflow of its own, which no sweeper may start.
        jobs.c.workflow_id: batch.id,
        jobs.c.workflow_started_at: batch.created_at,
        jobs.c.progressed_at: batch.created_at,
        jobs.c.queue_until: batch.created_at + item.queue_time,
        jobs.c.replay_of: case((batch.kind == "replay", item.custom_id)),
        jobs.c.previous_job_id: original.c.previous_job_id,
        jobs.c.thread: func.coalesce(original.c.thread, original.c.id),
        jobs.c.fence: literal(0),
        jobs.c.epoch: literal(1),
        jobs.c.position: literal(0),
        jobs.c.token_count: literal(0),
        jobs.c.tail: literal(""),
        jobs.c.tail_channel: literal(0),
        jobs.c.attempt: literal(0),
        jobs.c.revision: literal(1),
    }
    part = (
        select(*values.values())
        .select_from(
            batch_items.join(batches, batches.c.id == batch_items.c.batch_id).outerjoin(
                original, and_(batch.kind == "replay", original.c.id == item.custom_id)
            )
        )
        .where(item.batch_id == bindparam("key"), item.number >= bindparam("first"), item.number < bindparam("end"))
        .order_by(item.number)
    )
    return insert(jobs).from_select([column.name for column in values], part, include_defaults=False)


ITEM_JOBS = _item_jobs()


class BatchRunStore:
    """What the workflow of a batch and its activities read and write. In all methods ``tenant`` None is any."""

    def __init__(self, database: Database, bodies: mapping.BatchBodies, webhook_body: sealing.WebhookBody) -> None:
        self._database = database
        self._bodies = bodies
        self._webhook_body = webhook_body

    # ------------------------------------------------------------------------------------------ its jobs

    async def plan(self, batch_id: str) -> BatchPlan:
        """What the workflow needs to know. Raises BatchNotFound."""
        async with self._database.single() as connection:
            row = await batch_row(connection, batch_id)
        return BatchPlan(
            batch_id=row.id,
            tenant=row.tenant,
            total=row.total,
            concurrency=row.concurrency,
            lane=row.lane,
            deadline=None if row.deadline is None else moment(row.deadline),
            ended=row.completed_at is not None,
            canary=min(row.canary, row.total) if row.phase == "canary" else 0,
        )

    @retried
    async def prepare(self, batch_id: str) -> bool:
        """Make the jobs of some items, the next in order. Returns whether others are left. Raises BatchNotFound."""
        async with self._database.write("fast") as connection:
            row = await batch_row(connection, batch_id, lock=True)
            end = min(row.prepared + PREPARED_AT_ONCE, row.total)
            if end > row.prepared:
                await connection.execute(ITEM_JOBS, {"key": batch_id, "first": row.prepared, "end": end})
                changes = {"prepared": end, "progressed_at": micros(now())}
                await connection.execute(CHANGED, {"key": batch_id, **changes})
        return bool(end < row.total)

    async def open_items(self, batch_id: str, first: int, end: int) -> Sequence[OpenItem]:
        """The jobs of a part of the items that have not ended, in order."""
        async with self._database.single() as connection:
            values = {"key": batch_id, "first": first, "end": end}
            rows = (await connection.execute(OPEN_ITEMS, values)).all()
            return [await _open_item(connection, row) for row in rows]

    @retried
    async def begin(self, batch_id: str) -> None:
        """Record that the first items begin, or will once a pause ends."""
        async with self._database.write("fast") as connection:
            row = await batch_row(connection, batch_id, lock=True)
            if row.completed_at is None and row.started_at is None:
                time = micros(now())
                status = BatchStatus.IN_PROGRESS if row.status == BatchStatus.QUEUED.value else BatchStatus(row.status)
                changes = {"status": status.value, "started_at": time, "progressed_at": time}
                await connection.execute(CHANGED, {"key": row.id, **changes})

    # ------------------------------------------------------------------------------------------- wishes

    async def wishes(self, batch_ids: Collection[str]) -> Mapping[str, BatchWishes]:
        """What was asked of batches; those that are gone are left out."""
        async with self._database.single() as connection:
            rows = (await connection.execute(WISHES, {"keys": list(batch_ids)})).all()
        return {
            row.id: BatchWishes(
                paused=row.paused_at is not None,
                cancelled=row.cancel_requested_at is not None,
                ended=row.completed_at is not None,
                bounded=row.max_error_rate is not None,
            )
            for row in rows
        }

    @retried
    async def pause(self, batch_id: str, tenant: str | None = None) -> BatchHandle:
        """Let no further item begin, durably. Raises BatchNotFound, BatchFinished."""
        async with self._database.write() as connection:
            row = _running(await batch_row(connection, batch_id, tenant, lock=True))
            if row.paused_at is None and row.cancel_requested_at is None:
                changes = {"paused_at": micros(now()), "status": BatchStatus.PAUSED.value}
                await connection.execute(CHANGED, {"key": row.id, **changes})
                await self._database.hint(connection)
        return BatchHandle(row.id, row.tenant, BatchStatus.PAUSED)

    @retried
    async def resume(self, batch_id: str, tenant: str | None = None) -> BatchHandle:
        """Let the items of a paused batch begin again, durably. Of one that has ended, those without an answer go on:
        ``reopen`` reopens them.

        Raises BatchNotFound, and BatchFinished if nothing is left to do.
        """
        async with self._database.write() as connection:
            row = await batch_row(connection, batch_id, tenant, lock=True)
            status = BatchStatus.QUEUED if row.started_at is None else BatchStatus.IN_PROGRESS
            if row.completed_at is not None:
                if row.gather_after is None and not await reopening.anything_left(connection, row.id):
                    raise BatchFinished("The batch has ended, and no item of it is without an answer")
                status = BatchStatus.IN_PROGRESS
                changes = {"progressed_at": micros(now()), **reopening.open_again(row)}
                await connection.execute(CHANGED, {"key": row.id, **changes})
                await self._database.hint(connection)
            elif row.paused_at is not None:
                changes = {"paused_at": None, "status": status.value, "workflow_started_at": None}
                await connection.execute(CHANGED, {"key": row.id, "progressed_at": micros(now()), **changes})
                await self._database.hint(connection)
        return BatchHandle(row.id, row.tenant, status)

    @retried
    async def reopen(self, batch_id: str) -> bool:
        """Reopen some items of a batch that was resumed after its end, the next in order. Returns whether others are
        left. Raises BatchNotFound."""
        async with self._database.write("fast") as connection:
            return await reopening.reopen_some(connection, await batch_row(connection, batch_id))

    @retried
    async def cancel(self, batch_id: str, tenant: str | None = None, *, error: JobError | None = None) -> BatchHandle:
        """Request the end of all items that have not ended, durably. Raises BatchNotFound, BatchFinished.

        Repeating the call has no effect. ``cancel_rest`` does what is requested. With an ``error`` the batch ends as
        failed.
        """
        async with self._database.write() as connection:
            row = await batch_row(connection, batch_id, tenant, lock=True)
            if row.status == BatchStatus.CANCELLED.value:
                return BatchHandle(row.id, row.tenant, BatchStatus.CANCELLED)
            _running(row)
            if row.cancel_requested_at is None:
                await request_cancel(connection, row, error)
                await self._database.hint(connection)
        return BatchHandle(row.id, row.tenant, BatchStatus.IN_PROGRESS)

    async def cancel_rest(self, batch_id: str) -> None:
        """Seal all jobs of a cancelled batch that have not ended. Those that run are left to their workers for
        CONFIRM_SECONDS; then they are sealed without them, and what the workers still write comes too late.

        Raises BatchNotFound, StorageError.
        """
        while await self.prepare(batch_id):  # an item without a job could not be found
            pass
        until = clocks.monotonic() + CONFIRM_SECONDS
        while True:
            cancelled = await self._cancel_some(batch_id, running=clocks.monotonic() > until)
            if not cancelled and not await self.open_jobs(batch_id):
                return
            await asyncio.sleep(0 if cancelled else LOOK_SECONDS)

    @retried
    async def _cancel_some(self, batch_id: str, *, running: bool) -> int:
        """Seal some jobs that have not begun, or with ``running`` any. Returns their number; 0: there are none."""
        async with self._database.write() as connection:
            ids = list((await connection.execute(WAITING, {"key": batch_id})).scalars())
            await connection.execute(ASK_RUNNING, {"key": batch_id, "time": micros(now())})
            if running and not ids:
                ids = list((await connection.execute(RUNNING.limit(CANCELLED_AT_ONCE), {"key": batch_id})).scalars())
            return await self._seal_as_cancelled(connection, ids) if ids else 0

    async def cancel_unconfirmed(self) -> None:
        """Seal the single jobs that were cancelled CONFIRM_SECONDS ago and that no worker has confirmed: it died, and
        the batch is paused. Raises StorageError."""
        async with self._database.single() as connection:
            before = {"before": micros(now()) - round(CONFIRM_SECONDS * 1_000_000)}
            ids = list((await connection.execute(UNCONFIRMED.limit(CANCELLED_AT_ONCE), before)).scalars())
        if ids:
            await self._cancel_jobs(ids)

    @retried
    async def _cancel_jobs(self, ids: Collection[str]) -> None:
        async with self._database.write() as connection:
            await self._seal_as_cancelled(connection, ids)

    async def _seal_as_cancelled(self, connection: AsyncConnection, ids: Collection[str]) -> int:
        rows = (await connection.execute(LOCKED_ALL, {"keys": sorted(ids)})).all()
        cancelled = Ending(job_id="-", status=JobStatus.CANCELLED)
        orders = [JobEnding(row, cancelled, "") for row in rows if row.completed_at is None]
        await sealing.seal_all(connection, orders, self._webhook_body)
        await self._database.hint(connection)
        return len(orders)

    async def open_jobs(self, batch_id: str) -> int:
        """The number of a batch's jobs that have not ended."""
        async with self._database.single() as connection:
            return int(await connection.scalar(COUNT_OPEN, {"key": batch_id}) or 0)

    # ------------------------------------------------------------------------------------------- its end

    @retried
    async def seal(self, batch_id: str, *, run_id: str) -> SealedBatch:
        """End a batch all of whose jobs have ended; for one that has ended already, its outcome is returned. If some
        are left, nothing is changed.

        ``run_id``: the workflow run that makes the first try of the webhook; "": none, and
        a sweeper does. Raises BatchNotFound.
        """
        async with self._database.write() as connection:
            row = await batch_row(connection, batch_id, lock=True)
            if row.completed_at is None:
                if (waits := await _what_is_left(connection, row)) is not None:
                    return waits
                row = await self._seal(connection, row, run_id)
                await self._database.hint(connection)
        delivery = await self._delivery_of(row, run_id)
        return SealedBatch(row.id, row.tenant, BatchStatus(row.status), delivery)

    async def _seal(self, connection: AsyncConnection, row: Row[Any], run_id: str) -> Row[Any]:
        time = micros(now())
        status = BatchStatus.CANCELLED if row.cancel_requested_at is not None else BatchStatus.COMPLETED
        if row.error is not None:
            status = BatchStatus.FAILED
        changes = {
            "status": status.value,
            "completed_at": time,
            "progressed_at": time,
            "paused_at": None,
            "started_at": row.started_at or time,
            "workflow_started_at": row.workflow_started_at or time,
            "sealed_by": run_id,
            "reopened": None,
        }
        await connection.execute(CHANGED, {"key": row.id, **changes})
        row = await batch_row(connection, row.id)
        await self._store_deliveries(connection, row, time, run_id)
        return row

    async def _store_deliveries(self, connection: AsyncConnection, row: Row[Any], time: int, run_id: str) -> None:
        webhook = BatchWebhook.model_validate_json(row.webhook) if row.webhook else None
        event = BatchEventType.of(BatchStatus(row.status))
        own = webhook.url if webhook is not None and event in webhook.events else None
        listening = (await subscribers(connection, {row.tenant})).get(row.tenant, ())
        endpoints = urls_for(event, listening, besides=own)
        if own is None and not endpoints:
            return
        common = {
            "job_id": row.id,
            "tenant": row.tenant,
            "event": event.value,
            "body": self._bodies(mapping.progress(row, 0)),
            "body_timestamp": rfc3339(moment(time)),
            "status": "pending",
            "created_at": time,
            "next_try_at": time,
        }
        place = {"url": own, "of_endpoint": False, "wanted_at": None if run_id else time}
        places = [] if own is None else [{"id": delivery_id(row.id, event, row.revision), **place}]
        for url in endpoints:
            place = {"url": url, "of_endpoint": True, "wanted_at": time}
            places.append({"id": delivery_id(row.id, event, row.revision, url), **place})
        await connection.execute(insert(deliveries), [common | place for place in places])

    async def _delivery_of(self, row: Row[Any], run_id: str) -> str | None:
        """The delivery whose first try this run makes."""
        if not run_id or row.sealed_by != run_id:
            return None
        found = delivery_id(row.id, BatchEventType.of(BatchStatus(row.status)), row.revision)
        query = select(deliveries.c.id).where(deliveries.c.id == found, deliveries.c.status == "pending")
        async with self._database.single() as connection:
            return await connection.scalar(query)

    # -------------------------------------------------------------------------------------------- sweeps

    async def to_start(self, *, older_than: timedelta, limit: int = 100) -> Sequence[BatchHandle]:
        """Batches whose workflow has to be started, or told of a wish.

        One that has begun is told of a wish at once: parts of it that run make progress all the time.
        """
        due = or_(batches.c.started_at.is_not(None), batches.c.progressed_at <= micros(now() - older_than))
        return await self._handles(OPEN_BATCHES.where(batches.c.workflow_started_at.is_(None), due).limit(limit))

    async def silent(self, *, since: timedelta, limit: int = 100) -> Sequence[BatchHandle]:
        """Started batches that have not ended and have made no progress for ``since``; paused ones make none."""
        started = (batches.c.workflow_started_at.is_not(None), batches.c.paused_at.is_(None))
        quiet = batches.c.progressed_at <= micros(now() - since)
        return await self._handles(OPEN_BATCHES.where(*started, quiet).limit(limit))

    async def to_cancel(self, limit: int = 100) -> Sequence[BatchHandle]:
        """Batches whose cancellation was requested and that have not ended."""
        wished = (batches.c.completed_at.is_(None), batches.c.cancel_requested_at.is_not(None))
        return await self._handles(select(batches).where(*wished).limit(limit))

    async def _handles(self, query: Any) -> Sequence[BatchHandle]:
        async with self._database.single() as connection:
            rows = (await connection.execute(query)).all()
        return [BatchHandle(row.id, row.tenant, BatchStatus(row.status)) for row in rows]

    @retried
    async def workflow_started(self, batch_id: str) -> None:
        """Record that a batch's workflow runs and knows what was asked of it."""
        time = micros(now())
        open_row = and_(batches.c.id == batch_id, batches.c.completed_at.is_(None))
        async with self._database.write("fast") as connection:
            values = {"workflow_started_at": time, "progressed_at": time}
            await connection.execute(update(batches).where(open_row).values(values))

    @retried
    async def touch(self, batch_ids: Collection[str], *, ahead: timedelta = timedelta()) -> None:
        """Record that batches are being worked on, so that no sweeper asks after them; ``ahead``: nor for so long."""
        async with self._database.write("fast") as connection:
            those = batches.c.id.in_(sorted(batch_ids))
            await connection.execute(update(batches).where(those).values(progressed_at=micros(now() + ahead)))


async def _open_item(connection: AsyncConnection, row: Any) -> OpenItem:
    problem = JobError.model_validate_json(row.problem) if row.problem else None
    return OpenItem(row.id, row.model, await _is_suspect(connection, row), problem)


async def _is_suspect(connection: AsyncConnection, row: Any) -> bool:
    return row.attempt >= SUSPECT_AFTER and await lost_in_a_row(connection, row) >= SUSPECT_AFTER


async def batch_row(
    connection: AsyncConnection, batch_id: str, tenant: str | None = None, *, lock: bool = False
) -> Row[Any]:
    row = (await connection.execute(LOCKED if lock else BY_ID, {"key": clean(batch_id)})).first()
    if row is None or tenant not in (None, row.tenant):
        raise BatchNotFound
    return row


async def request_cancel(connection: AsyncConnection, row: Row[Any], error: JobError | None = None) -> None:
    """Request the end of all items of a locked batch that have not ended; with an ``error`` it ends as failed."""
    time = micros(now())
    changes = {
        "cancel_requested_at": time,
        "error": error.model_dump_json() if error else None,
        "paused_at": None,
        "workflow_started_at": None,
        "status": BatchStatus.IN_PROGRESS.value,
        "started_at": row.started_at or time,
        "progressed_at": time,
    }
    await connection.execute(CHANGED, {"key": row.id, **changes})
    await connection.execute(ASK_RUNNING, {"key": row.id, "time": time})


async def _what_is_left(connection: AsyncConnection, row: Row[Any]) -> SealedBatch | None:
    """Why a batch cannot end yet; None if it can. What a cancelled one has not prepared is left as it is."""
    missing = row.total - row.prepared
    goes_on = row.cancel_requested_at is None and (row.reopened is not None or row.gather_after is not None)
    left = missing + int(await connection.scalar(COUNT_OPEN, {"key": row.id}) or 0)
    if not (left or goes_on):
        return None
    first = await connection.scalar(FIRST_OPEN, {"key": row.id})
    return SealedBatch(
        batch_id=row.id,
        tenant=row.tenant,
        status=BatchStatus(row.status),
        left=max(left, 1),
        first=None if first is None else item_number(first),
        unprepared=missing > 0 or goes_on,
    )


def _running(row: Row[Any]) -> Row[Any]:
    if row.completed_at is not None:
        raise BatchFinished(f"The batch has ended ({row.status}) and can no longer be changed")
    return row
