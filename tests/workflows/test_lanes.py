"""The limiter through the whole service: three worker processes, and a simulator that logs when calls start.

Each test has a model of its own, and so a lane of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import update
from temporalio.client import Client, WorkflowFailureError

from chatjobs.contracts import Job, JobStatus
from storage.engine.database import Database
from storage.engine.schema import lanes
from storage.rate_limits.limiter import Limiter
from tests.support.cancelling import cancel
from tests.support.factories import make_body
from tests.support.fakes import HELLO, Gate, ScriptedModel
from tests.support.house import House, house
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

LIMIT = 10
SIMULATOR_LATE_SECONDS = 0.1
PAUSE = 3


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"MISTRAL_REQUESTS_PER_SECOND": str(LIMIT), "CHATJOBS_CONCURRENCY": "20"}
    with stack(tmp_path_factory.mktemp("lanes"), workers=3, env=env) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


async def submit(live: Service, message: str, *, tenant: str = "many", **fields: Any) -> str:
    accepted = await live.intake.accept(make_body(message, **fields), tenant=tenant)
    await live.intake.start(accepted)
    return accepted.job_id


def calls(live: Service, model: str) -> list[dict[str, Any]]:
    """The simulator's log of the calls of a model, in order."""
    return [entry for entry in live.stack.simulator.requests() if entry["model"] == model]


def most_in_a_second(starts: Sequence[float]) -> int:
    """The fullest of all windows of one second, wherever they begin; less what the simulator may be late in looking
    at its clock on a busy machine. (tests/storage/test_limiter.py looks at the very second.)"""
    window = 1 - SIMULATOR_LATE_SECONDS
    return max(sum(first <= start < first + window for start in starts) for first in starts)


def gaps(starts: Sequence[float]) -> str:
    """Milliseconds between them."""
    return " ".join(str(round((later - start) * 1000)) for start, later in itertools.pairwise(starts))


async def completed(live: Service, ids: Sequence[str]) -> list[Job]:
    jobs = await asyncio.gather(*(live.ended(job_id) for job_id in ids))
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    return jobs


async def test_sixty_jobs_keep_to_the_limit_and_to_their_order(live: Service) -> None:
    """No second sees an eleventh call; urgent jobs overtake a flood, and a tenant with four is not last."""
    model = "ministral-8b-latest"
    limiter, name = await paced(live, model, 0.02)
    called = len(calls(live, model))
    flood = [await submit(live, prompt("flood", tokens=3), model=model) for _ in range(52)]
    few = [await submit(live, prompt("few", tokens=3), model=model, tenant="few") for _ in range(4)]
    urgent = [await submit(live, prompt("urgent", tokens=3), model=model, priority=1) for _ in range(4)]
    await all_wait(limiter, name, 59)
    await limiter.set_limit(name, None)
    jobs = await completed(live, [*flood, *few, *urgent])
    assert {len(job.attempts) for job in jobs} == {1}, "to wait for one's turn is no attempt"
    log = calls(live, model)[called:]
    starts = [entry["time"] for entry in log]
    assert len(starts) == 60
    assert most_in_a_second(starts) <= LIMIT, gaps(starts)
    order = [entry["prompt"].split()[0] for entry in log]
    assert max(place for place, word in enumerate(order) if word == "urgent") < 10, order
    assert max(place for place, word in enumerate(order) if word == "few") < 25, order
    raised = starts[1:]  # the first may have started at the old pace
    assert (len(raised) - 1) / (raised[-1] - raised[0]) > LIMIT / 2


async def test_a_refusal_pauses_its_lane_alone(live: Service) -> None:
    """429 with Retry-After: nobody of the lane calls until then, another lane goes on; it costs no failure budget."""
    paused, other = "open-mistral-nemo", "codestral-latest"
    refused = await submit(live, prompt(tokens=3, faults=[{"kind": 429, "retry_after": PAUSE}]), model=paused)
    while not calls(live, paused):  # noqa: ASYNC110 - the log is in another process
        await asyncio.sleep(0.02)
    behind = [await submit(live, prompt(tokens=3), model=paused) for _ in range(5)]
    beside = await completed(live, [await submit(live, prompt(tokens=3), model=other) for _ in range(5)])
    (job, *_) = await completed(live, [refused, *behind])
    assert [attempt.outcome for attempt in job.attempts] == ["upstream_rate_limited", "finished"]
    first, *later = [entry["time"] for entry in calls(live, paused)]
    assert len(later) == 6
    assert min(later) - first >= PAUSE
    assert most_in_a_second(later) <= LIMIT
    assert max(entry["time"] for entry in calls(live, other)) < min(later), "another lane does not wait"
    assert len(beside) == 5


