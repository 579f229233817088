"""The transcript writer: bounded, patient, and exact, whatever the database does."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest

import storage.engine.database
from chatjobs.contracts import Channel, JobStatus
from domain.errors import FenceLost, StorageError, StorageRefused, StorageUnavailable
from domain.timings import Timings
from domain.values import Claim, Cursor
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript import batches
from storage.transcript.batches import BatchEntry
from storage.transcript.reader import TranscriptReader
from storage.transcript.writer import MAX_PENDING_PER_JOB, JobWriter, TranscriptWriter
from tests.support.factories import accepted, claimed, finished, make_store, wrote
from tests.support.postgres import Postgres
from tests.support.storage_faults import POISON, cut_connections, held_locked, refuse_poison


async def job_writers(store: JobStore, writer: TranscriptWriter, count: int) -> list[JobWriter]:
    return [writer.open(await claimed(store, await accepted(store))) for _ in range(count)]


async def content(store: JobStore, job_writer: JobWriter) -> str | None:
    return (await store.queries.get(job_writer.job_id)).content


async def test_text_is_durable_after_a_flush(store: JobStore, writer: TranscriptWriter) -> None:
    job_writer = await wrote(writer, await claimed(store, await accepted(store)), "Hello", "", " you", "😀")
    assert (job_writer.position, job_writer.token_count) == (10, 4)
    job = await store.queries.get(job_writer.job_id)
    assert (job.content, job.position) == ("Hello you😀", 10)


async def test_deltas_of_a_batch_are_one_piece(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader
) -> None:
    (job_writer,) = await job_writers(store, writer, 1)
    texts = [f"{number} " for number in range(1_000)]
    for text in texts:
        job_writer.append(Channel.CONTENT, text)
    await job_writer.flush()
    assert await content(store, job_writer) == "".join(texts)
    piece = await reader.read(Cursor(job_writer.job_id))
    assert [run.token_count for run in piece.runs] == [1_000]


async def test_many_jobs_are_written_together(store: JobStore, writer: TranscriptWriter) -> None:
    many = await job_writers(store, writer, 70)
    for number in range(20):
        for index, job_writer in enumerate(many):
            job_writer.append(Channel.CONTENT, f"{index}.{number} ")
        await asyncio.sleep(0)
    await asyncio.gather(*(job_writer.flush() for job_writer in many))
    for index, job_writer in enumerate(many):
        assert await content(store, job_writer) == "".join(f"{index}.{number} " for number in range(20))


# ------------------------------------------------------------------------------------------------------ bounds


async def test_a_locked_database_stops_the_reading_upstream_and_loses_nothing(
    store: JobStore, writer: TranscriptWriter, database: Database
) -> None:
    """At most 256 KiB wait per job; as soon as the lock is gone there is room again."""
    (job_writer,) = await job_writers(store, writer, 1)
    sent: list[str] = []
    async with held_locked(database):
        while not job_writer.full:
            sent.append(f"token {len(sent)} é ")
            job_writer.append(Channel.CONTENT, sent[-1])
            if len(sent) % 1_000 == 0:
                await asyncio.sleep(0.001)
        waiting = asyncio.create_task(job_writer.room())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert MAX_PENDING_PER_JOB <= len("".join(sent).encode()) < MAX_PENDING_PER_JOB + 32
    await waiting
    job_writer.append(Channel.CONTENT, "more")
    await job_writer.flush()
    assert await content(store, job_writer) == "".join(sent) + "more"
    assert writer.pending_bytes == 0


async def test_the_whole_process_is_bounded_too(store: JobStore, database: Database) -> None:
    async with TranscriptWriter(database, max_pending=1_000).running() as writer:
        many = await job_writers(store, writer, 5)
        async with held_locked(database):
            for job_writer in many:
                job_writer.append(Channel.CONTENT, "x" * 200)
            assert all(job_writer.full for job_writer in many)
            waiting = [asyncio.create_task(job_writer.room()) for job_writer in many]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        await asyncio.gather(*(job_writer.flush() for job_writer in many))
        assert writer.pending_bytes == 0


async def test_what_waits_weighs_no_more_than_its_text(store: JobStore, writer: TranscriptWriter) -> None:
    """A string object costs ten times what a token weighs."""
    (job_writer,) = await job_writers(store, writer, 1)
    for _ in range(10_000):
        job_writer.append(Channel.CONTENT, "token")
    assert job_writer._pending is not None
    assert len(job_writer._pending.texts) < 100
    await job_writer.flush()


# ------------------------------------------------------------------------------------------------------- faults


async def test_what_is_stale_by_the_time_of_its_batch_is_not_written(store: JobStore, writer: TranscriptWriter) -> None:
    """The writer asks before each batch; the attempt's end is dropped with its text."""
    claim = await claimed(store, await accepted(store))
    answers = iter([False, True])
    job_writer = writer.open(claim, lambda: next(answers))
    job_writer.append(Channel.CONTENT, "kept")
    await job_writer.flush()
    job_writer.append(Channel.CONTENT, " and dropped")
    with pytest.raises(FenceLost):
        await job_writer.finish(finished(claim))
    job = await store.queries.get(claim.job_id)
    assert (job.content, job.status, writer.pending_bytes) == ("kept", JobStatus.IN_PROGRESS, 0)


