"""Temporal without room on its disk, without patience, without memory of old runs; and answers of five megabytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from temporalio.service import RPCError

from chatjobs.contracts import JobStatus
from tests.support.event_reader import deaf, reading
from tests.support.gateway import Gateway, gateway
from tests.support.receiver import receiver
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.small_disk import filled, small_disk
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long

JOBS = 6
DISK_MEGABYTES = 24
PIECES = [f"{number} {'x' * 20_000}" for number in range(270)]
"""Five megabytes."""
DEAF, ROUNDS = 8, 4
RSS_CAP_MB, GROWTH_MB = 400, 60
"""Rounds that kept what they took would add three times 40 MB of text."""


async def posted(http: httpx2.AsyncClient, text: str, key: str | None = None, **fields: Any) -> str:
    """The id of an accepted job."""
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"messages": [{"role": "user", "content": text}], **fields}
    answer = await http.post("/api/jobs", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


async def all_completed(live: Service, ids: list[str]) -> None:
    jobs = await asyncio.gather(*(live.ended(job_id) for job_id in ids))
    assert [(job.status, len(job.attempts)) for job in jobs] == [(JobStatus.COMPLETED, 1)] * len(ids)


# ------------------------------------------------------------------------------------------------- disk, rate


async def test_temporal_without_room_on_its_disk(tmp_path: Path) -> None:
    """F16: jobs are accepted and wait; once there is room they run, each once."""
    with (
        small_disk(tmp_path / "disk", DISK_MEGABYTES) as disk,
        stack(tmp_path / "stack", env={"CHATJOBS_PORT": "0"}, temporal={"database": disk / "temporal.db"}) as built,
    ):
        door = gateway(built)
        async with service(built) as live, door.client() as http:
            await all_completed(live, [await posted(http, prompt())])
            ballast = filled(disk)
            ids = []
            async with asyncio.timeout(40):
                while "sweep_waits" not in door.process.output():  # the log of its database has room for some
                    ids.append(await posted(http, prompt()))
                    await asyncio.sleep(0.1)
            ballast.unlink()
            if not built.temporal.running:
                built.temporal.start()
            await all_completed(live, ids)


async def test_temporal_takes_five_calls_a_second(tmp_path: Path) -> None:
    """F19: callers notice nothing of its refusals, and all jobs are done in the end."""
    slow = {"configuration": ["frontend.namespaceRPS=5"]}
    with stack(tmp_path, env={"CHATJOBS_PORT": "0"}, temporal=slow) as built:
        door = gateway(built)
        async with service(built) as live, door.client() as http:
            ids = await asyncio.gather(*(posted(http, prompt()) for _ in range(JOBS)))
            await all_completed(live, list(ids))


# ------------------------------------------------------------------------------------- with one stack for all


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("temporal-faults"), env={"CHATJOBS_PORT": "0"}) as built:
        built.simulator.script(match="five megabytes", pieces=PIECES)
        yield built


@pytest.fixture(scope="module")
def door(machine: Stack) -> Gateway:
    return gateway(machine)


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as found:
        yield found


async def test_a_run_that_temporal_has_forgotten(machine: Stack, live: Service, door: Gateway) -> None:
    """F22: the same key is answered with the same job, and nothing runs again."""
    text = prompt()
    async with door.client() as http:
        job_id = await posted(http, text, key="forgotten")
        await all_completed(live, [job_id])
        await forgotten(machine, live, job_id)
        assert await posted(http, text, key="forgotten") == job_id
        shown = (await http.get(f"/api/jobs/{job_id}")).json()
        assert shown["content"] == machine.simulator.answer(text)["text"]
    with pytest.raises(RPCError, match="not found"):
        await live.run(job_id).describe()
    assert len(machine.simulator.requests(text)) == 1


async def forgotten(machine: Stack, live: Service, job_id: str) -> None:
    """As after the time for which Temporal keeps histories."""
    await live.run(job_id).result()
    await asyncio.to_thread(machine.temporal.kill)
    for file in machine.directory.glob("temporal.db*"):
        file.unlink()
    machine.temporal.start()


async def test_an_answer_of_five_megabytes(machine: Stack, live: Service, door: Gateway) -> None:
    """F23: stored, streamed, shown and left out of the webhook; Temporal's history has nothing of it."""
    with receiver() as hook:
        async with door.client() as http:
            job_id = await posted(http, prompt("five megabytes"), callback=hook.url("/hook"))
            job = await live.ended(job_id)
            assert job.content == "".join(PIECES)
            assert (await http.get(f"/api/jobs/{job_id}")).json()["content"] == job.content
        async with reading(f"{door.url}/api/jobs/{job_id}/events") as reader:
            events = await reader.all()
        (post,) = await hook.arrived(1, path="/hook")
    assert "".join(json.loads(event.data)["content"] for event in events if event.event == "chunk") == job.content
    assert len(post.body) < 256 * 1024
    assert (post.json()["data"]["contentOmitted"], post.json()["data"]["sha256"]) == (True, job.sha256)
    await live.run(job_id).result()
    history = await live.run(job_id).fetch_history()
    assert len(history.to_json()) < 32 * 1024


async def test_readers_who_take_nothing_cost_little_memory(machine: Stack, live: Service, door: Gateway) -> None:
    """F59: each has asked for five megabytes; others are served meanwhile, and what they cost is given back."""
    async with door.client() as http:
        job_id = await posted(http, prompt("five megabytes"))
        await all_completed(live, [job_id])
    url = f"{door.url}/api/jobs/{job_id}/events"
    sizes = []
    for _ in range(ROUNDS):
        deaf_ones = [await deaf(url) for _ in range(DEAF)]
        async with reading(url) as reader:  # served after those, so that they have had their turn
            assert (await reader.all())[-1].event == "complete"
        sizes.append(resident_mb(door))
        for one in deaf_ones:
            one.close()
    assert sizes[0] < RSS_CAP_MB
    assert sizes[-1] - sizes[0] < GROWTH_MB, sizes


def resident_mb(door: Gateway) -> float:
    lines = Path(f"/proc/{door.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
