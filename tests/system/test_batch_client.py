"""chatjobs/batches.py through a real gateway, worker and simulator, and through networks that fail; and the commands
`starter.py batch`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

import starter
from chatjobs.client import AsyncChatJobs
from chatjobs.contracts import (
    BatchEventType,
    BatchItem,
    BatchStatus,
    BatchWebhook,
    ChatRequest,
    OutputLine,
    UserMessage,
)
from chatjobs.errors import (
    ApiError,
    BatchFinished,
    BatchNotFound,
    ChatJobsError,
    IdempotencyMismatch,
    InvalidRequest,
    ResponseTooLarge,
    ServiceUnavailable,
    StreamBroken,
    WebhookUrlRefused,
)
from chatjobs.sse import encode
from chatjobs.webhooks import sign
from cli.groups import INTERRUPTED
from tests.support.factories import make_body
from tests.support.gateway import Gateway, gateway
from tests.support.needs import lacking
from tests.support.raw_http import (
    LAST_PART,
    STREAM_HEAD,
    Reply,
    Visit,
    head,
    part,
    plain,
    raw_server,
    stream,
)
from tests.support.simulator_process import prompt
from tests.support.snippets import output, snippets
from tests.support.stack import ROOT, Stack, stack

pytestmark = pytest.mark.long

SLOW = {"tokens": 10, "tokens_per_second": 20}
"""An answer that takes half a second."""
ACCEPTED = {
    "batchId": "batch_1",
    "status": "queued",
    "statusUrl": "/api/batches/batch_1",
    "eventsUrl": "/api/batches/batch_1/events",
    "outputUrl": "/api/batches/batch_1/output",
    "errorsUrl": "/api/batches/batch_1/errors",
}


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
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}
    with stack(tmp_path_factory.mktemp("batch-client"), env=env) as started:
        yield started, gateway(started)


@pytest.fixture
def service(running: tuple[Stack, Gateway]) -> Iterator[Stack]:
    yield running[0]
    sys.stdout.write(running[0].news())


@pytest.fixture
async def jobs(running: tuple[Stack, Gateway], service: Stack) -> AsyncIterator[AsyncChatJobs]:
    async with client(running[1].url) as opened:
        yield opened


async def output_of(jobs: AsyncChatJobs, batch_id: str) -> dict[str, str]:
    """The answers by ``custom_id``, once the batch has ended."""
    await jobs.batches.wait(batch_id)
    return {line.custom_id: answer(line) async for line in jobs.batches.output(batch_id)}


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def answer(line: OutputLine) -> str:
    assert line.response is not None, line
    return str(line.response.body["choices"][0]["message"]["content"])


async def test_items_of_every_kind(jobs: AsyncChatJobs, service: Stack) -> None:
    """A prompt, messages, requests, lines of batch files, each with a name or without; one batch of them all."""
    texts = [prompt(tokens=3) for _ in range(9)]
    items: list[Any] = [
        texts[0],
        [UserMessage(content=texts[1])],
        ChatRequest(messages=(UserMessage(content=texts[2]),), max_tokens=50),
        make_body(texts[3]),
        {"custom_id": "line", "body": make_body(texts[4]), "method": "POST", "url": "/v1/chat/completions"},
        BatchItem(custom_id="model", body=make_body(texts[5])),
        ("pair", texts[6]),
        ("pair of a request", make_body(texts[7], temperature=0.5)),
        ("pair of messages", [{"role": "user", "content": texts[8]}]),
    ]
    names = ["0", "1", "2", "3", "line", "model", "pair", "pair of a request", "pair of messages"]
    accepted = await jobs.batches.submit(items, name="kinds", defaults={"max_tokens": 100})
    assert (accepted.status, accepted.status_url) == (BatchStatus.QUEUED, f"/api/batches/{accepted.batch_id}")
    found = await output_of(jobs, accepted.batch_id)
    assert found == {name: service.simulator.answer(text)["text"] for name, text in zip(names, texts, strict=True)}
    assert [service.simulator.requests(text)[0]["parameters"]["max_tokens"] for text in texts[2:5]] == [50, 100, 100]
    assert (await jobs.batches.get(accepted.batch_id)).name == "kinds"


@pytest.mark.parametrize("form", ["path", "text of a path", "open file", "async iterator", "iterator"])
async def test_items_from_every_source(form: str, jobs: AsyncChatJobs, tmp_path: Path) -> None:
    bodies = [BatchItem(custom_id=f"item {number}", body=make_body(prompt(tokens=2))) for number in range(3)]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in bodies))

    async def one_by_one() -> AsyncIterator[BatchItem]:
        for one in bodies:
            await asyncio.sleep(0)
            yield one

    with path.open("rb") as opened:
        sources: dict[str, Any] = {"path": path, "text of a path": str(path), "open file": opened}
        sources["async iterator"] = one_by_one()
        accepted = await jobs.batches.submit(sources.get(form, iter(bodies)))
    assert list(await output_of(jobs, accepted.batch_id)) == ["item 0", "item 1", "item 2"]


async def test_a_batch_is_watched_to_its_end(jobs: AsyncChatJobs) -> None:
    """From the state it has to the terminal one; watched again, only that; after its id, nothing."""
    accepted = await jobs.batches.submit([prompt(**SLOW) for _ in range(40)], concurrency=10)
    async with jobs.batches.watch(accepted.batch_id) as states:
        seen = [state async for state in states]
    done = [state.counts.completed for state in seen]
    assert (done, done[-1], seen[-1].status) == (sorted(done), 40, BatchStatus.COMPLETED)
    assert len(seen) > 2
    assert [state.status async for state in jobs.batches.watch(accepted.batch_id)] == [BatchStatus.COMPLETED]
    assert [state async for state in jobs.batches.watch(accepted.batch_id, last_event_id=states.last_event_id)] == []
    batch = await jobs.batches.wait(accepted.batch_id)
    assert (batch.status, batch.counts.completed, batch.concurrency) == (BatchStatus.COMPLETED, 40, 10)


async def test_pause_resume_and_cancel(jobs: AsyncChatJobs) -> None:
    accepted = await jobs.batches.submit([prompt(**SLOW) for _ in range(200)], concurrency=2)
    async with jobs.batches.watch(accepted.batch_id) as states:
        async for state in states:
            match state.status:
                case BatchStatus.IN_PROGRESS if not state.counts.completed:
                    continue
                case BatchStatus.IN_PROGRESS:
                    assert await jobs.batches.pause(accepted.batch_id) is BatchStatus.PAUSED
                    assert await jobs.batches.pause(accepted.batch_id) is BatchStatus.PAUSED
                case BatchStatus.PAUSED if not state.counts.running:
                    assert await jobs.batches.resume(accepted.batch_id) is BatchStatus.IN_PROGRESS
                    assert not (await jobs.batches.cancel(accepted.batch_id)).terminal
    assert state.status is BatchStatus.CANCELLED
    assert await jobs.batches.cancel(accepted.batch_id) is BatchStatus.CANCELLED
    cancelled = [line async for line in jobs.batches.errors(accepted.batch_id)]
    assert (len(cancelled), {line.error and line.error.code for line in cancelled}) == (
        state.counts.cancelled,
        {"cancelled"},
    )


async def test_waiting_may_end_before_the_batch_does(jobs: AsyncChatJobs) -> None:
    accepted = await jobs.batches.submit([prompt(faults=[{"kind": "stall"}])])
    with pytest.raises(TimeoutError):
        await jobs.batches.wait(accepted.batch_id, timeout=0.2)
    with pytest.raises(TimeoutError):
        _ = [state async for state in jobs.batches.watch(accepted.batch_id, timeout=0.2)]
    await jobs.batches.cancel(accepted.batch_id)
    assert (await jobs.batches.wait(accepted.batch_id)).status is BatchStatus.CANCELLED


async def test_output_and_errors_are_lines_and_files(jobs: AsyncChatJobs, tmp_path: Path) -> None:
    """Readable while it runs; a file is there when it is whole."""
    held = prompt(tokens=3, hold=1)
    items = [("good", prompt(tokens=3)), ("bad", prompt(faults=[{"kind": 400}], repeat_last=True)), ("held", held)]
    accepted = await jobs.batches.submit(items)
    async with jobs.batches.watch(accepted.batch_id) as states:
        async for state in states:
            if (state.counts.completed, state.counts.failed) == (1, 1):
                break
    assert [line.custom_id async for line in jobs.batches.output(accepted.batch_id)] == ["good"]
    (error,) = [line async for line in jobs.batches.errors(accepted.batch_id)]
    assert (error.custom_id, error.response, error.error is not None) == ("bad", None, True)
    await jobs.batches.cancel(accepted.batch_id)
    await jobs.batches.wait(accepted.batch_id)
    assert await jobs.batches.download(accepted.batch_id, tmp_path / "out.jsonl") == 1
    assert await jobs.batches.download(accepted.batch_id, str(tmp_path / "err.jsonl"), errors=True) == 2
    lines = [json.loads(line) for line in (tmp_path / "err.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["bad", "held"]
    assert files(tmp_path) == ["err.jsonl", "out.jsonl"]


async def test_broken_lines_are_named_and_nothing_is_started(jobs: AsyncChatJobs, tmp_path: Path) -> None:
    """By the service in a file, by the client where an item is no JSON."""
    before = [batch.batch_id async for batch in jobs.batches.list()]
    path = tmp_path / "items.jsonl"
    path.write_text('{"body": {"messages": [{"role": "user", "content": "x"}]}}\n\n{"body": {}}\n{\n')
    with pytest.raises(InvalidRequest) as caught:
        await jobs.batches.submit(path)
    assert [problem.pointer for problem in caught.value.problems] == ["/lines/3/body/messages", "/lines/4"]
    for wrong in (float("nan"), object(), "\ud800"):
        with pytest.raises(InvalidRequest) as caught:
            await jobs.batches.submit(["one", {"messages": [], "extra": wrong}])
        assert [problem.pointer for problem in caught.value.problems] == ["/lines/2"]
    with pytest.raises(InvalidRequest):
        await jobs.batches.submit([])
    assert [batch.batch_id async for batch in jobs.batches.list()] == before


async def test_settings_that_are_not_valid(jobs: AsyncChatJobs) -> None:
    settings: list[tuple[dict[str, Any], str]] = [
        ({"concurrency": 0}, "/concurrency"),
        ({"lane": "fast"}, "/lane"),
        ({"name": ""}, "/name"),
        ({"webhook": "nowhere"}, "/webhook"),
        ({"deadline": datetime.now(UTC) + timedelta(hours=1)}, "/deadline"),
        ({"defaults": {"messages": [{"role": "user", "content": "x" * 10_000}]}}, ""),
    ]
    for given, pointer in settings:
        with pytest.raises(InvalidRequest) as caught:
            await jobs.batches.submit(["one"], **given)
        assert [problem.pointer for problem in caught.value.problems] == [pointer]
    with pytest.raises(WebhookUrlRefused):
        await jobs.batches.submit(["one"], webhook="http://10.0.0.1/hook")


async def test_all_settings_arrive(jobs: AsyncChatJobs) -> None:
    deadline = datetime.now(UTC) + timedelta(days=1)
    hook = BatchWebhook(url="https://receiver.example/hook", events=(BatchEventType.FAILED,))
    given: dict[str, Any] = {"name": "n & m", "concurrency": 7, "lane": "batch", "deadline": deadline, "webhook": hook}
    accepted = await jobs.batches.submit(["one"], defaults={"max_tokens": 9, "on_interrupt": "fail"}, **given)
    await jobs.batches.cancel(accepted.batch_id)
    batch = await jobs.batches.wait(accepted.batch_id)
    assert (batch.name, batch.concurrency, batch.lane, batch.deadline) == ("n & m", 7, "batch", deadline)


async def test_one_key_is_one_batch(jobs: AsyncChatJobs) -> None:
    items = [prompt(tokens=2)]
    first, again = [await jobs.batches.submit(items, idempotency_key=items[0][:20]) for _ in range(2)]
    other = await jobs.batches.submit(items)
    assert first.batch_id == again.batch_id != other.batch_id
    with pytest.raises(IdempotencyMismatch):
        await jobs.batches.submit(["Another"], idempotency_key=items[0][:20])


async def test_the_list_of_batches(jobs: AsyncChatJobs) -> None:
    ids = [(await jobs.batches.submit([prompt(tokens=2)])).batch_id for _ in range(3)]
    for batch_id in ids:
        await jobs.batches.wait(batch_id)
    found = [batch.batch_id async for batch in jobs.batches.list(status="completed", page_size=2)]
    assert [batch_id for batch_id in found if batch_id in ids] == ids[::-1]
    since = (await jobs.batches.get(ids[1])).created_at
    assert ids[0] not in [batch.batch_id async for batch in jobs.batches.list(since=since)]
    with pytest.raises(ValueError, match="done"):
        _ = [batch async for batch in jobs.batches.list(status="done")]


async def test_what_has_ended_is_not_paused(jobs: AsyncChatJobs) -> None:
    accepted = await jobs.batches.submit([prompt(tokens=2)])
    await jobs.batches.wait(accepted.batch_id)
    for change in (jobs.batches.pause, jobs.batches.cancel):
        with pytest.raises(BatchFinished):
            await change(accepted.batch_id)


@pytest.mark.parametrize("batch_id", ["batch_unknown", "", "..", "a/b", "ä", "x?y=z"])
async def test_no_such_batch(batch_id: str, jobs: AsyncChatJobs, tmp_path: Path) -> None:
    """Whatever the id: it never leads to another path."""
    batches = jobs.batches
    for call in (batches.get, batches.pause, batches.resume, batches.cancel, batches.wait):
        with pytest.raises(BatchNotFound):
            await call(batch_id)
    for read in (batches.output, batches.errors, batches.watch):
        with pytest.raises(BatchNotFound):
            _ = [one async for one in read(batch_id)]
    with pytest.raises(BatchNotFound):
        await batches.download(batch_id, tmp_path / "file")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "single", [{"messages": []}, BatchItem(body={}), ChatRequest(messages=(UserMessage(content="x"),))]
)
async def test_a_single_item_is_no_batch(single: Any, jobs: AsyncChatJobs) -> None:
    with pytest.raises(TypeError):
        await jobs.batches.submit(single)


async def test_a_file_that_is_not_there(jobs: AsyncChatJobs, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await jobs.batches.submit(tmp_path / "nothing.jsonl")


async def test_an_error_of_the_items_is_raised_and_nothing_is_started(jobs: AsyncChatJobs) -> None:
    def items() -> Iterator[str]:
        yield "one"
        raise KeyError("mine")

    before = [batch.batch_id async for batch in jobs.batches.list()]
    with pytest.raises(KeyError, match="mine"):
        await jobs.batches.submit(items())
    assert [batch.batch_id async for batch in jobs.batches.list()] == before


# ------------------------------------------------------------------------------------- networks that fail


@dataclass
class Sink:
    """A server that takes whole uploads, and answers each with the next of its replies; None cuts the connection."""

    replies: list[bytes | None]
    url: str = ""
    keys: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    size: int = 0
    """Bytes of the last body, also where it is not kept."""
    keep: bool = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            sent = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.targets.append(sent.split(" ")[1])
            self.keys.append(sent.lower().partition("idempotency-key: ")[2].partition("\r\n")[0])
            self.size, body = 0, bytearray()
            while size := int(await reader.readline(), 16):
                piece = (await reader.readexactly(size + 2))[:-2]
                self.size += size
                body += piece if self.keep else b""
            await reader.readline()
            self.bodies.append(bytes(body))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            writer.write(reply or b"")
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def sink(*replies: bytes | None, keep: bool = True) -> AsyncIterator[Sink]:
    opened = Sink(list(replies), keep=keep)
    server = await asyncio.start_server(opened.serve, "127.0.0.1", 0)
    opened.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield opened


TAKEN = plain("202 Accepted", json.dumps(ACCEPTED).encode(), connection="close")
BUSY = plain("503 Service Unavailable", connection="close")


@pytest.mark.parametrize("trouble", [BUSY, None], ids=["503", "cut"])
async def test_a_file_is_sent_again(trouble: bytes | None, tmp_path: Path) -> None:
    """Whole and under the same key, which makes it the same batch."""
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"body": {}}\r\n' * 20_000)
    async with sink(trouble, trouble, TAKEN) as server, client(server.url) as jobs:
        accepted = await jobs.batches.submit(path)
    assert accepted.batch_id == "batch_1"
    assert server.bodies == [path.read_bytes()] * 3
    assert len(set(server.keys)) == 1
    assert server.keys[0]


async def test_a_list_is_sent_again() -> None:
    async with sink(None, TAKEN) as server, client(server.url) as jobs:
        await jobs.batches.submit(["one", "two"], idempotency_key="mine")
    assert server.bodies[0] == server.bodies[1] != b""
    assert server.keys == ["mine", "mine"]


@pytest.mark.parametrize("form", ["iterator", "async iterator", "open file"])
async def test_what_cannot_be_read_again_is_not_sent_again(form: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"body": {}}\n')

    async def items() -> AsyncIterator[str]:
        yield "one"

    with path.open("rb") as opened:
        sources: dict[str, Any] = {"iterator": iter(["one"]), "async iterator": items(), "open file": opened}
        async with sink(BUSY, TAKEN) as server, client(server.url) as jobs:
            with pytest.raises(ServiceUnavailable):
                await jobs.batches.submit(sources[form])
    assert len(server.bodies) == 1


async def test_an_upload_is_given_up_in_time(tmp_path: Path) -> None:
    async with sink(BUSY) as server, client(server.url, timeout=0.2, backoff=lambda failures: 0.05) as jobs:
        with pytest.raises(ServiceUnavailable):
            await jobs.batches.submit(["one"])
    assert 2 <= len(server.bodies) <= 5


LARGE = """
import asyncio, resource, sys
from chatjobs.client import AsyncChatJobs

