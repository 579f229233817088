"""Jobs per second, overhead of one job and size of its history, against a workflow with one empty activity.

Both run in turns on the same Temporal server and worker process. The model answers at once, so the rest is the
service's own work: accept (durable), start, claim, transcript, finish, seal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from bench.bare import Bare, nothing
from bench.table import Row, table
from chatjobs.contracts import Channel, ChatRequest, Usage
from dispatch.intake import Intake
from dispatch.temporal import connect, indexed
from domain.ports import Continuing, Finish, ModelEvent, TextDelta, WebhookResponse
from domain.settings import Settings
from storage.engine.database import Database
from tests.support.temporal_server import temporal_server
from worker import WorkerParts, running

ROUNDS = 4
JOBS_PER_ROUND = 60
IN_FLIGHT = 20
SINGLES = 25
NO_LIMIT = 10_000
"""Calls per second: the rate limit is applied, and no job waits for it."""
BARE_QUEUE = "bench-bare"
LONG_ANSWER = 5_000_000
"""Characters of the answer whose history is measured."""


class InstantModel:
    """Answers at once with as many characters as the request's metadata says."""

    def continuing(self, model: str, form: str = "text") -> Continuing:
        return Continuing.KNOWN

    def unsent(self, request: ChatRequest, text: str) -> str:
        return ""

    def lane(self, model: str) -> str:
        return f"instant:{model}"

    async def stream(self, request: ChatRequest, continue_from: str | None = None) -> AsyncGenerator[ModelEvent, None]:
        for _ in range(int(request.metadata.get("pieces", "5"))):
            yield TextDelta(Channel.CONTENT, "word " * int(request.metadata.get("words", "1")))
        yield Finish("stop", Usage(prompt_tokens=3, completion_tokens=5, total_tokens=8))


class InstantReceiver:
    """A sender whose receiver accepts everything at once."""

    async def post(self, url: str, *, headers: Any, body: bytes) -> WebhookResponse:
        return WebhookResponse(latency_ms=0, status_code=204)


class Bench:
    """The two kinds of workflow to compare."""

    def __init__(self, client: Client, parts: WorkerParts) -> None:
        self._client = client
        self._parts = parts
        self._intake = Intake(jobs=parts.jobs, client=client, indexed=parts.indexed)

    async def bare(self) -> WorkflowHandle[Any, Any]:
        handle = await self._client.start_workflow(Bare.run, id=f"bare-{uuid.uuid4().hex}", task_queue=BARE_QUEUE)
        await handle.result()
        return handle

    async def job(self, **fields: Any) -> WorkflowHandle[Any, Any]:
        body = {"messages": [{"role": "user", "content": "Hello"}], **fields}
        accepted = await self._intake.accept(body, tenant="default")
        await self._intake.start(accepted)
        handle = self._client.get_workflow_handle(accepted.job_id)
        await handle.result()
        return handle

    async def job_with_webhook(self, **fields: Any) -> WorkflowHandle[Any, Any]:
        return await self.job(callback="https://receiver.example/hook", **fields)


async def rate(make: Callable[[], Awaitable[Any]], runs: int = JOBS_PER_ROUND) -> float:
    """Runs per second, with IN_FLIGHT at a time."""
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with slots:
            await make()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(runs)))
    return runs / (time.perf_counter() - began)


async def latency(make: Callable[[], Awaitable[Any]]) -> float:
    """Milliseconds of a single run."""
    began = time.perf_counter()
    await make()
    return (time.perf_counter() - began) * 1000


@asynccontextmanager
async def stack(directory: Path) -> AsyncIterator[Bench]:
    """A Temporal server, a worker for both kinds, a SQLite file."""
    with temporal_server(directory) as server:
        os.environ["TEMPORAL_ADDRESS"] = server.address
        client = await connect()
        database = await Database.open(f"sqlite:///{directory / 'chatjobs.db'}")
        settings = Settings(
            chatjobs_concurrency=IN_FLIGHT, webhook_secret=(SecretStr("bench"),), mistral_requests_per_second=NO_LIMIT
        )
        parts = WorkerParts(settings, client, database, InstantModel(), InstantReceiver(), await indexed(client))
        bare_worker = Worker(client, task_queue=BARE_QUEUE, workflows=[Bare], activities=[nothing])
        async with contextlib.AsyncExitStack() as closing:
            closing.push_async_callback(database.close)
            await closing.enter_async_context(running(parts))
            await closing.enter_async_context(bare_worker)
            yield Bench(client, parts)


async def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="chatjobs-bench-") as directory:
        async with stack(Path(directory)) as bench:
            await asyncio.gather(bench.bare(), bench.job(), bench.job_with_webhook())  # warm-up
            return [*await rates(bench), *await latencies(bench), *await histories(bench)]


async def rates(bench: Bench) -> list[Row]:
    bare, jobs, webhooks = [], [], []
    for _ in range(ROUNDS):
        bare.append(await rate(bench.bare))
        jobs.append(await rate(bench.job))
        webhooks.append(await rate(bench.job_with_webhook))
    base = statistics.median(bare)
    ratio = statistics.median(job / alone for job, alone in zip(jobs, bare, strict=True))
    ratio_webhook = statistics.median(job / alone for job, alone in zip(webhooks, bare, strict=True))
    against = f"bare workflow: {base:.1f} per s"
    return [
        Row(
            name="jobs, no webhook",
            value=statistics.median(jobs),
            unit="per s",
            baseline=against,
            ratio=ratio,
            target="ratio ≥ 0.8",
            met=ratio >= 0.8,
        ),
        Row(
            name="jobs, with a webhook",
            value=statistics.median(webhooks),
            unit="per s",
            baseline=against,
            ratio=ratio_webhook,
            target=None,
            met=None,
        ),
    ]


async def latencies(bench: Bench) -> list[Row]:
    bare, jobs = [], []
    for _ in range(SINGLES):
        bare.append(await latency(bench.bare))
        jobs.append(await latency(bench.job))
    ratio = statistics.median(jobs) / statistics.median(bare)
    return [
        Row(
            name="overhead of one job",
            value=statistics.median(jobs),
            unit="ms",
            baseline=f"bare workflow: {statistics.median(bare):.1f} ms",
            ratio=ratio,
            target="ratio ≤ 2",
            met=ratio <= 2,
        )
    ]


async def histories(bench: Bench) -> list[Row]:
    """Events and size of histories, for a short and for a long answer."""
    words = {"pieces": "100", "words": str(LONG_ANSWER // 5 // 100)}
    rows = []
    for name, handle, most in (
        ("short answer, no webhook", await bench.job(), 18),
        ("5 MB answer, no webhook", await bench.job(metadata=words), 18),
        ("5 MB answer, webhook", await bench.job_with_webhook(metadata=words), 22),
    ):
        info = (await handle.describe()).raw_description.workflow_execution_info
        against = "the limit in the target"
        rows.append(_limit(f"history, {name}", info.history_length, "events", most, against))
        rows.append(_limit(f"history, {name}", info.history_size_bytes / 1024, "KB", 16, against))
    return rows


def _limit(name: str, value: float, unit: str, most: float, against: str) -> Row:
    return Row(
        name=name, value=value, unit=unit, baseline=against, ratio=None, target=f"≤ {most} {unit}", met=value <= most
    )


def run() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure())


if __name__ == "__main__":
    print(table(run()))
