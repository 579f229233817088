"""The search: words of prompts and answers, on both databases alike, and nothing of a job whose content was deleted."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from chatjobs.contracts import JobStatus
from chatjobs.errors import InvalidRequest
from domain.errors import SearchUnavailable
from domain.text import clean
from domain.timings import Timings
from storage.engine.database import Database
from storage.engine.schema import micros, search_entries, search_queue
from storage.jobs import listing
from storage.jobs.follow_up import FollowUp
from storage.jobs.listing import JobFilter, JobList
from storage.jobs.retention import RetentionStore
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support import migrated
from tests.support.factories import accepted, answered, claimed, ending, failing, make_store, wrote

IMAGE = "data:image/png;base64," + "QUJD" * 30_000


@pytest.fixture
async def following(database: Database) -> AsyncIterator[FollowUp]:
    kept = FollowUp(database)
    async with kept.ready():
        yield kept


async def settled(database: Database, following: FollowUp) -> None:
    """Have everything in the queue be due, and follow up on it."""
    async with database.write() as connection:
        await connection.execute(update(search_queue).values(due_at=0))
    while await following.step():
        pass


async def done(store: JobStore, writer: TranscriptWriter, prompt: str, answer: str, **fields: Any) -> str:
    job_id = await answered(store, writer, answer, prompt=prompt, **fields)
    await store.seals.seal(ending(job_id), run_id="run-1")
    return job_id


async def found(store: JobStore, search: str, **filters: Any) -> list[str]:
    return [job.job_id for job in await store.queries.list(tenant="default", search=search, **filters)]


async def test_words_of_prompt_and_answer(
    database: Database, store: JobStore, writer: TranscriptWriter, following: FollowUp
) -> None:
    """All words have to be there, in whichever of the two, without case and accents; newest first."""
    first = await done(store, writer, "Refund for order 42?", "Yes: the crème brûlée was cold.")
    second = await done(store, writer, "Refund, please", "No.")
    await done(store, writer, "Refund, please", "No.", tenant="other")
    await settled(database, following)
    assert await found(store, "refund") == [second, first]
    assert await found(store, "CREME refund 42") == [first]
    assert await found(store, "Brûlée") == [first]
    assert await found(store, "refund cold please") == []
    assert await found(store, "efund") == []


async def test_a_job_is_found_before_it_has_ended(
    database: Database, store: JobStore, writer: TranscriptWriter, following: FollowUp
) -> None:
    """By its prompt; by its answer once it has ended, and by a later one after it was reopened."""
    job_id = await accepted(store, "Tell me of llamas")
    await settled(database, following)
    assert await found(store, "llamas") == [job_id]
    await claimed(store, job_id)
    await store.seals.seal(failing(job_id), run_id="run-1")
    await settled(database, following)
    assert (await found(store, "llamas"), await found(store, "alpacas")) == ([job_id], [])
    claim = await claimed(store, job_id, run_id="run-2")  # an operator's Reset
    await wrote(writer, claim, "Alpacas, rather")
    await store.seals.seal(failing(job_id), run_id="run-2")
    await settled(database, following)
    assert (await found(store, "llamas alpacas"), await found(store, "alpacas")) == ([job_id], [job_id])


async def test_a_last_word_that_is_not_finished(
    database: Database, store: JobStore, writer: TranscriptWriter, following: FollowUp
) -> None:
    """Finds those that begin with it, unless a job has it as it is."""
    one, other = await accepted(store, "a refund"), await accepted(store, "two refunds")
    await settled(database, following)
    assert await found(store, "refu") == [other, one]
    assert await found(store, "refund") == [one]
    assert await found(store, "refu two") == []
    assert await found(store, "refu ") == []


async def test_scripts_without_spaces(
    database: Database, store: JobStore, writer: TranscriptWriter, following: FollowUp
) -> None:
    """Every part of them is found; pairs of characters, wherever they are, make a longer one."""
    job_id = await accepted(store, "東京都に行きたいです。ガラス")
    await settled(database, following)
    for part in ("東京都", "京都", "都", "に行き", "です", "東京 です", "ガラス"):
        assert await found(store, part) == [job_id], part
    for other in ("京東", "大阪", "カラス"):
        assert await found(store, other) == [], other


HOSTILE = [
    '"',
    "'",
    "\"refund\" AND NOT (x OR 'y'*",
    "refund & | ! <-> :*",
    "words:refund",
    "refund*",
    "^refund",
    "NEAR(a b, 2)",
    "refund -please",
    "%_;--",
    "\0refund\0",
    "😀",
    "\ud800 refund",
    "((((((",
    "refund " * 1_500,
    "x" * 10_000,
    "\\",
    "$$ $1 ?1 :query",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
async def test_nothing_of_a_query_is_syntax(
    database: Database, store: JobStore, following: FollowUp, hostile: str
) -> None:
    """Its letters and digits are words, whatever else it has."""
    job_id = await accepted(store, clean(hostile))
    await settled(database, following)
    words = any(character.isalnum() for character in hostile)
    assert await found(store, hostile) == ([job_id] if words else [])


async def test_images_are_not_searched(database: Database, store: JobStore, following: FollowUp) -> None:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": IMAGE}]
    messages = [
        {"role": "system", "content": "Be a botanist"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A fern"},
        {"role": "user", "content": [*parts, {"type": "text", "text": "Really a fern?"}]},
    ]
    job_id = await accepted(store, messages=messages)
    await settled(database, following)
    assert await found(store, "botanist fern really") == [job_id]
    assert await found(store, "base64") == await found(store, "QUJDQUJD") == []
    (job,) = await store.queries.list(tenant="default")
    assert job.preview == "What is it?\nReally a fern?"


async def test_previews(database: Database, store: JobStore, following: FollowUp) -> None:
    """At once, from the request, and the same from the index later; None for a deleted job."""
    long = "Ünïcode 😀 " * 40
    job_id = await accepted(store, long)
    for _ in range(2):
        (job,) = await store.queries.list(tenant="default")
        shown = await store.queries.get(job_id)
        assert job.preview == shown.preview == long[:120]
        await settled(database, following)
    await store.seals.request_cancel(job_id)
    await store.seals.delete(job_id)
    (job,) = await store.queries.list(tenant="default")
    assert (job.preview, (await store.queries.get(job_id)).preview) == (None, None)


async def test_with_other_filters(
    database: Database, store: JobStore, writer: TranscriptWriter, following: FollowUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same jobs and pages, whether a filter matches few jobs or many."""
    ids = [await accepted(store, f"common {number}", metadata={"part": str(number % 2)}) for number in range(12)]
    for number in range(12):
        await accepted(store, f"another {number}", metadata={"part": str(number % 2)})
    for job_id in ids[:4]:
        await store.seals.request_cancel(job_id)
    await settled(database, following)
    created = [(await store.queries.get(job_id)).created_at for job_id in ids]

    async def paged(search: str = "common", **filters: Any) -> list[str]:
        pages: list[str] = []
        before = None
        while page := await store.queries.list(tenant="default", search=search, before=before, limit=2, **filters):
            pages += [job.job_id for job in page]
            before = (micros(page[-1].created_at), page[-1].job_id)
        return pages

    newest = ids[::-1]
    for few in (listing.FEW, 1):
        monkeypatch.setattr(listing, "FEW", few)
        monkeypatch.setattr(listing, "FEW_FOUND", few)
        monkeypatch.setattr(listing, "WORDS_AT_ONCE", 3)
        assert await paged() == newest
        assert await paged("commo") == newest
        assert await paged("commo", metadata={"part": "1"}) == newest[::2]
        assert await paged(status=JobStatus.CANCELLED) == newest[-4:]
        assert await paged(metadata={"part": "1"}) == newest[::2]
        assert await paged(metadata={"part": "1"}, status=JobStatus.CANCELLED) == newest[-4::2]
        assert await paged(since=created[3], until=created[6]) == ids[3:6][::-1]
        assert await paged(model="none") == []


