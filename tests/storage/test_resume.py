"""Jobs that go on after their end: in one transaction, once, and only those that have something to go on from."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Literal

import pytest
from sqlalchemy import select, update

from chatjobs.contracts import BatchCounts, BatchStatus, Channel, JobStatus, Usage
from chatjobs.errors import ContentDeleted, JobFinished, JobNotFound, JobRunning, NothingToResume
from dispatch.stores import batch_runs
from domain.settings import Settings
from domain.values import AttemptEnd, Cursor, RunRef
from storage.batches import reopening
from storage.batches.queries import BatchQueries
from storage.batches.runs import BatchRunStore
from storage.engine.database import Database
from storage.engine.schema import jobs
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from storage.transcript.writer import TranscriptWriter
from tests.support.batches import store_batch
from tests.support.factories import (
    EndStatus,
    accepted,
    answered,
    claimed,
    ending,
    failing,
    finished,
    make_body,
    wrote,
)

FAILED: Literal[JobStatus.FAILED] = JobStatus.FAILED
CANCELLED: Literal[JobStatus.CANCELLED] = JobStatus.CANCELLED
QUEUED = JobStatus.QUEUED
ENDED: list[EndStatus] = [JobStatus.FAILED, JobStatus.CANCELLED]


async def open_ids(runs: BatchRunStore, batch_id: str, first: int, end: int) -> list[str]:
    """The ids of the jobs of a part of the items that have not ended."""
    return [item.job_id for item in await runs.open_items(batch_id, first, end)]


async def broken_off(store: JobStore, writer: TranscriptWriter, status: EndStatus = FAILED, job_id: str = "") -> str:
    """The id of a job that has ended without its whole answer, after the text "Hel"."""
    job_id = job_id or await accepted(store)
    claim = await claimed(store, job_id)
    await wrote(writer, claim, "Hel")
    if status is CANCELLED:
        await store.seals.request_cancel(job_id)
    end = failing(job_id) if status is FAILED else ending(job_id, CANCELLED)
    await store.seals.seal(end, run_id="run-1")
    return job_id


@pytest.mark.parametrize("status", ENDED)
async def test_a_job_goes_on_from_its_text(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader, status: EndStatus
) -> None:
    """Its ledger and its readers go on, too, and the earlier wish to cancel it is forgotten."""
    job_id = await broken_off(store, writer, status)
    end = (await reader.read(Cursor(job_id))).cursor
    resumed = await store.seals.resume(job_id)
    assert (resumed.job_id, resumed.status, resumed.revision) == (job_id, QUEUED, 2)
    open_again = await store.queries.get(job_id)
    assert (open_again.status, open_again.content, open_again.completed_at) == (QUEUED, "Hel", None)
    claim = await claimed(store, job_id)
    assert (claim.outcome, claim.position, claim.attempt) == ("taken", 3, 2)
    await (await wrote(writer, claim, "lo")).finish(finished(claim))
    await store.seals.seal(ending(job_id, position=5), run_id="run-2")
    rest = await reader.read(end)
    assert ([run.text for run in rest.runs], rest.reset, rest.status) == (["lo"], False, JobStatus.COMPLETED)
    job = await store.queries.get(job_id)
    assert (job.content, [attempt.number for attempt in job.attempts]) == ("Hello", [1, 2])


async def test_the_outcome_after_it_has_a_webhook_of_its_own(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store, webhook={"url": "https://receiver.example/hook"})
    await broken_off(store, writer, CANCELLED, job_id)
    await store.seals.resume(job_id)
    await claimed(store, job_id)
    await store.seals.seal(failing(job_id), run_id="run-2")
    first, second = (await store.queries.get(job_id)).deliveries
    assert (first.event, second.event, second.id[-2:]) == ("chat.cancelled", "chat.failed", ".2")


async def test_both_texts_stay_in_their_order(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    await wrote(writer, claim, "Hm", channel=Channel.REASONING)
    await wrote(writer, await claimed(store, job_id), "Hel")
    await store.seals.seal(failing(job_id), run_id="run-1")
    await store.seals.resume(job_id)
    claim = await claimed(store, job_id)
    runs = await store.attempts.written(job_id, fence=claim.fence, epoch=claim.epoch)
    assert [(run.channel, run.text, run.position) for run in runs] == [
        (Channel.REASONING, "Hm", 2),
        (Channel.CONTENT, "Hel", 5),
    ]


async def test_only_one_of_many_calls_resumes(store: JobStore, writer: TranscriptWriter, database: Database) -> None:
    job_id = await broken_off(store, writer)
    results = await asyncio.gather(*(store.seals.resume(job_id) for _ in range(10)), return_exceptions=True)
    assert [type(one) for one in results if isinstance(one, Exception)] == [JobRunning] * 9
    async with database.single() as connection:
        assert await connection.scalar(select(jobs.c.revision).where(jobs.c.id == job_id)) == 2


async def test_jobs_that_have_nothing_to_resume(store: JobStore, writer: TranscriptWriter) -> None:
    silent = await accepted(store)
    with pytest.raises(JobRunning):
        await store.seals.resume(silent)
    await claimed(store, silent)
    await store.seals.seal(failing(silent), run_id="run-1")
    with pytest.raises(NothingToResume, match="replay it"):
        await store.seals.resume(silent)
    whole = await answered(store, writer)
    await store.seals.seal(ending(whole), run_id="run-1")
    with pytest.raises(JobFinished, match="replay it"):
        await store.seals.resume(whole)
    deleted = await broken_off(store, writer)
    await store.seals.delete(deleted)
    with pytest.raises(ContentDeleted):
        await store.seals.resume(deleted)
    for job_id, tenant in (("job_none", None), (await broken_off(store, writer), "another")):
        with pytest.raises(JobNotFound):
            await store.seals.resume(job_id, tenant)


async def test_a_sweeper_finds_it_to_be_started(store: JobStore, writer: TranscriptWriter) -> None:
    """Until its workflow is known to run; that of the revision before does not count."""
    job_id = await broken_off(store, writer)
    await store.seals.resume(job_id)
    await store.acceptance.workflow_started(job_id, 1)
    (found,) = await store.sweep.unstarted(older_than=timedelta(0))
    assert (found.job_id, found.revision) == (job_id, 2)
    await store.acceptance.workflow_started(job_id, 2)
    assert await store.sweep.unstarted(older_than=timedelta(0)) == []


async def test_a_run_that_was_started_for_it_reopens_it_no_second_time(
    store: JobStore, writer: TranscriptWriter
) -> None:
    """Two processes started it; by the time of the second run the job has failed again."""
    job_id = await broken_off(store, writer)
    await store.seals.resume(job_id)
    await store.attempts.claim(job_id, fence=5_000_000, claimant="a", run_id="run-2", reopens=False)
    await store.seals.seal(failing(job_id), run_id="run-2")
    late = await store.attempts.claim(job_id, fence=5_000_010, claimant="b", run_id="run-3", reopens=False)
    assert late.outcome == "sealed"
    reset = await store.attempts.claim(job_id, fence=5_000_020, claimant="c", run_id="run-4")
    assert reset.outcome == "taken"


async def test_deleting_it_still_names_the_run_that_has_its_request(
    store: JobStore, writer: TranscriptWriter, database: Database
) -> None:
    """The job of a cron's run, whose history holds the request; the resumed job has a workflow of its own."""
    job_id = await accepted(store)
    as_inline = {"workflow_id": "nightly", "workflow_run_id": "run-1", "workflow_started_at": jobs.c.created_at}
    async with database.write() as connection:
        await connection.execute(update(jobs).where(jobs.c.id == job_id).values(**as_inline))
    await broken_off(store, writer, FAILED, job_id)
    for _ in range(2):
        await store.seals.resume(job_id)
        assert await store.queries.run_of(job_id) == RunRef(job_id)
        await store.acceptance.workflow_started(job_id, 2)
        await claimed(store, job_id)
        await store.seals.seal(failing(job_id), run_id="run-2")
    assert await store.seals.delete(job_id) == RunRef("nightly", "run-1")


