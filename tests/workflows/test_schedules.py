"""Schedules of ours on real Temporal Schedules: what their runs are, and what becomes of them whatever happens.

The time-skipping test server has no Schedules ("CreateSchedule is unimplemented"). Changes of the clock are therefore
tested by a backfill of the days on which it changed, for which the real server starts the runs of those days; outages
by a real server that is killed and started again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import (
    Client,
    ScheduleActionExecutionStartWorkflow,
    ScheduleBackfill,
    ScheduleHandle,
    ScheduleOverlapPolicy,
    WorkflowExecutionStatus,
)
from temporalio.service import RPCError

from chatjobs.contracts import BatchStatus, JobStatus, ScheduleRun
from chatjobs.errors import ScheduleNotFound
from dispatch.sweeper import Sweeper
from domain.names import CHAT_BATCH
from domain.payloads import BatchStart
from domain.timings import Timings
from domain.values import StoredJob, StoredSchedule
from storage.batches.queries import BatchQueries
from storage.engine.database import Database
from storage.engine.schema import micros
from tests.support import migrated
from tests.support.factories import make_body
from tests.support.fakes import HELLO, Gate, eventually
from tests.support.house import HOOK, QUICK, House, house
from tests.support.temporal_server import temporal_server

pytestmark = pytest.mark.long

COMPLETED, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED
NEVER = "0 0 29 2 *"
"""A cron expression whose next run is years away: what runs was triggered by the test."""


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite, timings=QUICK) as running:
        yield running
        await forget(running)


async def forget(here: House) -> None:
    """Nothing of this test runs in the next one."""
    for schedule in await here.jobs.schedules.list("default", limit=100):
        await here.schedules.apply(await here.jobs.schedules.delete("default", schedule.id))
    for job in await here.jobs.queries.list(tenant="default"):
        try:
            await here.client.get_workflow_handle(job.run.workflow_id).terminate("the test is over")
        except RPCError:
            continue


async def made(here: House, schedule_id: str = "s", **fields: Any) -> StoredSchedule:
    """A schedule that Temporal has."""
    prompt = fields.pop("prompt", "Hello")
    request = make_body(prompt, **fields.pop("request", {}))
    timing = {} if "every" in fields else {"cron": NEVER}
    schedule, _ = await here.schedules.put(
        {"id": schedule_id, "request": request, **timing, **fields}, tenant="default"
    )
    await here.schedules.apply(schedule)
    return schedule


async def triggered(here: House, schedule_id: str = "s") -> StoredSchedule:
    schedule = await here.jobs.schedules.trigger("default", schedule_id)
    await here.schedules.apply(schedule)
    return schedule


async def jobs_of(
    here: House,
    count: int,
    schedule_id: str = "s",
    settled: Callable[[StoredJob], bool] = lambda job: job.status.terminal,
) -> list[StoredJob]:
    """The schedule's jobs, oldest first, once there are so many and each is ``settled``."""
    found: list[StoredJob] = []

    async def enough() -> bool:
        nonlocal found
        listed = await here.jobs.queries.list(tenant="default", schedule_id=schedule_id)
        found = sorted(listed, key=lambda job: job.job_id)
        return len(found) >= count and all(map(settled, found))

    await eventually(enough)
    assert len(found) == count
    return found


def times_of(jobs: Sequence[StoredJob]) -> list[str]:
    """The times of the runs, as in the ids: ``2026-03-28T013000Z``."""
    return [job.job_id[-18:] for job in jobs]


def sweeper(here: House) -> Sweeper:
    timings = Timings(unstarted_after_seconds=0, silent_after_seconds=0, schedule_look_seconds=0)
    return Sweeper(intake=here.intake, jobs=here.jobs, deliveries=here.deliveries, client=here.client, timings=timings)


# ----------------------------------------------------------------------------------------------------- a run