async def test_a_search_that_takes_too_long_says_how_to_narrow_it(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, kept = make_store(sqlite), FollowUp(sqlite)
    for number in range(6):
        await accepted(store, "common", metadata={"n": str(number % 2), "m": str(number % 3)})
    async with kept.ready():
        await settled(sqlite, kept)
    for name in ("FEW", "FEW_FOUND", "WORDS_AT_ONCE"):
        monkeypatch.setattr(listing, name, 1)
    hurried = JobList(sqlite, Timings(search_seconds=0))
    chosen = JobFilter(search="common", metadata={"n": "1", "m": "1"})
    with pytest.raises(InvalidRequest, match="since and until"):
        await hurried.page(chosen, tenant="default", before=None, limit=10)


# ------------------------------------------------------------------------------------------------- deletion


async def entries(database: Database) -> int:
    """Of jobs that are there or not; the latter wait until the index has lost their words."""
    async with database.read() as connection:
        return int(await connection.scalar(select(func.count()).select_from(search_entries)) or 0)


async def test_a_deleted_job_is_not_found(
    database: Database, store: JobStore, writer: TranscriptWriter, following: FollowUp
) -> None:
    """From the moment on at which its deletion returns, and its words stay away."""
    job_id = await done(store, writer, "a secret", "kept well")
    await settled(database, following)
    await store.seals.delete(job_id)
    assert await found(store, "secret") == []
    await settled(database, following)
    assert (await found(store, "secret"), await entries(database)) == ([], 0)


async def test_a_job_that_is_deleted_before_it_is_indexed(
    database: Database, store: JobStore, writer: TranscriptWriter, following: FollowUp
) -> None:
    job_id = await done(store, writer, "a secret", "kept well")
    await store.seals.delete(job_id)
    await settled(database, following)
    assert (await found(store, "secret"), await entries(database)) == ([], 0)


async def test_removed_jobs_leave_nothing(
    database: Database, store: JobStore, writer: TranscriptWriter, following: FollowUp
) -> None:
    stays = await accepted(store, "a secret that runs", metadata={"of": "both"})
    for _ in range(5):
        await done(store, writer, "a secret", "kept well", metadata={"of": "both", "long": "😀" * 512})
    await settled(database, following)
    assert len(await found(store, "secret")) == 6
    retention, removed = RetentionStore(database), 0
    while removed < 5:
        removed += (await retention.remove(datetime.now(UTC) + timedelta(days=30))).jobs
    assert await found(store, "secret") == [stays]
    await settled(database, following)
    assert await entries(database) == 1
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM job_metadata")) == 1
        assert await connection.scalar(select(func.count()).select_from(search_queue)) == 0


async def test_deleted_words_leave_sqlites_file(tmp_path: Path) -> None:
    """FTS5 keeps the words of removed rows in older segments until these are merged."""
    path = tmp_path / "chatjobs.db"
    database = await Database.open(migrated.sqlite_file(path))
    store, kept = make_store(database), FollowUp(database)
    async with kept.ready():
        for number in range(40):
            await accepted(store, f"many words beside it {number}")
            if number == 20:
                secret = await accepted(store, "zyxwvutsrq")
            await settled(database, kept)
        assert b"yxwvutsrq" in words_of(path)
        await store.seals.request_cancel(secret)
        await store.seals.delete(secret)
        await settled(database, kept)
        assert await found(store, "beside 12") != []
    await database.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"yxwvutsrq" not in words_of(path)


def words_of(path: Path) -> bytes:
    """The database with its log, and the words that are packed in it."""
    with sqlite3.connect(path) as connection:
        packed = [zlib.decompress(row[0]) for row in connection.execute("SELECT words FROM search_entries")]
    return b"".join([*packed, *(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))])


# ----------------------------------------------------------------------------------------------- without it


async def test_without_the_index_everything_but_the_search_works(sqlite: Database) -> None:
    """As in a database that was made without FTS5. A process that has it makes the index, and all jobs are found."""
    store, kept = make_store(sqlite), FollowUp(sqlite)
    first = await accepted(store, "hello first")
    async with kept.ready():
        await settled(sqlite, kept)
        async with sqlite.write() as connection:
            await connection.execute(text("DROP TABLE job_words"))
        job_id, gone = await accepted(store, "hello"), await accepted(store, "hello")
        await store.seals.request_cancel(gone)
        await store.seals.delete(gone)
        listed = await store.queries.list(tenant="default")
        assert [(job.job_id, job.preview) for job in listed] == [
            (gone, None),
            (job_id, "hello"),
            (first, "hello first"),
        ]
        with pytest.raises(SearchUnavailable, match="FTS5"):
            await found(store, "hello")
        await settled(sqlite, kept)
    assert await found(store, "hello") == [job_id, first]
