"""Event streams over real sockets: cut anywhere, resumed anywhere, ended in time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from chatjobs.contracts import Channel, JobStatus
from chatjobs.sse import Parser
from domain.settings import Settings
from domain.timings import Timings
from gateway.__main__ import listen
from gateway.app import create_app
from gateway.dependencies import Dependencies, open_dependencies
from gateway.routes import streams
from gateway.serving.server import served
from providers.webhooks.sender import HttpWebhookSender
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.event_reader import asked, deaf, read_in_pieces, reading, status_of
from tests.support.factories import accepted, answered, claimed, ending, failing, finished, wrote
from tests.support.gateway import Gateway, alone, gateway
from tests.support.postgres import Postgres
from tests.support.stack import Stack, free_port

JOBS_CUT = 8
TOKENS_CUT = 32
MEGABYTES = 8


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A database and nothing else; the tests write transcripts themselves."""
    env = {"CHATJOBS_PORT": str(free_port())}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres_server")
        env["CHATJOBS_DATABASE_URL"] = server.new_database()
    with alone(tmp_path_factory.mktemp("streams"), env) as built:
        yield built


@pytest.fixture(scope="module")
def door(machine: Stack) -> Gateway:
    return gateway(machine)


@pytest.fixture(scope="module")
def second(machine: Stack, door: Gateway) -> Gateway:
    """Another one, on the same database."""
    port, machine.env["CHATJOBS_PORT"] = machine.env["CHATJOBS_PORT"], "0"
    try:
        return gateway(machine, "second")
    finally:
        machine.env["CHATJOBS_PORT"] = port


@pytest.fixture
async def database(machine: Stack, door: Gateway) -> AsyncIterator[Database]:
    """The one of the gateways, so that ``store`` and ``writer`` are a worker's."""
    found = await Database.open(machine.database_url)
    yield found
    await found.close()


def events_url(door: Gateway, job_id: str) -> str:
    return f"{door.url}/api/jobs/{job_id}/events"


async def write_answer(
    store: JobStore, writer: TranscriptWriter, job_id: str, tokens: int, turn: asyncio.Semaphore | None = None
) -> None:
    """An answer in the making: thoughts, then text, then the seal. Each token waits for its ``turn``, if any."""
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    for number in range(tokens):
        await (turn.acquire() if turn else asyncio.sleep(0.005))
        job_writer.append(Channel.REASONING if number < tokens // 4 else Channel.CONTENT, f"tök{number} ")
        await job_writer.flush()
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(job_id), run_id="run-1")


# ------------------------------------------------------------------------------------------------ cut, resume


