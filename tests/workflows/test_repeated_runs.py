"""Runs of a Temporal cron or Schedule on ``ChatJob`` (R10): each is a job of its own, on a real server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleHandle,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    WorkflowExecution,
    WorkflowExecutionStatus,
)
from temporalio.service import RPCError

from chatjobs.contracts import Job, JobStatus
from dispatch.schedules import delete_runs
from domain.names import CHAT_JOB, JOBS_QUEUE, job_id_of_run, new_job_id
from domain.ports import Finish
from domain.values import RunRef, StoredJob
from storage.engine.database import Database
from tests.support.cancelling import cancel
from tests.support.factories import make_body
from tests.support.fakes import Gate, eventually, text
from tests.support.house import HOOK, House, house
from tests.support.temporal_server import TemporalServer
from tests.workflows.test_reset import sweeper

COMPLETED, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED
EVERY_SECOND = "@every 1s"
RUN_ID = "01a21793-8c04-7306-b3ef-191861df7c85"


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite) as running:
        yield running


def answers(here: House, *words: str) -> None:
    here.model.scripts = [text_and_finish(word) for word in words]


def text_and_finish(word: str) -> list[Any]:
    return [*text(word), Finish("stop")]


async def jobs_of(
    here: House, count: int, settled: Callable[[StoredJob], bool] = lambda job: job.status.terminal
) -> list[StoredJob]:
    """The oldest ``count`` jobs, once there are so many and each is ``settled``."""
    found: list[StoredJob] = []

    async def enough() -> bool:
        nonlocal found
        listed = [await here.jobs.queries.get(job.job_id) for job in await here.jobs.queries.list(tenant="default")]
        found = sorted(listed, key=lambda job: job.created_at)[:count]
        return len(found) == count and all(map(settled, found))

    await eventually(enough)
    return found


async def cron(here: House, start: Any, **options: Any) -> str:
    """The id of a workflow that runs every second; it is terminated with the test."""
    workflow_id = new_job_id()
    await here.direct(start, job_id=workflow_id, cron_schedule=EVERY_SECOND, **options)
    return workflow_id


async def schedule(here: House, request: Any, workflow_id: str = "daily") -> ScheduleHandle:
    action = ScheduleActionStartWorkflow(CHAT_JOB, {"request": request}, id=workflow_id, task_queue=JOBS_QUEUE)
    policy = SchedulePolicy(overlap=ScheduleOverlapPolicy.ALLOW_ALL)
    return await here.client.create_schedule(new_job_id(), Schedule(action=action, spec=ScheduleSpec(), policy=policy))


async def closed(here: House, job: Job) -> None:
    """Its run has ended; while it is open, Temporal starts no other one with its workflow id."""
    run = await here.jobs.queries.run_of(job.job_id)
    handle = here.client.get_workflow_handle(run.workflow_id, run_id=run.run_id)

    async def ended() -> bool:
        return (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING

    await eventually(ended)


def delivered(job: Job) -> bool:
    return job.status.terminal and [one.status for one in job.deliveries] == ["delivered"]


# -------------------------------------------------------------------------------------------------------- cron


async def test_each_run_of_a_cron_is_a_job(here: House) -> None:
    """Two runs: two answers, two rows, two webhooks, and ids made of the workflow's and the run's."""
    answers(here, "first", "second", "third")
    workflow_id = await cron(here, {"request": make_body(callback=HOOK)})
    first, second = await jobs_of(here, 2, delivered)
    await here.run(workflow_id).terminate()
    assert [(job.status, job.content) for job in (first, second)] == [(COMPLETED, "first"), (COMPLETED, "second")]
    assert re.fullmatch(rf"{workflow_id}-[0-9a-f]{{12}}", first.job_id)
    assert first.job_id != second.job_id
    assert first.deliveries[0].id != second.deliveries[0].id
    posted = {post.event.data.job_id: post.event.data.content for post in here.sender.posts}
    assert posted.items() >= {first.job_id: "first", second.job_id: "second"}.items()
    assert first.run.run_id is not None
    described = await here.client.get_workflow_handle(workflow_id, run_id=first.run.run_id).describe()
    assert described.status is WorkflowExecutionStatus.COMPLETED


async def test_a_cron_from_the_command_line(temporal: TemporalServer, here: House) -> None:
    """With the job as the result of each run."""
    answers(here, "first", "second", "third", "fourth")
    workflow_id = new_job_id()
    here.started.append(workflow_id)
    what = ("--type", CHAT_JOB, "--task-queue", JOBS_QUEUE, "--workflow-id", workflow_id, "--cron", EVERY_SECOND)
    await temporal.cli("workflow", "start", *what, "--input", json.dumps({"request": make_body()}))
    first, _ = await jobs_of(here, 2)
    await here.run(workflow_id).terminate()
    run = await here.jobs.queries.run_of(first.job_id)
    shown = await temporal.cli("workflow", "show", "--workflow-id", workflow_id, "--run-id", str(run.run_id))
    assert first.job_id in shown


async def test_a_failed_run_of_a_cron_does_not_end_it(here: House) -> None:
    """A request that is not valid: a job with its reason for each run."""
    workflow_id = await cron(here, {"request": {"messages": []}})
    found = await jobs_of(here, 2)
    await here.run(workflow_id).terminate()
    assert [(job.status, job.error and job.error.code) for job in found] == [(FAILED, "validation_failed")] * 2


@pytest.mark.parametrize("start", ["its own id", "a stored job's id", "a job id in the request"])
async def test_a_cron_cannot_name_one_job(here: House, start: str) -> None:
    """It would give that job's answer at each run."""
    stored = await here.accept()
    body: dict[str, Any] = {"jobId": stored}
    if start == "a job id in the request":
        body = {"request": make_body(jobId=stored)}
    workflow_id = stored if start == "its own id" else new_job_id()
    await here.direct(body, job_id=workflow_id, cron_schedule=EVERY_SECOND)

    async def refused() -> bool:
        return (await here.jobs.queries.list(tenant="default"))[0].status is FAILED

    await eventually(refused)
    await here.run(workflow_id).terminate()
    job = (await here.jobs.queries.list(tenant="default"))[0]
    assert job.error is not None
    assert (job.error.code, "must be left out" in job.error.message) == ("validation_failed", True)
    assert ((await here.jobs.queries.get(stored)).status, here.model.calls) == (JobStatus.QUEUED, 0)


