"""SQLite transactions whose statements run synchronously on the event loop's own thread.

An asynchronous driver moves every statement to a thread and back, which costs five times the statement itself. In a
write transaction only BEGIN IMMEDIATE, which waits for other processes, and COMMIT, which waits for the disk, may take
long: these two run on a thread, unless nobody else writes and nothing waits for the disk. In between this process has
the lock, and the statements are look-ups by key: tens of microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


@asynccontextmanager
async def transaction(engine: Engine, executor: Executor, busy_seconds: float) -> AsyncIterator[AsyncConnection]:
    """Begin, and commit at the end of the block. The engine's connections begin with BEGIN IMMEDIATE, and wait for
    ``busy_seconds`` while another process writes.

    ``executor`` runs a BEGIN that has to wait, and COMMIT; the event loop's own may be full of slow name look-ups.
    """
    with engine.connect() as connection:
        if not _begun_at_once(connection, busy_seconds):
            await _run_to_end(executor, connection.begin)
        try:
            yield cast(AsyncConnection, _Inline(connection))
        except BaseException:
            connection.rollback()
            raise
        await _run_to_end(executor, connection.commit)


def _begun_at_once(connection: Connection, busy_seconds: float) -> bool:
    """Begin, unless another process writes just now: a switch to a thread and back takes longer than BEGIN itself."""
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")
    try:
        connection.begin()
        return True
    except OperationalError:
        return False
    finally:
        driver.execute(f"PRAGMA busy_timeout={round(busy_seconds * 1_000)}")


class _Inline:
    """The part of AsyncConnection that storage uses."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(self, statement: Any, parameters: Any = None) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)

    async def scalar(self, statement: Any, parameters: Any = None) -> Any:
        return self._connection.scalar(statement, parameters)

    async def run_sync(self, work: Callable[[Connection], T]) -> T:
        return work(self._connection)


async def _run_to_end(executor: Executor, work: Callable[[], object]) -> None:
    """Run in a thread. A cancelled caller waits for the end, so that nothing else uses the connection meanwhile."""
    running = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
