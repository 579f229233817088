"""One database: SQLite in a file on one machine, Postgres on many, chosen by its URL.

SQLite has three engines, because durability is a setting of a connection there: ``durable`` (synchronous=FULL; what
accepts, cancels or seals), ``fast`` (NORMAL; batches of text: a power loss may cost the last moments, which an attempt
regenerates) and ``reading``. On Postgres the three are one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from chatjobs.errors import StorageRefused, StorageUnavailable

SCHEMA_VERSION = "0001"
BUSY_SECONDS = 5
STATEMENT_SECONDS = 30
OLDEST_SQLITE = (3, 35)
RETRYABLE_SQLSTATES = ("08", "40", "53", "55", "57", "58")
"""Classes of Postgres errors that say nothing about the data: connection, rollback, resources, locks, operator, system
(PostgreSQL documentation, appendix A)."""


class Database:
    """Opened with ``Database.open``; close it when done.

    Raises StorageUnavailable for everything that may pass (locked, full, unreachable) and StorageRefused for text that
    the database will never take.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self.durable = _sqlite_engine(url, synchronous="FULL", connections=1)
            self.fast = _sqlite_engine(url, synchronous="NORMAL", connections=1)
            self.reading = _sqlite_engine(url, synchronous="NORMAL", connections=4)
        else:
            self.durable = self.fast = self.reading = _postgres_engine(url)
        # SQLite makes a second writer poll with growing pauses; inside one process waiting in line is faster.
        self._line = asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> Database:
        """Connect, and create or migrate the schema where needed."""
        database = cls(_with_driver(make_url(url)))
        try:
            await database._migrate()
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        for engine in {id(e): e for e in (self.durable, self.fast, self.reading)}.values():
            await engine.dispose()

    @asynccontextmanager
    async def write(self, engine: Literal["durable", "fast"] = "durable") -> AsyncIterator[AsyncConnection]:
        """One write transaction, committed at the end of the block."""
        chosen: AsyncEngine = getattr(self, engine)
        with translated():
            if not self.is_sqlite:
                async with chosen.begin() as connection:
                    yield connection
                return
            async with self._line, chosen.connect() as connection:
                await connection.execution_options(begin="BEGIN IMMEDIATE")
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Statements that only read, in one snapshot."""
        with translated():
            async with self.reading.connect() as connection:
                if not self.is_sqlite:
                    await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def single(self) -> AsyncIterator[AsyncConnection]:
        """One statement that is its own transaction: on Postgres a single round trip."""
        with translated():
            async with self.fast.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                yield connection

    async def _migrate(self) -> None:
        if await self._version() == SCHEMA_VERSION:
            return
        from storage.migrate import upgrade  # alembic takes two seconds to import

        async with self.write() as connection:
            if not self.is_sqlite:  # processes that start together migrate one after the other
                await connection.execute(text("SELECT pg_advisory_xact_lock(7233)"))
            await connection.run_sync(upgrade)

    async def _version(self) -> str | None:
        async with self.read() as connection:
            return await connection.run_sync(_schema_version)


def _schema_version(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def _with_driver(url: URL) -> URL:
    match url.get_backend_name():
        case "sqlite":
            if sqlite3.sqlite_version_info < OLDEST_SQLITE:
                raise StorageUnavailable(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed")
            Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
            return url.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres":
            return url.set(drivername="postgresql+asyncpg")
        case other:
            raise StorageUnavailable(f"CHATJOBS_DATABASE_URL must be sqlite:///… or postgresql://…, not {other}")


def _sqlite_engine(url: URL, *, synchronous: str, connections: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": BUSY_SECONDS},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "wal_autocheckpoint=4000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that turns into a writer fails at once, whatever the busy timeout.
        options = connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT":  # the event comes then, too
            connection.exec_driver_sql(options.get("begin", "BEGIN"))

    return engine


def _postgres_engine(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=10,
        max_overflow=0,
        pool_pre_ping=False,
        connect_args={"timeout": 5, "command_timeout": STATEMENT_SECONDS},
    )


@contextmanager
def translated() -> Iterator[None]:
    """The one place where a database's own exceptions become ours. Texts of statements and values stay out."""
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).splitlines()[0] if error.orig else type(error).__name__
        if _passing(error):
            raise StorageUnavailable(f"The database is not available ({reason}); try again in a moment") from None
        raise StorageRefused(f"The database refused this ({type(error.orig).__name__})") from None
    except UnicodeEncodeError:
        raise StorageRefused("The database refused this text: it is not valid Unicode") from None
    except (PoolTimeout, OSError, TimeoutError) as error:
        raise StorageUnavailable(f"The database is not available ({type(error).__name__}); is it running?") from None


def _passing(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if isinstance(state, str):
        return state.startswith(RETRYABLE_SQLSTATES)
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
