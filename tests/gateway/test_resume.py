"""Jobs that go on after their end, by HTTP, the client and the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

import starter
from chatjobs.client import AsyncChatJobs
from chatjobs.contracts import Job, JobStatus
from chatjobs.errors import ContentDeleted, JobFinished, JobNotFound, JobRunning, NothingToResume
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

ONCE = {"attempts": 1}
"""The ``retry`` of a job that its first failure ends."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    with stack(tmp_path_factory.mktemp("resume"), env={"CHATJOBS_PORT": "0"}) as started:
        yield started, gateway(started)


@pytest.fixture(autouse=True)
def _logs(running: tuple[Stack, Gateway]) -> Iterator[None]:
    yield
    sys.stdout.write(running[0].news())


@pytest.fixture
async def jobs(running: tuple[Stack, Gateway]) -> AsyncIterator[AsyncChatJobs]:
    async with AsyncChatJobs(running[1].url) as client:
        yield client


@pytest.fixture
async def http(running: tuple[Stack, Gateway]) -> AsyncIterator[httpx2.AsyncClient]:
    async with running[1].client() as client:
        yield client


async def broken_off(jobs: AsyncChatJobs) -> Job:
    """A job that has failed within its answer; the next call brings the rest."""
    job = await jobs.ask(prompt(tokens=20, faults=[{"kind": "cut", "after": 5}]), retry=ONCE)
    assert (job.status, bool(job.content)) == (JobStatus.FAILED, True)
    return job


async def test_the_same_job_goes_on(jobs: AsyncChatJobs, http: httpx2.AsyncClient) -> None:
    """A reader that holds the id of its end gets the rest, and nothing twice."""
    before = await broken_off(jobs)
    end = f"{before.epoch}.{before.position}.end"
    answer = await http.post(f"/api/jobs/{before.job_id}/resume")
    accepted = answer.json()
    assert (answer.status_code, accepted["jobId"], accepted["status"]) == (202, before.job_id, "queued")
    assert answer.headers["location"] == accepted["statusUrl"] == f"/api/jobs/{before.job_id}"
    events = [event async for event in jobs.stream(before.job_id, last_event_id=end)]
    after = await jobs.get(before.job_id)
    rest = "".join(event.content for event in events if event.type == "chunk")
    assert (after.status, after.error, f"{before.content}{rest}") == (JobStatus.COMPLETED, None, after.content)
    assert [attempt.number for attempt in after.attempts] == [1, 2]


async def test_what_cannot_be_resumed_says_why(jobs: AsyncChatJobs, http: httpx2.AsyncClient) -> None:
    whole = await jobs.ask(prompt(tokens=3))
    silent = await jobs.ask(prompt(faults=[{"kind": 400}]))
    gone = await broken_off(jobs)
    await jobs.delete(gone.job_id)
    open_still = await jobs.submit(prompt(tokens=200, tokens_per_second=50))
    for job_id, status, code, error in (
        (whole.job_id, 409, "job_finished", JobFinished),
        (silent.job_id, 409, "nothing_to_resume", NothingToResume),
        (open_still.job_id, 409, "job_running", JobRunning),
        (gone.job_id, 410, "content_deleted", ContentDeleted),
        ("job_none", 404, "job_not_found", JobNotFound),
    ):
        answer = await http.post(f"/api/jobs/{job_id}/resume")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        with pytest.raises(error):
            await jobs.resume(job_id)
    advice = (await http.post(f"/api/jobs/{silent.job_id}/resume")).json()["detail"]
    assert "replay it" in advice
    await jobs.cancel(open_still.job_id)


async def test_the_command_line_resumes_and_waits(
    running: tuple[Stack, Gateway],
    jobs: AsyncChatJobs,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = await broken_off(jobs)
    for name, value in running[0].env.items():
        monkeypatch.setenv(name, value)
    code = await asyncio.to_thread(starter.main, ["resume", before.job_id, "--wait", "--json"])
    job = json.loads(capfd.readouterr().out)
    assert (code, job["jobId"], job["status"]) == (0, before.job_id, "completed")
    assert job["content"].startswith(before.content)
    assert await asyncio.to_thread(starter.main, ["resume", before.job_id]) == 2
    assert "replay it" in capfd.readouterr().err
