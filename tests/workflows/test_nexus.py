"""The Nexus operation ``complete``, called by workflows of another namespace, on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import nexusrpc
import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError, CancelledError, NexusOperationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.nexus import NexusService
from chatjobs.contracts import ChatResult, JobStatus
from chatjobs.nexus import ENDPOINT, SERVICE, NexusJobs
from dispatch.nexus import endpoint_command, ensure_endpoint
from domain.errors import UpstreamRefused
from storage.engine.database import Database
from tests.support.factories import make_body
from tests.support.fakes import HELLO, PATIENCE, Gate, ScriptedModel, eventually
from tests.support.house import HOOK, house
from tests.support.nginx import older_temporal
from tests.support.simulator_process import prompt
from tests.support.snippets import snippets
from tests.support.stack import ROOT, Stack, stack
from tests.support.temporal_server import TemporalServer, temporal_server

pytestmark = pytest.mark.long

CALLERS = "callers"
"""The namespace of the callers, and their task queue."""


@workflow.defn(name="NexusCaller")
class NexusCaller:
    """Calls the operation with any input. Cancelled, it cancels the operation and waits for its end."""

    @workflow.run
    async def run(self, request: Any) -> dict[str, Any]:
        jobs = workflow.create_nexus_client(service=NexusJobs, endpoint=ENDPOINT)
        handle = await jobs.start_operation(
            NexusJobs.complete, request, schedule_to_close_timeout=timedelta(seconds=PATIENCE)
        )
        return await handle


@asynccontextmanager
async def callers(address: str, server: Client) -> AsyncIterator[Client]:
    """A client in the callers' namespace, and a worker there, which has nothing of the service."""
    assert await ensure_endpoint(server)
    client = await Client.connect(address, namespace=await namespace(address))
    async with Worker(client, task_queue=CALLERS, workflows=[NexusCaller], workflow_runner=UnsandboxedWorkflowRunner()):
        yield client


async def namespace(address: str) -> str:
    """The callers' namespace, made if it is absent."""
    request = RegisterNamespaceRequest(namespace=CALLERS)
    request.workflow_execution_retention_period.FromTimedelta(timedelta(days=1))
    operators = await Client.connect(address)
    try:
        await operators.workflow_service.register_namespace(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:
            raise
    return CALLERS


@pytest.fixture
async def caller(temporal: TemporalServer, client: Client) -> AsyncIterator[Client]:
    async with callers(temporal.address, client) as opened:
        yield opened


async def call(caller: Client, request: Any) -> WorkflowHandle[Any, dict[str, Any]]:
    async with asyncio.timeout(PATIENCE):
        while True:  # a new namespace is not known to all parts of a server at once
            try:
                return await caller.start_workflow(
                    NexusCaller.run, request, id=f"caller-{uuid4().hex}", task_queue=CALLERS
                )
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
            await asyncio.sleep(0.1)


async def failure(run: WorkflowHandle[Any, Any]) -> BaseException | None:
    """What the operation failed with."""
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(WorkflowFailureError) as caught:
            await run.result()
    assert isinstance(caught.value.cause, NexusOperationError), caught.value.cause
    return caught.value.cause.cause


def test_caller_and_service_have_the_same_operations() -> None:
    told, done = (nexusrpc.get_service_definition(one) for one in (NexusJobs, NexusService))
    assert told is not None
    assert done is not None
    assert (told.name, set(told.operation_definitions)) == (done.name, set(done.operation_definitions))
    assert (told.name, set(told.operation_definitions)) == (SERVICE, {"complete"})


def test_the_page_has_the_command_for_the_endpoint() -> None:
    assert endpoint_command("default") in snippets("nexus.md", "console")[0]


async def test_the_sample_caller(temporal: TemporalServer, client: Client, sqlite: Database, tmp_path: Path) -> None:
    """The program of docs/nexus.md, in another namespace, in the SDK's sandbox and without a data converter of ours."""
    assert await ensure_endpoint(client)
    program = tmp_path / "caller.py"
    program.write_text(snippets("nexus.md", "python")[0])
    env = os.environ | {
        "TEMPORAL_ADDRESS": temporal.address,
        "TEMPORAL_NAMESPACE": await namespace(temporal.address),
        "PYTHONPATH": str(ROOT),
    }
    async with house(client, sqlite) as here:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program)), env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert (process.returncode, out.decode()) == (0, "Hello there\n"), err.decode()
        assert here.model.requests[0].max_tokens == 200


async def test_a_job(caller: Client, client: Client, sqlite: Database) -> None:
    """It is a job as any other: a row, an event, a webhook; and each workflow links to the other."""
    async with house(client, sqlite) as here:
        run = await call(caller, make_body(callback=HOOK, metadata={"order": "42"}))
        job = ChatResult.model_validate_json(json.dumps(await run.result()))
        assert (job.status, job.content, job.metadata) == (JobStatus.COMPLETED, "Hello there", {"order": "42"})
        await here.agree(job.job_id, JobStatus.COMPLETED)
        events = [event async for event in run.fetch_history_events()]
        assert [
            link.workflow_event.workflow_id
            for event in events
            if event.event_type == EventType.EVENT_TYPE_NEXUS_OPERATION_STARTED
            for link in event.links
        ] == [job.job_id]


