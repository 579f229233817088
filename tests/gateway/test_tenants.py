"""A tenant sees its own jobs. Those of others are not there, on any route, whatever state they are in."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from chatjobs.errors import JobIdConflict
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.keys import KeyStore
from tests.support.factories import make_body, make_job
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

TENANTS = ("default", "acme", "other")
SLOW = prompt("a long one", tokens=5_000, tokens_per_second=50)
PATIENCE = 30.0


@dataclass(frozen=True)
class Callers:
    """A client per tenant."""

    default: httpx2.AsyncClient
    acme: httpx2.AsyncClient
    other: httpx2.AsyncClient


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway, dict[str, str]]]:
    with stack(tmp_path_factory.mktemp("tenants"), env={"CHATJOBS_PORT": "0"}) as started:
        keys = asyncio.run(made_keys(started.database_url))
        yield started, gateway(started), keys


async def made_keys(database_url: str) -> dict[str, str]:
    database = await Database.open(database_url)
    keys = {tenant: (await KeyStore(database).add(tenant=tenant))[1] for tenant in TENANTS}
    await database.close()
    return keys


@pytest.fixture
async def callers(running: tuple[Stack, Gateway, dict[str, str]]) -> AsyncIterator[Callers]:
    started, door, keys = running
    async with AsyncExitStack() as opened:
        clients = {
            tenant: await opened.enter_async_context(door.client(headers={"Authorization": f"Bearer {keys[tenant]}"}))
            for tenant in TENANTS
        }
        yield Callers(**clients)
    sys.stdout.write(started.news())


async def begun(client: httpx2.AsyncClient, message: str = "Hello", **fields: Any) -> str:
    answer = await client.post("/api/jobs", json=make_body(message, **fields))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


async def ended(client: httpx2.AsyncClient) -> str:
    """The id of a job that has ended."""
    answer = await client.post("/api/jobs", json=make_body(), headers={"Prefer": "wait=30"})
    assert answer.json()["status"] == "completed", answer.text
    return str(answer.json()["jobId"])


async def up_to(event: str, stream: httpx2.Response) -> str:
    """A stream's beginning, up to the end of the first event of a kind."""
    seen = ""
    async with asyncio.timeout(PATIENCE):
        async for piece in stream.aiter_text():
            seen += piece
            _, found, rest = seen.partition(f"event: {event}")
            if found and "\n\n" in rest:
                break
    return seen


def routes(job_id: str) -> list[tuple[str, str]]:
    """Every route on a job."""
    job = f"/api/jobs/{job_id}"
    return [
        ("GET", job),
        ("GET", f"{job}/request"),
        ("GET", f"{job}/events"),
        ("GET", f"{job}/events?lastEventId=1.3"),
        ("POST", f"{job}/cancel"),
        ("POST", f"{job}/replay"),
        ("POST", f"{job}/stream-token"),
        ("DELETE", job),
        ("GET", f"{job}/deliveries"),
    ]


async def test_anothers_job_is_answered_as_one_that_is_not_there(callers: Callers) -> None:
    """Byte for byte: while it runs and when it has ended, also for the tenant that may start jobs through Temporal."""
    slow, done = await begun(callers.acme, SLOW), await ended(callers.acme)
    async with callers.acme.stream("GET", f"/api/jobs/{slow}/events") as stream:
        assert "event: chunk" in await up_to("chunk", stream)
    for client in (callers.other, callers.default):
        for job_id in (slow, done):
            for (method, path), (_, nowhere) in zip(routes(job_id), routes("job_nobody"), strict=True):
                async with asyncio.timeout(PATIENCE):
                    theirs = await client.request(method, path)
                    nobodys = await client.request(method, nowhere)
                assert (theirs.status_code, theirs.content) == (nobodys.status_code, nobodys.content), (method, path)
                assert theirs.status_code in (404, 405), (method, path)
    assert (await callers.acme.get(f"/api/jobs/{slow}")).json()["status"] == "in_progress", "nobody cancelled it"
    assert (await callers.acme.get(f"/api/jobs/{done}")).json()["content"]
    assert (await callers.acme.post(f"/api/jobs/{slow}/cancel")).status_code == 202


