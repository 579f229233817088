"""Batches while processes are killed, stopped and started again: each item is answered once, and none is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from chatjobs.contracts import Batch, BatchStatus, Channel, Job, JobStatus
from domain.names import batch_job_id
from storage.batches.queries import BatchQueries
from tests.support.batches import dispatch, submit_batch
from tests.support.factories import make_body
from tests.support.gateway import Gateway, gateway
from tests.support.postgres import Postgres, postgres
from tests.support.receiver import Receiver, receiver
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long

PLACES = 12
ENV = {
    "CHATJOBS_HEARTBEAT_SECONDS": "2",
    "CHATJOBS_BATCH_CONCURRENCY": str(PLACES),
    "CHATJOBS_PORT": "0",
    "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1",
}
SLOW: dict[str, Any] = {"tokens": 60, "tokens_per_second": 40}
PROMPT_SECONDS = 2.0
"""Within this time a pause, a resume and a cancel show in the calls that begin."""
SECONDS = 120.0
"""That a batch may take; far more than any needs."""
COMPLETED, CANCELLED = JobStatus.COMPLETED, JobStatus.CANCELLED


@dataclass
class Sent:
    """A batch, and what its items ask. ``mark`` is in all its prompts and in no others."""

    live: Service
    mark: str
    prompts: list[str]
    id: str = ""
    calls_forgotten: list[dict[str, Any]] = field(default_factory=list)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The simulator's log of calls for its items, in order."""
        return [*self.calls_forgotten, *self.live.stack.simulator.requests(self.mark)]

    def keep_calls(self) -> None:
        """The simulator is about to die, and its log with it."""
        self.calls_forgotten = self.calls

    def calls_since(self, moment: float) -> int:
        return sum(call["time"] >= moment for call in self.calls)

    async def running(self, count: int = 8, tokens: int = 10) -> None:
        """So many calls have begun, and the last of them has so many tokens."""
        await self.live.stack.simulator.wait(self.mark, requests=count, tokens=tokens, timeout=60)

    async def look(self) -> Batch:
        return await BatchQueries(self.live.database).get(self.id)

    async def job(self, number: int) -> Job:
        return await self.live.jobs.queries.get(batch_job_id(self.id, number))

    async def jobs(self) -> list[Job]:
        return [await self.job(number) for number in range(len(self.prompts))]

    async def ended(self, status: BatchStatus = BatchStatus.COMPLETED, within: float = SECONDS) -> list[Job]:
        """The jobs, once the batch has ended. Its output and errors have each item once, in order."""

        async def over() -> bool:
            return (await self.look()).status.terminal

        await soon(over, within, self)
        batch, jobs = await self.look(), await self.jobs()
        assert batch.status is status
        names = [await self._names(errors=errors) for errors in (False, True)]
        done = [f"item-{number}" for number, job in enumerate(jobs) if job.status is COMPLETED]
        assert names[0] == done
        assert sorted(names[0] + names[1]) == sorted(f"item-{number}" for number in range(len(jobs)))
        assert batch.counts.completed == len(done)
        return jobs

    async def _names(self, *, errors: bool) -> list[str]:
        pages = BatchQueries(self.live.database).output(self.id, errors=errors)
        return [item.custom_id async for page in pages for item in page]

    async def whole(self, *, again: int = 0, epochs: int = 1) -> list[Job]:
        """The jobs, once the batch has ended: each has the model's answer. At most ``again`` items were called more
        than once, and none after it had ended."""
        jobs = await self.ended()
        for job, one in zip(jobs, self.prompts, strict=True):
            assert (job.status, job.content) == (COMPLETED, self.live.stack.simulator.answer(one)["text"])
            assert job.epoch <= epochs
        counts = Counter(call["prompt"] for call in self.calls)
        assert set(counts) == set(self.prompts)
        assert sum(count > 1 for count in counts.values()) <= again
        ends = {one: job.completed_at for one, job in zip(self.prompts, jobs, strict=True)}
        late = [call for call in self.calls if (end := ends[call["prompt"]]) and call["time"] > end.timestamp()]
        assert late == []
        return jobs


