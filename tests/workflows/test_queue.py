"""Waiting jobs show where they stand: on GET, in the event stream, to the client, on a screen."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from chatjobs.client import AsyncChatJobs
from chatjobs.contracts import ChunkEvent, CompleteEvent, QueuedEvent, QueuePlace, StartEvent, StreamEvent
from chatjobs.sse import ServerEvent
from domain.timings import Timings
from domain.values import Claimant
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.rate_limits.limiter import ASKED_AT_ONCE, Limiter
from storage.rate_limits.queueing import QueueReader
from tests.cli.test_starter import screen
from tests.support.event_reader import reading
from tests.support.factories import accepted, expected_start, failing
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

PATIENCE = 30.0


# ------------------------------------------------------------------------------------- from place to onlooker


@pytest.fixture
def limiter(database: Database) -> Limiter:
    return Limiter(database, per_second=10)


def asker(job_id: str, since: int = 0) -> Claimant:
    return Claimant(job_id, "default", 3, since)


class Onlooker:
    """What it was told, and a moment when it was."""

    def __init__(self) -> None:
        self.places: list[QueuePlace] = []
        self._told = asyncio.Event()

    def tell(self, place: QueuePlace) -> None:
        self.places.append(place)
        self._told.set()

    async def until(self, position: int, *, after: datetime | None = None) -> QueuePlace:
        """The first news of such a place, with a start later than ``after``; what was told before it is history."""
        async with asyncio.timeout(PATIENCE):
            while not self.places or not _is(self.places[-1], position, after):
                self._told.clear()
                await self._told.wait()
        return self.places[-1]


def _is(place: QueuePlace, position: int, after: datetime | None) -> bool:
    return place.position == position and (after is None or expected_start(place) > after)


async def test_a_job_that_waits_has_its_place(database: Database, limiter: Limiter) -> None:
    """One that does not wait, or has ended, has none; neither is there a word of it in the JSON then."""
    store = JobStore(database, limiter=limiter)
    ids = [await accepted(store) for _ in range(3)]
    await limiter.throttle("a", 60)
    for number, job_id in enumerate(ids[:2]):
        await limiter.reserve("a", asker(job_id, since=number))
    first, second, other = [await store.queries.get(job_id) for job_id in ids]
    assert first.queue is not None
    assert second.queue is not None
    assert [first.queue.position, second.queue.position] == [1, 2]
    in_a_minute = datetime.now(UTC) + timedelta(seconds=60)
    assert abs(expected_start(first.queue) - in_a_minute) < timedelta(seconds=10)
    assert expected_start(first.queue) < expected_start(second.queue)
    assert "queue" not in other.model_dump(mode="json", by_alias=True)
    await store.seals.seal(failing(ids[0]), run_id="run-1")
    assert (await store.queries.get(ids[0])).queue is None


async def test_places_of_many_in_several_lanes(limiter: Limiter) -> None:
    """More than one question takes."""
    await limiter.throttle("a", 60)
    await limiter.throttle("b", 60)
    for number in range(6):
        await limiter.reserve("ab"[number % 2], asker(f"job-{number}", since=number))
    nobody = [f"nobody-{number}" for number in range(ASKED_AT_ONCE)]
    places = await limiter.queue_places({*nobody, *(f"job-{number}" for number in range(6))})
    assert {job_id: place.position for job_id, place in sorted(places.items())} == {
        f"job-{number}": number // 2 + 1 for number in range(6)
    }


async def test_onlookers_hear_of_changes_only(limiter: Limiter) -> None:
    """At once, then when others leave the queue, and when the lane is paused for longer."""
    await limiter.throttle("a", 60)
    for number in range(3):
        await limiter.reserve("a", asker(f"job-{number}", since=number))
    last, other = Onlooker(), Onlooker()
    async with QueueReader(limiter, timings=Timings(queue_look_seconds=0.05)).running() as queue:
        with queue.watched("job-2", last.tell), queue.watched("elsewhere", other.tell):
            before = await last.until(3)
            await limiter.leave("job-0")
            await last.until(2)
            await limiter.throttle("a", 120)
            await last.until(2, after=expected_start(before) + timedelta(seconds=30))
            await limiter.leave("job-1")
            await last.until(1)
    assert [place.position for place in last.places] == [3, 2, 2, 1]
    assert other.places == []


# -------------------------------------------------------------------------------------------- the whole service


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_CONCURRENCY": "20", "MISTRAL_REQUESTS_PER_SECOND": "0.5"}
    with stack(tmp_path_factory.mktemp("queue"), env=env) as started:
        yield started, gateway(started)


@pytest.fixture
def place(running: tuple[Stack, Gateway]) -> Iterator[Stack]:
    yield running[0]
    sys.stdout.write(running[0].news())


@pytest.fixture
def door(running: tuple[Stack, Gateway], place: Stack) -> Gateway:
    return running[1]


@pytest.fixture
async def http(door: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with door.client() as opened:
        yield opened


async def post(http: httpx2.AsyncClient, **fields: Any) -> str:
    body = {"messages": [{"role": "user", "content": prompt(text="Some words.")}], **fields}
    answer = await http.post("/api/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


def places_in(events: Sequence[ServerEvent]) -> list[QueuePlace]:
    return [QueuePlace.model_validate_json(event.data) for event in events if event.event == "queued"]


async def test_a_queue_is_seen_to_move(door: Gateway, http: httpx2.AsyncClient) -> None:
    """One call in two seconds: the last of four waits for the others, and everybody who looks on is told."""
    ids = [await post(http) for _ in range(4)]
    async with AsyncChatJobs(door.url, transport=httpx2.AsyncHTTPTransport()) as jobs:
        streams = [asyncio.create_task(taken(jobs, job_id)) for job_id in ids]
        seen = asyncio.create_task(seen_on_get(http, ids))
        async with reading(f"{door.url}/api/jobs/{ids[-1]}/events") as reader:
            events = await reader.all()
        told = await asyncio.gather(*streams)
        on_get = await seen
    places = places_in(events)
    positions = [place.position for place in places]
    assert max(positions) > 1
    assert positions[-1] == 1, "others may come into the queue late, and before it; in the end it is the next"
    names = [event.event for event in events]
    assert list(dict.fromkeys(names)) == ["queued", "start", "chunk", "complete"]
    assert names[: len(places)] == ["queued"] * len(places), "whoever has started waits no more"
    assert {event.id for event in events if event.event == "queued"} == {""}, "no id: there is nothing to resume"
    assert all(expected_start(place) > datetime.now(UTC) - timedelta(minutes=1) for place in places)
    assert on_get, "GET tells it as well"
    for one in told:
        kinds = dict.fromkeys(type(event) for event in one if not isinstance(event, QueuedEvent))
        assert list(kinds) == [StartEvent, ChunkEvent, CompleteEvent]
    assert any(isinstance(event, QueuedEvent) for event in told[-1])


async def taken(jobs: AsyncChatJobs, job_id: str) -> list[StreamEvent]:
    """All events of a job by the client; what is queued moves no place."""
    found: list[StreamEvent] = []
    stream = jobs.stream(job_id)
    async for event in stream:
        found.append(event)
        if isinstance(event, QueuedEvent) and len(found) == 1:
            assert stream.last_event_id == ""
    assert stream.last_event_id.endswith(".end")
    return found


async def seen_on_get(http: httpx2.AsyncClient, ids: Sequence[str], status: str = "queued") -> QueuePlace:
    """A place as GET shows it, from whichever of the jobs waits in that status."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for job_id in reversed(ids):
                job = (await http.get(f"/api/jobs/{job_id}")).json()
                if "queue" in job and job["status"] == status:
                    return QueuePlace.model_validate_json(json.dumps(job["queue"]))


