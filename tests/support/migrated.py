"""Databases with today's schema, copied from one that was migrated once: a migration takes ten times as long.

For tests that need a database, not its migrations. Those begin with an empty one (``empty_database_url``).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.engine.database import Database
from tests.support.postgres import Postgres


def sqlite_file(path: Path) -> str:
    """The URL of a new and migrated database there; its directory is made if need be. Raises FileExistsError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(_sqlite_image())
    return f"sqlite:///{path}"


def postgres_database(server: Postgres) -> str:
    """The URL of a new and migrated database on this server."""
    return server.new_database(template=_template(server))


@cache
def _sqlite_image() -> bytes:
    with TemporaryDirectory(prefix="chatjobs-migrated-") as directory:
        path = Path(directory) / "chatjobs.db"
        _migrate(f"sqlite:///{path}")
        return path.read_bytes()  # whole: the last connection that closes empties SQLite's log into it


@cache
def _template(server: Postgres) -> str:
    _migrate(url := server.new_database())
    return Postgres.name(url)


def _migrate(url: str) -> None:
    async def opened() -> None:
        await (await Database.open(url)).close()

    with ThreadPoolExecutor(1) as apart:  # the caller may have an event loop that runs
        apart.submit(asyncio.run, opened()).result()
