"""What the list is made of: counts, changes and figures; and the feed that tells of them, from any gateway."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import event, update

from chatjobs.contracts import JobStatus
from dispatch.job_details import JobDetails
from dispatch.temporal import RunLinks
from gateway.page.overview import Feeds, Figures
from storage.engine.database import Database
from storage.engine.schema import jobs, micros
from storage.jobs.overview import Changed, OutcomeBucket, Overview
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.factories import accepted, answered, claimed, ending, failing, make_body, make_store, wrote
from tests.support.gateway import Gateway, alone, gateway
from tests.support.stack import Stack

MINUTE = timedelta(minutes=1)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def overview(database: Database) -> Overview:
    return Overview(database)


def ids(changed: Changed) -> set[str]:
    return {job.job_id for job in changed.jobs}


async def sealed(store: JobStore, writer: TranscriptWriter, *, ended: datetime, took: float, **fields: Any) -> str:
    """The id of a completed job that ended at a time, so many seconds after it was accepted."""
    job_id = await answered(store, writer, **fields)
    await store.seals.seal(ending(job_id), run_id="run-1")
    await dated(store, job_id, ended, took)
    return job_id


async def dated(store: JobStore, job_id: str, ended: datetime, took: float) -> None:
    times = {"created_at": micros(ended) - int(took * 1_000_000), "completed_at": micros(ended)}
    async with store.queries._database.write() as connection:
        await connection.execute(update(jobs).where(jobs.c.id == job_id).values(**times))


# ------------------------------------------------------------------------------------------------------ storage


async def test_counts_are_one_tenants(store: JobStore, writer: TranscriptWriter, overview: Overview) -> None:
    await accepted(store)
    await accepted(store, tenant="other")
    await claimed(store, await accepted(store))
    await store.seals.seal(failing(await accepted(store)), run_id="run-1")
    found = await overview.counts("default")
    assert {status.value: count for status, count in found.items() if count} == {
        "queued": 1,
        "in_progress": 1,
        "failed": 1,
    }
    assert set(found) == set(JobStatus)


async def test_changed_jobs(store: JobStore, writer: TranscriptWriter, overview: Overview, database: Database) -> None:
    """Accepted, gone on, or ended since; whatever has not moved is left out, and so is what others have."""
    still, moved, over = [await accepted(store) for _ in range(3)]
    claims = [await claimed(store, job_id) for job_id in (still, moved)]
    await store.seals.seal(failing(over), run_id="run-1")
    async with database.write() as connection:
        old = {"created_at": micros(LONG_AGO), "progressed_at": micros(LONG_AGO)}
        await connection.execute(update(jobs).values(**old))
        await connection.execute(update(jobs).where(jobs.c.id == over).values(completed_at=micros(LONG_AGO)))
    since = datetime.now(UTC)
    assert ids(await overview.changed("default", since, limit=10)) == set()
    await wrote(writer, claims[1], "Hello")
    new = await accepted(store)
    await accepted(store, tenant="other")
    assert ids(await overview.changed("default", since, limit=10)) == {moved, new}
    await store.seals.seal(failing(still), run_id="run-1")
    assert ids(await overview.changed("default", since, limit=10)) == {moved, new, still}
    first = await overview.changed("default", since, limit=1)
    assert ([job.job_id for job in first.jobs], first.more) == ([new], True)


async def test_stats_are_what_one_would_count(store: JobStore, writer: TranscriptWriter, overview: Overview) -> None:
    """Per bucket: how many ended and how, and nearest-rank percentiles of how long they took."""
    until = datetime(2026, 11, 22, 12, 0, 30, tzinfo=UTC)
    took = [0.5, 1.0, 2.5, 4.0, 30.0]
    for seconds in took:
        await sealed(store, writer, ended=until - MINUTE, took=seconds)
    failed = await accepted(store)
    await store.seals.seal(failing(failed), run_id="run-1")
    await dated(store, failed, until, 1)
    await sealed(store, writer, ended=until - 5 * MINUTE, took=1)  # before the window
    await sealed(store, writer, ended=until, took=1, tenant="other")
    found = await overview.stats("default", until=until, bucket=MINUTE, count=3)
    assert [bucket.at.minute for bucket in found] == [58, 59, 0]
    assert [bucket.completed for bucket in found] == [0, 5, 0]
    assert [bucket.failed for bucket in found] == [0, 0, 1]
    middle = found[1]
    assert (middle.latency_p50, middle.latency_p95) == (statistics.median(took) * 1000, 30_000)
    assert middle.tokens == 2 * len(took)  # two deltas each
    assert found[0].latency_p50 is None


async def test_the_looks_use_their_indexes(sqlite: Database) -> None:
    """Neither the one every second nor the figures go through all jobs of a tenant."""
    plans: list[str] = []
    for statement, values in await recorded(sqlite, Overview(sqlite)):
        async with sqlite.read() as connection:
            rows = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)).all()
        plans += [str(tuple(row)[-1]) for row in rows]
    looks = {re.sub(" USING.* INDEX", "", plan) for plan in plans if re.match("(SEARCH|SCAN) jobs", plan)}
    assert looks == {
        "SEARCH jobs jobs_by_status (tenant=? AND status=?)",  # the counts of open jobs, too, from the index alone
        "SEARCH jobs jobs_newest (tenant=? AND created_at>?)",
        "SEARCH jobs jobs_ended (completed_at>?)",
        "SEARCH jobs sqlite_autoindex_jobs_1 (id=?)",
    }


async def recorded(database: Database, overview: Overview) -> Sequence[tuple[str, Sequence[object]]]:
    """The statements of each question, with their values."""
    statements: list[tuple[str, Sequence[object]]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: Any) -> None:
        if statement.startswith(("SELECT", "WITH")):
            statements.append((statement, values))

    engine = database.reading.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        await overview.counts("default")
        await overview.changed("default", LONG_AGO, limit=10)
        await overview.stats("default", until=datetime.now(UTC), bucket=MINUTE, count=3)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return statements


# --------------------------------------------------------------------------------------------------- in between


class Counting(Overview):
    """A real one that counts what it is asked."""

    looks = 0
    figures = 0

    async def changed(self, tenant: str, since: datetime, *, limit: int) -> Changed:
        self.looks += 1
        return await super().changed(tenant, since, limit=limit)

    async def stats(self, tenant: str, *, until: datetime, bucket: timedelta, count: int) -> Sequence[OutcomeBucket]:
        self.figures += 1
        return await super().stats(tenant, until=until, bucket=bucket, count=count)


async def test_one_look_serves_all_readers(sqlite: Database) -> None:
    """A hundred readers cost what one does, and nobody reading costs nothing."""
    counting = Counting(sqlite)
    feeds = Feeds(counting, JobDetails(RunLinks("http://ui.example", "default"), None, make_store(sqlite).queries))

    async def read() -> bytes | None:
        with feeds.joined("default") as feed:
            return await feed.after(feed.number)

    readers = [asyncio.create_task(read()) for _ in range(100)]
    messages = await asyncio.gather(*readers)
    assert len(set(messages)) == 1
    assert counting.looks <= 2
    looks = counting.looks
    await accepted(make_store(sqlite))
    assert b'"queued":1' in (await read() or b"")
    assert counting.looks > looks


async def test_figures_are_computed_once_for_all(sqlite: Database) -> None:
    counting = Counting(sqlite)
    figures = Figures(counting)
    found = await asyncio.gather(*(figures.stats("default", "1h") for _ in range(20)))
    assert len(set(map(id, found))) == 1
    await figures.stats("default", "15m")
    await figures.stats("other", "1h")
    assert counting.figures == 3


# --------------------------------------------------------------------------------------------------------- HTTP


class Event(NamedTuple):
    name: str
    id: str
    data: Any


async def events(door: Gateway, **headers: str) -> AsyncGenerator[Event, None]:
    """The feed's events as they come, to its end."""
    async with door.client(headers=headers) as client, client.stream("GET", "/api/feed") as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["x-accel-buffering"] == "no"
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif "data" in fields:
                yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
                fields = {}
            else:
                fields = {}


