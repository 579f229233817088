"""Thousands of readers: memory of idle ones, and whether one that is cut off misses or repeats a character.

``python -m bench.readers``. The gateway is a process on a SQLite file; this process writes the transcripts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from bench.table import Row, table
from bench.wire import BenchReader
from chatjobs.contracts import Channel
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.event_reader import read_in_pieces
from tests.support.factories import accepted, claimed, ending, finished, make_store
from tests.support.gateway import Gateway, alone, gateway

IDLE = 1_000
IDLE_MEGABYTES = 35
CUTS, CUTS_FULL = 500, 10_000
TOKENS = 62
AT_ONCE = 10
PAGE = os.sysconf("SC_PAGE_SIZE")


def megabytes(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1_000_000


async def idle_readers(door: Gateway, store: JobStore) -> float:
    """Megabytes that idle readers take."""
    ids = [await accepted(store) for _ in range(IDLE)]
    warm = await _opened(door, ids[:AT_ONCE])
    before = megabytes(door.process.pid)
    readers = await _opened(door, ids)
    await asyncio.sleep(1)  # until what was allocated to open them is freed
    taken = megabytes(door.process.pid) - before
    for reader in (*warm, *readers):
        reader.close()
    return taken


async def _opened(door: Gateway, ids: Sequence[str]) -> list[BenchReader]:
    """Open readers a few at a time, so that the memory of concurrent requests does not count."""
    readers: list[BenchReader] = []
    for start in range(0, len(ids), AT_ONCE):
        some = [await BenchReader.open(door.url, f"/api/jobs/{one}/events") for one in ids[start : start + AT_ONCE]]
        await asyncio.gather(*(reader.opened for reader in some))
        readers += some
    return readers


async def cut_readers(door: Gateway, store: JobStore, writer: TranscriptWriter, cuts: int) -> tuple[int, int, float]:
    """Returns cuts, readers with a wrong text or ids that do not increase, and cuts per second."""
    made, wrong, began = 0, 0, time.monotonic()
    while made < cuts:
        found = await asyncio.gather(*(_cut_reader(door, store, writer) for _ in range(AT_ONCE)))
        made += sum(number for number, _ in found)
        wrong += sum(not right for _, right in found)
    return made, wrong, made / (time.monotonic() - began)


async def _cut_reader(door: Gateway, store: JobStore, writer: TranscriptWriter) -> tuple[int, bool]:
    job_id, turn = await accepted(store), asyncio.Semaphore()
    url = f"{door.url}/api/jobs/{job_id}/events"
    _, pieced = await asyncio.gather(_write(store, writer, job_id, turn), read_in_pieces([url], on_chunk=turn.release))
    job, places = await store.queries.get(job_id), pieced.places()
    right = places == sorted(set(places)) and pieced.texts["content"] == job.content
    return pieced.cuts, right and pieced.ending["sha256"] == job.sha256 and pieced.names.count("chunk") == TOKENS


async def _write(store: JobStore, writer: TranscriptWriter, job_id: str, turn: asyncio.Semaphore) -> None:
    """Write a job's tokens, each once the reader has the previous one."""
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    for number in range(TOKENS):
        await turn.acquire()
        job_writer.append(Channel.CONTENT, f"tök{number} ")
        await job_writer.flush()
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(job_id), run_id="run-1")


async def measure(cuts: int) -> list[Row]:
    async with AsyncExitStack() as closing:
        home = closing.enter_context(tempfile.TemporaryDirectory(prefix="chatjobs-bench-"))
        built = closing.enter_context(alone(Path(home)))
        door = gateway(built)
        database = await Database.open(built.database_url)
        closing.push_async_callback(database.close)
        writer = await closing.enter_async_context(TranscriptWriter(database).running())
        store = make_store(database)
        idle = await idle_readers(door, store)
        made, wrong, rate = await cut_readers(door, store, writer, cuts)
    return [
        Row(
            name=f"memory of {IDLE} idle readers",
            value=idle,
            unit="MB",
            baseline="the same process before",
            ratio=None,
            target=f"≤ {IDLE_MEGABYTES} MB",
            met=idle <= IDLE_MEGABYTES,
        ),
        Row(
            name=f"readers wrong after {made} cuts",
            value=wrong,
            unit="readers",
            baseline=f"{rate:.0f} cuts per s",
            ratio=None,
            target="0",
            met=wrong == 0,
        ),
    ]


def run() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure(CUTS))


def run_full() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure(CUTS_FULL))


if __name__ == "__main__":
    print(table(run()))
