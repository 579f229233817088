"""complete_chat: its attempts, its clocks, and what disturbs it. (What Mistral does on the wire has its own tests.)"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from temporalio.client import Client

from activities import completer, failures
from chatjobs.contracts import Backoff, ChatRequest, JobStatus, Retry
from domain.errors import FenceLost, StorageUnavailable, UpstreamInterrupted, UpstreamRateLimited
from domain.names import COMPLETIONS_QUEUE, JOBS_QUEUE, WEBHOOKS_QUEUE
from domain.ports import ModelEvent, StillWorking
from domain.timings import Timings
from domain.values import Claim
from storage.engine.database import Database
from storage.engine.schema import jobs
from storage.jobs.attempts import AttemptStore
from storage.rate_limits import limiter
from tests.support.fakes import HELLO, PATIENCE, STOP, Gate, GatedAttempts, ScriptedModel, Step, eventually, text
from tests.support.house import HOOK, QUICK, House, house, working
from tests.support.temporal_server import TemporalServer

REST = [JOBS_QUEUE, WEBHOOKS_QUEUE]
COMPLETED, FAILED = JobStatus.COMPLETED, JobStatus.FAILED
CUT = UpstreamInterrupted(code="upstream_cut")
DAY = 86_400 * 1_000_000


@pytest.fixture
def timings() -> Timings:
    return QUICK


def timed(**fields: Any) -> pytest.MarkDecorator:
    """The service of a test has these times."""
    return pytest.mark.parametrize("timings", [replace(QUICK, **fields)], ids=list(fields))


@pytest.fixture
async def here(client: Client, sqlite: Database, timings: Timings) -> AsyncIterator[House]:
    """A service whose attempts follow each other without a pause."""
    async with house(client, sqlite, timings=timings) as running:
        yield running


def outcomes(job: Any) -> list[str]:
    return [attempt.outcome for attempt in job.attempts]


# -------------------------------------------------------------------------------------------------- attempts


async def test_a_retry_goes_on(here: House) -> None:
    """From the last character; whoever was reading gets the rest."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), gate, CUT], HELLO]
    job_id = await here.submit(callback=HOOK)
    cursor = (await here.readable(job_id, 3)).cursor
    gate.open()
    job = await here.agree(job_id, COMPLETED)
    tail = await here.reader.read(cursor)
    assert (job.epoch, job.content, outcomes(job)) == (1, "Hello there", ["upstream_cut", "finished"])
    assert (tail.reset, "".join(run.text for run in tail.runs)) == (False, "lo there")
    assert here.model.continued == [None, "Hel"]


