"""Schedules in storage, and the times at which a sweeper looks at them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from chatjobs.contracts import ScheduleTiming
from chatjobs.errors import ScheduleNotFound
from domain.new_jobs import new_job
from domain.values import StoredSchedule
from storage.engine.database import Database
from storage.jobs.schedules import ScheduleStore
from storage.jobs.store import JobStore
from tests.support.factories import make_body

HOURLY = ScheduleTiming(cron="@hourly")
DAILY = ScheduleTiming(cron="@daily", timezone="Europe/Berlin", overlap="allow_all")
REQUEST = '{"messages":[]}'
MINUTE = timedelta(minutes=1)


@pytest.fixture
def schedules(store: JobStore) -> ScheduleStore:
    return store.schedules


async def put(schedules: ScheduleStore, timing: ScheduleTiming = HOURLY, tenant: str = "default") -> StoredSchedule:
    return (await schedules.put(tenant, "s", timing, request=REQUEST, batch=None))[0]


async def test_many_at_once_make_one(schedules: ScheduleStore) -> None:
    made = await asyncio.gather(
        *(schedules.put("default", "s", HOURLY, request=REQUEST, batch=None) for _ in range(20))
    )
    assert [created for _, created in made].count(True) == 1
    assert len({one.uid for one, _ in made}) == 1
    assert {one.revision for one, _ in made} == {1}


async def test_another_content_is_a_change_and_the_same_is_none(schedules: ScheduleStore) -> None:
    first = await put(schedules)
    await schedules.pause("default", "s", "later")
    same = await put(schedules)
    assert (same.revision, same.updated_at > first.updated_at, same.paused) == (2, True, True)
    changed = await put(schedules, DAILY)
    assert (changed.uid, changed.revision, changed.timing, changed.paused) == (first.uid, 3, DAILY, True)
    assert changed.created_at == first.created_at
    assert await schedules.get("default", "s") == changed


async def test_tenants_do_not_see_each_others(schedules: ScheduleStore) -> None:
    mine, theirs = await put(schedules), await put(schedules, DAILY, tenant="other")
    assert mine.uid != theirs.uid
    await schedules.delete("other", "s")
    assert await schedules.get("default", "s") == mine
    for call in (schedules.get, schedules.trigger, schedules.delete):
        with pytest.raises(ScheduleNotFound):
            await call("other", "s")
    with pytest.raises(ScheduleNotFound):
        await schedules.pause("other", "s", None)


async def test_a_deleted_one_makes_room_for_a_new_one(schedules: ScheduleStore) -> None:
    """Under the same id, also before Temporal was told of the deletion."""
    first = await put(schedules)
    deleted = await schedules.delete("default", "s")
    second = await put(schedules)
    assert second.uid != first.uid
    assert [one.uid for one in await schedules.list("default", limit=10)] == [second.uid]
    assert await schedules.of_run(first.name) is None
    assert await schedules.of_run(second.name) == second
    await schedules.remove(deleted)
    assert await schedules.newest(first.uid) is None
    assert await schedules.newest(second.uid) == second


async def test_a_change_is_due_once_its_caller_has_had_time(schedules: ScheduleStore, database: Database) -> None:
    schedule = await put(schedules)
    assert await schedules.take_due() == []
    await schedules.record_applied(schedule, [1, 2], -MINUTE)
    taken = await asyncio.gather(*(schedules.take_due() for _ in range(5)))
    assert [one.uid for found in taken for one in found] == [schedule.uid]
    assert (await schedules.get("default", "s")).next_runs == (1, 2)


async def test_what_changed_meanwhile_stays_to_be_told(schedules: ScheduleStore) -> None:
    first = await put(schedules)
    await schedules.pause("default", "s", None)
    await schedules.record_applied(first, [], MINUTE)
    now = await schedules.get("default", "s")
    assert (now.applied, now.revision, now.pending) == (0, 2, True)
    await schedules.record_applied(now, [], MINUTE)
    requested = await schedules.trigger("default", "s")
    assert (await schedules.get("default", "s")).pending
    await schedules.record_applied(now, [], MINUTE)
    assert (await schedules.get("default", "s")).trigger_at == requested.trigger_at
    await schedules.record_applied(requested, [], MINUTE)
    assert not (await schedules.get("default", "s")).pending


async def test_requested_runs_have_seconds_of_their_own(schedules: ScheduleStore) -> None:
    """A run is known by the second of its time: none of the schedule's own, none of an earlier request's."""
    await schedules.put("default", "s", ScheduleTiming(every=2), request=REQUEST, batch=None)
    seconds = []
    for _ in range(3):
        requested = await schedules.trigger("default", "s")
        assert requested.trigger_at is not None
        assert (await schedules.trigger("default", "s")).trigger_at == requested.trigger_at
        await schedules.record_applied(requested, [], MINUTE)
        seconds.append(requested.trigger_at // 1_000_000)
    assert len(set(seconds)) == 3
    assert {second % 2 for second in seconds} == {1}


async def test_the_list_is_in_pages(schedules: ScheduleStore) -> None:
    for number in range(5):
        await schedules.put("default", f"s-{number}", HOURLY, request=REQUEST, batch=None)
    first = await schedules.list("default", limit=3)
    rest = await schedules.list("default", after=first[-1].id, limit=3)
    assert [one.id for one in (*first, *rest)] == [f"s-{number}" for number in range(5)]


async def test_the_newest_jobs_of_each_are_found(store: JobStore, schedules: ScheduleStore) -> None:
    for number in range(7):
        for schedule in ("a", "b"):
            job_id = f"{schedule}-{number}"
            job = new_job(make_body(), job_id=job_id, tenant="default", schedule_id=schedule, started=True)
            await store.acceptance.accept(job)
    theirs = new_job(make_body(), job_id="theirs", tenant="other", schedule_id="a", started=True)
    await store.acceptance.accept(theirs)
    found = await schedules.last_runs("default", ["a", "b", "c"])
    assert {name: [run.job_id for run in runs] for name, runs in found.items()} == {
        "a": [f"a-{number}" for number in (6, 5, 4, 3, 2)],
        "b": [f"b-{number}" for number in (6, 5, 4, 3, 2)],
        "c": [],
    }
    assert len(await store.queries.list(tenant="default", schedule_id="a")) == 7


async def test_a_pause_by_an_operator_gives_way_to_a_newer_wish(schedules: ScheduleStore) -> None:
    schedule = await put(schedules)
    await schedules.adopt_pause(schedule, True, "by hand")
    assert ((now := await schedules.get("default", "s")).paused, now.note, now.revision) == (True, "by hand", 1)
    await schedules.resume("default", "s", None)
    await schedules.adopt_pause(schedule, True, "by hand")
    assert not (await schedules.get("default", "s")).paused
