"""Replays of many jobs: the canary first, the rest only if it does well, and each job once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import update
from temporalio.client import Client

from chatjobs.contracts import Batch, BatchCounts, BatchStatus, JobStatus
from storage.batches.queries import BatchQueries
from storage.engine.database import Database
from storage.engine.schema import requests
from tests.support.fakes import HELLO, Gate, PromptedModel, eventually, text
from tests.support.house import HOOK, QUICK, house
from tests.support.replays import asked, store_replay
from tests.workflows.test_batch_resume import REFUSED, Office

ONCE: list[Any] = [[REFUSED], HELLO]
ALWAYS: list[Any] = [[REFUSED]]


class Replays(Office):
    """An office whose first jobs fail."""

    async def failed(self, *prompts: str) -> list[str]:
        """The ids of jobs that have failed, one for each prompt; the model's scripts are those of the tests then."""
        wanted, self.model.by_words = self.model.by_words, dict.fromkeys(prompts, ALWAYS)
        ids = []
        for prompt in prompts:
            job_id = await self.here.submit(prompt)
            assert (await self.here.ended(job_id)).status is JobStatus.FAILED
            ids.append(job_id)
        self.model.by_words = wanted
        self.model.requests.clear()
        return ids

    async def replay(self, **fields: Any) -> None:
        self.batch_id = await store_replay(self.database, asked(**fields))
        await self.dispatch.start(self.batch_id)
        self.here.started.append(self.batch_id)

    async def replayed(self) -> dict[str, str]:
        """What became of each original, by the one replay that it has."""
        found = {}
        async for page in self.pages():
            for item in page:
                assert (await self.here.jobs.queries.get(item.custom_id)).replays == (item.result.job_id,)
                found[item.custom_id] = item.result.status.value
        return found

    async def pages(self) -> AsyncIterator[Any]:
        for errors in (False, True):
            async for page in BatchQueries(self.database).output(self.batch_id, errors=errors):
                yield page

    async def until_phase(self, phase: str) -> Batch:
        async def look() -> Batch | None:
            batch = await self.batch()
            return batch if batch.phase == phase else None

        batch = await eventually(look)
        assert batch is not None
        return batch


@pytest.fixture
async def office(client: Client, sqlite: Database) -> AsyncIterator[Replays]:
    model = PromptedModel({})
    async with house(client, sqlite, model=model, timings=QUICK) as here:
        yield Replays(here, sqlite, model)


async def test_all_failed_jobs_run_again(office: Replays) -> None:
    """With a webhook at the end of all."""
    ids = await office.failed("a", "b", "c")
    whole = await office.here.submit("whole")
    await office.here.ended(whole)
    await office.replay(webhook={"url": HOOK})
    batch = await office.ended()
    assert (batch.status, batch.kind, batch.counts) == (
        *(BatchStatus.COMPLETED, "replay"),
        BatchCounts(total=3, completed=3),
    )
    assert await office.replayed() == dict.fromkeys(ids, "completed")
    assert sorted(office.model.prompts()) == ["a", "b", "c", "whole"]
    (post,) = office.here.sender.posts
    assert b'"batch.completed"' in post.body


async def test_the_rest_waits_for_the_canary(office: Replays) -> None:
    """In the order of the first jobs; one failure of two is no more than half."""
    ids = await office.failed("a", "b", "c", "d")
    gate = Gate()
    office.model.by_words = {"a": [[gate, *HELLO]], "b": ALWAYS}
    await office.replay(canary=2)
    await gate.reached()

    async def b_has_failed() -> bool:
        return (await office.batch()).counts.failed == 1

    await eventually(b_has_failed)
    assert (await office.batch()).phase == "canary"
    assert sorted(set(office.model.prompts())) == ["a", "b"]
    gate.open()
    batch = await office.ended()
    assert (batch.phase, batch.counts) == ("rest", BatchCounts(total=4, completed=3, failed=1))
    assert await office.replayed() == dict(zip(ids, ["completed", "failed", "completed", "completed"], strict=True))