async def test_lists_have_ones_own_jobs(callers: Callers) -> None:
    """Also from a cursor of another tenant's list, which tells a place in time and no more."""
    mine = {await begun(callers.acme, metadata={"order": "42"}) for _ in range(3)}
    theirs = {await begun(callers.other, metadata={"order": "42"}) for _ in range(2)}
    page = (await callers.other.get("/api/jobs", params={"limit": 1})).json()
    for client, own, others in ((callers.acme, mine, theirs), (callers.other, theirs, mine)):
        for params in ({}, {"metadata.order": "42"}, {"cursor": page["nextCursor"]}):
            listed = {job["jobId"] for job in (await client.get("/api/jobs", params=params)).json()["jobs"]}
            assert not listed & others
            assert "cursor" in params or own <= listed
        async with client.stream("GET", "/api/feed") as feed:
            first = await up_to("hello", feed)
        assert all(job_id in first for job_id in own)
        assert not any(job_id in first for job_id in others)


async def test_an_idempotency_key_is_its_tenants(callers: Callers) -> None:
    key = {"Idempotency-Key": "order-42"}
    answers = [await c.post("/api/jobs", json=make_body(), headers=key) for c in (callers.acme, callers.other)]
    assert len({answer.json()["jobId"] for answer in answers}) == 2
    assert not any("idempotency-replayed" in answer.headers for answer in answers)
    again = await callers.acme.post("/api/jobs", json=make_body(), headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["jobId"] == answers[0].json()["jobId"]


async def test_a_job_id_is_taken_by_whomever(callers: Callers) -> None:
    """That it is taken is all that is said; neither the body nor the idempotency key of the other one matters."""
    key = {"Idempotency-Key": "the same"}
    await callers.acme.post("/api/jobs", json=make_body(jobId="mine-1"), headers=key)
    for body, headers in ((make_body(jobId="mine-1"), key), (make_body("Other", jobId="mine-1"), {})):
        answer = await callers.other.post("/api/jobs", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "job_id_taken")


async def test_replays_and_deliveries_are_told_to_their_owner_only(callers: Callers) -> None:
    """Nobody can add to them from outside: another tenant's replay of a job is refused."""
    job_id = await ended(callers.acme)
    replayed = await callers.acme.post(f"/api/jobs/{job_id}/replay")
    assert (replayed.status_code, replayed.json()["replayOf"]) == (202, job_id)
    assert (await callers.other.post(f"/api/jobs/{job_id}/replay")).status_code == 404
    assert (await callers.acme.get(f"/api/jobs/{job_id}")).json()["replays"] == [replayed.json()["jobId"]]


async def test_storage_tells_tenants_apart_where_ids_and_keys_meet(store: JobStore) -> None:
    """A row of one's own by the key, another tenant's by the id: the key decides; without one, the id is taken."""
    job_id = (await store.acceptance.accept(make_job(tenant="acme", idempotency_key="k"))).job_id
    with pytest.raises(JobIdConflict):
        await store.acceptance.accept(make_job(tenant="other", job_id=job_id, idempotency_key="k"))
    own = await store.acceptance.accept(make_job(tenant="other", idempotency_key="k"))
    again = await store.acceptance.accept(make_job(tenant="other", job_id=job_id, idempotency_key="k"))
    assert (again.job_id, again.created) == (own.job_id, False)


async def test_schedules_of_others_are_not_there(callers: Callers) -> None:
    """Each has its own under the same id."""
    body = {"id": "daily", "cron": "0 0 29 2 *", "request": make_body("Hello")}
    assert (await callers.acme.post("/api/schedules", json=body)).status_code == 201
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/trigger")):
        assert (await callers.other.request(method, f"/api/schedules/daily{path}")).status_code == 404
    assert (await callers.other.get("/api/schedules")).json()["schedules"] == []
    assert (await callers.other.post("/api/schedules", json=body)).status_code == 201
    assert (await callers.other.delete("/api/schedules/daily")).status_code == 204
    assert (await callers.acme.get("/api/schedules/daily")).status_code == 200
    assert (await callers.acme.delete("/api/schedules/daily")).status_code == 204
