"""What every test may ask for. Factories are in factories.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from local.temporal_server import binary
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from storage.transcript.writer import TranscriptWriter
from tests.support import migrated, order
from tests.support.factories import make_store
from tests.support.needs import last_line
from tests.support.postgres import Postgres, postgres
from tests.support.temporal_server import TemporalServer, temporal_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; the order within a file stays."""
    items.sort(key=lambda item: order.rank(item.path.name))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print, after pytest's own last line, what was skipped for want of what."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker process of pytest-xdist
        return
    skipped = [report.longrepr for report in reporter.stats.get("skipped", [])]
    if line := last_line(found[2] if isinstance(found, tuple) else "" for found in skipped):
        reporter.write_line(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables that tests have made of what they measured (``record_property("table", …)``)."""
    for report in (*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])):
        for name, value in report.user_properties:
            if name == "table":
                terminalreporter.write_line(f"{report.nodeid}\n{value}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with postgres() as server:
        # Only an operating system's crash needs them, and a new database takes twice as long with them.
        for setting in ("fsync", "full_page_writes", "wal_init_zero"):
            server.sql(f"ALTER SYSTEM SET {setting} = off;")
        server.sql("SELECT pg_reload_conf();")
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database with today's schema, once on SQLite and once on Postgres."""
    if request.param == "sqlite":
        return migrated.sqlite_file(tmp_path / "chatjobs.db")
    return migrated.postgres_database(request.getfixturevalue("postgres_server"))


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database without a schema, once on SQLite and once on Postgres."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'chatjobs.db'}"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A dev server for all tests; they take ids of their own and leave no run open."""
    with temporal_server(tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
async def client(temporal: TemporalServer) -> Client:
    return await temporal.connect()


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    """A new database in a file, for tests to which it does not matter which one they have."""
    opened = await Database.open(migrated.sqlite_file(tmp_path / "chatjobs.db"))
    yield opened
    await opened.close()


@pytest.fixture
def store(database: Database) -> JobStore:
    return make_store(database)


@pytest.fixture
async def writer(database: Database) -> AsyncIterator[TranscriptWriter]:
    async with TranscriptWriter(database).running() as running:
        yield running


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[TranscriptReader]:
    async with TranscriptReader(database).running() as running:
        yield running


@pytest.fixture
async def postgres_database(postgres_server: Postgres) -> AsyncIterator[Database]:
    """A new database on the server, for what only Postgres does."""
    opened = await Database.open(migrated.postgres_database(postgres_server))
    yield opened
    await opened.close()


@pytest.fixture
async def warp() -> AsyncIterator[Client]:
    """A client of the time-skipping server."""
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=binary("temporal-test-server"), data_converter=pydantic_data_converter
    ) as environment:
        yield environment.client
