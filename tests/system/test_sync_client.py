"""The synchronous client: through a real gateway, networks that fail, threads, forks, signals and ends of programs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chatjobs.client import AsyncChatJobs, ChatJobs, Outcome, Progress
from chatjobs.contracts import ChunkEvent, CompleteEvent, Job, JobStatus, StartEvent
from chatjobs.errors import ConfigurationError, JobFailed, JobNotFound, ServiceUnavailable
from tests.support.cutter import cutter, dice
from tests.support.gateway import Gateway, gateway
from tests.support.raw_http import STREAM_HEAD, Visit, part, plain, raw_server
from tests.support.simulator_process import prompt
from tests.support.stack import ROOT, Stack, stack

pytestmark = pytest.mark.long

SLOW = {"tokens": 400, "tokens_per_second": 40}
"""An answer that takes ten seconds."""
CHUNK = (
    b'event: chunk\nid: 1.2\ndata: {"content":"ab","channel":"content","index":0,"tokenCount":1}\n\n'
    b'event: chunk\nid: 1.4\ndata: {"content":"cd","channel":"content","index":1,"tokenCount":2}\n\n'
)


def client(url: str, **options: Any) -> ChatJobs:
    """A client that does not wait long, and knows no proxy."""
    given: dict[str, Any] = {
        "transport": httpx2.AsyncHTTPTransport(),
        "backoff": lambda failures: 0.01 * failures,
    } | options
    return ChatJobs(url, **given)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_CONCURRENCY": "20", "MISTRAL_REQUESTS_PER_SECOND": "1000"}
    with stack(tmp_path_factory.mktemp("sync-client"), env=env) as started:
        yield started, gateway(started)


@pytest.fixture
def door(running: tuple[Stack, Gateway]) -> Gateway:
    return running[1]


@pytest.fixture
def jobs(door: Gateway) -> Iterator[ChatJobs]:
    with client(door.url) as opened:
        yield opened


def threads() -> list[threading.Thread]:
    """The background threads of clients."""
    return [thread for thread in threading.enumerate() if thread.name == "chatjobs"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert threads() == []


# --------------------------------------------------------------------------------------- synchronously


def test_a_job_from_its_start_to_its_answer(jobs: ChatJobs, running: tuple[Stack, Gateway]) -> None:
    message = prompt(tokens=30)
    accepted = jobs.submit(message)
    events = list(jobs.stream(accepted.job_id))
    job: Job = jobs.get(accepted.job_id)
    assert [type(events[0]), type(events[-1])] == [StartEvent, CompleteEvent]
    text = "".join(event.content for event in events if isinstance(event, ChunkEvent))
    assert text == job.content == jobs.answer(accepted.job_id) == running[0].simulator.answer(message)["text"]
    assert jobs.ask(prompt()).status is JobStatus.COMPLETED
    assert accepted.job_id in [one.job_id for one in jobs.list(page_size=1)]


def test_errors_are_those_of_the_asynchronous_client(jobs: ChatJobs) -> None:
    with pytest.raises(JobNotFound):
        jobs.get("job_that_is_not_there")
    with pytest.raises(JobNotFound):
        jobs.stream("no id")
    with pytest.raises(JobNotFound):
        list(jobs.stream("job_that_is_not_there"))
    with pytest.raises(TypeError):
        jobs.get()  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError):
        ChatJobs("no url")
    accepted = jobs.submit(prompt(**SLOW))
    jobs.cancel(accepted.job_id)
    with pytest.raises(JobFailed):
        jobs.answer(accepted.job_id)


def test_many_prompts(jobs: ChatJobs) -> None:
    """The prompts' generator and the callback run in this thread, and may use the client."""
    here: list[int] = []
    progress: list[Progress] = []

    def prompts() -> Iterator[str]:
        for number in range(30):
            here.append(threading.get_ident())
            if number == 3:
                assert list(jobs.list(page_size=1, metadata={"no": "job"})) == []
            yield prompt(tokens=number)

    def on_progress(one: Progress) -> None:
        here.append(threading.get_ident())
        progress.append(one)

    outcomes: list[Outcome] = list(jobs.map(prompts(), concurrency=20, on_progress=on_progress))
    assert [outcome.index for outcome in outcomes] == list(range(30))
    assert [outcome for outcome in outcomes if outcome.error] == []
    assert [one.done for one in progress] == list(range(1, 31))
    assert set(here) == {threading.get_ident()}
    sized: list[Progress] = []
    list(jobs.map({prompt(): 1, prompt(): 2}.keys(), on_progress=sized.append))
    assert [one.total for one in sized] == [2, 2]


