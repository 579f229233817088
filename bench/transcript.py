"""The lag of the transcript from append to a reader in another process, through the group commit.

``python -m bench.transcript``. Writer and reader are two processes on one machine, which share CLOCK_MONOTONIC; the
writer records in a shared file when it appends each token, and the reader compares. The baseline is measured in the
same run: the minimum with SQLite (raw sqlite3 in WAL mode, one thread that commits groups, a reader that polls
``PRAGMA data_version``), without fence, positions per job or recovery.

Both processes exclude their imports from garbage collection, as a long-running service should: a pass over them takes
25 ms. The Postgres server is in the state of one that has run for a while: the first 16 MB files of its log exist,
which take 55 ms each to create.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import mmap
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.table import Row, table

RATE = 50
"""Tokens per second and stream."""
TOKEN = "token"  # noqa: S105 - a piece of text
WARM_UP_SECONDS = 1
PHASES = ((1, 3), (100, 4), (400, 8))
"""(streams, seconds)."""
TARGETS_MS = {"SQLite": {"p50": 15, "p99": 25}, "Postgres": {"p50": 15, "p99": 40}}
PATIENCE_SECONDS = 20
LOG_FILES = 16
"""Files of 16 MB: more than the benchmark writes to the Postgres server's log."""
POLL_SECONDS = 0.005
PAUSE_SECONDS = 0.001


