"""ChatJob: every end of a job, what its run shows of it in Temporal, and what stays out of Temporal."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowHistory
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from chatjobs.contracts import JobStatus
from dispatch.temporal import indexed
from domain.errors import StorageUnavailable, UpstreamError, UpstreamInterrupted, UpstreamRefused
from domain.names import COMPLETIONS_QUEUE, JOBS_QUEUE, WEBHOOKS_QUEUE, delivery_workflow_id
from domain.ports import Finish, StillWorking
from storage.engine.database import Database
from storage.rate_limits import breaker
from tests.support.factories import make_body
from tests.support.fakes import HELLO, SECRET, STOP, Gate, GatedSeals, Gates, ScriptedSender, answered, eventually, text
from tests.support.house import HOOK, QUICK, House, house, working
from tests.support.temporal_server import TemporalServer, temporal_server

COMPLETED, FAILED, INCOMPLETE = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.INCOMPLETE
MEBIBYTE = 1024 * 1024


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite, timings=QUICK) as running:
        yield running


# ------------------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("stop", COMPLETED),
        ("tool_calls", COMPLETED),
        ("a reason of next year", COMPLETED),
        ("length", INCOMPLETE),
        ("model_length", INCOMPLETE),
    ],
)
async def test_an_answer_that_is_whole(here: House, reason: str, status: JobStatus) -> None:
    """The finish reason decides between completed and incomplete, and is kept as it came."""
    here.model.scripts = [[*text("Hello ", "there"), Finish(reason)]]
    job = await here.agree(await here.submit(callback=HOOK), status)
    assert (job.content, job.finish_reason, job.error) == ("Hello there", reason, None)


async def test_an_event_that_nobody_subscribed_to(here: House) -> None:
    """Only the outcomes that the webhook names are delivered."""
    job = await here.ended(await here.submit(webhook={"url": HOOK, "events": ["chat.failed"]}))
    assert (job.status, job.deliveries, here.sender.posts) == (COMPLETED, (), [])


async def test_the_result_of_a_stored_job(here: House) -> None:
    """Ids, position and digest go through Temporal; the answer does not."""
    job = await here.ended(job_id := await here.submit())
    result = await here.run(job_id).result()
    assert result == {"jobId": job_id, "status": "completed", "position": 11, "sha256": job.sha256}


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (UpstreamRefused("No such model", code="upstream_rejected", http_status=404), 1),
        (UpstreamInterrupted("Mistral is down", code="upstream_unavailable", http_status=503), 5),
        (UpstreamInterrupted(code="upstream_cut"), 5),
        (UpstreamInterrupted(code="upstream_empty"), 3),
        (RuntimeError("with the prompt in it"), 5),
    ],
    ids=str,
)
async def test_a_call_that_fails(here: House, error: Exception, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot pass fails the job at once, five real failures do, and three empty answers do.

    That is so while other jobs' calls succeed: a lane in which all calls fail waits (tests/workflows/test_breaker.py).
    """
    monkeypatch.setattr(breaker, "THRESHOLD", 100)
    here.model.scripts = [[*text("Hel"), error], [error]]
    job = await here.agree(job_id := await here.submit(callback=HOOK), FAILED)
    code = error.reason if isinstance(error, UpstreamError) else "internal"
    assert (here.model.calls, len(job.attempts), job.content) == (calls, calls, "Hel")
    assert [attempt.outcome for attempt in job.attempts] == [code] * calls
    failure = await here.failure(job_id)
    assert job.error is not None
    assert (job.error.code, job.error.message) == (failure.type, failure.message) == (code, failure.message)
    assert job.error.retryable is (calls > 1)
    assert "prompt" not in failure.message


@pytest.mark.parametrize(
    ("limits", "script", "code"),
    [
        ({"firstTokenSeconds": 0.02}, [Gate()], "first_token_timeout"),
        ({"stallSeconds": 0.02}, [*text("Hel"), Gate()], "stall_timeout"),
        ({"totalSeconds": 0.3}, [*text("Hel"), Gate()], "total_timeout"),
        ({"totalSeconds": 0.3}, [*text("Hel"), UpstreamInterrupted()] * 3, "total_timeout"),
    ],
)
async def test_a_clock_that_runs_out(here: House, limits: dict[str, float], script: list[Any], code: str) -> None:
    """First token and stall are failures of one attempt, the total clock ends the job."""
    here.model.scripts = [script, [StillWorking(), Gate()]] if "stall" in code else [script]
    retry = {"attempts": 100 if "total" in code else 2}
    job = await here.agree(await here.submit(callback=HOOK, limits=limits, retry=retry), FAILED)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (code, True)
    assert here.model.open_streams == 0