async def test_refusals_are_no_failures(live: Service) -> None:
    """More of them than a job may have failures."""
    faults = [{"kind": 429, "retry_after": 1}] * 6
    (job,) = await completed(live, [await submit(live, prompt(tokens=3, faults=faults), model="pixtral-large-latest")])
    assert [attempt.outcome for attempt in job.attempts] == ["upstream_rate_limited"] * 6 + ["finished"]


async def test_a_key_without_allowance(live: Service) -> None:
    """It will not get any by waiting: the job fails at once, and says why."""
    faults = [{"kind": 429, "variant": "no_allowance"}]
    job = await live.ended(await submit(live, prompt(faults=faults), model="magistral-small-latest"))
    assert job.error is not None
    assert (job.status, job.error.code, len(job.attempts)) == (JobStatus.FAILED, "upstream_no_allowance", 1)


async def test_a_cancel_while_the_lane_is_paused(live: Service) -> None:
    """It is not waited for, and whoever comes next does not wait for the cancelled one's place."""
    model = "mistral-medium-latest"
    refused = await submit(live, prompt(tokens=3, faults=[{"kind": 429, "retry_after": 60}]), model=model)
    limiter = Limiter(live.database, per_second=LIMIT)
    async with asyncio.timeout(20):
        while not any(one.paused_until for one in await limiter.lanes() if one.name.endswith("mistral-medium")):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    waiting = [await submit(live, prompt(tokens=3), model=model) for _ in range(3)]
    for job_id in (refused, *waiting):
        await cancel(live, job_id)
    async with asyncio.timeout(30):
        assert {(await live.ended(job_id)).status for job_id in (refused, *waiting)} == {JobStatus.CANCELLED}
    assert len(calls(live, model)) == 1


async def paced(live: Service, model: str, per_second: float) -> tuple[Limiter, str]:
    """A lane of that pace, and its name; a job makes it."""
    limiter = Limiter(live.database, per_second=LIMIT)
    before = {lane.name for lane in await limiter.lanes()}
    await completed(live, [await submit(live, prompt("first", tokens=2), model=model)])
    (name,) = {lane.name for lane in await limiter.lanes()} - before
    await limiter.set_limit(name, per_second)
    return limiter, name


async def all_wait(limiter: Limiter, name: str, count: int) -> None:
    async with asyncio.timeout(60):
        while True:
            (lane,) = [lane for lane in await limiter.lanes() if lane.name == name]
            if lane.waiting >= count:
                return
            await asyncio.sleep(0.05)


async def test_a_raised_limit_frees_all_who_wait(live: Service) -> None:
    """They were told to come back over the next 40 minutes; they start at the new pace, in order."""
    model, count = "mistral-large-2411", 40
    limiter, name = await paced(live, model, 0.02)
    ids = [await submit(live, prompt(f"{number}", tokens=2), model=model) for number in range(count)]
    await all_wait(limiter, name, count - 1)
    called = len(calls(live, model))
    raised = time.time()
    await limiter.set_limit(name, None)
    await completed(live, ids)
    log = calls(live, model)[called:]
    starts = [entry["time"] for entry in log]
    assert starts[0] - raised < 2
    assert starts[-1] - raised < 2 + 2 * count / LIMIT
    assert most_in_a_second(starts) <= LIMIT
    order = [int(entry["prompt"].split()[0]) for entry in log]
    assert max(abs(number - place) for place, number in enumerate(order, start=order[0])) <= 12, order


async def test_the_end_of_a_pause_frees_all_who_wait(live: Service) -> None:
    """An operator's reset of a lane that the model had paused for minutes."""
    model = "mistral-small-latest"
    limiter, name = await paced(live, model, LIMIT)
    await limiter.throttle(name, 200)
    ids = [await submit(live, prompt(f"{number}", tokens=2), model=model) for number in range(5)]
    await all_wait(limiter, name, 5)
    assert (await limiter.queue_places(ids))[ids[0]].reason == "paused"
    async with live.database.write() as connection:
        await connection.execute(update(lanes).where(lanes.c.name == name).values(paused_until=0))
    ended = time.time()
    await completed(live, ids)
    assert calls(live, model)[-1]["time"] - ended < 3


