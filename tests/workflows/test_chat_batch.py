"""Batches in a running service whose model is scripted: what happens to an item happens to no other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError

from chatjobs.contracts import (
    Batch,
    BatchStatus,
    FunctionCall,
    Job,
    JobStatus,
    ToolCall,
)
from chatjobs.errors import JobFinished, JobNotFound
from dispatch.batches import BatchDispatch
from domain.errors import SealConflict, StorageUnavailable, UpstreamInterrupted, UpstreamRateLimited, UpstreamRefused
from domain.names import batch_job_id, delivery_workflow_id
from domain.ports import Finish
from domain.timings import Timings
from storage.batches.queries import BatchQueries
from storage.batches.runs import BatchRunStore
from storage.engine.database import Database
from tests.replay.record import SHORT_HISTORY, short_histories
from tests.support.batches import dispatch, store_batch, submit_batch
from tests.support.factories import make_body
from tests.support.fakes import (
    PATIENCE,
    STOP,
    Gate,
    Gates,
    PromptedModel,
    ScriptedSender,
    Step,
    answered,
    eventually,
    text,
)
from tests.support.house import HOOK, QUICK, House, house

Scripts = Mapping[str, Sequence[Sequence[Step]]]
CUT = UpstreamInterrupted(code="upstream_cut")
QUEUED, RUNNING = JobStatus.QUEUED, JobStatus.IN_PROGRESS
COMPLETED, FAILED, CANCELLED, INCOMPLETE = (
    JobStatus.COMPLETED,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
    JobStatus.INCOMPLETE,
)
PAUSED_SECONDS = 0.3
QUICK_PAUSES = Timings(failure_pause_seconds=0.01, batch_paused_seconds=PAUSED_SECONDS)


@dataclass
class Batches:
    """A running service, as somebody sees it who submits batches."""

    house: House
    database: Database
    client: Client

    @property
    def model(self) -> PromptedModel:
        assert isinstance(self.house.model, PromptedModel)
        return self.house.model

    @property
    def runs(self) -> BatchRunStore:
        return self.house.parts.upkeep().batch_runs

    @property
    def dispatch(self) -> BatchDispatch:
        return dispatch(self.database, self.client)

    async def submit(self, prompts: Sequence[str] | Mapping[str, dict[str, Any]], **settings: Any) -> str:
        """The id of a batch with one item for each prompt, in order; ``prompts``: with fields of its request."""
        fields = prompts if isinstance(prompts, Mapping) else {}
        bodies = [make_body(prompt, **fields.get(prompt, {})) for prompt in prompts]
        return await submit_batch(self.database, self.client, bodies, **settings)

    async def look(self, batch_id: str) -> Batch:
        return await BatchQueries(self.database).get(batch_id)

    async def jobs(self, batch_id: str) -> list[Job]:
        total = (await self.look(batch_id)).counts.total
        return [await self.house.jobs.queries.get(batch_job_id(batch_id, number)) for number in range(total)]

    async def job(self, batch_id: str, number: int = 0) -> Job:
        return await self.house.jobs.queries.get(batch_job_id(batch_id, number))

    async def reached(self, batch_id: str, number: int, status: JobStatus) -> Job:
        """An item's job, once it has this status."""

        async def look() -> Job | None:
            try:
                job = await self.job(batch_id, number)
            except JobNotFound:  # the items have no jobs yet
                return None
            return job if job.status is status else None

        found = await eventually(look)
        assert found is not None
        return found

    async def ended(self, batch_id: str, status: BatchStatus = BatchStatus.COMPLETED) -> list[Job]:
        """The jobs of a batch, once its run has ended; output, counts and rows agree."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.house.run(batch_id).result()
        except WorkflowFailureError:
            described = await self.house.run(batch_id).describe()
            assert described.status is WorkflowExecutionStatus.CANCELED
        batch, jobs = await self.look(batch_id), await self.jobs(batch_id)
        assert batch.status is status
        statuses = Counter("completed" if job.status is INCOMPLETE else job.status.value for job in jobs)
        counts = batch.counts.model_dump(exclude={"total"})
        assert {name: count for name, count in counts.items() if count} == statuses
        assert await self.output(batch_id) == [job.job_id for job in jobs if job.status in (COMPLETED, INCOMPLETE)]
        assert await self.output(batch_id, errors=True) == [
            job.job_id for job in jobs if job.status in (FAILED, CANCELLED)
        ]
        return jobs

    async def output(self, batch_id: str, *, errors: bool = False) -> list[str]:
        pages = BatchQueries(self.database).output(batch_id, errors=errors)
        return [item.result.job_id async for page in pages for item in page]

    async def settled(self, batch_id: str) -> None:
        """Whatever may happen has happened: the wishes were read some times."""
        await asyncio.sleep(1.2)


@asynccontextmanager
async def serving(
    client: Client, database: Database, scripts: Scripts | None = None, **options: Any
) -> AsyncIterator[Batches]:
    model = PromptedModel(scripts or {})
    async with house(client, database, **dict[str, Any](model=model, timings=QUICK) | options) as here:
        yield Batches(here, database, client)


def outcomes(job: Job) -> list[str | None]:
    return [attempt.outcome for attempt in job.attempts]


# ----------------------------------------------------------------------------------------------- the whole


async def test_each_item_is_called_and_ends_once(client: Client, database: Database) -> None:
    """Forty items in several parts: one call, one attempt, one webhook each, and one webhook of the batch."""
    prompts = [f"item {number}" for number in range(40)]
    async with serving(client, database) as here:
        batch_id = await here.submit({one: {"callback": HOOK} for one in prompts}, webhook=HOOK)
        jobs = await here.ended(batch_id)
        assert {job.status for job in jobs} == {COMPLETED}
        assert {(job.content, *outcomes(job)) for job in jobs} == {("Hello there", "finished")}
        assert Counter(request.messages[0].content for request in here.model.requests) == dict.fromkeys(prompts, 1)

        async def all_posts() -> bool:
            return len(here.house.sender.posts) >= 41

        await eventually(all_posts)
        ids = Counter(post.id for post in here.house.sender.posts)
        assert len(ids) == len(ids) == 41
        assert max(ids.values()) == 1


async def test_a_batch_goes_on_in_another_run(client: Client, database: Database) -> None:
    """Before the history grows long; no item is called twice for it, and the webhook comes once."""
    prompts = [f"item {number}" for number in range(160)]
    async with serving(client, database) as here:
        with short_histories():
            batch_id = await here.submit(prompts, webhook=HOOK)
            first = (await here.house.run(batch_id).describe()).run_id
            await here.ended(batch_id)
        last = await here.house.run(batch_id).describe()
        assert last.run_id != first
        assert last.history_length < 2 * SHORT_HISTORY
        whole = await client.get_workflow_handle(batch_id, run_id=first).fetch_history()
        assert len(whole.events) < 3 * SHORT_HISTORY  # parts that are open add their own events
        assert Counter(request.messages[0].content for request in here.model.requests) == dict.fromkeys(prompts, 1)
        assert len(here.house.sender.posts) == 1


async def test_items_that_fail_hold_up_no_others(client: Client, database: Database) -> None:
    """One is refused, and one has a budget of two failures: the others do not notice."""
    refused = UpstreamRefused(code="upstream_rejected")
    scripts: Scripts = {"bad": [[refused]], "two": [[*text("One "), CUT], [CUT]]}
    async with serving(client, database, scripts) as here:
        fields: dict[str, dict[str, Any]] = {"bad": {}, "two": {"retry": {"attempts": 2}}}
        fields |= {f"good {number}": {} for number in range(20)}
        batch_id = await here.submit(fields, concurrency=2)
        bad, two, *good = await here.ended(batch_id)
        assert {job.status for job in good} == {COMPLETED}
        assert [job.error and job.error.code for job in (bad, two)] == ["upstream_rejected", "upstream_cut"]
        assert [here.model.calls_about(prompt) for prompt in ("bad", "two")] == [1, 2]
        assert (await here.look(batch_id)).errors_by_code == {"upstream_rejected": 1, "upstream_cut": 1}


# -------------------------------------------------------------------------------------------------- items


async def test_an_answer_that_breaks_off_again_and_again_is_continued(client: Client, database: Database) -> None:
    """Each attempt in the part has a newer fence than the one before; the text stays, in its one epoch."""
    scripts: Scripts = {
        "long": [
            [*text("One, "), CUT],
            [*text("two, "), CUT],
            [*text("three, "), CUT],
            [*text("four."), STOP],
        ]
    }
    async with serving(client, database, scripts) as here:
        long, other = await here.ended(await here.submit(["long", "other"]))
        assert (long.status, long.content, long.epoch) == (COMPLETED, "One, two, three, four.", 1)
        assert outcomes(long) == ["upstream_cut"] * 3 + ["finished"]
        assert here.model.continued[-1] in ("One, two, three, ", None)
        assert other.content == "Hello there"


@pytest.mark.parametrize(
    ("policy", "status", "epoch", "content"),
    [
        ("continue", COMPLETED, 1, "Half whole"),
        ("restart", COMPLETED, 2, "whole"),
        ("fail", FAILED, 1, "Half "),
    ],
)
async def test_what_an_interruption_does(
    client: Client, sqlite: Database, policy: str, status: JobStatus, epoch: int, content: str
) -> None:
    scripts: Scripts = {"cut": [[*text("Half "), CUT], [*text("whole"), STOP]]}
    async with serving(client, sqlite, scripts) as here:
        job, other = await here.ended(await here.submit({"cut": {"onInterrupt": policy}, "other": {}}))
        assert (job.status, job.epoch, job.content) == (status, epoch, content)
        assert other.status is COMPLETED


async def test_an_answer_in_segments(client: Client, database: Database) -> None:
    """Each segment is an attempt of its own."""
    length = Finish("length")
    scripts: Scripts = {"long": [[*text("One, "), length], [*text("two, "), length], [*text("three."), STOP]]}
    async with serving(client, database, scripts) as here:
        (job,) = await here.ended(await here.submit({"long": {"maxSegments": 3}}))
        assert (job.status, job.content) == (COMPLETED, "One, two, three.")
        assert outcomes(job) == ["segment", "segment", "finished"]


async def test_an_answer_that_ends_at_its_length_limit(client: Client, sqlite: Database) -> None:
    async with serving(client, sqlite, {"long": [[*text("One, "), Finish("length")]]}) as here:
        (job,) = await here.ended(await here.submit(["long"]))
        assert (job.status, job.content) == (INCOMPLETE, "One, ")


async def test_tool_calls(client: Client, sqlite: Database) -> None:
    call = ToolCall(id="call00001", function=FunctionCall(name="weather", arguments='{"city": "Nîmes"}'))
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    async with serving(client, sqlite, {"ask": [[Finish("tool_calls", tool_calls=(call,))]]}) as here:
        (job,) = await here.ended(await here.submit({"ask": {"tools": tools}}))
        assert job.tool_calls == (call,)


async def test_the_time_limit_of_a_generation(client: Client, database: Database) -> None:
    """It counts from the item's own beginning, and ends this item only."""
    scripts: Scripts = {"slow": [[*text("It "), Gate()]]}
    async with serving(client, database, scripts) as here:
        fields: dict[str, dict[str, Any]] = {"slow": {"limits": {"totalSeconds": 1}}}
        fields |= {f"other {number}": {} for number in range(12)}
        slow, *others = await here.ended(await here.submit(fields, concurrency=1))
        assert slow.error
        assert (slow.status, slow.error.code, slow.content) == (FAILED, "total_timeout", "It ")
        assert {job.status for job in others} == {COMPLETED}