async def test_a_job_that_waits_too_long_for_a_worker(temporal: TemporalServer, sqlite: Database) -> None:
    """queueSeconds: the job fails when a worker finally takes it, without a call."""
    queues = [JOBS_QUEUE, WEBHOOKS_QUEUE]
    async with house(await temporal.connect(), sqlite, queues=queues, timings=QUICK) as here:
        job_id = await here.submit(limits={"queueSeconds": 0.05}, callback=HOOK)
        await pending_activity(here, job_id)
        await asyncio.sleep(0.1)
        async with working(replace(here.parts, client=await temporal.connect()), [COMPLETIONS_QUEUE]):
            job = await here.agree(job_id, FAILED)
    assert job.error is not None
    assert (job.error.code, here.model.calls) == ("queue_timeout", 0)


async def test_an_interrupted_answer_that_must_not_be_continued(here: House) -> None:
    """onInterrupt fail: partial text is kept and nothing is called again."""
    here.model.scripts = [[*text("Hel"), UpstreamInterrupted()], HELLO]
    job = await here.agree(await here.submit(onInterrupt="fail", callback=HOOK), FAILED)
    assert job.error is not None
    assert (job.error.code, job.content, here.model.calls) == ("interrupted", "Hel", 1)


# ---------------------------------------------------------------------------------------------------- inline


