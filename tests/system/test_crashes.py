"""Processes killed with -9 wherever it hurts: the job completes, once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from tests.support.factories import make_body
from tests.support.fakes import eventually
from tests.support.gateway import gateway
from tests.support.receiver import Receiver, receiver
from tests.support.service import Service, Watched, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

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
    doomed = machine.run(f"doomed-{point}", "-m", "tests.support.dying_worker", point, ready="worker ready")
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
    job = await live.jobs.queries.get(job_id)
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
    assert_one_outcome(await live.jobs.queries.get(job_id), watched)
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
    job = await live.jobs.queries.get(job_id)
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
    job = await live.jobs.queries.get(job_id)
    await hook.arrived(2 if point == "after_send" else 1, path="/hook", timeout=60)
    assert_one_outcome(job, watched, hook)
    assert len(machine.simulator.requests(message)) == 1


@pytest.fixture
def either(tmp_path: Path, database_url: str) -> Iterator[Stack]:
    """A stack on SQLite, and one on Postgres, whose worker the test starts itself."""
    with stack(tmp_path, workers=0, env=HEARTBEAT | {"CHATJOBS_PORT": "0"}, database_url=database_url) as running:
        yield running


@pytest.mark.parametrize("point", ["before_finish", "before_finish_commit"])
async def test_killed_between_the_finish_reason_and_its_commit(either: Stack, hook: Receiver, point: str) -> None:
    """The end of the answer is asked for once more, and the text is what the model said, once."""
    message = prompt("killed before the finish", **SLOW)
    async with service(either) as live:
        job_id = await live.submit(message, callback=hook.url("/hook"))
        watching = asyncio.create_task(live.watched(job_id))
        await died(either, point)
        watched = await watching
        job = await live.jobs.queries.get(job_id)
    await hook.arrived(1, path="/hook")
    assert_one_outcome(job, watched, hook)
    assert watched.resets == 0
    assert job.content == either.simulator.answer(message)["text"]
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "finished"]
    assert len(either.simulator.requests(message)) == 2
    assert len(hook.requests("/hook")) == 1


async def test_a_gateway_killed_between_the_commit_and_its_answer(either: Stack, hook: Receiver) -> None:
    """The caller sends the job again with the same key, to another gateway: there is one job, and one webhook."""
    message = prompt("killed before the answer", tokens=9)
    body, headers = make_body(message, callback=hook.url("/hook")), {"Idempotency-Key": "once"}
    either.env["CHATJOBS_WEBHOOK_ALLOW"] = "127.0.0.1"
    doomed, heir = gateway(either, "doomed", "tests.support.dying_gateway"), gateway(either, "heir")
    async with doomed.client() as http:
        with pytest.raises(httpx2.TransportError):
            await http.post("/api/jobs", json=body, headers=headers)
    assert await asyncio.to_thread(doomed.process.popen.wait, 60) == -signal.SIGKILL
    either.add_worker()
    async with heir.client() as http, service(either) as live:
        answers = [await http.post("/api/jobs", json=body, headers=headers) for _ in range(2)]
        assert [answer.headers.get("Idempotency-Replayed") for answer in answers] == ["true", "true"]
        (job_id,) = {answer.json()["jobId"] for answer in answers}
        watched = await live.watched(job_id)
        job = await live.jobs.queries.get(job_id)
        assert [one.job_id for one in await live.jobs.queries.list()] == [job_id]
    await hook.arrived(1, path="/hook")
    assert_one_outcome(job, watched, hook)
    assert len(either.simulator.requests(message)) == 1
    assert len(hook.requests("/hook")) == 1


@pytest.mark.parametrize("point", ["decoding", "after_claim"])
async def test_a_job_that_ends_its_workers(machine: Stack, live: Service, hook: Receiver, point: str) -> None:
    """After as many as limits.maxLost allows it fails, and a worker that lives says so to the webhook's receiver."""
    message = prompt("poison", tokens=9)
    job_id = await live.submit(message, callback=hook.url("/hook"), limits={"maxLost": 2})
    for number in range(2):
        doomed = machine.run(f"doomed-{number}", "-m", "tests.support.dying_worker", point, ready="worker ready")
        assert await asyncio.to_thread(doomed.popen.wait, 60) == -signal.SIGKILL
    machine.add_worker()
    job = await live.ended(job_id)
    assert job.error
    assert (job.status, job.error.code, job.error.retryable) == (JobStatus.FAILED, "worker_lost", True)
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "lost"]
    assert not machine.simulator.requests(message)
    await hook.arrived(1, path="/hook")
    assert hook.requests("/hook")[0].json()["data"]["error"]["code"] == "worker_lost"


async def test_deaths_that_brought_new_text_are_not_held_against_the_job(machine: Stack, live: Service) -> None:
    """One lost worker may be the last, but each of these had brought the answer further."""
    machine.add_worker()
    message = prompt("deadly, and yet", **SLOW)
    job_id = await live.submit(message, limits={"maxLost": 1})
    position = 0
    for kill in range(3):
        await machine.simulator.wait(message, requests=kill + 1, tokens=2, timeout=30)
        position = await grown(live, job_id, position)
        machine.workers[0].restart()
    job = await live.ended(job_id)
    assert [attempt.outcome for attempt in job.attempts] == ["lost"] * 3 + ["finished"]
    assert (job.status, job.content) == (JobStatus.COMPLETED, machine.simulator.answer(message)["text"])


async def grown(live: Service, job_id: str, position: int) -> int:
    """The job's position, once it is beyond ``position``."""

    async def look() -> int:
        found = (await live.jobs.queries.outline(job_id)).position
        return found if found > position else 0

    return await eventually(look)


async def test_everything_killed_at_once(machine: Stack, live: Service, hook: Receiver) -> None:
    """Temporal, worker and simulator die together in mid-stream; after a restart the job completes."""
    machine.add_worker()
    message = prompt("all at once", **SLOW)
    job_id = await live.submit(message, callback=hook.url("/hook"))
    watching = asyncio.create_task(live.watched(job_id))
    await machine.simulator.wait(message, tokens=20)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # or one would see the others die
        for process in machine.processes:
            os.kill(process.pid, number)
    for process in machine.processes:
        process.popen.wait()
        process.start(wait=process is not machine.workers[0])
    machine.workers[0].wait_until_ready()
    watched = await watching
    await hook.arrived(1, path="/hook")
    job = await live.jobs.queries.get(job_id)
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
    job = await live.jobs.queries.get(job_id)
    assert_one_outcome(job, watched)
    assert [attempt.outcome for attempt in job.attempts] == ["lost"] * 3 + ["finished"]
    assert (job.content, watched.resets) == (machine.simulator.answer(message)["text"], 0)


async def test_a_deploy_hands_the_stream_over(machine: Stack, live: Service) -> None:
    """SIGTERM: the worker leaves with exit code 0 before its grace time, and another one goes on at once."""
    machine.add_worker()
    message = prompt("deploy", **SLOW | {"tokens": 900})  # longer than a worker takes to start on a busy machine
    job_id = await live.submit(message)
    await machine.simulator.wait(message, tokens=5)
    machine.add_worker()
    assert await asyncio.to_thread(machine.workers[0].stop, timeout=15) == 0
    job = await live.ended(job_id)
    assert [attempt.outcome for attempt in job.attempts] == ["handed_over", "finished"]
    ended, began = job.attempts[0].ended_at, job.attempts[1].started_at
    assert ended
    assert (began - ended).total_seconds() < 5
