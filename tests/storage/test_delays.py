"""Delayed jobs in storage: taken when they are due, once, and cheap while they wait."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, text

from chatjobs.contracts import JobStatus, rfc3339
from storage.engine.database import Database
from storage.jobs.store import JobStore
from tests.support.factories import accepted, claimed

NONE = timedelta(0)
MINUTE = timedelta(minutes=1)


def at(ahead: timedelta) -> str:
    return rfc3339(datetime.now(UTC) + ahead)


async def test_only_what_is_due_is_taken_and_by_one_sweeper(store: JobStore) -> None:
    later = await accepted(store, startAt=at(MINUTE))
    due = [await accepted(store, startAt=at(timedelta(seconds=-second))) for second in (1, 3, 2)]
    taken = await store.sweep.due(older_than=MINUTE)
    assert [job.job_id for job in taken] == [due[1], due[2], due[0]]
    assert await store.sweep.due(older_than=MINUTE) == []
    assert {job.job_id for job in await store.sweep.due(older_than=NONE)} == set(due), "its taker may have died"
    assert await store.sweep.unstarted(older_than=NONE) == []
    assert (await store.queries.get(later)).status is JobStatus.QUEUED


async def test_a_claim_before_the_time_takes_nothing(store: JobStore) -> None:
    job_id = await accepted(store, startAt=at(MINUTE))
    claim = await claimed(store, job_id)
    assert (claim.outcome, claim.attempt) == ("early", 0)
    assert 50 < claim.seconds <= 60


async def test_a_job_that_was_started_and_is_cancelled_before_its_time_ends_at_once(store: JobStore) -> None:
    job_id = await accepted(store, startAt=at(MINUTE))
    await store.acceptance.workflow_started(job_id)
    assert await store.seals.request_cancel(job_id) is JobStatus.CANCELLED
    assert (await claimed(store, job_id)).outcome == "sealed"


async def test_the_looks_of_a_sweeper_read_no_delayed_job(database: Database, store: JobStore) -> None:
    """By the plans of its statements: each begins at an index that has none of them, or only those that are due."""
    for _ in range(200):
        await accepted(store, startAt=at(MINUTE))
    if not database.is_sqlite:
        async with database.write() as connection:
            await connection.execute(text("ANALYZE jobs"))
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        seen.append((statement, parameters))

    engine = database.reading.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    looks = [store.sweep.unstarted(older_than=NONE), store.sweep.due(older_than=NONE), store.sweep.to_cancel()]
    assert await asyncio.gather(*looks, store.sweep.silent(since=NONE)) == [[]] * 4
    event.remove(engine, "before_cursor_execute", note)
    queries = [one for one in seen if "FROM jobs" in one[0]]
    assert len(queries) == 4
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    async with database.read() as connection:
        for statement, parameters in queries:
            rows = (await connection.exec_driver_sql(explain + statement, parameters)).all()
            plan = " ".join(str(row[-1]) for row in rows)
            assert "jobs_open" in plan or "jobs_delayed" in plan, (statement, plan)
