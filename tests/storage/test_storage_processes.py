"""Several processes on one database, and processes that are killed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from chatjobs.contracts import Channel, JobStatus
from domain.values import Cursor
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from tests.support.factories import Copy, accepted, failing
from tests.support.storage_process import dice, open_database, started, take_turns, text_from, write_text

KILLS = 12


async def test_a_killed_writer_leaves_a_prefix_of_what_it_received(
    database: Database, database_url: str, store: JobStore, reader: TranscriptReader, tmp_path: Path
) -> None:
    """kill -9 at a random moment, time after time; the next process goes on with the same text."""
    job_id, log = await accepted(store), tmp_path / "received"
    log.touch()
    cursor = Cursor(job_id)
    for fence in range(1, KILLS + 1):
        writer = started(write_text, database_url, job_id, fence, str(log))
        wanted = cursor.position + dice.choice((1, 30, 1_000, 20_000))
        while cursor.position < wanted:
            cursor = (await reader.wait(cursor)).cursor
        writer.kill()
        await asyncio.to_thread(writer.join)

        job = await store.queries.get(job_id)
        received = log.read_bytes().decode(errors="ignore")
        assert job.content == text_from(0, job.position)
        assert received.startswith(job.content)
        log.write_text(job.content)  # what was not stored is received again
        cursor = Cursor(job_id, 1, job.position)
    assert [attempt.outcome for attempt in (await store.queries.get(job_id)).attempts] == ["lost"] * (KILLS - 1) + [
        None
    ]


async def test_writers_a_reader_and_a_compaction_at_once(
    database_url: str, store: JobStore, reader: TranscriptReader
) -> None:
    """Two processes take a job from each other and start over now and then, until it is sealed under their hands: what
    a reader accepted in the last epoch is the stored text."""
    # An attempt that loses its job before its text is written looks like a worker that died.
    job_id, copy = await accepted(store, limits={"maxLost": 1_000}), Copy()
    writers = [started(take_turns, database_url, job_id, name) for name in "ab"]
    enough = time.monotonic() + 2
    async for piece in reader.follow(Cursor(job_id)):
        copy.take(piece)
        if time.monotonic() > enough and copy.resets > 1:
            enough = float("inf")
            await store.seals.seal(failing(job_id), run_id="run-1")
    for writer in writers:
        await asyncio.to_thread(writer.join)
    job = await store.queries.get(job_id)
    assert job.status is JobStatus.FAILED
    assert (copy.texts[Channel.CONTENT], copy.texts[Channel.REASONING]) == (job.content, job.reasoning or "")
    assert copy.position == job.position
    assert [writer.exitcode for writer in writers] == [0, 0]
    late = await reader.read(Cursor(job_id))
    assert "".join(run.text for run in late.runs if run.channel is Channel.CONTENT) == job.content


async def test_processes_that_start_together_make_one_schema(empty_database_url: str) -> None:
    together = [started(open_database, empty_database_url) for _ in range(4)]
    for process in together:
        await asyncio.to_thread(process.join)
    assert [process.exitcode for process in together] == [0] * 4
    database = await Database.open(empty_database_url)
    async with database.read() as connection:
        versions = await connection.run_sync(lambda sync: sync.exec_driver_sql("SELECT * FROM alembic_version").all())
    assert len(versions) == 1
    await database.close()
