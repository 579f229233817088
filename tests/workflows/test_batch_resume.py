"""Batches that go on after their end: what has no answer gets one, and nothing is called twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError

from chatjobs.contracts import Batch, BatchCounts, BatchStatus, ChatResult, JobStatus
from chatjobs.errors import BatchFinished
from dispatch.batches import BatchDispatch
from domain.errors import UpstreamRefused
from storage.batches.queries import BatchQueries
from storage.batches.runs import BatchRunStore
from storage.engine.database import Database
from tests.support.batches import dispatch, submit_batch
from tests.support.factories import make_body
from tests.support.fakes import HELLO, PATIENCE, Gate, PromptedModel, answered, eventually, text
from tests.support.house import HOOK, QUICK, House, house
from workflows import chat_batch

REFUSED = UpstreamRefused(code="upstream_rejected")
FAILS_ONCE: Sequence[Any] = [[*text("Hel"), REFUSED], HELLO]


class Office:
    """A service, a batch in it, and a model that is told by the prompt what to say."""

    def __init__(self, here: House, database: Database, model: PromptedModel) -> None:
        self.here = here
        self.database = database
        self.model = model
        self.batch_id = ""

    @property
    def dispatch(self) -> BatchDispatch:
        return dispatch(self.database, self.here.client)

    @property
    def runs(self) -> BatchRunStore:
        return self.here.parts.upkeep().batch_runs

    async def submit(self, *prompts: str, **settings: Any) -> None:
        bodies = [make_body(prompt) for prompt in prompts]
        self.batch_id = await submit_batch(self.database, self.here.client, bodies, **settings)
        self.here.started.append(self.batch_id)

    async def resume(self) -> None:
        await self.runs.resume(self.batch_id)
        await self.dispatch.start(self.batch_id)

    async def batch(self) -> Batch:
        return await BatchQueries(self.database).get(self.batch_id)

    async def ended(self, revision: int = 1) -> Batch:
        """The batch, once it has ended for the ``revision``-th time, and its run with it."""

        async def look() -> Batch | None:
            batch = await self.batch()
            return batch if batch.status.terminal and batch.revision == revision else None

        batch = await eventually(look)
        assert batch is not None
        async with asyncio.timeout(PATIENCE):
            try:
                await self.here.run(self.batch_id).result()
            except WorkflowFailureError:
                assert batch.status is BatchStatus.CANCELLED
        return batch

    async def results(self) -> dict[str, ChatResult]:
        """The outcomes by the items' names; each item is there once."""
        found: list[tuple[str, ChatResult]] = []
        for errors in (False, True):
            async for page in BatchQueries(self.database).output(self.batch_id, errors=errors):
                found += page
        assert len(found) == len(dict(found))
        return dict(found)


@pytest.fixture
async def office(client: Client, sqlite: Database) -> AsyncIterator[Office]:
    model = PromptedModel({})
    async with house(client, sqlite, model=model, timings=QUICK) as here:
        yield Office(here, sqlite, model)


async def test_failed_items_go_on_from_their_text(office: Office) -> None:
    """With a webhook of its own at the new end."""
    office.model.by_words = {"b": FAILS_ONCE, "d": FAILS_ONCE}
    await office.submit("a", "b", "c", "d", webhook={"url": HOOK})
    first = await office.ended()
    assert (first.counts, first.errors_by_code) == (
        BatchCounts(total=4, completed=2, failed=2),
        {"upstream_rejected": 2},
    )
    await office.resume()
    batch = await office.ended(revision=2)
    assert (batch.status, batch.counts) == (BatchStatus.COMPLETED, BatchCounts(total=4, completed=4))
    assert batch.errors_by_code == {}
    assert sorted(office.model.prompts()) == ["a", "b", "b", "c", "d", "d"]
    assert office.model.continued.count("Hel") == 2
    assert {job.content for job in (await office.results()).values()} == {"Hello there"}
    posts = office.here.sender.posts
    assert [post.headers["webhook-id"].partition(".")[2] for post in posts] == ["", "2"]


async def test_the_items_of_a_cancelled_batch_go_on(office: Office) -> None:
    """Those that were never called, too; they have no workflow of their own."""
    gate = Gate()
    office.model.by_words = {"a": [[*text("Hel"), gate], HELLO]}
    await office.submit("a", "b", "c", concurrency=1)
    await gate.reached()
    await office.runs.cancel(office.batch_id)
    await office.dispatch.cancel(office.batch_id)
    assert (await office.ended()).counts == BatchCounts(total=3, cancelled=3)
    await office.resume()
    batch = await office.ended(revision=2)
    assert (batch.status, batch.counts) == (BatchStatus.COMPLETED, BatchCounts(total=3, completed=3))
    assert office.model.prompts() == ["a", "a", "b", "c"]
    jobs = [await office.here.jobs.queries.get(job.job_id) for job in (await office.results()).values()]
    assert {job.run.workflow_id for job in jobs} == {office.batch_id}


async def test_where_nothing_is_left_there_is_nothing_to_resume(office: Office) -> None:
    await office.submit("a")
    await office.ended()
    with pytest.raises(BatchFinished, match="no item"):
        await office.runs.resume(office.batch_id)


async def test_a_receiver_may_resume_the_batch_whose_end_it_is_told(office: Office) -> None:
    """The run that waits for the receiver's answer takes the batch up again."""
    gate = Gate()
    office.here.sender.answers = [gate, answered(200)]
    office.model.by_words = {"a": FAILS_ONCE}
    await office.submit("a", webhook={"url": HOOK})
    await gate.reached()
    await office.resume()
    gate.open()
    batch = await office.ended(revision=2)
    assert (batch.counts, office.model.calls) == (BatchCounts(total=1, completed=1), 2)


async def test_a_batch_waits_for_a_job_that_was_resumed_alone(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not walked through again for it."""
    monkeypatch.setattr(chat_batch, "LEFT_AGAIN", chat_batch.LEFT_AGAIN / 50)
    alone, other = Gate(), Gate()
    office.model.by_words = {"a": [[*text("Hel"), REFUSED], [alone, *HELLO]], "b": [[other, *HELLO]]}
    await office.submit("a", "b")
    await other.reached()

    async def failed() -> bool:
        return (await office.batch()).counts.failed == 1

    await eventually(failed)
    (job,) = await office.here.jobs.queries.list(status=JobStatus.FAILED)
    await office.here.intake.start(await office.here.jobs.seals.resume(job.job_id))
    await alone.reached()
    other.open()

    async def waits() -> int:
        history = await office.here.run(office.batch_id).fetch_history()
        return sum(event.HasField("timer_fired_event_attributes") for event in history.events)

    async def has_waited() -> bool:
        return await waits() > 3

    await eventually(has_waited)
    assert (await office.batch()).status is BatchStatus.IN_PROGRESS
    alone.open()
    assert (await office.ended()).counts == BatchCounts(total=2, completed=2)
    history = await office.here.run(office.batch_id).fetch_history()
    parts = [e for e in history.events if e.HasField("activity_task_scheduled_event_attributes")]
    names = [e.activity_task_scheduled_event_attributes.activity_type.name for e in parts]
    assert names == ["prepare_batch", "run_slice"]
    described = await office.here.run(job.job_id).describe()
    assert described.status is WorkflowExecutionStatus.COMPLETED