async def test_a_webhook_that_fails_goes_on_in_a_run_of_its_own(client: Client, sqlite: Database) -> None:
    """The batch ends without it; all tries have one id and one body."""
    sender = ScriptedSender(answered(500))
    async with serving(client, sqlite, sender=sender) as here:
        (job,) = await here.ended(await here.submit({"item": {"callback": HOOK}}))

        async def tried_twice() -> bool:
            return len(sender.posts) >= 2

        await eventually(tried_twice)
        assert {(post.id, post.body) for post in sender.posts} == {(job.deliveries[0].id, sender.posts[0].body)}
        await here.house.run(delivery_workflow_id(job.deliveries[0].id)).terminate()


# --------------------------------------------------------------------------------------------------- pause


async def test_a_pause_lets_answers_finish_and_none_begin(client: Client, database: Database) -> None:
    gate = Gate()
    scripts: Scripts = {"first": [[*text("It "), gate, *text("ends."), STOP]]}
    async with serving(client, database, scripts) as here:
        batch_id = await here.submit(["first", *(f"later {number}" for number in range(5))], concurrency=1)
        await gate.reached()
        await here.runs.pause(batch_id)
        await here.settled(batch_id)
        gate.open()
        assert (await here.reached(batch_id, 0, COMPLETED)).content == "It ends."
        await here.settled(batch_id)
        assert here.model.calls == 1
        assert (await here.look(batch_id)).status is BatchStatus.PAUSED
        await here.runs.resume(batch_id)
        assert {job.status for job in await here.ended(batch_id)} == {COMPLETED}
        assert here.model.calls == 6


