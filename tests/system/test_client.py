"""chatjobs/client.py: through a real gateway, worker and simulator, and through networks that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from chatjobs.calls import CALLS_REPEATED, exponential, failure
from chatjobs.client import AsyncChatJobs, Outcome, Progress
from chatjobs.contracts import (
    AssistantMessage,
    CancelledEvent,
    ChatRequest,
    ChunkEvent,
    CompleteEvent,
    ErrorEvent,
    JobStatus,
    Limits,
    ResetEvent,
    StartEvent,
    StreamEvent,
    UserMessage,
    Webhook,
    WebhookEventType,
    read_json,
)
from chatjobs.errors import (
    ApiError,
    ChatJobsError,
    ConfigurationError,
    ContentDeleted,
    IdempotencyMismatch,
    InvalidRequest,
    JobFailed,
    JobFinished,
    JobIdConflict,
    JobNotFound,
    JobRunning,
    Problem,
    ResponseTooLarge,
    ServiceUnavailable,
    StreamBroken,
    Unauthorized,
    WebhookUrlRefused,
)
from chatjobs.prompts import request_body
from chatjobs.sse import encode
from tests.support.cutter import cutter, dice
from tests.support.fakes import eventually
from tests.support.gateway import Gateway, gateway
from tests.support.raw_http import (
    LAST_PART,
    STREAM_HEAD,
    RawServer,
    Reply,
    Visit,
    head,
    part,
    plain,
    raw_server,
    stream,
)
from tests.support.simulator_process import prompt
from tests.support.snippets import CLIENT_EXAMPLES, output, snippets
from tests.support.stack import Stack, free_port, stack

SLOW = {"tokens": 120, "tokens_per_second": 80}
"""An answer that takes a second and a half."""
KEY = "key_that_nobody_may_see"


def client(url: str, **options: Any) -> AsyncChatJobs:
    """A client that does not wait long, and knows no proxy."""
    given: dict[str, Any] = {
        "transport": httpx2.AsyncHTTPTransport(),
        "backoff": lambda failures: 0.01 * failures,
    } | options
    return AsyncChatJobs(url, **given)


# ------------------------------------------------------------------------------------------- the service


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    env = {"CHATJOBS_PORT": str(free_port()), "CHATJOBS_CONCURRENCY": "20", "MISTRAL_REQUESTS_PER_SECOND": "1000"}
    with stack(tmp_path_factory.mktemp("client"), env=env) as started:
        yield started, gateway(started)


@pytest.fixture
def service(running: tuple[Stack, Gateway], capsys: pytest.CaptureFixture[str]) -> Iterator[Stack]:
    yield running[0]
    print(running[0].news())  # noqa: T201 -- pytest shows it if the test fails


@pytest.fixture
def door(running: tuple[Stack, Gateway], service: Stack) -> Gateway:
    return running[1]


@pytest.fixture
async def jobs(door: Gateway) -> AsyncIterator[AsyncChatJobs]:
    async with client(door.url) as opened:
        yield opened


@dataclass
class Reader:
    """What a caller of ``stream`` has."""

    text: str = ""
    events: list[StreamEvent] = field(default_factory=list)

    def take(self, event: StreamEvent) -> None:
        self.events.append(event)
        match event:
            case ChunkEvent(content=text):
                self.text += text
            case ResetEvent():
                self.text = ""

    async def follow(self, events: AsyncIterable[StreamEvent]) -> None:
        async for event in events:
            self.take(event)

    @property
    def kinds(self) -> list[type[StreamEvent]]:
        """The types of the events; of several chunks in a row one."""
        found = [type(event) for event in self.events]
        return [kind for kind, before in zip(found, [None, *found], strict=False) if kind is not before]


async def read(jobs: AsyncChatJobs, job_id: str, **options: Any) -> Reader:
    reader = Reader()
    await reader.follow(jobs.stream(job_id, **options))
    return reader


async def test_a_job_from_its_start_to_its_answer(jobs: AsyncChatJobs, service: Stack) -> None:
    """Streamed, awaited, joined, read: one text."""
    message = prompt("Hello", tokens=30)
    accepted = await jobs.submit(message, metadata={"order": "42"}, max_tokens=500)
    assert (accepted.status, accepted.status_url) == (JobStatus.QUEUED, f"/api/jobs/{accepted.job_id}")
    reader = await read(jobs, accepted.job_id)
    assert reader.kinds == [StartEvent, ChunkEvent, CompleteEvent]
    job = await jobs.wait(accepted.job_id)
    answer = await jobs.answer(accepted.job_id)
    assert reader.text == job.content == answer == service.simulator.answer(message)["text"]
    assert (job.status, job.metadata) == (JobStatus.COMPLETED, {"order": "42"})
    assert await jobs.get(accepted.job_id) == job
    assert await jobs.deliveries(accepted.job_id) == ()


async def test_ask_waits_while_the_answer_is_written(jobs: AsyncChatJobs) -> None:
    job = await jobs.ask(prompt(tokens=30, tokens_per_second=100))
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETED, 1)


async def test_waiting_may_end_before_the_job_does(jobs: AsyncChatJobs) -> None:
    accepted = await jobs.submit(prompt(faults=[{"kind": "stall"}]))
    with pytest.raises(TimeoutError):
        await jobs.wait(accepted.job_id, timeout=0.2)
    with pytest.raises(TimeoutError):
        await read(jobs, accepted.job_id, timeout=0.2)
    await jobs.cancel(accepted.job_id)
    assert (await jobs.wait(accepted.job_id)).status is JobStatus.CANCELLED


async def test_a_cancelled_job_has_no_answer(jobs: AsyncChatJobs) -> None:
    """Cancelling again is the same; deleting has to wait for the end."""
    accepted = await jobs.submit(prompt(tokens=5, faults=[{"kind": "stall", "after": 3}]))
    reader = Reader()
    async for event in jobs.stream(accepted.job_id):
        reader.take(event)
        if isinstance(event, ChunkEvent) and len(reader.events) == 2:
            with pytest.raises(JobRunning):
                await jobs.delete(accepted.job_id)
            assert not (await jobs.cancel(accepted.job_id)).terminal
    assert reader.kinds == [StartEvent, ChunkEvent, CancelledEvent]
    assert await jobs.cancel(accepted.job_id) is JobStatus.CANCELLED
    with pytest.raises(JobFailed) as caught:
        await jobs.answer(accepted.job_id)
    assert caught.value.reason == "cancelled"


async def test_a_failed_job_has_no_answer(jobs: AsyncChatJobs) -> None:
    accepted = await jobs.submit(prompt(faults=[{"kind": 400}], repeat_last=True))
    assert (await read(jobs, accepted.job_id)).kinds[-1] is ErrorEvent
    with pytest.raises(JobFailed) as caught:
        await jobs.answer(accepted.job_id)
    job = await jobs.wait(accepted.job_id)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.retryable) == (
        JobStatus.FAILED,
        caught.value.reason,
        caught.value.retryable,
    )


async def test_what_has_ended_cannot_be_cancelled_and_can_be_deleted(jobs: AsyncChatJobs) -> None:
    job = await jobs.ask(prompt())
    with pytest.raises(JobFinished):
        await jobs.cancel(job.job_id)
    await jobs.delete(job.job_id)
    await jobs.delete(job.job_id)
    with pytest.raises(ContentDeleted):
        await read(jobs, job.job_id)
    assert (await jobs.wait(job.job_id)).content is None


async def test_a_replay_is_a_new_job_with_changes(jobs: AsyncChatJobs) -> None:
    first = await jobs.ask(prompt(tokens=20))
    accepted = await jobs.replay(first.job_id, max_tokens=4, max_segments=1)
    second = await jobs.wait(accepted.job_id)
    assert (accepted.replay_of, second.replay_of) == (first.job_id, first.job_id)
    assert second.status is JobStatus.INCOMPLETE
    with pytest.raises(InvalidRequest) as caught:
        await jobs.replay(first.job_id, max_tokens=0)
    assert [problem.pointer for problem in caught.value.problems] == ["/max_tokens"]


async def test_one_key_is_one_job(jobs: AsyncChatJobs) -> None:
    message = prompt()
    first, again = [await jobs.submit(message, idempotency_key=f"key of {message}") for _ in range(2)]
    other = await jobs.submit(message)
    assert first.job_id == again.job_id != other.job_id
    with pytest.raises(IdempotencyMismatch):
        await jobs.submit("Another", idempotency_key=f"key of {message}")
    with pytest.raises(JobIdConflict):
        await jobs.submit("Another", job_id=first.job_id)


@pytest.mark.parametrize("job_id", ["job_unknown", "", "..", "a/b", "ä", "x?y=z"])
async def test_no_such_job(jobs: AsyncChatJobs, job_id: str) -> None:
    """Whatever the id: it never leads to another path."""
    for call in (jobs.get(job_id), jobs.cancel(job_id), jobs.wait(job_id), jobs.delete(job_id), jobs.replay(job_id)):
        with pytest.raises(JobNotFound):
            await call
    with pytest.raises(JobNotFound):
        await read(jobs, job_id)


async def test_lists_are_read_page_by_page(jobs: AsyncChatJobs) -> None:
    """Newest first."""
    name = prompt()[:60]
    before = datetime.now(UTC)
    submitted = [(await jobs.submit(prompt(), metadata={"list": name})).job_id for _ in range(5)]
    found = [job.job_id async for job in jobs.list(metadata={"list": name}, since=before, page_size=2)]
    assert found == submitted[::-1]
    for job_id in submitted:
        await jobs.wait(job_id)
    ended = [
        job.status async for job in jobs.list(metadata={"list": name}, status="completed", model="mistral-small-latest")
    ]
    assert ended == [JobStatus.COMPLETED] * 5
    assert [job async for job in jobs.list(metadata={"list": name}, until=before)] == []


async def test_lists_by_words_errors_and_replays(jobs: AsyncChatJobs) -> None:
    """Each job is found by words of its prompt, a failed one by its code, a replay by what it repeats."""
    word = f"w{uuid.uuid4().hex}"
    failing = f"{prompt(faults=[{'kind': 400}], repeat_last=True)} {word}"
    failed = (await jobs.ask(failing)).job_id
    again = (await jobs.replay(failed)).job_id
    await jobs.wait(again)

    async def listed(**filters: Any) -> list[str]:
        return [job.job_id async for job in jobs.list(page_size=1, **filters)]

    async def searched() -> bool:
        return await listed(search=f"{word.upper()}!") == [again, failed]

    await eventually(searched)
    assert await listed(search=word, error_code="upstream_rejected") == [again, failed]
    assert await listed(search=word, error_code="other") == []
    assert await listed(replay_of=failed) == [again]
    assert await listed(batch_id="batch_none") == []
    (job,) = [job async for job in jobs.list(replay_of=failed)]
    assert job.preview == failing[:120] == (await jobs.get(again)).preview


# ----------------------------------------------------------------------------------------- broken networks


async def test_a_stream_outlives_the_gateway(jobs: AsyncChatJobs, service: Stack, door: Gateway) -> None:
    """kill -9 in the middle, twice; the same text comes once, without a gap."""
    message = prompt(**SLOW)
    accepted = await jobs.submit(message)
    reader, kills = Reader(), [20, 300]
    async for event in jobs.stream(accepted.job_id):
        reader.take(event)
        if kills and len(reader.text) > kills[0]:
            kills.pop(0)
            await asyncio.to_thread(door.process.kill)
            door.process.start(wait=False)
    assert kills == []
    assert reader.kinds == [StartEvent, ChunkEvent, CompleteEvent]
    assert reader.text == service.simulator.answer(message)["text"]
    assert len((await jobs.get(accepted.job_id)).attempts) == 1


async def test_another_process_goes_on_where_a_reader_was(jobs: AsyncChatJobs) -> None:
    accepted = await jobs.submit(prompt(**SLOW))
    first = Reader()
    async with jobs.stream(accepted.job_id) as events:
        async for event in events:
            first.take(event)
            if len(first.text) > 50:
                break
    second = await read(jobs, accepted.job_id, last_event_id=events.last_event_id)
    job = await jobs.get(accepted.job_id)
    assert first.text + second.text == job.content
    assert second.kinds == [ChunkEvent, CompleteEvent]
    assert (await read(jobs, accepted.job_id, last_event_id=f"1.{job.position}.end")).events == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_stream_that_is_cut_again_and_again(
    jobs: AsyncChatJobs, service: Stack, door: Gateway, seed: int
) -> None:
    """After any number of bytes: within the head, within an event, within a character."""
    message = prompt(pieces=["é🌊", "\n", "ab", "—"] * 50, tokens_per_second=200)
    accepted = await jobs.submit(message)
    async with cutter(door.url, dice(seed, 1, 1_500)) as proxy, client(proxy.url) as cut_off:
        reader = await read(cut_off, accepted.job_id)
    assert proxy.cuts >= 2
    assert reader.kinds == [StartEvent, ChunkEvent, CompleteEvent]
    assert reader.text == (await jobs.get(accepted.job_id)).content == service.simulator.answer(message)["text"]


async def test_a_job_whose_acceptance_was_lost_is_one_job(jobs: AsyncChatJobs, door: Gateway) -> None:
    """The answer to the POST is cut twice; the third is about the same job."""
    name = prompt()[:60]
    async with cutter(door.url, iter([0, 100, None])) as proxy, client(proxy.url) as cut_off:
        accepted = await cut_off.submit(prompt(), metadata={"lost": name})
    assert proxy.cuts == 2
    assert [job.job_id async for job in jobs.list(metadata={"lost": name})] == [accepted.job_id]


async def test_patience_ends(door: Gateway) -> None:
    async with client(f"http://127.0.0.1:{free_port()}", patience=0.3, timeout=0.3) as nobody:
        with pytest.raises(ServiceUnavailable):
            await read(nobody, "job_1")
        with pytest.raises(ServiceUnavailable, match="ConnectError"):
            await nobody.get("job_1")


# --------------------------------------------------------------------------------------------------- map


async def outcomes(jobs: AsyncChatJobs, prompts: Any, **options: Any) -> list[Outcome]:
    return [outcome async for outcome in jobs.map(prompts, **options)]


async def test_many_prompts(jobs: AsyncChatJobs, service: Stack) -> None:
    """Outcomes in order whatever takes longer, errors in their places, every step of progress told."""
    good = [prompt(tokens=60, tokens_per_second=100), *(prompt(tokens=3) for _ in range(6))]
    bad = prompt(faults=[{"kind": 400}], repeat_last=True)
    progress: list[Progress] = []
    found = await outcomes(jobs, [*good[:3], bad, " ", *good[3:]], concurrency=4, on_progress=progress.append)
    assert [outcome.index for outcome in found] == list(range(9))
    assert [type(outcome.error) for outcome in found[3:5]] == [JobFailed, InvalidRequest]
    assert found[3].job is not None
    assert found[3].content is None
    texts = [outcome.content for outcome in found if outcome.error is None]
    assert texts == [service.simulator.answer(message)["text"] for message in good]
    assert [step.done for step in progress] == list(range(1, 10))
    assert progress[-1] == Progress(done=9, failed=2, total=9)


async def test_prompts_may_come_slowly_and_never_end(jobs: AsyncChatJobs) -> None:
    """An outcome is handed out while the next prompt is not there yet; leaving the loop ends everything."""
    more, taken = asyncio.Event(), []

    async def prompts() -> AsyncIterator[str]:
        for number in range(1_000_000):
            if number == 2:
                await more.wait()
            taken.append(number)
            yield prompt(tokens=1)

    async with contextlib.aclosing(jobs.map(prompts(), concurrency=2)) as found:  # type: ignore[type-var]
        assert [(await anext(found)).index for _ in range(2)] == [0, 1]
        more.set()
        assert (await anext(found)).index == 2
    assert len(taken) <= 3 + 10 * 2 + 1
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("map")]


async def test_a_reader_who_does_not_take_outcomes_stops_the_work(jobs: AsyncChatJobs) -> None:
    """About ten times the concurrency is in memory, not more."""
    done: list[Progress] = []
    all_done = asyncio.Event()

    def progress(step: Progress) -> None:
        done.append(step)
        if step.done == 10:
            all_done.set()

    taken = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield prompt(tokens=1)

    async with contextlib.aclosing(jobs.map(prompts(), concurrency=1, on_progress=progress)) as found:  # type: ignore[type-var]
        await anext(found)
        await asyncio.wait_for(all_done.wait(), 20)
        assert await anext(found)
    assert taken <= 12


async def test_a_script_that_runs_again_pays_once(jobs: AsyncChatJobs) -> None:
    prompts = [prompt(tokens=2) for _ in range(3)]
    first, second = [await outcomes(jobs, prompts, idempotency_prefix=prompts[0][:40]) for _ in range(2)]
    assert [outcome.job for outcome in first] == [outcome.job for outcome in second]


async def test_what_the_prompts_or_the_callback_raise_is_raised(jobs: AsyncChatJobs) -> None:
    def prompts() -> Iterator[str]:
        yield prompt(tokens=1)
        raise LookupError("no more")

    def progress(_: Progress) -> None:
        raise ArithmeticError

    with pytest.raises(LookupError):
        await outcomes(jobs, prompts())
    with pytest.raises(ArithmeticError):
        await outcomes(jobs, [prompt(tokens=1)], on_progress=progress)


async def test_progress_may_be_reported_asynchronously(jobs: AsyncChatJobs) -> None:
    seen: asyncio.Queue[Progress] = asyncio.Queue()
    assert len(await outcomes(jobs, [prompt(), prompt()], on_progress=seen.put)) == 2
    assert [seen.get_nowait().done for _ in range(2)] == [1, 2]


async def test_a_prompt_may_take_too_long(jobs: AsyncChatJobs) -> None:
    (found,) = await outcomes(jobs, [prompt(faults=[{"kind": "stall", "seconds": 1}])], timeout=0.3)
    assert isinstance(found.error, ServiceUnavailable)
    assert found.error.reason == "timeout"


async def test_one_prompt_is_not_many(jobs: AsyncChatJobs) -> None:
    """A text is a sequence of texts, for Python; each letter would be a job."""
    for wrong in ("Hello", ChatRequest(messages=(UserMessage(content="Hello"),))):
        with pytest.raises(TypeError):
            await outcomes(jobs, wrong)
    with pytest.raises(ValueError):
        await outcomes(jobs, [], concurrency=0)


# -------------------------------------------------------------------------------------------- requests


def test_requests_may_be_given_in_any_form() -> None:
    """Texts, dicts, models, a whole request; fields by either name. What was not given is not sent."""
    message, five = UserMessage(content="Hi"), {"max_tokens": 5}
    bodies = [
        request_body("Hi", five),
        request_body([{"role": "user", "content": "Hi"}], five),
        request_body([message], five),
        request_body(ChatRequest(messages=(message,), max_tokens=5), {}),
        request_body(ChatRequest(messages=(message,), max_tokens=9), five),
    ]
    wanted = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    assert [json.loads(body) for body in bodies] == [wanted] * len(bodies)
    names = {"on_interrupt": "fail", "max_segments": 2, "request_id": "r", "job_id": "j"}
    assert request_body("Hi", names) == request_body(
        "Hi", {"onInterrupt": "fail", "maxSegments": 2, "id": "r", "jobId": "j"}
    )


def test_the_fields_of_a_request_keep_their_order() -> None:
    """Models answer in the order of a schema."""
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert json.dumps(schema, separators=(",", ":")).encode() in request_body("Hi", {"tools": [tool]})


def test_a_request_of_models_says_the_same() -> None:
    request = ChatRequest(
        messages=(UserMessage(content="Hi"), AssistantMessage(content="Ah", prefix=True)),
        webhook=Webhook(url="https://you.example/", events=(WebhookEventType.FAILED,)),
        limits=Limits(total_seconds=5),
    )
    assert read_json(ChatRequest, request_body(request, {})) == request
    fields = {"webhook": request.webhook, "limits": request.limits}
    assert read_json(ChatRequest, request_body(list(request.messages), fields)) == request


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [({"max_tokens": 0}, "/max_tokens"), ({"nonsense": 1}, "/nonsense"), ({"temperature": float("nan")}, "")],
)
def test_what_is_wrong_is_said_before_anything_is_sent(fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_body("Hi", fields)
    assert [problem.pointer for problem in caught.value.problems] == [pointer]


@pytest.mark.parametrize(
    ("url", "key"), [("ftp://x", None), ("127.0.0.1:8000", None), ("http://x:y", None), ("http://x", f"{KEY}\n")]
)
def test_what_cannot_work_is_said_at_once(url: str, key: str | None) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AsyncChatJobs(url, key)
    assert KEY not in str(caught.value)


# --------------------------------------------------------------------------------- whatever the answer is

JOB = {"jobId": "job_1", "requestId": "r", "status": "completed", "model": "m", "createdAt": "2026-01-02T03:04:05Z"}
OK = plain("200 OK", JOB)


def problem(status: str, code: str, **fields: Any) -> bytes:
    return plain(status, {"code": code, "detail": "Told so"} | fields, content_type="application/problem+json")


async def failing(*replies: Reply, **options: Any) -> tuple[ChatJobsError, RawServer]:
    """What ``get`` raises."""
    async with raw_server(*replies) as server, client(server.url, **options) as jobs:
        with pytest.raises(ChatJobsError) as caught:
            await jobs.get("job_1")
    return caught.value, server


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem("401 Unauthorized", "unauthorized"), Unauthorized),
        (plain("401 Unauthorized", b"<html>"), Unauthorized),
        (problem("404 Not Found", "job_not_found"), JobNotFound),
        (plain("404 Not Found", b"<html>"), ApiError),
        (problem("409 Conflict", "job_finished"), JobFinished),
        (problem("409 Conflict", "job_running"), JobRunning),
        (problem("409 Conflict", "job_id_taken"), JobIdConflict),
        (problem("410 Gone", "content_deleted"), ContentDeleted),
        (problem("422 Unprocessable Content", "idempotency_mismatch"), IdempotencyMismatch),
        (problem("422 Unprocessable Content", "webhook_url_refused"), WebhookUrlRefused),
        (problem("413 Content Too Large", "body_too_large"), ApiError),
        (problem("500 Internal Server Error", "internal"), ApiError),
        (plain("500 Internal Server Error", b"[]"), ApiError),
        (plain("302 Found", location="http://127.0.0.1:1/"), ApiError),
        (plain("200 OK", b"<html>"), ApiError),
        (plain("200 OK", {"jobId": 5}), ApiError),
        (plain("200 OK", b"x", content_encoding="gzip"), ApiError),
    ],
)
async def test_problems_are_our_errors(reply: bytes, kind: type[ChatJobsError]) -> None:
    """And are not asked for again."""
    error, server = await failing(reply)
    assert type(error) is kind
    assert len(server.visits) == 1


async def test_an_error_says_what_the_service_said() -> None:
    found, _ = await failing(problem("413 Content Too Large", "body_too_large"))
    assert isinstance(found, ApiError)
    assert (found.status, found.reason, found.message) == (413, "body_too_large", "Told so")
    errors = [{"pointer": "/model", "message": "no"}, {"pointer": 5}, 7]
    invalid, _ = await failing(problem("422 Unprocessable Content", "validation_failed", errors=errors))
    assert isinstance(invalid, InvalidRequest)
    assert invalid.problems == (Problem("/model", "no"), Problem("", "is not valid"))


@pytest.mark.parametrize(
    "status", ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "429 Too Many"]
)
async def test_what_may_pass_is_tried_again(status: str) -> None:
    """Also a connection that ends without an answer."""
    async with (
        raw_server(plain(status), b"HTTP/1.1 connection: close\r\n\r\n", OK) as server,
        client(server.url) as jobs,
    ):
        assert (await jobs.get("job_1")).job_id == "job_1"
    assert len(server.visits) == 3


async def test_repetitions_have_the_key_of_the_first() -> None:
    accepted = {"jobId": "j", "requestId": "r", "status": "queued", "statusUrl": "", "eventsUrl": "", "cancelUrl": ""}
    reply = plain("202 Accepted", accepted | {"temporalUrl": ""})
    async with raw_server(plain("503 Service Unavailable"), reply) as server, client(server.url, api_key=KEY) as jobs:
        await jobs.submit("Hi")
        await jobs.submit("Hi")
    keys = [visit.headers["idempotency-key"] for visit in server.visits]
    assert keys[0] == keys[1] != keys[2]
    assert {visit.headers["authorization"] for visit in server.visits} == {f"Bearer {KEY}"}
    assert len({visit.body for visit in server.visits}) == 1


async def test_retry_after_is_waited_for_unless_it_is_too_long() -> None:
    reply = problem("503 Service Unavailable", "storage_unavailable")
    later = reply.replace(b"\r\n", b"\r\nRetry-After: 30\r\n", 1)
    error, server = await failing(later, timeout=5)
    assert isinstance(error, ServiceUnavailable)
    assert (error.status, error.reason, error.retry_after) == (503, "storage_unavailable", 30)
    assert len(server.visits) == 1
    soon = reply.replace(b"\r\n", b"\r\nRetry-After: 1\r\n", 1)
    begun = asyncio.get_running_loop().time()
    async with raw_server(soon, OK) as server, client(server.url) as jobs:
        await jobs.get("job_1")
    assert asyncio.get_running_loop().time() - begun >= 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7),
        ("99999999", 60),
        ("-1", None),
        ("abc", None),
        ("Fri, 02 Jan 2026 03:04:15 GMT", 10),
        ("Fri, 02 Jan 2026 03:04:15 -0000", 10),
        ("Fri, 02 Jan 2020 03:04:15 GMT", 0),
    ],
)
def test_retry_after_in_all_its_forms(header: str | None, seconds: float | None) -> None:
    """At most a minute."""
    headers = {"Date": "Fri, 02 Jan 2026 03:04:05 GMT"} | ({} if header is None else {"Retry-After": header})
    error = failure(httpx2.Response(503, headers=headers), b"", repeated=CALLS_REPEATED)
    assert isinstance(error, ServiceUnavailable)
    assert error.retry_after == seconds


def test_waiting_grows_to_a_limit() -> None:
    assert all(0 <= exponential(failures) <= min(10, 0.25 * 2**failures) for failures in range(50))
    assert max(exponential(50) for _ in range(100)) > 5


# ---------------------------------------------------------------------------------------------- limits


async def drip(visit: Visit) -> None:
    """An answer that never ends, a byte at a time."""
    await visit.send(head(content_length="1000000"))
    while True:
        await visit.send(b" ")
        await asyncio.sleep(0.05)


async def test_a_call_has_a_total_time() -> None:
    """However alive the connection seems."""
    error, _ = await failing(drip, timeout=0.3)
    assert isinstance(error, ServiceUnavailable)


async def test_an_answer_has_a_total_size() -> None:
    async def endless(visit: Visit) -> None:
        await visit.send(STREAM_HEAD)
        while True:
            await visit.send(part(b"x" * 10_000))

    for reply in (endless, plain("200 OK", b"x" * 200_000)):
        error, server = await failing(reply, max_response_bytes=100_000)
        assert isinstance(error, ResponseTooLarge)
        assert len(server.visits) == 1


async def test_a_list_that_goes_round_in_circles_ends() -> None:
    async with (
        raw_server(plain("200 OK", {"jobs": [JOB], "nextCursor": "again"})) as server,
        client(server.url) as jobs,
    ):
        with pytest.raises(ApiError):
            [job async for job in jobs.list()]
    assert len(server.visits) == 2


def frames(*events: tuple[str, str, str]) -> bytes:
    return b"".join(encode(*event) for event in events)


def told(content: str, event_id: str) -> tuple[str, str, str]:
    return ("chunk", event_id, f'{{"content":"{content}","channel":"content","index":0,"tokenCount":1}}')


RETRY = b"retry: 1000\n\n"
FIRST = frames(told("ab", "1.2"))
END = ("complete", "1.4.end", '{"status":"completed","sha256":"00"}')
REST = stream(frames(told("cd", "1.4"), END))


async def watching(*replies: Reply, **options: Any) -> tuple[str, list[str | None]]:
    """The text of a stream that such connections make, and the ids that they were asked for."""
    async with raw_server(*replies) as server, client(server.url, **options) as jobs:
        reader = await asyncio.wait_for(read(jobs, "job_1"), 20)
    assert reader.kinds == [ChunkEvent, CompleteEvent]
    return reader.text, [visit.headers.get("last-event-id") for visit in server.visits]


async def silent(visit: Visit) -> None:
    """A connection that is dead, and does not say so."""
    await visit.send(STREAM_HEAD, part(FIRST))
    await visit.gone.wait()


async def silent_from_the_start(visit: Visit) -> None:
    await visit.gone.wait()


@pytest.mark.parametrize(
    "reply",
    [
        STREAM_HEAD + part(FIRST),
        stream(FIRST),
        stream(FIRST, b"event: chunk\nid: 1.4\ndata: {"),
        silent,
    ],
    ids=["cut", "closed", "cut in an event", "silent"],
)
async def test_a_stream_goes_on_where_it_broke(reply: Reply) -> None:
    async def broken(visit: Visit) -> None:
        if isinstance(reply, bytes):
            await visit.send(reply)
            visit.writer.close()
        else:
            await reply(visit)

    assert await watching(broken, REST, silence=0.4) == ("abcd", [None, "1.2"])


@pytest.mark.parametrize(
    "reply",
    [
        plain("503 Service Unavailable"),
        plain("502 Bad Gateway", b"<html>"),
        plain("504 Gateway Timeout"),
        plain("500 Internal Server Error"),
        plain("429 Too Many Requests"),
        plain("200 OK", b"<html>", content_type="text/html"),
        head("204 No Content"),
        silent_from_the_start,
    ],
    ids=["503", "502", "504", "500", "429", "a page", "nothing", "silent"],
)
async def test_a_stream_is_asked_for_again(reply: Reply) -> None:
    """What proxies say while the service is away is no end."""
    whole = stream(RETRY, FIRST, frames(told("cd", "1.4"), END))
    assert await watching(reply, whole, silence=0.4) == ("abcd", [None, None])


async def test_keep_alives_keep_a_stream_open() -> None:
    """For longer than a silence, on one connection."""

    async def slow(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(FIRST))
        for _ in range(4):
            await asyncio.sleep(0.2)
            await visit.send(part(b": keep-alive\n\n"))
        await visit.send(part(frames(told("cd", "1.4"), END)), LAST_PART)

    assert await watching(slow, silence=0.5, patience=0.5) == ("abcd", [None])


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem("400 Bad Request", "bad_event_id"), ApiError),
        (problem("401 Unauthorized", "unauthorized"), Unauthorized),
        (problem("404 Not Found", "job_not_found"), JobNotFound),
        (problem("410 Gone", "content_deleted"), ContentDeleted),
        (problem("406 Not Acceptable", "not_acceptable"), ApiError),
        (plain("301 Moved", location="http://127.0.0.1:1/"), ApiError),
    ],
)
async def test_a_stream_is_given_up(reply: bytes, kind: type[ChatJobsError]) -> None:
    async with raw_server(reply) as server, client(server.url) as jobs:
        with pytest.raises(ChatJobsError) as caught:
            await read(jobs, "job_1")
    assert type(caught.value) is kind
    assert len(server.visits) == 1


async def test_nothing_follows_an_end() -> None:
    async with raw_server(head("204 No Content")) as server, client(server.url) as jobs:
        assert (await read(jobs, "job_1", last_event_id="1.4.end")).events == []
    assert [visit.headers["last-event-id"] for visit in server.visits] == ["1.4.end"]


async def test_a_gap_is_asked_for_again() -> None:
    """A text with a hole is never handed out."""
    gap = stream(FIRST, frames(told("d", "1.4"), END))
    assert await watching(gap, REST) == ("abcd", [None, "1.2"])


async def test_a_stream_that_never_fits_together_is_given_up() -> None:
    async with (
        raw_server(stream(frames(told("d", "1.4")), frames(told("f", "1.6")))) as server,
        client(server.url) as jobs,
    ):
        reader = Reader()
        with pytest.raises(StreamBroken):
            await reader.follow(jobs.stream("job_1"))
    assert (reader.text, len(server.visits)) == ("d", 3)


async def test_an_event_has_a_total_size() -> None:
    async def endless(visit: Visit) -> None:
        await visit.send(STREAM_HEAD)
        while True:
            await visit.send(part(b"data: " + b"x" * 10_000))

    async with raw_server(endless) as server, client(server.url, max_event_bytes=100_000) as jobs:
        with pytest.raises(ResponseTooLarge):
            await read(jobs, "job_1")


async def test_an_answer_is_the_one_that_was_stored() -> None:
    """Its digest is in the end; and it has a total size."""
    async with raw_server(stream(FIRST, frames(told("cd", "1.4"), END))) as server:
        async with client(server.url) as jobs:
            with pytest.raises(StreamBroken):
                await jobs.answer("job_1")
        async with client(server.url, max_response_bytes=3) as jobs:
            with pytest.raises(ResponseTooLarge):
                await jobs.answer("job_1")


async def test_a_reset_drops_the_text_so_far() -> None:
    sha256 = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"  # of "abcd"
    reset = ("reset", "2.0", '{"attempt":2,"reason":"restart"}')
    end = ("complete", "2.4.end", f'{{"status":"completed","sha256":"{sha256}"}}')
    async with raw_server(stream(FIRST, frames(reset, told("abcd", "2.4"), end))) as server, client(server.url) as jobs:
        assert await jobs.answer("job_1") == "abcd"


async def test_a_reader_who_leaves_hangs_up() -> None:
    """With or without ``async with``."""
    gone = asyncio.Event()

    async def endless(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(FIRST))
        try:
            await visit.gone.wait()
        finally:
            gone.set()

    async with raw_server(endless) as server, client(server.url) as jobs:
        async with jobs.stream("job_1") as events:
            async for _ in events:
                break
        await asyncio.wait_for(gone.wait(), 5)
        gone.clear()
        async for _ in jobs.stream("job_1"):
            break
        await asyncio.wait_for(gone.wait(), 5)


async def test_redirects_are_not_followed() -> None:
    """They would take the key along."""
    async with raw_server(OK) as other:
        error, _ = await failing(plain("307 Temporary Redirect", location=other.url), api_key=KEY)
    assert isinstance(error, ApiError)
    assert error.status == 307
    assert other.visits == []
    assert KEY not in repr(error)


def test_importing_it_is_light() -> None:
    """Pydantic and httpx2, nothing of the service."""
    script = "import sys, chatjobs.client; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {
        "temporalio",
        "sqlalchemy",
        "starlette",
        "fastapi",
        "uvicorn",
        "mistralai",
        "structlog",
        "standardwebhooks",
    }
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(("number", "shown"), CLIENT_EXAMPLES.values(), ids=CLIENT_EXAMPLES.keys())
def test_the_examples_of_the_guide_run(door: Gateway, number: int, shown: str) -> None:
    """In an empty environment, too: tests/unit/test_package.py."""
    assert shown in output(snippets("client.md", "python")[number], env={"CHATJOBS_URL": door.url})


def test_every_example_of_the_guide_is_run() -> None:
    assert [number for number, _ in CLIENT_EXAMPLES.values()] == list(range(len(snippets("client.md", "python"))))
