"""Conversations straight through Temporal: the previous job is found when the workflow accepts the request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.result import NOT_FOLLOWED, AcceptOrder, ResultActivities
from chatjobs.contracts import JobStatus
from domain.names import new_job_id
from domain.values import RunRef
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.factories import accepted, claimed, ending, finished, make_body, make_job, make_store, wrote
from tests.support.fakes import Gate, ScriptedModel, text
from tests.support.house import House, house
from tests.support.temporal_server import TemporalServer


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite) as running:
        yield running


def order(job_id: str, previous: str) -> AcceptOrder:
    return AcceptOrder(job_id=job_id, start={"request": make_body("And?", previousJobId=previous)})


async def test_a_direct_job_goes_on_with_a_conversation(temporal: TemporalServer, here: House) -> None:
    """From the command line, after a job that was stored and one that was started directly itself."""
    previous = await here.submit("One")
    await here.ended(previous)
    for number, prompt in enumerate(("Two", "Three"), 1):
        job_id = new_job_id()
        here.started.append(job_id)
        what = ("--type", "ChatJob", "--task-queue", "chatjobs", "--workflow-id", job_id)
        asked = json.dumps({"request": make_body(prompt, previousJobId=previous)})
        await temporal.cli("workflow", "start", *what, "--input", asked)
        shown = json.loads(await temporal.cli("workflow", "result", "--workflow-id", job_id, "-o", "json"))
        thread = (await here.jobs.queries.get(previous)).thread
        assert (shown["result"]["previousJobId"], shown["result"]["thread"]) == (previous, thread)
        assert [one.role for one in here.model.requests[-1].messages] == ["user", "assistant"] * number + ["user"]
        previous = job_id
    said = [one.content for one in here.model.requests[-1].messages]
    assert said == ["One", "Hello there", "Two", "Hello there", "Three"]


async def refused(here: House, previous: str, code: str, reason: str) -> None:
    """A direct follow-up fails at once, can be found, and calls no model."""
    calls = here.model.calls
    run = await here.direct({"request": make_body(previousJobId=previous)})
    failure = await here.failure(run.id)
    assert (failure.type, reason in failure.message) == (code, True), failure
    job = await here.jobs.queries.get(run.id)
    assert (job.status, job.error and job.error.code) == (JobStatus.FAILED, code)
    assert here.model.calls == calls


async def test_a_previous_job_that_cannot_be_followed(client: Client, sqlite: Database) -> None:
    """Running, another tenant's, of nobody, deleted: the codes are those of POST /api/jobs."""
    gate = Gate()
    async with house(client, sqlite, model=ScriptedModel([*text("Hel"), gate, *text("lo")])) as here:
        running = await here.submit()
        await gate.reached()
        await refused(here, running, "job_running", "previousJobId has not ended")
        theirs = await here.jobs.acceptance.accept(make_job(tenant="acme"))
        for unknown in (theirs.job_id, "job_of_nobody"):
            await refused(here, unknown, "job_not_found", "no job with the id in previousJobId")
        await here.jobs.seals.request_cancel(running)
        gate.open()
        await here.ended(running)
        await here.jobs.seals.delete(running)
        await refused(here, running, "content_deleted", "was deleted")


# ------------------------------------------------------------------------------------- the activity, tried twice


@pytest.fixture
def activities(sqlite: Database) -> ResultActivities:
    return ResultActivities(jobs=make_store(sqlite), run_url=_no_url, tenant="default", indexed=False)


def _no_url(_: RunRef) -> str:
    return ""


async def tried(activities: ResultActivities, what: AcceptOrder) -> Any:
    """The result of the activity, in the workflow with the job's id."""
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_id=what.job_id)
    return await environment.run(activities.accept_inline, what)


async def sealed(store: JobStore, writer: TranscriptWriter, job_id: str) -> None:
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "Hi")
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(job_id, position=2), run_id="run-1")


async def test_a_second_try_finds_the_job_of_the_first(sqlite: Database, activities: ResultActivities) -> None:
    """The worker died after the commit; the previous job was deleted meanwhile."""
    store = make_store(sqlite)
    previous = await accepted(store)
    async with TranscriptWriter(sqlite).running() as writer:
        await sealed(store, writer, previous)
    first = await tried(activities, order("job_2", previous))
    await store.seals.delete(previous)
    assert await tried(activities, order("job_2", previous)) == first
    assert first.error is None
    assert len((await store.queries.request("job_2")).messages) == 3


async def test_a_second_try_refuses_what_the_first_refused(sqlite: Database, activities: ResultActivities) -> None:
    """The previous job has ended meanwhile; the row that the first try stored has no request."""
    store = make_store(sqlite)
    previous = await accepted(store)
    first = await tried(activities, order("job_2", previous))
    assert first.error.code == "job_running"
    async with TranscriptWriter(sqlite).running() as writer:
        await sealed(store, writer, previous)
    second = await tried(activities, order("job_2", previous))
    assert second.error.message == NOT_FOLLOWED