async def test_reset_of_a_cron_run(temporal: TemporalServer, here: House) -> None:
    """The same job, and no second call for it."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), gate, *text("lo")], *[text_and_finish("other")] * 5]
    workflow_id = await cron(here, {"request": make_body()})
    (before,) = await jobs_of(here, 1, lambda job: job.position == 3)
    which = ("--workflow-id", workflow_id, "--type", "FirstWorkflowTask", "--reason", "a test")
    await temporal.cli("workflow", "reset", *which)
    (job,) = await jobs_of(here, 1)
    gate.open()
    await here.run(workflow_id).terminate()
    assert (job.job_id, job.status, job.content) == (before.job_id, COMPLETED, "Helother")


async def test_cancel_of_one_job_of_a_cron(here: House) -> None:
    """The others are still wanted: the run fails, and the cron goes on."""
    here.model.scripts = [[*text("Hel"), Gate()], *[text_and_finish("second")] * 5]
    workflow_id = await cron(here, {"request": make_body(callback=HOOK)})
    (running,) = await jobs_of(here, 1, lambda job: job.position == 3)
    await cancel(here, running.job_id)
    first, second = await jobs_of(here, 2)
    await here.run(workflow_id).terminate()
    assert [(job.status, job.content) for job in (first, second)] == [(CANCELLED, "Hel"), (COMPLETED, "second")]
    assert [delivery.event.value for delivery in first.deliveries] == ["chat.cancelled"]


async def test_cancel_of_a_cron_in_temporal(here: House) -> None:
    """The job that runs is cancelled, and no other follows."""
    here.model.scripts = [[*text("Hel"), Gate()]]
    workflow_id = await cron(here, {"request": make_body()})
    (running,) = await jobs_of(here, 1, lambda job: job.position == 3)
    await here.run(workflow_id).cancel()
    (job,) = await jobs_of(here, 1)
    assert (job.job_id, job.status) == (running.job_id, CANCELLED)

    async def over() -> bool:
        return (await here.run(workflow_id).describe()).status is WorkflowExecutionStatus.CANCELED

    await eventually(over)


async def test_a_deleted_job_of_a_cron_takes_only_its_own_run_along(here: House) -> None:
    answers(here, *["answer"] * 9)
    workflow_id = await cron(here, {"request": make_body()})
    first, second = await jobs_of(here, 2)
    await here.run(workflow_id).terminate()
    run = await here.jobs.seals.delete(first.job_id)
    assert run is not None
    await delete_runs(here.client, run)

    async def gone() -> bool:
        try:
            await here.client.get_workflow_handle(workflow_id, run_id=run.run_id).describe()
        except RPCError:
            return True
        return False

    await eventually(gone)
    kept = await here.jobs.queries.run_of(second.job_id)
    await here.client.get_workflow_handle(workflow_id, run_id=kept.run_id).describe()


# ---------------------------------------------------------------------------------------------------- the sweep


async def test_the_sweeper_leaves_a_running_cron_job_alone(here: House) -> None:
    """It has no run under the job's own id; a second one must not be started."""
    here.model.scripts = [[*text("Hel"), gate := Gate(), *text_and_finish("lo")], *[text_and_finish("other")] * 5]
    workflow_id = await cron(here, {"request": make_body()})
    (job,) = await jobs_of(here, 1, lambda job: job.position == 3)
    await sweeper(here).sweep()
    assert (await here.jobs.queries.get(job.job_id)).status is JobStatus.IN_PROGRESS
    with pytest.raises(RPCError):
        await here.run(job.job_id).describe()
    gate.open()
    (job,) = await jobs_of(here, 1)
    await here.run(workflow_id).terminate()
    assert (job.content, len(job.attempts)) == ("Hello", 1)