async def soon(look: Any, within: float, sent: Sent) -> None:
    try:
        async with asyncio.timeout(within):
            while not await look():  # noqa: ASYNC110 - it happens in other processes
                await asyncio.sleep(0.1)
    except TimeoutError:
        batch = await sent.look()
        raise AssertionError(f"not within {within} s: {batch.status}, {batch.counts}, {batch.errors_by_code}") from None


async def submit(live: Service, count: int, mark: str, script: dict[str, Any] | None = None, **settings: Any) -> Sent:
    fields = settings.pop("fields", {})
    sent = Sent(live, mark, [prompt(f"{mark} {number}", **(script or SLOW)) for number in range(count)])
    bodies = [make_body(one, **fields) for one in sent.prompts]
    sent.id = await submit_batch(live.database, live.client, bodies, **settings)
    return sent


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Stack]:
    """A stack whose workers the test starts itself."""
    with stack(tmp_path, workers=0, env=ENV) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


# ------------------------------------------------------------------------------------------------- workers


async def test_one_of_two_workers_is_killed(machine: Stack, live: Service) -> None:
    """Its items are continued, by the other one; a reader of such an item sees one answer and no reset."""
    for _ in range(2):
        machine.add_worker()
    sent = await submit(live, 80, "one-of-two")
    await sent.running(2 * PLACES)
    watching = [asyncio.create_task(live.watched(batch_job_id(sent.id, number))) for number in range(80)]
    machine.workers[0].kill()
    jobs = await sent.whole(again=PLACES)
    for job, watched in zip(jobs, await asyncio.gather(*watching), strict=True):
        assert (watched.texts[Channel.CONTENT], watched.resets, watched.ends) == (job.content, 0, [COMPLETED])
    assert {len(job.attempts) for job in jobs} == {1, 2}


async def test_the_only_worker_is_killed_twice(machine: Stack, live: Service) -> None:
    machine.add_worker()
    sent = await submit(live, 60, "the-only-one")
    for kill in range(2):
        await sent.running((kill + 1) * (PLACES + 6))
        machine.workers[0].restart()
    await sent.whole(again=2 * PLACES)


async def test_everything_is_killed_at_once(machine: Stack, live: Service, hook: Receiver) -> None:
    machine.add_worker()
    gateway(machine)
    sent = await submit(live, 50, "all-at-once", webhook=hook.url("/batch"))
    await sent.running(PLACES + 4)
    mine = [process for process in machine.processes if process is not machine.simulator_process]
    for process in mine:
        os.kill(process.pid, signal.SIGKILL)
    for process in mine:
        process.popen.wait()
    for process in mine:  # Temporal is the first
        process.start()
    await sent.whole(again=PLACES)
    await told_once(hook, "/batch", "batch.completed")


async def test_a_deploy(machine: Stack, live: Service) -> None:
    """SIGTERM: the worker leaves in time, and the other one goes on with its answers where they were."""
    machine.add_worker()
    sent = await submit(live, 40, "deploy", {"tokens": 300, "tokens_per_second": 60})
    await sent.running(PLACES)
    machine.add_worker()
    assert await asyncio.to_thread(machine.workers[0].stop, timeout=15) == 0
    jobs = await sent.whole(again=PLACES)
    outcomes = Counter(attempt.outcome for job in jobs for attempt in job.attempts)
    assert outcomes == {"handed_over": PLACES, "finished": 40}


async def test_an_item_that_ends_its_workers(machine: Stack, live: Service) -> None:
    """It fails after limits.maxLost of them; the others are answered, also those that were beside it each time."""
    sent = await submit(live, 24, "beside", {"first_token_seconds": 0.5, "tokens": 5})
    poison = Sent(live, "poison", ["poison"])
    poison.id = await submit_batch(live.database, live.client, [make_body("poison")])

    async def over() -> bool:
        return (await poison.look()).status.terminal

    watching = asyncio.create_task(soon(over, SECONDS, poison))
    while not watching.done():
        machine.workers.append(machine.run("deadly", "-m", "tests.support.dying_worker", "poison", ready="worker"))
        dying = asyncio.create_task(asyncio.to_thread(machine.workers[-1].popen.wait, SECONDS))
        await asyncio.wait((watching, dying), return_when=asyncio.FIRST_COMPLETED)
        machine.workers[-1].kill()
        await dying
    await watching
    job = await poison.job(0)
    assert job.error
    assert (job.status, job.error.code) == (JobStatus.FAILED, "worker_lost")
    assert [attempt.outcome for attempt in job.attempts] == ["lost"] * 5
    machine.add_worker()
    assert {job.status for job in await sent.ended()} == {COMPLETED}