async def test_a_run_is_an_ordinary_job(here: House) -> None:
    """With the request's metadata and webhook, in the list by its schedule; its run ends as the job does."""
    await made(here, request={"metadata": {"report": "daily"}, "callback": HOOK})
    await triggered(here)
    (job,) = await jobs_of(here, 1)
    assert (job.status, job.schedule_id, job.metadata) == (COMPLETED, "s", {"report": "daily"})
    run = here.client.get_workflow_handle(job.run.workflow_id, run_id=job.run.run_id)
    result = await run.result()
    assert (result["jobId"], result["status"]) == (job.job_id, "completed")
    (delivered,) = here.sender.posts
    assert (delivered.event.data.job_id, delivered.event.data.content) == (job.job_id, "Hello there")
    assert [one.job_id for one in (await here.jobs.schedules.last_runs("default", ["s"]))["s"]] == [job.job_id]


async def test_temporal_has_no_prompt(here: House) -> None:
    schedule = await made(here, prompt="secret words", request={"metadata": {"also": "secret"}})
    await triggered(here)
    (job,) = await jobs_of(here, 1)
    described = await here.client.get_schedule_handle(schedule.name).describe()
    history = await here.client.get_workflow_handle(job.run.workflow_id).fetch_history()
    for text in (
        str(described.raw_description.SerializeToString()),
        *(str(e.SerializeToString()) for e in history.events),
    ):
        assert "secret" not in text


async def test_temporal_lists_it(here: House) -> None:
    """So that its UI does, with the next runs and the state."""
    schedule = await made(here, every=3600)
    await here.schedules.apply(await here.jobs.schedules.pause("default", "s", "for a while"))

    async def listed() -> bool:
        found = [one async for one in await here.client.list_schedules() if one.id == schedule.name]
        return bool(found and found[0].schedule and found[0].schedule.state.paused)

    await eventually(listed)


async def test_the_next_runs_are_those_that_temporal_names(here: House) -> None:
    await made(here, every=3600)
    stored = await here.jobs.schedules.get("default", "s")
    hour = 3600 * 1_000_000
    assert len(stored.next_runs) == 10
    assert stored.next_runs[0] - micros(datetime.now(UTC)) <= hour
    assert {later - earlier for earlier, later in zip(stored.next_runs, stored.next_runs[1:], strict=False)} == {hour}
    assert not stored.pending


async def test_a_run_that_temporal_starts_again_makes_no_second_job(here: House) -> None:
    """As after the return of an old backup of its database: the time of the run is in the job's id."""
    schedule = await made(here, cron="0 0 1 1 *")
    handle = here.client.get_schedule_handle(schedule.name)
    day = datetime(2026, 1, 1, tzinfo=UTC)
    for count in (1, 2):
        await handle.backfill(ScheduleBackfill(start_at=day - timedelta(hours=1), end_at=day + timedelta(hours=1)))

        async def started(count: int = count) -> bool:
            query = f"WorkflowId = '{schedule.name}-2026-01-01T00:00:00Z'"
            runs = [one async for one in here.client.list_workflows(query)]
            return [one.status for one in runs] == [WorkflowExecutionStatus.COMPLETED] * count

        await eventually(started)
    assert times_of(await jobs_of(here, 1)) == ["2026-01-01T000000Z"]
    assert here.model.calls == 1


async def test_a_request_that_is_refused_by_now_fails_its_job(here: House) -> None:
    """The rules may change after the schedule was made."""
    await made(here)
    schedule = await here.jobs.schedules.get("default", "s")
    await here.jobs.schedules.put("default", "s", schedule.timing, request='{"messages": []}', batch=None)
    await triggered(here)
    (job,) = await jobs_of(here, 1)
    whole = await here.jobs.queries.get(job.job_id)
    assert (whole.status, whole.error and whole.error.code) == (FAILED, "validation_failed")


# ------------------------------------------------------------------------------------------------- overlap


async def while_one_runs(here: House, overlap: str, gate: Gate, count: int = 2) -> list[StoredJob]:
    """Trigger so many runs while the first one waits; the schedule's jobs, once the first has been let go."""
    here.model.scripts = [[gate, *HELLO], HELLO]
    await made(here, overlap=overlap)
    await triggered(here)
    await gate.reached()
    for _ in range(count - 1):
        schedule = await triggered(here)
    handle = here.client.get_schedule_handle(schedule.name)

    async def decided() -> bool:
        """Temporal has acted on all requests, or buffers them."""
        found = await handle.describe()
        info = found.raw_description.info
        ended = info.overlap_skipped + info.buffer_size + info.action_count
        return bool(ended >= count) or overlap in ("cancel_other", "terminate_other")

    await eventually(decided)
    return list(await here.jobs.queries.list(tenant="default", schedule_id="s"))


