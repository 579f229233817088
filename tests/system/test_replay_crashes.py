"""Workers that are killed with -9 within a replay: no job is repeated twice, none is missing."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chatjobs.client import AsyncChatJobs
from chatjobs.contracts import Batch, BatchCounts, BatchStatus, Job, JobStatus
from tests.support.fakes import eventually
from tests.support.gateway import gateway
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long

ENV = {"CHATJOBS_PORT": "0", "CHATJOBS_HEARTBEAT_SECONDS": "2", "MISTRAL_REQUESTS_PER_SECOND": "1000"}
SLOW: dict[str, Any] = {"tokens": 30, "tokens_per_second": 15, "faults": [{"kind": 400}]}
"""An answer that fails the first time, and takes two seconds the second time."""


class Night:
    """Jobs that have failed, and their replay in the morning."""

    def __init__(self, running: Stack, jobs: AsyncChatJobs, http: httpx2.AsyncClient) -> None:
        self.stack = running
        self.jobs = jobs
        self.http = http

    async def failed(self, questions: Sequence[str]) -> list[str]:
        """The ids of jobs, one for each question, that have failed."""
        ended = [job async for job in self.jobs.map(questions)]
        assert [outcome.job and outcome.job.status for outcome in ended] == [JobStatus.FAILED] * len(questions)
        by_prompt = {await self.prompt_of(outcome.job): outcome.job for outcome in ended if outcome.job}
        ordered = sorted(by_prompt.values(), key=lambda job: (job.created_at, job.job_id))
        return [job.job_id for job in ordered]

    async def prompt_of(self, job: Job) -> str:
        request = (await self.http.get(f"/api/jobs/{job.job_id}/request")).json()
        return str(request["messages"][0]["content"])

    async def done(self, batch_id: str) -> Batch:
        async def look() -> Batch | None:
            batch = Batch.model_validate_json((await self.http.get(f"/api/replays/{batch_id}")).content)
            return batch if batch.status.terminal else None

        batch = await eventually(look)
        assert batch is not None
        return batch

    async def each_once(self, batch_id: str, originals: Sequence[str]) -> None:
        """The output has each job once and in order, with a whole answer that one call has finished."""
        lines = (await self.http.get(f"/api/batches/{batch_id}/output")).text.splitlines()
        assert [json.loads(line)["custom_id"] for line in lines] == list(originals)
        for original, line in zip(originals, map(json.loads, lines), strict=True):
            assert (await self.jobs.get(original)).replays == (line["id"],)
            job = await self.jobs.get(line["id"])
            assert job.content == self.stack.simulator.answer(await self.prompt_of(job))["text"]
            assert [attempt.outcome for attempt in job.attempts].count("finished") == 1


@pytest.fixture
async def night(tmp_path: Path) -> AsyncIterator[Night]:
    with stack(tmp_path, env=ENV) as running:
        door = gateway(running)
        async with AsyncChatJobs(door.url) as jobs, door.client() as http:
            yield Night(running, jobs, http)


async def test_killed_in_the_canary_and_in_the_rest(night: Night) -> None:
    """Answers that were cut continue."""
    questions = [prompt(f"question {number}", **SLOW) for number in range(12)]
    originals = await night.failed(questions)
    replay = await night.jobs.replay_all(status="failed", canary=3, concurrency=4)
    canary = [await night.prompt_of(await night.jobs.get(job_id)) for job_id in originals]
    for question in (canary[0], canary[5], canary[-1]):
        await night.stack.simulator.wait(question, requests=2, tokens=5)
        night.stack.workers[0].restart()
    batch = await night.done(replay.batch_id)
    assert (batch.status, batch.phase) == (BatchStatus.COMPLETED, "rest")
    assert batch.counts == BatchCounts(total=12, completed=12)
    await night.each_once(replay.batch_id, originals)


@pytest.mark.parametrize("point", ["after_gather", "after_verdict"])
async def test_killed_once_a_step_is_stored(night: Night, point: str) -> None:
    """Nobody has heard of it: the step is not made a second time."""
    originals = await night.failed(
        [prompt(f"question {number}", tokens=3, faults=[{"kind": 400}]) for number in range(5)]
    )
    night.stack.workers[0].kill()
    program = ("-m", "tests.support.dying_worker", point)
    doomed = night.stack.run(f"doomed-{point}", *program, ready="worker ready")
    replay = await night.jobs.replay_all(status="failed", canary=2)
    assert await asyncio.to_thread(doomed.popen.wait, 60) == -signal.SIGKILL
    night.stack.add_worker()
    batch = await night.done(replay.batch_id)
    assert (batch.status, batch.counts) == (BatchStatus.COMPLETED, BatchCounts(total=5, completed=5))
    await night.each_once(replay.batch_id, originals)
