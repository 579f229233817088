"""Batches in the lane of batch jobs: sent once, and sealed as live jobs are; what has no answer is called live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import CancelledError

from chatjobs.contracts import Batch, BatchStatus, ChatResult, JobStatus
from dispatch.batches import BatchDispatch
from domain.continuing import AS_MISTRAL
from domain.timings import Timings
from providers.mistral import batch as provider
from providers.mistral.batch import MistralBatch
from providers.mistral.chat import MistralChat
from storage.batches.queries import BatchQueries
from storage.batches.runs import BatchRunStore
from storage.engine.database import Database
from storage.rate_limits.pauses import PauseStore
from tests.support.batches import dispatch, store_batch, submit_batch
from tests.support.fakes import Gate, Gates
from tests.support.house import HOOK, House, house
from tests.support.simulator_process import SimulatorProcess, prompt, simulator
from workflows import options

pytestmark = pytest.mark.long

QUICK = Timings(
    failure_pause_seconds=0.01,
    batch_first_look_seconds=0.1,
    batch_longest_look_seconds=1.0,
    batch_late_files_seconds=2.0,
    batch_withdrawal_seconds=5.0,
    batch_margin_seconds=1.0,
)
PATIENCE = 60


@pytest.fixture(scope="module")
def process() -> Iterator[SimulatorProcess]:
    with simulator() as found:
        yield found


@pytest.fixture
def sim(process: SimulatorProcess) -> SimulatorProcess:
    process.drop_batches()
    process.drop_scripts()
    process.forget()
    return process


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await reached():  # noqa: ASYNC110 - neither the model's server nor Temporal has an event for it
            await asyncio.sleep(0.05)


@dataclass
class Office:
    """A service with batches, and the server of its model."""

    here: House
    database: Database
    sim: SimulatorProcess

    @property
    def dispatch(self) -> BatchDispatch:
        return dispatch(self.database, self.here.client)

    @property
    def runs(self) -> BatchRunStore:
        return self.here.parts.upkeep().batch_runs

    async def submit(self, bodies: Sequence[dict[str, Any]], **settings: Any) -> str:
        """The id of a batch that has begun."""
        return await submit_batch(self.database, self.here.client, bodies, lane="batch", **settings)

    async def ended(self, batch_id: str) -> Batch:
        """The batch, once its workflow has ended."""
        async with asyncio.timeout(PATIENCE):
            await self.here.client.get_workflow_handle(batch_id).result()
        return await self.batch(batch_id)

    async def batch(self, batch_id: str) -> Batch:
        return await BatchQueries(self.database).get(batch_id)

    async def results(self, batch_id: str) -> dict[str, ChatResult]:
        found: dict[str, ChatResult] = {}
        for errors in (False, True):
            async for page in BatchQueries(self.database).output(batch_id, errors=errors):
                found |= {item.custom_id: item.result for item in page}
        return found

    def upstream(self, batch_id: str) -> list[dict[str, Any]]:
        """The batch jobs that the server has of a batch."""
        jobs = httpx2.get(f"{self.sim.url}/v1/batch/jobs", headers={"authorization": "Bearer k"}).json()["data"]
        return [job for job in jobs if job["metadata"]["chatjobs_batch"].startswith(f"{batch_id}.")]

    async def until_upstream(self, batch_id: str, status: str, *, answered: int = 0) -> None:
        async def is_there() -> bool:
            found = self.upstream(batch_id)
            return any(job["status"] == status and job["completed_requests"] >= answered for job in found)

        await until(is_there)

    def completed(self, batch_id: str, count: int) -> Callable[[], Awaitable[bool]]:
        async def reached() -> bool:
            return (await self.batch(batch_id)).counts.completed == count

        return reached

    async def run_id(self, batch_id: str) -> str:
        return (await self.here.client.get_workflow_handle(batch_id).describe()).run_id

    def attempts_of(self, text: Any) -> list[str | None]:
        """How the server was asked, each time: the batch job's id, or None for a live call."""
        return [entry["batch"] for entry in self.sim.requests(str(text))]


@asynccontextmanager
async def office(
    client: Client, database: Database, sim: SimulatorProcess, timings: Timings = QUICK, **settings: Any
) -> AsyncIterator[Office]:
    model = MistralChat("k", sim.url)
    batches = MistralBatch("k", sim.url, practice=lambda _: AS_MISTRAL, timings=timings)
    try:
        async with house(client, database, model=model, batch_model=batches, timings=timings, **settings) as here:
            yield Office(here, database, sim)
    finally:
        await model.aclose()
        await batches.aclose()


def bodies(count: int, **script: Any) -> list[dict[str, Any]]:
    return [body(prompt(str(number), **script)) for number in range(count)]


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} | fields


