"""Reading: from any position, live or finished, exactly the missing text per channel."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

import storage.transcript.writer
from chatjobs.contracts import Channel, JobStatus
from chatjobs.errors import JobNotFound
from domain.errors import StorageUnavailable
from domain.text import clean
from domain.timings import Timings
from domain.values import Cursor, Slice, TextRun
from storage.engine.database import Database
from storage.engine.schema import jobs
from storage.jobs.store import JobStore
from storage.transcript import changes as news
from storage.transcript import reader as reading
from storage.transcript.reader import TranscriptReader
from storage.transcript.writer import TranscriptWriter
from tests.support.factories import Copy, accepted, answered, claimed, ending, failing, finished, make_store, wrote
from tests.support.postgres import Postgres
from tests.support.storage_faults import cut_connections

PATIENCE = 30.0

# ------------------------------------------------------------------------------------------------ the property

characters = st.sampled_from(["a", "é", "😀", "\U0010ffff", "\0", "\ud83d", "\ude00", "\udfff", "\n"])
deltas = st.lists(st.tuples(st.sampled_from(Channel), st.lists(characters, max_size=6).map("".join)), max_size=25)
flushes = st.sets(st.integers(0, 24))


def after(position: int, runs: Sequence[TextRun]) -> list[tuple[Channel, str]]:
    """What is missing after a position, by the definition."""
    letters = [(run.channel, letter) for run in runs for letter in run.text][position:]
    missing: list[tuple[Channel, str]] = []
    for channel, letter in letters:
        if missing and missing[-1][0] is channel:
            missing[-1] = (channel, missing[-1][1] + letter)
        else:
            missing.append((channel, letter))
    return missing


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deltas=deltas, flushes=flushes, tail=st.sampled_from([0, 1, 7, 256]))
async def test_every_position_gives_exactly_the_missing_text(
    store: JobStore,
    writer: TranscriptWriter,
    reader: TranscriptReader,
    deltas: list[tuple[Channel, str]],
    flushes: set[int],
    tail: int,
) -> None:
    """Whatever was streamed in whichever pieces; from every position, before the seal and after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.transcript.writer, "TAIL_CHARACTERS", tail)
        job_id = await accepted(store)
        claim = await claimed(store, job_id)
        job_writer, copy = writer.open(claim), Copy()
        cursor = Cursor(job_id)
        for number, (channel, text) in enumerate(deltas):
            job_writer.append(channel, text)
            if number in flushes:
                await job_writer.flush()
                piece = await reader.read(cursor)
                copy.take(piece)
                cursor = piece.cursor
        await job_writer.finish(finished(claim))
    whole = await reader.read(Cursor(job_id))
    copy.take(await reader.read(cursor))
    streamed = {c: clean("".join(text for channel, text in deltas if channel is c)) for c in Channel}
    assert copy.texts == streamed
    assert whole.position == sum(map(len, streamed.values()))
    await _same_from_every_position(reader, whole)
    await store.seals.seal(ending(job_id, position=whole.position), run_id="run-1")
    await _same_from_every_position(reader, whole)


async def _same_from_every_position(reader: TranscriptReader, whole: Slice) -> None:
    for position in range(whole.position + 1):
        piece = await reader.read(Cursor(whole.job_id, 1, position))
        assert [(run.channel, run.text) for run in piece.runs] == after(position, whole.runs)
        assert (piece.position, piece.reset) == (whole.position, False)


# --------------------------------------------------------------------------------------------------- following


async def test_a_reader_that_breaks_off_and_resumes_has_it_all(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader
) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer, copy, cursor = writer.open(claim), Copy(), Cursor(job_id)
    texts = [f"token {number} 😀 " for number in range(300)]

    async def write() -> None:
        for text in texts:
            job_writer.append(Channel.CONTENT, text)
            await asyncio.sleep(0.001)
        await job_writer.flush()
        await store.seals.seal(failing(job_id), run_id="run-1")

    writing, ended = asyncio.create_task(write()), False
    while not ended:
        async for piece in reader.follow(cursor):
            copy.take(piece)
            cursor, ended = piece.cursor, piece.status.terminal
            if len(piece.runs) and piece.position % 3 == 0:
                break  # and come back from here
    await writing
    assert copy.texts[Channel.CONTENT] == "".join(texts)
    assert copy.resets == 0


