"""Threads of jobs in storage: read for a follow-up, listed, deleted in the middle."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update

from chatjobs.contracts import JobStatus
from chatjobs.errors import ContentDeleted, IdempotencyMismatch, JobNotFound, JobRunning
from dispatch.intake import Intake
from domain.conversations import NO_PREVIOUS
from storage.engine.database import Database
from storage.engine.schema import jobs, now
from storage.jobs.listing import FEW
from storage.jobs.retention import RetentionStore
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.factories import accepted, claimed, ending, finished, make_body, make_job, wrote


@pytest.fixture
def intake(store: JobStore) -> Intake:
    return Intake(jobs=store, client=None)


async def answered(store: JobStore, writer: TranscriptWriter, job_id: str, *deltas: str) -> str:
    """The id of this job, whose answer is stored and which has ended."""
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, *deltas)
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(job_id, position=sum(map(len, deltas))), run_id="run-1")
    return job_id


async def follows(intake: Intake, previous: str, prompt: str = "And?", **fields: Any) -> str:
    body = make_body(prompt, previousJobId=previous, **fields)
    return (await intake.accept(body, tenant="default")).job_id


async def listed(store: JobStore, thread: str, **filters: Any) -> list[str]:
    return [job.job_id for job in reversed(await store.queries.list(tenant="default", thread=thread, **filters))]


async def test_a_chain_is_read_with_one_step(store: JobStore, writer: TranscriptWriter, intake: Intake) -> None:
    """Each request has all messages before it, so that the jobs before the last one are not needed."""
    first = await answered(store, writer, await accepted(store, "One"), "1", "!")
    second = await answered(store, writer, await follows(intake, first, "Two"), "2")
    await store.seals.delete(first)
    third = await follows(intake, second, "Three")
    request = await store.queries.request(third)
    assert [message.content for message in request.messages] == ["One", "1!", "Two", "2", "Three"]
    found = await store.queries.get(third)
    assert (found.previous_job_id, found.thread) == (second, first)
    assert (await store.queries.get(first)).thread == first
    assert await listed(store, first) == [first, second, third]


async def test_a_thread_is_listed_with_its_first_job(store: JobStore, writer: TranscriptWriter, intake: Intake) -> None:
    """With other filters, page by page, and not by the name of a job in the middle; of one tenant, and of all."""
    first = await answered(store, writer, await accepted(store), "Hi")
    branches = [await follows(intake, first, f"branch {number}") for number in range(3)]
    await accepted(store, "another conversation")
    await store.acceptance.accept(make_job(tenant="acme"))
    assert await listed(store, first) == [first, *branches]
    assert await listed(store, branches[0]) == []
    assert await listed(store, first, status=JobStatus.QUEUED) == branches
    assert await listed(store, first, model="mistral-small-latest", status=JobStatus.COMPLETED) == [first]
    assert await store.queries.list(tenant="acme", thread=first) == []
    assert len(await store.queries.list(thread=first)) == 4
    (newest,) = await store.queries.list(tenant="default", thread=first, limit=1)
    place = (int(newest.created_at.timestamp() * 1_000_000), newest.job_id)
    rest = await store.queries.list(tenant="default", thread=first, before=place)
    assert [job.job_id for job in rest] == [*reversed(branches[:-1]), first]


async def test_a_thread_is_found_along_its_index(database: Database, store: JobStore) -> None:
    """However many other jobs there are."""
    plan = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    query = (
        "SELECT id FROM jobs WHERE coalesce(tenant, '') = 'default' AND (thread = 'x' OR (id = 'x' AND thread IS NULL))"
    )
    async with database.read() as connection:
        if not database.is_sqlite:
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
        found = "\n".join(str(row) for row in (await connection.execute(text(plan + query))).all())
    assert "jobs_of_thread" in found
    assert "SCAN jobs" not in found
    assert "Seq Scan" not in found


async def test_a_long_thread_is_listed_page_by_page(database: Database, store: JobStore) -> None:
    first = await accepted(store)
    more = await asyncio.gather(*(accepted(store, f"{number}") for number in range(FEW + 10)))
    async with database.write() as connection:
        await connection.execute(update(jobs).where(jobs.c.id.in_(more)).values(thread=first))
    found = await store.queries.list(tenant="default", thread=first, limit=20)
    newest = select(jobs.c.id).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(20)
    async with database.read() as connection:
        assert [job.job_id for job in found] == list((await connection.execute(newest)).scalars())


async def test_which_previous_job_is_refused(store: JobStore, writer: TranscriptWriter, intake: Intake) -> None:
    theirs = await store.acceptance.accept(make_job(tenant="acme"))
    for unknown in (theirs.job_id, "job_of_nobody"):
        with pytest.raises(JobNotFound, match=NO_PREVIOUS):
            await follows(intake, unknown)
    running = await accepted(store)
    with pytest.raises(JobRunning):
        await follows(intake, running)
    await answered(store, writer, running, "Hi")
    await store.seals.delete(running)
    with pytest.raises(ContentDeleted):
        await follows(intake, running)
    assert len(await store.queries.list(tenant="default")) == 1, "a refused request leaves nothing"


async def test_a_key_is_looked_up_before_the_previous_job(
    database: Database, store: JobStore, writer: TranscriptWriter, intake: Intake
) -> None:
    """The same request again is the same job, also after retention has removed the previous one."""
    first = await answered(store, writer, await accepted(store), "Hi")
    body = make_body("And?", previousJobId=first)
    made = await intake.accept(body, tenant="default", idempotency_key="k")
    await RetentionStore(database).remove(now() + timedelta(seconds=1))
    with pytest.raises(JobNotFound):
        await store.queries.get(first)
    again = await intake.accept(body, tenant="default", idempotency_key="k")
    assert (again.job_id, again.created) == (made.job_id, False)
    with pytest.raises(IdempotencyMismatch):
        await intake.accept(make_body("Or?", previousJobId=first), tenant="default", idempotency_key="k")
    assert await listed(store, first) == [made.job_id]


async def test_a_job_without_its_conversation_is_not_stored(store: JobStore) -> None:
    """It would be sent to the model as it is."""
    with pytest.raises(ValueError, match="missing"):
        await store.acceptance.accept(make_job(previousJobId="job_1"))