async def test_a_tenant_that_comes_later_goes_next(live: Service) -> None:
    """One call in half a second and ten jobs of one tenant: the other's first is not behind them."""
    model = "ministral-3b-latest"
    limiter, name = await paced(live, model, 2)
    many = [await submit(live, prompt(f"many {number}", tokens=2), model=model) for number in range(10)]
    await all_wait(limiter, name, 6)
    few = [await submit(live, prompt(f"few {number}", tokens=2), model=model, tenant="few") for number in range(3)]
    await all_wait(limiter, name, 8)
    seen = len(calls(live, model))
    places = await limiter.queue_places({*many, *few})
    await completed(live, [*many, *few])
    log = calls(live, model)[1:]
    starts = [entry["time"] for entry in log]
    words = [entry["prompt"].split()[0] for entry in log]
    assert words[seen - 1 :].index("few") <= 2, words
    assert len(set(words[-3:])) == 1, "they take turns, and the rest is of one"
    late = SIMULATOR_LATE_SECONDS * len(starts)
    assert (len(starts) - 1) / (starts[-1] - starts[0] - late) >= 2 * 0.95, "the lane stands idle between two of them"
    assert sorted(place.position for place in places.values()) == list(range(1, len(places) + 1))


async def test_a_granted_turn_does_not_outlive_a_refusal(live: Service) -> None:
    """At most the calls that are on the wire follow a 429."""
    model = "pixtral-12b-2409"
    await paced(live, model, LIMIT)
    faults = [{"kind": 429, "retry_after": PAUSE}]
    ids = [
        await submit(live, prompt(f"{number}", tokens=2, faults=faults if number == 10 else []), model=model)
        for number in range(30)
    ]
    await completed(live, ids)
    log = calls(live, model)
    (refused,) = [entry["time"] for entry in log if entry["status"] == 429]
    assert [entry for entry in log if refused + 0.1 < entry["time"] < refused + PAUSE - 0.05] == []


async def test_a_time_in_the_queue_ends_in_the_lane(live: Service) -> None:
    """With a worker that is free, and a turn that is minutes away."""
    model = "open-mixtral-8x7b"
    await paced(live, model, 0.01)
    await completed(live, [await submit(live, prompt("ahead", tokens=2), model=model)])
    before = len(calls(live, model))
    began = time.monotonic()
    ids = [
        await submit(live, prompt("late", tokens=2), model=model, limits={"queueSeconds": seconds})
        for seconds in (1, 2, 3)
    ]
    for seconds, job_id in zip((1, 2, 3), ids, strict=True):
        job = await live.ended(job_id)
        assert job.error is not None
        assert (job.status, job.error.code, job.attempts) == (JobStatus.FAILED, "queue_timeout", ())
        assert seconds <= time.monotonic() - began < seconds + 3
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(live.run(job_id).result(), 10)
    assert len(calls(live, model)) == before


# ------------------------------------------------------------------------------------------- Temporal's own queue


async def test_tenants_take_turns_in_temporals_queue(client: Client, sqlite: Database) -> None:
    """A worker with a single place: a later tenant is not behind twenty jobs of another, an urgent one behind none."""
    gate = Gate()
    model = ScriptedModel([gate, *HELLO], HELLO)
    async with house(client, sqlite, model=model, chatjobs_concurrency=1, mistral_requests_per_second=1000) as here:
        first = await begun(here, "first")
        await gate.reached()
        many = [await begun(here, f"many {number}") for number in range(20)]
        few = await begun(here, "few", tenant="few")
        urgent = await begun(here, "urgent", priority=1)
        for job_id in (many[-1], few, urgent):
            await scheduled(here, job_id)
        gate.open()
        for job_id in (first, *many, few, urgent):
            assert (await here.ended(job_id)).status is JobStatus.COMPLETED
    order = [request.messages[0].model_dump()["content"] for request in model.requests]
    assert order.index("urgent") == 1, order
    assert order.index("few") < 6, order


async def begun(here: House, words: str, *, tenant: str = "many", **fields: Any) -> str:
    accepted = await here.intake.accept(make_body(words, **fields), tenant=tenant)
    await here.intake.start(accepted)
    here.started.append(accepted.job_id)
    info = (await here.run(accepted.job_id).describe()).raw_description.workflow_execution_info
    assert (info.priority.priority_key, info.priority.fairness_key) == (fields.get("priority", 3), tenant)
    return accepted.job_id


async def scheduled(here: House, job_id: str) -> None:
    """Its completion waits for a worker."""
    async with asyncio.timeout(20):
        while not (await here.run(job_id).describe()).raw_description.pending_activities:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
