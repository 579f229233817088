"""Lanes: the requests that share one of the model's rate limits, over all workers.

A lane is a GCRA (generic cell rate algorithm) without bursts: its row holds the time from which the next call may
start, and every start moves it on by one interval. Who has to wait longer than a moment queues: his place is kept while
his worker does something else, and he comes back when it is his turn. Temporal's own task-queue limit is an average and
lets 16 calls start in the worst second at a limit of 10; here no second sees an eleventh.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Row, Select, bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import QueuePlace
from storage.database import Database, retried
from storage.schema import lane_waiters, lanes, micros, moment, now
from storage.values import Asker, Turn

SECOND = 1_000_000
SLACK = 0.1
"""The interval is this much longer than the limit asks for. So many seconds may pass between a call's turn and its
arrival at the model, for some calls and not for others, before a second sees one too many."""
LATENESS_SECONDS = 0.03
"""Who comes later than that to his start asks for another one; the rest of the slack is for the way to the model."""
HORIZON_SECONDS = 1.0
"""Who may start within this time waits where he is; the others come back."""
EARLY_SECONDS = 0.5
"""How long before his turn somebody comes back."""
ASKED_AT_ONCE = 500
"""Jobs in one question for places: SQLite takes some ten thousand values."""
LOST_SECONDS = 15.0
"""A waiter who is so late for his turn does not come any more, and no longer holds up the others."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
LONGEST_ASKED_SECONDS = 300.0
"""The longest pause that the model can ask for."""

# Built once: making a statement costs as much as running it, and these run for every call.
ANYBODY = select(1).where(select(lane_waiters.c.job_id).where(lane_waiters.c.lane == bindparam("lane_name")).exists())
LEFT = delete(lane_waiters).where(lane_waiters.c.job_id == bindparam("key"))
COMES = update(lane_waiters).where(lane_waiters.c.job_id == bindparam("key")).values(comes_at=bindparam("comes_at"))
LOCKED = select(lanes).where(lanes.c.name == bindparam("key")).with_for_update()
WAITED_IN = select(lanes).where(
    lanes.c.name.in_(select(lane_waiters.c.lane).where(lane_waiters.c.job_id.in_(bindparam("job_ids", expanding=True))))
)
MOVED = update(lanes).where(lanes.c.name == bindparam("key")).values(free_at=bindparam("free_at"))


Gate = Callable[[AsyncConnection, str, Asker], Awaitable[Turn]]
"""When a call of a model (its name) may start, decided in the transaction that claims the job."""


@dataclass(frozen=True, slots=True)
class Lane:
    """``per_second`` is the limit in force; ``set_to`` what an operator set, ``seen`` what the model's headers said."""

    name: str
    per_second: float
    set_to: float | None
    seen: float | None
    paused_until: datetime | None
    waiting: int


