"""Jobs: accepted once, cancelled for good, listed and swept."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from chatjobs.contracts import Attempt, JobStatus, Usage
from chatjobs.errors import IdempotencyMismatch, JobFinished, JobIdConflict, JobNotFound
from dispatch.intake import Intake
from domain.errors import StorageRefused
from domain.new_jobs import invalid_job, new_job
from domain.values import RunRef
from storage.engine.database import Database
from storage.engine.schema import jobs, micros
from storage.jobs.mapping import wasted_tokens
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.factories import accepted, answered, claimed, ending, failing, make_body, make_job

ODD_KEYS = ("a.b", 'say "hi"', "$", "[0]", "'; --", "😀", "%", "back\\slash")

# ------------------------------------------------------------------------------------------------------ accept


async def test_a_hundred_posts_of_one_key_make_one_job(store: JobStore) -> None:
    answers = await asyncio.gather(*(store.acceptance.accept(make_job(idempotency_key="k")) for _ in range(100)))
    assert len({(answer.job_id, answer.request_id) for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1
    assert len(await store.queries.list(limit=100)) == 1


async def test_the_same_job_again_is_answered_as_it_stands(store: JobStore) -> None:
    """By its key, or from its own workflow by its id; whatever has become of it meanwhile."""
    first = await store.acceptance.accept(make_job(job_id="job_1", idempotency_key="k"))
    await claimed(store, "job_1")
    for again in (make_job(job_id="job_1", idempotency_key="k"), replace(make_job(job_id="job_1"), started=True)):
        found = await store.acceptance.accept(again)
        assert (found.created, found.request_id, found.status) == (False, first.request_id, JobStatus.IN_PROGRESS)


async def test_an_id_without_a_key_is_taken_once(store: JobStore) -> None:
    await store.acceptance.accept(make_job(job_id="job_1"))
    with pytest.raises(JobIdConflict):
        await store.acceptance.accept(make_job(job_id="job_1"))


async def test_a_key_belongs_to_one_body(store: JobStore) -> None:
    await store.acceptance.accept(make_job("one", idempotency_key="k"))
    with pytest.raises(IdempotencyMismatch):
        await store.acceptance.accept(make_job("two", idempotency_key="k"))


EARLIER = {
    "numbers as they were spelled": '{"messages":[{"content":"Hello","role":"user"}],"temperature":1.0,"top_p":1e-05}',
    "nulls that say nothing": '{"metadata":null,"messages":[{"content":"Hello","role":"user"}]}',
}
"""Bodies whose hash an earlier version took over JSON as Python writes it, with sorted keys."""


@pytest.mark.parametrize("body", EARLIER.values(), ids=EARLIER.keys())
async def test_the_row_of_an_earlier_version_is_found_by_its_key(
    store: JobStore, database: Database, body: str
) -> None:
    """A caller who tries again after the deploy gets the first job, and with another body is refused."""
    given = json.loads(body)
    text = json.dumps(given, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    earlier = hashlib.sha256(text.encode()).hexdigest()
    intake = Intake(jobs=store, client=None)
    first = await intake.accept(given, tenant="default", idempotency_key="k")
    async with database.write() as connection:
        row = (await connection.execute(select(jobs.c.body_hash).where(jobs.c.id == first.job_id))).scalar_one()
        assert row != earlier, "this body's hash has not changed: it shows nothing"
        await connection.execute(update(jobs).where(jobs.c.id == first.job_id).values(body_hash=earlier))
    again = await intake.accept(given, tenant="default", idempotency_key="k")
    assert (again.job_id, again.created) == (first.job_id, False)
    with pytest.raises(IdempotencyMismatch):
        await intake.accept(given | {"max_tokens": 5}, tenant="default", idempotency_key="k")


async def test_a_key_belongs_to_one_tenant(store: JobStore) -> None:
    mine = await store.acceptance.accept(make_job("one", tenant="a", idempotency_key="k"))
    theirs = await store.acceptance.accept(make_job("two", tenant="b", idempotency_key="k"))
    assert theirs.created
    assert mine.job_id != theirs.job_id


@pytest.mark.parametrize(("prompt", "tenant"), [("another", "default"), ("Hello", "another")])
async def test_an_id_belongs_to_one_job(store: JobStore, prompt: str, tenant: str) -> None:
    await accepted(store, job_id="job_1")
    with pytest.raises(JobIdConflict):
        await store.acceptance.accept(make_job(prompt, tenant=tenant, job_id="job_1"))


async def test_the_key_decides_before_the_id(store: JobStore) -> None:
    keyed = await store.acceptance.accept(make_job(job_id="job_1", idempotency_key="k"))
    await accepted(store, job_id="job_2")
    assert (await store.acceptance.accept(make_job(job_id="job_2", idempotency_key="k"))).job_id == keyed.job_id


async def test_the_request_comes_back_whole(store: JobStore) -> None:
    job = make_job("😀 \0", temperature=0.5, metadata={"a": "b"})
    await store.acceptance.accept(job)
    assert await store.queries.request(job.job_id) == job.request
    with pytest.raises(JobNotFound):
        await store.queries.request(job.job_id, tenant="another")


async def test_an_invalid_request_gets_a_row_that_can_only_fail(store: JobStore) -> None:
    job = invalid_job({"messages": []}, job_id="job_1", tenant="t")
    await store.acceptance.accept(job)
    with pytest.raises(JobNotFound, match="request was not kept"):
        await claimed(store, "job_1")
    await store.seals.seal(failing("job_1", "validation_failed"), run_id="run-1")
    found = await store.queries.get("job_1")
    assert (found.status, found.error and found.error.code) == (JobStatus.FAILED, "validation_failed")


async def test_what_the_database_cannot_take_is_refused_without_repeating_it(store: JobStore) -> None:
    with pytest.raises(StorageRefused) as refused:
        await store.acceptance.accept(make_job("private", idempotency_key="secret\ud800"))
    assert "secret" not in str(refused.value)
    assert "private" not in str(refused.value)


async def test_a_new_job_as_it_is_shown(store: JobStore) -> None:
    assert await store.queries.empty()
    before = datetime.now(UTC)
    job = make_job(metadata={"team": "\0search"})
    await store.acceptance.accept(job)
    found = await store.queries.get(job.job_id, "default")
    assert (found.status, found.content, found.epoch, found.position) == (JobStatus.QUEUED, "", 1, 0)
    assert found.metadata == {"team": "\ufffdsearch"}
    assert found.run == RunRef(job.job_id)
    assert before <= found.created_at <= datetime.now(UTC)
    assert not await store.queries.empty()
    with pytest.raises(JobNotFound):
        await store.queries.get(job.job_id, "another")
    for name in ("nobody", "no\0body", "nob\ud83ddy"):
        with pytest.raises(JobNotFound):
            await store.queries.get(name)
        with pytest.raises(JobNotFound):
            await store.queries.request(name)
        with pytest.raises(JobNotFound):
            await store.seals.request_cancel(name)


# ------------------------------------------------------------------------------------------------------ cancel


async def test_a_job_that_was_never_started_is_cancelled_at_once(store: JobStore) -> None:
    job_id = await accepted(store)
    assert await store.seals.request_cancel(job_id) is JobStatus.CANCELLED
    assert await store.seals.request_cancel(job_id) is JobStatus.CANCELLED
    assert (await claimed(store, job_id)).outcome == "sealed"
    assert (await store.queries.get(job_id)).status is JobStatus.CANCELLED
    assert not await store.sweep.unstarted(older_than=timedelta(0))


async def test_a_started_job_is_cancelled_by_its_workflow(store: JobStore) -> None:
    job_id = await accepted(store)
    await store.acceptance.workflow_started(job_id)
    assert await store.seals.request_cancel(job_id) is JobStatus.QUEUED
    assert [job.job_id for job in await store.sweep.to_cancel()] == [job_id]
    assert (await claimed(store, job_id)).outcome == "cancel_requested"
    await store.seals.seal(ending(job_id, JobStatus.CANCELLED), run_id="run-1")
    assert not await store.sweep.to_cancel()


async def test_an_ended_job_cannot_be_cancelled(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await answered(store, writer)
    await store.seals.seal(ending(job_id), run_id="run-1")
    with pytest.raises(JobFinished, match="completed"):
        await store.seals.request_cancel(job_id)


async def test_only_its_tenant_cancels_a_job(store: JobStore) -> None:
    job_id = await accepted(store, tenant="a")
    with pytest.raises(JobNotFound):
        await store.seals.request_cancel(job_id, "b")
    assert (await store.queries.get(job_id)).status is JobStatus.QUEUED


# -------------------------------------------------------------------------------------------------------- list


async def test_jobs_are_listed_newest_first_page_by_page(store: JobStore) -> None:
    ids = [await accepted(store) for _ in range(7)]
    found, place = [], None
    while page := await store.queries.list(before=place, limit=3):
        found += [job.job_id for job in page]
        place = (micros(page[-1].created_at), page[-1].job_id)
    assert found == ids[::-1]


async def test_lists_are_filtered(store: JobStore, writer: TranscriptWriter) -> None:
    done = await answered(store, writer, tenant="a")
    await store.seals.seal(ending(done), run_id="run-1")
    between = datetime.now(UTC)
    large = await accepted(store, tenant="a", model="mistral-large-latest")
    other = await accepted(store, tenant="b")

    async def ids(**filters: object) -> set[str]:
        return {job.job_id for job in await store.queries.list(**filters)}  # type: ignore[arg-type]

    assert await ids(tenant="a") == {done, large}
    assert await ids(status=JobStatus.COMPLETED) == {done}
    assert await ids(model="mistral-large-latest") == {large}
    assert await ids(since=between) == {large, other}
    assert await ids(until=between) == {done}
    assert await ids(tenant="b", until=between) == set()


async def test_lists_are_filtered_by_metadata_with_any_key(store: JobStore) -> None:
    await accepted(store)
    for key in ODD_KEYS:
        wanted = await accepted(store, metadata={key: "yes", "team": "a"})
        await accepted(store, metadata={key: "no", "team": "a"})
        assert [job.job_id for job in await store.queries.list(metadata={key: "yes", "team": "a"})] == [wanted]
        assert not await store.queries.list(metadata={key: "yes", "team": "b"})


async def test_a_listed_job_has_its_outcome_and_no_texts(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await answered(store, writer)
    await store.seals.seal(ending(job_id), run_id="run-1")
    (listed,) = await store.queries.list()
    whole = await store.queries.get(job_id)
    assert (listed.status, listed.finish_reason, listed.sha256) == (whole.status, "stop", whole.sha256)
    assert (listed.content, whole.content) == (None, "Hello you")


# ------------------------------------------------------------------------------------------------------- sweep


async def test_the_sweeper_finds_what_nobody_started(store: JobStore) -> None:
    job_id, started = await accepted(store, tenant="a"), await accepted(store)
    await store.acceptance.workflow_started(started)
    (waiting,) = await store.sweep.unstarted(older_than=timedelta(0))
    assert (waiting.job_id, waiting.tenant, waiting.model) == (job_id, "a", "mistral-small-latest")
    assert not await store.sweep.unstarted(older_than=timedelta(hours=1))


async def test_the_sweeper_finds_what_does_not_move(store: JobStore) -> None:
    job_id = await accepted(store)
    await store.acceptance.workflow_started(job_id)
    assert [job.job_id for job in await store.sweep.silent(since=timedelta(0))] == [job_id]
    assert not await store.sweep.silent(since=timedelta(hours=1))
    await store.sweep.touch(job_id)
    assert not await store.sweep.silent(since=timedelta(seconds=60))


async def test_a_repeated_request_is_a_new_job(store: JobStore) -> None:
    original = make_job()
    await store.acceptance.accept(original)
    replay = new_job(make_body(), job_id="job_2", tenant="default", replay_of=original.job_id)
    assert (await store.acceptance.accept(replay)).created
    assert (await store.queries.get("job_2")).replay_of == original.job_id


def attempt(number: int, epoch: int | None, prompt: int, completion: int, total: int | None = None) -> Attempt:
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion if total is None else total,
    )
    return Attempt(number=number, started_at=datetime.now(UTC), usage=usage, epoch=epoch)


@pytest.mark.parametrize(
    ("ledger", "wasted"),
    [
        pytest.param([], 0, id="no call"),
        pytest.param([attempt(1, 1, 10, 5)], 0, id="one call"),
        pytest.param([attempt(1, 1, 10, 5, total=40)], 0, id="a total with other tokens"),
        pytest.param([attempt(1, 1, 10, 5), attempt(2, 1, 15, 7)], 15, id="continued: the prompt once more"),
        pytest.param([attempt(1, 1, 0, 0), attempt(2, 1, 10, 7)], 0, id="a call that failed at once"),
        pytest.param([attempt(1, 0, 10, 5), attempt(2, 1, 10, 7)], 15, id="started over: text and prompt"),
        pytest.param([attempt(1, None, 10, 5), attempt(2, None, 15, 7)], 15, id="of an earlier version"),
    ],
)
def test_wasted_tokens(ledger: list[Attempt], wasted: int) -> None:
    assert wasted_tokens(ledger, 1) == wasted
