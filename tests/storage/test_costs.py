"""What jobs and batches cost: each call at the price of its model, and of how it was made."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Job, Usage
from dispatch.job_details import MOST_ITEMS, BatchDetails, JobDetails
from dispatch.stores import batch_runs
from dispatch.temporal import RunLinks
from domain.prices import Prices, parse_prices
from domain.settings import Settings
from domain.values import AttemptEnd, Claim, Claimant, Reservation
from storage.batches.queries import BatchQueries
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.batches import store_batch
from tests.support.factories import accepted, claimed, ending, finished, make_body, make_store, wrote

PRICES = parse_prices("mistral-small-latest=1/10, mistral-medium-*=100/1000; EUR; cached=0.5; batch=0.5")
LINKS = RunLinks("http://ui.example", "default")


@pytest.fixture
def store(database: Database) -> JobStore:
    return make_store(database)


def details(store: JobStore, prices: Prices | None = PRICES) -> JobDetails:
    return JobDetails(LINKS, prices, store.queries)


def used(prompt: int, answer: int, cached: int = 0) -> Usage:
    counts = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return Usage.model_validate({**counts, "prompt_tokens_details": {"cached_tokens": cached}})


def micros(job: Job) -> Decimal | None:
    """The cost in millionths."""
    return None if job.cost is None else Decimal(job.cost.amount) * 1_000_000


async def live(connection: AsyncConnection, lane: str, claimant: Claimant) -> Reservation:
    """A turn to call the model, which every live call has."""
    return Reservation(granted=True, seconds=0, lane="mistral-small")


async def live_claim(store: JobStore, job_id: str, run_id: str) -> Claim:
    return await store.attempts.claim(job_id, fence=2**50, claimant="live", run_id=run_id, reserve=live)


async def answer(store: JobStore, writer: TranscriptWriter, claim: Claim, usage: Usage, run_id: str = "run-1") -> None:
    job_writer = await wrote(writer, claim, "Hello")
    await job_writer.finish(finished(claim, usage=usage))
    await store.seals.seal(ending(claim.job_id), run_id=run_id)


async def test_a_job_costs_what_its_calls_cost(store: JobStore, writer: TranscriptWriter) -> None:
    """The same in the list and alone, and before its end: an interrupted call, and one with cached tokens."""
    job_id = await accepted(store)
    shown = details(store)
    assert (await shown.one(await store.queries.get(job_id))).cost is None  # nothing was called yet
    first = await claimed(store, job_id)
    await wrote(writer, first, "He")
    await store.attempts.end(job_id, first.attempt, first.fence, AttemptEnd("upstream_cut", usage=used(100, 1, 40)))
    assert micros(await shown.one(await store.queries.get(job_id))) == 80 + 10
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "llo")
    await job_writer.finish(finished(claim, usage=used(101, 2, 1)))
    # The call is not closed yet: its tokens count, and those from the cache count in full until it is.
    assert micros(await shown.one(await store.queries.get(job_id))) == 90 + 101 + 20
    await store.seals.seal(ending(job_id), run_id="run-1")
    job = await shown.one(await store.queries.get(job_id))
    assert micros(job) == 90 + Decimal("100.5") + 20
    assert job.usage is not None
    assert job.usage.model_dump()["prompt_tokens_details"] == {"cached_tokens": 41}
    assert job.temporal_url
    (listed,) = await shown.many(await store.queries.list())
    assert listed.cost == job.cost


async def test_an_estimate_is_one_of_the_cost_too(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    await wrote(writer, await claimed(store, job_id), "lost")
    await answer(store, writer, await claimed(store, job_id), used(10, 1))
    job = await details(store).one(await store.queries.get(job_id))
    assert job.cost is not None
    assert job.cost.estimated


async def test_without_a_price_nothing_is_shown(store: JobStore, writer: TranscriptWriter) -> None:
    """Neither for a model that has none, nor at all without the setting: the wire is as it was."""
    for model in ("mistral-small-latest", "codestral-latest"):
        job_id = await accepted(store, model=model)
        await answer(store, writer, await claimed(store, job_id), used(10, 1))
    found = await store.queries.list()
    assert [job.cost is not None for job in await details(store).many(found)] == [False, True]
    assert all("cost" not in job.model_dump(mode="json") for job in await details(store, None).many(found))


@pytest.mark.parametrize("lane", ["live", "batch"])
async def test_a_batch_costs_what_its_jobs_cost(
    database: Database, store: JobStore, writer: TranscriptWriter, lane: str
) -> None:
    """In the lane of batch jobs a part of it, but for what was called live before the deadline."""
    bodies: list[dict[str, Any]] = [make_body("a"), make_body("b", model="mistral-medium-latest"), make_body("c")]
    batch_id = await store_batch(database, bodies, lane=lane)
    runs, queries = batch_runs(Settings(), database), BatchQueries(database)
    while await runs.prepare(batch_id):
        pass
    small, medium, third = sorted(job.job_id for job in await store.queries.list(batch_id=batch_id))
    shown = BatchDetails(LINKS, PRICES, queries)
    assert (await shown.of(await queries.get(batch_id))).cost is None
    own = lane == "batch"
    claim = await claimed(store, small, run_id=batch_id) if own else await live_claim(store, small, batch_id)
    await answer(store, writer, claim, used(100, 10), batch_id)
    before = await shown.of(await queries.get(batch_id))
    assert before.cost is not None
    assert Decimal(before.cost.amount) * 1_000_000 == (100 if own else 200)
    await answer(store, writer, await live_claim(store, medium, batch_id), used(100, 10), batch_id)
    batch = await shown.of(await queries.get(batch_id))
    assert batch.cost is not None
    jobs = await details(store).many(await store.queries.list(batch_id=batch_id))
    assert Decimal(batch.cost.amount) == sum(Decimal(job.cost.amount) for job in jobs if job.cost)
    assert Decimal(batch.cost.amount) * 1_000_000 == (100 if own else 200) + 20_000
    assert not next(job for job in jobs if job.job_id == third).cost
    large = batch.model_copy(update={"counts": batch.counts.model_copy(update={"total": MOST_ITEMS + 1}), "cost": None})
    assert (await shown.of(large)).cost is None