async def test_a_job_of_a_batch_leaves_its_run_and_stays_in_its_counts(
    store: JobStore, writer: TranscriptWriter, database: Database
) -> None:
    batch_id = await store_batch(database, [make_body("a"), make_body("b")])
    runs, queries = batch_runs(Settings(), database), BatchQueries(database)
    while await runs.prepare(batch_id):
        pass
    job_id, other = await open_ids(runs, batch_id, 0, 2)
    claim = await claimed(store, job_id, run_id=batch_id)
    await wrote(writer, claim, "Hel")
    used = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
    await store.attempts.end(job_id, claim.attempt, claim.fence, AttemptEnd("upstream_cut", usage=used))
    for one in (failing(job_id), failing(other, "upstream_rejected")):
        await store.seals.seal(one, run_id=batch_id)
    before = await queries.get(batch_id)
    assert (before.counts.failed, before.usage, before.errors_by_code) == (
        *(2, used),
        {"upstream_cut": 1, "upstream_rejected": 1},
    )
    await runs.seal(batch_id, run_id="")
    await store.seals.resume(job_id)
    batch = await queries.get(batch_id)
    assert (batch.status, batch.counts) == (BatchStatus.COMPLETED, BatchCounts(total=2, queued=1, failed=1))
    assert batch.errors_by_code == {"upstream_rejected": 1}
    assert await store.queries.run_of(job_id) == RunRef(job_id)
    claim = await claimed(store, job_id)
    assert (await queries.get(batch_id)).counts == BatchCounts(total=2, running=1, failed=1)
    await (await wrote(writer, claim, "lo")).finish(finished(claim))
    await store.seals.seal(ending(job_id), run_id="run-2")
    batch = await queries.get(batch_id)
    assert batch.counts == BatchCounts(total=2, completed=1, failed=1)
    assert batch.usage is not None
    assert batch.usage.total_tokens >= used.total_tokens


