"""What is deleted, or older than its retention, is gone: from storage whole, and for whoever still looks at it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text
from temporalio.client import Client, ScheduleActionStartWorkflow, WorkflowExecutionStatus
from temporalio.service import RPCError
from temporalio.testing import ActivityEnvironment

from activities.retention import RetentionActivities, cutoff
from chatjobs.contracts import DeliveryTry, Job, JobStatus
from chatjobs.errors import ContentDeleted, JobNotFound, JobRunning
from dispatch.schedules import schedule_retention
from domain.names import (
    CHAT_JOB,
    JOBS_QUEUE,
    RETENTION,
    RETENTION_SCHEDULE,
    RETRY_NOW,
    delivery_workflow_id,
    new_job_id,
)
from domain.payloads import RetentionOrder, RetentionReport
from domain.values import Cursor, RunRef
from storage.batches.retention import BatchRetention
from storage.engine import schema
from storage.engine.database import Database
from storage.events.feed import EventFeed
from storage.files.retention import FileRetention
from storage.jobs.retention import PENDING_DELIVERIES_KEEP, RemovalPosition, RetentionStore
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from storage.transcript.writer import TranscriptWriter
from storage.webhooks.deliveries import DeliveryStore
from storage.webhooks.endpoints import EndpointStore
from tests.support.factories import accepted, answered, claimed, ending, failing, finished, make_body, make_job, wrote
from tests.support.fakes import PATIENCE, Gate, eventually
from tests.support.fakes import answered as answering
from tests.support.gateway import Gateway, gateway
from tests.support.house import HOOK, house
from tests.support.simulator_process import prompt
from tests.support.stack import ROOT, Stack, stack

SECRET = "the-secret-of-this-test"
LATER = timedelta(days=1)
TABLES = [schema.jobs, schema.requests, schema.transcript, schema.results, schema.attempts, schema.deliveries]
TABLES.append(schema.delivery_tries)


@pytest.fixture
def retention(database: Database) -> RetentionStore:
    return RetentionStore(database)


def tomorrow() -> datetime:
    return datetime.now(UTC) + LATER


async def ended(store: JobStore, writer: TranscriptWriter, *, delivered: bool = True, **fields: Any) -> str:
    """The id of a job with a row in every table: completed, notified (or about to be)."""
    fields = {"callback": HOOK, "metadata": {"order": "42"}} | fields
    job_id = await answered(store, writer, "a", SECRET, **fields)
    await store.seals.seal(ending(job_id, JobStatus.COMPLETED), run_id="run-1")
    one_try = DeliveryTry(number=1, started_at=datetime.now(UTC), latency_ms=1, status_code=200, response=SECRET)
    for delivery in (await store.queries.get(job_id)).deliveries:
        later = None if delivered else tomorrow()
        await DeliveryStore(store.queries._database).record_try(
            delivery.id, one_try, delivered=delivered, next_try_at=later
        )
    return job_id


async def counts(database: Database) -> dict[str, int]:
    """Rows per table."""
    async with database.read() as connection:
        return {t.name: await connection.scalar(select(func.count()).select_from(t)) or 0 for t in TABLES}


async def everything(database: Database) -> str:
    async with database.read() as connection:
        return str([(await connection.execute(select(table))).all() for table in TABLES])


# --------------------------------------------------------------------------------------------------- retention


async def test_a_job_goes_whole(
    database: Database, store: JobStore, writer: TranscriptWriter, retention: RetentionStore
) -> None:
    """No row of it stays anywhere, not even of an epoch that was thrown away; its key makes a new job."""
    job_id = await ended(store, writer, idempotency_key="k")
    assert min((await counts(database)).values()) == 0, "a sealed job has no transcript"
    async with database.write() as connection:
        left = {"job_id": job_id, "epoch": 1, "position": 1, "channel": 0, "text": SECRET, "token_count": 1}
        await connection.execute(insert(schema.transcript).values(left))
    assert min((await counts(database)).values()) == 1
    assert (await retention.remove(tomorrow()))[0] == 1
    assert set((await counts(database)).values()) == {0}
    with pytest.raises(JobNotFound):
        await store.queries.get(job_id)
    again = await store.acceptance.accept(make_job(callback=HOOK, metadata={"order": "42"}, idempotency_key="k"))
    assert again.created
    assert again.job_id != job_id


async def test_only_jobs_that_ended_long_enough_ago(
    database: Database, store: JobStore, writer: TranscriptWriter, retention: RetentionStore
) -> None:
    """Neither a running one, nor one that waits, nor one that was reopened, nor one that has just ended."""
    old = await ended(store, writer)
    between = datetime.now(UTC)
    running, waiting, reopened = [await accepted(store) for _ in range(3)]
    await wrote(writer, await claimed(store, running), "Hel")
    await claimed(store, reopened)
    await store.seals.seal(failing(reopened), run_id="run-1")
    await claimed(store, reopened, run_id="run-2")
    young = await ended(store, writer)
    before = await counts(database)
    assert (await retention.remove(between))[0] == 1
    assert (await retention.remove(between))[0] == 0
    assert before["jobs"] - (await counts(database))["jobs"] == 1
    assert {job.job_id for job in await store.queries.list()} == {running, waiting, reopened, young}
    assert (await retention.remove(tomorrow()))[0] == 1
    assert (await store.queries.get(running)).content == "Hel"
    assert old != young


async def test_a_pending_delivery_keeps_its_job(
    store: JobStore, writer: TranscriptWriter, retention: RetentionStore
) -> None:
    """Until it is done, or seven days more."""
    waits, done = await ended(store, writer, delivered=False), await ended(store, writer)
    assert (await retention.remove(tomorrow()))[0] == 1
    assert [job.job_id for job in await store.queries.list()] == [waits]
    assert (await retention.remove(tomorrow() + PENDING_DELIVERIES_KEEP))[0] == 1
    assert await store.queries.list() == []
    assert done != waits


async def test_small_steps_reach_every_job_once(
    database: Database, store: JobStore, writer: TranscriptWriter, retention: RetentionStore
) -> None:
    """Also those that ended at the same moment; beside two others that do the same."""
    for _ in range(25):
        await accepted(store, idempotency_key=None)
    async with database.write() as connection:
        await connection.execute(
            text("UPDATE jobs SET status = 'cancelled', completed_at = 5000000 + CAST(id < 'job_8' AS int)")
        )

    async def work_off() -> list[int]:
        steps, place = [], RemovalPosition(0, "")
        while place is not None:
            found = await retention.remove(tomorrow(), after=place, limit=4)
            steps.append(found.jobs)
            place = found.place  # type: ignore[assignment]  # the loop ends on None
        return steps

    steps = await work_off()
    assert sum(steps) == 25
    assert max(steps) <= 4
    assert (await counts(database))["jobs"] == 0
    for _ in range(25):
        await accepted(store)
    async with database.write() as connection:
        await connection.execute(text("UPDATE jobs SET status = 'cancelled', completed_at = 5000000"))
    together = await asyncio.gather(work_off(), work_off(), work_off())
    assert sum(map(sum, together)) == 25
    assert (await counts(database))["jobs"] == 0


async def test_a_try_that_is_being_recorded_leaves_nothing_behind(postgres_database: Database) -> None:
    """The removal waits for it, and takes it along."""
    store, retention = JobStore(postgres_database), RetentionStore(postgres_database)
    async with TranscriptWriter(postgres_database).running() as writer:
        job_id = await ended(store, writer)
    (delivery,) = (await store.queries.get(job_id)).deliveries
    locked = select(schema.deliveries.c.id).where(schema.deliveries.c.id == delivery.id).with_for_update()
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    async def removal_waits() -> bool:
        async with postgres_database.read() as connection:
            return bool(await connection.scalar(waits))

    async with postgres_database.write() as connection:
        await connection.execute(locked)
        removing = asyncio.create_task(retention.remove(tomorrow()))
        await eventually(removal_waits)
        one_try = {"delivery_id": delivery.id, "number": 2, "started_at": 1, "latency_ms": 1}
        await connection.execute(insert(schema.delivery_tries).values(one_try))
    assert (await removing).jobs == 1
    assert set((await counts(postgres_database)).values()) == {0}


async def test_a_transaction_is_short_however_large_the_jobs(sqlite: Database) -> None:
    """On SQLite nobody else can write meanwhile: it ends once it has taken its time, and the next one goes on."""
    store, retention = JobStore(sqlite), RetentionStore(sqlite)
    jobs = [await accepted(store) for _ in range(60)]
    async with sqlite.write() as connection:
        await connection.execute(text("UPDATE jobs SET status = 'cancelled', completed_at = 1"))
        await connection.execute(text("UPDATE requests SET body = :body"), {"body": "x" * 1_000_000})
    found = await retention.remove(tomorrow())
    assert 0 < found.jobs < len(jobs)
    removed = found.jobs
    while found.place is not None:
        found = await retention.remove(tomorrow(), after=found.place)
        removed += found.jobs
    assert removed == len(jobs)


async def test_another_attempt_goes_on_where_the_last_one_was(
    store: JobStore, writer: TranscriptWriter, retention: RetentionStore
) -> None:
    """What was passed is not looked at again, and counts."""
    passed, left = await ended(store, writer), await ended(store, writer)
    place = (await store.queries.get(passed)).completed_at
    assert place is not None
    environment = ActivityEnvironment()
    said = RetentionReport(removed=7, completed_at=schema.micros(place), job_id=passed)
    environment.info = replace(environment.info, heartbeat_details=[said.model_dump()])
    database = store.queries._database
    work = RetentionActivities(
        retention=retention,
        batches=BatchRetention(database),
        endpoints=EndpointStore(database),
        files=FileRetention(database),
        events=EventFeed(database),
    ).remove_old_jobs
    report = await environment.run(work, RetentionOrder(days=1e-9))
    assert (report.removed, report.complete) == (8, True)
    assert [job.job_id for job in await store.queries.list()] == [passed]
    assert left != passed


@pytest.mark.parametrize("days", [1e-6, 30.0, 36_500.0])
def test_the_cutoff_is_a_time_whatever_the_setting(days: float) -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    assert datetime(1970, 1, 1, tzinfo=UTC) < cutoff(days, now) < now
    assert cutoff(30, now) == datetime(2026, 1, 1, tzinfo=UTC)


# -------------------------------------------------------------------------------------------- the schedule


@pytest.fixture
async def scheduled(client: Client) -> AsyncIterator[Client]:
    yield client
    await client.get_schedule_handle(RETENTION_SCHEDULE).delete()


async def order(client: Client) -> Any:
    described = await client.get_schedule_handle(RETENTION_SCHEDULE).describe()
    action = described.schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    return json.loads(action.args[0].data)  # as it is described: a raw payload


async def test_workers_that_start_together_make_one_schedule(scheduled: Client) -> None:
    """The number of days is that of the worker that started last; a pause by an operator stays."""
    made = await asyncio.gather(*(schedule_retention(scheduled, 30) for _ in range(5)), return_exceptions=True)
    assert made == [None] * 5
    assert await order(scheduled) == {"days": 30.0}
    handle = scheduled.get_schedule_handle(RETENTION_SCHEDULE)
    await handle.pause(note="not now")
    await schedule_retention(scheduled, 7)
    assert await order(scheduled) == {"days": 7.0}
    state = (await handle.describe()).schedule.state
    assert (state.paused, state.note) == (True, "not now")


async def test_the_schedule_removes_what_is_too_old(scheduled: Client, sqlite: Database) -> None:
    """The whole way: schedule, workflow, activity, database."""
    async with house(scheduled, sqlite) as here:
        old = await here.submit()
        await here.ended(old)
        running = await here.accept()
        await schedule_retention(scheduled, 1e-9)
        await scheduled.get_schedule_handle(RETENTION_SCHEDULE).trigger()

        async def gone() -> bool:
            return not await here.jobs.queries.exists(old)

        await eventually(gone)
        assert await here.jobs.queries.exists(running)
        await here.jobs.seals.request_cancel(running)
        run = await scheduled.start_workflow(RETENTION, RetentionOrder(days=1e-9), id="by-hand", task_queue=JOBS_QUEUE)
        assert (await run.result())["removed"] == 1


# ------------------------------------------------------------------------------------------------ deletion


async def test_a_deleted_job_keeps_what_it_cost_and_nothing_that_was_said(
    database: Database, store: JobStore, writer: TranscriptWriter
) -> None:
    job_id = await ended(store, writer, prompt=SECRET, idempotency_key="k", metadata={"order": f"{SECRET} 42"})
    before = await store.queries.get(job_id)
    assert SECRET in await everything(database)
    await store.seals.delete(job_id)
    after = await store.queries.get(job_id)
    nothing: dict[str, Any] = {"content": None, "preview": None, "provenance": (), "deliveries": (), "metadata": {}}
    gone = {**nothing, "deleted_at": after.deleted_at}
    assert after == before.model_copy(update=gone)
    assert isinstance(after, Job)
    assert after.deleted_at is not None
    assert after.usage is not None or after.attempts
    found = await everything(database)
    assert SECRET not in found
    assert HOOK not in found
    await store.seals.delete(job_id)
    assert (await store.queries.get(job_id)).deleted_at == after.deleted_at, "again is the same"
    metadata = {"order": f"{SECRET} 42"}
    again = await store.acceptance.accept(make_job(SECRET, callback=HOOK, metadata=metadata, idempotency_key="k"))
    assert (again.created, again.job_id) == (False, job_id)
    assert [(job.deleted_at, job.metadata) for job in await store.queries.list()] == [(after.deleted_at, {})]
    with pytest.raises(ContentDeleted):
        await store.queries.request(job_id)


async def test_the_text_is_not_in_the_file_any_more(tmp_path: Path) -> None:
    """SQLite would leave it in free pages: neither the request, nor the transcript, nor what the seal made of it."""
    path = tmp_path / "chatjobs.db"
    database = await Database.open(f"sqlite:///{path}")
    store = JobStore(database)
    async with TranscriptWriter(database).running() as writer:
        deltas = [f"{SECRET} {number} " for number in range(500)]
        job_id = await answered(store, writer, *deltas, prompt=SECRET * 1000)
        await store.seals.seal(ending(job_id, JobStatus.COMPLETED), run_id="run-1")
        assert SECRET.encode() in raw(path)
        await store.seals.delete(job_id)
    await database.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert SECRET.encode() not in raw(path)
    assert job_id.encode() in raw(path)


def raw(path: Path) -> bytes:
    """The database and its log."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


