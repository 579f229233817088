"""One database: SQLite in a file on one machine, Postgres on many, chosen by its URL.

SQLite has three engines, because durability is a setting of a connection there: ``durable`` (synchronous=FULL; for
accepting, cancelling and sealing), ``fast`` (NORMAL; claims and the like) and ``reading``. On Postgres the three are
one. Batches of text and the watch for changes have connections of their own, so that they wait behind nothing else.
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
from storage.engine import sync_transaction
from storage.engine.schema import micros, now
from storage.engine.sqlite_thread import SqliteThread

SCHEMA_VERSION = "0019"
STATEMENT_SECONDS = 15
MIGRATION_SECONDS = 3600
"""For a statement of a migration, which may make an index of millions of rows."""
IDLE_IN_TRANSACTION_SECONDS = 15
"""After this Postgres ends the transaction of a process that hangs, which would keep its rows locked."""
POSTGRES_CONNECTIONS = 10
"""Connections per process; two more are for batches of text and the watch for changes."""
HINT_CHANNEL = "chatjobs_transcript"
"""Postgres NOTIFY channel: a hint that there may be changes, never the data."""
CLOCK = text("SELECT extract(epoch FROM clock_timestamp()) * 1000000")
HINT = text(f"SELECT pg_notify('{HINT_CHANNEL}', '')")
LOG_PAGES = 10_000
"""The length of SQLite's write-ahead log from which a commit has to checkpoint it into the database file."""
READER_CACHE_KIB = 512
"""Of each connection that reads; the operating system keeps the pages as well. SQLite's own 2,000 KiB for each of them
let a process grow by 10 MB and more with the database."""
OLDEST_SQLITE = (3, 35)
TRANSIENT_SQLSTATES = ("08", "40", "53", "55", "57", "58")
"""Classes of Postgres errors that say nothing about the data: connection, rollback, resources, locks, operator, system
(PostgreSQL documentation, appendix A)."""
TRANSIENT_SQLITE_CODES = (
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
"""Postgres: the server is a standby, or was set to refuse writes; transient."""
NO_SPACE = ("53100", sqlite3.SQLITE_FULL)
CUT = ("08", "57P")
"""Postgres: the connection is lost, or the server ends it."""
ROLLED_BACK = ("40001", "40P01")
"""Postgres: serialisation failure and deadlock. Nothing was changed, and the transaction can be repeated."""
TRIES = 5
FIRST_TRIES = 50
RETRY_SECONDS = 0.02

RECONNECTS = 3

P = ParamSpec("P")
T = TypeVar("T")


class RolledBack(StorageUnavailable):
    """The database rolled this transaction back in favour of another one; try again in a moment."""


class ConnectionCut(StorageUnavailable):
    """The connection to the database was cut; whether the transaction was committed is not known."""


def reconnecting(transaction: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Repeat a transaction whose connection was cut. It must be idempotent: it may have been committed."""

    @functools.wraps(transaction)
    async def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(RECONNECTS):
            try:
                return await transaction(*args, **kwargs)
            except ConnectionCut:
                await asyncio.sleep(RETRY_SECONDS)
        return await transaction(*args, **kwargs)

    return repeated


def retried(transaction: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Repeat a whole transaction that Postgres rolled back in favour of another one; TRIES tries in all."""

    @functools.wraps(transaction)
    async def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        for number in range(1, TRIES):
            try:
                return await transaction(*args, **kwargs)
            except RolledBack:
                await asyncio.sleep(number * RETRY_SECONDS)
        return await transaction(*args, **kwargs)

    return repeated


class Database:
    """The connections of one process, opened with ``Database.open``; close it when done.

    Raises StorageUnavailable for transient errors (locked, full, unreachable) and StorageRefused for data that the
    database will never take.
    """

    def __init__(self, url: URL, *, timings: Timings = Timings()) -> None:
        self.url = url
        self._timings = timings
        self._busy_seconds = timings.database_busy_seconds
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._durable = _sqlite_writer(url, timings, synchronous="FULL")
            self._fast = _sqlite_writer(url, timings, synchronous="NORMAL")
            self._begin_and_commit = ThreadPoolExecutor(1, thread_name_prefix="transaction-ends")
            self.reading = self._own = _sqlite_reader(url, timings, connections=4)
        else:
            self.reading = _postgres_engine(url, timings, POSTGRES_CONNECTIONS)
            self._own = _postgres_engine(url, timings, 2)
        # SQLite makes a second writer poll with growing pauses; inside one process a lock is faster.
        self._write_lock = asyncio.Lock()
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
        """A database that is neither connected nor migrated, for inspection only. Raises ConfigurationError."""
        return cls(_with_driver(_parsed(url)), timings=timings)

    async def close(self) -> None:
        for engine in {id(e): e for e in (self.reading, self._own)}.values():
            await engine.dispose()
        if self.is_sqlite:
            self._durable.dispose()
            self._fast.dispose()
            self._begin_and_commit.shutdown(wait=False)

    @asynccontextmanager
    async def write(self, engine: Literal["durable", "fast"] = "durable") -> AsyncIterator[AsyncConnection]:
        """One write transaction, committed at the end of the block. A task may be in one at a time."""
        with translated(), self._not_nested():
            if not self.is_sqlite:
                async with self.reading.begin() as connection:
                    yield connection
                return
            async with (
                self.turn(),
                sync_transaction.transaction(
                    getattr(self, f"_{engine}"), self._begin_and_commit, self._busy_seconds
                ) as connection,
            ):
                yield connection

    def not_writing(self) -> None:
        """Raise RuntimeError if the current task is in a write transaction: waiting for another task's write, it would
        wait for itself."""
        if asyncio.current_task() in self._writers:
            raise RuntimeError("This task is in a write transaction already")

    @contextmanager
    def _not_nested(self) -> Iterator[None]:
        """Raise RuntimeError for a write inside a write, which would wait for itself."""
        self.not_writing()
        task = asyncio.current_task()
        self._writers.add(task)
        try:
            yield
        finally:
            self._writers.discard(task)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The right to write to SQLite, which one task of this process has at a time, in order of their requests."""
        async with asyncio.timeout(self._busy_seconds):
            await self._write_lock.acquire()
        try:
            yield
        finally:
            self._write_lock.release()

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
        """A connection on which each statement is a transaction: on Postgres a single round trip. ``own``: one that is
        reserved for batches of text and the watch for changes."""
        with translated():
            async with (self._own if own else self.reading).connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                yield connection

    async def time(self, connection: AsyncConnection) -> int:
        """The time in microseconds since 1970, by the database's clock where several machines share it."""
        return micros(now()) if self.is_sqlite else int(await connection.scalar(CLOCK))

    async def hint(self, connection: AsyncConnection) -> None:
        """Notify readers of this transaction's changes on Postgres; on SQLite they notice them by themselves."""
        if not self.is_sqlite:
            await connection.execute(HINT)

    def sqlite_thread(self, name: str) -> SqliteThread:
        """A SQLite connection on a thread of its own, for work that has to be fast."""

        def configure(connection: sqlite3.Connection) -> None:
            _configure(connection, "NORMAL", self._busy_seconds)

        return SqliteThread(self.url.database or "", name=name, configure=configure)

    async def _prepare(self) -> None:
        """Migrate; repeated on SQLite, which refuses all others while one process switches a new file to WAL."""
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

        if self.is_sqlite:
            async with self.write() as connection:
                await connection.run_sync(upgrade)
            return
        patient = _postgres_engine(self.url, self._timings, 1, statement_seconds=MIGRATION_SECONDS)
        try:
            with translated():
                async with patient.begin() as connection:
                    # Processes that start together migrate one after the other.
                    await connection.execute(text("SET LOCAL lock_timeout = 0"))
                    await connection.execute(text("SELECT pg_advisory_xact_lock(7233)"))
                    await connection.run_sync(upgrade)
        finally:
            await patient.dispose()

    async def version(self) -> str | None:
        """The schema's version; None if there is no schema yet. Raises StorageUnavailable."""
        async with self.read() as connection:
            return await connection.run_sync(_schema_version)


async def check_writable(database: Database) -> None:
    """Make a write without effect. Raises StorageUnavailable."""
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
    _add_hooks(engine.sync_engine, timings, "NORMAL", begin="BEGIN", cache=READER_CACHE_KIB)
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
    _add_hooks(engine, timings, synchronous, begin="BEGIN IMMEDIATE")
    return engine


def _add_hooks(engine: Engine, timings: Timings, synchronous: str, *, begin: str, cache: int | None = None) -> None:
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        _configure(connection, synchronous, timings.database_busy_seconds, cache)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":  # which has the event as well
            connection.exec_driver_sql(begin)


def _configure(connection: Any, synchronous: str, busy_seconds: float, cache: int | None = None) -> None:
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={round(busy_seconds * 1_000)}", "journal_mode=WAL", f"synchronous={synchronous}"):
        cursor.execute(f"PRAGMA {pragma}")
    # Deleted data is overwritten: Debian's SQLite does so by default, others leave the text in the file.
    cursor.execute("PRAGMA secure_delete=ON")
    # Normally batches.py has made the checkpoint long before; a commit that makes it takes 20 ms and more.
    cursor.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
    if cache is not None:
        cursor.execute(f"PRAGMA cache_size=-{cache}")
    cursor.close()


def _postgres_engine(
    url: URL, timings: Timings, connections: int, *, statement_seconds: float = STATEMENT_SECONDS
) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=timings.database_pool_seconds,
        hide_parameters=True,
        connect_args={
            "timeout": timings.database_connect_seconds,
            "command_timeout": statement_seconds,
            "server_settings": {
                "lock_timeout": str(round(timings.database_busy_seconds * 1_000)),
                "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_SECONDS * 1_000),
            },
        },
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def _alive(connection: Any, _record: object, _proxy: object) -> None:
        """Replace connections that a restarted server has closed; a ping for each checkout would cost a round trip."""
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    return engine


# ----------------------------------------------------------------------------------------------------- errors


@contextmanager
def translated() -> Iterator[None]:
    """Translate the database's exceptions into ours, the only place that does; texts and values stay out."""
    try:
        yield
    except DBAPIError as error:
        raise _translation(error, error.orig, invalidated=error.connection_invalidated) from None
    except sqlite3.Error as error:
        raise _translation(error, error, invalidated=False) from None
    except UnicodeEncodeError:
        raise StorageRefused("The database refused this text: it is not valid Unicode") from None
    except (PoolTimeout, OSError, TimeoutError) as error:
        raise StorageUnavailable(f"The database is not available ({type(error).__name__}); is it running?") from None


def _translation(error: Exception, original: BaseException | None, *, invalidated: bool) -> StorageError:
    cause = (original and original.__cause__) or original or error
    state = getattr(cause, "sqlstate", None)
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(state, str):
        transient = state.startswith(TRANSIENT_SQLSTATES) or state == READ_ONLY
    elif isinstance(code, int):
        transient = code & 0xFF in TRANSIENT_SQLITE_CODES
    else:  # asyncpg raises ValueError for a value that it cannot send
        kinds = (OperationalError, InterfaceError, sqlite3.OperationalError, sqlite3.InterfaceError)
        transient = not isinstance(cause, ValueError) and (invalidated or isinstance(error, kinds))
    if not transient:
        return StorageRefused(f"The database refused this ({type(cause).__name__})")
    kind = _kind(state, code, invalidated=invalidated)
    # SQLite's texts for these codes are constant; Postgres may quote values, so that only its error class is given.
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