class Limiter:
    """``per_second``: the limit of lanes for which nobody has set another one."""

    def __init__(self, database: Database, *, per_second: float) -> None:
        self._database = database
        self._default = per_second

    @retried
    async def ask(self, name: str, asker: Asker) -> Turn:
        """Take the next start, or a place in the queue."""
        async with self._database.write("fast") as connection:
            return await self.take(connection, name, asker)

    def gate(self, lane_of: Callable[[str], str]) -> Gate:
        """When a call may start, by the name of its model; for JobStore.claim."""

        async def when(connection: AsyncConnection, model: str, asker: Asker) -> Turn:
            return await self.take(connection, lane_of(model), asker)

        return when

    async def take(self, connection: AsyncConnection, name: str, asker: Asker) -> Turn:
        """``ask``, in the caller's transaction."""
        lane, time = await self._locked(connection, name)
        interval = self._interval(lane)
        free = _free(lane, time, interval)
        ahead = 0
        if await connection.scalar(ANYBODY, {"lane_name": name}):
            await _forget_lost(connection, name, time)
            await _enter(connection, name, asker, time)
            ahead = await _ahead(connection, name, asker.job_id)
        seconds = (free + ahead * interval - time) / SECOND
        if seconds <= HORIZON_SECONDS:
            await connection.execute(LEFT, {"key": asker.job_id})
            await connection.execute(MOVED, {"key": name, "free_at": free + interval})
            return Turn(True, (free - time) / SECOND, refused=lane.refusals > 0, seen=lane.seen)
        pause = max(seconds - EARLY_SECONDS, EARLY_SECONDS)
        await _enter(connection, name, asker, time)
        await connection.execute(COMES, {"key": asker.job_id, "comes_at": time + int(pause * SECOND)})
        return Turn(False, pause, ahead + 1)

    @retried
    async def leave(self, job_id: str) -> None:
        """Give up a place in whatever queue: the job was cancelled, or has ended."""
        async with self._database.write("fast") as connection:
            await connection.execute(LEFT, {"key": job_id})

    @retried
    async def throttled(self, name: str, retry_after: float | None) -> float:
        """The model refused a call for its rate: nobody starts for ``retry_after`` seconds, which are returned.

        None: a pause that grows with every refusal in a row.
        """
        async with self._database.write("fast") as connection:
            lane, time = await self._locked(connection, name)
            grown = min(FIRST_PAUSE_SECONDS * 2 ** min(lane.refusals, 10), LONGEST_PAUSE_SECONDS)
            seconds = grown if retry_after is None else retry_after
            until = max(lane.paused_until, time + int(seconds * SECOND))
            values = {"paused_until": until, "refusals": lane.refusals + 1}
            await connection.execute(update(lanes).where(lanes.c.name == name).values(values))
        return float(until - time) / SECOND

    @retried
    async def served(self, name: str, *, per_minute: float | None = None, pause: float | None = None) -> None:
        """The model took a call; ``per_minute`` is the limit that its headers told. With ``pause`` (seconds) the lane
        waits, since they said that nothing is left."""
        async with self._database.write("fast") as connection:
            lane, time = await self._locked(connection, name)
            changes: dict[str, Any] = {"refusals": 0}
            if per_minute is not None:
                changes["seen"] = per_minute / 60
            if pause is not None:
                changes["paused_until"] = max(lane.paused_until, time + int(pause * SECOND))
            await connection.execute(update(lanes).where(lanes.c.name == name).values(changes))

    @retried
    async def set_limit(self, name: str, per_second: float | None) -> None:
        """Change a lane's limit, from now on and for all workers; None: back to the setting."""
        async with self._database.write() as connection:
            await self._locked(connection, name)
            statement = update(lanes).where(lanes.c.name == name).values(set_to=per_second, seen=None)
            await connection.execute(statement)

    async def lanes(self) -> Sequence[Lane]:
        waiting = (
            select(func.count()).select_from(lane_waiters).where(lane_waiters.c.lane == lanes.c.name).scalar_subquery()
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(select(lanes, waiting.label("waiting")).order_by(lanes.c.name))).all()
        time = micros(now())
        return [
            Lane(
                name=row.name,
                per_second=self._per_second(row),
                set_to=row.set_to,
                seen=row.seen,
                paused_until=moment(row.paused_until) if row.paused_until > time else None,
                waiting=row.waiting,
            )
            for row in rows
        ]

    async def queued(self, job_id: str) -> QueuePlace | None:
        """A waiting job's place; None where it does not wait in a lane."""
        return (await self.queued_of({job_id})).get(job_id)

    async def queued_of(self, job_ids: Collection[str]) -> Mapping[str, QueuePlace]:
        """The places of those jobs that wait."""
        found: dict[str, QueuePlace] = {}
        async with self._database.read() as connection:
            for some in batched(job_ids, ASKED_AT_ONCE):
                found |= await self.places(connection, some)
        return found

    async def places(self, connection: AsyncConnection, job_ids: Sequence[str]) -> Mapping[str, QueuePlace]:
        """``queued_of``, in the caller's transaction, for up to ASKED_AT_ONCE jobs."""
        found: dict[str, QueuePlace] = {}
        for lane in (await connection.execute(WAITED_IN, {"job_ids": job_ids})).all():
            free = _free(lane, micros(now()), self._interval(lane))
            ranked = await connection.execute(RANKED, {"lane_name": lane.name, "job_ids": job_ids})
            for job_id, place in ranked:
                start = moment(free + (place - 1) * self._interval(lane))
                found[job_id] = QueuePlace(position=place, expected_start_at=start)
        return found

    async def _locked(self, connection: AsyncConnection, name: str) -> tuple[Row[Any], int]:
        """The lane's row, and the time: that of the database where several machines share one."""
        row = (await connection.execute(LOCKED, {"key": name})).first()
        if row is None:
            dialect = sqlite if self._database.is_sqlite else postgresql
            fresh = {"name": name, "free_at": 0, "paused_until": 0, "refusals": 0}
            await connection.execute(dialect.insert(lanes).values(fresh).on_conflict_do_nothing())
            row = (await connection.execute(LOCKED, {"key": name})).one()
        if self._database.is_sqlite:
            return row, micros(now())
        return row, int(await connection.scalar(text("SELECT extract(epoch FROM clock_timestamp()) * 1000000")))

    def _per_second(self, lane: Row[Any]) -> float:
        limit = self._default if lane.set_to is None else lane.set_to
        return min(limit, lane.seen) if lane.seen else limit

    def _interval(self, lane: Row[Any]) -> int:
        return int((1 + SLACK) / self._per_second(lane) * SECOND)