@pytest.mark.parametrize(
    ("overlap", "beside", "after"),
    [("skip", 1, 1), ("buffer_one", 1, 2), ("buffer_all", 1, 3)],
)
async def test_what_follows_a_run_that_has_not_ended(here: House, overlap: str, beside: int, after: int) -> None:
    """Three runs are requested while the first waits for the model."""
    gate = Gate()
    assert len(await while_one_runs(here, overlap, gate, 3)) == beside
    gate.open()
    assert {job.status for job in await jobs_of(here, after)} == {COMPLETED}


async def _statuses(here: House, *statuses: JobStatus) -> bool:
    """Whether these are the statuses of the schedule's jobs, the oldest first."""
    found = await here.jobs.queries.list(tenant="default", schedule_id="s")
    return [job.status for job in sorted(found, key=lambda job: job.job_id)] == list(statuses)


async def test_allow_all_runs_beside_it(here: House) -> None:
    gate = Gate()
    await while_one_runs(here, "allow_all", gate, 2)
    await eventually(lambda: _statuses(here, JobStatus.IN_PROGRESS, COMPLETED))
    gate.open()
    await eventually(lambda: _statuses(here, COMPLETED, COMPLETED))


async def test_cancel_other_cancels_its_job(here: House) -> None:
    await while_one_runs(here, "cancel_other", Gate())
    assert [job.status for job in await jobs_of(here, 2)] == [CANCELLED, COMPLETED]


async def test_terminate_other_fails_its_job(here: House) -> None:
    """A sweeper sees that its run was terminated."""
    await while_one_runs(here, "terminate_other", Gate())
    await eventually(lambda: _statuses(here, JobStatus.IN_PROGRESS, COMPLETED))
    await sweeper(here).sweep()
    first, second = await jobs_of(here, 2)
    assert (first.status, first.error and first.error.code) == (FAILED, "terminated")
    assert second.status is COMPLETED


# ------------------------------------------------------------------------------------------------- batches


async def scheduled_batch(here: House, *prompts: str, **fields: Any) -> StoredSchedule:
    """A schedule of a batch with an item for each prompt, that Temporal has."""
    items = [{"custom_id": f"item-{number}", "body": make_body(prompt)} for number, prompt in enumerate(prompts)]
    body = {"id": "b", "cron": NEVER, "batch": {"items": items, "name": "nightly"}, **fields}
    schedule, _ = await here.schedules.put(body, tenant="default")
    await here.schedules.apply(schedule)
    return schedule


async def batches_of(here: House, *statuses: BatchStatus) -> list[ScheduleRun]:
    """The schedule's batches, newest first, once these are their statuses."""
    found: list[ScheduleRun] = []

    async def there() -> bool:
        nonlocal found
        found = list((await here.jobs.schedules.last_runs("default", ["b"]))["b"])
        return [run.status for run in found] == list(statuses)

    await eventually(there)
    return found


async def test_a_run_makes_a_batch(here: House) -> None:
    """An ordinary one, with its jobs; the run in Temporal ends as it does. Temporal has no prompt."""
    schedule = await scheduled_batch(here, "secret one", "secret two", "secret three")
    await triggered(here, "b")
    (run,) = await batches_of(here, BatchStatus.COMPLETED)
    batch = await BatchQueries(here.parts.database).get(str(run.batch_id), "default")
    assert (batch.name, batch.schedule_id, batch.counts.completed) == ("nightly", "b", 3)
    jobs = await here.jobs.queries.list(tenant="default")
    assert {(job.batch_id, job.status) for job in jobs} == {(run.batch_id, COMPLETED)}
    handle = here.client.get_workflow_handle(await last_run(here.client.get_schedule_handle(schedule.name)))
    result = await handle.result()
    assert (result["batchId"], result["status"]) == (run.batch_id, "completed")
    for event in (await handle.fetch_history()).events:
        assert b"secret" not in event.SerializeToString()