async def test_an_inline_job_has_its_answer_as_result(here: House) -> None:
    """The result is the job without attempts and deliveries, under the names of the wire."""
    run = await here.direct({"request": make_body(id="req-1", metadata={"order": "42"})})
    result = await run.result()
    assert (result["content"], result["status"], result["requestId"]) == ("Hello there", "completed", "req-1")
    assert (result["jobId"], result["metadata"], result["finishReason"]) == (run.id, {"order": "42"}, "stop")
    assert result["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert not {"attempts", "deliveries", "contentOmitted", "statusUrl"} & set(result)


@pytest.mark.parametrize("characters", [MEBIBYTE // 2, MEBIBYTE])
async def test_an_inline_answer_that_is_too_large(here: House, characters: int) -> None:
    """Over 1 MiB the text stays out of Temporal; the result says where it is."""
    here.model.scripts = [[*text("x" * characters), STOP]]
    run = await here.direct({"request": make_body()})
    result = await run.result()
    if characters < MEBIBYTE:
        assert result["content"] == "x" * characters
    else:
        assert (result["content"], result["contentOmitted"]) == (None, True)
        assert result["statusUrl"] == f"/api/jobs/{run.id}"
        assert (await here.jobs.queries.get(run.id)).content == "x" * characters


# ------------------------------------------------------------------------------------- what Temporal holds


async def test_history_holds_nothing_private(here: House) -> None:
    """Neither prompt nor answer nor key, in any payload of the history of a stored job."""
    leak = UpstreamInterrupted("Mistral broke off", code="upstream_unavailable")
    here.model.scripts = [[*text("the-answer"), leak], [*text("the-answer"), ValueError("the-prompt")], HELLO]
    here.sender.answers = [answered(500, response="the-response"), answered(200)]
    job_id = await here.submit("the-prompt", callback=HOOK, metadata={"k": "the-metadata"})
    await here.ended(job_id)
    history = everything(await here.run(job_id).fetch_history())
    for marker in ("the-prompt", "the-answer", "the-response", "the-metadata", SECRET):
        assert marker not in history
    assert job_id in history


@pytest.mark.parametrize(("webhook", "events"), [(False, 18), (True, 22)])
async def test_history_of_a_large_answer_is_small(here: House, webhook: bool, events: int) -> None:
    """5 MB of text leave no trace in the history's size."""
    here.model.scripts = [[*text(*["0123456789abcdef" * 1024] * 320), STOP]]
    job_id = await here.submit(**({"callback": HOOK} if webhook else {}))
    assert len((await here.ended(job_id)).content or "") == 5 * MEBIBYTE
    described = (await here.run(job_id).describe()).raw_description.workflow_execution_info
    assert described.history_length <= events
    assert described.history_size_bytes <= 16 * 1024


async def test_the_run_is_readable_in_the_ui(here: House) -> None:
    """Static summary, current details and activity summaries name model, outcome and delivery."""
    here.sender.answers = [answered(500), answered(200)]
    await here.ended(job_id := await here.submit(callback=HOOK))
    run = here.run(job_id)
    assert await (await run.describe()).static_summary() == "chat with mistral-small-latest"
    assert await details(here, job_id) == (
        "model: mistral-small-latest\n\noutcome: **completed**, 11 characters\n\nwebhook: not delivered (HTTP 500)"
    )
    history = everything(await run.fetch_history())
    for summary in ("stream the answer", "first webhook try"):
        assert summary in history
    child = await here.client.get_workflow_handle(delivery_workflow_id(await delivery_of(here, job_id))).describe()
    assert await child.static_summary() == f"webhook of {job_id}"


async def test_progress_shows_as_heartbeat_details(here: House) -> None:
    """While the answer streams, Pending Activities shows attempt, phase and characters."""
    gate = Gate()
    here.model.scripts = [[*text("Hello "), gate, *text("there"), STOP]]
    job_id = await here.submit()
    await here.readable(job_id, 6)
    shown: dict[str, Any] = {}
    while shown.get("phase") != "streaming":
        shown = heartbeat(await pending_activity(here, job_id)) or shown
    assert (shown["attempt"], shown["characters"]) == (1, 6)
    gate.open()
    await here.ended(job_id)


async def test_the_query_names_every_step(here: House) -> None:
    """status: what the job is and what it does. (During accept and store a query waits for the local step.)"""
    streaming, posting = Gate(), Gate()
    here.model.scripts = [[streaming, STOP]]
    here.sender.answers = [posting, answered(200)]
    job_id, seen = await here.submit(callback=HOOK), []
    for gate in (streaming, posting):
        await gate.reached()
        seen.append(await here.step(job_id))
        gate.open()
    await here.ended(job_id)
    seen.append(await here.step(job_id))
    assert seen == ["in_progress/completing", "completed/notifying", "completed/done"]


# ------------------------------------------------------------------------------------------- another worker


@pytest.mark.parametrize("place", ["before accept", "after accept", "before seal", "after seal", "posting"])
async def test_another_worker_goes_on(temporal: TemporalServer, sqlite: Database, place: str) -> None:
    """The one that began is told to stop in the middle of a step: the story goes on, each chapter once."""
    gate = Gate()
    sender = ScriptedSender(gate, answered(200)) if place == "posting" else ScriptedSender()
    async with house(await temporal.connect(), sqlite, queues=[], sender=sender, timings=QUICK) as here:
        job_id = (await here.direct({"request": make_body(callback=HOOK)})).id
        parts = replace(here.parts, client=await temporal.connect(), gates=Gates({place: gate}))
        async with working(parts):
            await gate.reached()
            asyncio.get_running_loop().call_later(0.1, gate.open)  # by then it has been told
        async with working(replace(here.parts, client=await temporal.connect())):
            job = await here.agree(job_id, COMPLETED)
    assert (job.content, here.model.calls) == ("Hello there", 1)


async def test_a_worker_can_stop_while_the_database_is_away(
    temporal: TemporalServer, sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that waits to be stored waits in Temporal after a few tries, and is stored by the next worker."""
    tries = itertools.count(1)
    enough = asyncio.Event()

    async def away(*_: Any, **__: Any) -> None:
        if next(tries) == 4:
            enough.set()
        raise StorageUnavailable

    async with house(await temporal.connect(), sqlite, queues=[], timings=QUICK) as here:
        job_id = await here.submit(callback=HOOK)
        with monkeypatch.context() as patched:
            patched.setattr(GatedSeals, "seal", away)
            async with working(replace(here.parts, client=await temporal.connect())):
                await enough.wait()
                began = time.monotonic()
            took = time.monotonic() - began
        async with working(replace(here.parts, client=await temporal.connect())):
            await here.agree(job_id, COMPLETED)
    assert took < 5


# ---------------------------------------------------------------------------------------- search attributes


async def test_search_attributes_find_jobs(here: House) -> None:
    """Jobs are found by outcome, model and tenant, however they were started."""
    assert await indexed(here.client)
    model = "model-of-this-test"
    stored = await here.submit(model=model)
    direct = (await here.direct({"request": make_body(model=model)})).id
    for job_id in (stored, direct):
        await here.ended(job_id)
    query = f'ChatStatus = "completed" AND ChatModel = "{model}" AND ChatTenant = "default"'

    async def both() -> bool:
        return {run.id async for run in here.client.list_workflows(query)} == {stored, direct}

    await eventually(both)  # visibility follows a moment later


async def test_search_attributes_may_be_missing(
    tmp_path: Path, sqlite: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Where they are not registered, the log names the command that does it, and jobs run without them."""
    with temporal_server(tmp_path / "temporal", search_attributes=False) as server:
        client = await server.connect()
        with caplog.at_level(logging.WARNING):
            assert not await indexed(client)
        command = caplog.messages[-1].partition(": ")[2]
        async with house(client, sqlite, indexed=False, timings=QUICK) as here:
            await here.agree(await here.submit(callback=HOOK), COMPLETED)
            assert (await (await here.direct({"request": make_body()})).result())["status"] == "completed"
        program, *arguments = command.split()
        assert program == "temporal"
        await server.cli(*arguments)
        assert await indexed(client)


# ------------------------------------------------------------------------------------------- twice with one id


async def test_starting_a_job_twice_is_one_job(here: House) -> None:
    """The row's start is answered by the run there is, running or over."""
    gate = Gate()
    here.model.scripts = [[gate, *HELLO]]
    job_id = await here.submit(callback=HOOK)
    await gate.reached()
    await asyncio.gather(*(here.start(job_id) for _ in range(5)))
    gate.open()
    await here.agree(job_id, COMPLETED)
    await here.start(job_id)
    assert (here.model.calls, len([run async for run in here.client.list_workflows(f"WorkflowId = '{job_id}'")])) == (
        1,
        1,
    )


async def test_a_direct_job_started_again_while_it_runs(here: House) -> None:
    """Temporal refuses a second run, or gives the first one, as the caller wishes."""
    gate = Gate()
    here.model.scripts = [[gate, *HELLO]]
    first = await here.direct({"request": make_body()})
    with pytest.raises(WorkflowAlreadyStartedError):
        await here.direct({"request": make_body()}, job_id=first.id)
    second = await here.direct(
        {"request": make_body()}, job_id=first.id, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
    )
    assert second.result_run_id == first.result_run_id
    gate.open()
    assert (await second.result())["content"] == "Hello there"


async def test_a_direct_job_started_again_after_its_end(here: House) -> None:
    """Temporal's default policy makes a second run: it has the stored result, without a call or another webhook."""
    body = make_body(callback=HOOK)
    first = await here.direct({"request": body})
    result = await first.result()
    with pytest.raises(WorkflowAlreadyStartedError):
        await here.direct({"request": body}, job_id=first.id, id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE)
    again = await here.direct({"request": body}, job_id=first.id)
    assert await again.result() == result
    assert (here.model.calls, len(here.sender.posts)) == (1, 1)
    await here.agree(first.id, COMPLETED)


async def test_another_request_under_a_taken_id(here: House) -> None:
    """It fails as job_id_conflict, and the job that has the id stays as it is."""
    first = await here.direct({"request": make_body(callback=HOOK)})
    await first.result()
    before = await here.jobs.queries.get(first.id)
    await here.direct({"request": make_body("Something else")}, job_id=first.id)
    assert (await here.failure(first.id)).type == "job_id_conflict"
    assert await here.jobs.queries.get(first.id) == before
    assert (here.model.calls, len(here.sender.posts)) == (1, 1)


def everything(history: WorkflowHistory) -> str:
    """All that a history holds, payloads decoded."""

    def decoded(value: Any) -> Iterator[str]:
        match value:
            case dict():
                for name, item in value.items():
                    yield name
                    data = name == "data" and isinstance(item, str)
                    yield from [base64.b64decode(item).decode()] if data else decoded(item)
            case list():
                for item in value:
                    yield from decoded(item)
            case _:
                yield str(value)

    return "\n".join(decoded(json.loads(history.to_json())))


async def details(here: House, job_id: str) -> str:
    """The current details, as the Temporal UI asks for them."""
    answer = await here.run(job_id).query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return str(answer.current_details)


async def delivery_of(here: House, job_id: str) -> str:
    return (await here.jobs.queries.get(job_id)).deliveries[0].id


async def pending_activity(here: House, job_id: str) -> Any:
    """The activity that a run waits for, as Temporal describes it."""

    async def look() -> Any:
        return (await here.run(job_id).describe()).raw_description.pending_activities

    return (await eventually(look))[0]


def heartbeat(activity: Any) -> dict[str, Any] | None:
    payloads = activity.heartbeat_details.payloads
    return json.loads(payloads[0].data) if payloads else None