def test_what_the_prompts_or_the_callback_raise_is_raised(jobs: ChatJobs) -> None:
    def prompts() -> Iterator[str]:
        yield prompt()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(jobs.map(prompts()))
    with pytest.raises(ZeroDivisionError):
        list(jobs.map([prompt()], on_progress=lambda one: 1 / 0))
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(jobs.map([prompt()], on_progress=lambda one: next(iter(()))))
    with pytest.raises(TypeError):
        list(jobs.map("a single one"))


def test_an_async_iterable_of_prompts_runs_in_the_background(jobs: ChatJobs) -> None:
    async def prompts() -> AsyncIterator[str]:
        yield prompt()
        with pytest.raises(RuntimeError, match="AsyncChatJobs"):
            jobs.get("job_1")  # it would wait for itself

    assert [outcome.error for outcome in jobs.map(prompts())] == [None]


def test_batches(jobs: ChatJobs, tmp_path: Path) -> None:
    here = set()

    def items() -> Iterator[tuple[str, str]]:
        for number in range(25):
            here.add(threading.get_ident())
            yield str(number), prompt()

    accepted = jobs.batches.submit(items(), name="synchronous", idempotency_key="sync-1")
    assert jobs.batches.wait(accepted.batch_id).counts.completed == 25
    assert [state.status.terminal for state in jobs.batches.watch(accepted.batch_id)] == [True]
    assert [line.custom_id for line in jobs.batches.output(accepted.batch_id)] == [str(number) for number in range(25)]
    assert list(jobs.batches.errors(accepted.batch_id)) == []
    assert jobs.batches.download(accepted.batch_id, tmp_path / "out.jsonl") == 25
    assert here == {threading.get_ident()}
    by_key = jobs.batches.submit({"a": 1}.keys() and dict.fromkeys([prompt(), prompt()]).keys())
    assert jobs.batches.wait(by_key.batch_id).counts.total == 2
    assert [batch.name for batch in jobs.batches.list()][-1] == "synchronous"


def test_schedules(jobs: ChatJobs) -> None:
    made = jobs.schedules.create({"messages": [{"role": "user", "content": "Hello"}]}, every="1h", id="sync-hourly")
    assert [one.id for one in jobs.schedules.list()] == [made.id]
    assert jobs.schedules.pause(made.id).paused
    jobs.schedules.delete(made.id)


def test_context_variables_are_the_callers() -> None:
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    class Noting(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            seen.append(variable.get())
            return httpx2.Response(200, content=self.body())

        async def body(self) -> AsyncIterator[bytes]:
            yield b'{"jobs": [], "nextCursor": null}'

    with client("http://service", transport=Noting()) as jobs:
        list(jobs.list())
        variable.set("mine")
        list(jobs.list())
    assert seen == ["none", "mine"]


# --------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_stream_that_is_cut_again_and_again(door: Gateway, seed: int) -> None:
    message = prompt(pieces=["é🌊", "\n", "ab", "—"] * 50, tokens_per_second=200)

    def read(url: str) -> tuple[str, str | None]:
        with client(url) as cut_off, client(door.url) as whole:
            accepted = whole.submit(message)
            events = cut_off.stream(accepted.job_id)
            text = "".join(event.content for event in events if isinstance(event, ChunkEvent))
            assert events.last_event_id.endswith(".end")
            return text, whole.get(accepted.job_id).content

    async with cutter(door.url, dice(seed, 1, 1_500)) as proxy:
        text, stored = await asyncio.to_thread(read, proxy.url)
    assert proxy.cuts >= 2
    assert text == stored


LEAVING = ["break", "generator", "next", "named", "close", "with", "error"]


@pytest.mark.parametrize("how", LEAVING)
async def test_a_stream_that_is_left_closes_its_connection(how: str) -> None:
    """The client itself stays open until the server has seen that."""
    gone, left = asyncio.Event(), threading.Event()

    async def endless(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(CHUNK))
        try:
            await visit.gone.wait()
        finally:
            gone.set()

    def read(url: str) -> None:
        with client(url) as jobs:
            kept = leave(jobs, how)
            assert left.wait(20)
            del kept

    def leave(jobs: ChatJobs, how: str) -> Any:
        events = jobs.stream("job_1")
        match how:
            case "break":
                for _ in jobs.stream("job_1"):
                    break
            case "generator":
                for _ in (event for event in jobs.stream("job_1")):
                    break
            case "next":
                next(events)
            case "named":
                for _ in events:
                    break
                assert list(events) == []
                return events
            case "close":
                next(events)
                events.close()
                return events
            case "with":
                with events:
                    next(iter(events))
                return events
            case _:
                with pytest.raises(ZeroDivisionError):
                    [1 / 0 for _ in events]
                return events
        return None

    async with raw_server(endless) as server:
        reading = asyncio.create_task(asyncio.to_thread(read, server.url))
        await asyncio.wait_for(gone.wait(), 20)
        left.set()
        await reading
    assert len(server.visits) == 1


async def silent(visit: Visit) -> None:
    await visit.gone.wait()


# ---------------------------------------------------------------------------------------------- threads


def test_threads_share_a_client(jobs: ChatJobs) -> None:
    def ask(number: int) -> tuple[str | None, str | None]:
        job = jobs.ask(prompt(tokens=number))
        text = "".join(event.content for event in jobs.stream(job.job_id) if isinstance(event, ChunkEvent))
        return text, jobs.get(job.job_id).content

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(24)))
    assert [one for one, other in answers if one != other] == []
    assert len({one for one, _ in answers}) == 24
    assert len(threads()) == 1


