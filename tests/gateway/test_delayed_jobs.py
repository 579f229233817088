"""Jobs with startAt: not before that time, whatever dies meanwhile, and never once they are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import CancelledError

from chatjobs.contracts import Job, JobStatus, rfc3339
from domain.names import CHAT_JOB, JOBS_QUEUE, new_job_id
from domain.timings import Timings
from tests.support.factories import make_body
from tests.support.gateway import Gateway, gateway
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long

LATE = timedelta(seconds=2)
"""The most that a start may be late on a busy machine; the sweeper looks four times a second."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("delayed"), env={"CHATJOBS_PORT": "0"}) as built:
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


def after(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def posted(http: httpx2.AsyncClient, text: str, start_at: datetime, **fields: Any) -> str:
    """The id of an accepted job."""
    answer = await http.post("/api/jobs", json=make_body(text, startAt=rfc3339(start_at), **fields))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


async def shown(http: httpx2.AsyncClient, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get(f"/api/jobs/{job_id}")).json()
    return found


def called_at(place: Stack, text: str) -> list[datetime]:
    return [datetime.fromtimestamp(entry["time"], UTC) for entry in place.simulator.requests(text)]


def assert_punctual(job: Job, calls: list[datetime], start_at: datetime, late: timedelta = LATE) -> None:
    assert job.status is JobStatus.COMPLETED
    (call,) = calls
    assert start_at <= call < start_at + late


async def test_a_delayed_job_waits_as_queued_and_starts_at_its_time(
    machine: Stack, live: Service, http: httpx2.AsyncClient
) -> None:
    """Two seconds of queue time count from then: the job would be over before it begins."""
    text, start_at = prompt(tokens=3), after(3)
    job_id = await posted(http, text, start_at, limits={"queueSeconds": 2}, model="ministral-3b-latest")
    job = await shown(http, job_id)
    assert (job["status"], job["startAt"], job["startedAt"]) == ("queued", rfc3339(start_at), None)
    (listed,) = (await http.get("/api/jobs", params={"model": "ministral-3b-latest"})).json()["jobs"]
    assert (listed["status"], listed["startAt"]) == ("queued", rfc3339(start_at))
    assert not await live.intake.runs(job_id), "nothing of it is in Temporal yet"
    assert_punctual(await live.ended(job_id), called_at(machine, text), start_at)


async def test_a_time_that_is_over_is_at_once(live: Service, http: httpx2.AsyncClient) -> None:
    began = datetime.now(UTC)
    job = await live.ended(await posted(http, prompt(tokens=3), began - timedelta(days=400)))
    assert job.status is JobStatus.COMPLETED
    assert job.started_at is not None
    assert job.started_at - began < LATE


@pytest.mark.parametrize(
    "start_at", ["2026-01-01", "tomorrow", 1_800_000_000, "1800000000", "2027-01-31T12:00:00", "2127-01-31T12:00:00Z"]
)
async def test_what_is_no_time_or_too_far_ahead_is_refused(http: httpx2.AsyncClient, start_at: Any) -> None:
    answer = await http.post("/api/jobs", json=make_body(startAt=start_at))
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/startAt"]


async def test_another_time_is_another_request(http: httpx2.AsyncClient) -> None:
    headers, times = {"Idempotency-Key": "delayed"}, [rfc3339(after(600 + number)) for number in range(2)]
    answers = [
        await http.post("/api/jobs", json=make_body(startAt=time), headers=headers) for time in (*times, times[0])
    ]
    assert [one.status_code for one in answers] == [202, 422, 202]
    assert answers[0].json()["jobId"] == answers[2].json()["jobId"]
    await http.post(answers[0].json()["cancelUrl"])


async def test_a_replay_starts_at_once_unless_it_has_a_time_of_its_own(live: Service, http: httpx2.AsyncClient) -> None:
    job_id = await posted(http, prompt(tokens=3), after(600))
    repeated = (await http.post(f"/api/jobs/{job_id}/replay", json={})).json()["jobId"]
    job = await live.ended(repeated)
    assert (job.status, job.start_at) == (JobStatus.COMPLETED, None)
    later = rfc3339(after(700))
    again = (await http.post(f"/api/jobs/{job_id}/replay", json={"startAt": later})).json()["jobId"]
    assert (await shown(http, again))["startAt"] == later
    for one in (job_id, again):
        assert (await http.post(f"/api/jobs/{one}/cancel")).json()["status"] == "cancelled"


async def test_a_cancelled_one_ends_at_once_without_temporal_and_never_calls(
    machine: Stack, live: Service, http: httpx2.AsyncClient
) -> None:
    """Also one that was started straight through Temporal: its row ends now, its run once Temporal is back."""
    stored, direct, start_at = prompt(), prompt(), after(4)
    job_id = await posted(http, stored, start_at)
    run = await started_directly(live, direct, start_at)
    await row_of(live, run)
    await asyncio.to_thread(machine.temporal.kill)
    for one in (job_id, run):
        answer = await http.post(f"/api/jobs/{one}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
        assert (await shown(http, one))["completedAt"] is not None
    machine.temporal.start()
    await asyncio.sleep(max(0.0, (start_at + LATE - datetime.now(UTC)).total_seconds()))
    assert [called_at(machine, text) for text in (stored, direct)] == [[], []]


async def started_directly(live: Service, text: str, start_at: datetime) -> str:
    """The id of a job that was started straight through Temporal."""
    job_id, request = new_job_id(), make_body(text, startAt=rfc3339(start_at))
    await live.client.start_workflow(CHAT_JOB, {"request": request}, id=job_id, task_queue=JOBS_QUEUE)
    return job_id


async def row_of(live: Service, job_id: str) -> None:
    async with asyncio.timeout(20):
        while not await live.jobs.queries.exists(job_id):  # noqa: ASYNC110 - another process inserts it
            await asyncio.sleep(0.02)


async def test_one_that_was_started_directly_waits_and_answers_its_caller(machine: Stack, live: Service) -> None:
    text, start_at = prompt(tokens=3), after(2)
    job_id = await started_directly(live, text, start_at)
    result = await asyncio.wait_for(live.run(job_id).result(), 30)
    assert result["startAt"] == rfc3339(start_at)
    assert_punctual(await live.ended(job_id), called_at(machine, text), start_at)


async def test_the_run_of_one_that_is_cancelled_ends_at_once(live: Service, http: httpx2.AsyncClient) -> None:
    job_id = await started_directly(live, prompt(), after(600))
    await row_of(live, job_id)
    assert (await http.post(f"/api/jobs/{job_id}/cancel")).json()["status"] == "cancelled"
    with pytest.raises(WorkflowFailureError) as ended:
        await asyncio.wait_for(live.run(job_id).result(), 10)
    assert isinstance(ended.value.cause, CancelledError)


async def test_everything_dies_and_temporal_forgets(tmp_path: Path) -> None:
    """Storage is the promise: a new Temporal, a new worker and a new gateway start what is due, each once."""
    with stack(tmp_path, env={"CHATJOBS_PORT": "0"}) as place:
        door, texts, start_at = gateway(place), [prompt(tokens=3) for _ in range(3)], after(8)
        async with door.client() as http:
            ids = [await posted(http, text, start_at) for text in texts[:2]]
        async with service(place) as live:
            ids.append(await started_directly(live, texts[2], start_at))
            await row_of(live, ids[2])
        for process in (*place.workers, door.process, place.temporal):
            process.kill()
        for file in place.directory.glob("temporal.db*"):
            file.unlink()
        place.temporal.start()
        for process in (*place.workers, door.process):
            process.start()
        assert datetime.now(UTC) < start_at, "this machine is too slow for the test"
        async with service(place) as live:
            lost = timedelta(seconds=Timings().silent_after_seconds)  # until a sweeper asks for its run
            for job_id, text, late in zip(ids, texts, (LATE, LATE, lost + LATE), strict=True):
                assert_punctual(await live.ended(job_id), called_at(place, text), start_at, late)


async def test_its_time_in_the_queue_ends_without_worker_and_temporal(tmp_path: Path) -> None:
    with stack(tmp_path, workers=0, env={"CHATJOBS_PORT": "0"}) as place:
        place.temporal.kill()
        async with gateway(place).client() as http:
            start_at = after(1.5)
            job_id = await posted(http, prompt(), start_at, limits={"queueSeconds": 1})
            async with asyncio.timeout(20):
                while not (job := await shown(http, job_id))["completedAt"]:  # noqa: ASYNC110 - another process ends it
                    await asyncio.sleep(0.05)
    assert (job["status"], job["error"]["code"], job["attempts"]) == ("failed", "queue_timeout", [])
    end = start_at + timedelta(seconds=1)
    assert end <= datetime.fromisoformat(job["completedAt"]) < end + LATE