async def test_a_retry_starts_over(here: House) -> None:
    """If the caller wants it: a new epoch; whoever was reading is told to drop the text, and why."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), gate, CUT], HELLO]
    job_id = await here.submit(callback=HOOK, onInterrupt="restart")
    cursor = (await here.readable(job_id, 3)).cursor
    gate.open()
    job = await here.agree(job_id, COMPLETED)
    rest = await here.reader.read(cursor)
    assert (job.epoch, job.content, outcomes(job)) == (2, "Hello there", ["upstream_cut", "finished"])
    assert (rest.reset, rest.reset_reason, "".join(run.text for run in rest.runs)) == (True, "restart", "Hello there")
    assert job.usage_estimated  # of the first attempt only the text is known


async def test_a_retry_after_silence_resets_nobody(here: House) -> None:
    """Nothing was written, so there is nothing to drop."""
    here.model.scripts = [[CUT], [StillWorking(), CUT], HELLO]
    job = await here.agree(job_id := await here.submit(callback=HOOK), COMPLETED)
    assert (job.epoch, outcomes(job)) == (1, ["upstream_cut", "upstream_cut", "finished"])
    assert (await here.watched(job_id)).resets == 0


@timed(longest_throttle_pause_seconds=0.01)
async def test_throttling_costs_no_failure(here: House) -> None:
    """Any number of 429 leaves the budget as it was."""
    here.model.scripts = [*[[UpstreamRateLimited()]] * 8, *[[CUT]] * 4, *[[UpstreamRateLimited()]] * 3, HELLO]
    job = await here.agree(await here.submit(callback=HOOK), COMPLETED)
    throttled = "upstream_rate_limited"
    assert outcomes(job) == [throttled] * 8 + ["upstream_cut"] * 4 + [throttled] * 3 + ["finished"]


@pytest.mark.parametrize(("asked", "waits"), [(0.0, 1), (7.0, 7), (99_999_999.0, 300), (None, 1)])
async def test_a_throttled_job_waits_in_temporal(here: House, asked: float | None, waits: float) -> None:
    """As long as the server asks, between a second and five minutes, and but for the last moment without a slot."""
    here.model.scripts = [[UpstreamRateLimited(retry_after=asked)]]
    begin = time.monotonic()
    job_id = await here.submit()
    pause = await next_attempt(here, job_id)
    passed = time.monotonic() - begin  # the pause is counted from the answer of the model
    comes_back = pause.current_retry_interval.ToNanoseconds() / 1e9
    assert waits - limiter.EARLY_SECONDS - passed <= comes_back <= waits + 0.1
    assert here.model.open_streams == 0


async def next_attempt(here: House, job_id: str) -> Any:
    """The activity of a job, once Temporal waits before its next attempt."""

    async def look() -> Any:
        pending = (await here.run(job_id).describe()).raw_description.pending_activities
        return pending[0] if pending and pending[0].HasField("current_retry_interval") else None

    return await eventually(look)


@settings(deadline=None)
@given(retry_after=st.none() | st.floats(allow_nan=False), throttles=st.integers(0, 10**9))
def test_a_throttle_pause_is_between_a_second_and_five_minutes(retry_after: float | None, throttles: int) -> None:
    """Whatever the server asks for, and however often."""
    assert 1 <= failures.throttle_pause(retry_after, throttles) <= 300


@settings(deadline=None)
@given(st.integers(1, 10**9))
def test_a_failure_pause_doubles_up_to_half_a_minute(number: int) -> None:
    """From half a second, and a fifth more at the most."""
    least = min(0.5 * 2.0 ** min(number - 1, 10), 30)
    assert least <= failures.failure_pause(number, Backoff()) <= least * 1.2


@settings(deadline=None)
@given(st.integers(1, 10**9), st.integers(0, 3_600_000))
def test_a_pause_is_never_shorter_than_its_backoff(number: int, delay: int) -> None:
    """Fixed or exponential; only the exponential one grows, and not beyond half a minute by itself."""
    fixed = failures.failure_pause(number, Backoff(type="fixed", delay=delay))
    grown = failures.failure_pause(number, Backoff(type="exponential", delay=delay))
    assert delay / 1000 <= fixed <= delay / 1000 * 1.2
    assert delay / 1000 <= grown <= max(30, delay / 1000) * 1.2


def test_what_is_given_up_says_so_within_bounds() -> None:
    """The reason is cut, and not the end of the message."""
    error = failures.from_upstream(UpstreamInterrupted("x" * 1000), failures.Tally(5, 5), Retry(), throttles=0)
    assert error.non_retryable
    assert len(error.message) == 500
    assert error.message.endswith("… (given up after 5 failures)")


async def test_an_attempt_that_lost_its_job_does_not_seal_it(here: House) -> None:
    """Another one has taken the job over: this run fails, and the row is not touched."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), gate, *text("lo"), STOP]]
    job_id = await here.submit()
    await here.readable(job_id, 3)
    claim = await here.jobs.attempts.claim(job_id, fence=2**62, claimant="another", run_id="another")
    gate.open()
    assert (await here.failure(job_id)).type == FenceLost.code
    job = await here.jobs.queries.get(job_id)
    assert (job.status, job.content, claim.outcome) == (JobStatus.IN_PROGRESS, "Hel", "taken")


class ForgetfulAttempts(GatedAttempts):
    """Cannot write how an attempt ended, at first."""

    failures_left = 2

    async def end(self, *args: Any, **kwargs: Any) -> None:
        if ForgetfulAttempts.failures_left:
            ForgetfulAttempts.failures_left -= 1
            raise StorageUnavailable
        await AttemptStore.end(self, *args, **kwargs)


