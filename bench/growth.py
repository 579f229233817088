"""The service's reads and writes with a million finished jobs in the store, on SQLite and on Postgres.

``python -m bench.growth --jobs 1000000 --database sqlite``; bench/growth_store.py says what the store has. The times of
reads are medians of 20, without HTTP; accepting is measured against an empty store in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from activities.retention import pause_after
from bench import growth_store
from bench.growth_store import RARE_MODEL, TENANT, word
from bench.table import Row, table
from chatjobs.contracts import JobStatus
from gateway.page.overview import WINDOWS
from storage.engine.database import Database
from storage.jobs.follow_up import catch_up
from storage.jobs.overview import Overview
from storage.jobs.retention import BEGINNING, RetentionStore
from storage.jobs.store import JobStore
from tests.support.factories import make_job, make_store
from tests.support.postgres import postgres

JOBS = 1_000_000
JOBS_OF_ALL = 100_000
"""In a run of all benchmarks, which a million would make half an hour longer."""
TIMES = 20
ACCEPTS = 300
REMOVED = 10_000
FOLLOWING_SECONDS = 3_600
READ_MS, CHART_MS, ACCEPT_RATIO, REMOVED_PER_SECOND = 50, 200, 1.2, 1_000


async def timed(work: Callable[[], Awaitable[object]], times: int = TIMES) -> float:
    """The median of some runs, in milliseconds; the first one is not counted."""
    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - began) * 1_000)
    return statistics.median(taken[1:])


async def accepting(*stores: JobStore) -> list[float]:
    """Milliseconds to accept a job with metadata, one after the other, in each store; medians, measured in turns."""
    taken: list[list[float]] = [[] for _ in stores]
    for _ in range(ACCEPTS):
        for store, times in zip(stores, taken, strict=True):
            job = make_job("Hello", metadata={"order": "new", "env": "production"})
            began = time.perf_counter()
            await store.acceptance.accept(job)
            times.append((time.perf_counter() - began) * 1_000)
    return [statistics.median(times) for times in taken]


async def caught_up(database: Database) -> float:
    """Follow up on all jobs; the seconds that it took."""
    began = time.monotonic()
    await catch_up(database, FOLLOWING_SECONDS)
    return time.monotonic() - began


def reads(store: JobStore, overview: Overview, jobs: int) -> dict[str, Callable[[], Awaitable[object]]]:
    """What the page and the API ask for, by name."""

    def listed(**filters: Any) -> Callable[[], Awaitable[object]]:
        return lambda: store.queries.list(tenant=TENANT, **filters)

    month = datetime.now(UTC) - timedelta(days=15)
    middle = (int((datetime.now(UTC) - timedelta(days=15)).timestamp() * 1_000_000), "job_")
    order = str(jobs // 2 + 3)
    return {
        "list, first page": listed(),
        "list, a page in the middle": listed(before=middle),
        "list, status=failed": listed(status=JobStatus.FAILED),
        "list, model of 10 jobs": listed(model=RARE_MODEL),
        "list, model of none": listed(model="none"),
        "list, metadata of 1 job": listed(metadata={"order": order}),
        "list, metadata of none": listed(metadata={"order": "none"}),
        "list, metadata of all": listed(metadata={"env": "production"}),
        "list, errorCode": listed(error_code="queue_timeout"),
        "list, status, errorCode, metadata of all": listed(
            status=JobStatus.FAILED, error_code="upstream_cut", metadata={"env": "production"}
        ),
        "list, status=queued, metadata of all": listed(status=JobStatus.QUEUED, metadata={"env": "production"}),
        "list, model of 10 jobs, status=failed": listed(model=RARE_MODEL, status=JobStatus.FAILED),
        "list, replayOf": listed(replay_of="job_00000001"),
        "list, batchId": listed(batch_id="batch_none"),
        "list, since and until 15 days ago": listed(since=month - timedelta(hours=1), until=month),
        "search, word of 1 job": listed(search=f"number{order}"),
        "search, two words of 1 % each": listed(search=f"{word(600)} {word(700)}"),
        "search, two common words": listed(search=f"{word(3)} {word(5)}"),
        "search, beginning of a word": listed(search=f"{word(40)} {word(9_000)[:-1]}"),
        "search, common word and status=failed": listed(search=word(3), status=JobStatus.FAILED),
        "search, common word, 15 days ago": listed(search=word(3), until=month),
        "search, word of none": listed(search="nowhere"),
        "counts": lambda: overview.counts(TENANT),
    }


def charts(overview: Overview) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        f"charts of {name}, cold": lambda width=width, count=count: overview.stats(  # type: ignore[misc]
            TENANT, until=datetime.now(UTC), bucket=width, count=count
        )
        for name, (width, count) in WINDOWS.items()
    }


async def removing(database: Database) -> float:
    """Jobs per second that retention removes, with the pauses that the activity makes."""
    store, place, removed = RetentionStore(database), BEGINNING, 0
    before = datetime.now(UTC) - timedelta(days=growth_store.DAYS / 2)
    began = time.monotonic()
    while removed < REMOVED:
        step = time.monotonic()
        found = await store.remove(before, after=place)
        removed += found.jobs
        if found.place is None:
            break
        place = found.place
        await asyncio.sleep(pause_after(time.monotonic() - step))
    return removed / (time.monotonic() - began)


async def measure(kind: str, url: str, empty_url: str, jobs: int) -> list[Row]:
    """Fill the database at ``url``, and measure it."""
    database = await Database.open(url)
    began = time.monotonic()
    if database.is_sqlite:
        await asyncio.to_thread(growth_store.fill_sqlite, str(database.url.database), jobs)
    else:
        await growth_store.fill_postgres(url, jobs)
        await growth_store.vacuum(url)
    filled = time.monotonic() - began
    following = await caught_up(database)
    if not database.is_sqlite:
        await growth_store.vacuum(url)
    name = f"follow up on jobs, after the store was filled in {filled:.0f} s"
    empty = await Database.open(empty_url)
    rows = [_row(kind, name, jobs / following, "jobs/s", None), *await measured_store(kind, database, empty, jobs)]
    await empty.close()
    await database.close()
    return rows


async def measured_store(kind: str, database: Database, empty: Database, jobs: int) -> list[Row]:
    """The figures of a store with so many finished jobs, and of an empty one."""
    store, overview, rows = make_store(database), Overview(database), []
    for name, work in reads(store, overview, jobs).items():
        rows.append(_row(kind, name, await timed(work), "ms", READ_MS))
    for name, work in charts(overview).items():
        rows.append(_row(kind, name, await timed(work, 5), "ms", CHART_MS))
    rows.append(_accept_row(kind, *await accepting(make_store(empty), store)))
    removed = await removing(database)
    name = "retention, with its pauses"
    rows.append(_row(kind, name, removed, "jobs/s", REMOVED_PER_SECOND, met=removed >= REMOVED_PER_SECOND))
    if database.is_sqlite:
        rows.append(_row(kind, "database file", os.stat(str(database.url.database)).st_size / 1e9, "GB", None))
    return rows


def _row(kind: str, name: str, value: float, unit: str, target: float | None, *, met: bool | None = None) -> Row:
    sign = "≥" if met is not None else "≤"
    return Row(
        name=f"{kind}: {name}",
        value=value,
        unit=unit,
        baseline="",
        ratio=None,
        target=None if target is None else f"{sign} {target:,} {unit}",
        met=met if met is not None else (None if target is None else value <= target),
    )


def _accept_row(kind: str, empty: float, full: float) -> Row:
    return Row(
        name=f"{kind}: accept a job, p50",
        value=full,
        unit="ms",
        baseline=f"empty store: {empty:.2f} ms",
        ratio=full / empty,
        target=f"≤ {ACCEPT_RATIO} ×",
        met=full / empty <= ACCEPT_RATIO,
    )


def measured(jobs: int, kinds: Sequence[str]) -> list[Row]:
    logging.disable(logging.WARNING)
    rows: list[Row] = []
    for kind in kinds:
        with ExitStack() as stack:
            if kind == "sqlite":
                home = stack.enter_context(tempfile.TemporaryDirectory(prefix="chatjobs-bench-"))
                urls = [f"sqlite:///{Path(home) / name}" for name in ("full.db", "empty.db")]
            else:
                server = stack.enter_context(postgres())
                urls = [server.new_database() for _ in range(2)]
            rows += asyncio.run(measure(kind, urls[0], urls[1], jobs))
    return rows


def run_full() -> list[Row]:
    return measured(JOBS_OF_ALL, ("sqlite", "postgres"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m bench.growth", description=__doc__)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--database", choices=("sqlite", "postgres"), action="append")
    given = parser.parse_args()
    print(table(measured(given.jobs, given.database or ("sqlite", "postgres"))))