async def test_a_run_of_a_batch_that_temporal_starts_again_makes_no_second_batch(here: House) -> None:
    schedule = await scheduled_batch(here, "one", "two", cron="0 0 1 1 *")
    handle = here.client.get_schedule_handle(schedule.name)
    day = datetime(2026, 1, 1, tzinfo=UTC)
    query = f"WorkflowId = '{schedule.name}-2026-01-01T00:00:00Z'"
    for count in (1, 2):
        await handle.backfill(ScheduleBackfill(start_at=day - timedelta(hours=1), end_at=day + timedelta(hours=1)))

        async def started(count: int = count) -> bool:
            runs = [one async for one in here.client.list_workflows(query)]
            return [one.status for one in runs] == [WorkflowExecutionStatus.COMPLETED] * count

        await eventually(started)
    await batches_of(here, BatchStatus.COMPLETED)
    assert here.model.calls == 2


async def test_a_batch_that_runs_is_an_earlier_run(here: House) -> None:
    """The overlap policy sees it for as long as it lasts."""
    gate = Gate()
    here.model.scripts = [[gate, *HELLO], HELLO]
    schedule = await scheduled_batch(here, "one")
    await triggered(here, "b")
    await gate.reached()
    await triggered(here, "b")
    handle = here.client.get_schedule_handle(schedule.name)

    async def skipped() -> bool:
        return (await handle.describe()).info.num_actions_skipped_overlap == 1

    await eventually(skipped)
    gate.open()
    await batches_of(here, BatchStatus.COMPLETED)


async def test_cancel_other_cancels_its_batch(here: House) -> None:
    gate = Gate()
    here.model.scripts = [[gate, *HELLO], HELLO]
    await scheduled_batch(here, "one", overlap="cancel_other")
    await triggered(here, "b")
    await gate.reached()
    await triggered(here, "b")
    await batches_of(here, BatchStatus.COMPLETED, BatchStatus.CANCELLED)


async def test_a_batch_that_a_sweeper_has_started_is_waited_for(here: House) -> None:
    """Its workflow's id is taken then, and the run of the schedule looks for the end."""
    gate = Gate()
    here.model.scripts = [[gate, *HELLO]]
    schedule = await scheduled_batch(here, "one", cron="0 0 1 1 *")
    batch_id = f"batch_{schedule.name}-2026-01-01T000000Z"
    started = here.client.start_workflow(
        CHAT_BATCH, BatchStart(batch_id="batch_none"), id=batch_id, task_queue="a queue without workers"
    )
    other = await started
    day = datetime(2026, 1, 1, tzinfo=UTC)
    period = ScheduleBackfill(start_at=day - timedelta(hours=1), end_at=day + timedelta(hours=1))
    await here.client.get_schedule_handle(schedule.name).backfill(period)
    run = here.client.get_workflow_handle(f"{schedule.name}-2026-01-01T00:00:00Z")

    async def waits() -> bool:
        try:
            history = await run.fetch_history()
        except RPCError:
            return False
        return any(event.HasField("timer_started_event_attributes") for event in history.events)

    await eventually(waits)
    await run.terminate()
    await other.terminate()


# --------------------------------------------------------------------------------------- pause, change, delete


async def test_a_pause_holds_before_temporal_was_told(here: House) -> None:
    """Its runs make no job, but one that was requested does."""
    schedule = await made(here, every=2)
    await here.jobs.schedules.pause("default", "s", None)
    before = len(await here.jobs.queries.list(tenant="default", schedule_id="s"))
    handle = here.client.get_schedule_handle(schedule.name)

    earlier = await last_run(handle)

    async def another() -> str:
        found = await last_run(handle)
        return "" if found == earlier else found

    workflow_id = await eventually(another)
    result = await here.client.get_workflow_handle(workflow_id).result()
    assert result == {"schedule": schedule.name, "reason": "the schedule was paused"}
    assert len(await here.jobs.queries.list(tenant="default", schedule_id="s")) == before
    await triggered(here)
    (job, *_) = await jobs_of(here, before + 1)
    assert job.status is COMPLETED