@timed(recording_pauses_seconds=(0.01, 0.05))
async def test_an_attempt_whose_end_is_written_late_was_not_lost(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt believes that its worker died, until the database takes what it had to say."""
    monkeypatch.setattr(ForgetfulAttempts, "failures_left", 2)
    monkeypatch.setattr(GatedAttempts, "end", ForgetfulAttempts.end, raising=False)
    gate = Gate()
    here.model.scripts = [[*text("Hel"), CUT], [gate, *text("lo"), STOP]]
    job_id = await here.submit(callback=HOOK)
    await gate.reached()
    await next_outcome(here, job_id, "upstream_cut")
    gate.open()
    job = await here.agree(job_id, COMPLETED)
    assert (outcomes(job), job.content) == (["upstream_cut", "finished"], "Hello")


class BrokenAttempts(GatedAttempts):
    """Its claims raise what no storage should."""

    async def claim(self, *args: Any, **kwargs: Any) -> Claim:
        raise RuntimeError("with the-prompt in it")


@timed(claim_patience_seconds=1.0)
async def test_an_error_of_our_own_before_the_claim(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, not for ever, and tells Temporal no more than its name."""
    monkeypatch.setattr(GatedAttempts, "claim", BrokenAttempts.claim)
    failure = await here.failure(job_id := await here.submit())
    assert (
        failure.message == "An error in this service (RuntimeError); see the worker's log (given up after 5 failures)"
    )
    assert (failure.type, (await here.jobs.queries.get(job_id)).status) == ("internal", FAILED)


@timed(heartbeat_seconds=0.05)
async def test_an_attempt_whose_heartbeats_end(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could cancel it any more, so it ends, and another one begins."""
    gate, beats = Gate(), iter([{"phase": "one"}])
    here.model.scripts = [[gate], HELLO]
    monkeypatch.setattr(completer.AttemptReport, "now", lambda self: next(beats, None) or self["no"])
    job_id = await here.submit(callback=HOOK)
    await gate.reached()
    await next_outcome(here, job_id)
    monkeypatch.undo()
    job = await here.agree(job_id, COMPLETED)
    assert outcomes(job)[0] == "internal"


async def next_outcome(here: House, job_id: str, outcome: str | None = None) -> None:
    async def look() -> bool:
        return any(
            attempt.outcome and outcome in (None, attempt.outcome)
            for attempt in (await here.jobs.queries.get(job_id)).attempts
        )

    await eventually(look)


# ------------------------------------------------------------------------------------------------- the clocks


async def test_a_wall_clock_that_jumps_ends_nothing(here: House) -> None:
    """The row's times are a day old, by the clock of another machine: neither queue nor total time is over."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), gate, CUT], HELLO]
    job_id = await here.accept(callback=HOOK)
    await age(here, job_id, created_at=jobs.c.created_at - DAY)
    await here.start(job_id)
    await here.readable(job_id, 3)
    await age(here, job_id, started_at=jobs.c.started_at - DAY)
    gate.open()
    await here.agree(job_id, COMPLETED)


async def age(here: House, job_id: str, **values: Any) -> None:
    async with here.parts.database.write() as connection:
        await connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))


async def test_a_slow_database_is_not_the_models_fault(here: House, tmp_path: Path) -> None:
    """While text waits for the database the stall clock stands still."""
    full, locked = Gate(), Gate()
    here.model.scripts = [[*text("Hel"), full, locked, *text(*["x" * 100_000] * 3), *text("lo"), STOP]]
    job_id = await here.submit(limits={"stallSeconds": 0.2}, callback=HOOK)
    await full.reached()
    with database_lock(tmp_path):
        full.open()
        locked.open()
        await asyncio.sleep(0.6)
    job = await here.agree(job_id, COMPLETED)
    assert (len(job.content or ""), outcomes(job)) == (300_005, ["finished"])