# ------------------------------------------------------------------------------------------------ Temporal


async def test_temporal_hangs(machine: Stack, live: Service, hook: Receiver) -> None:
    """Items go on; a pause and a resume work as ever; the batch ends when Temporal is back, and says so once."""
    machine.add_worker()
    door = gateway(machine)
    sent = await submit(live, 150, "hangs", webhook=hook.url("/batch"))
    await sent.running(PLACES)
    machine.temporal.freeze()
    async with door.client() as http:
        await held(http, sent)
    machine.temporal.thaw()
    await sent.whole(again=PLACES)  # its activities may be taken for lost
    await told_once(hook, "/batch", "batch.completed")


async def test_temporal_is_away_when_a_batch_is_cancelled(machine: Stack, live: Service, hook: Receiver) -> None:
    machine.add_worker()
    door = gateway(machine)
    sent = await submit(live, 150, "away", webhook=hook.url("/batch"))
    await sent.running(PLACES)
    machine.temporal.kill()
    async with door.client() as http:
        await cancelled(http, sent)
    machine.temporal.start()
    await told_once(hook, "/batch", "batch.cancelled")


async def test_temporal_loses_its_database(machine: Stack, live: Service) -> None:
    """The batch is started again after half a minute without a word, and goes on where it was."""
    machine.add_worker()
    sent = await submit(live, 40, "loses", {"tokens": 200, "tokens_per_second": 40})
    await sent.running(PLACES)
    machine.temporal.kill()
    for file in machine.directory.glob("temporal.db*"):
        file.unlink()
    machine.temporal.start()
    await sent.whole(again=2 * PLACES)


# ----------------------------------------------------------------------------------------- pause and cancel


async def held(http: Any, sent: Sent) -> None:
    """Pause and resume a running batch; calls show both within PROMPT_SECONDS."""
    assert (await http.post(f"/api/batches/{sent.id}/pause")).status_code == 202
    paused = time.time()
    await asyncio.sleep(PROMPT_SECONDS + 3)
    assert sent.calls_since(paused + PROMPT_SECONDS) == 0
    assert {call["outcome"] for call in sent.calls} == {"finished"}  # answers that ran have ended
    assert not (await sent.look()).status.terminal
    count = len(sent.calls)
    assert (await http.post(f"/api/batches/{sent.id}/resume")).status_code == 202
    resumed = time.time()
    await sent.live.stack.simulator.wait(sent.mark, requests=count + 1, timeout=30)
    assert sent.calls[count]["time"] - resumed <= PROMPT_SECONDS


async def cancelled(http: Any, sent: Sent) -> list[Job]:
    """Cancel a running batch: within PROMPT_SECONDS no call begins, and after 6 s all its items have ended."""
    began = time.time()
    assert (await http.post(f"/api/batches/{sent.id}/cancel")).status_code == 202
    jobs = await sent.ended(BatchStatus.CANCELLED, within=15)
    ended = max(job.completed_at.timestamp() for job in jobs if job.completed_at)
    assert ended - began <= 6
    assert sent.calls_since(began + PROMPT_SECONDS) == 0
    cut = [job for job in jobs if job.status is CANCELLED and job.content]
    assert cut
    for job in cut:
        answer = sent.live.stack.simulator.answer(sent.prompts[int(job.job_id[-7:])])["text"]
        assert answer.startswith(str(job.content))
    return jobs


async def test_pause_resume_and_cancel(machine: Stack, live: Service, hook: Receiver) -> None:
    machine.add_worker()
    door = gateway(machine)
    sent = await submit(live, 150, "wishes", webhook=hook.url("/batch"))
    async with door.client() as http:
        await sent.running(PLACES)
        await held(http, sent)
        await sent.running(len(sent.calls) + PLACES)
        jobs = await cancelled(http, sent)
    assert {job.status for job in jobs} == {COMPLETED, CANCELLED}
    await told_once(hook, "/batch", "batch.cancelled")

    async def over() -> bool:
        described = await live.run(sent.id).describe()
        return described.status is not WorkflowExecutionStatus.RUNNING

    await soon(over, 30, sent)


