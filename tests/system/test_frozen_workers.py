"""Workers that stand still, and go on: stopped with SIGSTOP under their streams, or held up by code of their own.

Others have their jobs by then. What a frozen worker still has is not written, and it hangs up on the model.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from temporalio.client import Client

from activities.freezes import Freezes
from chatjobs.contracts import Channel, ChatRequest, Job, JobStatus
from domain.ports import ModelEvent
from storage.engine.database import Database
from storage.jobs.store import JobStore
from tests.support.fakes import HELLO, PATIENCE, STOP, Gate, ScriptedModel, Step, eventually, text
from tests.support.house import HOOK, house
from tests.support.postgres import Postgres
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Process, Stack, stack

pytestmark = pytest.mark.long

HEARTBEAT = 6.0
"""Seconds; more than it takes the server to find that a worker does not answer (devserver.KEEP_ALIVE)."""
NOISE = 4.0
"""Seconds that a busy machine may add to what is promised."""
RATE = 30
"""Tokens per second of the slow streams."""
TOKENS = 360


@contextmanager
def machine(directory: Path, *, workers: int, heartbeat: float = HEARTBEAT, url: str | None = None) -> Iterator[Stack]:
    env = {"CHATJOBS_HEARTBEAT_SECONDS": str(heartbeat), "CHATJOBS_CONCURRENCY": "20"}
    with stack(directory, workers=workers, env=env, database_url=url) as running:
        yield running


async def streaming(live: Service, number: int) -> dict[str, str]:
    """So many jobs under way: their messages, by their ids."""
    messages = [prompt(f"slow {n}", tokens=TOKENS, tokens_per_second=RATE) for n in range(number)]
    jobs = {await live.submit(message): message for message in messages}
    for message in messages:
        await live.stack.simulator.wait(message, tokens=RATE, timeout=PATIENCE)
    return jobs


async def holder(live: Service, job_id: str) -> Process:
    """The worker that runs a job's activity; the SDK calls it pid@host."""
    described = await live.run(job_id).describe()
    (pending,) = described.raw_description.pending_activities
    pid = int(pending.last_worker_identity.split("@")[0])
    return next(process for process in live.stack.workers if process.pid == pid)


async def frozen(live: Service, worker: Process) -> float:
    """Stop a worker, and say when. Not within a commit: on SQLite it would keep the file's lock, and stop everybody."""
    while True:
        worker.freeze()
        if not live.database.is_sqlite or await asyncio.to_thread(_takes_writes, live.stack.data_dir / "chatjobs.db"):
            return time.monotonic()
        worker.thaw()


def _takes_writes(path: Path) -> bool:
    with closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


def outcomes(job: Job) -> list[str | None]:
    return [attempt.outcome for attempt in job.attempts]


async def said_so(store: JobStore, job_id: str) -> None:
    """The worker of a job's first attempt has written that it was frozen; until then it looked dead."""

    async def look() -> bool:
        return (await store.queries.get(job_id)).attempts[0].outcome == "frozen"

    await eventually(look)


async def test_all_jobs_of_a_frozen_worker_are_taken_over_after_one_timeout(tmp_path: Path) -> None:
    """None waits for a second one in an open poll of the frozen worker. When that wakes up, it hangs up on the model
    and writes nothing; what was said twice is what was said in one timeout."""
    with machine(tmp_path, workers=2) as stack:
        async with service(stack) as live:
            jobs = await streaming(live, 8)
            watching = [asyncio.create_task(live.watched(job_id)) for job_id in jobs]
            held = {job_id: await holder(live, job_id) for job_id in jobs}
            worker = max(stack.workers, key=list(held.values()).count)
            ours = {job_id: message for job_id, message in jobs.items() if held[job_id] is worker}
            began = await frozen(live, worker)

            async def takeover(message: str) -> float:
                await stack.simulator.wait(message, requests=2, timeout=PATIENCE)
                return time.monotonic() - began

            took = await asyncio.gather(*map(takeover, ours.values()))
            # Temporal counts from a heartbeat before the freeze, the worker from the freeze.
            await asyncio.sleep(max(0.0, began + HEARTBEAT + 0.3 - time.monotonic()))
            worker.thaw()
            for message in ours.values():
                hung_up = await stack.simulator.wait(message, ended=True, timeout=PATIENCE)
                assert hung_up["outcome"] == "client_gone"
            for job_id in ours:
                await said_so(live.jobs, job_id)
            watched = await asyncio.gather(*watching)
            ended = [await live.jobs.queries.get(job_id) for job_id in jobs]
        assert max(took) < HEARTBEAT + NOISE, took
        for job, message, reader in zip(ended, jobs.values(), watched, strict=True):
            calls = stack.simulator.requests(message)
            assert outcomes(job) == (["frozen", "finished"] if job.job_id in ours else ["finished"])
            assert (job.status, len(calls)) == (JobStatus.COMPLETED, len(job.attempts))
            assert job.content == reader.texts[Channel.CONTENT] == stack.simulator.answer(message)["text"]
            assert reader.resets == 0
            twice = sum(call["tokens_sent"] for call in calls) - TOKENS
            assert twice < RATE * (HEARTBEAT + NOISE), calls