@asynccontextmanager
async def following(door: Gateway, **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
    async with asyncio.timeout(20), aclosing(events(door, **headers)) as found:
        yield found


async def until(feed: AsyncIterator[Event], wanted: Callable[[Event], bool]) -> Event:
    """The first event of that kind."""
    async for found in feed:
        if wanted(found):
            return found
    raise AssertionError("the feed ended before")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nothing but gateways: their jobs wait."""
    with alone(tmp_path_factory.mktemp("feed")) as stack:
        yield stack


@pytest.fixture(scope="module")
def doors(place: Stack) -> tuple[Gateway, Gateway]:
    return gateway(place), gateway(place, "gateway-2")


async def post(door: Gateway, **fields: Any) -> str:
    async with door.client() as client:
        answer = await client.post("/api/jobs", json=make_body(**fields))
    assert answer.status_code == 202
    return str(answer.json()["jobId"])


def named(found: Event) -> dict[str, str]:
    """The jobs of an event and their statuses."""
    return {job["jobId"]: job["status"] for job in found.data["jobs"]}


async def test_the_feed_tells_of_jobs_of_another_gateway(doors: tuple[Gateway, Gateway]) -> None:
    """First everything, then what changes, whoever changed it."""
    one, other = doors
    known = await post(one)
    async with following(one) as feed:
        hello = await anext(feed)
        assert (hello.name, named(hello)[known], hello.data["nextCursor"]) == ("hello", "queued", None)
        before = hello.data["counts"]
        new = await post(other)
        found = await until(feed, lambda one: new in named(one))
        assert (found.name, found.data["counts"]["queued"]) == ("jobs", before["queued"] + 1)
        async with other.client() as client:
            assert (await client.post(f"/api/jobs/{new}/cancel")).status_code == 202
        found = await until(feed, lambda one: named(one).get(new) == "cancelled")
        assert found.data["counts"] == before | {"cancelled": before["cancelled"] + 1}


async def test_whoever_comes_back_soon_gets_what_changed(doors: tuple[Gateway, Gateway]) -> None:
    """Also at another gateway. After long, or with an id of the future, everything comes anew."""
    one, other = doors
    async with following(one) as feed:
        last = (await anext(feed)).id
    new = await post(one)
    async with following(other, **{"Last-Event-ID": last}) as feed:
        found = await anext(feed)
        assert (found.name, named(found)[new], found.data["more"]) == ("jobs", "queued", False)
    for stale in (str(int(last) - 3600 * 10**6), str(int(last) + 3600 * 10**6), "1", "9" * 17):
        async with following(one, **{"Last-Event-ID": stale}) as feed:
            assert (await anext(feed)).name == "hello"


async def test_an_id_that_is_none_is_refused(doors: tuple[Gateway, Gateway]) -> None:
    async with doors[0].client() as client:
        for given in ("x", "-1", "1.5", "9" * 18):
            answer = await client.get("/api/feed", headers={"Last-Event-ID": given})
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_event_id")


async def test_a_gateway_that_stops_ends_its_feeds(place: Stack) -> None:
    door = gateway(place, "gateway-3")
    async with following(door) as feed:
        await anext(feed)
        stopping = asyncio.create_task(asyncio.to_thread(door.process.stop))
        async for _ in feed:
            pass
        assert await stopping == 0


async def test_figures_and_counts(doors: tuple[Gateway, Gateway]) -> None:
    async with doors[0].client() as client:
        before = (await client.get("/api/counts")).json()
        await post(doors[0])
        after = (await client.get("/api/counts")).json()
        stats = (await client.get("/api/stats", params={"window": "15m"})).json()
        refused = await client.get("/api/stats", params={"window": "1y"})
    assert after == before | {"queued": before["queued"] + 1}
    assert (len(stats["buckets"]), stats["bucketSeconds"]) == (60, 15)
    assert refused.status_code == 422


async def test_the_request_of_a_job_can_be_read(doors: tuple[Gateway, Gateway]) -> None:
    """What the caller gave, and nothing else; 404 for an unknown job, 410 once it was deleted."""
    body = make_body("What was asked?", temperature=0.3, metadata={"order": "42"})
    async with doors[0].client() as client:
        job_id = (await client.post("/api/jobs", json=body)).json()["jobId"]
        assert (await client.get(f"/api/jobs/{job_id}/request")).json() == body
        assert (await client.get("/api/jobs/job_nobody/request")).status_code == 404
        await client.post(f"/api/jobs/{job_id}/cancel")
        deleted = await client.delete(f"/api/jobs/{job_id}")
        assert deleted.status_code == 204
        answer = await client.get(f"/api/jobs/{job_id}/request")
    assert (answer.status_code, answer.json()["code"]) == (410, "content_deleted")
