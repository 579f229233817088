"""Rows of batch jobs: one claim at a time, one batch whatever dies, and an end that is recorded once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from chatjobs.contracts import BatchSettings
from chatjobs.errors import IdempotencyMismatch
from dispatch.stores import batch_runs
from domain.batch_jobs import (
    BatchJobFilter,
    BatchJobOrder,
    BatchJobState,
    batch_key,
    first_batch_id,
    new_batch_job_id,
)
from domain.batches import BatchHash, NewBatch, new_item
from domain.errors import BatchJobNotFound
from domain.files import FileFilter
from domain.settings import Settings
from storage.batches.batch_jobs import CLAIM_LASTS, BatchJobStore, DueBatchJobs
from storage.batches.drafts import DraftStore
from storage.batches.runs import BatchRunStore
from storage.engine import schema
from storage.engine.database import Database
from storage.files.queries import FileQueries
from storage.files.retention import FileRetention
from tests.support.factories import make_body

DAY = datetime.now(UTC) + timedelta(days=1)
NOTHING = DueBatchJobs([], [], [], [], [])
FILE = "6f1f9a3e-0000-4000-8000-000000000001"


@pytest.fixture
def jobs(database: Database) -> BatchJobStore:
    return BatchJobStore(database)


@pytest.fixture
def runs(database: Database) -> BatchRunStore:
    return batch_runs(Settings(), database)


def order(key: str | None = None, **fields: Any) -> BatchJobOrder:
    usual = BatchJobOrder(
        job_id=new_batch_job_id(),
        tenant="a",
        input_files=(FILE,),
        body_hash="0" * 64,
        expires_at=datetime.now(UTC) + timedelta(hours=24),
        idempotency_key=key,
    )
    return replace(usual, **fields)


async def created(jobs: BatchJobStore, **fields: Any) -> str:
    return (await jobs.create(order(**fields))).job_id


async def batch(database: Database, batch_id: str, key: str) -> str:
    """The id of a batch of one item."""
    drafts, hashes, settings = DraftStore(database), BatchHash(), BatchSettings()
    await drafts.begin(batch_id, "a")
    line = {"body": make_body("hello")}
    await drafts.add(batch_id, [new_item(line, 0, batch_id, settings, hashes.add(line), None)])
    return (await drafts.publish(NewBatch(batch_id, "a", settings, 1, hashes.digest(settings), key))).batch_id


async def ended(database: Database, batch_id: str, status: str = "completed", tally: str = '{"completed": 1}') -> None:
    time = schema.micros(schema.now())
    async with database.write() as connection:
        changed = update(schema.batches).where(schema.batches.c.id == batch_id)
        await connection.execute(changed.values(status=status, completed_at=time, started_at=time, tally=tally))


async def stale(database: Database, job_id: str) -> None:
    """As if the process that claimed a job had died long ago."""
    before = schema.micros(schema.now() - CLAIM_LASTS - timedelta(seconds=1))
    async with database.write() as connection:
        changed = update(schema.batch_jobs).where(schema.batch_jobs.c.id == job_id)
        await connection.execute(changed.values(claimed_at=before))


async def test_a_new_job_is_queued_and_unread(jobs: BatchJobStore) -> None:
    job_id = await created(jobs, metadata={"a": "b"}, model="m")
    job = await jobs.get(job_id, "a")
    assert (job.state, job.total, job.batch_id) == (BatchJobState.QUEUED, 0, None)
    assert (job.input_files, job.metadata, job.model) == ([FILE], {"a": "b"}, "m")
    assert (await jobs.due()).unread == [job_id]
    with pytest.raises(BatchJobNotFound):
        await jobs.get(job_id, "b")


async def test_one_of_many_claims_a_job(jobs: BatchJobStore) -> None:
    job_id = await created(jobs)
    claims = [claim for claim in await asyncio.gather(*(jobs.claim(job_id) for _ in range(8))) if claim]
    assert [claim.batch_id for claim in claims] == [first_batch_id(job_id)]
    assert (await jobs.due()).unread == []
    await jobs.release(job_id)
    assert (await jobs.due()).unread == [job_id]


async def test_the_claim_of_a_dead_process_passes_to_another(database: Database, jobs: BatchJobStore) -> None:
    """It writes another batch than the first one, which may still be alive; only one of them is published."""
    job_id = await created(jobs)
    first = await jobs.claim(job_id)
    await stale(database, job_id)
    second = await jobs.claim(job_id)
    assert first is not None
    assert second is not None
    assert first.batch_id != second.batch_id
    published = {await batch(database, claim.batch_id, claim.key) for claim in (second, first)}
    assert published == {second.batch_id}
    await stale(database, job_id)
    third = await jobs.claim(job_id)
    assert third is not None
    assert (third.batch_id, third.made) == (second.batch_id, True)
    assert await jobs.made(job_id, second.batch_id)
    assert (await jobs.get(job_id)).batch_id == second.batch_id


async def test_a_renewed_claim_stays(database: Database, jobs: BatchJobStore) -> None:
    job_id = await created(jobs)
    await jobs.claim(job_id)
    await stale(database, job_id)
    assert await jobs.renew(job_id)
    assert await jobs.claim(job_id) is None


async def test_a_job_whose_files_are_refused_has_failed(jobs: BatchJobStore) -> None:
    job_id = await created(jobs)
    await jobs.claim(job_id)
    await jobs.refuse(job_id, ["line 1: is wrong"])
    job = await jobs.get(job_id)
    assert (job.state, job.errors, job.settled) == (BatchJobState.FAILED, ["line 1: is wrong"], True)
    assert job.completed_at is not None
    assert await jobs.due() == NOTHING


async def test_a_job_that_is_cancelled_before_it_is_read_never_runs(database: Database, jobs: BatchJobStore) -> None:
    job_id = await created(jobs)
    claim = await jobs.claim(job_id)
    assert claim is not None
    assert (await jobs.cancel(job_id, "a")).state is BatchJobState.CANCELLED
    assert not await jobs.renew(job_id)
    await jobs.refuse(job_id, ["too late"])
    assert (await jobs.get(job_id)).state is BatchJobState.CANCELLED
    batch_id = await batch(database, claim.batch_id, claim.key)  # it was about to be published
    assert not await jobs.made(job_id, batch_id)


@pytest.mark.parametrize("late", [False, True])
async def test_a_cancellation_that_breaks_off_is_told_until_the_batch_is_cancelled(
    database: Database, jobs: BatchJobStore, runs: BatchRunStore, late: bool
) -> None:
    job_id = await created(jobs)
    batch_id = await batch(database, first_batch_id(job_id), "k")
    await jobs.made(job_id, batch_id)
    assert await jobs.due() == NOTHING
    expected = BatchJobState.QUEUED if late else BatchJobState.CANCELLATION_REQUESTED
    assert (await jobs.cancel(job_id, late=late)).state is expected
    assert (await jobs.due()).unwanted == [batch_id]
    await runs.cancel(batch_id)
    assert await jobs.due() == NOTHING
    await ended(database, batch_id, "cancelled", "{}")
    await jobs.settle(job_id)
    expected = BatchJobState.TIMEOUT_EXCEEDED if late else BatchJobState.CANCELLED
    assert (await jobs.get(job_id)).state is expected


async def test_a_batch_that_goes_on_after_its_cancellation_is_left_alone(
    database: Database, jobs: BatchJobStore, runs: BatchRunStore
) -> None:
    job_id = await created(jobs)
    batch_id = await batch(database, first_batch_id(job_id), "k")
    await jobs.made(job_id, batch_id)
    await jobs.cancel(job_id)
    await runs.cancel(batch_id)
    await ended(database, batch_id, "cancelled", "{}")
    async with database.write() as connection:  # it is resumed before its end is recorded
        again = {"status": "in_progress", "revision": 2, "completed_at": None, "cancel_requested_at": None}
        await connection.execute(update(schema.batches).where(schema.batches.c.id == batch_id).values(**again))
    assert await jobs.due() == NOTHING
    assert (await jobs.get(job_id)).state is BatchJobState.RUNNING


async def test_a_job_cancelled_while_it_is_read_has_its_batch_cancelled(
    database: Database, jobs: BatchJobStore, runs: BatchRunStore
) -> None:
    """The process dies as soon as it has recorded the batch."""
    job_id = await created(jobs)
    claim = await jobs.claim(job_id)
    assert claim is not None
    await jobs.cancel(job_id, "a")
    assert not await jobs.made(job_id, await batch(database, claim.batch_id, claim.key))
    assert (await jobs.get(job_id)).state is BatchJobState.CANCELLATION_REQUESTED
    assert (await jobs.due()).unwanted == [claim.batch_id]
    await runs.cancel(claim.batch_id)
    assert await jobs.due() == NOTHING


@pytest.mark.parametrize("late", [False, True])
async def test_the_batch_of_a_process_that_died_after_a_cancellation_is_found(
    database: Database, jobs: BatchJobStore, runs: BatchRunStore, late: bool
) -> None:
    """It had published the batch, and not recorded it."""
    job_id = await created(jobs, expires_at=datetime.now(UTC) - timedelta(seconds=1) if late else DAY)
    claim = await jobs.claim(job_id)
    assert claim is not None
    await jobs.cancel(job_id, late=late)
    batch_id = await batch(database, claim.batch_id, batch_key(job_id))
    assert await jobs.due() == NOTHING  # the process may live
    await jobs.settle(job_id)
    assert await FileRetention(database).remove_some(DAY) == 0
    await stale(database, job_id)
    assert await jobs.due() == NOTHING._replace(ended=[job_id])
    await asyncio.gather(*(jobs.settle(job_id) for _ in range(3)))
    assert await jobs.due() == NOTHING._replace(unwanted=[batch_id])
    await runs.cancel(batch_id)
    assert await jobs.due() == NOTHING
    await ended(database, batch_id, "cancelled", "{}")
    await jobs.settle(job_id)
    job = await jobs.get(job_id)
    assert job.state is (BatchJobState.TIMEOUT_EXCEEDED if late else BatchJobState.CANCELLED)
    assert job.settled


async def test_a_cancelled_job_whose_reader_made_nothing_is_settled(jobs: BatchJobStore) -> None:
    job_id = await created(jobs)
    await jobs.claim(job_id)
    await jobs.cancel(job_id)
    await jobs.release(job_id)
    assert await jobs.due() == NOTHING._replace(ended=[job_id])
    await jobs.settle(job_id)
    assert await jobs.due() == NOTHING
    job = await jobs.get(job_id)
    assert (job.state, job.settled) == (BatchJobState.CANCELLED, True)


async def test_a_deleted_job_is_forgotten_after_its_batch_is_cancelled(
    database: Database, jobs: BatchJobStore, runs: BatchRunStore
) -> None:
    job_id = await created(jobs)
    claim = await jobs.claim(job_id)
    assert claim is not None
    await jobs.cancel(job_id)
    await jobs.delete(job_id)
    batch_id = await batch(database, claim.batch_id, claim.key)
    assert await jobs.due() == NOTHING
    await stale(database, job_id)
    assert (await jobs.due()).deleted == [job_id]
    await jobs.erase(job_id)
    assert await jobs.due() == NOTHING._replace(unwanted=[batch_id])
    await runs.cancel(batch_id)
    assert await jobs.due() == NOTHING
    await ended(database, batch_id, "cancelled", "{}")
    assert (await jobs.due()).deleted == [job_id]
    await jobs.erase(job_id)
    async with database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(schema.batch_jobs)) == 0


async def test_a_job_has_a_limited_time(database: Database, jobs: BatchJobStore) -> None:
    late = datetime.now(UTC) - timedelta(seconds=1)
    unread, running = await created(jobs, expires_at=late), await created(jobs, expires_at=late)
    await created(jobs)
    await jobs.made(running, await batch(database, first_batch_id(running), "k"))
    assert sorted((await jobs.due()).late) == sorted([unread, running])
    assert (await jobs.cancel(unread, late=True)).state is BatchJobState.TIMEOUT_EXCEEDED
    assert (await jobs.cancel(running, late=True)).state is BatchJobState.QUEUED
    assert (await jobs.due()).late == []
    assert (await jobs.due()).unwanted == [first_batch_id(running)]
    await ended(database, first_batch_id(running), "cancelled", "{}")
    assert (await jobs.get(running)).state is BatchJobState.TIMEOUT_EXCEEDED


async def test_the_end_makes_the_files_of_results_once(database: Database, jobs: BatchJobStore) -> None:
    job_id = await created(jobs)
    await jobs.made(job_id, await batch(database, first_batch_id(job_id), "k"))
    await jobs.settle(job_id)  # too early: nothing happens
    assert (await jobs.get(job_id)).output_file is None
    tally = '{"completed": 3, "failed": 1, "cancelled": 2}'
    await ended(database, first_batch_id(job_id), tally=tally)
    assert (await jobs.due()).ended == [job_id]
    await asyncio.gather(*(jobs.settle(job_id) for _ in range(5)))
    job = await jobs.get(job_id)
    assert (job.state, job.succeeded, job.failed, job.settled) == (BatchJobState.SUCCESS, 3, 3, True)
    assert (await jobs.due()).ended == []
    files = FileQueries(database)
    found = [await files.get(one or "", "a") for one in (job.output_file, job.error_file)]
    assert [(one.sample_type, one.num_lines, one.size) for one in found] == [
        ("batch_result", 3, None),
        ("batch_error", 3, None),
    ]
    async with database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(schema.files)) == 2


async def test_a_job_without_answers_has_no_output_file(database: Database, jobs: BatchJobStore) -> None:
    job_id = await created(jobs)
    await jobs.made(job_id, await batch(database, first_batch_id(job_id), "k"))
    await ended(database, first_batch_id(job_id), tally='{"failed": 1}')
    await jobs.settle(job_id)
    job = await jobs.get(job_id)
    assert job.output_file is None
    assert job.error_file is not None


async def test_a_key_is_that_of_one_job(jobs: BatchJobStore) -> None:
    made = await asyncio.gather(*(jobs.create(order("key")) for _ in range(8)))
    assert len({job.job_id for job in made}) == 1
    assert sum(job.created for job in made) == 1
    with pytest.raises(IdempotencyMismatch):
        await jobs.create(order("key", body_hash="1" * 64))
    assert (await jobs.create(order("key", tenant="b"))).created


async def test_a_list_has_pages_and_filters(database: Database, jobs: BatchJobStore) -> None:
    ids = [await created(jobs, model=f"m{number % 2}", metadata={"n": str(number)}) for number in range(5)]
    await created(jobs, tenant="b")
    await jobs.cancel(ids[0])
    page = await jobs.list("a", BatchJobFilter(), page=1, page_size=2)
    assert ([one.job_id for one in page.jobs], page.total) == ([ids[2], ids[1]], 5)

    async def matching(**wanted: Any) -> list[str]:
        found = await jobs.list("a", BatchJobFilter(**wanted), page=0, page_size=10)
        assert found.total == len(found.jobs)
        return [one.job_id for one in found.jobs]

    assert await matching(oldest_first=True) == ids
    assert await matching(model="m1") == [ids[3], ids[1]]
    assert await matching(metadata={"n": "3"}) == [ids[3]]
    assert await matching(metadata={"n": "3", "x": "y"}) == []
    assert await matching(states=[BatchJobState.CANCELLED]) == [ids[0]]
    assert await matching(states=[BatchJobState.QUEUED]) == ids[:0:-1]
    assert await matching(created_after=datetime.now(UTC) + timedelta(hours=1)) == []


@pytest.mark.parametrize("name", ['a"b', '"', "a.b", "$", "a'b", "\\", "[0]", "Größe 🌊"])
async def test_a_list_is_filtered_by_any_name(jobs: BatchJobStore, name: str) -> None:
    job_id = await created(jobs, metadata={name: "x", "k": "v"})
    await created(jobs, metadata={"k": "v"})
    await created(jobs)
    for wanted, expected in (({name: "x"}, [job_id]), ({name: "v"}, []), ({f'{name}"': "x"}, [])):
        found = await jobs.list("a", BatchJobFilter(metadata=wanted), page=0, page_size=10)
        assert [one.job_id for one in found.jobs] == expected


async def test_a_deleted_job_is_gone_with_what_it_asked(database: Database, jobs: BatchJobStore) -> None:
    job_id = await created(jobs, idempotency_key="key")
    await jobs.made(job_id, await batch(database, first_batch_id(job_id), "k"))
    await ended(database, first_batch_id(job_id))
    await jobs.settle(job_id)
    job = await jobs.get(job_id)
    await jobs.delete(job_id, "a")
    with pytest.raises(BatchJobNotFound):
        await jobs.get(job_id)
    assert (await FileQueries(database).list("a", FileFilter(), page=0, page_size=10)).total == 0
    assert job.output_file
    assert (await jobs.due()).deleted == [job_id]
    await jobs.erase(job_id)
    assert (await jobs.due()).deleted == []
    assert (await jobs.create(order("key"))).created


async def test_jobs_end_with_their_retention(database: Database, jobs: BatchJobStore) -> None:
    refused, running, forgotten = await created(jobs), await created(jobs), await created(jobs)
    await jobs.refuse(refused, ["wrong"])
    await jobs.made(running, await batch(database, first_batch_id(running), "k"))
    await jobs.made(forgotten, "batch_that_the_retention_has_removed")
    with pytest.raises(BatchJobNotFound):
        await jobs.get(forgotten)
    retention, tomorrow = FileRetention(database), datetime.now(UTC) + timedelta(days=1)
    assert await retention.remove_some(tomorrow) == 2
    assert await retention.remove_some(tomorrow) == 0
    assert (await jobs.get(running)).job_id == running
