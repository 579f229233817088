"""A caller's and a reader's view of a running stack (stack.py): submit jobs, watch them, look at the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from temporalio.client import Client, WorkflowHandle

from chatjobs.contracts import Channel, Job, JobStatus
from dispatch.intake import Intake
from domain.values import Cursor, Slice
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from tests.support.factories import make_body
from tests.support.stack import Stack

PATIENCE = 60.0
"""Seconds a job may take in a test; far more than any needs."""


@dataclass
class Watched:
    """What a reader who followed a job from the beginning has at the end."""

    texts: dict[Channel, str] = field(default_factory=lambda: dict.fromkeys(Channel, ""))
    resets: int = 0
    ends: list[JobStatus] = field(default_factory=list)

    def take(self, piece: Slice) -> None:
        if piece.reset:
            self.texts, self.resets = dict.fromkeys(Channel, ""), self.resets + 1
        for run in piece.runs:
            self.texts[run.channel] += run.text
        if piece.status.terminal:
            self.ends.append(piece.status)


class Service:
    def __init__(self, stack: Stack, client: Client, database: Database, reader: TranscriptReader) -> None:
        self.stack = stack
        self.client = client
        self.database = database
        self.reader = reader
        self.jobs = JobStore(database)
        self.intake = Intake(jobs=self.jobs, client=client, indexed=True)

    async def submit(self, message: str, **fields: Any) -> str:
        """The id of an accepted and started job. ``message``: see tests.simulator_process.prompt."""
        accepted = await self.intake.accept(make_body(message, **fields), tenant="default")
        await self.intake.start(accepted)
        return accepted.job_id

    def run(self, job_id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(job_id)

    async def ended(self, job_id: str) -> Job:
        """The job, once its outcome is stored."""
        async with asyncio.timeout(PATIENCE):
            await self.watched(job_id)
            return await self.jobs.queries.get(job_id)

    async def watched(self, job_id: str) -> Watched:
        """Follow a job to its end."""
        watched = Watched()
        async for piece in self.reader.follow(Cursor(job_id)):
            watched.take(piece)
        return watched


@asynccontextmanager
async def service(stack: Stack) -> AsyncIterator[Service]:
    async with AsyncExitStack() as closing:
        database = await Database.open(stack.database_url)
        closing.push_async_callback(database.close)
        reader = await closing.enter_async_context(TranscriptReader(database).running())
        yield Service(stack, await stack.connect(), database, reader)
