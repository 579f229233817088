"""A model's outage in the middle of an answer, and then the death of the worker: the same answer, from two models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chatjobs.contracts import JobStatus
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

FIRST, SECOND = "mistral-small-latest", "mistral-medium-latest"
TEXT = " ".join(f"word{number}" for number in range(120))
OUTAGE = [{"kind": "cut", "after": 60, "reset": True}, {"kind": 503}, {"kind": 503}, {"kind": 503}]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path, env={"CHATJOBS_HEARTBEAT_SECONDS": "2"}) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


async def test_an_outage_in_mid_answer_and_a_killed_worker(machine: Stack, live: Service) -> None:
    message = prompt("handed over", text=TEXT, tokens_per_second=60, faults=OUTAGE, failing=FIRST)
    job_id = await live.submit(message, model=FIRST, fallbackModels=[SECOND])
    watching = asyncio.create_task(live.watched(job_id))
    await machine.simulator.wait(message, requests=len(OUTAGE) + 1, tokens=40)
    machine.workers[0].restart()
    watched = await watching
    job = await live.ended(job_id)
    calls = machine.simulator.requests(message)
    assert (job.status, job.content, job.model, watched.resets) == (JobStatus.COMPLETED, TEXT, SECOND, 0)
    assert [call["model"] for call in calls] == [FIRST] * len(OUTAGE) + [SECOND] * 2
    assert [(one.model, one.seam) for one in job.provenance] == [
        (FIRST, None),
        (SECOND, "confirmed"),
        (SECOND, "confirmed"),
    ]
    starts = [one.start for one in job.provenance]
    assert (starts[0], [one.end for one in job.provenance]) == (0, [*starts[1:], len(TEXT)])
    assert (job.wasted_tokens or 0) > 0