async def test_a_commit_whose_answer_got_lost_is_not_done_twice(
    store: JobStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = batches.SqliteBatches if database.is_sqlite else batches.PostgresBatches
    append, failures = place.append, iter(range(100))

    async def losing_answers(self: Any, entries: Sequence[BatchEntry]) -> set[BatchEntry]:
        accepted = await append(self, entries)
        if next(failures) % 2 == 0:
            raise StorageUnavailable
        return accepted

    monkeypatch.setattr(place, "append", losing_answers)
    claim = await claimed(store, await accepted(store))
    async with TranscriptWriter(database, timings=Timings(writer_retry_pauses_seconds=(0.001,))).running() as writer:
        job_writer = writer.open(claim)
        for number in range(10):
            job_writer.append(Channel.CONTENT, f"{number} ")
            await job_writer.flush()
        await job_writer.finish(finished(claim))
    assert await content(store, job_writer) == "".join(f"{number} " for number in range(10))


async def test_cut_connections_lose_and_double_nothing(postgres_server: Postgres, postgres_database: Database) -> None:
    """Postgres ends the connections ten times while twenty jobs write."""
    database, store = postgres_database, make_store(postgres_database)
    async with TranscriptWriter(database).running() as writer:
        many = await job_writers(store, writer, 20)
        done = asyncio.Event()

        async def cut() -> None:
            for _ in range(10):
                await cut_connections(postgres_server, database)
            done.set()

        cutting = asyncio.create_task(cut())
        numbers = 0
        while not done.is_set() or numbers < 50:
            for job_writer in many:
                job_writer.append(Channel.CONTENT, f"{numbers} ")
            numbers += 1
            await asyncio.sleep(0.002)
        await cutting
        await asyncio.gather(*(job_writer.flush() for job_writer in many))
    expected = "".join(f"{number} " for number in range(numbers))
    assert [await content(store, job_writer) for job_writer in many] == [expected] * 20


@pytest.mark.parametrize("pragma", ["max_page_count=1", "query_only=ON"])
async def test_a_full_disk_is_waited_for(
    sqlite: Database, pragma: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same for a database that was turned read-only. (SQLite's own limits stand in for the disk's.)"""
    store = make_store(sqlite)
    claim = await claimed(store, await accepted(store))
    configured, limits = storage.engine.database._configure, [pragma]

    def with_limits(*args: Any) -> None:
        configured(*args)
        for limit in limits:
            args[0].execute(f"PRAGMA {limit}")

    monkeypatch.setattr(storage.engine.database, "_configure", with_limits)
    async with TranscriptWriter(sqlite, timings=Timings(writer_retry_pauses_seconds=(0.01,))).running() as writer:
        job_writer = writer.open(claim)
        job_writer.append(Channel.CONTENT, "private " * 2_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job_writer.flush(), 0.2)
        limits.clear()
        await job_writer.flush()
        assert await content(store, job_writer) == "private " * 2_000
    assert "transcript not writable, waiting" in caplog.text
    assert "private" not in caplog.text


async def test_accepting_on_a_full_disk_says_so(sqlite: Database) -> None:
    store = make_store(sqlite)
    with sqlite._durable.connect() as connection:  # there is one, so that it is the one that accepts
        connection.exec_driver_sql("PRAGMA max_page_count=1")
    with pytest.raises(StorageUnavailable, match="full") as full:
        await accepted(store, "private " * 50_000)
    assert "private" not in str(full.value)
    assert await store.queries.empty()


async def test_one_poisonous_text_fails_its_job_only(
    store: JobStore, writer: TranscriptWriter, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await refuse_poison(database)
    many = await job_writers(store, writer, 50)
    for index, job_writer in enumerate(many):
        job_writer.append(Channel.CONTENT, POISON if index == 17 else f"text {index}")
    results = await asyncio.gather(*(job_writer.flush() for job_writer in many), return_exceptions=True)
    guilty = results.pop(17)
    assert isinstance(guilty, StorageRefused)
    assert POISON not in str(guilty)
    assert results == [None] * 49
    texts = [await content(store, job_writer) for job_writer in many]
    assert texts == ["" if index == 17 else f"text {index}" for index in range(50)]
    with pytest.raises(StorageRefused):
        many[17].append(Channel.CONTENT, "more")
    assert writer.pending_bytes == 0
    assert POISON not in caplog.text


async def test_an_error_of_our_own_fails_the_batch_and_not_the_writer(
    store: JobStore, writer: TranscriptWriter, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = batches.SqliteBatches if database.is_sqlite else batches.PostgresBatches
    with monkeypatch.context() as patch:
        patch.setattr(place, "append", lambda self, entries: 1 / 0)
        with pytest.raises(StorageError, match="ZeroDivisionError"):
            await wrote(writer, await claimed(store, await accepted(store)), "Hello")
    await wrote(writer, await claimed(store, await accepted(store)), "Hello")
    assert writer.pending_bytes == 0


async def test_whoever_waits_for_a_writer_that_stops_is_told(database_url: str) -> None:
    database = await Database.open(database_url, timings=Timings(database_busy_seconds=0.1))
    claims = (Claim("taken", f"job_{n}", fence=1, epoch=1, position=0, token_count=0) for n in range(2))
    async with held_locked(database):
        async with TranscriptWriter(database, max_pending=10).running() as writer:
            waiting, idle = map(writer.open, claims)
            waiting.append(Channel.CONTENT, "Hello, hello")
            tasks = [asyncio.create_task(waiting.flush()), asyncio.create_task(idle.room())]
            await asyncio.sleep(0.02)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, StorageUnavailable)
        with pytest.raises(StorageUnavailable):
            idle.append(Channel.CONTENT, "Hello")
        assert writer.pending_bytes == 0
    await database.close()


# --------------------------------------------------------------------------------------------------------- SQLite


async def test_the_log_is_brought_in_beside_the_writing(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write-ahead log starts again from its beginning, and so does not grow."""
    monkeypatch.setattr(batches, "CHECKPOINT_PAGES", 20)
    store = make_store(sqlite)
    frames: list[int] = []
    rest = batches._checkpoint_rest

    def counting(connection: sqlite3.Connection) -> None:
        rest(connection)
        frames.append(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])

    monkeypatch.setattr(batches, "_checkpoint_rest", counting)
    async with TranscriptWriter(sqlite).running() as writer:
        (job_writer,) = await job_writers(store, writer, 1)
        while len(frames) < 5:
            job_writer.append(Channel.CONTENT, "some text " * 10)
            await job_writer.flush()
    assert frames[-1] < 200
