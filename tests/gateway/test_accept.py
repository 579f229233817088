"""Accepted means durable: whatever happens to Temporal or to the gateway next."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from chatjobs.contracts import Job, JobStatus
from dispatch.sweeper import Sweeper
from dispatch.temporal import RPC_TIMEOUT
from domain.timings import Timings
from domain.values import Cursor
from storage.webhooks.deliveries import DeliveryStore
from tests.support.event_reader import reading
from tests.support.factories import make_body
from tests.support.gateway import Gateway, gateway
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Process, Stack, stack

STARTED_WITHIN = 30.0
"""Seconds after Temporal's return."""
WAITING = 30


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": "0", "MISTRAL_REQUESTS_PER_SECOND": "1000", "CHATJOBS_CONCURRENCY": "20"}
    with stack(tmp_path_factory.mktemp("accept"), env=env) as built:
        yield built


@pytest.fixture(scope="module")
def door(machine: Stack) -> Gateway:
    return gateway(machine)


@pytest.fixture(scope="module")
def second(machine: Stack) -> Gateway:
    return gateway(machine, "second")


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as found:
        yield found


@pytest.fixture
async def http(door: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with door.client() as client:
        yield client


@asynccontextmanager
async def away(temporal: Process, how: str) -> AsyncIterator[None]:
    """Temporal killed or frozen while the block runs."""
    if how == "killed":
        await asyncio.to_thread(temporal.kill)
    else:
        temporal.popen.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        if how == "killed":
            temporal.start()
        else:
            temporal.popen.send_signal(signal.SIGCONT)


async def posted(http: httpx2.AsyncClient, message: str, **fields: Any) -> str:
    """The id of an accepted job."""
    answer = await http.post("/api/jobs", json=make_body(message, **fields))
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/api/jobs/{answer.json()['jobId']}"
    return str(answer.json()["jobId"])


async def started(live: Service, job_id: str) -> None:
    async with asyncio.timeout(STARTED_WITHIN):
        while not await live.intake.runs(job_id):  # noqa: ASYNC110 - Temporal does not say when it has a new run
            await asyncio.sleep(0.02)


async def ended(live: Service, job_id: str) -> Job:
    async with asyncio.timeout(60):
        async for _ in live.reader.follow(Cursor(job_id)):
            pass
    return await live.jobs.queries.get(job_id)


# -------------------------------------------------------------------------------------------- without Temporal


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_jobs_are_accepted_without_temporal_and_started_once_it_is_back(
    how: str, machine: Stack, live: Service, http: httpx2.AsyncClient
) -> None:
    """Neither the status nor the time changes, and a job that is cancelled meanwhile never runs."""
    before = [await _seconds(http) for _ in range(20)]
    unwanted = prompt()
    async with away(machine.temporal, how):
        times = [await _seconds(http) for _ in range(20)]
        ids = [await posted(http, prompt()) for _ in range(WAITING)]
        assert (await http.get(f"/api/jobs/{ids[0]}")).json()["status"] == "queued"
        cancelled = await posted(http, unwanted)
        answer = await http.post(f"/api/jobs/{cancelled}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    back = time.monotonic()
    jobs = await asyncio.gather(*(ended(live, job_id) for job_id in ids))
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    first = min(job.started_at.timestamp() for job in jobs if job.started_at)
    assert time.time() - first > time.monotonic() - back - STARTED_WITHIN
    assert statistics.median(times) < statistics.median(before) + RPC_TIMEOUT.total_seconds() / 2, (
        "it waits for Temporal"
    )
    assert machine.simulator.requests(unwanted) == []
    assert (await live.jobs.queries.get(cancelled)).status is JobStatus.CANCELLED


async def _seconds(http: httpx2.AsyncClient) -> float:
    began = time.monotonic()
    await posted(http, prompt())
    return time.monotonic() - began


async def test_a_gateway_that_dies_between_the_commit_and_the_start(
    machine: Stack, live: Service, door: Gateway
) -> None:
    """kill -9: the sweeper of another process starts the job."""
    doomed = gateway(machine, "doomed")
    async with away(machine.temporal, "frozen"):
        async with doomed.client() as http:
            job_id = await posted(http, prompt())
        doomed.process.kill()
    assert (await ended(live, job_id)).status is JobStatus.COMPLETED


async def test_a_cancel_while_temporal_is_away_reaches_a_running_job(
    machine: Stack, live: Service, http: httpx2.AsyncClient
) -> None:
    """It is durable in the row; again is the same, and once the job has ended there is nothing to cancel."""
    text = prompt(tokens=2_000, tokens_per_second=50)
    job_id = await posted(http, text)
    await machine.simulator.wait(text, tokens=5)
    async with away(machine.temporal, "frozen"):
        for _ in range(2):
            answer = await http.post(f"/api/jobs/{job_id}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (202, "in_progress")
    assert (await ended(live, job_id)).status is JobStatus.CANCELLED
    assert (await http.post(f"/api/jobs/{job_id}/cancel")).status_code == 202
    done = await posted(http, prompt())
    await ended(live, done)
    answer = await http.post(f"/api/jobs/{done}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_finished")


@pytest.fixture
def sweeper(live: Service) -> Sweeper:
    """One to whom every job has been silent for long."""
    deliveries = DeliveryStore(live.database)
    return Sweeper(
        intake=live.intake,
        jobs=live.jobs,
        deliveries=deliveries,
        client=live.client,
        timings=Timings(silent_after_seconds=0),
    )


async def test_what_somebody_terminated_is_told(
    machine: Stack, live: Service, http: httpx2.AsyncClient, sweeper: Sweeper
) -> None:
    text = prompt(tokens=2_000, tokens_per_second=50)
    job_id = await posted(http, text)
    await machine.simulator.wait(text, tokens=5)
    await live.run(job_id).terminate()
    while (job := (await http.get(f"/api/jobs/{job_id}")).json())["status"] == "in_progress":
        await sweeper.sweep()  # not of a job that a worker has written to since it looked
    assert (job["status"], job["error"]["code"]) == ("failed", "terminated")


async def test_what_temporal_lost_is_started_again(
    machine: Stack, live: Service, http: httpx2.AsyncClient, sweeper: Sweeper
) -> None:
    """Its database is gone; a job that has ended does not run again."""
    done_text, text = prompt(), prompt()
    done = await posted(http, done_text)
    await ended(live, done)
    machine.workers[0].popen.send_signal(signal.SIGSTOP)
    lost = await posted(http, text)
    await started(live, lost)
    await asyncio.to_thread(machine.temporal.kill)
    for file in machine.directory.glob("temporal.db*"):
        file.unlink()
    machine.temporal.start()
    await sweeper.sweep()
    machine.workers[0].popen.send_signal(signal.SIGCONT)
    assert (await ended(live, lost)).status is JobStatus.COMPLETED
    assert len(machine.simulator.requests(done_text)) == 1


# ------------------------------------------------------------------------------------------------ the same again


async def test_a_hundred_posts_with_one_key_at_two_gateways_make_one_job(
    live: Service, door: Gateway, second: Gateway
) -> None:
    body, key = make_body(prompt()), {"Idempotency-Key": "hundred"}
    async with door.client() as one, second.client() as other:
        answers = await asyncio.gather(
            *((one, other)[number % 2].post("/api/jobs", json=body, headers=key) for number in range(100))
        )
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["jobId"] for answer in answers}
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 99
    await ended(live, job_id)
    runs = [run.run_id async for run in live.client.list_workflows(f"WorkflowId = '{job_id}'")]
    assert len(runs) <= 1  # the list is late, never wrong
    assert len((await live.jobs.queries.get(job_id)).attempts) == 1


async def test_what_is_the_same_request(http: httpx2.AsyncClient) -> None:
    """The order of its names and the space between them are not part of it; everything else is."""
    key = {"Idempotency-Key": "same", "Content-Type": "application/json"}
    texts = (
        '{"messages":[{"role":"user","content":"Hi"}],"temperature":0.5}',
        '{ "temperature": 0.5,\n "messages": [ {"content": "Hi", "role": "user"} ] }',
        '{"messages":[{"role":"user","content":"Hi"}],"temperature":0.6}',
    )
    first, again, other = [await http.post("/api/jobs", content=text, headers=key) for text in texts]
    assert (first.status_code, again.status_code) == (202, 202)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["jobId"] == first.json()["jobId"]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


async def test_a_key_tells_a_replay_from_the_request_that_it_repeats(http: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": f"twice-{uuid.uuid4()}", "Prefer": "respond-async"}
    first = await http.post("/api/jobs", json=make_body(prompt()), headers=[*headers.items(), ("prefer", "WAIT=20")])
    assert first.status_code == 200, "preferences in two lines, and in capitals"
    job_id = first.json()["jobId"]
    same = await http.post(f"/api/jobs/{job_id}/replay", headers={"Idempotency-Key": headers["Idempotency-Key"]})
    assert (same.status_code, same.json()["code"]) == (422, "idempotency_mismatch")
    own = {"Idempotency-Key": f"replay-{uuid.uuid4()}"}
    once, again = [await http.post(f"/api/jobs/{job_id}/replay", headers=own) for _ in range(2)]
    assert once.json()["jobId"] == again.json()["jobId"] != job_id
    assert again.headers["idempotency-replayed"] == "true"


async def test_the_last_page_says_so_even_when_it_is_full(http: httpx2.AsyncClient) -> None:
    mark = uuid.uuid4().hex
    for _ in range(4):
        await http.post("/api/jobs", json=make_body(prompt(), metadata={"page": mark}))
    query: dict[str, str | int] = {"metadata.page": mark, "limit": 2}
    first = (await http.get("/api/jobs", params=query)).json()
    last = (await http.get("/api/jobs", params={**query, "cursor": first["nextCursor"]})).json()
    assert (len(first["jobs"]), len(last["jobs"]), last["nextCursor"]) == (2, 2, None)


async def test_waiting_for_the_end(http: httpx2.AsyncClient) -> None:
    """200 and the job if it ended in time, else 202; the job goes on either way."""
    quick = await http.post("/api/jobs", json=make_body(prompt()), headers={"Prefer": "wait=20"})
    assert (quick.status_code, quick.json()["status"]) == (200, "completed")
    assert quick.headers["preference-applied"] == "wait=20"
    slow = await http.post(
        "/api/jobs", json=make_body(prompt(tokens=500, tokens_per_second=20)), headers={"Prefer": "wait=1"}
    )
    assert (slow.status_code, slow.json()["status"]) == (202, "in_progress")
    assert (await http.post(f"/api/jobs/{slow.json()['jobId']}/cancel")).status_code == 202


# ---------------------------------------------------------------------------------- what only Temporal knows yet


async def test_events_of_a_job_that_has_no_row_yet(machine: Stack, live: Service, door: Gateway) -> None:
    """Started straight through Temporal while no worker is there: the stream is held open."""
    machine.workers[0].popen.send_signal(signal.SIGSTOP)
    job_id = "straight-1"
    await live.client.start_workflow("ChatJob", {"request": make_body(prompt())}, id=job_id, task_queue="chatjobs")
    async with reading(f"{door.url}/api/jobs/{job_id}/events") as reader:
        assert reader.status == 200
        machine.workers[0].popen.send_signal(signal.SIGCONT)
        names = [event.event for event in await reader.all()]
    assert (names[0], names[-1]) == ("start", "complete")