def _free(lane: Row[Any], time: int, interval: int) -> int:
    """When a lane is free. What no clock of today can have written is not believed: the clock was put back since."""
    latest_start = time + int(HORIZON_SECONDS * SECOND) + interval
    longest_pause = time + int(LONGEST_ASKED_SECONDS * SECOND)
    free_at = lane.free_at if lane.free_at <= latest_start else time
    paused_until = lane.paused_until if lane.paused_until <= longest_pause else time
    return max(time, free_at, paused_until)


async def _enter(connection: AsyncConnection, name: str, asker: Asker, time: int) -> None:
    """Into the queue, where he is not in it yet. A job waits in one lane at a time."""
    there = select(lane_waiters.c.lane).where(lane_waiters.c.job_id == asker.job_id)
    found = await connection.scalar(there)
    if found == name:
        return
    if found is not None:
        await connection.execute(LEFT, {"key": asker.job_id})
    row = {
        "lane": name,
        "job_id": asker.job_id,
        "tenant": asker.tenant,
        "priority": asker.priority,
        "since": asker.since,
        "comes_at": time,
    }
    await connection.execute(insert(lane_waiters), row)


async def _forget_lost(connection: AsyncConnection, name: str, time: int) -> None:
    late = lane_waiters.c.comes_at < time - int(LOST_SECONDS * SECOND)
    await connection.execute(delete(lane_waiters).where(lane_waiters.c.lane == name, late))


def _ranked() -> Select[Any]:
    """The places of some of a lane's waiters: by priority, then one of each tenant in turn, then by age."""
    within = func.row_number().over(
        partition_by=(lane_waiters.c.priority, lane_waiters.c.tenant),
        order_by=(lane_waiters.c.since, lane_waiters.c.job_id),
    )
    in_line = (
        select(lane_waiters.c.job_id, lane_waiters.c.priority, lane_waiters.c.since, within.label("nth"))
        .where(lane_waiters.c.lane == bindparam("lane_name"))
        .subquery()
    )
    place = func.row_number().over(order_by=(in_line.c.priority, in_line.c.nth, in_line.c.since, in_line.c.job_id))
    ranked = select(in_line.c.job_id, place.label("place")).subquery()
    return select(ranked).where(ranked.c.job_id.in_(bindparam("job_ids", expanding=True)))


RANKED = _ranked()


async def _ahead(connection: AsyncConnection, name: str, job_id: str) -> int:
    """How many start before a waiter."""
    found = (await connection.execute(RANKED, {"lane_name": name, "job_ids": [job_id]})).first()
    return int(found.place) - 1 if found else 0


def batched(values: Collection[str], size: int) -> Iterator[list[str]]:
    """Lists of up to so many of them."""
    remaining = iter(values)
    while some := list(islice(remaining, size)):
        yield some