async def test_an_interrupted_answer_waits_for_the_end_of_a_pause(client: Client, database: Database) -> None:
    """It is not called meanwhile, and goes on at once afterwards: the same answer, in the same part."""
    gate = Gate()
    scripts: Scripts = {"cut": [[*text("One, "), CUT], [*text("two, "), gate, CUT], [*text("three."), STOP]]}
    async with serving(client, database, scripts) as here:
        batch_id = await here.submit(["cut"])
        await gate.reached()
        await here.runs.pause(batch_id)
        await here.settled(batch_id)
        gate.open()
        await here.settled(batch_id)
        assert here.model.calls == 2
        await here.runs.resume(batch_id)
        job = await here.reached(batch_id, 0, COMPLETED)
        assert (job.content, job.epoch, outcomes(job)) == (
            "One, two, three.",
            1,
            ["upstream_cut", "upstream_cut", "finished"],
        )
        await here.ended(batch_id)
        assert len(await parts_of(here, batch_id)) == 1


async def test_a_long_pause_gives_the_activities_back(client: Client, database: Database) -> None:
    """A signal starts them again."""
    async with serving(client, database, timings=QUICK_PAUSES) as here:
        batch_id = await store_batch(database, [make_body(f"item {number}") for number in range(30)])
        await here.runs.pause(batch_id)
        await here.dispatch.start(batch_id)
        await eventually(lambda: idle(here, batch_id))
        await here.runs.resume(batch_id)
        assert (await here.look(batch_id)).status is BatchStatus.IN_PROGRESS  # though it had not begun
        await here.dispatch.start(batch_id)
        assert {job.status for job in await here.ended(batch_id)} == {COMPLETED}