async def test_closing_ends_the_calls_of_other_threads() -> None:
    async def chunk(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(CHUNK))
        await visit.gone.wait()

    async with raw_server(silent) as server, raw_server(chunk) as streaming:
        with client(server.url) as jobs, client(streaming.url) as other:
            call = asyncio.create_task(asyncio.to_thread(jobs.get, "job_1"))
            events = other.stream("job_1")
            await asyncio.to_thread(next, events)
            await asyncio.to_thread(next, events)
            waiting = asyncio.create_task(asyncio.to_thread(next, events, "closed"))
            await server.visited.wait()
            await asyncio.to_thread(jobs.close)
            with pytest.raises(RuntimeError, match="closed during the call"):
                await call
            await asyncio.to_thread(events.close)
            assert await waiting == "closed"


def test_a_closed_client_says_so() -> None:
    for entered in (True, False):
        jobs = client("http://service")
        if entered:
            with jobs:
                pass
        else:
            jobs.close()
        jobs.close()
        calls: list[Any] = [partial(jobs.get, "job_1"), partial(jobs.stream, "job_1"), jobs.list, jobs.schedules.list]
        for call in calls:
            with pytest.raises(RuntimeError, match="closed: make a new one"):
                call()


def test_a_client_that_is_garbage_takes_its_thread_with_it(door: Gateway) -> None:
    events = ChatJobs(door.url).stream(ChatJobs(door.url).submit(prompt(tokens=5)).job_id)
    assert isinstance(list(events)[-1], CompleteEvent)  # it held the client
    del events
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert threads() == []


# ------------------------------------------------------------------------- the asynchronous name of old


async def test_code_for_the_asynchronous_client_goes_on_working(door: Gateway) -> None:
    async with ChatJobs(door.url) as entered:
        assert type(entered) is AsyncChatJobs
        assert (await entered.ask(prompt())).status is JobStatus.COMPLETED
    old: Any = ChatJobs(door.url)
    accepted = await old.submit(prompt())
    async with old.stream(accepted.job_id) as events:
        seen = [type(event) async for event in events]
    assert (seen[0], seen[-1]) == (StartEvent, CompleteEvent)
    assert [outcome.error async for outcome in old.map([prompt()])] == [None]
    assert accepted.job_id in [job.job_id async for job in old.list()]
    assert [batch async for batch in old.batches.list(status="failed")] == []
    assert [schedule async for schedule in old.schedules.list()] == []
    with pytest.raises(RuntimeError, match="event loop"):
        old.close()
    await old.aclose()
    with pytest.raises(RuntimeError):
        await old.get(accepted.job_id)
    assert threads() == []


async def test_it_is_synchronous_in_an_event_loop_once_it_was_entered(door: Gateway) -> None:
    """As in a notebook."""
    with ChatJobs(door.url) as jobs:
        assert jobs.ask(prompt()).status is JobStatus.COMPLETED
        assert [outcome.error for outcome in jobs.map([prompt()])] == [None]
        assert jobs.batches.list().__class__.__name__ == "SyncIterator"


async def test_one_client_in_a_loop_and_in_a_thread(door: Gateway) -> None:
    both: Any = ChatJobs(door.url)
    accepted = await both.submit(prompt())
    assert (await asyncio.to_thread(both.wait, accepted.job_id)).status is JobStatus.COMPLETED
    await both.aclose()
    assert threads() == []


# --------------------------------------------------------------------------- processes and their ends


def program(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """A program, run with warnings as errors: one about something left open is printed, too."""
    command = [sys.executable, "-W", "error", "-c", code, *args]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {"NO_PROXY": "127.0.0.1,localhost"}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes, **options)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code and the outputs of a program, which has 20 s to end."""
    with process:
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    return process.returncode, out, err


UNCLOSED = """
import sys, threading
from chatjobs.client import ChatJobs

