"""Schedules: what their owners want. Sweepers make Temporal have the same (dispatch/job_schedules.py).

Each row has the time at which a sweeper compares it with Temporal's schedule (``wanted_at``): at once after a change,
else after a while, so that a schedule that Temporal lost is made again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, Table, and_, delete, func, null, select, update
from sqlalchemy.dialects import postgresql, sqlite

from chatjobs.contracts import BatchStatus, JobStatus, ScheduleRun, ScheduleTiming
from chatjobs.errors import ScheduleNotFound
from domain.text import clean
from domain.values import StoredSchedule
from storage.engine.database import Database, RolledBack, retried
from storage.engine.schema import batches, jobs, micros, moment, now, schedules

TELL_SECONDS = 10
"""How long the process that changed a schedule may take to tell Temporal, before a sweeper does."""
SWEEP_BATCH = 100
RUNS_SHOWN = 5
"""Newest jobs of a schedule that are shown with it."""
UID_BYTES = 6
SECOND = 1_000_000
"""In microseconds."""
LIVE = schedules.c.deleted_at.is_(None)
LARGE = ("request", "batch")
"""The columns of what a run asks, of up to some megabytes."""
LISTED = tuple(null().label(column.name) if column.name in LARGE else column for column in schedules.c)
CHANGED = {"revision": schedules.c.revision + 1}


class ScheduleStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def put(
        self, tenant: str, schedule_id: str, timing: ScheduleTiming, *, request: str | None, batch: str | None
    ) -> tuple[StoredSchedule, bool]:
        """Create the schedule, or replace what it does; whether it was created. The same again changes nothing.

        ``request`` and ``batch`` are JSON, one of them.
        """
        time = micros(now())
        wish = {"timing": timing.model_dump_json(exclude_none=True), "request": request, "batch": batch}
        async with self._database.write() as connection:
            found = (
                await connection.execute(select(schedules).where(_is(tenant, schedule_id)).with_for_update())
            ).first()
            if found is not None:
                if all(found._mapping[name] == value for name, value in wish.items()):
                    return _stored(found), False
                changes = wish | CHANGED | {"updated_at": time, "wanted_at": _until(time)}
                changed = update(schedules).where(schedules.c.uid == found.uid).values(changes).returning(schedules)
                return _stored((await connection.execute(changed)).one()), False
            dialect = sqlite if self._database.is_sqlite else postgresql
            row: dict[str, Any] = {
                "uid": secrets.token_hex(UID_BYTES),
                "tenant": clean(tenant),
                "id": schedule_id,
                **wish,
            }
            row |= {"created_at": time, "updated_at": time, "wanted_at": _until(time)}
            row |= {"revision": 1, "applied": 0, "next_runs": "[]"}
            insert = dialect.insert(schedules).values(row).on_conflict_do_nothing().returning(schedules)
            if (made := (await connection.execute(insert)).first()) is None:
                raise RolledBack("Another call has just made the schedule; try again")
            return _stored(made), True

    async def get(self, tenant: str, schedule_id: str) -> StoredSchedule:
        """Raises ScheduleNotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(schedules).where(_is(tenant, schedule_id)))).first()
        return _stored(_found(row))

    async def newest(self, uid: str) -> StoredSchedule | None:
        """The schedule as it is now, also a deleted one; None if Temporal no longer has it either."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(schedules).where(schedules.c.uid == uid))).first()
        return None if row is None else _stored(row)

    async def of_run(self, name: str) -> StoredSchedule | None:
        """The schedule whose ``name`` a run in Temporal has; None if it was deleted."""
        uid = name.rpartition("-")[2]
        async with self._database.read() as connection:
            row = (await connection.execute(select(schedules).where(schedules.c.uid == uid, LIVE))).first()
        return _stored(row) if row is not None and _stored(row).name == name else None

    async def list(self, tenant: str, *, after: str = "", limit: int) -> Sequence[StoredSchedule]:
        """A tenant's schedules by their ids, those that come after ``after``; without ``request`` and ``batch``."""
        query = select(*LISTED).where(schedules.c.tenant == clean(tenant), LIVE, schedules.c.id > after)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(schedules.c.id).limit(limit))).all()
        return [_stored(row) for row in rows]

    async def last_runs(self, tenant: str, ids: Sequence[str]) -> Mapping[str, Sequence[ScheduleRun]]:
        """The newest jobs or batches of schedules, newest first."""
        found: dict[str, list[ScheduleRun]] = {one: [] for one in ids}
        async with self._database.read() as connection:
            for table in (jobs, batches) if ids else ():
                for row in (await connection.execute(_newest(table, clean(tenant), ids))).all():
                    found[row.schedule_id].append(_run(row, of_batch=table is batches))
        return {
            schedule: sorted(runs, key=lambda run: run.created_at, reverse=True)[:RUNS_SHOWN]
            for schedule, runs in found.items()
        }

    async def pause(self, tenant: str, schedule_id: str, note: str | None) -> StoredSchedule:
        """Start no more runs. Repeating the call changes the note. Raises ScheduleNotFound."""
        return await self._change(tenant, schedule_id, {"paused": True, "note": note})

    async def resume(self, tenant: str, schedule_id: str, note: str | None) -> StoredSchedule:
        """Start runs again; those of the time between are not made up for. Raises ScheduleNotFound."""
        return await self._change(tenant, schedule_id, {"paused": False, "note": note})

    async def delete(self, tenant: str, schedule_id: str) -> StoredSchedule:
        """Start no more runs, for good; the jobs that it has made stay. Raises ScheduleNotFound."""
        return await self._change(tenant, schedule_id, {"deleted_at": micros(now())})

    @retried
    async def trigger(self, tenant: str, schedule_id: str) -> StoredSchedule:
        """Request a run now, also while it is paused. Requests that Temporal was not told of yet are one.

        Raises ScheduleNotFound.
        """
        time = micros(now())
        async with self._database.write() as connection:
            query = select(schedules).where(_is(tenant, schedule_id)).with_for_update()
            row = _found((await connection.execute(query)).first())
            every = ScheduleTiming.model_validate_json(row.timing).every
            at = row.trigger_at or _free_time(max(time, (row.triggered_at or 0) + SECOND), every)
            changes = {"trigger_at": at, "triggered_at": at, "wanted_at": _until(time)}
            changed = update(schedules).where(schedules.c.uid == row.uid).values(changes).returning(schedules)
            return _stored((await connection.execute(changed)).one())

    @retried
    async def _change(self, tenant: str, schedule_id: str, wish: Mapping[str, Any]) -> StoredSchedule:
        time = micros(now())
        changes = {**wish, **CHANGED, "updated_at": time, "wanted_at": _until(time)}
        changed = update(schedules).where(_is(tenant, schedule_id)).values(changes).returning(schedules)
        async with self._database.write() as connection:
            return _stored(_found((await connection.execute(changed)).first()))

    # ------------------------------------------------------------------------------------------- sweeping

    async def take_due(self) -> Sequence[StoredSchedule]:
        """Take the schedules that have to be compared with Temporal's. For TELL_SECONDS no other caller gets them."""
        due = schedules.c.wanted_at <= micros(now())
        async with self._database.read() as connection:  # most of the time there are none, and nothing is written
            if (await connection.execute(select(schedules.c.uid).where(due).limit(1))).first() is None:
                return []
        return await self._take(due)

    @retried
    async def _take(self, due: Any) -> Sequence[StoredSchedule]:
        some = select(schedules.c.uid).where(due).order_by(schedules.c.wanted_at).limit(SWEEP_BATCH)
        taken = update(schedules).where(schedules.c.uid.in_(some.with_for_update(skip_locked=True)), due)
        async with self._database.write("fast") as connection:
            until = {"wanted_at": _until(micros(now()))}
            return [_stored(row) for row in (await connection.execute(taken.values(until).returning(schedules))).all()]

    @retried
    async def record_applied(self, schedule: StoredSchedule, next_runs: Sequence[int], look_after: timedelta) -> None:
        """Record that Temporal has this revision and was told of its trigger. A newer change stays due."""
        time = now()
        known = {"applied": schedule.revision, "seen_at": micros(time), "next_runs": json.dumps(list(next_runs))}
        this = and_(schedules.c.uid == schedule.uid, schedules.c.revision == schedule.revision)
        told = schedules.c.trigger_at == schedule.trigger_at
        async with self._database.write("fast") as connection:
            later = {"wanted_at": micros(time + look_after)}
            if schedule.trigger_at is not None:
                await connection.execute(update(schedules).where(this, told).values(trigger_at=None))
            await connection.execute(update(schedules).where(this).values(known))
            await connection.execute(update(schedules).where(this, schedules.c.trigger_at.is_(None)).values(later))

    @retried
    async def adopt_pause(self, schedule: StoredSchedule, paused: bool, note: str | None) -> None:
        """Take over that an operator has paused or resumed the schedule in Temporal. A newer change of ours stays."""
        this = and_(schedules.c.uid == schedule.uid, schedules.c.revision == schedule.revision)
        async with self._database.write("fast") as connection:
            await connection.execute(update(schedules).where(this).values(paused=paused, note=note))

    @retried
    async def remove(self, schedule: StoredSchedule) -> None:
        """Remove a deleted schedule, which Temporal no longer has."""
        async with self._database.write("fast") as connection:
            await connection.execute(delete(schedules).where(schedules.c.uid == schedule.uid))