INVALID: dict[str, tuple[Any, str]] = {
    "no messages": ({"messages": []}, "/messages: "),
    "a text": ("the-prompt", "/request: "),
    "nothing": (None, 'give {"request": {…}} or {"jobId": "…"}, one of them'),
    "a bad id": (make_body(jobId="order 42"), "/jobId: "),
    "an id that is a number": (make_body(jobId=42), "/jobId: "),
}


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_request(caller: Client, client: Client, sqlite: Database, name: str) -> None:
    """The operation fails at once and says why; the job is stored as failed."""
    request, reason = INVALID[name]
    async with house(client, sqlite) as here:
        error = await failure(await call(caller, request))
        assert isinstance(error, ApplicationError)
        assert (error.type, error.non_retryable) == ("validation_failed", True)
        assert reason in error.message
        assert "the-prompt" not in error.message
        (job,) = await here.jobs.queries.list(tenant="default", status=JobStatus.FAILED)
        assert job.error is not None
        assert job.error.message == error.message


async def test_a_job_that_fails(caller: Client, client: Client, sqlite: Database) -> None:
    model = ScriptedModel([UpstreamRefused("The model does not exist", http_status=404)])
    async with house(client, sqlite, model=model) as here:
        error = await failure(await call(caller, make_body()))
        (job,) = await here.jobs.queries.list(tenant="default", status=JobStatus.FAILED)
        assert job.error is not None
        assert isinstance(error, ApplicationError)
        assert (error.type, error.message) == (job.error.code, job.error.message)


async def test_a_cancel_of_the_operation_cancels_the_job(caller: Client, client: Client, sqlite: Database) -> None:
    gate = Gate()
    async with house(client, sqlite, model=ScriptedModel([*HELLO[:1], gate, *HELLO[1:]])) as here:
        run = await call(caller, make_body(jobId=(job_id := f"cancelled-{uuid4().hex}")))
        await gate.reached()
        await run.cancel()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(WorkflowFailureError) as caught:
                await run.result()
        assert isinstance(caught.value.cause, CancelledError)
        assert (await here.ended(job_id)).status is JobStatus.CANCELLED


async def test_a_cancel_of_the_job_cancels_the_operation(caller: Client, client: Client, sqlite: Database) -> None:
    gate = Gate()
    async with house(client, sqlite, model=ScriptedModel([gate, *HELLO])) as here:
        run = await call(caller, make_body(jobId=(job_id := f"cancelled-{uuid4().hex}")))
        await gate.reached()
        await here.run(job_id).cancel()
        assert isinstance(await failure(run), CancelledError)


async def test_the_id_of_another_job(caller: Client, client: Client, sqlite: Database) -> None:
    """While that runs, any request is refused; later only another request is."""
    gate, job_id = Gate(), f"order-{uuid4().hex}"
    async with house(client, sqlite, model=ScriptedModel([gate, *HELLO])) as here:
        first = await call(caller, make_body(jobId=job_id))
        await gate.reached()
        error = await failure(await call(caller, make_body(jobId=job_id)))
        assert isinstance(error, ApplicationError)
        assert isinstance(error.cause, ApplicationError)  # the SDK gives an operation's own error another type
        assert (error.type, error.cause.type) == ("OperationError", "job_id_conflict")
        gate.open()
        answer = await first.result()
        again = await call(caller, make_body(jobId=job_id))
        assert (await again.result())["content"] == answer["content"]
        error = await failure(await call(caller, make_body("Another prompt", jobId=job_id)))
        assert isinstance(error, ApplicationError)
        assert error.type == "job_id_conflict"
        assert here.model.calls == 1


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path, env={"CHATJOBS_HEARTBEAT_SECONDS": "2"}) as started:
        yield started


async def test_a_worker_that_is_killed(machine: Stack) -> None:
    """The operation goes on with the job, whose text another worker continues."""
    client = await machine.connect()
    message = prompt(tokens=150, tokens_per_second=50)
    async with callers(machine.temporal_address, client) as caller:
        run = await call(caller, make_body(message, jobId="killed-1"))
        await machine.simulator.wait(tokens=20)
        machine.workers[0].kill()
        await asyncio.to_thread(machine.add_worker)
        answer = await asyncio.wait_for(run.result(), PATIENCE)
    assert answer["content"] == machine.simulator.answer(message)["text"]
    assert answer["jobId"] == "killed-1"


async def test_the_service_is_away_while_the_operation_starts(caller: Client, client: Client, sqlite: Database) -> None:
    run = await call(caller, make_body())
    async with house(client, sqlite) as here:
        assert (await run.result())["content"] == "Hello there"
        assert here.model.calls == 1


async def test_a_server_without_nexus(temporal: TemporalServer, tmp_path: Path, sqlite: Database) -> None:
    """One that does not know the methods: the worker works, and the endpoint is left out."""
    with older_temporal(tmp_path / "nginx", temporal.address, "~ Nexus") as address:
        client = await Client.connect(address, data_converter=pydantic_data_converter)
        assert not await ensure_endpoint(client)
        async with house(client, sqlite) as here:

            async def refused() -> bool:
                return "/PollNexusTaskQueue " in (tmp_path / "nginx" / "unknown.log").read_text()

            await eventually(refused)
            job_id = await here.submit(callback=HOOK)
            await here.agree(job_id, JobStatus.COMPLETED)


async def test_the_endpoint_that_is_there_is_left_alone(tmp_path: Path) -> None:
    with temporal_server(tmp_path) as server:
        client = await server.connect()
        name, elsewhere = ("--name", ENDPOINT), ("--target-namespace", "default", "--target-task-queue", "elsewhere")
        await server.cli("operator", "nexus", "endpoint", "create", *name, *elsewhere)
        assert await ensure_endpoint(client)
        shown = await server.cli("operator", "nexus", "endpoint", "get", *name, "-o", "json")
        assert json.loads(shown)["spec"]["target"]["worker"]["taskQueue"] == "elsewhere"
