"""Workers killed with -9 around a wrong answer and its repair: the repair is made with the same words, and counted."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatjobs.contracts import Job, JobStatus
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long

SCHEMA = {"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]}
WANTED = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
WRONG = json.dumps({"people": "half a million", "note": "one two three four five six seven"})
RIGHT = json.dumps({"people": 520_774, "note": "one two three four five six seven eight"})
PROBLEM = "Your answer is not the JSON"
MISMATCH, LOST, FINISHED = "schema_mismatch", "lost", "finished"


@pytest.fixture
def machine(tmp_path: Path, database_url: str) -> Iterator[Stack]:
    """A stack whose worker the test starts itself, on SQLite and on Postgres."""
    with stack(tmp_path, database_url=database_url, workers=0, env={"CHATJOBS_HEARTBEAT_SECONDS": "2"}) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


async def submit(live: Service, *, wrong: dict[str, Any] | None = None, right: dict[str, Any] | None = None) -> str:
    repairs = [{"text": RIGHT, **(right or {})}]
    return await live.submit(prompt("killed", text=WRONG, repairs=repairs, **(wrong or {})), response_format=WANTED)


def assert_repaired_once(machine: Stack, job: Job, *outcomes: str) -> None:
    """All calls after the wrong answer were repairs of it, with the same words."""
    assert (job.status, job.content) == (JobStatus.COMPLETED, RIGHT)
    assert [attempt.outcome for attempt in job.attempts] == list(outcomes)
    repairs = [call["messages"] for call in machine.simulator.requests() if PROBLEM in call["prompt"]]
    assert 1 <= len(repairs) <= len(outcomes) - list(outcomes).index(MISMATCH) - 1  # some died before their call
    assert all(call == repairs[0] for call in repairs)


async def test_killed_in_the_middle_of_the_wrong_answer(machine: Stack, live: Service) -> None:
    machine.add_worker()
    job_id = await submit(live, wrong={"hold": 5})
    await machine.simulator.wait("killed", tokens=5)
    machine.workers[0].restart()
    await machine.simulator.wait("killed", requests=2, tokens=5)
    machine.simulator.release("")
    assert_repaired_once(machine, await live.ended(job_id), LOST, MISMATCH, FINISHED)


@pytest.mark.parametrize(
    ("point", "outcomes"),
    [
        ("before_end", (LOST, MISMATCH, FINISHED)),  # the whole wrong answer is there, and nobody knows yet
        ("after_end", (MISMATCH, FINISHED)),
        ("after_restart", (MISMATCH, LOST, FINISHED)),
    ],
)
async def test_killed_between_the_mismatch_and_its_repair(
    machine: Stack, live: Service, point: str, outcomes: tuple[str, ...]
) -> None:
    job_id = await submit(live)
    doomed = machine.run(f"doomed-{point}", "-m", "tests.support.dying_worker", point, ready="worker ready")
    assert await asyncio.to_thread(doomed.popen.wait, 60) == -signal.SIGKILL
    machine.add_worker()
    assert_repaired_once(machine, await live.ended(job_id), *outcomes)


async def test_killed_in_the_middle_of_the_repair(machine: Stack, live: Service) -> None:
    """Twice: the repair starts over, and is still the first one."""
    machine.add_worker()
    job_id = await submit(live, right={"hold": 5})
    for kill in range(2):
        await machine.simulator.wait(PROBLEM, requests=kill + 1, tokens=5)
        machine.workers[0].restart()
    await machine.simulator.wait(PROBLEM, requests=3, tokens=5)
    machine.simulator.release("")
    assert_repaired_once(machine, await live.ended(job_id), MISMATCH, LOST, LOST, FINISHED)


async def test_no_process_is_left_of_a_worker_that_was_killed(machine: Stack, live: Service) -> None:
    """Those of its checks end with it."""
    worker = machine.add_worker()
    await live.ended(await submit(live))
    children = Path(f"/proc/{worker.popen.pid}/task/{worker.popen.pid}/children")
    found = [Path(f"/proc/{pid}") for task in children.parent.parent.iterdir() for pid in _children(task)]
    assert found
    worker.kill()
    async with asyncio.timeout(20):
        while any(child.exists() and "schema_check" in (child / "cmdline").read_text() for child in found):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


def _children(task: Path) -> list[str]:
    return (task / "children").read_text().split()