def _is(tenant: str, schedule_id: str) -> Any:
    return and_(schedules.c.tenant == clean(tenant), schedules.c.id == clean(schedule_id), LIVE)


def _free_time(time: int, every: int | None) -> int:
    """The next time whose second is none of the schedule's own: runs are told apart by the second of their time."""
    while time // SECOND % 60 == 0 or (every is not None and every > 1 and time // SECOND % every == 0):
        time += SECOND
    return time


def _until(time: int) -> int:
    return time + TELL_SECONDS * SECOND


def _found(row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise ScheduleNotFound
    return row


def _stored(row: Row[Any]) -> StoredSchedule:
    return StoredSchedule(
        uid=row.uid,
        tenant=row.tenant,
        id=row.id,
        timing=ScheduleTiming.model_validate_json(row.timing),
        request=row.request,
        batch=row.batch,
        created_at=row.created_at,
        updated_at=row.updated_at,
        paused=row.paused,
        note=row.note,
        deleted=row.deleted_at is not None,
        trigger_at=row.trigger_at,
        triggered_at=row.triggered_at,
        revision=row.revision,
        applied=row.applied,
        seen_at=row.seen_at,
        next_runs=tuple(json.loads(row.next_runs)),
    )


def _newest(table: Table, tenant: str, ids: Sequence[str]) -> Any:
    """The query for the newest jobs, or batches, of each of some schedules. A draft has no schedule."""
    rank = func.row_number().over(partition_by=table.c.schedule_id, order_by=table.c.created_at.desc())
    columns = (table.c.schedule_id, table.c.id, table.c.status, table.c.created_at, table.c.completed_at)
    mine = and_(table.c.tenant == tenant, table.c.schedule_id.in_(ids))
    ranked = select(*columns, rank.label("rank")).where(mine).subquery()
    return select(ranked).where(ranked.c.rank <= RUNS_SHOWN)


def _run(row: Row[Any], *, of_batch: bool) -> ScheduleRun:
    return ScheduleRun(
        job_id=None if of_batch else row.id,
        batch_id=row.id if of_batch else None,
        status=BatchStatus(row.status) if of_batch else JobStatus(row.status),
        created_at=moment(row.created_at),
        completed_at=None if row.completed_at is None else moment(row.completed_at),
    )
