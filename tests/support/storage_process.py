"""Processes that write transcripts and may be killed; started by tests/storage/test_storage_processes.py.

They come from a fork server that has everything imported, so that a test can afford many.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

from chatjobs.contracts import Channel
from domain.errors import FenceLost
from domain.values import Claim
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.fork_server import processes

dice = random.Random()  # noqa: S311 - decides nothing but the course of a test
PIECES = ("Lorem ", "ipsum 😀 ", "dolor é ", "sit ", "amet\n", "\ufffd ")


def started(work: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    process = processes.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def text_from(position: int, length: int) -> str:
    """The one text that everybody writes, from a position on."""
    whole = "".join(PIECES)
    return (whole * (2 + (position % len(whole) + length) // len(whole)))[position % len(whole) :][:length]


def open_database(url: str) -> None:
    async def opened() -> None:
        await (await Database.open(url)).close()

    asyncio.run(opened())


def write_text(url: str, job_id: str, fence: int, log_path: str) -> None:
    """Go on with the text from where the job stands, for ever; each delta is logged before it is written."""

    async def writing() -> None:
        async with TranscriptWriter(database := await Database.open(url)).running() as writer:
            job_writer = writer.open(await _claim(database, job_id, fence))
            log = os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            while True:
                delta = text_from(job_writer.position, dice.randint(1, 30))
                os.write(log, delta.encode())
                job_writer.append(Channel.CONTENT, delta)
                await asyncio.sleep(0)
                if job_writer.full:
                    await job_writer.room()

    asyncio.run(writing())


def take_turns(url: str, job_id: str, name: str) -> None:
    """Attempt after attempt at a job that others attempt too, going on or starting over, until it is sealed."""

    async def turns() -> None:
        database = await Database.open(url)
        async with TranscriptWriter(database).running() as writer:
            while True:
                try:
                    claim = await _claim(database, job_id, time.time_ns() // 1_000)
                    if claim.outcome == "sealed":
                        return
                    await _attempt(JobStore(database), writer, claim, name)
                except FenceLost:
                    continue

    asyncio.run(turns())


async def _attempt(store: JobStore, writer: TranscriptWriter, claim: Claim, name: str) -> None:
    job_writer = writer.open(claim)
    if claim.position > 0 and dice.random() < 0.3:
        job_writer.restarted(await store.attempts.restart(claim.job_id, fence=claim.fence, reason="restart"))
    for number in range(dice.randint(1, 40)):
        job_writer.append(dice.choice(list(Channel)), f"{name}.{claim.fence}.{number} 😀")
        await asyncio.sleep(dice.random() * 0.002)
    await job_writer.flush()


async def _claim(database: Database, job_id: str, fence: int) -> Claim:
    return await JobStore(database).attempts.claim(
        job_id, fence=fence, claimant=f"{os.getpid()}-{fence}", run_id="run-1"
    )