async def test_only_finished_jobs_of_ones_own(store: JobStore, writer: TranscriptWriter) -> None:
    running = await accepted(store)
    with pytest.raises(JobRunning):
        await store.seals.delete(running)
    claim = await claimed(store, running)
    await (await wrote(writer, claim, "Hello")).finish(finished(claim))
    with pytest.raises(JobRunning):
        await store.seals.delete(running)
    done = await ended(store, writer)
    for job_id, tenant in ((done, "another"), ("job_none", None)):
        with pytest.raises(JobNotFound):
            await store.seals.delete(job_id, tenant)
    assert (await store.queries.get(done)).deleted_at is None


async def test_which_jobs_stand_in_temporal_too(store: JobStore) -> None:
    """Those that came with their request inline, and no other."""
    inline = (await store.acceptance.accept(replace(make_job(), started=True))).job_id
    stored = await accepted(store)
    await store.acceptance.workflow_started(stored)
    for job_id, is_inline in ((inline, True), (stored, False)):
        await claimed(store, job_id)
        await store.seals.seal(failing(job_id), run_id="run-1")
        assert (await store.seals.delete(job_id) == RunRef(job_id)) is is_inline


async def test_readers_of_a_deleted_job_are_told(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader
) -> None:
    """Wherever they are; a slice without its text would look like the answer's end."""
    job_id, other = await ended(store, writer), await ended(store, writer)
    length = (await store.queries.get(job_id)).position
    await store.seals.delete(job_id)
    for cursor in (Cursor(job_id), Cursor(job_id, 1, 3), Cursor(job_id, 1, length), Cursor(job_id, 7, 1)):
        with pytest.raises(ContentDeleted):
            await reader.read(cursor)
        with pytest.raises(ContentDeleted):
            async with asyncio.timeout(PATIENCE):
                await reader.wait(cursor)
    assert (await reader.read(Cursor(other))).status.terminal


