"""The numbers of the whole service that operators watch."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import update

from storage.engine.database import Database
from storage.engine.schema import jobs
from storage.jobs.counts import counts
from storage.jobs.store import JobStore
from tests.support.factories import accepted

HOUR = 3_600_000_000


async def test_who_waits_longest(database: Database, store: JobStore) -> None:
    """Not an item of a batch, which waits for those before it, and not a delayed job before its time."""
    item = await accepted(store)
    delayed = await accepted(store, startAt=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    made = int(time.time() * 1_000_000)
    async with database.write("fast") as connection:
        await connection.execute(update(jobs).values(created_at=made - 3 * HOUR))
        await connection.execute(update(jobs).where(jobs.c.id == item).values(batch_id="batch-1"))
    assert (await counts(database)).oldest_queued_seconds == 0
    async with database.write("fast") as connection:
        await connection.execute(update(jobs).where(jobs.c.id == delayed).values(start_at=made - HOUR))
    assert 3_600 <= (await counts(database)).oldest_queued_seconds < 3_900
    alone = await accepted(store)
    async with database.write("fast") as connection:
        await connection.execute(update(jobs).where(jobs.c.id == alone).values(created_at=made - 2 * HOUR))
    assert 7_200 <= (await counts(database)).oldest_queued_seconds < 7_500