async def test_a_batch_waits_for_a_job_that_left_its_run_and_its_cancel_reaches_it(
    store: JobStore, writer: TranscriptWriter, database: Database
) -> None:
    batch_id = await store_batch(database, [make_body("a")])
    runs = batch_runs(Settings(), database)
    await runs.prepare(batch_id)
    (job_id,) = await open_ids(runs, batch_id, 0, 1)
    await broken_off(store, writer, FAILED, job_id)
    await store.seals.resume(job_id)
    await claimed(store, job_id)
    assert (await runs.seal(batch_id, run_id="")).left == 1
    assert await open_ids(runs, batch_id, 0, 1) == []
    await runs.cancel(batch_id)
    assert await store.attempts.cancels([job_id]) == [job_id]


async def test_the_items_of_a_batch_are_reopened_in_steps(
    store: JobStore, writer: TranscriptWriter, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By several processes at the same time, each item once; answers, and deleted ones, stay as they are."""
    monkeypatch.setattr(reopening, "REOPENED_AT_ONCE", 2)
    batch_id = await store_batch(database, [make_body(str(number)) for number in range(7)])
    runs, queries = batch_runs(Settings(), database), BatchQueries(database)
    await runs.prepare(batch_id)
    ids = await open_ids(runs, batch_id, 0, 7)
    for job_id in ids[:5]:
        await store.seals.seal(failing(job_id), run_id=batch_id)
    claim = await claimed(store, ids[5])
    await (await wrote(writer, claim, "Hello")).finish(finished(claim))
    await store.seals.seal(ending(ids[5]), run_id=batch_id)
    await runs.cancel(batch_id)
    await runs.cancel_rest(batch_id)
    await runs.seal(batch_id, run_id="")
    await store.seals.delete(ids[0])
    assert (await runs.resume(batch_id)).status is BatchStatus.IN_PROGRESS
    assert (await runs.seal(batch_id, run_id="")).unprepared
    assert await runs.reopen(batch_id)
    assert await open_ids(runs, batch_id, 0, 7) == [ids[1]]

    async def reopen_all() -> None:
        while await runs.reopen(batch_id):
            pass

    await asyncio.gather(reopen_all(), reopen_all(), reopen_all())
    assert await open_ids(runs, batch_id, 0, 7) == [*ids[1:5], ids[6]]
    batch = await queries.get(batch_id)
    assert (batch.revision, batch.completed_at) == (2, None)
    assert batch.counts == BatchCounts(total=7, queued=5, completed=1, failed=1)
    async with database.single() as connection:
        found = await connection.execute(select(jobs.c.revision).order_by(jobs.c.id))
        assert list(found.scalars()) == [1, 2, 2, 2, 2, 1, 2]


async def test_a_cancel_ends_the_reopening(
    store: JobStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reopening, "REOPENED_AT_ONCE", 1)
    batch_id = await store_batch(database, [make_body("a"), make_body("b")])
    runs, queries = batch_runs(Settings(), database), BatchQueries(database)
    await runs.cancel(batch_id)
    await runs.cancel_rest(batch_id)
    await runs.seal(batch_id, run_id="")
    await runs.resume(batch_id)
    assert await runs.reopen(batch_id)
    await runs.cancel(batch_id)
    assert not await runs.reopen(batch_id)
    await runs.cancel_rest(batch_id)
    assert (await runs.seal(batch_id, run_id="")).status is BatchStatus.CANCELLED
    assert (await queries.get(batch_id)).counts == BatchCounts(total=2, cancelled=2)
    await runs.resume(batch_id)
    while await runs.reopen(batch_id):
        pass
    assert len(await open_ids(runs, batch_id, 0, 2)) == 2