async def test_a_reader_that_waits_meanwhile_comes_to_an_end(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader, retention: RetentionStore
) -> None:
    """It sees the outcome, or that there is nothing to see any more; it never hangs."""
    for end, error in ((store.seals.delete, ContentDeleted), (lambda _: retention.remove(tomorrow()), JobNotFound)):
        job_id = await answered(store, writer)
        came = asyncio.Event()

        async def follow(job_id: str = job_id, came: asyncio.Event = came, error: type[Exception] = error) -> bool:
            try:
                async for piece in reader.follow(Cursor(job_id)):
                    came.set()
                    if piece.status.terminal:
                        return True
            except error:
                return True
            return False

        following = asyncio.create_task(follow())
        async with asyncio.timeout(PATIENCE):
            await came.wait()
            await store.seals.seal(ending(job_id), run_id="run-1")
            await end(job_id)
            assert await following


async def test_an_operators_reset_does_not_reopen_it(store: JobStore, writer: TranscriptWriter) -> None:
    """Its text is gone: the outcome stands."""
    job_id = await accepted(store)
    await wrote(writer, await claimed(store, job_id), "Hel")
    await store.seals.seal(failing(job_id), run_id="run-1")
    await store.seals.delete(job_id)
    claim = await claimed(store, job_id, run_id="run-2")
    assert claim.outcome == "sealed"
    sealed = await store.seals.seal(failing(job_id), run_id="run-2")
    assert (sealed.status, sealed.delivery_id) == (JobStatus.FAILED, None)