async def main():
    async with AsyncChatJobs(sys.argv[1]) as jobs:
        await jobs.batches.submit(["one"])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await jobs.batches.submit(sys.argv[2])
        await jobs.batches.submit({"custom_id": str(n), "body": {"content": "x" * 80}} for n in range(400_000))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)

asyncio.run(main())
"""


async def test_memory_is_flat_for_uploads_of_any_size(tmp_path: Path) -> None:
    """A file of 100 MB and 400,000 items of an iterator, in a process of its own."""
    path = tmp_path / "items.jsonl"
    line = b'{"body": {"messages": [{"role": "user", "content": "%s"}]}}\n' % (b"x" * 40)
    path.write_bytes(line * (100_000_000 // len(line)))
    async with sink(TAKEN, keep=False) as server:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", LARGE, server.url, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert server.size > 400_000 * 100
    assert int(done.stdout) < 20, "megabytes"


def state(status: str, completed: int, total: int = 6) -> str:
    counts = {"total": total, "completed": completed}
    return json.dumps({"batchId": "batch_1", "status": status, "counts": counts})


def progress(completed: int) -> bytes:
    return encode("progress", f"1.{completed}", state("in_progress", completed))


END = encode("complete", "1.6.end", state("completed", 6))


async def test_a_watcher_goes_on_after_a_broken_connection() -> None:
    """It names the last event that it has, and gets no state twice."""
    replies: list[Reply] = [
        STREAM_HEAD + part(b"retry: 1000\n" + progress(1)) + part(progress(2)[:-9]),
        BUSY,
        stream(b": keep-alive\n\n", progress(1), encode("news", "1.2", "{}")),
        stream(progress(3), END),
    ]
    async with raw_server(*cut(replies)) as server, client(server.url) as jobs, jobs.batches.watch("batch_1") as states:
        seen = [state.counts.completed async for state in states]
    assert (seen, states.last_event_id) == ([1, 3, 6], "1.6.end")
    assert [visit.headers.get("last-event-id") for visit in server.visits] == [None, "1.1", "1.1", "1.1"]


async def test_a_stream_of_something_else_is_broken() -> None:
    async with raw_server(stream(encode("progress", "1.1", "[]"))) as server, client(server.url) as jobs:
        with pytest.raises(StreamBroken):
            _ = [state async for state in jobs.batches.watch("batch_1")]
        with pytest.raises(StreamBroken):
            jobs.batches.watch("batch_1", last_event_id="x")
    assert len(server.visits) == 3


def line(number: int) -> bytes:
    found = {
        "id": f"job_{number}",
        "custom_id": str(number),
        "response": {"status_code": 200, "body": {}},
        "error": None,
    }
    return json.dumps(found).encode() + b"\n"


def cut(replies: list[Reply]) -> list[Reply]:
    """The replies; the connection is closed after each that has no end."""

    def closing(reply: bytes) -> Callable[[Visit], Any]:
        async def send(visit: Visit) -> None:
            await visit.send(reply)
            visit.writer.close()

        return send

    return [closing(reply) if isinstance(reply, bytes) else reply for reply in replies]


OUTPUT_HEAD = head(content_type="application/x-ndjson", transfer_encoding="chunked")


async def test_an_output_goes_on_after_a_broken_connection() -> None:
    """Each line comes once, and a line that was cut comes whole."""
    whole = [line(number) for number in range(6)]
    replies: list[Reply] = [
        OUTPUT_HEAD + part(whole[0] + whole[1] + whole[2][:20]),
        BUSY,
        OUTPUT_HEAD + part(b"".join(whole[:4])[:-1]),
        OUTPUT_HEAD + part(b"".join(whole)) + LAST_PART,
    ]
    async with raw_server(*cut(replies)) as server, client(server.url) as jobs:
        assert [one.custom_id async for one in jobs.batches.output("batch_1")] == list("012345")
    assert len(server.visits) == 4


async def test_an_output_whose_last_line_is_gone_is_broken() -> None:
    replies: list[Reply] = [OUTPUT_HEAD + part(line(1)), OUTPUT_HEAD + part(line(2)) + LAST_PART]
    async with raw_server(*cut(replies)) as server, client(server.url) as jobs:
        with pytest.raises(StreamBroken):
            _ = [one async for one in jobs.batches.output("batch_1")]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (OUTPUT_HEAD + part(b"x" * 5_000) + LAST_PART, ResponseTooLarge),
        (OUTPUT_HEAD + part(b"[]\n") + LAST_PART, ApiError),
        (OUTPUT_HEAD + part(b"{}\n") + LAST_PART, ApiError),
        (BUSY, ServiceUnavailable),
        (plain("500 Internal Server Error"), ServiceUnavailable),
        (plain("403 Forbidden"), ApiError),
        (OUTPUT_HEAD + part(line(1)), ServiceUnavailable),
    ],
)
async def test_an_output_that_does_not_come(reply: bytes, error: type[ChatJobsError]) -> None:
    """It is waited for as long as for a stream."""
    async with raw_server(*cut([reply])) as server, client(server.url, patience=0.3, max_response_bytes=4_000) as jobs:
        with pytest.raises(ChatJobsError) as caught:
            _ = [one async for one in jobs.batches.output("batch_1")]
    assert type(caught.value) is error


async def test_a_file_of_half_an_output_does_not_appear(tmp_path: Path) -> None:
    """Nor does it replace the one that is there."""
    (tmp_path / "out.jsonl").write_text("before")
    async with raw_server(*cut([OUTPUT_HEAD + part(line(1))])) as server, client(server.url, patience=0.3) as jobs:
        with pytest.raises(ServiceUnavailable):
            await jobs.batches.download("batch_1", tmp_path / "out.jsonl")
    assert files(tmp_path) == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_text() == "before"


async def test_a_loop_over_the_output_may_be_left_early() -> None:
    """The connection is closed then."""
    endless = [OUTPUT_HEAD + part(b"".join(line(number) for number in range(1_000)))]

    async def forever(visit: Visit) -> None:
        await visit.send(endless[0])
        await visit.gone.wait()

    async with raw_server(forever) as server, client(server.url) as jobs:
        async with aclosing(jobs.batches.output("batch_1")) as lines:  # type: ignore[type-var]
            async for one in lines:
                assert one.custom_id == "0"
                break
        async with asyncio.timeout(10):
            await server.visits[0].gone.wait()


# -------------------------------------------------------------------------------------- docs/batches.md


def test_the_example_of_the_guide_runs(running: tuple[Stack, Gateway]) -> None:
    (code,) = snippets("batches.md", "python")
    shown = output(code, env={"CHATJOBS_URL": running[1].url})
    assert "completed: 3 of 3\nParis " in shown


async def test_the_lines_of_the_guide_are_taken(
    jobs: AsyncChatJobs, running: tuple[Stack, Gateway], tmp_path: Path
) -> None:
    """By the command of the guide."""
    if shutil.which("curl") is None:
        lacking("curl", "the command of the guide is one of curl's")
    (lines,), (command,) = snippets("batches.md", "jsonl"), snippets("batches.md", "sh")
    (tmp_path / "items.jsonl").write_text(lines)
    env = {**os.environ, "CHATJOBS_URL": running[1].url}
    shell = ["bash", "-euc", command]
    done = await asyncio.to_thread(subprocess.run, shell, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = await output_of(jobs, json.loads(done.stdout)["batchId"])
    assert list(found) == ["ours", "mistral", "openai"]


def test_the_receiver_of_the_guide_reads_both_kinds_of_events() -> None:
    (code,) = snippets("batches.md", "python receiver")
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102 -- it is a page of ours
    bodies = {
        "batch.completed: 1 failed, answers at /o": {
            "event": "batch.completed",
            "timestamp": "2026-01-02T03:04:05Z",
            "data": {**json.loads(state("completed", 5)), "statusUrl": "/s", "outputUrl": "/o", "errorsUrl": "/e"},
        },
        "chat.cancelled: job_1": {
            "event": "chat.cancelled",
            "timestamp": "2026-01-02T03:04:05Z",
            "data": {
                "jobId": "job_1",
                "requestId": "r",
                "status": "cancelled",
                "model": "m",
                "sha256": "",
                "completedAt": "2026-01-02T03:04:05Z",
                "statusUrl": "/",
            },
        },
    }
    bodies["batch.completed: 1 failed, answers at /o"]["data"]["counts"]["failed"] = 1  # type: ignore[index]
    for said, event in bodies.items():
        body = json.dumps(event).encode()
        headers = sign(body, webhook_id="whe_1", timestamp=datetime.now(UTC), body_timestamp="", secrets="a secret")
        assert found["received"](body, headers, "a secret") == said


# --------------------------------------------------------------------------------------- the command line


class Outcome:
    """What a run of the program left."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Call = Callable[..., Outcome]