async def test_cut_before_every_frame_nothing_is_missing_and_nothing_comes_twice(
    door: Gateway, second: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    """Readers who are cut before each event, the terminal one included, and go on at either of two gateways."""
    ids = [await accepted(store) for _ in range(JOBS_CUT)]
    turns = [asyncio.Semaphore() for _ in ids]  # the next token is written once the reader has the one before
    async with asyncio.TaskGroup() as group:
        readers = []
        for job_id, turn in zip(ids, turns, strict=True):
            urls = [events_url(door, job_id), events_url(second, job_id)]
            group.create_task(write_answer(store, writer, job_id, TOKENS_CUT, turn))
            readers.append(group.create_task(read_in_pieces(urls, on_chunk=turn.release)))
    for job_id, reader in zip(ids, readers, strict=True):
        pieced, job = reader.result(), await store.queries.get(job_id)
        places = pieced.places()
        assert places == sorted(set(places))
        assert pieced.names.count("chunk") == TOKENS_CUT
        assert pieced.names.count("start") == 1
        assert "reset" not in pieced.names
        assert pieced.names[-1] == "complete"
        assert pieced.texts == {"content": job.content or "", "reasoning": job.reasoning or ""}
        assert pieced.ending["sha256"] == job.sha256
        assert await status_of(events_url(door, job_id), last_event_id=pieced.last_id) == 204
    assert sum(reader.result().cuts for reader in readers) >= 500


async def test_start_is_sent_when_the_attempt_begins(door: Gateway, store: JobStore) -> None:
    """A reader learns of it before there is any text, and once."""
    job_id = await accepted(store)
    async with reading(events_url(door, job_id)) as reader:
        claim = await claimed(store, job_id)
        seen = await reader.until(lambda raw: b"event: start" in raw)
        assert b"event: chunk" not in seen
    await store.seals.seal(failing(claim.job_id), run_id="run-1")


async def test_a_gateway_is_killed_in_mid_stream_and_its_readers_go_on(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    """kill -9, and again on the same port: the last event's id is all that is needed."""
    claim = await claimed(store, await accepted(store))
    job_writer = await wrote(writer, claim, "Once ", "upon ")
    async with reading(events_url(door, claim.job_id)) as reader:
        await reader.until(lambda raw: b"upon" in raw)
        door.process.kill()
        seen = await reader.all()
        assert not reader.complete
    job_writer.append(Channel.CONTENT, "a ")
    await job_writer.flush()
    door.process.start()
    async with reading(events_url(door, claim.job_id), last_event_id=seen[-1].id) as reader:
        event = await reader.next()
        assert event is not None
        assert (event.event, event.id, json.loads(event.data)["content"]) == ("chunk", "1.12", "a ")


async def test_what_was_missed_comes_as_one_frame_per_channel(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    claim = await claimed(store, await accepted(store))
    job_writer = await wrote(writer, claim, "Let ", "me ", "see. ", channel=Channel.REASONING)
    for delta in ("It ", "is ", "so."):
        job_writer.append(Channel.CONTENT, delta)
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(claim.job_id), run_id="run-1")
    async with reading(events_url(door, claim.job_id)) as reader:
        events = await reader.all()
        assert reader.raw.startswith(b'retry: 1000\nevent: start\nid: 1.0\ndata: {"jobId"')
        assert reader.complete
    assert [(event.event, event.id) for event in events] == [
        ("start", "1.0"),
        ("chunk", "1.12"),
        ("chunk", "1.21"),
        ("complete", "1.21.end"),
    ]
    thought, text = (json.loads(event.data) for event in events[1:3])
    assert thought == {"content": "Let me see. ", "channel": "reasoning", "index": 0, "tokenCount": 3}
    assert text == {"content": "It is so.", "channel": "content", "index": 1, "tokenCount": 6}


async def test_a_long_text_comes_in_bounded_frames(door: Gateway, store: JobStore, writer: TranscriptWriter) -> None:
    """None has more than the longest one may, and the ids lie inside the run."""
    text = "wörd " * 40_000
    job_id = await answered(store, writer, text)
    await store.seals.seal(ending(job_id), run_id="run-1")
    async with reading(events_url(door, job_id)) as reader:
        events = [event for event in await reader.all() if event.event == "chunk"]
    contents = [json.loads(event.data)["content"] for event in events]
    assert "".join(contents) == text
    assert max(map(len, contents)) <= streams.CHARACTERS_AT_ONCE
    assert [event.id for event in events][-1] == f"1.{len(text)}"


async def test_fifty_readers_of_one_job(door: Gateway, store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(_whole(events_url(door, job_id))) for _ in range(50)]
        group.create_task(write_answer(store, writer, job_id, tokens=40))
    job = await store.queries.get(job_id)
    assert {reader.result() for reader in readers} == {f"{job.reasoning}{job.content}"}


async def _whole(url: str) -> str:
    async with reading(url) as reader:
        return "".join(json.loads(e.data)["content"] for e in await reader.all() if e.event == "chunk")


# ------------------------------------------------------------------------------------- resets, ends, reopened


async def test_a_restart_tells_readers_to_drop_what_they_have(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    """Whoever was there, and whoever comes back with an id of the epoch that is gone."""
    claim = await claimed(store, await accepted(store))
    await wrote(writer, claim, "Wrong")
    async with reading(events_url(door, claim.job_id)) as reader:
        await reader.until(lambda raw: b"Wrong" in raw)
        epoch = await store.attempts.restart(claim.job_id, fence=claim.fence, reason="tools")
        await wrote(writer, replace(claim, epoch=epoch, position=0, token_count=0), "Right")
        await reader.until(lambda raw: b"Right" in raw)
        names = [(event.event, event.id) for event in [await reader.next() for _ in range(4)] if event]
    assert names == [("start", "1.0"), ("chunk", "1.5"), ("reset", "2.0"), ("chunk", "2.5")]
    async with reading(events_url(door, claim.job_id), last_event_id="1.5") as reader:
        reset, chunk = await reader.next(), await reader.next()
    assert reset is not None
    assert chunk is not None
    assert (reset.event, json.loads(reset.data)["reason"]) == ("reset", "tools")
    assert json.loads(chunk.data)["content"] == "Right"


async def test_an_id_from_the_future_gets_a_reset_and_the_full_text(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    claim = await claimed(store, await accepted(store))
    await wrote(writer, claim, "Hello")
    for given in ("1.6", "9.9", "9.9.end"):
        async with reading(events_url(door, claim.job_id), last_event_id=given) as reader:
            reset, chunk = await reader.next(), await reader.next()
        assert reset is not None
        assert chunk is not None
        assert (reset.event, reset.id, chunk.id) == ("reset", "1.0", "1.5")


async def test_a_failed_job_that_was_reopened_goes_on_behind_its_end(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    claim = await claimed(store, await accepted(store), run_id="run-1")
    await wrote(writer, claim, "Half ")
    await store.seals.seal(failing(claim.job_id), run_id="run-1")
    async with reading(events_url(door, claim.job_id)) as reader:
        *_, error = await reader.all()
    assert (error.event, error.id) == ("error", "1.5.end")
    assert await status_of(events_url(door, claim.job_id), last_event_id=error.id) == 204

    again = await claimed(store, claim.job_id, run_id="run-2")
    async with reading(events_url(door, claim.job_id), last_event_id=error.id) as reader:
        assert reader.status == 200
        job_writer = await wrote(writer, again, "done.")
        await job_writer.finish(finished(again))
        await store.seals.seal(ending(claim.job_id), run_id="run-2")
        events = await reader.all()
    assert [(event.event, event.id) for event in events] == [("chunk", "1.10"), ("complete", "1.10.end")]


# -------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"last_event_id": "abc"}, 400, "bad_event_id"),
        ({"last_event_id": "1.5.END"}, 400, "bad_event_id"),
        ({"last_event_id": "0.5"}, 400, "bad_event_id"),
        ({"last_event_id": "1.-5"}, 400, "bad_event_id"),
        ({"last_event_id": "\xe9.1"}, 400, "bad_event_id"),
        ({"last_event_id": "1.\xb2"}, 400, "bad_event_id"),
        ({"last_event_id": "1." + "9" * 16}, 400, "bad_event_id"),
        ({"headers": {"accept": "application/json"}}, 406, "not_acceptable"),
    ],
)
async def test_what_is_not_answered_with_a_stream(
    door: Gateway, store: JobStore, options: dict[str, Any], status: int, code: str
) -> None:
    url = events_url(door, await accepted(store))
    async with reading(url, **options) as reader:
        assert reader.status == status
        assert reader.headers["content-type"] == "application/problem+json"
        await reader.until(lambda raw: raw.endswith(b"}"))
        assert json.loads(reader.raw)["code"] == code


async def test_the_header_wins_over_the_query(door: Gateway, store: JobStore, writer: TranscriptWriter) -> None:
    """EventSource sends the header only when it reconnects, to the URL that it was made with."""
    claim = await claimed(store, await accepted(store))
    await wrote(writer, claim, "Hello you")
    url = events_url(door, claim.job_id)
    for target, header, expected in ((f"{url}?lastEventId=1.5", "", " you"), (f"{url}?lastEventId=1.5", "1.8", "u")):
        async with reading(target, last_event_id=header) as reader:
            event = await reader.next()
        assert event is not None
        assert json.loads(event.data)["content"] == expected


async def test_nobodys_job_is_not_found_at_once_while_temporal_is_away(door: Gateway) -> None:
    began = asyncio.get_running_loop().time()
    for job_id in ("nobody", "x" * 300, "%00", "%ff"):
        assert await status_of(events_url(door, job_id)) == 404
    assert asyncio.get_running_loop().time() - began < 4


async def test_a_head_is_answered_without_a_stream(door: Gateway, store: JobStore) -> None:
    url = events_url(door, await accepted(store))
    async with reading(url, method="HEAD", headers={"connection": "close"}) as reader:
        assert reader.status == 200
        assert reader.headers["content-type"].startswith("text/event-stream")
        assert await reader.all() == []


# ------------------------------------------------------------------------------------- a stream as a response


async def test_a_posted_stream_names_its_job_and_hanging_up_does_not_stop_it(door: Gateway, store: JobStore) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    key = {"idempotency-key": "stream-1"}
    async with reading(f"{door.url}/api/chat/stream", body=body, headers=key) as reader:
        assert reader.status == 200
        assert reader.headers["x-accel-buffering"] == "no"
        assert reader.headers["cache-control"] == "no-cache, no-transform"
        job_id = reader.headers["x-job-id"]
    assert (await store.queries.get(job_id)).status is JobStatus.QUEUED
    async with reading(f"{door.url}/api/chat/stream", body=body, headers=key) as reader:
        assert (reader.headers["x-job-id"], reader.headers["idempotency-replayed"]) == (job_id, "true")


async def test_a_gateway_that_stops_takes_leave_of_its_readers(door: Gateway, store: JobStore) -> None:
    """SIGTERM: every open stream ends in form, and the process exits."""
    urls = [events_url(door, await accepted(store)) for _ in range(5)]
    readers = [await asked(url) for url in urls]
    began = asyncio.get_running_loop().time()
    code = await asyncio.to_thread(door.process.stop, timeout=10)
    assert (code, asyncio.get_running_loop().time() - began < 10) == (0, True)
    for reader in readers:
        assert await reader.all() == []
        assert (reader.raw, reader.complete) == (b"", True)
        reader.cut()
    door.process.start()


# -------------------------------------------------------------------------------------- readers who are no use


@asynccontextmanager
async def inside(
    machine: Stack, monkeypatch: pytest.MonkeyPatch, timings: Timings = Timings()
) -> AsyncIterator[tuple[Dependencies, str]]:
    """A gateway in this process, so that its parts can be looked at, and its URL."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", machine.temporal_address)
    settings = Settings(chatjobs_database_url=machine.database_url, webhook_secret=())
    async with open_dependencies(settings, lambda rules: HttpWebhookSender(policy=rules), timings=timings) as parts:
        listener = listen("127.0.0.1", 0)
        async with served(create_app(parts), parts.open_streams, listener):
            yield parts, f"http://127.0.0.1:{listener.getsockname()[1]}"


async def until(look: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not look():  # noqa: ASYNC110 - nothing says when a task has ended, or a set has become empty
            await asyncio.sleep(0.01)


def _tasks() -> int:
    """How many tasks there are, without the sweeper's, which come and go on their own."""
    return sum("_every" not in repr(task.get_coro()) for task in asyncio.all_tasks())


async def test_nothing_is_left_of_a_reader_who_has_gone(
    machine: Stack, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await accepted(store)
    async with inside(machine, monkeypatch) as (parts, url):
        before = _tasks()
        readers = [await asked(f"{url}/api/jobs/{job_id}/events") for _ in range(10)]
        assert len(parts.open_streams) == 10
        for reader in readers:
            reader.cut()
        await until(lambda: not len(parts.open_streams))
        await until(lambda: _tasks() <= before)


async def test_a_reader_who_takes_nothing_is_cut_off(
    machine: Stack, store: JobStore, writer: TranscriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its connection is broken: what waits in the socket would otherwise be kept until the reader is gone."""
    job_id = await answered(store, writer, *["x" * 1_000_000] * MEGABYTES)
    await store.seals.seal(ending(job_id), run_id="run-1")
    async with inside(machine, monkeypatch, Timings(stream_stuck_seconds=0.5)) as (parts, url):
        deaf_one = await deaf(f"{url}/api/jobs/{job_id}/events")
        await until(lambda: len(parts.open_streams) == 1, seconds=30)
        await until(lambda: not len(parts.open_streams), seconds=30)
        taken = await _taken(deaf_one)
        deaf_one.close()
        assert len(taken) < MEGABYTES * 1_000_000
        assert not taken.endswith(b"0\r\n\r\n")


async def _taken(reader: socket.socket) -> bytes:
    """What the kernel still has, up to the end of the connection."""
    received = b""
    async with asyncio.timeout(30):
        while piece := await asyncio.get_running_loop().sock_recv(reader, 2**20):
            received += piece
    return received


# ------------------------------------------------------------------------------- first blocks, and HTTP/1.0


def blocks(raw: bytes) -> list[bytes]:
    return raw.split(b"\n\n")[:-1]


def assert_introduced(raw: bytes) -> None:
    """``retry:`` stands once, in the block of the first event."""
    events = [block for block in blocks(raw) if not block.startswith(b":")]
    assert events[0].startswith(b"retry: 1000\nevent: ")
    assert raw.count(b"retry:") == 1


async def test_retry_stands_in_the_block_of_the_first_event(
    door: Gateway, store: JobStore, writer: TranscriptWriter
) -> None:
    """Live, resumed, late, of an older epoch, and where nothing but the end is missing."""
    claim = await claimed(store, await accepted(store))
    url = events_url(door, claim.job_id)
    async with reading(url) as early:
        job_writer = await wrote(writer, claim, "One ", "two ")
        await early.until(lambda raw: b"two" in raw)
        await job_writer.finish(finished(claim))
        await store.seals.seal(ending(claim.job_id), run_id="run-1")
        await early.all()
        assert_introduced(early.raw)
    for last in ("", "1.4", "1.8", "7.99"):
        async with reading(url, last_event_id=last) as reader:
            await reader.all()
            assert_introduced(reader.raw)


async def test_a_keep_alive_before_the_first_event_is_a_comment(
    machine: Stack, store: JobStore, writer: TranscriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, timings = await accepted(store), Timings(stream_keep_alive_seconds=0.05)
    async with inside(machine, monkeypatch, timings) as (_, url), reading(f"{url}/api/jobs/{job_id}/events") as reader:
        await reader.until(lambda raw: raw.count(b": keep-alive\n\n") >= 2)
        assert b"retry" not in reader.raw
        await wrote(writer, await claimed(store, job_id), "One ")
        await reader.until(lambda raw: b"One" in raw)
        assert_introduced(reader.raw)


async def test_the_feed_is_introduced_in_its_first_event(door: Gateway) -> None:
    async with reading(f"{door.url}/api/feed") as reader:
        assert await reader.next()
        assert_introduced(reader.raw)


async def test_an_http_1_0_reader_of_a_long_stream(door: Gateway, store: JobStore, writer: TranscriptWriter) -> None:
    """Live and late, on a socket and with curl: no chunks, and the body ends with the connection."""
    claim = await claimed(store, await accepted(store))
    job_writer = writer.open(claim)
    live = asyncio.create_task(read_1_0(door, claim.job_id))
    for number in range(200):
        job_writer.append(Channel.CONTENT, f"{number:04} " * 200)
        await job_writer.flush()
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(claim.job_id), run_id="run-1")
    late = await read_1_0(door, claim.job_id)
    curl = await asyncio.create_subprocess_exec(
        *("curl", "--http1.0", "-sS", "-N", events_url(door, claim.job_id)), stdout=asyncio.subprocess.PIPE
    )
    text = (await store.queries.get(claim.job_id)).content
    for raw in (await live, late, (await curl.communicate())[0]):
        assert len(raw) > 200_000
        events = list(Parser().feed(raw))
        assert "".join(json.loads(event.data)["content"] for event in events if event.event == "chunk") == text
        assert events[-1].event == "complete"
    assert curl.returncode == 0


async def read_1_0(door: Gateway, job_id: str) -> bytes:
    """The body of the answer to an HTTP/1.0 request, up to the end of the connection."""
    parts = urlsplit(door.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET /api/jobs/{job_id}/events HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.read(-1)
    writer.close()
    assert b"\r\nconnection: close\r\n" in head
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head
    return body
