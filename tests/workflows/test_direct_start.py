"""Straight through Temporal, as from another language: the `temporal` command and raw payloads, no types of ours."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WithStartWorkflowOperation, WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.common import RawValue, WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from chatjobs.contracts import JobStatus
from chatjobs.errors import JobNotFound
from domain.names import ACCEPTED_UPDATE, CHAT_JOB, JOBS_QUEUE, new_job_id
from storage.engine.database import Database
from tests.support.factories import make_body
from tests.support.fakes import HELLO, Gate, ScriptedModel
from tests.support.house import HOOK, House, house
from tests.support.snippets import snippets
from tests.support.temporal_server import TemporalServer


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite) as running:
        yield running


async def started(temporal: TemporalServer, here: House, *inputs: str, job_id: str | None = None) -> str:
    """The id of a job that the command line started."""
    job_id = job_id or new_job_id()
    here.started.append(job_id)
    what = ("--type", "ChatJob", "--task-queue", "chatjobs", "--workflow-id", job_id)
    await temporal.cli("workflow", "start", *what, *inputs)
    return job_id


async def test_a_job_from_the_command_line(temporal: TemporalServer, here: House) -> None:
    """JSON in, JSON out; no type of ours is needed."""
    request = make_body(callback=HOOK, metadata={"order": "42"}, temperature=0.3)
    job_id = await started(temporal, here, "--input", json.dumps({"request": request}))
    shown = json.loads(await temporal.cli("workflow", "result", "--workflow-id", job_id, "-o", "json"))
    result = shown["result"]
    assert (shown["status"], result["jobId"], result["status"]) == ("COMPLETED", job_id, "completed")
    assert (result["content"], result["metadata"], result["model"]) == (
        "Hello there",
        {"order": "42"},
        "mistral-small-latest",
    )
    await here.agree(job_id, JobStatus.COMPLETED)
    assert here.model.requests[0].temperature == 0.3


async def test_a_stored_job_from_the_command_line(temporal: TemporalServer, here: House) -> None:
    """As the gateway starts it: the request stays in storage, and so does the answer."""
    job_id = await here.accept(callback=HOOK)
    await started(temporal, here, "--input", json.dumps({"jobId": job_id, "request": None}), job_id=job_id)
    job = await here.agree(job_id, JobStatus.COMPLETED)
    shown = json.loads(await temporal.cli("workflow", "result", "--workflow-id", job_id, "-o", "json"))
    assert shown["result"] == {"jobId": job_id, "status": "completed", "position": 11, "sha256": job.sha256}


async def test_an_invalid_request_from_the_command_line(temporal: TemporalServer, here: House) -> None:
    """The command shows what is wrong, and where."""
    job_id = await started(temporal, here, "--input", '{"request": {"messages": [], "modle": "x"}}')
    await here.failure(job_id)
    shown = await temporal.cli("workflow", "show", "--workflow-id", job_id)
    for problem in ("/messages: must have at least 1 item", "/modle: is not a known field; did you mean model?"):
        assert problem in shown


def raw(data: bytes, encoding: str = "json/plain") -> RawValue:
    return RawValue(Payload(metadata={"encoding": encoding.encode()}, data=data))


def value(content: Any) -> RawValue:
    return raw(json.dumps(content).encode())


GOOD = value({"request": make_body()})
ONE_OF_THEM = 'give {"request": {…}} or {"jobId": "…"}, one of them'
INVALID: dict[str, tuple[list[RawValue], str]] = {
    "no messages": ([value({"request": {"messages": []}})], "/messages: "),
    "a string": ([value("hello")], "must be an object"),
    "null": ([value(None)], "must be an object"),
    "a null of another kind": ([raw(b"", "binary/null")], "must be an object"),
    "a number": ([value(5)], "must be an object"),
    "an array": ([value([])], "must be an object"),
    "an empty object": ([value({})], ONE_OF_THEM),
    "another field": ([value({"request": make_body(), "tenant": "acme"})], "/tenant: "),
    "a request that is text": ([value({"request": "hello"})], "/request: "),
    "another job's id": ([value({"jobId": "job_of_another"})], "/jobId: must be the id of this workflow"),
    "an id that is a number": ([value({"jobId": 5})], "/jobId: "),
    "another id in the request": ([value({"request": make_body(jobId="x")})], "/jobId: must be the workflow's id"),
    "no input": ([], "one argument is expected, 0 were given"),
    "two inputs": ([GOOD, GOOD], "one argument is expected, 2 were given"),
    "bytes": ([raw(b"\xff\xfe", "binary/plain")], "encoding must be json/plain"),
    "an unknown encoding": ([raw(b"\x00" * 100, "binary/encrypted")], "encoding must be json/plain"),
    "no encoding": ([RawValue(Payload(data=b"{}"))], "encoding must be json/plain"),
    "no JSON": ([raw(b'{"request": {"messages": "the-prompt')], "is not JSON"),
    "not UTF-8": ([raw(b'{"request": "\xff"}')], "is not JSON"),
    "NaN": ([raw(b'{"request": {"messages": [], "temperature": NaN}}')], "is not JSON"),
    "a number too large": ([raw(b'{"request": {"temperature": 1e999}}')], "is not JSON: Out of range"),
    "half a surrogate pair": ([raw(b'{"request": {"messages": "\\ud83d"}}')], "is not JSON"),
    "nested too deep": ([raw(b"[" * 100_000)], "recursion limit"),
    "nested deep": ([raw(b'{"request": ' + b"[" * 150 + b"]" * 150 + b"}")], "/request: "),
    "an unknown unicode": ([value({"request": {"messages": "\x00\ufffe"}})], "/messages: "),
}


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_start(here: House, name: str) -> None:
    """The run fails at once and says why, its task is not retried, and the job can be found like any other."""
    inputs, reason = INVALID[name]
    run = await here.direct(*inputs)
    failure = await here.failure(run.id)
    assert failure.type == "validation_failed"
    assert reason in failure.message
    assert len(failure.message) <= 500
    assert "the-prompt" not in failure.message
    assert not [
        e async for e in run.fetch_history_events() if e.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
    ]
    job = await here.jobs.queries.get(run.id)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.message) == (JobStatus.FAILED, failure.type, failure.message)
    assert [found.job_id for found in await here.jobs.queries.list(tenant="default", status=JobStatus.FAILED)] == [
        run.id
    ]
    assert here.model.calls == 0


@pytest.mark.parametrize("job_id", ["order 42", "x" * 129, "x" * 300, "ünïcode", "a/b", "a:b", "line\nline"])
async def test_a_workflow_id_that_cannot_be_a_jobs(here: House, job_id: str) -> None:
    """It fails readably, and there is no row: no row could have that id."""
    await here.direct(GOOD, job_id=job_id)
    failure = await here.failure(job_id)
    assert (failure.type, "cannot be one" in failure.message) == ("validation_failed", True)
    with pytest.raises(JobNotFound):
        await here.jobs.queries.get(job_id)


async def test_a_stored_job_that_is_not_there(here: House) -> None:
    """Only its id came, and nobody has the request."""
    job_id = new_job_id()
    await here.direct({"jobId": job_id}, job_id=job_id)
    assert (await here.failure(job_id)).type == "job_not_found"
    assert (await here.run(job_id).describe()).status is WorkflowExecutionStatus.FAILED


async def accepted(here: House, start: RawValue, job_id: str | None = None) -> dict[str, Any]:
    """The answer of the update, sent together with the start."""
    job_id = job_id or new_job_id()
    here.started.append(job_id)
    operation: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
        CHAT_JOB, start, id=job_id, task_queue=JOBS_QUEUE, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
    )
    answer: dict[str, Any] = await here.client.execute_update_with_start_workflow(
        ACCEPTED_UPDATE, start_workflow_operation=operation
    )
    return answer


async def test_a_start_that_waits_until_the_job_is_stored(client: Client, sqlite: Database) -> None:
    """The answer comes before the model's, and a second such start is about the same job."""
    gate = Gate()
    async with house(client, sqlite, model=ScriptedModel([gate, *HELLO])) as here:
        answer = await accepted(here, GOOD)
        job_id = answer["jobId"]
        assert (await here.jobs.queries.get(job_id)).job_id == job_id
        assert answer["step"] == "completing"
        await gate.reached()
        assert (await accepted(here, GOOD, job_id))["jobId"] == job_id
        gate.open()
        assert (await here.ended(job_id)).content == "Hello there"
        assert here.model.calls == 1


async def test_the_update_from_the_command_line(temporal: TemporalServer, here: House) -> None:
    """The command of docs/nexus.md."""
    command = shlex.split(
        snippets("nexus.md", "console")[1].replace("\\\n", "").replace("order-42", job_id := new_job_id())
    )
    here.started.append(job_id)
    assert command[0] == "temporal"
    assert job_id in await temporal.cli(*command[1:], "-o", "json")
    assert (await here.ended(job_id)).status is JobStatus.COMPLETED


@pytest.mark.parametrize("name", ["no messages", "a string", "no JSON", "a request that is text"])
async def test_a_start_that_waits_is_told_what_is_wrong(here: House, name: str) -> None:
    (start,), reason = INVALID[name]
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await accepted(here, start)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "validation_failed"
    assert reason in caught.value.cause.message
    assert (await here.failure(here.started[-1])).message == caught.value.cause.message


async def test_a_start_that_waits_under_an_id_that_cannot_be_a_jobs(here: House) -> None:
    """No job is stored; the update fails with the run."""
    with pytest.raises((WorkflowUpdateFailedError, RPCError)):
        await accepted(here, GOOD, "order 42")
    assert (await here.failure("order 42")).type == "validation_failed"
