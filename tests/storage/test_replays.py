"""Replays in storage: which jobs they repeat, their items made in steps, and the bound on their errors."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from chatjobs.contracts import BatchStatus, JobStatus, Usage
from chatjobs.errors import IdempotencyMismatch, InvalidRequest
from dispatch.stores import batch_runs
from domain.replays import check_overrides
from domain.settings import Settings
from domain.values import AttemptEnd
from storage.batches import replays
from storage.batches.queries import BatchQueries
from storage.batches.replays import ReplayStore
from storage.batches.runs import BatchRunStore
from storage.engine.database import Database
from storage.engine.schema import requests
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.storage.test_resume import open_ids
from tests.support.factories import (
    accepted,
    answered,
    claimed,
    ending,
    failing,
    finished,
    make_body,
    wrote,
)
from tests.support.replays import asked, chosen, store_replay

HOUR = timedelta(hours=1)


@pytest.fixture
def runs(database: Database) -> BatchRunStore:
    return batch_runs(Settings(), database)


async def failed(store: JobStore, code: str = "upstream_cut", *, tokens: int = 0, **fields: Any) -> str:
    """The id of a job that has failed, after a call that used so many tokens."""
    job_id = await accepted(store, **fields)
    claim = await claimed(store, job_id)
    usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
    await store.attempts.end(job_id, claim.attempt, claim.fence, AttemptEnd(code, usage=usage))
    await store.seals.seal(failing(job_id, code), run_id="run-1")
    return job_id


async def gathered(database: Database, batch_id: str) -> list[str]:
    """The items' names, in order, once all are made; they are the ids of the jobs that are repeated."""
    while await ReplayStore(database).gather(batch_id, None):
        pass
    store, runs = JobStore(database), batch_runs(Settings(), database)
    while await runs.prepare(batch_id):
        pass
    total = (await runs.plan(batch_id)).total
    made = [await store.queries.get(job_id) for job_id in await open_ids(runs, batch_id, 0, total)]
    assert len(made) == total
    return [str(job.replay_of) for job in made]


async def test_each_filter(store: JobStore, writer: TranscriptWriter, database: Database) -> None:
    cut = await failed(store, metadata={"team": "a", "line.two": "x"})
    refused = await failed(store, "upstream_rejected", model="another-model", metadata={"team": "b"})
    whole = await answered(store, writer)
    await store.seals.seal(ending(whole), run_id="run-1")
    await accepted(store)  # has not ended
    await failed(store, tenant="another")
    past, future = datetime.now(UTC) - HOUR, datetime.now(UTC) + HOUR
    estimate = ReplayStore(database).estimate
    for fields, expected in (
        ({}, [cut, refused, whole]),
        ({"status": "failed"}, [cut, refused]),
        ({"status": "completed"}, [whole]),
        ({"errorCode": "upstream_rejected"}, [refused]),
        ({"model": "another-model"}, [refused]),
        ({"metadata": {"team": "a"}}, [cut]),
        ({"metadata": {"team": "a", "line.two": "x"}}, [cut]),
        ({"metadata": {"team": "a", "line.two": "y"}}, []),
        ({"since": past.isoformat(), "status": "failed"}, [cut, refused]),
        ({"since": future.isoformat()}, []),
        ({"until": past.isoformat()}, []),
        ({"batchId": "batch_1"}, []),
    ):
        found = await estimate(chosen(**fields), "default")
        assert (found.count, list(found.first_job_ids)) == (len(expected), expected), fields


async def test_what_it_will_use_is_estimated_from_the_first_runs(store: JobStore, database: Database) -> None:
    """A job that used nothing counts as the mean; a deleted one is no part of it."""
    estimate = ReplayStore(database).estimate
    await failed(store)
    assert (await estimate(chosen(status="failed"), "default")).estimated_tokens is None
    for tokens in (10, 20):
        await failed(store, tokens=tokens)
    await store.seals.delete(await failed(store, tokens=1_000))
    found = await estimate(chosen(status="failed"), "default")
    assert (found.count, found.skipped, found.estimated_tokens) == (3, 1, 45)