async def test_a_frozen_worker_that_is_alone_drops_what_came_meanwhile(
    tmp_path: Path, postgres_server: Postgres
) -> None:
    """Nobody has taken its job over, and the fence is still its own; yet it writes nothing of what lies in its buffers.
    The next attempt goes on from the text before the freeze."""
    with machine(tmp_path, workers=1, heartbeat=2, url=postgres_server.new_database()) as stack:
        async with service(stack) as live:
            ((job_id, message),) = (await streaming(live, 1)).items()
            (worker,) = stack.workers
            began = await frozen(live, worker)
            before = (await live.jobs.queries.get(job_id)).position
            sent = stack.simulator.requests(message)[0]["tokens_sent"]
            await stack.simulator.wait(message, tokens=sent + 3 * RATE, timeout=PATIENCE)
            assert time.monotonic() - began > 2
            worker.thaw()
            again = await stack.simulator.wait(message, requests=2, timeout=PATIENCE)
            (first, *_) = stack.simulator.requests(message)
            job = await live.ended(job_id)
        # A batch that was on its way when it stopped may have been committed after we looked: a few characters.
        assert before - 1 <= len(again["prefix"]) < before + RATE
        assert first["outcome"] == "client_gone"
        assert (outcomes(job), job.content) == (["frozen", "finished"], stack.simulator.answer(message)["text"])


async def test_a_shorter_freeze_changes_nothing(tmp_path: Path) -> None:
    """Long enough for the server to close the worker's connection, not for Temporal to take it for dead."""
    with machine(tmp_path, workers=2, heartbeat=20) as stack:
        async with service(stack) as live:
            ((job_id, message),) = (await streaming(live, 1)).items()
            worker = await holder(live, job_id)
            await frozen(live, worker)
            await asyncio.sleep(6)
            worker.thaw()
            job = await live.ended(job_id)
        assert (outcomes(job), job.content) == (["finished"], stack.simulator.answer(message)["text"])
        assert [call["outcome"] for call in stack.simulator.requests(message)] == ["finished"]


# --------------------------------------------------------------------------------------- code that does not yield


class Blocking(ScriptedModel):
    """A gate that is passed is followed by code that holds the event loop up, for longer than a heartbeat timeout."""

    async def stream(self, request: ChatRequest, continue_from: str | None = None) -> AsyncGenerator[ModelEvent, None]:
        async for event in super().stream(request, continue_from):
            yield event
            if event == BLOCK:
                time.sleep(1.3)  # noqa: ASYNC251 - that is what the test is about


BLOCK = text("lo")[0]
ENDS: dict[str, list[Step]] = {"an answer that is whole by then": [STOP], "silence": [Gate()]}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_a_worker_that_was_held_up(client: Client, sqlite: Database, end: list[Step]) -> None:
    """What was ready to be written when it went on is dropped, and no clock that ran out meanwhile is held against the
    model: the job may fail only once, and does not."""
    gate, goes_on = Gate(), Gate()
    model = Blocking([*text("Hel"), gate, BLOCK, *end], [goes_on, *HELLO])
    async with house(client, sqlite, model=model, chatjobs_heartbeat_seconds=1) as here:
        job_id = await here.submit(callback=HOOK, retry={"attempts": 1}, limits={"stallSeconds": 1, "maxLost": 1})
        await here.readable(job_id, 3)
        gate.open()
        await said_so(here.jobs, job_id)
        goes_on.open()
        job = await here.agree(job_id, JobStatus.COMPLETED)
    assert (outcomes(job), job.content) == (["frozen", "finished"], "Hello there")
    assert model.continued == [None, "Hel"]


async def test_only_attempts_that_lived_through_it_notice() -> None:
    """One that begins when the process goes on again has lost nothing."""
    watching = Freezes()
    with watching.watched(0.2) as through, watching.watched(60) as patient:
        time.sleep(0.3)  # noqa: ASYNC251 - that is what the test is about
        with watching.watched(60) as later:
            assert through.frozen()
            await through.noticed
            assert not later.frozen()
            assert not patient.frozen()
