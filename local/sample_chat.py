"""The sample chat of `make run`: one job, accepted, started and read as any other program would do it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from temporalio.client import Client

from chatjobs.contracts import Channel, Job
from dispatch.intake import Intake
from dispatch.temporal import RunLinks, indexed
from domain.errors import TemporalUnavailable
from domain.settings import Settings
from domain.values import Cursor
from local.supervisor import Console
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader

PATIENCE_SECONDS: Final = 60.0
PROMPT: Final = "In three sentences: why does a lighthouse keeper keep a log book?"
MAX_TOKENS: Final = 500


async def sample_chat(settings: Settings, client: Client, console: Console, *, only_first: bool) -> None:
    """Run one job and show it; with ``only_first``, only if no job was ever accepted. Raises ChatJobsError."""
    database = await Database.open(settings.database_url)
    try:
        jobs = JobStore(database)
        if not only_first or await jobs.queries.empty():
            intake = Intake(jobs=jobs, client=client, indexed=await indexed(client))
            job_id = await _submit(intake, settings.chatjobs_direct_tenant)
            await _watch(database, job_id, console)
            links = RunLinks(settings.chatjobs_temporal_ui, client.namespace)
            _show(links.with_url(await jobs.queries.get(job_id)), console)
    finally:
        await database.close()


async def _submit(intake: Intake, tenant: str) -> str:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": MAX_TOKENS}
    accepted = await intake.accept(body, tenant=tenant)
    with contextlib.suppress(TemporalUnavailable):  # the job is accepted, so the worker's sweeper will start it
        await intake.start(accepted)
    return accepted.job_id


async def _watch(database: Database, job_id: str, console: Console) -> None:
    console.line(f"\nA sample chat: {PROMPT}\n")
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), TranscriptReader(database).running() as reader:
            async for piece in reader.follow(Cursor(job_id)):
                if piece.reset:
                    console.line("(the answer starts over)")
                for run in piece.runs:
                    console.write(run.text if run.channel is Channel.CONTENT else "")
    except TimeoutError:
        console.line("This takes long; the job goes on by itself.")


def _show(job: Job, console: Console) -> None:
    usage, error = job.usage, job.error
    tokens = (
        usage and f"{usage.prompt_tokens} prompt + {usage.completion_tokens} completion = {usage.total_tokens} tokens"
    )
    rows = {
        "job": job.job_id,
        "status": job.status.value,
        "error": error and f"{error.message} ({error.code})",
        "usage": tokens,
        "run": job.temporal_url,
    }
    console.line()
    for name, value in rows.items():
        if value:
            console.line(f"{name:<8} {value}")