async def test_the_items_are_made_in_steps_once_each(
    store: JobStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By several processes at the same time; in the order in which the jobs were accepted."""
    monkeypatch.setattr(replays, "GATHERED_AT_ONCE", 3)
    ids = [await failed(store, prompt=str(number)) for number in range(8)]
    await store.seals.delete(ids[4])
    batch_id = await store_replay(database, asked())

    async def gather() -> None:
        while await ReplayStore(database).gather(batch_id, None):
            pass

    await asyncio.gather(*(gather() for _ in range(3)))
    assert await gathered(database, batch_id) == ids[:4] + ids[5:]
    batch = await BatchQueries(database).get(batch_id)
    assert (batch.kind, batch.counts.total, batch.skipped, batch.phase) == ("replay", 7, 1, "rest")
    job = await store.queries.get(ids[0])
    assert [replay.partition("-")[2] for replay in job.replays] == ["0000000"]


async def test_large_requests_are_read_a_few_at_a_time(
    store: JobStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "LARGEST_STEP", 2_500)
    ids = [await failed(store, prompt="x" * 1_000) for _ in range(5)]
    batch_id = await store_replay(database, asked())
    assert await ReplayStore(database).gather(batch_id, None)
    assert (await BatchQueries(database).get(batch_id)).counts.total == 2
    assert await gathered(database, batch_id) == ids


async def test_a_job_that_ends_later_is_not_repeated(store: JobStore, database: Database) -> None:
    before = await failed(store)
    later = await accepted(store)
    batch_id = await store_replay(database, asked())
    await claimed(store, later)
    await store.seals.seal(failing(later), run_id="run-1")
    assert await gathered(database, batch_id) == [before]


async def test_overrides_change_the_requests(store: JobStore, runs: BatchRunStore, database: Database) -> None:
    await failed(store, temperature=0.5, max_tokens=9, jobId="job_own", callback="https://receiver.example/a")
    changes = {"model": "another-model", "temperature": None, "callback": "https://receiver.example/b"}
    batch_id = await store_replay(database, asked(overrides=changes))
    await gathered(database, batch_id)
    (job_id,) = await open_ids(runs, batch_id, 0, 1)
    request = await store.queries.request(job_id)
    assert (request.model, request.temperature, request.max_tokens, request.job_id) == ("another-model", None, 9, None)
    target = request.target()
    assert target is not None
    assert target.url == "https://receiver.example/b"


async def test_an_item_that_becomes_invalid_can_only_fail(
    store: JobStore, runs: BatchRunStore, database: Database
) -> None:
    """Its error says why, and the others are as they would be without it. (An earlier version took a blank prompt.)"""
    blank = {"body": json.dumps(make_body(" "))}
    job_id, other = await failed(store), await failed(store)
    async with database.write() as connection:
        await connection.execute(update(requests).where(requests.c.job_id == job_id).values(blank))
    batch_id = await store_replay(database, asked(overrides={"temperature": 0.1}))
    assert len(await gathered(database, batch_id)) == 2
    first, second = await runs.open_items(batch_id, 0, 2)
    assert first.problem is not None
    assert (first.problem.code, "blank" in first.problem.message, second.problem) == ("validation_failed", True, None)
    assert (await store.queries.get(second.job_id)).replay_of == other


async def test_overrides_that_no_request_can_have_are_refused(store: JobStore, database: Database) -> None:
    await failed(store)
    samples = await ReplayStore(database).samples(chosen(status="failed"), "default")
    for changes, pointer in (
        ({"max_tokens": 0}, "/overrides/max_tokens"),
        ({"no_such_field": 1}, "/overrides/no_such_field"),
        ({"messages": None}, "/overrides/messages"),
        ({"jobId": "job_1"}, "/overrides/jobId"),
        ({"startAt": "2030-01-01T00:00:00Z"}, "/overrides/startAt"),
    ):
        for among in (samples, ()):
            with pytest.raises(InvalidRequest) as refused:
                check_overrides(changes, among, None)
            assert [problem.pointer for problem in refused.value.problems] == [pointer]
    check_overrides({"max_tokens": 5, "temperature": None}, samples, None)


async def test_one_key_is_one_replay(database: Database) -> None:
    first, *others = await asyncio.gather(*(store_replay(database, asked(), key="k", tag="h") for _ in range(5)))
    assert set(others) == {first}
    with pytest.raises(IdempotencyMismatch):
        await store_replay(database, asked(), key="k", tag="other")


async def ended_items(store: JobStore, batch_id: str, ids: list[str], outcomes: str) -> None:
    """End items: f fails, c is completed (as far as a count goes: cancelled ones do not count)."""
    for job_id, outcome in zip(ids, outcomes, strict=True):
        if outcome == "f":
            await store.seals.seal(failing(job_id), run_id=batch_id)
        elif outcome == "x":
            await store.seals.seal(ending(job_id, JobStatus.CANCELLED), run_id=batch_id)


async def completed(store: JobStore, writer: TranscriptWriter, batch_id: str, ids: list[str]) -> None:
    for job_id in ids:
        claim = await claimed(store, job_id, run_id=batch_id)
        await (await wrote(writer, claim, "Hello")).finish(finished(claim))
        await store.seals.seal(ending(job_id), run_id=batch_id)


@pytest.mark.parametrize(("failing_ones", "phase", "stopped"), [(2, "rest", False), (3, "canary", True)])
async def test_the_canary_is_judged_over_all_of_its_items(
    store: JobStore,
    runs: BatchRunStore,
    writer: TranscriptWriter,
    database: Database,
    failing_ones: int,
    phase: str,
    stopped: bool,
) -> None:
    """Half of four may fail."""
    for _ in range(6):
        await failed(store)
    batch_id = await store_replay(database, asked(canary=4))
    await gathered(database, batch_id)
    ids = await open_ids(runs, batch_id, 0, 6)
    assert (await runs.plan(batch_id)).canary == 4
    await ended_items(store, batch_id, ids[:failing_ones], "f" * failing_ones)
    assert (await ReplayStore(database).judge_canary(batch_id)).left == 4 - failing_ones
    await completed(store, writer, batch_id, ids[failing_ones:4])
    verdict = await ReplayStore(database).judge_canary(batch_id)
    batch = await BatchQueries(database).get(batch_id)
    assert (verdict.end, verdict.left, batch.phase, batch.stopped is not None) == (4, 0, phase, stopped)
    if not stopped:
        assert (await runs.plan(batch_id)).canary == 0
        return
    why = "3 of the 4 jobs of the canary failed, more than maxErrorRate 0.5 allows; resume it to go on all the same"
    assert batch.stopped == why
    await runs.cancel_rest(batch_id)
    assert (await runs.seal(batch_id, run_id="")).status is BatchStatus.FAILED
    batch = await BatchQueries(database).get(batch_id)
    assert (batch.counts.cancelled, batch.counts.failed, batch.error and batch.error.code) == (2, 3, "error_rate")


async def test_the_bound_holds_over_the_last_parts(
    store: JobStore, runs: BatchRunStore, writer: TranscriptWriter, database: Database
) -> None:
    """Over twenty jobs at least; a part that is reported twice counts once, cancelled jobs do not count."""
    for _ in range(30):
        await failed(store)
    batch_id = await store_replay(database, asked(maxErrorRate=0.3))
    await gathered(database, batch_id)
    ids, judge = await open_ids(runs, batch_id, 0, 30), ReplayStore(database).judge

    async def is_stopped() -> bool:
        return (await BatchQueries(database).get(batch_id)).stopped is not None

    await ended_items(store, batch_id, ids[:9], "f" * 9)
    await completed(store, writer, batch_id, [ids[9]])
    for _ in range(2):
        await judge(batch_id, 0, 10)
    assert not await is_stopped()
    await completed(store, writer, batch_id, ids[10:19])
    await ended_items(store, batch_id, [ids[19]], "x")
    await judge(batch_id, 10, 20)
    assert not await is_stopped()  # 9 of 19
    await completed(store, writer, batch_id, ids[20:30])
    await judge(batch_id, 20, 30)
    assert await is_stopped()  # 9 of 29
    batch = await BatchQueries(database).get(batch_id)
    assert str(batch.stopped).startswith("9 of the last 29 jobs failed")


async def test_a_replay_that_is_cancelled_while_its_items_are_made_can_be_resumed(
    store: JobStore, runs: BatchRunStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "GATHERED_AT_ONCE", 2)
    ids = [await failed(store) for _ in range(5)]
    batch_id = await store_replay(database, asked())
    assert (await runs.seal(batch_id, run_id="")).unprepared
    assert await ReplayStore(database).gather(batch_id, None)
    await runs.cancel(batch_id)
    assert not await ReplayStore(database).gather(batch_id, None)
    await runs.cancel_rest(batch_id)
    assert (await runs.seal(batch_id, run_id="")).status is BatchStatus.CANCELLED
    assert (await BatchQueries(database).get(batch_id)).counts.cancelled == 2
    await runs.resume(batch_id)
    while await ReplayStore(database).gather(batch_id, None):
        pass
    while await runs.prepare(batch_id):
        pass
    while await runs.reopen(batch_id):
        pass
    made = [await store.queries.get(job_id) for job_id in await open_ids(runs, batch_id, 0, 5)]
    assert [job.replay_of for job in made] == ids
