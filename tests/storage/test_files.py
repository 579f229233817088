"""Files in storage: pieces in order; nothing of what broke off, of other tenants, or from before the retention."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from domain.errors import FileNotFound, StorageUnavailable
from domain.files import FileEnd, FileFilter, NewFile
from storage.engine import schema
from storage.engine.database import Database
from storage.files.queries import FileQueries
from storage.files.retention import FileRetention
from storage.files.uploads import FileUploads

PIECES = (b'{"a": 1}\n', b"\x00\xff" * 50_000, b"end")
NOW = timedelta(0)


@pytest.fixture
def uploads(database: Database) -> FileUploads:
    return FileUploads(database)


@pytest.fixture
def queries(database: Database) -> FileQueries:
    return FileQueries(database)


async def begun(
    uploads: FileUploads, pieces: Sequence[bytes] = PIECES, tenant: str = "a", name: str = "in.jsonl"
) -> str:
    file_id = await uploads.begin(NewFile("a", name))
    for number, piece in enumerate(pieces):
        await uploads.add(file_id, number, piece)
    return file_id


def end_of(pieces: Sequence[bytes] = PIECES, expires_at: datetime | None = None) -> FileEnd:
    whole = b"".join(pieces)
    return FileEnd(len(whole), whole.count(b"\n"), hashlib.sha256(whole).hexdigest(), expires_at=expires_at)


async def stored(
    uploads: FileUploads, pieces: Sequence[bytes] = PIECES, tenant: str = "a", name: str = "in.jsonl"
) -> str:
    file_id = await begun(uploads, pieces, name=name)
    await uploads.finish(file_id, end_of(pieces))
    return file_id


async def rows(database: Database) -> tuple[int, int]:
    """Files and pieces, seen or not."""
    async with database.read() as connection:
        counts = [
            await connection.scalar(select(func.count()).select_from(t)) for t in (schema.files, schema.file_chunks)
        ]
    return int(counts[0] or 0), int(counts[1] or 0)


async def content(queries: FileQueries, file_id: str) -> bytes:
    return b"".join([piece async for piece in queries.content(file_id)])


async def test_a_file_is_its_pieces_in_their_order(uploads: FileUploads, queries: FileQueries) -> None:
    file_id = await stored(uploads)
    found = await queries.get(file_id, "a")
    assert (found.size, found.num_lines, found.filename) == (sum(map(len, PIECES)), 1, "in.jsonl")
    assert await content(queries, file_id) == b"".join(PIECES)


async def test_nobody_sees_a_file_before_its_end(uploads: FileUploads, queries: FileQueries) -> None:
    file_id = await begun(uploads)
    with pytest.raises(FileNotFound):
        await queries.get(file_id, "a")
    assert (await queries.list("a", FileFilter(), page=0, page_size=10)).total == 0
    await uploads.finish(file_id, end_of())
    assert (await queries.list("a", FileFilter(), page=0, page_size=10)).total == 1


async def test_a_file_is_its_tenants(uploads: FileUploads, queries: FileQueries) -> None:
    file_id = await stored(uploads)
    with pytest.raises(FileNotFound):
        await queries.get(file_id, "b")
    with pytest.raises(FileNotFound):
        await uploads.delete(file_id, "b")
    assert (await queries.list("b", FileFilter(), page=0, page_size=10)).total == 0
    assert (await queries.get(file_id, "a")).file_id == file_id


async def test_a_deleted_file_is_gone_at_once_and_then_whole(
    database: Database, uploads: FileUploads, queries: FileQueries
) -> None:
    file_id, other = await stored(uploads, [b"x"] * 20), await stored(uploads)
    await uploads.delete(file_id, "a")
    with pytest.raises(FileNotFound):
        await queries.get(file_id, "a")
    with pytest.raises(FileNotFound):
        await uploads.delete(file_id, "a")
    await uploads.discard(file_id)
    assert await rows(database) == (1, len(PIECES))
    assert await content(queries, other) == b"".join(PIECES)


async def test_discard_leaves_a_complete_file(uploads: FileUploads, queries: FileQueries) -> None:
    file_id = await stored(uploads)
    await uploads.discard(file_id)
    assert await content(queries, file_id) == b"".join(PIECES)


async def test_an_upload_that_broke_off_is_removed_once_it_is_idle(database: Database, uploads: FileUploads) -> None:
    file_id, kept = await begun(uploads, [b"x"] * 20), await stored(uploads)
    assert await uploads.discard_abandoned() == 0
    assert await rows(database) == (2, 20 + len(PIECES))
    assert await uploads.discard_abandoned(NOW) == 1
    assert await rows(database) == (1, len(PIECES))
    with pytest.raises(StorageUnavailable):
        await uploads.add(file_id, 20, b"x")
    with pytest.raises(StorageUnavailable):
        await uploads.finish(file_id, end_of())
    assert kept


async def test_a_list_has_pages_and_filters(uploads: FileUploads, queries: FileQueries) -> None:
    ids = [await stored(uploads, name=f"{'Night' if number % 2 else '100%_day'}-{number}.jsonl") for number in range(5)]
    newest = ids[::-1]
    pages = [await queries.list("a", FileFilter(), page=page, page_size=2) for page in range(4)]
    assert [[one.file_id for one in page.files] for page in pages] == [newest[:2], newest[2:4], newest[4:], []]
    assert [page.total for page in pages] == [5, 5, 5, 5]
    assert (await queries.list("a", FileFilter(), page=0, page_size=1, count=False)).total is None

    async def matching(wanted: FileFilter) -> list[str]:
        return [one.file_id for one in (await queries.list("a", wanted, page=0, page_size=10)).files]

    assert await matching(FileFilter(search="nIGHT")) == [ids[3], ids[1]]
    assert await matching(FileFilter(search="%_d")) == [ids[4], ids[2], ids[0]]
    assert await matching(FileFilter(search="1%")) == []
    assert await matching(FileFilter(sample_types=["batch_result"])) == []
    assert await matching(FileFilter(sources=["upload"], mimetypes=["application/jsonl"])) == newest


async def test_what_is_too_old_or_has_expired_is_removed(
    database: Database, uploads: FileUploads, queries: FileQueries
) -> None:
    retention, now = FileRetention(database), datetime.now(UTC)
    kept, expiring = await stored(uploads), await begun(uploads)
    end = await uploads.finish(expiring, end_of(expires_at=now + timedelta(hours=1)))
    assert end.expires_at == now + timedelta(hours=1)
    assert await retention.remove_some(now - timedelta(days=1)) == 0
    async with database.write() as connection:
        soon = update(schema.files).where(schema.files.c.id == expiring)
        await connection.execute(soon.values(expires_at=schema.micros(now)))
    with pytest.raises(FileNotFound):
        await queries.get(expiring)
    assert await retention.remove_some(now - timedelta(days=1)) == 1
    assert await rows(database) == (1, len(PIECES))
    assert await content(queries, kept) == b"".join(PIECES)
    assert await retention.remove_some(now + timedelta(days=1)) == 1
    assert await retention.remove_some(now + timedelta(days=1)) == 0
    assert await rows(database) == (0, 0)


async def test_uploads_at_the_same_time_do_not_mix(uploads: FileUploads, queries: FileQueries) -> None:
    contents = [[bytes([letter]) * 1_000] * 5 for letter in b"abcd"]
    ids = await asyncio.gather(*(stored(uploads, pieces) for pieces in contents))
    assert [await content(queries, one) for one in ids] == [b"".join(pieces) for pieces in contents]