def text_of(one: dict[str, Any]) -> str:
    return str(one["messages"][-1]["content"])


async def test_a_batch_is_answered_by_one_batch_job_and_sealed_as_live_jobs_are(
    client: Client, database: Database, sim: SimulatorProcess
) -> None:
    asked = bodies(60)
    async with office(client, database, sim) as here:
        batch_id = await here.submit(asked)
        batch = await here.ended(batch_id)
        assert (batch.status, batch.counts.completed, batch.counts.total) == (BatchStatus.COMPLETED, 60, 60)
        results = await here.results(batch_id)
        (upstream,) = here.upstream(batch_id)
        for number, one in enumerate(asked):
            result = results[f"item-{number}"]
            said = sim.answer(text_of(one))
            assert (result.content, result.finish_reason) == (said["text"], said["finish_reason"])
            assert result.usage is not None
            assert result.usage.completion_tokens == said["usage"]["completion_tokens"]
            assert here.attempts_of(text_of(one)) == [upstream["id"]], "once, and not live"
        job = await here.here.jobs.queries.get(results["item-0"].job_id)
        (attempt,) = job.attempts
        assert (attempt.outcome, attempt.http_status, attempt.first_token_ms) == ("finished", 200, None)
        assert not job.usage_estimated
        assert sim.calls()["delete"] == 2, "the input and the output"


