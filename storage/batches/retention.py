"""Removal of batches whose retention is over. Their jobs are removed like any others (storage/jobs/retention.py)."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select

from storage.engine.database import Database, retried
from storage.engine.schema import batch_items, batches, deliveries, delivery_tries, micros

ITEMS_AT_ONCE = 1_000
"""Items that one transaction deletes."""


class BatchRetention:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def oldest(self, ended_before: datetime) -> str | None:
        """The id of a batch that ended before a time; None if there is none."""
        ended = batches.c.completed_at < micros(ended_before)
        async with self._database.single() as connection:
            return await connection.scalar(select(batches.c.id).where(ended).order_by(batches.c.created_at).limit(1))

    @retried
    async def remove_some(self, batch_id: str) -> None:
        """Remove some items of a batch, and with the last ones the batch."""
        some = select(batch_items.c.number).where(batch_items.c.batch_id == batch_id).limit(ITEMS_AT_ONCE)
        async with self._database.write("fast") as connection:
            numbers = list((await connection.execute(some)).scalars())
            mine = batch_items.c.batch_id == batch_id
            await connection.execute(delete(batch_items).where(mine, batch_items.c.number.in_(numbers)))
            if len(numbers) == ITEMS_AT_ONCE:
                return
            sent = select(deliveries.c.id).where(deliveries.c.job_id == batch_id)
            await connection.execute(delete(delivery_tries).where(delivery_tries.c.delivery_id.in_(sent)))
            await connection.execute(delete(deliveries).where(deliveries.c.job_id == batch_id))
            await connection.execute(delete(batches).where(batches.c.id == batch_id))
