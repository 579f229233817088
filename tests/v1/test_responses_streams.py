"""The streams of responses: cut anywhere, resumed anywhere and at any age, never with text that is void."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text as sql
from sqlalchemy import update

from chatjobs.contracts import Channel, FunctionCall, ToolCall
from chatjobs.sse import Parser
from dispatch import intake
from domain.new_jobs import new_job
from domain.settings import USUAL_BODY_BYTES, Settings
from domain.timings import Timings
from domain.values import Claim, ResponseForm
from gateway.__main__ import listen
from gateway.app import create_app
from gateway.dependencies import open_dependencies
from gateway.serving.server import served
from gateway.v1 import responses, responses_conversation
from gateway.v1.responses_events import EPOCH_ROOM, ROOM
from providers.webhooks.sender import HttpWebhookSender
from storage.engine.database import Database
from storage.engine.schema import jobs
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.factories import accepted, claimed, ending, failing, finished, make_body, make_job
from tests.support.gateway import Gateway, alone, gateway
from tests.support.postgres import Postgres
from tests.support.stack import Stack, wait_until
from tests.v1.cutting_proxy import cutting_proxy
from tests.v1.openai_clients import ClientError, OpenAIClient, node_client, python_client

pytestmark = pytest.mark.long

Event = dict[str, Any]
RUNS = ((Channel.REASONING, "Let"), (Channel.CONTENT, "A 🌊 "), (Channel.REASONING, "Hm"), (Channel.CONTENT, "turns"))
CALLS = (ToolCall(id="abcdefghi", function=FunctionCall(name="get_weather", arguments='{"city": "Lyon"}')),)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A database and nothing else; the tests write transcripts themselves."""
    env = {"CHATJOBS_PORT": "0"}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres_server")
        env["CHATJOBS_DATABASE_URL"] = server.new_database()
    with alone(tmp_path_factory.mktemp("responses"), env) as built:
        yield built


@pytest.fixture(scope="module")
def door(machine: Stack) -> Gateway:
    return gateway(machine)


@pytest.fixture(scope="module")
def second(machine: Stack, door: Gateway) -> Gateway:
    """Another one, on the same database."""
    return gateway(machine, "second")


@pytest.fixture
async def database(machine: Stack, door: Gateway) -> AsyncIterator[Database]:
    """The one of the gateways, so that ``store`` and ``writer`` are a worker's."""
    found = await Database.open(machine.database_url)
    yield found
    await found.close()


HTTP = httpx2.Client(timeout=30, trust_env=False)


def events_of(url: str, job_id: str, after: int | None = None) -> list[Event]:
    """All events of a response after one."""
    query = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    answer = HTTP.get(f"{url}/v1/responses/resp_{job_id}", params=query)
    assert answer.status_code == 200, answer.text
    return [json.loads(event.data) for event in Parser().feed(answer.content) if event.data]


async def write(
    writer: TranscriptWriter, claim: Claim, runs: Any = RUNS, calls: Any = (), reason: str = "stop"
) -> None:
    """An answer, its tokens in batches of their own."""
    job_writer = writer.open(claim)
    for channel, text in runs:
        for letter in text:
            job_writer.append(channel, letter)
            await job_writer.flush()
    await job_writer.finish(finished(claim, reason, tool_calls=calls))


async def whole(store: JobStore, writer: TranscriptWriter, **more: Any) -> str:
    """The id of a job that has ended."""
    job_id = await accepted(store)
    await write(writer, await claimed(store, job_id), **more)
    await store.seals.seal(ending(job_id), run_id="run-1")
    return job_id


async def test_every_event_of_every_age_can_be_resumed_from(
    door: Gateway, second: Gateway, store: JobStore, writer: TranscriptWriter, database: Database
) -> None:
    """After each number, also one in the middle of a text, comes exactly the rest: an hour later, from another gateway,
    after the transcript was compacted."""
    job_id = await whole(store, writer, calls=CALLS, reason="tool_calls")
    an_hour = timedelta(hours=1) // timedelta(microseconds=1)
    async with database.write() as connection:
        values = {"completed_at": jobs.c.completed_at - an_hour, "created_at": jobs.c.created_at - an_hour}
        await connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
    full = await asyncio.to_thread(events_of, door.url, job_id)
    numbers = [event["sequence_number"] for event in full]
    assert numbers == sorted(set(numbers))
    texts = ["".join(text for channel, text in RUNS if channel is wanted) for wanted in Channel]
    assert [joined(full, "output_text"), joined(full, "reasoning_summary_text")] == texts
    for number in range(numbers[-1] + 3):
        rest = await asyncio.to_thread(events_of, second.url, job_id, number)
        expected = [event for event in full if event["sequence_number"] > number]
        assert [event["sequence_number"] for event in rest] == [event["sequence_number"] for event in expected]
        for event, whole_event in zip(rest, expected, strict=True):
            if event["type"].endswith("text.delta"):
                assert whole_event["delta"].endswith(event["delta"])
                assert len(event["delta"]) == min(
                    len(whole_event["delta"]), (event["sequence_number"] - number + ROOM - 1) // ROOM
                )
            else:
                assert event == whole_event


