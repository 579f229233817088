"""What keeps a large store fast: numbers that are added up as jobs end, and filters that have an index."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, text

from chatjobs.contracts import JobStatus
from storage.engine.database import Database
from storage.engine.migrate import upgrade
from storage.engine.schema import ended_changes, ended_rollups, jobs, micros
from storage.jobs.follow_up import FollowUp
from storage.jobs.listing import FEW
from storage.jobs.overview import OutcomeBucket, Overview
from storage.jobs.retention import RetentionStore
from storage.jobs.rollups import GROWTH, SPAN, Rollups, bin_of, value_of
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.factories import accepted, answered, claimed, ending, failing, make_store

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC)


def row(number: int, **fields: Any) -> dict[str, Any]:
    """A finished job as a row."""
    ended = NOW - timedelta(minutes=number)
    times = {name: micros(ended) for name in ("workflow_started_at", "started_at", "progressed_at", "completed_at")}
    head = {"id": f"job_{number:05}", "tenant": "default", "request_id": "r", "body_hash": "", "model": "m"}
    state = {"status": "completed", "created_at": micros(ended) - 1_000_000, "fence": 1, "attempt": 1, "epoch": 1}
    rest = {"position": 0, "token_count": 2, "tail": "", "tail_channel": 0, "revision": 1, "metadata": {}}
    return {**head, **state, **times, **rest, "max_lost": 5, "priority": 3, **fields}


async def stored(database: Database, rows: Sequence[dict[str, Any]]) -> None:
    async with database.write() as connection:
        await connection.execute(insert(jobs), rows)


async def folded(database: Database) -> None:
    while await Rollups(database).fold():
        pass


async def counts(database: Database) -> dict[str, int]:
    return {status.value: n for status, n in (await Overview(database).counts("default")).items() if n}


# ---------------------------------------------------------------------------------------------------- counts


async def test_counts_are_exact_whether_folded_or_not(
    database: Database, store: JobStore, writer: TranscriptWriter
) -> None:
    """After each of: accepted, ended, reopened, content deleted, removed."""

    async def expect(**expected: int) -> None:
        assert await counts(database) == expected
        await folded(database)
        assert await counts(database) == expected

    ids = [await accepted(store) for _ in range(3)]
    await expect(queued=3)
    await claimed(store, ids[0])
    await store.seals.seal(failing(ids[0]), run_id="run-1")
    await expect(queued=2, failed=1)
    await store.seals.request_cancel(ids[1])
    await expect(queued=1, failed=1, cancelled=1)
    await claimed(store, ids[0], run_id="run-2")  # an operator's Reset
    await expect(queued=1, in_progress=1, cancelled=1)
    await store.seals.seal(failing(ids[0]), run_id="run-2")
    await store.seals.delete(ids[0])
    await expect(queued=1, failed=1, cancelled=1)
    retention, removed = RetentionStore(database), 0
    while removed < 2:
        removed += (await retention.remove(NOW + timedelta(days=30))).jobs
    await expect(queued=1)


async def test_several_processes_fold_each_change_once(database: Database) -> None:
    await stored(database, [row(number) for number in range(1_200)])
    others = [Rollups(database) for _ in range(4)]
    while True:
        await asyncio.gather(*(one.fold() for one in others))
        async with database.read() as connection:
            if not await connection.scalar(select(func.count()).select_from(ended_changes)):
                break
    assert await counts(database) == {"completed": 1_200}
    assert sum(bucket.completed for bucket in await charted(database)) == 1_200


# ---------------------------------------------------------------------------------------------------- charts


async def charted(database: Database, width: timedelta = HOUR, count: int = 48) -> Sequence[OutcomeBucket]:
    return await Overview(database).stats("default", until=NOW, bucket=width, count=count)


async def test_charts_of_rollups_are_those_of_the_jobs(database: Database) -> None:
    """Numbers and tokens are the same; percentiles are within 4 %."""
    chance = random.Random(7)  # noqa: S311
    outcomes = ("completed", "completed", "completed", "failed", "cancelled", "incomplete")
    rows = []
    for number in range(600):
        job = row(number, status=chance.choice(outcomes), tenant=chance.choice(("default", "default", "other")))
        took = int(chance.lognormvariate(1, 1.5) * 1_000_000)
        rows.append({**job, "created_at": job["completed_at"] - took})
    await stored(database, rows)
    await folded(database)
    rolled = await charted(database, HOUR, 12)
    exact = [bucket_of(rows, bucket.at) for bucket in rolled]
    for found, wanted in zip(rolled, exact, strict=True):
        assert (found.completed, found.failed, found.cancelled, found.incomplete) == wanted[:4]
        assert found.tokens == 2 * sum(wanted[:4])
        for value, true in ((found.latency_p50, wanted[4]), (found.latency_p95, wanted[5])):
            assert (value is None) == (true is None)
            assert true is None or value == pytest.approx(true, rel=0.04, abs=1)


def bucket_of(rows: Sequence[dict[str, Any]], at: datetime) -> tuple[Any, ...]:
    """The figures of one hour, counted one by one."""
    begin, end = micros(at), micros(at + HOUR)
    mine = [job for job in rows if job["tenant"] == "default" and begin <= job["completed_at"] < end]
    number = {status: sum(job["status"] == status for job in mine) for status in JobStatus}
    times = sorted(
        (job["completed_at"] - job["created_at"]) / 1_000
        for job in mine
        if job["status"] in ("completed", "incomplete")
    )
    ranks = [times[-(-len(times) * percent // 100) - 1] if times else None for percent in (50, 95)]
    statuses = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.INCOMPLETE)
    return (*(number[status] for status in statuses), *ranks)


async def test_charts_keep_what_was_removed_and_not_what_was_reopened(
    database: Database, store: JobStore, writer: TranscriptWriter
) -> None:
    job_id = await answered(store, writer, "Hello")
    await store.seals.seal(ending(job_id), run_id="run-1")
    failed = await accepted(store)
    await claimed(store, failed)
    await store.seals.seal(failing(failed), run_id="run-1")
    await folded(database)
    assert [(one.completed, one.failed) for one in await latest(database)] == [(1, 1)]
    await claimed(store, failed, run_id="run-2")
    await folded(database)
    assert [(one.completed, one.failed) for one in await latest(database)] == [(1, 0)]
    await RetentionStore(database).remove(NOW + timedelta(days=30))
    await folded(database)
    (last,) = await latest(database)
    assert (last.completed, last.tokens) == (1, 1)


async def latest(database: Database) -> list[OutcomeBucket]:
    found = await Overview(database).stats("default", until=datetime.now(UTC), bucket=SPAN, count=12)
    return [bucket for bucket in found if bucket.completed or bucket.failed]


async def test_rollups_are_not_kept_for_ever(database: Database) -> None:
    await stored(database, [row(0), row(60 * 24 * 20)])
    await folded(database)
    async with database.write() as connection:
        await connection.execute(
            insert(ended_rollups).values(tenant="default", at=micros(NOW - timedelta(days=9)), figures="[{}, {}, {}]")
        )
    await Rollups(database).prune()
    async with database.read() as connection:
        (at,) = (await connection.execute(select(ended_rollups.c.at))).scalars()
    assert at > micros(NOW - HOUR)


@pytest.mark.parametrize("value", [1, 2, 3, 10, 999.5, 12_345, 275_000_000])
def test_a_bin_is_at_most_four_percent_wide_on_either_side(value: float) -> None:
    assert value_of(bin_of(value)) == pytest.approx(value, rel=GROWTH**0.5 - 1, abs=0.51)


# --------------------------------------------------------------------------------------------------- filters


async def test_filters_find_the_same_jobs_whether_few_or_many_match(database: Database) -> None:
    """Alone and together, in pages: compared with the rows one by one."""
    rows = [
        row(
            number,
            status="failed" if number % 3 == 0 else "completed",
            error_code="upstream_cut" if number % 6 == 0 else "rate_limited" if number % 3 == 0 else None,
            model="rare" if number == 77 else "m",
            batch_id="batch_1" if number % 2 else None,
            replay_of="job_00001" if number in (5, 9) else None,
            metadata={"all": "x", "order": str(number), "long": "v" * 150 + str(number % 2)},
        )
        for number in range(FEW + 500)
    ]
    await stored(database, rows)
    choices: list[dict[str, Any]] = [
        {},
        {"status": JobStatus.FAILED},
        {"error_code": "upstream_cut"},
        {"model": "rare"},
        {"model": "none"},
        {"batch_id": "batch_1"},
        {"replay_of": "job_00001"},
        {"metadata": {"order": "42"}},
        {"metadata": {"all": "x"}},
        {"metadata": {"all": "x", "order": "42"}},
        {"metadata": {"long": "v" * 150 + "1"}},
        {"metadata": {"all": "y"}},
        {"metadata": {"all": "x"}, "model": "m"},
        {"metadata": {"all": "x"}, "status": JobStatus.FAILED, "error_code": "upstream_cut", "batch_id": "batch_1"},
        {"metadata": {"all": "x"}, "since": NOW - timedelta(minutes=90), "until": NOW - timedelta(minutes=30)},
        {"model": "m", "since": NOW - timedelta(minutes=90), "until": NOW - timedelta(minutes=30)},
    ]
    for chosen in choices:
        wanted = [job["id"] for job in rows if matches(job, chosen)]
        for tenant in ("default", None):
            assert await pages(make_store(database), tenant, chosen) == wanted[:90], chosen


def matches(job: dict[str, Any], chosen: dict[str, Any]) -> bool:
    created = job["created_at"]
    plain = {name: value for name, value in chosen.items() if name not in ("metadata", "since", "until")}
    return (
        all(job[name] == value for name, value in plain.items())
        and all(job["metadata"].get(key) == value for key, value in chosen.get("metadata", {}).items())
        and ("since" not in chosen or created >= micros(chosen["since"]))
        and ("until" not in chosen or created < micros(chosen["until"]))
    )


async def pages(store: JobStore, tenant: str | None, chosen: dict[str, Any]) -> list[str]:
    """The ids of the first three pages."""
    found: list[str] = []
    before = None
    for _ in range(3):
        page = await store.queries.list(tenant=tenant, before=before, limit=30, **chosen)
        found += [job.job_id for job in page]
        if len(page) < 30:
            break
        before = (micros(page[-1].created_at), page[-1].job_id)
    return found


async def test_operators_see_the_jobs_of_all_tenants_in_one_order(database: Database) -> None:
    await stored(database, [row(number, tenant=f"tenant-{number % 3}") for number in range(30)])
    store = make_store(database)
    assert await pages(store, None, {}) == [f"job_{number:05}" for number in range(30)]
    assert await pages(store, "tenant-1", {}) == [f"job_{number:05}" for number in range(1, 30, 3)]


async def test_no_filter_goes_through_all_jobs(sqlite: Database) -> None:
    """Each list begins in an index with more than the tenant, or follows the order of the newest jobs."""
    store = make_store(sqlite)
    await stored(sqlite, [row(number, metadata={"all": "x"}) for number in range(10)])
    plans: dict[str, list[str]] = {}
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: Any) -> None:
        statements.append((statement, values))

    event.listen(sqlite.reading.sync_engine, "before_cursor_execute", note)
    choices: list[dict[str, Any]] = [
        {"status": JobStatus.FAILED},
        {"error_code": "x"},
        {"model": "none"},
        {"batch_id": "b"},
        {"metadata": {"all": "x"}},
        {"before": (1, "job_1")},
        {"search": "word"},
    ]
    for chosen in choices:
        statements.clear()
        await store.queries.list(tenant="default", **chosen)
        listed = [one for one in statements if one[0].lstrip().startswith("SELECT")]
        for statement, values in listed:
            async with sqlite.read() as connection:
                found = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)).all()
            plans.setdefault(str(chosen), []).extend(str(tuple(one)[-1]) for one in found)
    for chosen_text, plan in plans.items():
        assert not any(step.startswith(("SCAN jobs", "SCAN search_entries", "SCAN job_metadata")) for step in plan), (
            chosen_text,
            plan,
        )
        assert not any(step.endswith("jobs_newest (tenant=?)") for step in plan), (chosen_text, plan)


# ------------------------------------------------------------------------------------------------- migration


async def test_a_database_of_the_version_before_is_followed_up(empty_database_url: str) -> None:
    """Its jobs are counted and filtered at once, charted and found after a while."""
    old = Database.as_it_is(empty_database_url)
    async with old.write() as connection:
        await connection.run_sync(lambda sync: upgrade(sync, "0007"))
        rows = [row(number, metadata={"order": str(number)}) for number in range(5)]
        await connection.execute(insert(jobs), rows)
        body = '{"messages": [{"role": "user", "content": "an old question"}]}'
        await connection.execute(
            text("INSERT INTO requests (job_id, body) VALUES (:job, :body)"),
            [{"job": one["id"], "body": body} for one in rows],
        )
    await old.close()
    database = await Database.open(empty_database_url)
    store = make_store(database)
    assert await counts(database) == {"completed": 5}
    (job,) = await store.queries.list(tenant="default", metadata={"order": "3"})
    assert (job.job_id, job.preview) == ("job_00003", "an old question")
    kept = FollowUp(database)
    async with kept.ready():
        while await kept.step():
            pass
    found = await store.queries.list(tenant="default", search="old question")
    assert [job.job_id for job in found] == [f"job_{number:05}" for number in range(5)]
    assert sum(bucket.completed for bucket in await charted(database)) == 5
    assert await counts(database) == {"completed": 5}
    await database.close()