async def test_the_delivery_of_a_deleted_job_ends_quietly(client: Client, sqlite: Database) -> None:
    """One that waits for its next try, and one whose try is under way."""
    gate = Gate()
    async with house(client, sqlite) as here:
        here.sender.answers = [answering(500)]
        waits = await here.submit(callback=HOOK)
        await here.ended(waits)
        (delivery,) = (await here.jobs.queries.get(waits)).deliveries
        await here.jobs.seals.delete(waits)
        run = here.run(delivery_workflow_id(delivery.id))
        await run.signal(RETRY_NOW)
        async with asyncio.timeout(PATIENCE):
            assert (await run.result())["delivered"] is False
        assert len(here.sender.posts) == 1, "nothing more is sent"

        here.sender.answers = [gate, answering(500)]
        tries = await here.submit(callback=HOOK)
        await gate.reached()
        await here.jobs.seals.delete(tries)
        gate.open()
        assert (await here.ended(tries)).status is JobStatus.COMPLETED
        assert (await here.run(tries).describe()).status is WorkflowExecutionStatus.COMPLETED
        assert (await counts(sqlite))["delivery_tries"] == 0


# ----------------------------------------------------------------------------------------- at the door


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = {"CHATJOBS_PORT": "0", "CHATJOBS_RETENTION_DAYS": "12.5"}
    with stack(tmp_path_factory.mktemp("retention"), env=environment) as started:
        yield started