async def test_a_pause_in_a_lane_with_a_limit(tmp_path: Path) -> None:
    """The items that wait for their turns do not take them after the pause."""
    env = ENV | {"MISTRAL_REQUESTS_PER_SECOND": "10", "CHATJOBS_BATCH_CONCURRENCY": "60"}
    with stack(tmp_path, workers=1, env=env) as machine:
        async with service(machine) as live, gateway(machine).client() as http:
            sent = await submit(live, 200, "limited", {"tokens": 3, "tokens_per_second": 50})
            await sent.running(20, tokens=1)
            await held(http, sent)
            await http.post(f"/api/batches/{sent.id}/cancel")
            await sent.ended(BatchStatus.CANCELLED, within=20)


async def test_single_items_are_cancelled(machine: Stack, live: Service) -> None:
    """One that runs and one that waits; the others are answered."""
    machine.add_worker()
    sent = await submit(live, 30, "single", {"tokens": 200, "tokens_per_second": 30})
    async with gateway(machine).client() as http:
        await sent.running(PLACES)
        statuses = [job.status for job in await sent.jobs()]
        runs, waits = statuses.index(JobStatus.IN_PROGRESS), statuses.index(JobStatus.QUEUED)
        for number in (runs, waits):
            answer = await http.post(f"/api/jobs/{batch_job_id(sent.id, number)}/cancel")
            assert answer.status_code == 202
    jobs = await sent.ended()
    assert {number for number, job in enumerate(jobs) if job.status is CANCELLED} == {runs, waits}
    assert {job.status for job in jobs} == {COMPLETED, CANCELLED}
    assert jobs[runs].content
    assert machine.simulator.requests(sent.prompts[waits]) == []


# ------------------------------------------------------------------------------------------------ database


async def test_a_locked_database(machine: Stack, live: Service) -> None:
    machine.add_worker()
    sent = await submit(live, 40, "locked")
    await sent.running(PLACES)
    path = machine.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(8)
        other.execute("ROLLBACK")
    await sent.whole(again=PLACES)


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


async def test_postgres_is_away(tmp_path: Path, own_server: Postgres) -> None:
    """For some seconds, in which its processes stand still, and then stopped without a word."""
    with stack(tmp_path, database_url=own_server.new_database(), env=ENV) as machine:
        async with service(machine) as live:
            sent = await submit(live, 40, "postgres")
            await sent.running(PLACES)
            await asyncio.to_thread(own_server.crash)
            await sent.running(len(sent.calls) + 1)
            await asyncio.to_thread(own_server.crash)
            await sent.whole(again=2 * PLACES)


# --------------------------------------------------------------------------------------- model and its lanes


async def test_a_storm_and_an_outage_of_the_model(machine: Stack, live: Service) -> None:
    """Each item is refused for its rate or fails at first; all end, and none fails for it."""
    machine.add_worker()
    storm = {"tokens": 10, "faults": [{"kind": 429, "retry_after": 1}, {"kind": 503}]}
    sent = await submit(live, 20, "storm", storm)
    jobs = await sent.ended()
    assert {job.status for job in jobs} == {COMPLETED}


async def test_a_single_job_beside_a_large_batch(tmp_path: Path) -> None:
    """With 10 calls a second and 1,000 items that wait, a single job waits 2 s at most; two batches share evenly."""
    env = ENV | {"MISTRAL_REQUESTS_PER_SECOND": "10", "CHATJOBS_BATCH_CONCURRENCY": "40"}
    with stack(tmp_path, workers=2, env=env) as machine:
        async with service(machine) as live:
            quick = {"tokens": 3, "tokens_per_second": 50}
            sent = [await submit(live, 500, mark, quick, tenant=mark) for mark in ("first-tenant", "other-tenant")]
            await sent[1].running(5, tokens=1)
            before = [len(one.calls) for one in sent]
            waits = []
            for number in range(5):
                job_id = await live.submit(prompt(f"single {number}", tokens=3))
                job = await live.ended(job_id)
                assert job.started_at
                waits.append((job.started_at - job.created_at).total_seconds())
                await asyncio.sleep(1)
            shares = [len(one.calls) - count for one, count in zip(sent, before, strict=True)]
            assert max(waits) <= 2, waits
            assert min(shares) >= 0.6 * max(shares) > 0, shares
            for one in sent:
                await dispatch_cancel(live, one)