async def test_many_readers_of_many_jobs(store: JobStore, writer: TranscriptWriter, reader: TranscriptReader) -> None:
    """Three readers on each of forty jobs, among them late ones; fifty claims at the same time find a connection."""
    ids = [await accepted(store) for _ in range(40)]
    early = [asyncio.create_task(_copied(reader, job_id)) for job_id in ids * 2]
    job_writers = [writer.open(claim) for claim in await asyncio.gather(*(claimed(store, job_id) for job_id in ids))]
    for number in range(30):
        for job_writer in job_writers:
            job_writer.append(list(Channel)[number // 7 % 2], f"{number} ")
        await asyncio.sleep(0.002)
    await asyncio.gather(*(job_writer.flush() for job_writer in job_writers))
    late = [asyncio.create_task(_copied(reader, job_id)) for job_id in ids]
    await asyncio.gather(*(store.seals.seal(failing(job_id), run_id="run-1") for job_id in ids))
    stored = [await store.queries.get(job_id) for job_id in ids]
    for copy, job in zip(await asyncio.gather(*early, *late), stored * 3, strict=True):
        assert (copy.texts[Channel.CONTENT], copy.texts[Channel.REASONING]) == (job.content, job.reasoning)


async def _copied(reader: TranscriptReader, job_id: str) -> Copy:
    copy = Copy()
    async with asyncio.timeout(PATIENCE):
        async for piece in reader.follow(Cursor(job_id)):
            copy.take(piece)
    return copy


async def test_a_reader_waits_until_there_is_news(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader
) -> None:
    job_id = await accepted(store)
    job_writer = await wrote(writer, await claimed(store, job_id), "Hello")
    waiting = asyncio.create_task(reader.wait(Cursor(job_id, 1, 5)))
    await wrote(writer, await claimed(store, await accepted(store)), "another job's text")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.05)
    job_writer.append(Channel.REASONING, " you")
    piece = await asyncio.wait_for(waiting, PATIENCE)
    assert (piece.runs, piece.position) == ((TextRun(9, Channel.REASONING, " you", 2),), 9)


async def test_the_end_is_news(store: JobStore, writer: TranscriptWriter, reader: TranscriptReader) -> None:
    job_id = await answered(store, writer, "Hello")
    waiting = asyncio.create_task(reader.wait(Cursor(job_id, 1, 5)))
    await store.seals.seal(ending(job_id), run_id="run-1")
    piece = await asyncio.wait_for(waiting, PATIENCE)
    assert (piece.status, piece.runs, piece.reset) == (JobStatus.COMPLETED, (), False)


async def test_the_end_is_news_for_each_reader_at_the_same_place(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader
) -> None:
    """Also for one that was not waiting when the others were told."""
    job_id = await answered(store, writer, "Hello")
    slow = (await reader.read(Cursor(job_id))).cursor
    waiting = asyncio.create_task(reader.wait(slow))
    await asyncio.sleep(0)
    await store.seals.seal(ending(job_id), run_id="run-1")
    assert (await asyncio.wait_for(waiting, PATIENCE)).status is JobStatus.COMPLETED
    assert (await asyncio.wait_for(reader.wait(slow), PATIENCE)).status is JobStatus.COMPLETED


async def test_another_epoch_is_news(store: JobStore, writer: TranscriptWriter, reader: TranscriptReader) -> None:
    job_id = await accepted(store)
    await wrote(writer, await claimed(store, job_id), "Hello")
    waiting = asyncio.create_task(reader.wait(Cursor(job_id, 1, 5)))
    claim = await claimed(store, job_id)
    await store.attempts.restart(job_id, fence=claim.fence, reason="tools")
    piece = await asyncio.wait_for(waiting, PATIENCE)
    assert (piece.cursor, piece.reset, piece.reset_reason, piece.attempt) == (Cursor(job_id, 2, 0), True, "tools", 2)


async def test_an_impossible_cursor_gets_everything_anew(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader
) -> None:
    """A position from the future, or another epoch: before and after the seal."""
    job_id = await answered(store, writer, "Hello")
    for _ in range(2):
        for cursor in [(1, 99), (7, 0), (2, 3), (10**30, 10**30), (-1, 0)]:
            piece = await asyncio.wait_for(reader.wait(Cursor(job_id, *cursor)), PATIENCE)
            assert (piece.reset, piece.runs, piece.position) == (True, (TextRun(5, Channel.CONTENT, "Hello", 1),), 5)
        await store.seals.seal(ending(job_id), run_id="run-1")


async def test_a_new_reader_needs_no_reset(store: JobStore, reader: TranscriptReader) -> None:
    """Nothing was read yet, whichever epoch it is."""
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    await store.attempts.restart(job_id, fence=claim.fence, reason="restart")
    piece = await reader.read(Cursor(job_id))
    assert (piece.epoch, piece.reset, piece.started) == (2, False, True)


async def test_a_job_that_is_not_there_is_not_waited_for(
    store: JobStore, reader: TranscriptReader, database: Database
) -> None:
    job_id = await accepted(store)
    waiting = asyncio.create_task(reader.wait(Cursor(job_id)))
    for name in ("nobody", "no\0body", "nob\ud83ddy", "n" * 1_000):
        for call in (reader.read(Cursor(name)), reader.wait(Cursor(name))):
            with pytest.raises(JobNotFound):
                await asyncio.wait_for(call, PATIENCE)
    assert not waiting.done()
    async with database.write() as connection:
        await connection.execute(delete(jobs).where(jobs.c.id == job_id))
    with pytest.raises(JobNotFound):
        await asyncio.wait_for(waiting, PATIENCE)


async def test_many_wait_together(store: JobStore, writer: TranscriptWriter, reader: TranscriptReader) -> None:
    """One live, one sealed meanwhile, one without news, one that does not exist."""
    live, sealed, quiet = [await answered(store, writer, "Hello") for _ in range(3)]
    await store.seals.seal(ending(sealed), run_id="run-1")
    cursors = [Cursor(live, 1, 2), Cursor(sealed, 1, 5), Cursor(quiet, 1, 5), Cursor("nobody")]
    waiting = [asyncio.create_task(reader.wait(cursor)) for cursor in cursors]
    one, two, three, four = waiting
    await asyncio.wait({one, two, four}, timeout=PATIENCE)
    assert [[run.text for run in task.result().runs] for task in (one, two)] == [["llo"], []]
    assert isinstance(four.exception(), JobNotFound)
    assert not three.done()
    three.cancel()


async def test_a_look_is_bounded(store: JobStore, reader: TranscriptReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READERS_PER_LOOK", 3)
    ids = [await accepted(store) for _ in range(8)]
    waiting = [asyncio.create_task(reader.wait(Cursor(job_id, 1, 1))) for job_id in ids]
    pieces = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
    assert [piece.job_id for piece in pieces] == ids


async def test_readers_stop_when_they_are_told_to(store: JobStore, database: Database) -> None:
    """Also in the very moment in which there is news."""
    cursor = Cursor(await accepted(store), 1, 1)
    for number in range(30):
        async with asyncio.timeout(PATIENCE), TranscriptReader(database).running() as reader:
            await reader.wait(cursor)
            waiting = asyncio.create_task(reader.wait(cursor._replace(position=0)))
            await asyncio.sleep(number * 0.0005)
            reader._newcomers.set()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_readers_that_leave_are_forgotten(store: JobStore, reader: TranscriptReader) -> None:
    job_id = await accepted(store)
    waiting = [asyncio.create_task(reader.wait(Cursor(job_id))) for _ in range(20)]
    await asyncio.sleep(0.02)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not reader._waiting


async def test_whoever_waits_for_a_reader_that_stops_is_told(store: JobStore, database: Database) -> None:
    cursor = Cursor(await accepted(store), 1, 1)
    async with TranscriptReader(database).running() as reader:
        waiting = asyncio.create_task(reader.wait(cursor._replace(position=0)))
        await asyncio.sleep(0.02)
    for call in (waiting, reader.wait(cursor)):
        with pytest.raises(StorageUnavailable, match="stopped"):
            await call


# ------------------------------------------------------------------------------------------------------ faults


async def test_readers_do_not_notice_a_restart_of_the_database(
    postgres_server: Postgres, postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE", 100)
    database, store, timings = postgres_database, make_store(postgres_database), Timings(reader_retry_seconds=0.01)
    async with (
        TranscriptReader(database, timings=timings).running() as reader,
        TranscriptWriter(database).running() as writer,
    ):
        job_id = await accepted(store)
        job_writer = writer.open(await claimed(store, job_id))
        copying = asyncio.create_task(_copied(reader, job_id))
        for number in range(5):
            job_writer.append(Channel.CONTENT, f"{number} ")
            await job_writer.flush()
            await cut_connections(postgres_server, database)
        await store.seals.seal(failing(job_id), run_id="run-1")
        assert (await copying).texts[Channel.CONTENT] == "0 1 2 3 4 "


async def test_readers_are_told_when_the_database_stays_away(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, timings = await accepted(make_store(sqlite)), Timings(reader_retry_seconds=0.001)
    for failure in ("SELECT * FROM nowhere", "ATTACH '/nowhere/at/all' AS x"):
        monkeypatch.setattr(news, "_data_version", partial(_execute, failure))
        async with TranscriptReader(sqlite, timings=timings).running() as reader:
            with pytest.raises(StorageUnavailable):
                await asyncio.wait_for(reader.wait(Cursor(job_id, 1, 1)), PATIENCE)


def _execute(statement: str, connection: sqlite3.Connection) -> None:
    connection.execute(statement)


async def test_a_lost_hint_makes_a_reader_late_and_no_more(postgres_database: Database) -> None:
    """NOTIFY only hints: readers look now and then in any case."""
    store = make_store(postgres_database)
    async with TranscriptReader(postgres_database).running() as reader:
        job_id = await accepted(store)
        await claimed(store, job_id)
        waiting = asyncio.create_task(reader.wait(Cursor(job_id, 1, 0)))
        await asyncio.sleep(0.05)
        async with postgres_database.write() as connection:
            await connection.execute(update(jobs).values(position=3, tail="abc"))
        assert (await asyncio.wait_for(waiting, PATIENCE)).position == 3


async def test_who_comes_back_while_others_are_looked_after_misses_nothing(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look under way was called for by his news, and he is not in it."""
    store, looking, go_on = make_store(sqlite), asyncio.Event(), asyncio.Event()
    go_on.set()
    fetch = news.SqliteWatch.fetch

    async def slow(self: news.SqliteWatch, cursors: Sequence[Cursor]) -> Sequence[news.TextChange]:
        looking.set()
        await go_on.wait()
        return await fetch(self, cursors)

    monkeypatch.setattr(news.SqliteWatch, "fetch", slow)
    async with (
        asyncio.timeout(20),
        TranscriptWriter(sqlite).running() as writer,
        TranscriptReader(sqlite).running() as reader,
    ):
        mine, other = await answered(store, writer, "all of it"), await accepted(store)
        somebody = asyncio.create_task(reader.wait(Cursor(other)))
        await looking.wait()
        piece = await reader.wait(Cursor(mine))
        go_on.clear()
        looking.clear()
        await store.seals.seal(ending(mine), run_id="run-1")
        await looking.wait()
        waiting = asyncio.create_task(reader.wait(piece.cursor))
        await asyncio.sleep(0)
        go_on.set()
        assert (await waiting).status is JobStatus.COMPLETED
        somebody.cancel()