@pytest.fixture(scope="module")
def door(running: Stack) -> Gateway:
    return gateway(running)


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "running" in request.fixturenames:
        sys.stdout.write(request.getfixturevalue("running").news())


async def test_delete_over_http(running: Stack, door: Gateway) -> None:
    body, key = make_body(prompt(tokens=5)), {"Idempotency-Key": "k"}
    async with door.client() as http:
        created = await http.post("/api/jobs", json=body, headers=key | {"Prefer": "wait=30"})
        assert (created.status_code, created.json()["status"]) == (200, "completed")
        url = f"/api/jobs/{created.json()['jobId']}"
        for _ in range(2):
            deleted = await http.delete(url)
            assert (deleted.status_code, deleted.content) == (204, b"")
        job = (await http.get(url)).json()
        assert (job["status"], job["content"], job["usage"]) == ("completed", None, created.json()["usage"])
        assert datetime.fromisoformat(job["deletedAt"]) <= datetime.now(UTC)
        for method, path in (("GET", f"{url}/events"), ("POST", f"{url}/replay")):
            refused = await http.request(method, path)
            assert (refused.status_code, refused.json()["code"]) == (410, "content_deleted"), path
        again = await http.post("/api/jobs", json=body, headers=key | {"Prefer": "wait=30"})
        assert (again.status_code, again.json()) == (200, job)
        streamed = await http.post("/api/chat/stream", json=body, headers=key)
        assert (streamed.status_code, streamed.json()["code"]) == (410, "content_deleted")
        assert (await http.delete("/api/jobs/job_none")).status_code == 404


