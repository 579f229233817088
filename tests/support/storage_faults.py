"""What happens to a database: locks, refusals, cut connections, a full disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import text

from storage.engine.database import Database
from tests.support.postgres import Postgres

POISON = "poisonous"


@asynccontextmanager
async def other(database: Database) -> AsyncIterator[Any]:
    """Somebody else's connection: what is executed there is no transaction of ours."""
    if database.is_sqlite:
        connection = sqlite3.connect(str(database.url.database), isolation_level=None, timeout=5)
        try:
            yield _Sqlite(connection)
        finally:
            connection.close()
        return
    import asyncpg  # type: ignore[import-untyped]  # the package has no type hints

    raw = await asyncpg.connect(database.url.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        yield raw
    finally:
        await raw.close()


class _Sqlite:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def execute(self, statement: str) -> None:
        self._connection.execute(statement)


@asynccontextmanager
async def held_locked(database: Database) -> AsyncIterator[None]:
    """Nobody else writes while the block runs."""
    async with other(database) as connection:
        await connection.execute("BEGIN IMMEDIATE" if database.is_sqlite else "BEGIN")
        if not database.is_sqlite:
            await connection.execute("LOCK TABLE jobs IN SHARE MODE")
        yield
        await connection.execute("ROLLBACK")


async def refuse_poison(database: Database) -> None:
    """From now on the database itself refuses one text."""
    statement = f"ALTER TABLE jobs ADD CONSTRAINT poison CHECK (tail NOT LIKE '%{POISON}%')"
    if database.is_sqlite:
        statement = f"""CREATE TRIGGER poison BEFORE UPDATE ON jobs WHEN NEW.tail LIKE '%{POISON}%'
            BEGIN SELECT RAISE(ABORT, 'refused: {POISON}'); END"""
    async with database.write() as connection:
        await connection.execute(text(statement))


async def cut_connections(server: Postgres, database: Database) -> None:
    """End every connection to a Postgres database from the server's side."""
    cut = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname ="
    await asyncio.to_thread(server.sql, f"{cut} '{database.url.database}' AND pid <> pg_backend_pid();")
    await asyncio.sleep(0.01)  # for the event loop to hear of it
