"""A batch keeps to its lane's limits and pauses, and starves no single job: two worker processes, one simulator."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

from chatjobs.contracts import JobStatus
from storage.rate_limits.limiter import Limiter
from tests.support.factories import make_body
from tests.support.gateway import Gateway, gateway
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack
from tests.workflows.test_at_once import calls, most_at_once

AT_ONCE = 4
SHORT: dict[str, Any] = {"tokens": 10, "tokens_per_second": 50}
QUEUED_AT_MOST = 2.0
"""Seconds that a single job waits behind a batch."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_CONCURRENCY": "10"}
    with stack(tmp_path_factory.mktemp("batch-pace"), workers=2, env=env) as built:
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


async def posted(http: httpx2.AsyncClient, text: str, count: int, **fields: Any) -> str:
    """The URL of a batch."""
    items = [{"custom_id": f"{number}", "body": make_body(text, **fields)} for number in range(count)]
    answer = await http.post("/api/batches", json={"items": items})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["statusUrl"])


async def ended(http: httpx2.AsyncClient, url: str) -> list[str]:
    """The names of the items in the output, once the batch has completed."""
    async with asyncio.timeout(90):
        while (found := (await http.get(url)).json())["status"] != "completed":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert found["counts"]["completed"] == found["counts"]["total"], found
    return [json.loads(line)["custom_id"] for line in (await http.get(f"{url}/output")).text.splitlines()]


async def lane_of(live: Service, model: str) -> tuple[Limiter, str]:
    """A new lane, and its name; a job makes it."""
    limiter = Limiter(live.database, per_second=1_000)
    before = {lane.name for lane in await limiter.lanes()}
    await live.ended(await live.submit(prompt(tokens=2), model=model))
    (name,) = {lane.name for lane in await limiter.lanes()} - before
    return limiter, name


async def test_a_batch_keeps_to_a_limit_of_calls_at_once(live: Service, http: httpx2.AsyncClient) -> None:
    """And a single job, which goes first, does not wait for more than the end of a call."""
    model = "ministral-8b-latest"
    limiter, name = await lane_of(live, model)
    await limiter.set_at_once(name, AT_ONCE)
    text = prompt("item", **SHORT)
    batch = await posted(http, text, 60, model=model)
    await live.stack.simulator.wait(text, requests=8, tokens=1)
    waits = []
    for _ in range(3):
        job = await live.ended(await live.submit(prompt("single", tokens=2), model=model))
        assert job.status is JobStatus.COMPLETED
        assert job.started_at is not None
        waits.append((job.started_at - job.created_at).total_seconds())
    assert max(waits) <= QUEUED_AT_MOST, waits
    assert sorted(await ended(http, batch), key=int) == [str(number) for number in range(60)]
    found = calls(live, text)
    assert (len(found), most_at_once(found) <= AT_ONCE) == (60, True)


async def test_a_pause_holds_a_batch_and_loses_nothing_of_it(live: Service, http: httpx2.AsyncClient) -> None:
    model = "ministral-3b-latest"
    limiter, name = await lane_of(live, model)
    await limiter.set_limit(name, 20)
    text = prompt("paused", **SHORT)
    batch = await posted(http, text, 80, model=model)
    await live.stack.simulator.wait(text, requests=10, tokens=1)
    pause = (await http.post("/api/pauses", json={"lane": name})).json()
    since = time.time()
    await asyncio.sleep(QUEUED_AT_MOST + 1)
    early = [entry["time"] for entry in calls(live, text)]
    assert len(early) < 80
    assert max(early) - since < QUEUED_AT_MOST
    await http.delete(f"/api/pauses/{pause['pauseId']}")
    resumed = time.time()
    assert sorted(await ended(http, batch), key=int) == [str(number) for number in range(80)]
    later = [entry["time"] for entry in calls(live, text)][len(early) :]
    assert len(early) + len(later) == 80
    assert min(later) - resumed < QUEUED_AT_MOST


async def test_an_item_begins_with_its_batch(http: httpx2.AsyncClient) -> None:
    items = [{"custom_id": "a", "body": make_body(startAt="2026-12-31T00:00:00Z")}]
    answer = await http.post("/api/batches", json={"items": items})
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/items/0/body/startAt"]