async def test_items_of_two_models_go_in_two_batch_jobs(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    models = ("mistral-small-latest", "mistral-large-latest")
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit([body(prompt(), model=models[number % 2]) for number in range(6)])
        assert (await here.ended(batch_id)).counts.completed == 6
        created = here.upstream(batch_id)
        assert sorted((job["model"], job["total_requests"]) for job in created) == [(models[1], 3), (models[0], 3)]


async def test_what_has_no_result_or_failed_retryably_is_called_live_and_refusals_are_final(
    client: Client, database: Database, sim: SimulatorProcess
) -> None:
    asked = bodies(8)
    asked[7] = body(prompt(faults=[{"kind": 400, "message": "no"}]))
    sim.batches(failed=2, missing=1, without=[])
    async with office(client, database, sim) as here:
        batch_id = await here.submit(asked)
        batch = await here.ended(batch_id)
        results = await here.results(batch_id)
        assert (batch.counts.completed, batch.counts.failed) == (7, 1)
        assert results["item-7"].error is not None
        assert results["item-7"].error.code == "upstream_rejected"
        live = [here.attempts_of(text_of(one)) for one in asked[:3]]
        assert [calls[-1] for calls in live] == [None] * 3
        for number in range(7):
            assert results[f"item-{number}"].content == sim.answer(text_of(asked[number]))["text"]
        outcomes = [
            [attempt.outcome for attempt in (await here.here.jobs.queries.get(results[name].job_id)).attempts]
            for name in ("item-0", "item-2", "item-3", "item-7")
        ]
        assert outcomes == [["upstream_unavailable", "finished"], ["finished"], ["finished"], ["upstream_rejected"]]


@pytest.mark.parametrize("script", [{"invalid": ["no"]}, {"timeout_after": 2}], ids=["refused", "timed out"])
async def test_a_batch_job_that_ends_badly_leaves_the_rest_to_live_calls(
    client: Client, sqlite: Database, sim: SimulatorProcess, script: dict[str, Any]
) -> None:
    asked = bodies(6)
    sim.batches(**script)
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(asked)
        assert (await here.ended(batch_id)).counts.completed == 6
        asked_live = sum(here.attempts_of(text_of(one)) == [None] for one in asked)
        assert asked_live == (6 if "invalid" in script else 4)


async def test_a_server_without_batch_jobs_is_called_live(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    sim.faults("jobs", {"kind": 404})
    asked = bodies(3)
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(asked)
        assert (await here.ended(batch_id)).counts.completed == 3
        assert [here.attempts_of(text_of(one)) for one in asked] == [[None]] * 3


async def test_calls_that_fail_are_made_again_and_nothing_is_asked_twice(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    """A job whose creation was not answered is found again."""
    asked = bodies(5)
    sim.faults("upload", {"kind": 503}, {"kind": 429, "retry_after": 1})
    sim.faults("create", {"kind": "cut", "sent": 3})
    sim.faults("job", {"kind": 503})
    sim.faults("content", {"kind": "cut", "sent": 10})
    sim.faults("delete", {"kind": 503})
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(asked)
        assert (await here.ended(batch_id)).counts.completed == 5
        assert len(here.upstream(batch_id)) == 1
        assert all(len(here.attempts_of(text_of(one))) == 1 for one in asked)


async def test_files_that_never_come_are_given_up(client: Client, sqlite: Database, sim: SimulatorProcess) -> None:
    asked = bodies(2)
    sim.batches(late_files=600)
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(asked)
        assert (await here.ended(batch_id)).counts.completed == 2
        assert all(here.attempts_of(text_of(one))[-1] is None for one in asked)


async def test_cancelling_ends_the_jobs_at_once_and_the_batch_job_too(
    client: Client, database: Database, sim: SimulatorProcess
) -> None:
    sim.batches(hold=2)
    async with office(client, database, sim) as here:
        batch_id = await here.submit(bodies(5))
        await here.until_upstream(batch_id, "RUNNING", answered=2)
        began = asyncio.get_running_loop().time()
        await here.runs.cancel(batch_id)
        await here.dispatch.cancel(batch_id)
        assert (await here.batch(batch_id)).status is BatchStatus.CANCELLED
        assert asyncio.get_running_loop().time() - began < 2
        await here.ended(batch_id)
        await here.until_upstream(batch_id, "CANCELLED")
        assert (await here.batch(batch_id)).counts.cancelled == 5
        assert sim.calls()["delete"] == 2, "the input and what was answered"


async def test_a_cancel_through_temporal(client: Client, sqlite: Database, sim: SimulatorProcess) -> None:
    sim.batches(hold=0)
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(bodies(3))
        await here.until_upstream(batch_id, "RUNNING")
        run = client.get_workflow_handle(batch_id)
        await run.cancel()
        with pytest.raises(WorkflowFailureError) as ended:
            await run.result()
        assert isinstance(ended.value.cause, CancelledError)
        assert (await here.batch(batch_id)).status is BatchStatus.CANCELLED
        await here.until_upstream(batch_id, "CANCELLED")


async def test_one_job_of_the_batch_may_be_cancelled(client: Client, sqlite: Database, sim: SimulatorProcess) -> None:
    sim.batches(hold=0)
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(bodies(3))
        await here.until_upstream(batch_id, "RUNNING")
        queued = await here.runs.open_items(batch_id, 0, 1_000_000)
        assert await here.here.jobs.seals.request_cancel(queued[0].job_id) is JobStatus.CANCELLED
        sim.release_batches()
        batch = await here.ended(batch_id)
        assert (batch.counts.completed, batch.counts.cancelled) == (2, 1)


async def test_before_the_deadline_the_rest_is_called_live(
    client: Client, database: Database, sim: SimulatorProcess
) -> None:
    """What the batch job has answered by then is kept."""
    asked = bodies(6)
    sim.batches(hold=2, cancel_seconds=0.3)
    deadline = datetime.now(UTC) + timedelta(seconds=25)
    async with office(client, database, sim) as here:
        batch_id = await here.submit(asked, deadline=deadline)
        batch = await here.ended(batch_id)
        assert batch.counts.completed == 6
        assert batch.completed_at is not None
        assert batch.completed_at < deadline
        calls = [here.attempts_of(text_of(one)) for one in asked]
        assert [len(one) for one in calls] == [1] * 6, "none is paid for twice"
        assert sum(one == [None] for one in calls) == 4


async def test_a_deadline_that_is_near_leaves_no_time_for_a_batch_job(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    asked = bodies(2)
    sim.batches(hold=0)
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(asked, deadline=datetime.now(UTC) + timedelta(seconds=3))
        assert (await here.ended(batch_id)).counts.completed == 2
        assert [here.attempts_of(text_of(one)) for one in asked] == [[None]] * 2
        assert here.upstream(batch_id) == []


async def test_a_worker_that_stops_while_results_are_taken_asks_nothing_twice(
    client: Client, database: Database, sim: SimulatorProcess
) -> None:
    asked = bodies(40)
    gate = Gate()
    async with office(client, database, sim, gates=Gates({"before seal": gate})) as here:
        batch_id = await here.submit(asked)
        await gate.reached()
    async with office(client, database, sim) as here:  # another worker
        assert (await here.ended(batch_id)).counts.completed == 40
        assert all(len(here.attempts_of(text_of(one))) == 1 for one in asked)


async def test_webhooks_of_items_are_delivered(client: Client, sqlite: Database, sim: SimulatorProcess) -> None:
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit([body(prompt(), callback=HOOK) for _ in range(3)])
        results = await here.results((await here.ended(batch_id)).batch_id)

        async def all_sent() -> bool:
            return len(here.here.sender.posts) == 3

        await until(all_sent)
        told = {post.event.data.job_id: post.event.data.content for post in here.here.sender.posts}
        assert told == {result.job_id: result.content for result in results.values()}


async def test_a_paused_batch_sends_nothing_and_takes_what_was_sent(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    async with office(client, sqlite, sim) as here:
        sim.batches(hold=0, missing=1)
        asked = bodies(3)
        batch_id = await store_batch(sqlite, asked, lane="batch")
        await here.runs.pause(batch_id)
        await here.dispatch.start(batch_id)
        await asyncio.sleep(1)
        assert here.upstream(batch_id) == []
        await here.runs.resume(batch_id)
        await here.dispatch.start(batch_id)
        await here.until_upstream(batch_id, "RUNNING")
        await here.runs.pause(batch_id)
        sim.release_batches()
        await until(here.completed(batch_id, 2))
        await asyncio.sleep(1)
        assert (await here.batch(batch_id)).status is BatchStatus.PAUSED
        assert len(here.attempts_of(text_of(asked[0]))) == 1, "its live call waits"
        await here.runs.resume(batch_id)
        await here.dispatch.start(batch_id)
        assert (await here.ended(batch_id)).counts.completed == 3


async def test_a_pause_of_the_tenant_holds_what_is_not_sent(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    async with office(client, sqlite, sim) as here:
        pause = await PauseStore(sqlite).pause(tenant="default")
        batch_id = await here.submit(bodies(3))
        await asyncio.sleep(1)
        assert here.upstream(batch_id) == []
        await PauseStore(sqlite).resume(pause.pause_id)
        assert (await here.ended(batch_id)).counts.completed == 3
        assert len(here.upstream(batch_id)) == 1


async def test_many_looks_go_on_in_another_run(
    client: Client, sqlite: Database, sim: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "LONGEST_HISTORY", 60)
    sim.batches(hold=1)
    asked = bodies(4)
    async with office(client, sqlite, sim, replace(QUICK, batch_longest_look_seconds=0.1)) as here:
        batch_id = await here.submit(asked)
        first = await here.run_id(batch_id)

        async def is_another() -> bool:
            return await here.run_id(batch_id) != first

        await until(is_another)
        sim.release_batches()
        assert (await here.ended(batch_id)).counts.completed == 4
        assert all(len(here.attempts_of(text_of(one))) == 1 for one in asked)


async def test_parts_that_are_too_large_for_the_server_are_divided(
    client: Client, sqlite: Database, sim: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "MAX_REQUESTS", 4)
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(bodies(10))
        assert (await here.ended(batch_id)).counts.completed == 10
        assert sum(job["total_requests"] for job in here.upstream(batch_id)) == 10
        assert all(job["total_requests"] <= 4 for job in here.upstream(batch_id))


async def test_longer_answers_than_one_segment_go_on_live(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    text = prompt(tokens=30)
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit([body(text, max_tokens=20, maxSegments=2)])
        assert (await here.ended(batch_id)).counts.completed == 1
        (result,) = (await here.results(batch_id)).values()
        assert result.content == sim.answer(text)["text"]
        assert [call is None for call in here.attempts_of(text)] == [False, True]


async def test_an_answer_that_is_not_the_json_asked_for_is_repaired_live(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    """One that matches is done; one without a repair left fails, with its text."""
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"required": ["a"]}}}
    texts = (('{"a": 1}', 1), ('{"b": 1}', 1), ('{"c": 1}', 0))
    items = [
        body(prompt("JSON", text=text, repairs=[{"text": '{"a": 2}'}]), response_format=wanted, maxRepairs=repairs)
        for text, repairs in texts
    ]
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(items)
        await here.ended(batch_id)
        results = await here.results(batch_id)
    assert {name: (one.status.value, one.content) for name, one in results.items()} == {
        "item-0": ("completed", '{"a": 1}'),
        "item-1": ("completed", '{"a": 2}'),
        "item-2": ("failed", '{"c": 1}'),
    }
    error = results["item-2"].error
    assert error is not None
    assert error.code == "schema_mismatch"
    assert [entry["batch"] for entry in sim.requests()].count(None) == 1


async def test_another_run_of_a_batch_that_has_ended_finds_nothing_to_do(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    async with office(client, sqlite, sim) as here:
        batch_id = await here.submit(bodies(2))
        await here.ended(batch_id)
        before = sim.calls()
        await here.dispatch.start(batch_id)
        assert (await here.ended(batch_id)).counts.completed == 2
        assert sim.calls() == before


async def test_the_history_holds_no_text_and_stays_short(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    asked = bodies(30)
    async with office(client, sqlite, sim, replace(QUICK, batch_longest_look_seconds=0.1)) as here:
        sim.batches(hold=3)
        batch_id = await here.submit(asked)
        await here.until_upstream(batch_id, "RUNNING", answered=3)
        await asyncio.sleep(2)
        sim.release_batches()
        await here.ended(batch_id)
    history = await client.get_workflow_handle(batch_id).fetch_history()
    assert len(history.events) < 1_000
    assert text_of(asked[0]).split()[1] not in json.dumps(history.to_json_dict())
