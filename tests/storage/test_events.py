"""The feed of all jobs: every event once, in one order, whatever writes at the same time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from temporalio.testing import ActivityEnvironment

from activities.retention import RetentionActivities
from chatjobs.contracts import FeedEvent, FeedEventType, JobStatus
from chatjobs.errors import EventsExpired
from domain.payloads import RetentionOrder
from storage.batches.retention import BatchRetention
from storage.engine.database import Database
from storage.engine.schema import events as table
from storage.engine.schema import job_changes, micros
from storage.events.feed import REMOVED_AT_ONCE, EventFeed, FeedPage
from storage.events.sequencer import Sequencer
from storage.files.retention import FileRetention
from storage.jobs.retention import RetentionStore
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from storage.webhooks.endpoints import EndpointStore
from tests.support.event_process import make_jobs, number_events
from tests.support.factories import accepted, answered, claimed, ending, failing
from tests.support.storage_process import started

JOBS = 60
"""Jobs of each process that makes some."""
LIFE = ["chat.created", "chat.started", "chat.failed"]


@pytest.fixture
def feed(database: Database) -> EventFeed:
    return EventFeed(database)


async def numbered(database: Database) -> None:
    while await Sequencer(database).step():
        pass


async def read(feed: EventFeed, after: int = 0, *, tenant: str | None = "default", limit: int = 100) -> list[FeedEvent]:
    """All events after a number, in pages."""
    found: list[FeedEvent] = []
    while True:
        page = await feed.page(after, tenant=tenant, limit=limit)
        found += page.events
        after = page.next
        if not page.more:
            return found


def names(events: Sequence[FeedEvent]) -> list[str]:
    return [event.event.value for event in events]


async def test_the_life_of_a_job(database: Database, store: JobStore, feed: EventFeed) -> None:
    job_id = await accepted(store, metadata={"order": "42"}, id="req-1")
    await claimed(store, job_id)
    await store.seals.seal(failing(job_id), run_id="run-1")
    assert await read(feed) == []
    await numbered(database)
    created, began, failed = await read(feed)
    assert names([created, began, failed]) == LIFE
    assert [event.status.value for event in (created, began, failed)] == ["queued", "in_progress", "failed"]
    assert {(event.job_id, event.request_id, event.metadata["order"]) for event in (created, failed)} == {
        (job_id, "req-1", "42")
    }
    assert (failed.error_code, began.error_code) == ("upstream_cut", None)
    job = await store.queries.get(job_id)
    assert [created.timestamp, began.timestamp, failed.timestamp] == [job.created_at, job.started_at, job.completed_at]
    assert [event.id for event in (created, began, failed)] == ["1", "2", "3"]
    async with database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(job_changes)) == 0


async def test_every_ending_has_its_event(
    database: Database, store: JobStore, writer: TranscriptWriter, feed: EventFeed
) -> None:
    completed = await answered(store, writer)
    await store.seals.seal(ending(completed), run_id="run-1")
    cancelled = await accepted(store)
    await store.seals.request_cancel(cancelled)
    await numbered(database)
    found = await read(feed)
    assert names([event for event in found if event.job_id == completed]) == [*LIFE[:2], "chat.completed"]
    assert names([event for event in found if event.job_id == cancelled]) == ["chat.created", "chat.cancelled"]


async def test_a_job_that_goes_on_starts_and_ends_again(database: Database, store: JobStore, feed: EventFeed) -> None:
    """Under a new revision, and is created once."""
    job_id = await accepted(store)
    for run in ("run-1", "run-2"):
        await claimed(store, job_id, run_id=run)
        await claimed(store, job_id, run_id=run)
        await store.seals.seal(failing(job_id), run_id=run)
        await store.seals.seal(failing(job_id), run_id=run)
    await numbered(database)
    found = await read(feed)
    assert names(found) == [*LIFE, *LIFE[1:]]
    assert [event.revision for event in found] == [1, 1, 1, 2, 2]


async def test_a_tenant_sees_its_own_and_the_types_it_wants(
    database: Database, store: JobStore, feed: EventFeed
) -> None:
    mine, theirs = await accepted(store), await accepted(store, tenant="other")
    await store.seals.seal(failing(mine), run_id="run-1")
    await numbered(database)
    assert {event.job_id for event in await read(feed)} == {mine}
    assert {event.job_id for event in await read(feed, tenant="other")} == {theirs}
    assert {event.job_id for event in await read(feed, tenant=None)} == {mine, theirs}
    page = await feed.page(0, tenant="default", types=[FeedEventType.FAILED], limit=10)
    assert (names(page.events), page.next) == (["chat.failed"], 3)


async def test_a_type_that_is_rare_is_looked_for_in_parts(
    database: Database, store: JobStore, feed: EventFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No query reads through millions of others."""
    monkeypatch.setattr("storage.events.feed.LOOKED_AT_ONCE", 3)
    for _ in range(7):
        await accepted(store)
    await store.seals.seal(failing(await accepted(store)), run_id="run-1")
    await numbered(database)
    place, pages = 0, list[FeedPage]()
    while not pages or pages[-1].more:
        pages.append(await feed.page(place, tenant="default", types=[FeedEventType.FAILED], limit=10))
        place = pages[-1].next
    assert [(len(page.events), page.next) for page in pages] == [(0, 3), (0, 6), (1, 9)]