@pytest.fixture
def call(service: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """``starter.py batch …`` in this process, which saves the time of its imports."""

    def called(*arguments: str, **environment: str) -> Outcome:
        with monkeypatch.context() as changed:
            for name, value in (service.env | environment).items():
                changed.setenv(name, value)
            return Outcome(starter.main(["batch", *arguments]), *capfd.readouterr())

    return called


def batch_file(directory: Path, *messages: str, **fields: Any) -> str:
    """The path of a file with an item for each message."""
    path = directory / "items.jsonl"
    items = [{"custom_id": f"n-{number}", "body": make_body(text, **fields)} for number, text in enumerate(messages)]
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return str(path)


def broken() -> str:
    return prompt(faults=[{"kind": 400}], repeat_last=True)


def test_a_file_becomes_a_batch_and_its_output_a_file(call: Call, service: Stack, tmp_path: Path) -> None:
    messages = [prompt(tokens=3) for _ in range(5)]
    done = call(
        "submit", batch_file(tmp_path, *messages), "--name", "night run", "--default", "max_tokens=50", "--wait"
    )
    assert done.code == 0, done.err
    batch_id = done.out.strip()
    assert "completed: 5 of 5 completed" in done.err
    assert f"starter.py batch output {batch_id}" in done.err
    assert [service.simulator.requests(text)[0]["parameters"]["max_tokens"] for text in messages] == [50] * 5
    printed = call("output", batch_id)
    assert call("output", batch_id, str(tmp_path / "out.jsonl")).code == 0
    assert (tmp_path / "out.jsonl").read_text() == printed.out
    assert [line["custom_id"] for line in printed.lines()] == [f"n-{number}" for number in range(5)]
    assert call("errors", batch_id).out == ""
    assert re.search(r"name +night run *\n(.*\n)*items +5 *\n", call("show", batch_id).out)
    (batch,) = call("show", batch_id, "--json").lines()
    assert (batch["batchId"], batch["counts"]["completed"]) == (batch_id, 5)
    assert batch_id in call("list").out
    assert batch_id in [one["batchId"] for one in call("list", "--status", "completed", "--json").lines()[0]["batches"]]
    assert batch_id not in call("list", "--status", "failed").out


def test_failed_items_are_the_exit_code(call: Call, tmp_path: Path) -> None:
    done = call("submit", batch_file(tmp_path, prompt(tokens=2), broken()), "--wait", "--json")
    assert done.code == 1
    batch = done.lines()[-1]
    assert (batch["status"], batch["counts"]["failed"]) == ("completed", 1)
    watched = call("watch", batch["batchId"])
    assert watched.code == 1
    assert f"1 failed (1 {next(iter(batch['errorsByCode']))})" in watched.out
    (line,) = call("errors", batch["batchId"]).lines()
    assert line["custom_id"] == "n-1"


def test_a_batch_is_watched_as_json_lines(call: Call, tmp_path: Path) -> None:
    batch_id = call("submit", batch_file(tmp_path, *(prompt(**SLOW) for _ in range(40)))).out.strip()
    watched = call("watch", batch_id, "--json")
    assert watched.code == 0, watched.err
    events = watched.lines()
    done = [event["data"]["counts"]["completed"] for event in events]
    assert (done, done[-1], events[-1]["event"]) == (sorted(done), 40, "complete")
    assert len(events) > 2


def test_what_is_asked_of_a_batch(call: Call, tmp_path: Path) -> None:
    batch_id = call(
        "submit", batch_file(tmp_path, *(prompt(**SLOW) for _ in range(100))), "--concurrency", "2"
    ).out.strip()
    assert call("pause", batch_id).out == f"{batch_id} paused\n"
    assert call("resume", batch_id).out.startswith(batch_id)
    assert call("show", batch_id, "--json").lines()[0]["status"] in ("queued", "in_progress")
    assert call("cancel", batch_id).code == 0
    (batch,) = call("show", batch_id, "--json").lines()
    assert (batch["status"], batch["counts"]["queued"]) == ("cancelled", 0)
    again = call("pause", batch_id)
    assert (again.code, "has ended" in again.err) == (2, True)


def test_the_same_file_goes_on_with_its_batch(call: Call, tmp_path: Path) -> None:
    """Paused: it goes on. Ended: nothing is left to do. Other content or other options: another batch."""
    file = batch_file(tmp_path, *(prompt(**SLOW) for _ in range(20)))
    batch_id = call("submit", file, "--resume").out.strip()
    call("pause", batch_id)
    again = call("submit", file, "--resume", "--wait")
    assert (again.code, again.out.strip()) == (0, batch_id), again.err
    assert "the batch is there already: paused" in again.err
    ended = call("submit", file, "--resume")
    assert (ended.code, ended.out.strip()) == (0, batch_id)
    assert "all of its items are done" in ended.err
    other = call("submit", file, "--resume", "--name", "another").out.strip()
    assert other != batch_id
    call("cancel", other)


def test_a_file_with_broken_lines_starts_nothing(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"body": {"messages": [{"role": "user", "content": "x"}]}}\n{"body": {}}\n{\n')
    before = call("list", "--json").out
    done = call("submit", str(path))
    assert (done.code, done.out) == (2, "")
    assert "line 2: /body/messages is missing; line 3: is not JSON" in done.err
    told = json.loads(call("submit", str(path), "--json").err)["error"]
    assert [one["pointer"] for one in told["errors"]] == ["/lines/2/body/messages", "/lines/3"]
    assert call("list", "--json").out == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "no-such-file.jsonl"], "No such file"),
        (["submit", "pyproject.toml"], "line 1"),
        (["submit", "pyproject.toml", "--resume", "--idempotency-key", "k"], "--resume"),
        (["submit", "-", "--resume"], "--resume needs a file"),
        (["submit", "pyproject.toml", "--default", "max_tokens=many"], "--default"),
        (["submit", "pyproject.toml", "--concurrency", "0"], "concurrency"),
        (["submit", "pyproject.toml", "--deadline", "2h"], "deadline"),
        (["submit", "pyproject.toml", "--webhook", "http://10.0.0.1/"], "private"),
        (["show", "batch_unknown"], "no batch with this id"),
        (["watch", "batch_unknown"], "no batch with this id"),
        (["output", "batch_unknown"], "no batch with this id"),
        (["list", "--status", "done"], "--status"),
    ],
)
def test_errors_of_use(call: Call, arguments: list[str], words: str) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_lines_from_a_pipe_and_a_watcher_that_leaves(call: Call, service: Stack) -> None:
    """A live line on a screen; after Ctrl-C the batch goes on."""
    lines = "".join(json.dumps({"body": make_body(prompt(**SLOW))}) + "\n" for _ in range(200))
    program = [sys.executable, "starter.py", "batch"]
    submit = [*program, "submit", "-", "--concurrency", "1"]
    done = subprocess.run(submit, input=lines, capture_output=True, cwd=ROOT, env=service.env, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    batch_id = done.stdout.strip()
    screen, terminal = pty.openpty()
    env = {**service.env, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [*program, "watch", batch_id], cwd=ROOT, env=env, stdout=terminal, stderr=terminal
    ) as watching:
        os.close(terminal)
        seen = ""
        while not re.search(r"in progress · [0-9]+ of 200 \(", seen):
            seen += os.read(screen, 4096).decode(errors="replace")
        watching.send_signal(signal.SIGINT)
        with suppress(OSError):  # the end of a terminal
            while piece := os.read(screen, 4096):
                seen += piece.decode(errors="replace")
    os.close(screen)
    assert (watching.returncode, f"starter.py batch watch {batch_id}" in seen) == (INTERRUPTED, True), seen
    assert call("show", batch_id, "--json").lines()[0]["status"] == "in_progress"
    call("cancel", batch_id)


def test_the_same_file_tries_again_what_failed(call: Call, tmp_path: Path) -> None:
    """The items that were completed are not asked again."""
    once = prompt(faults=[{"kind": 400}], tokens=2)
    file = batch_file(tmp_path, prompt(tokens=2), once)
    first = call("submit", file, "--resume", "--wait", "--json")
    assert (first.code, first.lines()[-1]["counts"]["failed"]) == (1, 1)
    again = call("submit", file, "--resume", "--wait")
    assert (again.code, again.out.strip()) == (0, first.lines()[-1]["batchId"]), again.err
    assert "the batch is there already: completed" in again.err
    assert "completed: 2 of 2 completed" in again.err