def joined(events: list[Event], kind: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


@pytest.mark.parametrize("language", ["python", "node"])
async def test_a_stream_that_is_cut_goes_on_where_it_was(
    door: Gateway,
    second: Gateway,
    store: JobStore,
    writer: TranscriptWriter,
    language: str,
    request: pytest.FixtureRequest,
) -> None:
    """A proxy cuts after each number of events while the answer is written; `starting_after=n` brings the rest."""
    ids = [await accepted(store) for _ in range(12)]
    with client_of(language, request, door.url) as openai, cutting_proxy(door.url) as proxy:
        for events, job_id in enumerate(ids, 1):
            proxy.events, openai.url = events, proxy.url
            reading = asyncio.create_task(asyncio.to_thread(read_until_cut, openai, job_id))
            await write(writer, await claimed(store, job_id))
            await store.seals.seal(ending(job_id), run_id="run-1")
            seen = await reading
            assert len(seen) == events
            openai.url = second.url
            last = seen[-1]["sequence_number"]
            name = f"resp_{job_id}"
            seen += await asyncio.to_thread(
                lambda: list(openai.events("responses.retrieve", name, stream=True, starting_after=last))  # noqa: B023
            )
            numbers = [event["sequence_number"] for event in seen]
            assert numbers == sorted(set(numbers))
            full = await asyncio.to_thread(events_of, door.url, job_id)
            assert without_deltas(seen) == without_deltas(full)
            for kind in ("output_text", "reasoning_summary_text"):
                assert joined(seen, kind) == joined(full, kind)


def without_deltas(events: list[Event]) -> list[tuple[str, int]]:
    return [(e["type"], e["sequence_number"]) for e in events if not e["type"].endswith("text.delta")]


def read_until_cut(openai: OpenAIClient, job_id: str) -> list[Event]:
    seen: list[Event] = []
    with pytest.raises(ClientError):
        seen.extend(openai.events("responses.retrieve", f"resp_{job_id}", stream=True))
    return seen


def client_of(language: str, request: pytest.FixtureRequest, url: str) -> Any:
    if language == "python":
        return python_client(url)
    home: Path = request.getfixturevalue("node_home")
    return node_client(url, home)


@pytest.mark.parametrize("language", ["python", "node"])
async def test_an_answer_that_starts_over_ends_the_stream_with_an_exception(
    door: Gateway, store: JobStore, writer: TranscriptWriter, language: str, request: pytest.FixtureRequest
) -> None:
    """The official clients raise, so that nobody takes the void text for valid; from the beginning, all is well."""
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    job_writer.append(Channel.CONTENT, "Void text")
    await job_writer.flush()
    with client_of(language, request, door.url) as openai:
        events = openai.events("responses.retrieve", f"resp_{job_id}", stream=True)
        seen = await asyncio.to_thread(lambda: [next(events) for _ in range(6)])
        assert joined(seen, "output_text") == "Void text"
        epoch = await store.attempts.restart(claim.job_id, fence=claim.fence, reason="tools")
        job_writer.restarted(epoch)
        with pytest.raises(ClientError, match="started over"):
            await asyncio.to_thread(lambda: list(events))
        last = seen[-1]["sequence_number"]
        with pytest.raises(ClientError, match="started over") as refused:
            await asyncio.to_thread(
                openai.call, "responses.retrieve", f"resp_{job_id}", stream=True, starting_after=last
            )
        assert (refused.value.status, refused.value.code) == (400, "answer_restarted")
        job_writer.append(Channel.CONTENT, "Valid text")
        await job_writer.finish(finished(claim))
        await store.seals.seal(ending(job_id), run_id="run-1")
        again = await asyncio.to_thread(
            lambda: list(openai.events("responses.retrieve", f"resp_{job_id}", stream=True))
        )
    assert joined(again, "output_text") == "Valid text"
    assert again[-1]["sequence_number"] > EPOCH_ROOM
    assert again[-1]["response"]["output"][0]["content"][0]["text"] == "Valid text"


async def test_a_reader_without_text_does_not_notice_a_restart(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    """Whoever has only the events before the answer goes on with the new one."""
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    job_writer.append(Channel.CONTENT, "Void")
    await job_writer.flush()
    job_writer.restarted(await store.attempts.restart(claim.job_id, fence=claim.fence, reason="tools"))
    job_writer.append(Channel.CONTENT, "Valid")
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(job_id), run_id="run-1")
    for number in (None, 0, 2, 4):
        events = await asyncio.to_thread(events_of, door.url, job_id, number)
        assert joined(events, "output_text") == "Valid"
        assert events[0]["type"] == {None: "response.created", 0: "response.queued", 2: "response.in_progress"}.get(
            number, "response.output_item.added"
        )


async def test_an_event_that_is_still_to_come_is_refused(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    """Of a running response; after the end of one that has ended comes nothing."""
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    url = f"{door.url}/v1/responses/resp_{job_id}?stream=true&starting_after={ROOM * 9}"
    answer = await asyncio.to_thread(httpx2.get, url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_event")
    await write(writer, claim)
    await store.seals.seal(ending(job_id), run_id="run-1")
    assert await asyncio.to_thread(events_of, door.url, job_id, 10**9) == []


async def test_a_failed_response_that_is_resumed_goes_on_in_the_same_numbers(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    """A reader that got `response.failed` may go on from it once the job was resumed."""
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    job_writer.append(Channel.CONTENT, "The tide ")
    await job_writer.flush()
    await store.seals.seal(failing(job_id), run_id="run-1")
    seen = await asyncio.to_thread(events_of, door.url, job_id)
    assert seen[-1]["type"] == "response.failed"
    assert seen[-1]["response"]["output"][0]["content"][0]["text"] == "The tide "
    await store.seals.resume(job_id)
    claim = await claimed(store, job_id, run_id="run-2")
    await write(writer, claim, [(Channel.CONTENT, "turns.")])
    await store.seals.seal(ending(job_id), run_id="run-2")
    rest = await asyncio.to_thread(events_of, door.url, job_id, seen[-1]["sequence_number"])
    assert [event["type"] for event in rest][::4] == ["response.output_text.delta", "response.completed"]
    assert joined([*seen, *rest], "output_text") == "The tide turns."


async def test_a_gateway_that_stops_says_where_to_go_on(
    machine: Stack, second: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    """A deploy: the client raises an exception, and the number of its last event leads to the rest."""
    leaving = gateway(machine, "leaving")
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    job_writer.append(Channel.CONTENT, "The tide ")
    await job_writer.flush()
    with python_client(leaving.url) as openai:
        events = openai.events("responses.retrieve", f"resp_{job_id}", stream=True)
        seen = await asyncio.to_thread(lambda: [next(events) for _ in range(6)])
        leaving.process.popen.send_signal(signal.SIGTERM)
        with pytest.raises(ClientError, match=f"starting_after={seen[-1]['sequence_number']}"):
            await asyncio.to_thread(lambda: list(events))
    job_writer.append(Channel.CONTENT, "turns.")
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(job_id), run_id="run-1")
    rest = await asyncio.to_thread(events_of, second.url, job_id, seen[-1]["sequence_number"])
    assert joined([*seen, *rest], "output_text") == "The tide turns."


@pytest.mark.parametrize("language", ["python", "node"])
async def test_a_long_silence_is_bridged_with_white_space(
    machine: Stack,
    store: JobStore,
    writer: TranscriptWriter,
    language: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller that waits for a whole response gets bytes meanwhile, which its JSON parser skips."""
    body, headers = {"model": "mistral-small-latest", "input": "Hello"}, {"Idempotency-Key": f"waits-{language}"}
    async with impatient(machine, monkeypatch) as url, httpx2.AsyncClient(timeout=30) as http:
        with client_of(language, request, url) as openai:
            calling = asyncio.create_task(
                asyncio.to_thread(lambda: openai.call("responses.create", headers=headers, **body))
            )
            async with http.stream("POST", f"{url}/v1/responses", json=body, headers=headers) as same:
                pieces = same.aiter_raw()
                assert [await anext(pieces) for _ in range(3)] == [b"\n"] * 3
                job_id = same.headers["x-job-id"]
                await write(writer, await claimed(store, job_id), [(Channel.CONTENT, "At last")])
                await store.seals.seal(ending(job_id), run_id="run-1")
                rest = b"".join([piece async for piece in pieces])
            response = await calling
    assert json.loads(rest)["id"] == response["id"]
    assert openai.answer["output_text"] == "At last"


async def test_responses_of_other_tenants_are_not_there(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    job = make_job(tenant="another")
    await store.acceptance.accept(job)
    await write(writer, await claimed(store, job.job_id))
    await store.seals.seal(ending(job.job_id), run_id="run-1")
    name = f"resp_{job.job_id}"
    requests = [("GET", name), ("DELETE", name), ("POST", f"{name}/cancel"), ("GET", f"{name}/input_items")]
    for method, path in [*requests, ("GET", f"{name}?stream=true")]:
        answer = await asyncio.to_thread(HTTP.request, method, f"{door.url}/v1/responses/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
    body = {"model": "mistral-small-latest", "input": "Go on", "previous_response_id": name}
    answer = await asyncio.to_thread(lambda: HTTP.post(f"{door.url}/v1/responses", json=body))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "previous_response_not_found")


async def test_a_large_conversation_goes_on_within_limits_and_off_the_loop(
    machine: Stack, store: JobStore, writer: TranscriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is small, the conversation is not: nobody waits for the work on it, and it has a body's limit."""
    threads: dict[str, threading.Thread] = {}

    def noting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            threads[name] = threading.current_thread()
            return work(*given, **named)

        return run

    for module, name in (
        (responses_conversation, "history"),
        (responses, "translated"),
        (responses, "check_whole"),
        (intake, "new_job"),
    ):
        monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    async with impatient(machine, monkeypatch) as url:
        for size, status in ((100_000, 200), (USUAL_BODY_BYTES, 400)):
            threads.clear()
            image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * size}}
            messages = [{"role": "user", "content": [{"type": "text", "text": "See"}, image]}]
            job = new_job({"messages": messages}, tenant="default")
            await store.acceptance.accept(job)
            await write(writer, await claimed(store, job.job_id))
            await store.seals.seal(ending(job.job_id), run_id="run-1")
            body = {"model": "mistral-small-latest", "input": "Go on", "background": True}
            body["previous_response_id"] = f"resp_{job.job_id}"
            async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
                answer = await http.post(f"{url}/v1/responses", json=body)
            assert answer.status_code == status, answer.text
            assert len(threads) == (4 if status == 200 else 3)
            assert threading.main_thread() not in threads.values()
        assert answer.json()["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_complete_answer_ends_regularly_though_it_cannot_be_deleted(
    machine: Stack,
    store: JobStore,
    writer: TranscriptWriter,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
) -> None:
    """The database refuses to delete it at first; the sweeper tries again."""
    async with impatient(machine, monkeypatch) as url, httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        body = {"model": "mistral-small-latest", "input": "Hello", "store": False, "stream": stream}
        async with http.stream("POST", f"{url}/v1/responses", json=body) as answer:
            job_id = answer.headers["X-Job-Id"]
            await write(writer, await claimed(store, job_id), RUNS)
            async with undeletable(database, job_id):
                await store.seals.seal(ending(job_id), run_id="run-1")
                text = b"".join([piece async for piece in answer.aiter_bytes()])
                async with asyncio.timeout(20):
                    while "deleted_later" not in [getattr(one, "action", "") for one in caplog.records]:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
        if stream:
            events = [json.loads(event.data) for event in Parser().feed(text) if event.data]
            assert [event["type"] for event in events][-1] == "response.completed"
        else:
            assert json.loads(text)["status"] == "completed"
        async with asyncio.timeout(20):
            while (await store.queries.get(job_id)).deleted_at is None:  # noqa: ASYNC110 - nothing says when
                await asyncio.sleep(0.05)


@asynccontextmanager
async def undeletable(database: Database, job_id: str) -> AsyncIterator[None]:
    """A trigger in the database refuses to delete the content of a job."""
    when = f"NEW.deleted_at IS NOT NULL AND NEW.id = '{job_id}'"
    if database.is_sqlite:
        made = [f"CREATE TRIGGER undeletable BEFORE UPDATE ON jobs WHEN {when} BEGIN SELECT RAISE(ABORT, 'no'); END"]
        gone = ["DROP TRIGGER undeletable"]
    else:
        refuse = "BEGIN RAISE EXCEPTION 'no'; END"
        made = [
            f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {refuse} $$",
            f"CREATE TRIGGER undeletable BEFORE UPDATE ON jobs FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refuse()",
        ]
        gone = ["DROP TRIGGER undeletable ON jobs", "DROP FUNCTION refuse()"]
    async with database.write() as connection:
        for statement in made:
            await connection.execute(sql(statement))
    try:
        yield
    finally:
        async with database.write() as connection:
            for statement in gone:
                await connection.execute(sql(statement))


async def test_after_the_end_of_an_ended_response_comes_nothing(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    job_id = await whole(store, writer)
    last = (await asyncio.to_thread(events_of, door.url, job_id))[-1]["sequence_number"]
    called = await whole(store, writer, calls=CALLS, reason="tool_calls")
    end = (await asyncio.to_thread(events_of, door.url, called))[-1]["sequence_number"]
    for after in (0, 1, ROOM, 50 * ROOM, EPOCH_ROOM - last, EPOCH_ROOM, 5 * EPOCH_ROOM + 100, 2**63, 10**40):
        assert await asyncio.to_thread(events_of, door.url, job_id, last + after) == []
        assert await asyncio.to_thread(events_of, door.url, called, end + after) == []
    running = await accepted(store)
    for after in (ROOM * 50, EPOCH_ROOM, 10**40):
        query = {"stream": "true", "starting_after": str(after)}
        path = f"{door.url}/v1/responses/resp_{running}"
        answer = await asyncio.to_thread(HTTP.get, path, params=query)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_event")


async def test_a_gateway_that_stops_leaves_those_who_wait_an_error(machine: Stack) -> None:
    """Not an object without content, and none that makes the client ask again, which would be a second job."""
    leaving = gateway(machine, "stopping")
    with python_client(leaving.url) as openai:
        waiting = asyncio.create_task(
            asyncio.to_thread(
                openai.call, "responses.create", model="mistral-small-latest", input="Hello", metadata={"waits": "yes"}
            )
        )
        await asyncio.to_thread(wait_until, lambda: listed(leaving))
        leaving.process.popen.send_signal(signal.SIGTERM)
        with pytest.raises(ClientError) as refused:
            await waiting
    # Without a status where the machine was so busy that the gateway's time for the last words was over.
    assert (refused.value.status, refused.value.code) in ((503, "stream_interrupted"), (None, None))


def listed(door: Gateway) -> bool:
    """Whether the job of the caller that waits was accepted."""
    return bool(HTTP.get(f"{door.url}/api/jobs?metadata.waits=yes").json()["jobs"])


async def test_what_is_not_kept_is_deleted_even_if_nobody_reads_it(
    machine: Stack, door: Gateway, store: JobStore, writer: TranscriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller may hang up, and a gateway may die, before the answer is delivered."""
    job = new_job(make_body(), tenant="default", response=ResponseForm('{"echo": {}}', kept=False))
    kept = await whole(store, writer)
    await store.acceptance.accept(job)
    await write(writer, await claimed(store, job.job_id))
    await store.seals.seal(ending(job.job_id), run_id="run-1")
    async with impatient(machine, monkeypatch):
        async with asyncio.timeout(20):
            while (await store.queries.get(job.job_id)).deleted_at is None:  # noqa: ASYNC110 - nothing says when
                await asyncio.sleep(0.05)
    assert (await store.queries.get(kept)).deleted_at is None
    assert await store.queries.response_form(job.job_id) is None
    assert (await asyncio.to_thread(HTTP.get, f"{door.url}/v1/responses/resp_{job.job_id}")).status_code == 404


@asynccontextmanager
async def impatient(machine: Stack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The URL of a gateway that bridges silences, and deletes what is not to be kept, after a moment."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", machine.temporal_address)
    settings = Settings(chatjobs_database_url=machine.database_url, webhook_secret=())
    timings = Timings(stream_keep_alive_seconds=0.05, sweep_seconds=0.05, unkept_seconds=1)
    async with open_dependencies(settings, lambda rules: HttpWebhookSender(policy=rules), timings=timings) as parts:
        listener = listen("127.0.0.1", 0)
        async with served(create_app(parts), parts.open_streams, listener):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