async def idle(here: Batches, batch_id: str) -> bool:
    """The run waits for a signal: it has made its parts, and none is open."""
    described = await here.house.run(batch_id).describe()
    return bool(await parts_of(here, batch_id)) and not described.raw_description.pending_activities


async def parts_of(here: Batches, batch_id: str) -> list[str]:
    """The parts that the run has begun, as its history names them."""
    history = await here.house.run(batch_id).fetch_history()
    scheduled = [event.activity_task_scheduled_event_attributes for event in history.events]
    return [one.activity_id for one in scheduled if one.activity_type.name == "run_slice"]


async def test_a_resumed_batch_does_not_wait_for_the_answer_that_went_on(client: Client, sqlite: Database) -> None:
    """All parts but one were given back: a resume starts them again while the one runs."""
    gates = {number: Gate() for number in (0, 10, 20)}  # the first item of each part
    scripts: Scripts = {f"item {number}": [[gate, *text("Hi"), STOP]] for number, gate in gates.items()}
    async with serving(client, sqlite, scripts, timings=QUICK_PAUSES) as here:
        batch_id = await here.submit([f"item {number}" for number in range(30)], concurrency=3)
        await asyncio.gather(*(gate.reached() for gate in gates.values()))
        await here.runs.pause(batch_id)
        await here.settled(batch_id)
        gates[10].open()
        gates[20].open()

        async def one_part() -> bool:
            described = await here.house.run(batch_id).describe()
            return len(described.raw_description.pending_activities) == 1

        await eventually(one_part)
        await here.runs.resume(batch_id)
        await here.dispatch.start(batch_id)
        for number in range(10, 30):
            await here.reached(batch_id, number, COMPLETED)
        gates[0].open()
        await here.ended(batch_id)