async def last_run(handle: ScheduleHandle) -> str:
    """The workflow id of the schedule's last run; empty if there was none."""
    recent = (await handle.describe()).info.recent_actions
    last = recent[-1].action if recent else None
    return last.workflow_id if isinstance(last, ScheduleActionExecutionStartWorkflow) else ""


async def test_a_deleted_schedule_makes_no_job(here: House) -> None:
    """Also where Temporal was not told yet; then its schedule goes, and the row."""
    schedule = await made(here)
    await here.jobs.schedules.delete("default", "s")
    with pytest.raises(ScheduleNotFound):
        await here.jobs.schedules.get("default", "s")
    handle = here.client.get_schedule_handle(schedule.name)
    await handle.trigger()

    workflow_id = await eventually(lambda: last_run(handle))
    result = await here.client.get_workflow_handle(workflow_id).result()
    assert result["reason"] == "the schedule was deleted"
    assert await here.jobs.queries.list(tenant="default") == []
    await here.schedules.apply(schedule)
    with pytest.raises(RPCError, match="not found"):
        await handle.describe()
    assert await here.jobs.schedules.newest(schedule.uid) is None


async def test_a_change_reaches_temporal(here: House) -> None:
    schedule = await made(here, every=3600)
    changed = await made(here, cron="30 4 * * 1-5", timezone="Europe/Berlin", overlap="buffer_one", catchupSeconds=600)
    assert changed.uid == schedule.uid
    described = await here.client.get_schedule_handle(schedule.name).describe()
    assert described.schedule.policy.overlap is ScheduleOverlapPolicy.BUFFER_ONE
    assert described.schedule.policy.catchup_window == timedelta(seconds=600)
    assert {(one.hour, one.minute) for one in described.info.next_action_times} == {(3, 30)}


async def test_a_pause_in_temporals_ui_is_taken_over(here: House) -> None:
    schedule = await made(here, every=3600)
    handle = here.client.get_schedule_handle(schedule.name)
    await handle.pause(note="by hand")
    await here.schedules.apply(schedule)
    stored = await here.jobs.schedules.get("default", "s")
    assert (stored.paused, stored.note, stored.next_runs) == (True, "by hand", ())
    await handle.unpause(note="again")
    await here.schedules.apply(schedule)
    stored = await here.jobs.schedules.get("default", "s")
    assert (stored.paused, stored.note, len(stored.next_runs)) == (False, "again", 10)


async def test_tenants_may_use_the_same_id(here: House) -> None:
    body = {"id": "s", "cron": NEVER, "request": make_body()}
    for tenant in ("default", "other"):
        schedule, created = await here.schedules.put(body, tenant=tenant)
        assert created
        await here.schedules.apply(schedule)
        await here.schedules.apply(await here.jobs.schedules.trigger(tenant, "s"))
    await jobs_of(here, 1)
    assert len(await eventually(lambda: here.jobs.queries.list(tenant="other", schedule_id="s"))) == 1
    await here.schedules.apply(await here.jobs.schedules.delete("other", "s"))


# ---------------------------------------------------------------------------------------- changes of the clock


@pytest.mark.parametrize(
    ("first_day", "times"),
    [
        ("2026-03-27", ["2026-03-27T013000Z", "2026-03-28T013000Z", "2026-03-30T003000Z"]),
        ("2026-10-23", ["2026-10-23T003000Z", "2026-10-24T003000Z", "2026-10-25T013000Z", "2026-10-26T013000Z"]),
    ],
    ids=["a day without that time", "a day that has it twice"],
)
async def test_a_daily_run_in_a_time_zone(here: House, first_day: str, times: list[str]) -> None:
    """At 02:30 in Berlin, over four days around the change: skipped where there is none, once where there are two."""
    schedule = await made(here, cron="30 2 * * *", timezone="Europe/Berlin")
    start = datetime.fromisoformat(first_day).replace(tzinfo=UTC)
    period = ScheduleBackfill(start_at=start, end_at=start + timedelta(days=4), overlap=ScheduleOverlapPolicy.ALLOW_ALL)
    await here.client.get_schedule_handle(schedule.name).backfill(period)
    assert times_of(await jobs_of(here, len(times))) == times


