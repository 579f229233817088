"""Uploads of batches: items are stored as they arrive, and the batch begins to exist with the last one.

A draft has a row that nobody sees. If its upload breaks off it is deleted, by the process that took it or, if that
died, by any other one later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, delete, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import BatchStatus
from chatjobs.errors import IdempotencyMismatch
from domain.batches import BatchHandle, NewBatch, NewItem
from domain.errors import StorageRefused, StorageUnavailable
from domain.text import clean, clean_json
from storage.batches.tally import BatchTally
from storage.engine.database import Database, retried
from storage.engine.schema import batch_items, batches, micros, now, requests

DRAFT = "draft"
ABANDONED_AFTER = timedelta(hours=1)
"""A draft to which nothing was added for so long is deleted: its upload is over."""
DELETED_AT_ONCE = 500
"""Items that one transaction deletes."""

REQUESTS = insert(requests)
ITEMS = insert(batch_items)
TOUCH = update(batches).where(batches.c.id == bindparam("key"), batches.c.status == DRAFT)
SAME_NAMES = select(batch_items.c.custom_id, batch_items.c.number).where(
    batch_items.c.batch_id == bindparam("key"), batch_items.c.custom_id.in_(bindparam("names", expanding=True))
)
BY_KEY = select(batches).where(batches.c.tenant == bindparam("owner"), batches.c.idempotency_key == bindparam("given"))


class DraftStore:
    """Stores the items of uploads, and makes batches of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_key(self, tenant: str, key: str) -> bool:
        """Whether the tenant has a batch with this idempotency key."""
        async with self._database.single() as connection:
            return (await connection.execute(BY_KEY, {"owner": tenant, "given": key})).first() is not None

    @retried
    async def begin(self, batch_id: str, tenant: str) -> None:
        """Make the row of a draft. Raises StorageError."""
        time = micros(now())
        async with self._database.write("fast") as connection:
            await connection.execute(
                insert(batches).values(
                    id=batch_id,
                    tenant=tenant,
                    body_hash="",
                    status=DRAFT,
                    lane="live",
                    total=0,
                    prepared=0,
                    tally=BatchTally().json(),
                    created_at=time,
                    progressed_at=time,
                    revision=1,
                )
            )

    async def same_names(self, batch_id: str, names: Sequence[str]) -> dict[str, int]:
        """The items that have one of these names: the number by ``custom_id``."""
        async with self._database.single() as connection:
            found = await connection.execute(SAME_NAMES, {"key": batch_id, "names": list(names)})
            return {row.custom_id: row.number for row in found}

    @retried
    async def add(self, batch_id: str, items: Sequence[NewItem]) -> None:
        """Store items, whose names are new in the batch. Raises StorageUnavailable, also if the draft was deleted
        meanwhile."""
        async with self._database.write("fast") as connection:
            touched = await connection.execute(TOUCH, {"key": batch_id, "progressed_at": micros(now())})
            if not touched.rowcount:
                raise StorageUnavailable("The upload was given up; send it again")
            await connection.execute(REQUESTS, [{"job_id": item.job_id, "body": item.request_json} for item in items])
            await connection.execute(ITEMS, [item_row(batch_id, item) for item in items])

    async def publish(self, batch: NewBatch) -> BatchHandle:
        """Make a draft with all its items a batch, durably; from now on it is seen, and begins.

        If the tenant has a batch with the same idempotency key, that one is returned, and the draft is of no use.
        Raises IdempotencyMismatch, StorageError.
        """
        try:
            return await self._publish(batch)
        except StorageRefused:
            if batch.idempotency_key is None or (found := await self.existing(batch)) is None:
                raise
            return found  # another upload with the same key was there a moment earlier

    @retried
    async def _publish(self, batch: NewBatch) -> BatchHandle:
        async with self._database.write() as connection:
            found = await existing(connection, batch.tenant, batch.idempotency_key, batch.body_hash)
            if found is not None:
                return found
            settings, time = batch.settings, micros(now())
            changed = await connection.execute(
                update(batches)
                .where(batches.c.id == batch.batch_id, batches.c.status == DRAFT)
                .values(
                    name=clean(settings.name) if settings.name else None,
                    idempotency_key=batch.idempotency_key,
                    body_hash=batch.body_hash,
                    status=BatchStatus.QUEUED.value,
                    webhook=settings.webhook.model_dump_json() if settings.webhook else None,
                    concurrency=settings.concurrency,
                    lane=settings.lane,
                    deadline=micros(settings.deadline) if settings.deadline else None,
                    total=batch.total,
                    schedule_id=batch.schedule_id,
                    created_at=time,
                    progressed_at=time,
                )
            )
            if not changed.rowcount:
                raise StorageUnavailable("The upload was given up; send it again")
        return BatchHandle(batch.batch_id, batch.tenant, BatchStatus.QUEUED, created=True)

    async def existing(self, batch: NewBatch) -> BatchHandle | None:
        """The tenant's batch with the same idempotency key. Raises IdempotencyMismatch."""
        async with self._database.single() as connection:
            return await existing(connection, batch.tenant, batch.idempotency_key, batch.body_hash)

    async def discard(self, batch_id: str) -> None:
        """Delete a draft and its items, in steps; what is no draft stays. Raises StorageError."""
        while await self._discard_some(batch_id):
            pass

    @retried
    async def _discard_some(self, batch_id: str) -> bool:
        draft = exists().where(batches.c.id == batch_id, batches.c.status == DRAFT)
        some = select(batch_items.c.job_id).where(batch_items.c.batch_id == batch_id, draft).limit(DELETED_AT_ONCE)
        async with self._database.write("fast") as connection:
            ids = list((await connection.execute(some)).scalars())
            if ids:
                await connection.execute(delete(requests).where(requests.c.job_id.in_(ids)))
                mine = (batch_items.c.batch_id == batch_id, batch_items.c.job_id.in_(ids))
                await connection.execute(delete(batch_items).where(*mine))
                return True
            await connection.execute(delete(batches).where(batches.c.id == batch_id, batches.c.status == DRAFT))
            return False

    async def discard_abandoned(self) -> int:
        """Delete the drafts whose upload is over. Returns their number."""
        old = micros(now() - ABANDONED_AFTER)
        query = select(batches.c.id).where(
            batches.c.completed_at.is_(None), batches.c.status == DRAFT, batches.c.progressed_at < old
        )
        async with self._database.single() as connection:
            found = list((await connection.execute(query)).scalars())
        for batch_id in found:
            await self.discard(batch_id)
        return len(found)


async def existing(connection: AsyncConnection, tenant: str, key: str | None, body_hash: str) -> BatchHandle | None:
    """The tenant's batch with an idempotency key. Raises IdempotencyMismatch if it was made for another request."""
    if key is None:
        return None
    row = (await connection.execute(BY_KEY, {"owner": tenant, "given": key})).first()
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise IdempotencyMismatch
    return BatchHandle(row.id, row.tenant, BatchStatus(row.status))


def item_row(batch_id: str, item: NewItem) -> dict[str, Any]:
    return {
        "batch_id": batch_id,
        "number": item.number,
        "custom_id": item.custom_id,
        "job_id": item.job_id,
        "request_id": item.request_id,
        "body_hash": item.body_hash,
        "webhook": item.webhook,
        "model": item.model,
        "metadata": clean_json(dict(item.metadata)) if item.metadata else {},
        "priority": item.priority,
        "max_lost": item.max_lost,
        "problem": item.problem,
        "queue_time": None if item.queue_seconds is None else round(item.queue_seconds * 1_000_000),
    }