class Stamps:
    """The time at which each token of a phase was appended (monotonic seconds), in a file that both processes map."""

    def __init__(self, path: str, streams: int, tokens: int) -> None:
        self._tokens = tokens
        size = streams * tokens * 8
        with open(path, "a+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._values = memoryview(self._map).cast("d")

    def set(self, stream: int, token: int) -> None:
        self._values[stream * self._tokens + token] = time.monotonic()

    def add_lags(self, stream: int, first: int, last: int, lags: array[float]) -> None:
        """Add the lags of the tokens ``first`` to ``last`` (exclusive), received now, without those of the warm-up."""
        now, start = time.monotonic(), stream * self._tokens
        for token in range(max(first, WARM_UP_SECONDS * RATE), last):
            lags.append(now - self._values[start + token])


# ------------------------------------------------------------------------------------------ the two processes


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    streams: int
    seconds: int
    stamps_path: str

    @property
    def tokens(self) -> int:
        return RATE * self.seconds

    @property
    def stamps(self) -> Stamps:
        return Stamps(self.stamps_path, self.streams, self.tokens)

    def job(self, stream: int) -> str:
        return f"job_{self.name}_{stream}"

    def due(self, since: float) -> int:
        """The number of tokens, over all streams in turn, that are due by now."""
        return min(self.streams * self.tokens, int((time.monotonic() - since) * self.streams * RATE) + 1)


def send(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def receive() -> Any:
    return json.loads(sys.stdin.readline())


def freeze() -> None:
    """Exclude all present objects from garbage collection."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def cpu_share(report: dict[str, Any]) -> Iterator[None]:
    """The share of one core that this process used in the block."""
    cpu, wall = time.process_time(), time.monotonic()
    yield
    report["cpu"] = (time.process_time() - cpu) / (time.monotonic() - wall)


async def write(url: str, phases: list[Phase]) -> None:
    """The writer process: all streams go through one group commit."""
    from storage.engine.database import Database
    from storage.transcript.writer import TranscriptWriter
    from tests.support.factories import accepted, claimed, make_store

    database = await Database.open(url)
    store = make_store(database)
    async with TranscriptWriter(database).running() as writer:
        for phase in phases:
            ids = [await accepted(store, job_id=phase.job(stream)) for stream in range(phase.streams)]
            jobs = [writer.open(await claimed(store, job_id)) for job_id in ids]
            freeze()
            send(ready=True)
            receive()
            report: dict[str, Any] = {}
            with cpu_share(report):
                await _generate(phase, [job.append for job in jobs])
                for job in jobs:
                    await job.flush()
            send(**report)
    await database.close()


async def _generate(phase: Phase, appends: list[Callable[..., None]]) -> None:
    from chatjobs.contracts import Channel

    stamps, since, made = phase.stamps, time.monotonic(), 0
    while made < phase.streams * phase.tokens:
        for number in range(made, phase.due(since)):
            token, stream = divmod(number, phase.streams)
            stamps.set(stream, token)
            appends[stream](Channel.CONTENT, TOKEN)
            made += 1
        await asyncio.sleep(0.001)


async def read(url: str, phases: list[Phase]) -> None:
    """The reader process: one task per stream, as in the gateway."""
    from storage.engine.database import Database
    from storage.transcript.reader import TranscriptReader

    database = await Database.open(url)
    async with TranscriptReader(database).running() as reader:
        for phase in phases:
            freeze()
            send(ready=True)
            receive()
            lags = array("d")  # numbers, as hundreds of thousands of objects would slow the garbage collector
            stamps = phase.stamps
            report: dict[str, Any] = {}
            with cpu_share(report):
                async with asyncio.timeout(PATIENCE_SECONDS + phase.seconds), asyncio.TaskGroup() as group:
                    for stream in range(phase.streams):
                        group.create_task(_follow(reader, phase, stream, stamps, lags))
            send(lags=_summary(lags), **report)
    await database.close()


async def _follow(reader: Any, phase: Phase, stream: int, stamps: Stamps, lags: array[float]) -> None:
    from domain.values import Cursor

    cursor = Cursor(phase.job(stream))
    texts: list[str] = []
    while cursor.position < phase.tokens * len(TOKEN):
        piece = await reader.wait(cursor)
        stamps.add_lags(stream, cursor.position // len(TOKEN), piece.position // len(TOKEN), lags)
        texts.extend(run.text for run in piece.runs)
        cursor = piece.cursor
    assert "".join(texts) == TOKEN * phase.tokens


def _summary(lags: array[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(lags)
    places = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99), "max": -1}
    return {name: 1_000 * ordered[place] for name, place in places.items()}


# ----------------------------------------------------------------------------------------------- the baseline


def raw_connection(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _raw_table(path: Path) -> None:
    connection = raw_connection(str(path))
    connection.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, phase, stream, position, text)")
    connection.close()


def raw_write(path: str, phases: list[Phase]) -> None:
    connection = raw_connection(path)
    for phase in phases:
        pending: list[tuple[str, int, int, str]] = []
        done = threading.Event()
        committer = threading.Thread(target=_raw_commit, args=(connection, pending, done))
        send(ready=True)
        receive()
        report: dict[str, Any] = {}
        with cpu_share(report):
            committer.start()
            stamps, since, made = phase.stamps, time.monotonic(), 0
            while made < phase.streams * phase.tokens:
                for number in range(made, phase.due(since)):
                    token, stream = divmod(number, phase.streams)
                    stamps.set(stream, token)
                    pending.append((phase.name, stream, token, TOKEN))
                    made += 1
                time.sleep(0.001)
            done.set()
            committer.join()
        send(**report)
    connection.close()


def _raw_commit(connection: sqlite3.Connection, pending: list[Any], done: threading.Event) -> None:
    while pending or not done.is_set():
        batch = pending[:]
        del pending[: len(batch)]
        if batch:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO log (phase, stream, position, text) VALUES (?, ?, ?, ?)", batch)
            connection.execute("COMMIT")
        time.sleep(PAUSE_SECONDS)


def raw_read(path: str, phases: list[Phase]) -> None:
    connection = raw_connection(path)
    for phase in phases:
        send(ready=True)
        receive()
        lags = array("d")
        report: dict[str, Any] = {}
        with cpu_share(report):
            _raw_poll(connection, phase, lags)
        send(lags=_summary(lags), **report)
    connection.close()


def _raw_poll(connection: sqlite3.Connection, phase: Phase, lags: array[float]) -> None:
    stamps, last, version, have = phase.stamps, 0, None, 0
    query = "SELECT id, stream, position FROM log WHERE id > ? AND phase = ? ORDER BY id"
    while have < phase.streams * phase.tokens:
        before, version = version, connection.execute("PRAGMA data_version").fetchone()
        if version != before:
            rows = connection.execute(query, (last, phase.name)).fetchall()
            for _, stream, token in rows:
                stamps.add_lags(stream, token, token + 1, lags)
            last, have = rows[-1][0] if rows else last, have + len(rows)
        time.sleep(POLL_SECONDS)


# ------------------------------------------------------------------------------------------------- the parent


class RoleProcess:
    """One of the two processes, which exchanges JSON lines with the parent over pipes."""

    def __init__(self, role: str, url: str, phases: list[Phase]) -> None:
        plan = json.dumps([[p.name, p.streams, p.seconds, p.stamps_path] for p in phases])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.transcript", role, url, plan],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def receive(self) -> Any:
        line = _stream(self._process.stdout).readline()
        if not line:
            raise RuntimeError("a process of the benchmark died; its error is printed above")
        return json.loads(line)

    def go(self) -> None:
        pipe = _stream(self._process.stdin)
        pipe.write("{}\n")
        pipe.flush()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            _stream(pipe).close()
        self._process.kill()
        self._process.wait()


def _stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@dataclass(frozen=True, slots=True)
class Lags:
    """Lags in milliseconds, CPU as a share of one core."""

    lags: dict[str, float]
    writer_cpu: float
    reader_cpu: float


def measure(store: str, url: str, roles: tuple[str, str], folder: Path) -> dict[int, Lags]:
    """The results of all phases on one store, by number of streams."""
    phases = [Phase(f"{s}", s, seconds, str(folder / f"{store}-{s}.stamps")) for s, seconds in PHASES]
    with contextlib.ExitStack() as stack:
        writer, reader = (RoleProcess(role, url, phases) for role in roles)
        stack.callback(reader.close)
        stack.callback(writer.close)
        measured = {}
        for phase in phases:
            for child in (writer, reader):
                child.receive()
            for child in (reader, writer):
                child.go()
            wrote, seen = writer.receive(), reader.receive()
            measured[phase.streams] = Lags(seen["lags"], wrote["cpu"], seen["cpu"])
    return measured


def measure_all() -> dict[str, dict[int, Lags]]:
    from tests.support.postgres import postgres

    with tempfile.TemporaryDirectory(prefix="chatjobs-bench-") as home:
        folder = Path(home)
        _raw_table(folder / "raw.db")
        found = {"raw": measure("raw", str(folder / "raw.db"), ("raw-writer", "raw-reader"), folder)}
        _migrated(sqlite := f"sqlite:///{folder / 'chatjobs.db'}")
        found["SQLite"] = measure("SQLite", sqlite, ("writer", "reader"), folder)
        with postgres() as server:
            _fill_log(server)
            _migrated(url := server.new_database())
            found["Postgres"] = measure("Postgres", url, ("writer", "reader"), folder)
    return found


def _fill_log(server: Any) -> None:
    server.sql("ALTER SYSTEM SET min_wal_size = '1GB'; SELECT pg_reload_conf();")
    for _ in range(LOG_FILES):
        server.sql("SELECT pg_create_restore_point('x'), pg_switch_wal();")
    server.sql("CHECKPOINT;")  # keeps used files for reuse


def _migrated(url: str) -> None:
    from storage.engine.database import Database

    async def migrate() -> None:
        await (await Database.open(url)).close()

    asyncio.run(migrate())


def _figure(name: str, value: float, unit: str, raw: float, target: float | None = None) -> Row:
    return {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "baseline": f"raw SQLite: {raw:.3g} {unit}",
        "ratio": round(value / raw, 2) if raw else None,
        "target": None if target is None else f"≤ {target} {unit}",
        "met": None if target is None else value <= target,
    }


def run() -> list[Row]:
    """Rows without a target are informative. CPU does not include the Postgres server."""
    found = measure_all()
    rows = []
    for store, targets in TARGETS_MS.items():
        for streams, measured in found[store].items():
            raw, load = found["raw"][streams], f"transcript, {store}, {streams} × {RATE} tokens/s"
            for part in ("p50", "p99"):
                target = targets[part] if streams == PHASES[-1][0] else None
                rows.append(_figure(f"{load}: lag {part}", measured.lags[part], "ms", raw.lags[part], target))
            rows.append(_figure(f"{load}: writer CPU", 100 * measured.writer_cpu, "%", 100 * raw.writer_cpu))
            rows.append(_figure(f"{load}: reader CPU", 100 * measured.reader_cpu, "%", 100 * raw.reader_cpu))
    return rows


def main() -> None:
    if len(sys.argv) == 4:
        role, url, plan = sys.argv[1:]
        phases = [Phase(*phase) for phase in json.loads(plan)]
        if role.startswith("raw"):
            (raw_write if role == "raw-writer" else raw_read)(url, phases)
        else:
            asyncio.run((write if role == "writer" else read)(url, phases))
        return
    print(table(run()))


if __name__ == "__main__":
    main()