async def test_the_oldest_event_of_a_type_is_found_behind_many_that_were_removed(
    database: Database, store: JobStore, feed: EventFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 0 on: the numbers that were removed are not looked at, of which there may be millions."""
    monkeypatch.setattr("storage.events.feed.LOOKED_AT_ONCE", 2)
    for _ in range(6):
        await accepted(store)
    await numbered(database)
    async with database.write() as connection:
        old = micros(datetime.now(UTC) - timedelta(days=31))
        await connection.execute(update(table).where(table.c.number <= 5).values(at=old))
    assert await feed.remove(datetime.now(UTC) - timedelta(days=30)) == 5
    page = await feed.page(0, tenant="default", types=[FeedEventType.CREATED], limit=10)
    assert [event.id for event in page.events] == ["6"]
    assert (page.next, page.more) == (6, False)


async def test_what_was_deleted_of_a_job_is_gone_from_its_events(
    database: Database, store: JobStore, feed: EventFeed
) -> None:
    job_id = await accepted(store, metadata={"name": "a person"})
    await store.seals.seal(failing(job_id), run_id="run-1")
    await store.seals.delete(job_id)
    await numbered(database)
    found = await read(feed)
    assert [(event.event.value, event.metadata) for event in found] == [("chat.created", {}), ("chat.failed", {})]


async def test_retention_removes_events_too(database: Database, store: JobStore, feed: EventFeed) -> None:
    """In bounded pieces, until none is left that is too old."""
    for _ in range(REMOVED_AT_ONCE // 2 + 1):
        await store.seals.request_cancel(await accepted(store))
    await numbered(database)
    work = RetentionActivities(
        retention=RetentionStore(database),
        batches=BatchRetention(database),
        endpoints=EndpointStore(database),
        events=feed,
        files=FileRetention(database),
    )
    report = await ActivityEnvironment().run(work.remove_old_jobs, RetentionOrder(days=1e-9))
    assert report.complete
    assert await read(feed) == []
    with pytest.raises(EventsExpired):
        await feed.page(1, tenant="default", limit=1)
    assert (await feed.page(await feed.last(), tenant="default", limit=1)).events == []


async def test_pages_join_without_a_gap(database: Database, store: JobStore, feed: EventFeed) -> None:
    for _ in range(7):
        await accepted(store)
    await numbered(database)
    assert [event.id for event in await read(feed, limit=3)] == list("1234567")
    assert [event.id for event in await read(feed, 4, limit=3)] == list("567")
    with pytest.raises(ValueError, match="no event"):
        await feed.page(8, tenant="default", limit=1)


async def test_old_events_are_removed_and_never_missed_in_silence(
    database: Database, store: JobStore, feed: EventFeed
) -> None:
    """A reader who would miss some is told; one whose tenant lost none is not."""
    await accepted(store, tenant="quiet")
    for _ in range(3):
        await accepted(store)
    await numbered(database)
    old = datetime.now(UTC) - timedelta(days=31)
    async with database.write() as connection:
        await connection.execute(update(table).where(table.c.number.in_([2, 3])).values(at=micros(old)))
    before = datetime.now(UTC) - timedelta(days=30)
    assert await feed.remove(before) == 0, "the first is new"
    async with database.write() as connection:
        await connection.execute(update(table).where(table.c.number == 1).values(at=micros(old)))
    assert await feed.remove(before) == 3
    assert [event.id for event in await read(feed)] == ["4"]
    assert [event.id for event in await read(feed, 3)] == ["4"]
    with pytest.raises(EventsExpired):
        await feed.page(2, tenant="default", limit=1)
    assert await read(feed, 2, tenant="quiet") == []
    await accepted(store)
    await numbered(database)
    assert [event.id for event in await read(feed, 4)] == ["5"], "numbers are never given again"


async def test_writers_and_a_reader_at_once(database: Database, database_url: str, feed: EventFeed) -> None:
    """Processes whose transactions overlap, others that number events, one of them killed time after time: a reader who
    follows has every event once, each job's in order, and whoever reads later has the same."""
    makers = [started(make_jobs, database_url, name, JOBS) for name in "abc"]
    numberers = [started(number_events, database_url) for _ in range(2)]
    followed: list[FeedEvent] = []
    place = kills = 0
    async with asyncio.timeout(150):
        while len(followed) < 3 * 3 * JOBS:
            page = await feed.page(place, tenant="default", limit=50)
            followed += page.events
            place = page.next
            if len(followed) // 90 > kills:
                kills += 1
                numberers[0].kill()
                await asyncio.to_thread(numberers[0].join)
                numberers[0] = started(number_events, database_url)
            await asyncio.sleep(0.002)
    for maker in makers:
        await asyncio.to_thread(maker.join)
    for numberer in numberers:
        numberer.kill()
        await asyncio.to_thread(numberer.join)
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert kills > 2
    lives: dict[str, list[str]] = defaultdict(list)
    for event in followed:
        lives[event.job_id].append(event.event.value)
    assert len(lives) == 3 * JOBS
    assert all(life == LIFE for life in lives.values())
    ids = [int(event.id) for event in followed]
    assert ids == list(range(1, len(ids) + 1))
    assert await read(feed) == followed
    assert {event.status for event in followed if event.event is FeedEventType.FAILED} == {JobStatus.FAILED}