async def test_a_sweeper_passes_a_resume_on_while_a_part_makes_progress(client: Client, sqlite: Database) -> None:
    """The gateway that was to do it died; the batch has moved a moment ago."""
    async with serving(client, sqlite) as here:
        batch_id = await store_batch(sqlite, [make_body("item")])
        await here.runs.begin(batch_id)
        await here.runs.pause(batch_id)
        await here.runs.resume(batch_id)
        await here.runs.touch([batch_id])
        await here.house.parts.upkeep().sweeper.sweep_batches()
        await here.ended(batch_id)


# -------------------------------------------------------------------------------------------------- cancel


async def test_a_cancel_ends_what_runs_and_what_waits(client: Client, database: Database) -> None:
    """The text so far stays; the batch's webhook says what happened."""
    gate = Gate()
    async with serving(client, database, {"first": [[*text("Half "), gate]]}) as here:
        prompts = ["first", *(f"later {number}" for number in range(25))]
        batch_id = await here.submit(prompts, concurrency=1, webhook=HOOK)
        await gate.reached()
        await here.runs.cancel(batch_id)
        first, *later = await here.ended(batch_id, BatchStatus.CANCELLED)
        assert (first.status, first.content) == (CANCELLED, "Half ")
        assert {(job.status, job.content) for job in later} == {(CANCELLED, "")}
        assert here.model.calls == 1

        async def told() -> bool:
            return bool(here.house.sender.posts)

        await eventually(told)
        assert [post.headers["webhook-id"] for post in here.house.sender.posts]


async def test_a_cancel_through_temporal(client: Client, database: Database) -> None:
    gate = Gate()
    async with serving(client, database, {"first": [[*text("Half "), gate]]}) as here:
        batch_id = await here.submit(["first", "later"], concurrency=1)
        await gate.reached()
        await here.house.run(batch_id).cancel()
        first, later = await here.ended(batch_id, BatchStatus.CANCELLED)
        assert (first.status, first.content, later.status) == (CANCELLED, "Half ", CANCELLED)
        assert (await here.house.run(batch_id).describe()).status is WorkflowExecutionStatus.CANCELED


async def test_single_items_are_cancelled(client: Client, database: Database) -> None:
    """One that runs and one that waits; the others are answered."""
    gate, hold = Gate(), Gate()
    scripts: Scripts = {"runs": [[*text("Half "), gate]], "holds": [[hold, *text("Whole"), STOP]]}
    async with serving(client, database, scripts) as here:
        batch_id = await here.submit(["runs", "holds", "waits", "other"], concurrency=2)
        await asyncio.gather(gate.reached(), hold.reached())
        for number in (0, 2):
            await here.house.jobs.seals.request_cancel(batch_job_id(batch_id, number))
        hold.open()
        jobs = await here.ended(batch_id)
        assert [job.status for job in jobs] == [CANCELLED, COMPLETED, CANCELLED, COMPLETED]
        assert (jobs[0].content, here.model.calls_about("waits")) == ("Half ", 0)
        with pytest.raises(JobFinished):
            await here.house.jobs.seals.request_cancel(batch_job_id(batch_id, 1))


async def test_an_interrupted_item_of_a_paused_batch_is_cancelled_at_once(client: Client, database: Database) -> None:
    gate = Gate()
    async with serving(client, database, {"cut": [[*text("Half "), gate, CUT]]}) as here:
        batch_id = await here.submit(["cut", "other"], concurrency=1)
        await gate.reached()
        await here.runs.pause(batch_id)
        await here.settled(batch_id)
        gate.open()

        async def interrupted() -> bool:
            return outcomes(await here.job(batch_id)) == ["upstream_cut"]

        await eventually(interrupted)
        job_id = batch_job_id(batch_id, 0)
        assert await here.house.jobs.seals.request_cancel(job_id) is CANCELLED
        assert (await here.job(batch_id)).content == "Half "
        await here.runs.resume(batch_id)
        assert [job.status for job in await here.ended(batch_id)] == [CANCELLED, COMPLETED]
        assert here.model.calls == 2