async def test_a_canary_that_does_badly_stops_the_replay(office: Replays) -> None:
    """The rest is cancelled without a call; a resume tries all of it again, the canary first."""
    ids = await office.failed("a", "b", "c", "d", "e")
    office.model.by_words = {"a": ONCE, "b": ONCE}
    await office.replay(canary=2, maxErrorRate=0.5, webhook={"url": HOOK})
    batch = await office.ended()
    assert (batch.status, batch.phase, batch.counts) == (
        *(BatchStatus.FAILED, "canary"),
        BatchCounts(total=5, failed=2, cancelled=3),
    )
    assert batch.error is not None
    assert (batch.error.code, batch.stopped) == ("error_rate", batch.error.message)
    assert sorted(office.model.prompts()) == ["a", "b"]
    await office.resume()
    batch = await office.ended(revision=2)
    assert (batch.status, batch.stopped, batch.counts) == (
        *(BatchStatus.COMPLETED, None),
        BatchCounts(total=5, completed=5),
    )
    assert sorted(office.model.prompts()) == ["a", "a", "b", "b", "c", "d", "e"]
    assert await office.replayed() == dict.fromkeys(ids, "completed")
    kinds = [post.body.partition(b'"event":"')[2].partition(b'"')[0] for post in office.here.sender.posts]
    assert kinds == [b"batch.failed", b"batch.completed"]


async def test_the_rest_is_stopped_where_too_much_of_it_fails(office: Replays) -> None:
    prompts = [f"p{number}" for number in range(60)]
    office.model.by_words = dict.fromkeys(prompts[5:], ALWAYS)
    await office.failed(*prompts)
    await office.replay(canary=5, maxErrorRate=0.4, concurrency=1)
    batch = await office.ended()
    assert (batch.status, batch.phase) == (BatchStatus.FAILED, "rest")
    assert batch.stopped is not None
    assert "of the last" in batch.stopped
    assert batch.counts.completed == 5
    assert 20 <= batch.counts.failed <= 40
    assert batch.counts.cancelled == 60 - 5 - batch.counts.failed
    assert office.model.calls == 5 + batch.counts.failed


async def test_an_item_without_a_valid_request_fails_by_itself(office: Replays) -> None:
    """Its job says why; there is no call for it."""
    first, second = await office.failed("a", "b")
    async with office.database.write() as connection:
        body = '{"messages": [{"role": "user", "content": " "}]}'
        await connection.execute(update(requests).where(requests.c.job_id == first).values(body=body))
    await office.replay()
    batch = await office.ended()
    assert (batch.status, batch.counts, batch.errors_by_code) == (
        *(BatchStatus.COMPLETED, BatchCounts(total=2, completed=1, failed=1)),
        {"validation_failed": 1},
    )
    assert await office.replayed() == {first: "failed", second: "completed"}
    assert office.model.prompts() == ["b"]


async def test_a_replay_of_nothing_ends_at_once(office: Replays) -> None:
    await office.replay(canary=3)
    batch = await office.ended()
    assert (batch.status, batch.counts.total) == (BatchStatus.COMPLETED, 0)


async def test_a_replay_is_paused_and_cancelled_like_any_batch(office: Replays) -> None:
    """Also between its canary and the rest."""
    await office.failed("a", "b", "c")
    gate = Gate()
    office.model.by_words = {"a": [[gate, *HELLO]], "b": [[*text("Hel"), Gate()]]}
    await office.replay(canary=1, concurrency=1)
    await gate.reached()
    await office.runs.pause(office.batch_id)
    gate.open()
    await office.until_phase("rest")
    assert office.model.prompts() == ["a"]
    await office.runs.resume(office.batch_id)
    await office.dispatch.start(office.batch_id)

    async def b_runs() -> bool:
        return office.model.prompts() == ["a", "b"]

    await eventually(b_runs)
    await office.runs.cancel(office.batch_id)
    await office.dispatch.cancel(office.batch_id)
    batch = await office.ended()
    assert (batch.status, batch.stopped, batch.counts) == (
        *(BatchStatus.CANCELLED, None),
        BatchCounts(total=3, completed=1, cancelled=2),
    )
