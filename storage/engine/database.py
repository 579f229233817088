"""One database: SQLite in a file on one machine, Postgres on many, chosen by its URL.

SQLite has three engines, because durability is a setting of a connection there: ``durable`` (synchronous=FULL; what
accepts, cancels or seals), ``fast`` (NORMAL; claims and the like) and ``reading``. On Postgres the three are one.
Batches of text and the watch for news have connections of their own, so that neither waits behind anything else.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from chatjobs.errors import ConfigurationError
from domain.errors import StorageError, StorageFull, StorageRefused, StorageUnavailable
from domain.timings import Timings
from storage.engine import sync_transaction as inline
from storage.engine.sqlite_thread import SqliteThread

SCHEMA_VERSION = "0007"
STATEMENT_SECONDS = 15
IDLE_IN_TRANSACTION_SECONDS = 15
"""After this Postgres ends the transaction of a process that hangs, which would keep its rows locked."""
POSTGRES_CONNECTIONS = 10
"""Per process; two more are for batches of text and the watch for news."""
HINT_CHANNEL = "chatjobs_transcript"
"""Postgres NOTIFY channel: a hint that somebody may look, never the data."""
HINT = text(f"SELECT pg_notify('{HINT_CHANNEL}', '')")
LOG_PAGES = 10_000
"""How long SQLite's write-ahead log may grow before whoever commits has to bring it into the database file."""
OLDEST_SQLITE = (3, 35)
PASSING_SQLSTATES = ("08", "40", "53", "55", "57", "58")
"""Classes of Postgres errors that say nothing about the data: connection, rollback, resources, locks, operator, system
(PostgreSQL documentation, appendix A)."""
PASSING_SQLITE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOTADB,
)
"""Result codes of SQLite that say nothing about the data (sqlite.org/rescode.html)."""
READ_ONLY = "25006"
"""Postgres: the server is a standby, or somebody has made it refuse writes; it passes."""
NO_SPACE = ("53100", sqlite3.SQLITE_FULL)
CUT = ("08", "57P")
"""Postgres: the connection is gone, or the server ends it."""
ROLLED_BACK = ("40001", "40P01")
"""Serialisation failure and deadlock: nothing was done, and doing it again is all that is needed."""
TRIES = 5
FIRST_TRIES = 50
RETRY_SECONDS = 0.02

RECONNECTS = 3

P = ParamSpec("P")
T = TypeVar("T")


class RolledBack(StorageUnavailable):
    """The database gave another transaction the right of way; try again in a moment."""


class ConnectionCut(StorageUnavailable):
    """The connection to the database was cut; whether the transaction was committed is not known."""


