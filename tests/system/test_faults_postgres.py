"""Postgres is stopped at once, again and again, while jobs come and run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from chatjobs.contracts import JobStatus
from tests.support.gateway import gateway
from tests.support.postgres import Postgres, postgres
from tests.support.service import service
from tests.support.simulator_process import prompt
from tests.support.stack import stack

pytestmark = pytest.mark.long

JOBS = 40
STOPS = 3


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """One that no other test uses."""
    with postgres() as server:
        yield server


async def test_postgres_is_stopped_at_once_again_and_again(tmp_path: Path, own_server: Postgres) -> None:
    """F31: it recovers from its log each time; every job that was accepted is completed, and there is no other."""
    url, messages = own_server.new_database(), [prompt("chaos", tokens=60, tokens_per_second=30) for _ in range(JOBS)]
    with stack(tmp_path, database_url=url, env={"CHATJOBS_PORT": "0", "CHATJOBS_CONCURRENCY": "50"}) as machine:
        door = gateway(machine)
        async with door.client() as http:
            coming = asyncio.create_task(submitted(http, messages))
            for _ in range(STOPS):
                await machine.simulator.wait("chaos", tokens=5, timeout=60)
                await asyncio.to_thread(own_server.crash)
                machine.simulator.forget()
            ids = await coming
        async with service(machine) as live:
            jobs = await asyncio.gather(*(live.ended(job_id) for job_id in ids))
            assert {job.job_id for job in await live.jobs.queries.list(limit=2 * JOBS)} == set(ids)
        assert {job.status for job in jobs} == {JobStatus.COMPLETED}
        assert [job.content for job in jobs] == [machine.simulator.answer(message)["text"] for message in messages]


async def submitted(http: httpx2.AsyncClient, messages: list[str]) -> list[str]:
    """Each with a key, sent again until it is accepted."""
    return [await accepted(http, message) for message in messages]


async def accepted(http: httpx2.AsyncClient, message: str) -> str:
    body = {"messages": [{"role": "user", "content": message}]}
    async with asyncio.timeout(30):
        while True:
            answer = await http.post("/api/jobs", json=body, headers={"Idempotency-Key": message.split()[1]})
            if answer.status_code == 202:
                return str(answer.json()["jobId"])
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.05)