async def test_a_running_job_is_not_deleted(running: Stack, door: Gateway) -> None:
    words = prompt("slowly", tokens=2000, tokens_per_second=20)
    async with door.client() as http:
        url = (await http.post("/api/jobs", json=make_body(words))).headers["Location"]
        await running.simulator.wait(words, tokens=3)
        refused = await http.delete(url)
        assert (refused.status_code, refused.json()["code"]) == (409, "job_running")
        await http.post(f"{url}/cancel")

        async def cancelled() -> bool:
            return bool((await http.get(url)).json()["status"] == "cancelled")

        await eventually(cancelled)
        assert (await http.delete(url)).status_code == 204


async def test_an_inline_jobs_history_is_deleted_too(running: Stack, door: Gateway) -> None:
    """Temporal's history has the request of a job that was started straight through it."""
    client = await running.connect()
    job_id = new_job_id()
    run = await client.start_workflow(CHAT_JOB, {"request": make_body(SECRET)}, id=job_id, task_queue=JOBS_QUEUE)
    assert (await run.result())["status"] == "completed"
    async with door.client() as http:

        async def taken() -> bool:
            """Temporal took the order, which it carries out within a minute. A run is indexed a moment after its end:
            who asks again is heard."""
            assert (await http.delete(f"/api/jobs/{job_id}")).status_code == 204
            logged = [json.loads(line) for line in door.process.output().splitlines() if job_id in line]
            return any(line.get("action") == "history_deleted" and line["runs"] == 1 for line in logged)

        await eventually(taken)


async def test_delete_on_the_command_line(running: Stack) -> None:
    """With Temporal away an inline job's history stays, and the command says so."""
    client = await running.connect()
    job_id = new_job_id()
    run = await client.start_workflow(CHAT_JOB, {"request": make_body(SECRET)}, id=job_id, task_queue=JOBS_QUEUE)
    await run.result()
    away = command(running, "delete", job_id, "--json", TEMPORAL_ADDRESS="127.0.0.1:1")
    assert (away.returncode, json.loads(away.stdout)["content"]) == (0, None)
    assert "give this command again when Temporal is back" in away.stderr
    again = command(running, "delete", job_id)
    assert (again.stdout, again.stderr) == (f"{job_id} deleted\n", "")
    again = command(running, "watch", job_id)
    assert (again.returncode, again.stderr) == (2, "starter: The content of this job was deleted.\n")


def command(running: Stack, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "starter.py", *arguments],
        cwd=ROOT,
        env=running.env | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_the_worker_has_made_the_schedule(running: Stack) -> None:
    """With its own number of days; another worker's counts from its start."""
    client = await running.connect()

    async def days() -> Any:
        try:
            return (await order(client))["days"]
        except RPCError:
            return None

    assert await eventually(days) == 12.5
    running.env["CHATJOBS_RETENTION_DAYS"] = "3"
    running.add_worker()

    async def changed() -> bool:
        return bool(await days() == 3.0)

    await eventually(changed)