async def test_a_cancelled_item_that_no_worker_confirms(client: Client, database: Database) -> None:
    """Its worker died, and its batch is paused: a sweeper ends it."""
    async with serving(client, database, queues=()) as here:
        batch_id = await store_batch(database, [make_body("item"), make_body("other")])
        while await here.runs.prepare(batch_id):
            pass
        await here.runs.pause(batch_id)
        job_id = batch_job_id(batch_id, 0)
        await here.house.jobs.attempts.claim(job_id, fence=1, claimant="dead", run_id=batch_id)
        assert await here.house.jobs.seals.request_cancel(job_id) is RUNNING
        sweeper = here.house.parts.upkeep().sweeper

        async def ended() -> bool:
            await sweeper.sweep_batches()
            return (await here.job(batch_id)).status is CANCELLED

        await eventually(ended)
        assert (await here.job(batch_id, 1)).status is QUEUED


# ----------------------------------------------------------------------------------------- lanes and places


async def test_a_paused_lane_holds_up_no_other_one(client: Client, sqlite: Database) -> None:
    """Within a batch and between batches: what waits for its turn takes no place from what has one."""
    throttled = UpstreamRateLimited(retry_after=60)
    script: list[list[Step]] = [[throttled], [*text("at last"), STOP]]
    slow = [f"slow {number}" for number in range(40)]
    async with serving(client, sqlite, dict.fromkeys(slow, script), chatjobs_batch_concurrency=4) as here:
        paused = await here.submit({prompt: {"model": "mistral-large-latest"} for prompt in slow})

        async def refused() -> bool:
            return here.model.calls > 0

        await eventually(refused)
        mixed = await here.submit(
            {prompt: {"model": "mistral-large-latest"} for prompt in ("large 0", "large 1", "large 2", "large 3")}
            | {f"small {number}": {} for number in range(20)}
        )
        async with asyncio.timeout(20):
            for number in range(4, 24):
                await here.reached(mixed, number, COMPLETED)
        assert here.model.calls_about("large 0") == 0
        for batch_id in (paused, mixed):
            await here.runs.cancel(batch_id)
            await here.dispatch.cancel(batch_id)


async def test_a_small_batch_does_not_wait_for_a_large_one(client: Client, sqlite: Database) -> None:
    """The places of a worker are granted to the batches in turns."""
    script: list[list[Step]] = [[0.1, *text("Hi"), STOP]]
    large = [f"large {number}" for number in range(300)]
    async with serving(client, sqlite, dict.fromkeys(large, script), chatjobs_batch_concurrency=2) as here:
        first = await here.submit(large)
        await here.reached(first, 0, COMPLETED)
        second = await here.submit([f"small {number}" for number in range(10)])
        await here.ended(second)
        assert (await here.look(first)).counts.completed < 100
        await here.runs.cancel(first)
        await here.dispatch.cancel(first)


async def test_a_batch_runs_as_many_items_at_once_as_it_may(client: Client, sqlite: Database) -> None:
    """Also one that has a single part."""
    gates = [Gate() for _ in range(5)]
    scripts: Scripts = {f"item {number}": [[gate, *text("Hi"), STOP]] for number, gate in enumerate(gates)}
    async with serving(client, sqlite, scripts) as here:
        batch_id = await here.submit([*scripts, "later"], concurrency=5)
        await asyncio.gather(*(gate.reached() for gate in gates))
        assert here.model.calls == 5
        for gate in gates:
            gate.open()
        await here.ended(batch_id)


# --------------------------------------------------------------------------------------------- the database


@pytest.mark.parametrize("problem", [SealConflict("no"), StorageUnavailable("away")])
async def test_a_job_that_cannot_be_sealed_at_first(client: Client, sqlite: Database, problem: Exception) -> None:
    """It costs the others nothing, and is sealed later."""

    class Gateway(Gates):
        """Raises the problem, once, at the first seal."""

        problems = [problem]

        async def at(self, place: str) -> None:
            if place == "before seal" and self.problems:
                raise self.problems.pop()

    async with serving(client, sqlite, gates=Gateway()) as here:
        jobs = await here.ended(await here.submit([f"item {number}" for number in range(12)], concurrency=1))
        assert {job.status for job in jobs} == {COMPLETED}
        assert here.model.calls == 12
