"""The feed of all jobs over HTTP: pages, long polling, streams, and going on where one was."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.event_reader import EventReader, reading
from tests.support.factories import make_body
from tests.support.gateway import Gateway, alone, gateway

PROMPT_SECONDS = 3.0
"""An event is in the feed within this time; typically within half a second, but tests run on busy machines."""


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Gateway]]:
    """Two gateways on one database, without Temporal: jobs are created there, and cancelled."""
    with alone(tmp_path_factory.mktemp("events")) as built:
        yield gateway(built, "one"), gateway(built, "two")


async def created(door: Gateway, **fields: Any) -> str:
    async with door.client() as client:
        answer = await client.post("/api/jobs", json=make_body(**fields))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["jobId"])


async def page(door: Gateway, **query: Any) -> dict[str, Any]:
    async with door.client() as client:
        answer = await client.get("/api/events", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


async def refused(door: Gateway, **query: Any) -> tuple[int, str]:
    async with door.client() as client:
        answer = await client.get("/api/events", params=query)
        return answer.status_code, answer.json()["code"]


async def now(door: Gateway) -> str:
    """The place of the feed's newest event, once everything that has happened is in it."""
    marker = await created(door)
    place = "0"
    while True:
        found = await page(door, after=place, wait=10)
        place = str(found["next"])
        if any(event["jobId"] == marker for event in found["events"]):
            return place


async def test_a_long_poll_waits_for_the_next_event(doors: tuple[Gateway, Gateway]) -> None:
    one, two = doors
    place = await now(one)
    waiting = asyncio.create_task(page(two, after=place, wait=30))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    job_id = await created(one, metadata={"order": "42"}, id="req-1")
    found = await waiting
    assert time.monotonic() - began < PROMPT_SECONDS
    (event,) = found["events"]
    assert (event["event"], event["jobId"], event["status"]) == ("chat.created", job_id, "queued")
    assert (event["requestId"], event["metadata"], event["id"]) == ("req-1", {"order": "42"}, found["next"])
    assert "Hello" not in json.dumps(found)


async def test_without_an_id_the_feed_begins_now(doors: tuple[Gateway, Gateway]) -> None:
    one, two = doors
    place = await now(one)
    assert await page(two) == {"events": [], "next": place}
    began = time.monotonic()
    assert await page(two, wait=1) == {"events": [], "next": place}
    assert time.monotonic() - began >= 1


async def test_pages_go_on_where_the_one_before_ended(doors: tuple[Gateway, Gateway]) -> None:
    one, two = doors
    place = await now(one)
    made = [await created(one) for _ in range(5)]
    await now(one)
    seen: list[str] = []
    while len(seen) < 6:
        found = await page(two, after=place, limit=2)
        assert len(found["events"]) <= 2
        seen += [event["jobId"] for event in found["events"]]
        place = found["next"]
    assert seen[:5] == made
    oldest = await page(one, after=0, limit=1)
    assert oldest["events"][0]["id"] == "1"


async def test_types(doors: tuple[Gateway, Gateway]) -> None:
    one, _ = doors
    place = await now(one)
    job_id = await created(one)
    async with one.client() as client:
        assert (await client.post(f"/api/jobs/{job_id}/cancel")).status_code == 202
    found = await page(one, after=place, types="chat.cancelled,chat.failed", wait=30)
    assert [(event["event"], event["jobId"]) for event in found["events"]] == [("chat.cancelled", job_id)]


@pytest.mark.parametrize("after", ["x", "-1", "01", "1.5", "9" * 30, "999999999"])
async def test_what_is_no_id_of_the_feed(doors: tuple[Gateway, Gateway], after: str) -> None:
    assert await refused(doors[0], after=after) == (400, "bad_event_id")


@pytest.mark.parametrize("wrong", [{"types": "chat.done"}, {"types": ""}, {"wait": 61}, {"limit": 0}, {"since": 1}])
async def test_other_wrong_parameters(doors: tuple[Gateway, Gateway], wrong: dict[str, Any]) -> None:
    assert await refused(doors[0], **wrong) == (422, "validation_failed")


async def next_event(stream: EventReader) -> tuple[str, str, dict[str, Any]]:
    found = await stream.next()
    assert found is not None
    return found.event, found.id, json.loads(found.data)


async def test_a_stream_goes_on_where_it_was_cut(doors: tuple[Gateway, Gateway]) -> None:
    """Also if it was cut before its first event: ``ready`` has the place."""
    one, two = doors
    place = await now(one)
    async with reading(f"{two.url}/api/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert await next_event(stream) == ("ready", place, {"after": place})
        assert stream.raw.startswith(b"retry: 1000\n")
        stream.cut()
    first, second = await created(one), await created(one)
    async with reading(f"{one.url}/api/events?after=0", last_event_id=place) as stream:
        await next_event(stream)
        name, last, event = await next_event(stream)
        assert (name, event["id"], event["jobId"]) == ("chat.created", last, first)
        stream.cut()
    async with reading(f"{two.url}/api/events?lastEventId={last}") as stream:
        assert (await next_event(stream))[1] == last
        assert (await next_event(stream))[2]["jobId"] == second
        third = await created(two)
        assert (await next_event(stream))[2]["jobId"] == third


async def test_a_stream_from_a_wrong_id_is_refused(doors: tuple[Gateway, Gateway]) -> None:
    async with doors[0].client() as client:
        answer = await client.get("/api/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "12345678"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_event_id")


@pytest.mark.long
async def test_a_gateway_that_numbers_events_is_killed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """kill -9 of one gateway after the other, while jobs are made: the other one goes on, nothing is missing."""
    with alone(tmp_path_factory.mktemp("killed")) as built:
        stays, made = gateway(built, "stays"), []
        for round in range(4):
            dies = gateway(built, f"dies-{round}")
            made += [await created(stays) for _ in range(10)]
            dies.process.kill()
        seen: list[str] = []
        place = "0"
        async with asyncio.timeout(60):
            while len(seen) < len(made):
                found = await page(stays, after=place, wait=10)
                seen += [event["jobId"] for event in found["events"]]
                place = found["next"]
        assert seen == made
        assert httpx2.get(f"{stays.url}/healthz", trust_env=False).status_code == 200
