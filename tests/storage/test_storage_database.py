"""The database itself: opened, shared, locked, cut, cancelled, and what its errors say."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, inspect, select, text

import storage.engine.database
from chatjobs.errors import ConfigurationError
from domain.errors import StorageError, StorageRefused, StorageUnavailable
from domain.timings import Timings
from storage.engine.database import SCHEMA_VERSION, Database, RolledBack, retried, translated
from storage.engine.schema import jobs, metadata, requests
from storage.jobs.store import JobStore
from tests.support.factories import accepted, claimed, make_store
from tests.support.postgres import Postgres
from tests.support.storage_faults import cut_connections, held_locked, other

# -------------------------------------------------------------------------------------------------------- opening


async def test_the_migrations_make_the_tables_that_the_code_expects(empty_database_url: str) -> None:
    def described(connection: Any) -> dict[str, set[tuple[str, bool]]]:
        found = inspect(connection)
        return {
            table: {(column["name"], column["nullable"]) for column in found.get_columns(table)}
            for table in found.get_table_names()
            if table != "alembic_version" and not table.startswith("job_words")  # SQLite's full-text index
        }

    expected = {
        name: {(column.name, bool(column.nullable)) for column in table.columns}
        for name, table in metadata.tables.items()
    }
    database = await Database.open(empty_database_url)
    async with database.read() as connection:
        assert await connection.run_sync(described) == expected
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == SCHEMA_VERSION
    await database.close()


async def test_opening_again_finds_everything(database: Database, database_url: str, store: JobStore) -> None:
    job_id = await accepted(store)
    again = await Database.open(database_url)
    assert (await make_store(again).queries.get(job_id)).job_id == job_id
    await again.close()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "not a url, secret", "sqlite://", "sqlite:///:memory:"])
async def test_a_url_that_is_of_no_use_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await Database.open(url)
    assert "CHATJOBS_DATABASE_URL" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["postgresql://u:secret@127.0.0.1:1/d", "postgresql://u:secret@/d?host=/nowhere", "sqlite:////proc/x/y.db"]
)
async def test_a_database_that_is_not_there_is_unavailable(url: str) -> None:
    with pytest.raises(StorageUnavailable) as unavailable:
        await Database.open(url)
    assert "secret" not in str(unavailable.value)


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    timings = Timings(database_connect_seconds=0.1)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(StorageUnavailable):
        await Database.open(f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/d", timings=timings)


async def test_the_sslmode_of_hosted_databases_is_understood(postgres_server: Postgres) -> None:
    await (await Database.open(f"{postgres_server.new_database()}&sslmode=prefer")).close()


async def test_an_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(ConfigurationError, match="too old"):
        await Database.open(f"sqlite:///{tmp_path / 'x.db'}")


async def test_a_database_of_a_newer_version_is_left_alone(database: Database, database_url: str) -> None:
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="newer version"):
        await Database.open(database_url)


# -------------------------------------------------------------------------------------------------- transactions


async def test_a_write_that_fails_leaves_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = 'x'"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == SCHEMA_VERSION


async def test_a_write_within_a_write_is_a_mistake(database: Database) -> None:
    with pytest.raises(RuntimeError, match="already"):
        async with database.write():
            await accepted(make_store(database))
    await accepted(make_store(database))


async def test_cancelled_calls_leave_no_half_and_no_lock(store: JobStore, database: Database) -> None:
    """Two hundred calls, each cancelled a little later than the one before."""
    for number in range(200):
        task = asyncio.create_task(accepted(store, str(number)))
        await asyncio.sleep(number * 0.00004)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(30):
        assert await store.queries.request(await accepted(store))
    halves = select(func.count()).where(jobs.c.id.not_in(select(requests.c.job_id)))
    async with database.read() as connection:
        assert await connection.scalar(halves) == 0


async def test_fifty_claims_at_once_and_many_calls_beside(store: JobStore) -> None:
    ids = await asyncio.gather(*(accepted(store, str(number)) for number in range(50)))
    claims = [claimed(store, job_id) for job_id in ids]
    reads = [store.queries.get(job_id) for job_id in ids]
    results = await asyncio.gather(*claims, *reads, store.queries.list(limit=50))
    assert len(results) == 101


# ---------------------------------------------------------------------------------------------- time limits, errors


async def test_a_locked_database_is_waited_for_only_so_long(database_url: str) -> None:
    """However many stand in line."""
    database = await Database.open(database_url, timings=Timings(database_busy_seconds=0.3))
    store = make_store(database)
    job_id = await accepted(store)
    async with held_locked(database):
        calls = [accepted(store, str(number)) for number in range(8)]
        async with asyncio.timeout(15):
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [StorageUnavailable] * 8
        assert (await store.queries.get(job_id)).job_id == job_id  # reading goes on
    await accepted(store)
    await database.close()


async def test_connections_are_waited_for_only_so_long(database_url: str) -> None:
    database = await Database.open(database_url, timings=Timings(database_pool_seconds=0.1))
    release = asyncio.Event()

    async def hold() -> None:
        async with database.read():
            await release.wait()

    holding = [asyncio.create_task(hold()) for _ in range(storage.engine.database.POSTGRES_CONNECTIONS)]
    await asyncio.sleep(0.05)
    with pytest.raises(StorageUnavailable):
        await make_store(database).queries.list()
    release.set()
    await asyncio.gather(*holding, return_exceptions=True)
    assert await make_store(database).queries.empty()
    await database.close()


async def test_a_restarted_server_is_not_noticed(postgres_server: Postgres, postgres_database: Database) -> None:
    store = make_store(postgres_database)
    await asyncio.gather(*(accepted(store) for _ in range(5)))
    await cut_connections(postgres_server, postgres_database)
    assert len(await asyncio.gather(*(accepted(store) for _ in range(5)))) == 5


async def test_a_deadlock_is_nobodys_business(postgres_server: Postgres, postgres_database: Database) -> None:
    """A claim that Postgres rolls back for the sake of another transaction is made again."""
    postgres_server.sql(f"ALTER DATABASE {postgres_database.url.database} SET deadlock_timeout = '50ms';")
    await postgres_database.close()  # new connections have it
    store = make_store(postgres_database)
    job_id = await accepted(store)
    async with other(postgres_database) as connection:
        await connection.execute("BEGIN; LOCK TABLE attempts IN SHARE MODE; SET deadlock_timeout = '10s'")
        claiming = asyncio.create_task(claimed(store, job_id))
        while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # what happens in another process has no Event
        await connection.execute("UPDATE jobs SET progressed_at = 0")
        await connection.execute("COMMIT")
    assert (await claiming).attempt == 1
    assert len((await store.queries.get(job_id)).attempts) == 1


async def test_a_rolled_back_transaction_is_made_five_times_and_no_more() -> None:
    made = []

    @retried
    async def transaction(successes: int) -> int:
        made.append(1)
        if len(made) <= successes:
            raise RolledBack
        return len(made)

    assert await transaction(4) == 5
    made.clear()
    with pytest.raises(StorageUnavailable):
        await transaction(5)
    assert len(made) == 5


async def test_what_was_refused_is_not_told(database: Database) -> None:
    for statement in (
        "INSERT INTO requests (job_id, body) VALUES ('secret', NULL)",
        "SELECT secret FROM jobs",
        "INSERT INTO requests (job_id, body) VALUES ('secret', 'a'), ('secret', 'b')",
    ):
        with pytest.raises(StorageRefused) as refused:
            async with database.write() as connection:
                await connection.execute(text(statement))
        assert "secret" not in str(refused.value)
        assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (OSError(28, "No space left on device"), StorageUnavailable),
        (TimeoutError(), StorageUnavailable),
        (UnicodeEncodeError("utf-8", "secret\ud800", 6, 7, "surrogates not allowed"), StorageRefused),
    ],
)
def test_errors_are_translated_once(error: Exception, ours: type[StorageError]) -> None:
    with pytest.raises(ours) as found, translated():
        raise error
    assert "secret" not in str(found.value)
