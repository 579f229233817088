"""What bench/batch.py compares: batches, a workflow for each job, bare workflows, and BullMQ, on the same machine.

All answer the same prompts by the same simulator, which answers at once and as fast as it can.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import psutil
from temporalio.client import Client
from temporalio.worker import Worker

from bench.bare import Bare, nothing
from bench.bullmq import JobsDone, Rival, RivalMissing, rival
from bench.jobs import BARE_QUEUE, NO_LIMIT, rate
from bench.wire import Connection
from tests.support.gateway import Gateway, gateway
from tests.support.stack import Stack, stack

BARE, SINGLE, BULLMQ, BATCH = "bare workflow", "one workflow each", "BullMQ", "a batch"
ONE_BY_ONE = 20
"""Single jobs and bare workflows are so many times fewer than the items, as they take so many times longer."""
WARM_UP = 1_000
"""Items; Node compiles what runs often only after hundreds."""
CONCURRENCY = 50
"""Calls of the model at once, of the service and of BullMQ."""
PROMPT_CHARACTERS = 200
LOOK_SECONDS = 0.1
"""Between two looks at what runs."""
POLL_SECONDS = 0.5
"""Between two looks at a batch, which says itself when it was completed: each costs the gateway some milliseconds."""
SETTLE_SECONDS = 2.0
"""Before a turn, so that what the one before left to do is not counted in it."""
PATIENCE_SECONDS = 600
PIECE_BYTES = 65_536
ENDED = ("completed", "cancelled", "failed")

Contestant = Callable[[Path], Awaitable[JobsDone]]
"""Answers the prompts of a file of batch lines."""


class NoBatches(Exception):
    """This version of the service has no batches."""


@dataclass(frozen=True)
class Turn:
    """One run of one contestant. ``cpu``: seconds of every process."""

    done: JobsDone
    cpu: Mapping[str, float]

    @property
    def rate(self) -> float:
        return self.done.jobs / self.done.seconds


class BatchCaller:
    """A client of ``/api/batches``."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def submit(self, items: Path) -> dict[str, Any]:
        """Upload a file. Returns the answer once everything is accepted. Raises NoBatches, AssertionError."""
        answer = await self._http.post(
            "/api/batches",
            params={"concurrency": CONCURRENCY},
            content=_pieces(items),
            headers={"content-type": "application/x-ndjson"},
        )
        if answer.status_code in (404, 405):
            raise NoBatches(f"POST /api/batches answers {answer.status_code}")
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    async def completed(self, batch: dict[str, Any], items: int) -> float:
        """Wait until every item is completed. Returns when that was, in unix seconds. Raises AssertionError."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            found: dict[str, Any] = {"status": "queued"}
            while found["status"] not in ENDED:
                await asyncio.sleep(POLL_SECONDS)
                found = (await self._http.get(batch["statusUrl"])).raise_for_status().json()
        assert (found["status"], found["counts"]["completed"]) == ("completed", items), found
        return datetime.fromisoformat(found["completedAt"]).timestamp()

    async def answers(self, batch: dict[str, Any]) -> tuple[int, int]:
        """Read the output. Returns the number of answers and their bytes in UTF-8."""
        count = size = 0
        async with self._http.stream("GET", batch["outputUrl"]) as output:
            async for line in output.aiter_lines():
                (choice,) = json.loads(line)["response"]["body"]["choices"]
                count, size = count + 1, size + len(choice["message"]["content"].encode())
        return count, size

    async def cancel(self, batch: dict[str, Any]) -> None:
        """Start no more items."""
        answer = await self._http.post(f"/api/batches/{batch['batchId']}/cancel")
        assert answer.status_code == 202, answer.text


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


class Contest:
    """Temporal, worker, gateway and simulator, which all contestants share, and BullMQ, if it can run here."""

    def __init__(
        self, built: Stack, door: Gateway, http: httpx2.AsyncClient, client: Client, bullmq: Rival | None
    ) -> None:
        self.directory = built.directory
        self._door = door
        self._http = http
        self._client = client
        self._bullmq = bullmq
        self._last_batch: dict[str, Any] = {}
        self._idle = [built.temporal, *built.workers, door.process]
        self.batches = BatchCaller(http)
        self.service = {"gateway": door.process.pid, "worker": built.workers[0].pid}
        beside = {"Temporal": built.temporal.pid, "simulator": built.simulator_process.pid, "bench": os.getpid()}
        pids = self.service | beside | (bullmq.pids if bullmq else {})
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}

    async def contestants(self) -> dict[str, Contestant]:
        """Those that can run here, warm, by name. A line of stderr says why another cannot."""
        found: dict[str, Contestant] = {BULLMQ: self.bullmq} if self._bullmq else {}
        found |= {BATCH: self.batch, BARE: self.bare_workflows, SINGLE: self.single_jobs}
        for name in tuple(found):
            try:
                await found[name](self.items(WARM_UP))
            except NoBatches as missing:
                say(f"a batch is not measured: {missing}")
                del found[name]
        return found

    def items(self, number: int) -> Path:
        """A file of batch lines, with a prompt of its own in each, all of the same length."""
        path = self.directory / f"{number}.jsonl"
        with path.open("w") as file:
            for at in range(number):
                prompt = f"Item {at}: " + "what does this ticket ask for, and how urgent is it? " * 4
                messages = [{"role": "user", "content": prompt[:PROMPT_CHARACTERS]}]
                body = {"model": "mistral-small-latest", "messages": messages}
                file.write(json.dumps({"custom_id": f"item-{at}", "body": body}) + "\n")
        return path

    async def turn(self, contestant: Contestant, items: Path) -> Turn:
        """Run one after a pause, and take the CPU time of all processes meanwhile."""
        await asyncio.sleep(SETTLE_SECONDS)
        before = self._cpu()
        done = await contestant(items)
        return Turn(done, {name: seconds - before[name] for name, seconds in self._cpu().items()})

    async def batch(self, items: Path) -> JobsDone:
        """From the first byte of the upload until the batch is completed. Raises NoBatches, AssertionError."""
        began, jobs = time.time(), _lines(items)
        self._last_batch = await self.batches.submit(items)
        return JobsDone(jobs, await self.batches.completed(self._last_batch, jobs) - began)

    async def output(self) -> tuple[int, int]:
        """Read the output of the last batch. Returns the number of its answers and their bytes in UTF-8."""
        return await self.batches.answers(self._last_batch)

    async def bullmq(self, items: Path) -> JobsDone:
        """By the rival, to which the idle service leaves the machine: its polls would take a twelfth of a core."""
        assert self._bullmq is not None
        for process in self._idle:
            process.freeze()
        try:
            return await self._bullmq.run(items)
        finally:
            for process in self._idle:
                process.thaw()

    async def single_jobs(self, items: Path) -> JobsDone:
        """A twentieth of the prompts, each posted as a job, from the first post until all are completed."""
        with items.open() as file:
            waiting = [json.loads(line)["body"] for line in islice(file, 0, None, ONE_BY_ONE)]
        before, jobs = await self._completed_jobs(), len(waiting)

        async def post(connection: Connection) -> None:
            while waiting:
                answer = await connection.post("/api/jobs", waiting.pop())
                assert answer.status == 202, answer
            connection.close()

        began = time.perf_counter()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(post(Connection(self._door.url)) for _ in range(CONCURRENCY)))
            left = jobs
            while left:
                await asyncio.sleep(LOOK_SECONDS)
                left = before + jobs - await self._completed_jobs()
        return JobsDone(jobs, time.perf_counter() - began)

    async def bare_workflows(self, items: Path) -> JobsDone:
        """As many runs of the smallest workflow as there are single jobs; it calls no model."""
        runs = max(1, _lines(items) // ONE_BY_ONE)

        async def run() -> None:
            await self._client.execute_workflow(Bare.run, id=f"bare-{uuid.uuid4().hex}", task_queue=BARE_QUEUE)

        async with Worker(self._client, task_queue=BARE_QUEUE, workflows=[Bare], activities=[nothing]):
            return JobsDone(runs, runs / await rate(run, runs))

    async def _completed_jobs(self) -> int:
        counts = (await self._http.get("/api/counts")).raise_for_status().json()
        return int(counts.get("completed", 0))

    def _cpu(self) -> dict[str, float]:
        return {name: sum(process.cpu_times()[:4]) for name, process in self._processes.items()}


def _lines(items: Path) -> int:
    with items.open("rb") as file:
        return sum(1 for _ in file)


def say(line: str) -> None:
    """A line of stderr, for those who wait."""
    print(line, file=sys.stderr, flush=True)


@asynccontextmanager
async def contest(directory: Path, *, against: bool) -> AsyncIterator[Contest]:
    """The processes until the end of the block. ``against``: with BullMQ, unless it cannot run here."""
    settings = {
        "MISTRAL_REQUESTS_PER_SECOND": str(NO_LIMIT),
        "CHATJOBS_CONCURRENCY": str(CONCURRENCY),
        "CHATJOBS_BATCH_CONCURRENCY": str(CONCURRENCY),
        "CHATJOBS_PORT": "0",
    }
    # Temporal writes to the disk before it answers, as in `make run`: Redis does, too.
    with stack(directory, env=settings, temporal={"durable": True}) as built:
        door = gateway(built)
        async with AsyncExitStack() as closing:
            client = httpx2.AsyncClient(base_url=door.url, timeout=PATIENCE_SECONDS, trust_env=False)
            http = await closing.enter_async_context(client)
            bullmq = None
            if against:
                try:
                    started = rival(directory, model_url=built.simulator.url, concurrency=CONCURRENCY)
                    bullmq = await closing.enter_async_context(started)
                except RivalMissing as missing:
                    say(f"BullMQ is not measured: {missing}")
            yield Contest(built, door, http, await built.connect(), bullmq)
