"""What a machine does to its processes: clocks jump, memory ends, others take the processor."""

from __future__ import annotations

import asyncio
import resource
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chatjobs.contracts import JobStatus
from tests.support import migrated
from tests.support.gateway import Gateway, gateway
from tests.support.needs import program
from tests.support.postgres import Postgres
from tests.support.receiver import Answer, receiver
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import ROOT, Process, Stack, stack, wait_until

pytestmark = pytest.mark.long

DAY = 86_400


# --------------------------------------------------------------------------------------------------- the clock


class Clock:
    """The wall clock of the processes that are started with ``env``."""

    def __init__(self, directory: Path) -> None:
        compiler = program("cc")
        library, self._offset = directory / "shifted_clock.so", directory / "offset"
        started = [
            compiler,
            "-shared",
            "-fPIC",
            "-O1",
            "-o",
            str(library),
            str(ROOT / "tests" / "support" / "shifted_clock.c"),
        ]
        subprocess.run(started, check=True)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}
        self.shift(0)

    def shift(self, seconds: int) -> None:
        mode = "r+b" if self._offset.exists() else "wb"
        with self._offset.open(mode, buffering=0) as file:
            file.write(struct.pack("=q", seconds))


@asynccontextmanager
async def shifted(directory: Path, clock: Clock) -> AsyncIterator[tuple[Stack, Gateway, Service]]:
    """A gateway and a worker that have this clock; Temporal, the model and the test have the right time."""
    with stack(directory, workers=0, env={"CHATJOBS_PORT": "0"}) as machine:
        machine.env |= clock.env
        machine.add_worker()
        door = gateway(machine)
        async with service(machine) as live:
            yield machine, door, live


@pytest.mark.parametrize("days", [1, -1])
async def test_a_wall_clock_that_jumps_by_a_day(tmp_path: Path, days: int) -> None:
    """F64: in mid-stream and between two tries of a webhook, and back: nothing expires, nothing is made twice."""
    clock = Clock(tmp_path)
    streaming, announced = prompt("streaming", tokens=150, tokens_per_second=50), prompt("announced")
    with receiver() as hook:
        hook.answer("/hook", [Answer(500), Answer(200)])
        async with shifted(tmp_path / "stack", clock) as (machine, door, live), door.client() as http:

            async def posted(text: str, **fields: str) -> str:
                answer = await http.post("/api/jobs", json={"messages": [{"role": "user", "content": text}], **fields})
                assert answer.status_code == 202, answer.text
                return str(answer.json()["jobId"])

            ids = [await posted(announced, callback=hook.url("/hook")), await posted(streaming)]
            await hook.arrived(1, path="/hook")
            await machine.simulator.wait(streaming, tokens=20)
            clock.shift(days * DAY)
            ids.append(await posted(prompt("meanwhile")))
            await live.ended(ids[2])
            first, second = await hook.arrived(2, path="/hook", timeout=30)
            clock.shift(0)
            ids.append(await posted(prompt("afterwards")))
            jobs = [await live.ended(job_id) for job_id in ids]
        assert [(job.status, len(job.attempts)) for job in jobs] == [(JobStatus.COMPLETED, 1)] * 4
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
        passed = int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"])
        assert abs(passed - days * DAY) < 120


async def test_a_wall_clock_that_is_ahead_does_not_start_a_delayed_job(
    tmp_path: Path, postgres_server: Postgres
) -> None:
    """Nor ends it: several machines share this database, whose clock decides."""
    clock = Clock(tmp_path)
    url = migrated.postgres_database(postgres_server)
    with stack(tmp_path / "stack", database_url=url, workers=0, env={"CHATJOBS_PORT": "0"}) as machine:
        clock.shift(DAY)
        machine.env |= clock.env
        machine.add_worker()
        text, start_at = prompt("delayed", tokens=3), datetime.now(UTC) + timedelta(seconds=5)
        request = {"messages": [{"role": "user", "content": text}], "startAt": start_at.isoformat()}
        async with service(machine) as live, gateway(machine).client() as http:
            job_id = (await http.post("/api/jobs", json=request | {"limits": {"queueSeconds": 10}})).json()["jobId"]
            job = await live.ended(job_id)
        assert job.status is JobStatus.COMPLETED
        (call,) = machine.simulator.requests(text)
        assert call["time"] >= start_at.timestamp()


# ----------------------------------------------------------------------------------------------------- memory


async def test_a_worker_without_memory(tmp_path: Path) -> None:
    """F08: a worker gets no more memory in mid-stream, and is ended; every job is completed, whole, by another one."""
    script = {"tokens": 60, "tokens_per_second": 30}
    with stack(tmp_path, env={"CHATJOBS_HEARTBEAT_SECONDS": "2"}) as machine:
        async with service(machine) as live:
            messages = [prompt("short of memory", **script) for _ in range(4)]
            ids = [await live.submit(message) for message in messages]
            for message in messages:
                await machine.simulator.wait(message, tokens=10)
            starve_of_memory(starved_one := machine.workers[0])
            machine.add_worker()
            assert await asyncio.to_thread(
                wait_until, lambda: "MemoryError" in starved_one.output() or not starved_one.running, timeout=30
            )
            starved_one.kill()  # as the kernel does, sooner or later
            jobs = [await live.ended(job_id) for job_id in ids]
            later = await live.ended(await live.submit(prompt("later", pieces=["x" * 1000] * 10)))
        assert {job.status for job in [*jobs, later]} == {JobStatus.COMPLETED}
        assert [job.content for job in jobs] == [machine.simulator.answer(message)["text"] for message in messages]


def starve_of_memory(process: Process) -> None:
    """From now on it gets none."""
    size = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (size, size))


# -------------------------------------------------------------------------------------------------- processor


@contextmanager
def starved(process: Process, share: float = 0.1) -> Iterator[None]:
    """The process runs for a tenth of the time, in slices of 10 ms."""
    over = threading.Event()

    def slice_up() -> None:
        while not over.wait(0.01):
            process.freeze()
            time.sleep(0.01 * (1 / share - 1))
            process.thaw()

    slicing = threading.Thread(target=slice_up)
    slicing.start()
    try:
        yield
    finally:
        over.set()
        slicing.join()


async def test_a_worker_with_a_tenth_of_a_processor(tmp_path: Path) -> None:
    """F65: slower, and nothing else: its heartbeats hold, nothing is lost or done twice."""
    script = {"tokens": 40, "tokens_per_second": 20}
    with stack(tmp_path, env={"CHATJOBS_HEARTBEAT_SECONDS": "10"}) as machine:
        async with service(machine) as live:
            with starved(machine.workers[0]):
                ids = [await live.submit(prompt("starved", **script)) for _ in range(4)]
                watched = await asyncio.gather(*(live.watched(job_id) for job_id in ids))
            jobs = [await live.jobs.queries.get(job_id) for job_id in ids]
        assert [(job.status, len(job.attempts)) for job in jobs] == [(JobStatus.COMPLETED, 1)] * 4
        assert [one.ends for one in watched] == [[JobStatus.COMPLETED]] * 4
        assert len(machine.simulator.requests("starved")) == 4