# -------------------------------------------------------------------------------------------------- outages


async def test_a_schedule_that_temporal_lost_is_made_again(here: House) -> None:
    """By the next sweep; what was missed in between is made up for."""
    schedule = await made(here, every=2, overlap="allow_all")
    handle = here.client.get_schedule_handle(schedule.name)
    await handle.delete()
    lost = time.time()
    known = set(times_of(await here.jobs.queries.list(tenant="default", schedule_id="s")))
    await asyncio.sleep(4.5)  # two runs are missed
    await eventually(lambda: _swept(here, schedule))
    back = time.time()

    async def all_there() -> bool:
        times = {_second(one) for one in set(times_of(await here.jobs.queries.list(tenant="default"))) - known}
        return {second for second in range(int(lost) + 1, int(back)) if second % 2 == 0} <= times

    await eventually(all_there)


async def _swept(here: House, schedule: StoredSchedule) -> bool:
    """Make it due, sweep, and say whether Temporal has it."""
    stored = await here.jobs.schedules.newest(schedule.uid)
    assert stored is not None
    await here.schedules.apply(stored)
    try:
        await here.client.get_schedule_handle(schedule.name).describe()
    except RPCError:
        return False
    return True


def _second(time_of_run: str) -> int:
    return int(datetime.strptime(time_of_run, "%Y-%m-%dT%H%M%SZ").replace(tzinfo=UTC).timestamp())


async def test_runs_that_an_outage_kept_from_their_time(tmp_path: Path) -> None:
    """All of them where each may run and is not too late, one where the others would overlap it, none that is too
    late. Temporal is killed for 13 s; its shortest catch-up window is 10 s."""
    database = await Database.open(migrated.sqlite_file(tmp_path / "chatjobs.db"))
    with temporal_server(tmp_path / "temporal") as server:
        client = await server.connect()
        async with house(client, database, timings=QUICK) as here:
            await made(here, "all", every=2, overlap="allow_all")
            await made(here, "late", every=2, overlap="allow_all", catchupSeconds=10)
            await made(here, "hourly", every=3600)
            server.process.kill()
            down = time.time()
            await asyncio.sleep(13)
            up = time.time()
            await asyncio.to_thread(server.process.start)

            async def runs(schedule_id: str) -> set[int]:
                listed = await here.jobs.queries.list(tenant="default", schedule_id=schedule_id, limit=1_000)
                return {_second(one) for one in times_of(listed)}

            missed = {second for second in range(int(down) + 1, int(up)) if second % 2 == 0}

            async def caught_up() -> bool:
                return missed <= await runs("all")

            await eventually(caught_up)

            async def goes_on() -> bool:
                return any(second > up for second in await runs("late"))

            await eventually(goes_on)
            made_up = missed & await runs("late")
            assert made_up < missed
            assert min(made_up, default=up) > up - 11
            assert await runs("hourly") <= {
                second for second in range(int(down), int(time.time()) + 1) if second % 3600 == 0
            }
            for schedule in await here.jobs.schedules.list("default", limit=10):
                await here.schedules.apply(await here.jobs.schedules.delete("default", schedule.id))
    await database.close()


async def test_of_many_missed_runs_skip_makes_up_for_one(here: House) -> None:
    """While that one runs, the others would overlap it."""
    gate = Gate()
    here.model.scripts = [[gate, *HELLO], HELLO]
    schedule = await made(here, every=2)
    handle = here.client.get_schedule_handle(schedule.name)
    await handle.delete()
    before = len(await here.jobs.queries.list(tenant="default"))
    await asyncio.sleep(7)  # three runs are missed
    assert await _swept(here, schedule)

    async def skipped() -> bool:
        return (await handle.describe()).info.num_actions_skipped_overlap >= 2

    async def new_jobs() -> int:
        return len(await here.jobs.queries.list(tenant="default")) - before

    await eventually(skipped)
    assert await eventually(new_jobs) == 1  # its row may come after the others were skipped
    gate.open()