async def test_a_terminated_cron_run_ends_its_job(here: House) -> None:
    here.model.scripts = [[*text("Hel"), Gate()]]
    workflow_id = await cron(here, {"request": make_body()})
    (job,) = await jobs_of(here, 1, lambda job: job.position == 3)
    await here.run(workflow_id).terminate()
    await sweeper(here).sweep()
    ended = await here.jobs.queries.get(job.job_id)
    assert (ended.status, ended.error and ended.error.code) == (FAILED, "terminated")


async def test_a_cron_run_that_timed_out_ends_its_job(here: House) -> None:
    """The cron goes on; its next run is not this job's."""
    here.model.scripts = [[*text("Hel"), Gate()], *[text_and_finish("second")] * 9]
    workflow_id = await cron(here, {"request": make_body()}, run_timeout=timedelta(seconds=2))
    await jobs_of(here, 1, lambda job: job.position == 3)

    async def next_one() -> bool:
        return len(await here.jobs.queries.list(tenant="default")) > 1

    await eventually(next_one)
    await sweeper(here).sweep()
    first, second = await jobs_of(here, 2)
    await here.run(workflow_id).terminate()
    assert (first.status, first.error and first.error.code, second.content) == (FAILED, "terminated", "second")


async def test_the_sweeper_finds_a_run_that_was_reset(temporal: TemporalServer, here: House) -> None:
    """The run that is in the row is closed; the one that the Reset made of it has the job."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), Gate()], [gate, *text_and_finish("lo")], *[text_and_finish("other")] * 5]
    workflow_id = await cron(here, {"request": make_body()})
    (job,) = await jobs_of(here, 1, lambda job: job.position == 3)
    which = ("--workflow-id", workflow_id, "--type", "FirstWorkflowTask", "--reason", "a test")
    await temporal.cli("workflow", "reset", *which)
    await gate.reached()
    await sweeper(here).sweep()
    assert (await here.jobs.queries.get(job.job_id)).status is JobStatus.IN_PROGRESS
    gate.open()
    (ended,) = await jobs_of(here, 1)
    await here.run(workflow_id).terminate()
    assert (ended.status, ended.content) == (COMPLETED, "Hello")


# ---------------------------------------------------------------------------------------------------- schedules


async def test_each_action_of_a_schedule_is_a_job(here: House) -> None:
    """Also two within one second, which have the same workflow id."""
    answers(here, "first", "second", "third")
    handle = await schedule(here, make_body(callback=HOOK), "daily-report")
    for number in (1, 2, 3):
        await handle.trigger()
        await asyncio.gather(*(closed(here, job) for job in await jobs_of(here, number, delivered)))
    found = await jobs_of(here, 3, delivered)
    await handle.delete()
    assert [job.content for job in found] == ["first", "second", "third"]
    assert len({job.job_id for job in found}) == len({post.id for post in here.sender.posts}) == 3
    assert all(re.fullmatch(r"daily-report-\d{4}-\d\d-\d\dT\d{6}Z-[0-9a-f]{12}", job.job_id) for job in found)


async def test_cancel_of_a_scheduled_job(here: House) -> None:
    """Its run ends as cancelled, as that of any other job."""
    here.model.scripts = [[*text("Hel"), Gate()]]
    handle = await schedule(here, make_body())
    await handle.trigger()
    (job,) = await jobs_of(here, 1, lambda job: job.position == 3)
    await cancel(here, job.job_id)
    await jobs_of(here, 1)
    await handle.delete()
    run = await here.jobs.queries.run_of(job.job_id)

    async def over() -> bool:
        found = await here.client.get_workflow_handle(run.workflow_id, run_id=run.run_id).describe()
        return found.status is WorkflowExecutionStatus.CANCELED

    await eventually(over)


@pytest.mark.parametrize("workflow_id", ["a b", "x" * 97, "täglich"])
async def test_a_schedule_whose_id_cannot_be_a_jobs(here: House, workflow_id: str) -> None:
    """Its runs fail at once and say what may be used."""
    handle = await schedule(here, make_body(), workflow_id)
    await handle.trigger()
    query = f"TemporalScheduledById = '{handle.id}'"
    found: list[WorkflowExecution] = []

    async def failed() -> bool:
        nonlocal found
        found = [run async for run in here.client.list_workflows(query)]
        return [run.status for run in found] == [WorkflowExecutionStatus.FAILED]

    await eventually(failed)
    await handle.delete()
    failure = await here.failure(found[0].id)
    assert (failure.type, "at most 96" in failure.message) == ("validation_failed", True)
    assert await here.jobs.queries.list(tenant="default") == []


# ----------------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    ("workflow_id", "cron", "job_id"),
    [
        ("job_1", False, "job_1"),
        ("daily-2026-11-26T10:00:00Z", False, "daily-2026-11-26T100000Z-191861df7c85"),
        ("nightly", True, "nightly-191861df7c85"),
        ("a:b", False, "a:b"),
        ("daily-2026-11-26T10:00:00Z-x", False, "daily-2026-11-26T10:00:00Z-x"),
        ("two\nlines-2026-11-26T10:00:00Z", False, "two\nlines-2026-11-26T100000Z-191861df7c85"),
    ],
)
def test_the_job_of_a_run(workflow_id: str, cron: bool, job_id: str) -> None:
    assert job_id_of_run(workflow_id, RUN_ID, cron=cron) == job_id


def test_which_runs_are_a_crons() -> None:
    assert RunRef("nightly", RUN_ID).is_cron
    assert not RunRef("daily-2026-11-26T10:00:00Z", RUN_ID).is_cron
    assert not RunRef("job_1").is_cron