def reconnecting(transaction: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Do a transaction again whose connection was cut. It has to recognise its own work."""

    @functools.wraps(transaction)
    async def until_done(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(RECONNECTS):
            try:
                return await transaction(*args, **kwargs)
            except ConnectionCut:
                await asyncio.sleep(RETRY_SECONDS)
        return await transaction(*args, **kwargs)

    return until_done


def retried(transaction: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Do a whole transaction again that Postgres rolled back for the sake of another, five times in all."""

    @functools.wraps(transaction)
    async def until_done(*args: P.args, **kwargs: P.kwargs) -> T:
        for number in range(1, TRIES):
            try:
                return await transaction(*args, **kwargs)
            except RolledBack:
                await asyncio.sleep(number * RETRY_SECONDS)
        return await transaction(*args, **kwargs)

    return until_done


class Database:
    """Opened with ``Database.open``; close it when done.

    Raises StorageUnavailable for everything that may pass (locked, full, unreachable) and StorageRefused for what the
    database will never take.
    """

    def __init__(self, url: URL, *, timings: Timings = Timings()) -> None:
        self.url = url
        self._busy_seconds = timings.database_busy_seconds
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._durable = _sqlite_writer(url, timings, synchronous="FULL")
            self._fast = _sqlite_writer(url, timings, synchronous="NORMAL")
            self._ends = ThreadPoolExecutor(1, thread_name_prefix="transaction-ends")
            self.reading = self._own = _sqlite_reader(url, timings, connections=4)
        else:
            self.reading = _postgres_engine(url, timings, POSTGRES_CONNECTIONS)
            self._own = _postgres_engine(url, timings, 2)
        # SQLite makes a second writer poll with growing pauses; inside one process waiting in line is faster.
        self._line = asyncio.Lock()
        self._writers: set[asyncio.Task[Any] | None] = set()

    @classmethod
    async def open(cls, url: str, *, timings: Timings = Timings()) -> Database:
        """Connect, and create or migrate the schema where needed. Raises ConfigurationError, StorageUnavailable."""
        database = cls.as_it_is(url, timings=timings)
        try:
            await database._prepare()
        except BaseException:
            await database.close()
            raise
        return database

    @classmethod
    def as_it_is(cls, url: str, *, timings: Timings = Timings()) -> Database:
        """Neither connected nor migrated: for whoever only wants to look. Raises ConfigurationError."""
        return cls(_with_driver(_parsed(url)), timings=timings)

    async def close(self) -> None:
        for engine in {id(e): e for e in (self.reading, self._own)}.values():
            await engine.dispose()
        if self.is_sqlite:
            self._durable.dispose()
            self._fast.dispose()
            self._ends.shutdown(wait=False)

    @asynccontextmanager
    async def write(self, engine: Literal["durable", "fast"] = "durable") -> AsyncIterator[AsyncConnection]:
        """One write transaction, committed at the end of the block. A task may be in one at a time."""
        with translated(), self._once():
            if not self.is_sqlite:
                async with self.reading.begin() as connection:
                    yield connection
                return
            async with self.turn(), inline.transaction(getattr(self, f"_{engine}"), self._ends) as connection:
                yield connection

    def not_writing(self) -> None:
        """For what another task will write: if this one is in a write transaction, it would wait for itself."""
        if asyncio.current_task() in self._writers:
            raise RuntimeError("This task is in a write transaction already")

    @contextmanager
    def _once(self) -> Iterator[None]:
        """A write inside a write would wait for itself."""
        self.not_writing()
        task = asyncio.current_task()
        self._writers.add(task)
        try:
            yield
        finally:
            self._writers.discard(task)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """This process's turn to write to SQLite; the queue keeps its order."""
        async with asyncio.timeout(self._busy_seconds):
            await self._line.acquire()
        try:
            yield
        finally:
            self._line.release()

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
    async def single(self, *, own: bool = False) -> AsyncIterator[AsyncConnection]:
        """Statements that are transactions each: on Postgres a single round trip. ``own``: on a connection kept for
        the two that must not wait behind anything else."""
        with translated():
            async with (self._own if own else self.reading).connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                yield connection

    async def hint(self, connection: AsyncConnection) -> None:
        """Tell readers that this transaction has news for them, where they have no other way to learn it at once."""
        if not self.is_sqlite:
            await connection.execute(HINT)

    def sqlite_thread(self, name: str) -> SqliteThread:
        """A SQLite connection of its own, for what has to be fast."""

        def configure(connection: sqlite3.Connection) -> None:
            _configured(connection, "NORMAL", self._busy_seconds)

        return SqliteThread(self.url.database or "", name=name, configure=configure)

    async def _prepare(self) -> None:
        """Migrate. While another process switches a new SQLite file to WAL, it refuses everybody without waiting."""
        for _ in range(FIRST_TRIES if self.is_sqlite else 0):
            try:
                return await self._migrate()
            except StorageUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
        return await self._migrate()

    async def _migrate(self) -> None:
        if await self.version() == SCHEMA_VERSION:
            return
        from storage.engine.migrate import upgrade  # alembic takes two seconds to import

        async with self.write() as connection:
            if not self.is_sqlite:  # processes that start together migrate one after the other
                await connection.execute(text("SET LOCAL lock_timeout = 0"))
                await connection.execute(text("SELECT pg_advisory_xact_lock(7233)"))
            await connection.run_sync(upgrade)

    async def version(self) -> str | None:
        """Of the schema, as SCHEMA_VERSION; None where there is none yet. Raises StorageUnavailable."""
        async with self.read() as connection:
            return await connection.run_sync(_schema_version)


async def check_writable(database: Database) -> None:
    """Write something that nobody reads. Raises StorageUnavailable."""
    if database.is_sqlite:
        async with database.write("fast") as connection:
            version = await connection.scalar(text("PRAGMA user_version"))
            await connection.execute(text(f"PRAGMA user_version = {int(version or 0) ^ 1}"))
        return
    async with database.single() as connection:
        if await connection.scalar(text("SELECT current_setting('transaction_read_only')")) != "off":
            raise StorageUnavailable("The database takes no writes; is it a standby?")


def _schema_version(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


# ---------------------------------------------------------------------------------------------------- engines


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # its text may show a password
        raise ConfigurationError("CHATJOBS_DATABASE_URL is not a URL: use sqlite:///… or postgresql://…") from None


def _with_driver(url: URL) -> URL:
    match url.get_backend_name():
        case "sqlite":
            return _sqlite_url(url)
        case "postgresql" | "postgres":
            return _postgres_url(url)
        case other:
            raise ConfigurationError(f"CHATJOBS_DATABASE_URL must be sqlite:///… or postgresql://…, not {other}")


def _sqlite_url(url: URL) -> URL:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise ConfigurationError(f"SQLite {sqlite3.sqlite_version} is too old; {oldest} or newer is needed")
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("CHATJOBS_DATABASE_URL must name a file: several processes share the database")
    with translated():
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    return url


def _postgres_url(url: URL) -> URL:
    query = dict(url.query)
    if "sslmode" in query:  # libpq's name, which URLs of hosted databases carry
        query["ssl"] = query.pop("sslmode")
    return url.set(drivername="postgresql+asyncpg", query=query)


def _sqlite_reader(url: URL, timings: Timings, *, connections: int) -> AsyncEngine:
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=timings.database_pool_seconds,
        hide_parameters=True,
        connect_args={"timeout": timings.database_busy_seconds},
    )
    _prepared(engine.sync_engine, timings, "NORMAL", begin="BEGIN")
    return engine


def _sqlite_writer(url: URL, timings: Timings, *, synchronous: str) -> Engine:
    engine = create_engine(
        url.set(drivername="sqlite"),
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=timings.database_pool_seconds,
        hide_parameters=True,
        # One transaction at a time: ``turn``.
        connect_args={"timeout": timings.database_busy_seconds, "check_same_thread": False},
    )
    # A deferred transaction that turns into a writer fails at once, whatever the busy timeout.
    _prepared(engine, timings, synchronous, begin="BEGIN IMMEDIATE")
    return engine


def _prepared(engine: Engine, timings: Timings, synchronous: str, *, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        _configured(connection, synchronous, timings.database_busy_seconds)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":  # the event comes then, too
            connection.exec_driver_sql(begin)


def _configured(connection: Any, synchronous: str, busy_seconds: float) -> None:
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={round(busy_seconds * 1_000)}", "journal_mode=WAL", f"synchronous={synchronous}"):
        cursor.execute(f"PRAGMA {pragma}")
    # What is deleted is overwritten: Debian's SQLite does so by itself, others leave the text in the file.
    cursor.execute("PRAGMA secure_delete=ON")
    # Normally batches.py has brought the log in long before; a commit that does it takes 20 ms and more.
    cursor.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
    cursor.close()


def _postgres_engine(url: URL, timings: Timings, connections: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=timings.database_pool_seconds,
        hide_parameters=True,
        connect_args={
            "timeout": timings.database_connect_seconds,
            "command_timeout": STATEMENT_SECONDS,
            "server_settings": {
                "lock_timeout": str(round(timings.database_busy_seconds * 1_000)),
                "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_SECONDS * 1_000),
            },
        },
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def _alive(connection: Any, _record: object, _proxy: object) -> None:
        """Connections that a restarted server has closed are replaced unnoticed; asking it each time would cost."""
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    return engine


# ----------------------------------------------------------------------------------------------------- errors


@contextmanager
def translated() -> Iterator[None]:
    """The one place where a database's own exceptions become ours. Texts of statements and values stay out."""
    try:
        yield
    except DBAPIError as error:
        raise _ours(error, error.orig, invalidated=error.connection_invalidated) from None
    except sqlite3.Error as error:
        raise _ours(error, error, invalidated=False) from None
    except UnicodeEncodeError:
        raise StorageRefused("The database refused this text: it is not valid Unicode") from None
    except (PoolTimeout, OSError, TimeoutError) as error:
        raise StorageUnavailable(f"The database is not available ({type(error).__name__}); is it running?") from None


def _ours(error: Exception, original: BaseException | None, *, invalidated: bool) -> StorageError:
    cause = (original and original.__cause__) or original or error
    state = getattr(cause, "sqlstate", None)
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(state, str):
        passing = state.startswith(PASSING_SQLSTATES) or state == READ_ONLY
    elif isinstance(code, int):
        passing = code & 0xFF in PASSING_SQLITE
    else:  # a ValueError is asyncpg's word for a value that it cannot send
        kinds = (OperationalError, InterfaceError, sqlite3.OperationalError, sqlite3.InterfaceError)
        passing = not isinstance(cause, ValueError) and (invalidated or isinstance(error, kinds))
    if not passing:
        return StorageRefused(f"The database refused this ({type(cause).__name__})")
    kind = _kind(state, code, invalidated=invalidated)
    # SQLite's words for these codes are constant; Postgres may quote values, so that only the kind is told.
    reason = str(cause) if isinstance(code, int) else type(cause).__name__
    return kind(f"The database is not available ({reason}); try again in a moment")


def _kind(state: object, code: object, *, invalidated: bool) -> type[StorageUnavailable]:
    if state in ROLLED_BACK:
        return RolledBack
    if state in NO_SPACE or (isinstance(code, int) and code & 0xFF in NO_SPACE):
        return StorageFull
    if invalidated or (isinstance(state, str) and state.startswith(CUT)):
        return ConnectionCut
    return StorageUnavailable