@contextmanager
def database_lock(directory: Path) -> Iterator[None]:
    """Nobody else can write meanwhile."""
    with closing(sqlite3.connect(directory / "chatjobs.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_a_cancel_while_the_database_is_slow(here: House, tmp_path: Path) -> None:
    """The text that came before it is still written; then the job is sealed."""
    gate, written = Gate(), Gate()
    here.model.scripts = [[*text("Hel"), gate, *text("lo"), written]]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    with database_lock(tmp_path):
        gate.open()
        await written.reached()
        await here.run(job_id).cancel()
        await nothing_streams(here)
    job = await here.agree(job_id, JobStatus.CANCELLED)
    assert (job.content, outcomes(job)) == ("Hello", ["cancelled"])


async def nothing_streams(here: House) -> None:
    async def idle() -> bool:
        return here.model.open_streams == 0

    await eventually(idle)


class HangsUpBadly(ScriptedModel):
    """Its answer is whole, but closing the connection fails, or takes for ever."""

    def __init__(self, hang: Step) -> None:
        super().__init__(HELLO)
        self._hang = hang

    async def stream(self, request: ChatRequest, continue_from: str | None = None) -> AsyncGenerator[ModelEvent, None]:
        try:
            async for event in super().stream(request, continue_from):
                yield event
        finally:
            if isinstance(self._hang, Exception):
                raise self._hang
            await asyncio.sleep(PATIENCE * 10)


@pytest.mark.parametrize("hang", [CUT, 0.0], ids=["fails", "hangs"])
async def test_trouble_while_hanging_up_costs_nothing(client: Client, sqlite: Database, hang: Step) -> None:
    """What counts is that the answer came whole."""
    async with house(client, sqlite, model=HangsUpBadly(hang)) as here:
        job = await here.agree(await here.submit(limits={"stallSeconds": 0.1}, callback=HOOK), COMPLETED)
        assert (job.content, here.model.calls) == ("Hello there", 1)


# -------------------------------------------------------------------------------------------- disturbances


@pytest.mark.parametrize(
    ("place", "grace", "outcome"),
    [
        ("first token", 20, ["handed_over"]),
        ("mid-stream", 20, ["handed_over"]),
        ("mid-stream", 0, ["handed_over", "lost"]),
        ("database", 0.1, ["lost"]),
    ],
)
async def test_a_worker_that_stops_hands_over(
    temporal: TemporalServer, sqlite: Database, tmp_path: Path, place: str, grace: float, outcome: list[str]
) -> None:
    """At once, whatever it waits for, without a failure; another worker goes on."""
    gate = Gate()
    scripts: dict[str, list[Step]] = {
        "first token": [gate, Gate()],
        "mid-stream": [*text("Hel"), gate, Gate()],
        "database": [*text("Hel"), gate, *text(*["x" * 100_000] * 5), Gate()],
    }
    model = ScriptedModel(scripts[place], HELLO)
    async with house(await temporal.connect(), sqlite, model=model, queues=REST, chatjobs_grace_seconds=grace) as here:
        job_id = await here.submit(callback=HOOK)
        lock = database_lock(tmp_path) if place == "database" else nullcontext()
        took = await a_worker_comes_and_goes(here, await temporal.connect(), gate, lock)
        async with working(replace(here.parts, client=await temporal.connect()), [COMPLETIONS_QUEUE]):
            job = await here.agree(job_id, COMPLETED)
    assert outcomes(job) in [[first, "finished"] for first in outcome]
    said = model.continued[-1] or ""
    assert job.content == ("Hello there" if "Hello there".startswith(said) else f"{said}Hello there")
    assert model.open_streams == 0
    assert took < (8 if lock else 2)  # a statement that waits for a lock is waited for, up to 5 s


async def a_worker_comes_and_goes(
    here: House, client: Client, gate: Gate, trouble: AbstractContextManager[None]
) -> float:
    """A worker for completions, until its model is at the gate and there is trouble. How long it took to stop."""
    with ExitStack() as until_it_is_gone:
        async with working(replace(here.parts, client=client), [COMPLETIONS_QUEUE]):
            await gate.reached()
            until_it_is_gone.enter_context(trouble)
            gate.open()
            await asyncio.sleep(0.05)
            began = time.monotonic()
    return time.monotonic() - began


async def test_an_activity_that_an_operator_pauses(temporal: TemporalServer, here: House) -> None:
    """The stream ends without a failure, and goes on with a new attempt once it is unpaused."""
    here.model.scripts = [[*text("Hel"), Gate()], HELLO]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    which = ("--workflow-id", job_id, "--activity-id", "1")
    await temporal.cli("activity", "pause", *which)
    await next_outcome(here, job_id)
    assert (here.model.open_streams, here.model.calls) == (0, 1)
    await temporal.cli("activity", "unpause", *which)
    job = await here.agree(job_id, COMPLETED)
    assert outcomes(job) == ["handed_over", "finished"]


async def test_an_activity_that_an_operator_resets(temporal: TemporalServer, here: House) -> None:
    """As with a pause, but the next attempt begins at once, and Temporal counts from one again."""
    here.model.scripts = [[*text("Hel"), Gate()], HELLO]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    await temporal.cli("activity", "reset", "--workflow-id", job_id, "--activity-id", "1")
    job = await here.agree(job_id, COMPLETED)
    assert outcomes(job) == ["handed_over", "finished"]