async def test_a_refusal_shows_as_a_queue(place: Stack, door: Gateway, http: httpx2.AsyncClient) -> None:
    """A 429 with Retry-After pauses the lane; the job says so although it has begun, and then goes on."""
    words = prompt("paused", text="Some words.", faults=[{"kind": 429, "retry_after": "3"}])
    job_id = await post(http, messages=[{"role": "user", "content": words}])
    async with reading(f"{door.url}/api/jobs/{job_id}/events") as reader:
        seen = await seen_on_get(http, [job_id], status="in_progress")
        events = await reader.all()
        raw = reader.raw
    assert seen.position == 1
    assert b"event: queued\ndata: " in raw
    names = [event.event for event in events]
    assert names.index("queued") < names.index("chunk")
    assert names[-1] == "complete"
    (first, *_) = places_in(events)
    assert first.position == 1
    assert place.simulator.requests("paused")[0]["status"] == 429
    assert "queue" not in (await http.get(f"/api/jobs/{job_id}")).json()


async def test_a_screen_counts_down(place: Stack, http: httpx2.AsyncClient) -> None:
    """`starter.py watch` of the last of five."""
    for _ in range(4):
        await post(http)
    last = await post(http)
    with screen(place, "watch", last) as shown:
        await asyncio.to_thread(shown.wait_for, r"queued · number \d+ in the queue.*, expected in \d+ s")
        shown.press(b"\x03")
        assert await asyncio.to_thread(shown.end) == 130, "Ctrl-C: nothing ended"
