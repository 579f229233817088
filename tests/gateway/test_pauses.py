"""Pause and resume over HTTP, with two workers: running answers finish, nothing new is called, nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chatjobs.client import AsyncChatJobs
from chatjobs.contracts import JobStatus
from chatjobs.errors import ApiError, PauseNotFound
from storage.engine.database import Database
from storage.keys import KeyStore
from storage.rate_limits.pauses import PauseStore
from tests.support.factories import make_body
from tests.support.gateway import Gateway, alone, gateway
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

HOLDS_WITHIN = 2.0
"""Seconds after which no worker starts a call."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_CONCURRENCY": "10"}
    with stack(tmp_path_factory.mktemp("pauses"), workers=2, env=env) as built:
        yield built


@pytest.fixture(scope="module")
def door(machine: Stack) -> Gateway:
    return gateway(machine)


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as found:
        yield found


@pytest.fixture
async def http(door: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with door.client() as client:
        yield client


async def posted(http: httpx2.AsyncClient, text: str, **fields: Any) -> str:
    """The id of an accepted job."""
    answer = await http.post("/api/jobs", json=make_body(text, **fields))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


async def paused(http: httpx2.AsyncClient, job_id: str) -> None:
    """Wait until a job shows that it is paused."""
    async with asyncio.timeout(20):
        while (queue := (await http.get(f"/api/jobs/{job_id}")).json().get("queue")) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (queue["reason"], queue["expectedStartAt"]) == ("paused", None)


async def test_running_answers_finish_and_nobody_else_is_called_until_it_ends(
    machine: Stack, live: Service, http: httpx2.AsyncClient
) -> None:
    """Also after a kill of both workers in between."""
    slow, later = prompt("slow", tokens=60, tokens_per_second=20), prompt("later", tokens=3)
    running = [await posted(http, slow) for _ in range(2)]
    await machine.simulator.wait(slow, tokens=2)
    begun = await http.post("/api/pauses", json={"reason": "the budget is spent"})
    since = time.time()
    assert begun.status_code == 201
    assert begun.json() | {"pauseId": "", "pausedAt": ""} == {
        "pauseId": "",
        "lane": None,
        "tenant": None,
        "reason": "the budget is spent",
        "pausedAt": "",
        "pausedBy": "operator",
        "mayResume": True,
    }
    waiting = [await posted(http, later) for _ in range(6)]
    for job_id in waiting:
        await paused(http, job_id)
    for job_id in running:
        job = await live.ended(job_id)
        assert (job.status, len(job.attempts)) == (JobStatus.COMPLETED, 1)
    for worker in machine.workers:
        worker.restart()
    await asyncio.sleep(max(0.0, since + 2 * HOLDS_WITHIN - time.time()))
    assert machine.simulator.requests(later) == []
    resumed = time.time()
    assert (await http.delete(f"/api/pauses/{begun.json()['pauseId']}")).status_code == 204
    assert (await http.get("/api/pauses")).json() == {"pauses": []}
    for job_id in waiting:
        job = await live.ended(job_id)
        assert (job.status, len(job.attempts)) == (JobStatus.COMPLETED, 1)
    calls = [entry["time"] for entry in machine.simulator.requests(later)]
    assert len(calls) == len(waiting)
    assert min(calls) - resumed < HOLDS_WITHIN


async def test_jobs_in_flight_when_it_begins_are_called_in_time_or_not_at_all(
    machine: Stack, live: Service, http: httpx2.AsyncClient
) -> None:
    """Of a steady stream of jobs, none is called later than two seconds after the pause, none is lost, none twice."""
    text = prompt("steady", tokens=3)
    ids = []
    for number in range(40):
        ids.append(await posted(http, text))
        if number == 20:
            pause = (await http.post("/api/pauses", json={"tenant": "default"})).json()
            since = time.time()
        await asyncio.sleep(0.02)
    await paused(http, ids[-1])
    await asyncio.sleep(max(0.0, since + HOLDS_WITHIN + 0.5 - time.time()))
    early = [entry["time"] for entry in machine.simulator.requests(text)]
    assert max(early) - since < HOLDS_WITHIN
    assert len(early) < len(ids)
    await http.delete(f"/api/pauses/{pause['pauseId']}")
    for job_id in ids:
        assert (await live.ended(job_id)).status is JobStatus.COMPLETED
    assert len(machine.simulator.requests(text)) == len(ids)


async def test_the_lanes_show_who_waits_and_what_is_paused(
    machine: Stack, live: Service, http: httpx2.AsyncClient, door: Gateway
) -> None:
    slow = prompt("slow", tokens=2_000, tokens_per_second=20)
    running = await posted(http, slow)
    await machine.simulator.wait(slow, tokens=2)
    pause = (await http.post("/api/pauses", json={"tenant": "default", "reason": "for a test"})).json()
    waiting = [await posted(http, prompt(tokens=2), priority=number) for number in (2, 3, 3)]
    for job_id in waiting:
        await paused(http, job_id)
    async with AsyncChatJobs(door.url, transport=httpx2.AsyncHTTPTransport()) as jobs:
        (lane,) = await jobs.lanes()
    assert (lane.running, lane.waiting, lane.at_once, lane.down) == (1, 3, None, False)
    assert [(one.tenant, one.priority, one.count) for one in lane.waiting_by] == [("default", 2, 1), ("default", 3, 2)]
    assert [(one.tenant, one.reason) for one in lane.pauses] == [("default", "for a test")]
    await http.delete(f"/api/pauses/{pause['pauseId']}")
    for job_id in waiting:
        assert (await live.ended(job_id)).status is JobStatus.COMPLETED
    await http.post(f"/api/jobs/{running}/cancel")
    assert (await live.ended(running)).status is JobStatus.CANCELLED


async def test_the_time_in_the_queue_goes_on(http: httpx2.AsyncClient, live: Service) -> None:
    pause = (await http.post("/api/pauses", json={})).json()
    job = await live.ended(await posted(http, prompt(), limits={"queueSeconds": 1}))
    assert job.error is not None
    assert (job.status, job.error.code, job.attempts) == (JobStatus.FAILED, "queue_timeout", ())
    await http.delete(f"/api/pauses/{pause['pauseId']}")


async def test_a_paused_job_is_cancelled_at_once(http: httpx2.AsyncClient, live: Service) -> None:
    pause = (await http.post("/api/pauses", json={})).json()
    job_id = await posted(http, prompt())
    await paused(http, job_id)
    await http.post(f"/api/jobs/{job_id}/cancel")
    async with asyncio.timeout(10):
        assert (await live.ended(job_id)).status is JobStatus.CANCELLED
    await http.delete(f"/api/pauses/{pause['pauseId']}")


async def test_the_python_client_pauses_and_resumes(door: Gateway) -> None:
    async with AsyncChatJobs(door.url, transport=httpx2.AsyncHTTPTransport()) as jobs:
        begun = await jobs.pause(tenant="acme", reason="why not")
        assert [one.pause_id for one in await jobs.pauses()] == [begun.pause_id]
        await jobs.end_pause(begun.pause_id)
        assert await jobs.pauses() == ()
        for unknown in (begun.pause_id, "../jobs"):
            with pytest.raises(PauseNotFound):
                await jobs.end_pause(unknown)


@pytest.mark.parametrize("body", [{"lane": ""}, {"lane": "a b"}, {"tenant": ""}, {"reason": "x" * 501}, {"job": "x"}])
async def test_what_makes_no_sense_is_refused(http: httpx2.AsyncClient, body: dict[str, str]) -> None:
    answer = await http.post("/api/pauses", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert (await http.get("/api/pauses")).json() == {"pauses": []}


# ------------------------------------------------------------------------------------------------------- keys


async def test_a_key_pauses_its_own_tenant_only(tmp_path: Path) -> None:
    with alone(tmp_path) as place:
        database = await Database.open(place.database_url)
        keys = {tenant: await KeyStore(database).add(tenant=tenant) for tenant in ("acme", "other")}
        operators = PauseStore(database)
        door = gateway(place)
        async with AsyncExitStack() as opened:
            acme, other = [
                await opened.enter_async_context(AsyncChatJobs(door.url, secret, transport=httpx2.AsyncHTTPTransport()))
                for _, secret in keys.values()
            ]
            own = await acme.pause(tenant="acme", reason="ours")
            assert (own.paused_by, own.may_resume) == (keys["acme"][0].id, True)
            for scope in ({}, {"tenant": "other"}, {"lane": "0a1b2c3d:mistral-small"}):
                with pytest.raises(ApiError) as refused:
                    await acme.pause(**scope)
                assert (refused.value.status, refused.value.reason) == (403, "operators_only")
            everything, theirs = await operators.pause(), await operators.pause(tenant="other")
            assert [(one.pause_id, one.may_resume) for one in await acme.pauses()] == [
                (own.pause_id, True),
                (everything.pause_id, False),
            ]
            assert [one.pause_id for one in await other.pauses()] == [everything.pause_id, theirs.pause_id]
            with pytest.raises(PauseNotFound):
                await other.end_pause(own.pause_id)
            for client, pause in ((acme, everything), (other, theirs)):
                with pytest.raises(ApiError) as refused:
                    await client.end_pause(pause.pause_id)
                assert (refused.value.status, refused.value.reason) == (403, "operators_only")
            assert await acme.lanes() == (), "it uses none, and others' are not shown"
            await acme.end_pause(own.pause_id)
            assert [one.pause_id for one in await operators.list()] == [everything.pause_id, theirs.pause_id]
        await database.close()
