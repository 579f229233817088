"""Processes killed with -9 wherever it hurts: the job completes, once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from tests.receiver import Receiver, receiver
from tests.service import Service, Watched, service
from tests.simulator_process import prompt
from tests.stack import Stack, stack

HEARTBEAT = {"CHATJOBS_HEARTBEAT_SECONDS": "2"}
SLOW: dict[str, Any] = {"tokens": 60, "tokens_per_second": 60}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Stack]:
    """A stack whose worker the test starts itself."""
    with stack(tmp_path, workers=0, env=HEARTBEAT) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


async def died(machine: Stack, point: str) -> None:
    """A worker has run until it killed itself at ``point``; its successor is up."""
    doomed = machine.run(f"doomed-{point}", "-m", "tests.dying_worker", point, ready="worker ready")
    assert await asyncio.to_thread(doomed.popen.wait, 60) == -signal.SIGKILL
    machine.add_worker()


def assert_one_outcome(job: Job, watched: Watched, hook: Receiver | None = None) -> None:
    """Row, terminal event, text and webhook tell one story."""
    assert job.status is JobStatus.COMPLETED
    assert watched.ends == [JobStatus.COMPLETED]
    assert watched.texts[Channel.CONTENT] == job.content
    if hook:
        received = hook.requests("/hook")
        assert {request.headers["webhook-id"] for request in received} == {job.deliveries[0].id}
        assert len({request.body for request in received}) == 1
        assert received[0].json()["data"]["sha256"] == job.sha256


@pytest.mark.parametrize(("policy", "resets"), [("continue", 0), ("restart", 1)])
async def test_killed_in_mid_stream(machine: Stack, live: Service, hook: Receiver, policy: str, resets: int) -> None:
    """The next attempt completes the same answer, or starts it over if the caller wants it so; one more call, one
    terminal event, one webhook."""
    machine.add_worker()
    message = prompt("killed in mid-stream", **SLOW)
    job_id = await live.submit(message, callback=hook.url("/hook"), onInterrupt=policy)
    watching = asyncio.create_task(live.watched(job_id))
    await machine.simulator.wait(message, tokens=20)
    machine.workers[0].restart()
    watched = await watching
    await hook.arrived(1, path="/hook")
    job = await live.jobs.get(job_id)
    assert_one_outcome(job, watched, hook)
    assert (watched.resets, job.epoch) == (resets, 1 + resets)
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "finished"]
    assert len(machine.simulator.requests(message)) == 2
    assert job.content == machine.simulator.answer(message)["text"]


async def test_killed_before_the_first_token(machine: Stack, live: Service) -> None:
    """No text, no reset: readers notice nothing but the time."""
    message = prompt("killed early", first_token_seconds=1.0, tokens=9)
    machine.add_worker()
    job_id = await live.submit(message)
    watching = asyncio.create_task(live.watched(job_id))
    await machine.simulator.wait(message, requests=1)
    machine.workers[0].restart()
    watched = await watching
    assert_one_outcome(await live.jobs.get(job_id), watched)
    assert watched.resets == 0


ANSWERS: dict[str, dict[str, Any]] = {
    "text": {"tokens": 9},
    "tool calls only": {"tool_calls": [{"name": "weather", "arguments": {"city": "Nîmes"}}], "pieces": []},
    "references": {"tokens": 9, "references": [{"after": 3, "ids": [1, 2]}]},
}


@pytest.mark.parametrize("script", ANSWERS.values(), ids=ANSWERS.keys())
async def test_killed_after_the_final_commit(machine: Stack, live: Service, script: dict[str, Any]) -> None:
    """The finish is data: no second call, and nothing of the answer is missing."""
    message = prompt("killed after the finish", **script)
    job_id = await live.submit(message)
    await died(machine, "after_finish")
    watched = await live.watched(job_id)
    job = await live.jobs.get(job_id)
    assert_one_outcome(job, watched)
    assert len(machine.simulator.requests(message)) == 1
    assert [attempt.outcome for attempt in job.attempts] == ["finished"]
    assert [call.function.name for call in job.tool_calls or ()] == ["weather"] * ("tool_calls" in script)
    assert [part.part["reference_ids"] for part in job.content_parts or ()] == [[1, 2]] * ("references" in script)


@pytest.mark.parametrize("point", ["after_seal", "before_send", "after_send"])
async def test_killed_between_seal_and_notify(machine: Stack, live: Service, hook: Receiver, point: str) -> None:
    """The result stays as it was sealed, and the webhook comes: same id, same bytes."""
    message = prompt("killed around the seal", tokens=9)
    job_id = await live.submit(message, callback=hook.url("/hook"))
    await died(machine, point)
    watched = await live.watched(job_id)
    job = await live.jobs.get(job_id)
    await hook.arrived(2 if point == "after_send" else 1, path="/hook", timeout=60)
    assert_one_outcome(job, watched, hook)
    assert len(machine.simulator.requests(message)) == 1


async def test_everything_killed_at_once(machine: Stack, live: Service, hook: Receiver) -> None:
    """Temporal, worker and simulator die together in mid-stream; after a restart the job completes."""
    machine.add_worker()
    message = prompt("all at once", **SLOW)
    job_id = await live.submit(message, callback=hook.url("/hook"))
    watching = asyncio.create_task(live.watched(job_id))
    await machine.simulator.wait(message, tokens=20)
    for process in machine.processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in machine.processes:
        process.popen.wait()
        process.start(wait=process is not machine.workers[0])
    machine.workers[0].wait_until_ready()
    watched = await watching
    await hook.arrived(1, path="/hook")
    job = await live.jobs.get(job_id)
    assert_one_outcome(job, watched, hook)
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "finished"]
    assert len(machine.simulator.requests(message)) == 1  # the simulator's log began anew


async def test_killed_again_and_again(machine: Stack, live: Service) -> None:
    """Kills cost nothing of the failure budget: the fourth attempt completes the job."""
    machine.add_worker()
    message = prompt("killed again and again", **SLOW)
    job_id = await live.submit(message)
    watching = asyncio.create_task(live.watched(job_id))
    for kill in range(3):
        await machine.simulator.wait(message, requests=kill + 1, tokens=2, timeout=30)
        machine.workers[0].restart()
    watched = await watching
    job = await live.jobs.get(job_id)
    assert_one_outcome(job, watched)
    assert [attempt.outcome for attempt in job.attempts] == ["lost"] * 3 + ["finished"]
    assert (job.content, watched.resets) == (machine.simulator.answer(message)["text"], 0)


async def test_a_deploy_hands_the_stream_over(machine: Stack, live: Service) -> None:
    """SIGTERM: the worker leaves with exit code 0 before its grace time, and another one goes on at once."""
    machine.add_worker()
    message = prompt("deploy", **SLOW | {"tokens": 300})
    job_id = await live.submit(message)
    await machine.simulator.wait(message, tokens=5)
    machine.add_worker()
    assert await asyncio.to_thread(machine.workers[0].stop, timeout=15) == 0
    job = await live.ended(job_id)
    assert [attempt.outcome for attempt in job.attempts] == ["handed_over", "finished"]
    ended, began = job.attempts[0].ended_at, job.attempts[1].started_at
    assert ended
    assert (began - ended).total_seconds() < 5