async def dispatch_cancel(live: Service, sent: Sent) -> None:
    door = dispatch(live.database, live.client)
    await door._runs.cancel(sent.id)
    await door.cancel(sent.id)


# ----------------------------------------------------------------------------------- history, webhooks, doors


async def test_history_of_a_large_batch(machine: Stack, live: Service) -> None:
    """Few events whatever the number of items, and nothing private in Temporal's database."""
    machine.add_worker()
    sent = await submit(live, 1_000, "private-words", {"tokens": 3})
    jobs = await sent.ended()
    events = 0
    async for event in live.run(sent.id).fetch_history_events():
        events = event.event_id
    assert events <= 200
    machine.temporal.stop()
    content = b"".join(file.read_bytes() for file in machine.directory.glob("temporal.db*"))
    assert sent.id.encode() in content
    assert b"private-words" not in content
    assert str(jobs[0].content).encode() not in content


@pytest.mark.parametrize("point", ["after_seal", "before_send", "after_send"])
async def test_webhooks_of_items_when_the_worker_dies(
    machine: Stack, live: Service, hook: Receiver, point: str
) -> None:
    """Each comes at least once, with one id and one body."""
    sent = await submit(live, 10, f"hooks-{point}", {"tokens": 3}, fields={"callback": hook.url("/item")})
    await died(machine, point)
    jobs = await sent.ended()

    async def all_came() -> bool:
        return len({one.headers["webhook-id"] for one in hook.requests("/item")}) == 10

    await soon(all_came, 60, sent)
    bodies: dict[str, set[bytes]] = {}
    for one in hook.requests("/item"):
        bodies.setdefault(one.headers["webhook-id"], set()).add(one.body)
    assert set(bodies) == {job.deliveries[0].id for job in jobs}
    assert {len(one) for one in bodies.values()} == {1}


async def died(machine: Stack, point: str) -> None:
    """A worker has run until it killed itself at ``point``; its successor is up."""
    doomed = machine.run(f"doomed-{point}", "-m", "tests.support.dying_worker", point, ready="worker ready")
    assert await asyncio.to_thread(doomed.popen.wait, 60) == -signal.SIGKILL
    machine.add_worker()


async def test_one_upload_through_two_gateways_at_once(machine: Stack, live: Service) -> None:
    """With one key: one batch, each item called once, also when it is sent again later."""
    doors = [gateway(machine, "one"), gateway(machine, "two")]
    for _ in range(2):
        machine.add_worker()
    prompts = [prompt(f"upload {number}", tokens=5) for number in range(60)]
    items = [{"custom_id": f"item-{number}", "body": make_body(one)} for number, one in enumerate(prompts)]

    async def upload(door: Gateway) -> tuple[int, str]:
        async with door.client() as http:
            answer = await http.post("/api/batches", json={"items": items}, headers={"Idempotency-Key": "once"})
            return answer.status_code, answer.json()["batchId"]

    answers = await asyncio.gather(*(upload(door) for door in doors * 3))
    assert len(set(answers)) == 1
    sent = Sent(live, "upload", prompts, id=answers[0][1])
    await sent.whole()
    assert await upload(doors[0]) == answers[0]
    assert len(sent.calls) == 60


async def told_once(hook: Receiver, path: str, event: str) -> None:
    """The receiver has the event, with one id and one body, and no other event."""
    await hook.arrived(1, path=path, timeout=60)
    await asyncio.sleep(1)
    received = hook.requests(path)
    assert {one.json()["event"] for one in received} == {event}
    assert len({(one.headers["webhook-id"], one.body) for one in received}) == 1
    assert len(received) == 1