jobs = ChatJobs(sys.argv[1])
accepted = jobs.submit("Hello")
events = jobs.stream(jobs.submit("Tell me more").job_id)
next(events)
half = iter(jobs.list(page_size=1))
next(half)
outcomes = jobs.map(["a", "b", "c"], concurrency=2)
next(outcomes)


def late():
    threading.main_thread().join()
    print(ChatJobs(sys.argv[1]).wait(accepted.job_id).status.value)


threading.Thread(target=late).start()
if len(sys.argv) > 2:
    sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(("code", "host"), [("0", "127.0.0.1"), ("3", "localhost")])
def test_a_program_that_closes_nothing_ends(door: Gateway, code: str, host: str) -> None:
    """A thread that is not a daemon finishes its call first, and may still look up names and open connections."""
    url = door.url.replace("127.0.0.1", host)
    assert ended(program(UNCLOSED, url, code)) == (int(code), "completed\n", "")


DAEMON = """
import sys, threading, time
from chatjobs.client import ChatJobs

jobs = ChatJobs(sys.argv[1])
threading.Thread(target=jobs.get, args=("job_1",), daemon=True).start()
sys.stdin.readline()
"""


async def test_a_program_ends_while_a_daemon_thread_waits() -> None:
    async with raw_server(silent) as server:
        process = program(DAEMON, server.url)
        await asyncio.wait_for(server.visited.wait(), 20)
        assert process.stdin is not None
        process.stdin.write("\n")
        code, out, err = await asyncio.to_thread(ended, process)
    assert (code, out) == (0, "")
    assert "Task was destroyed" not in err
    assert "Fatal" not in err


INTERRUPTED = """
import sys
from chatjobs.client import ChatJobs

with ChatJobs(sys.argv[1]) as jobs:
    try:
        if sys.argv[2] == "call":
            jobs.get("job_1")
        elif sys.argv[2] == "stream":
            list(jobs.stream("job_1"))
        else:
            list(jobs.map(["a", "b"]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.readline()
        if sys.argv[3] == "raise":
            raise
        print(list(jobs.list()))
"""


@pytest.mark.parametrize("ending", ["raise", "go on"])
@pytest.mark.parametrize("what", ["call", "stream", "map"])
async def test_ctrl_c_cancels_the_call(what: str, ending: str) -> None:
    """The connection is closed at once, the client works on, and the exit code is that of a signal."""
    gone = asyncio.Event()

    async def closing(visit: Visit) -> None:
        arrived.release()
        try:
            await visit.gone.wait()
        finally:
            gone.set()

    arrived, number = asyncio.Semaphore(0), 2 if what == "map" else 1
    async with raw_server(*[closing] * number, plain("200 OK", {"jobs": [], "nextCursor": None})) as server:
        process = program(INTERRUPTED, server.url, what, ending)
        for _ in range(number):
            await asyncio.wait_for(arrived.acquire(), 20)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(gone.wait(), 20)
        assert process.poll() is None
        code, out, err = await asyncio.to_thread(lambda: _answered(process))
    if ending == "raise":
        assert (code, out) == (-signal.SIGINT, "interrupted\n")
        assert err.endswith("KeyboardInterrupt\n")
        assert "Task was destroyed" not in err
    else:
        assert (code, out, err) == (0, "interrupted\n[]\n", "")


def _answered(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    assert process.stdin is not None
    process.stdin.write("\n")
    return ended(process)


FORKED = """
import os, sys
from chatjobs.client import ChatJobs

jobs = ChatJobs(sys.argv[1])
if sys.argv[2] == "used":
    accepted = jobs.submit("Hello")
    events = jobs.stream(accepted.job_id)
    next(events)
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        if sys.argv[2] == "used":
            try:
                next(events)
            except RuntimeError as error:
                assert "before a fork" in str(error), error
            events.close()
        assert jobs.ask(f"Child {number}").content
        assert [outcome.error for outcome in jobs.map(["a", "b"])] == [None, None]
        sys.exit(number)
    children.append(pid)
if sys.argv[2] == "used":
    assert [type(event).__name__ for event in events][-1] == "CompleteEvent"
assert jobs.ask("Parent").content
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
"""


@pytest.mark.parametrize("before", ["used", "unused"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_goes_on_with_a_thread_of_its_own(door: Gateway, before: str) -> None:
    """As workers of a server that forks them from a process with the client. The parent's stream goes on."""
    assert ended(program(FORKED, door.url, before)) == (0, "[0, 1, 2]\n", "")


def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    with client("http://127.0.0.1:1", timeout=0.2) as jobs, pytest.raises(ServiceUnavailable):
        jobs.get("job_1")
