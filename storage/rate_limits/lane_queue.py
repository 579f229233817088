"""The order in which a lane's waiting jobs start: by priority, then tenants in turn, then by age.

Start-time fair queueing: each waiting job has a tag, the round in which it starts. Within a priority, a tenant has one
job in each round. A tenant that joins later begins in the current round; its earlier starts do not count, and a tenant
that has just started a job follows those that have not. Tags are stored, so that a place is a range of an index,
however many wait.

All functions run in the caller's transaction. Those that write expect it to hold the lane's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, and_, bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.values import Claimant
from storage.engine.schema import lane_classes, lane_tenants, lane_waiters, lanes
from storage.rate_limits.breaker import SECOND
from storage.rate_limits.pauses import HOLDING

OVERDUE_SECONDS = 0.6
"""A near waiter that is so late no longer holds up those behind it."""

WAITER = lane_waiters.c
ORDER = (WAITER.priority, WAITER.tag, WAITER.since, WAITER.job_id)

# Built once: making a statement costs as much as running it, and these run for every call.
_WAITS = select(WAITER.job_id).where(WAITER.lane == bindparam("lane_name"), WAITER.held.is_(False)).exists()
LOOK = select(HOLDING.exists().label("held"), _WAITS.label("waiters"))
ENTRY = select(lane_waiters).where(WAITER.job_id == bindparam("key"))
LANE_OF = select(WAITER.lane).where(WAITER.job_id == bindparam("key"))
WAITING = select(WAITER.job_id).where(WAITER.job_id.in_(bindparam("keys", expanding=True))).order_by(WAITER.job_id)
LOCK_LANE = select(lanes.c.name).where(lanes.c.name == bindparam("lane_name")).with_for_update()
DELETE = delete(lane_waiters).where(WAITER.job_id == bindparam("key"))
DELETE_RETURNING = DELETE.returning(WAITER.lane, WAITER.priority, WAITER.tenant, WAITER.tag)
SET_NEXT_REQUEST = (
    update(lane_waiters)
    .where(WAITER.job_id == bindparam("key"))
    .values(asks_at=bindparam("new_asks_at"), near=bindparam("new_near"), held=bindparam("new_held"))
)
BEFORE = tuple_(*ORDER) < tuple_(bindparam("priority"), bindparam("tag"), bindparam("since"), bindparam("job_id"))
ALIVE = and_(WAITER.asks_at >= bindparam("lost"), WAITER.held.is_(False))
COUNT_AHEAD = (
    select(func.count())
    .select_from(lane_waiters)
    .where(WAITER.lane == bindparam("lane_name"), WAITER.priority <= bindparam("priority"), BEFORE, ALIVE)
)
COUNT_NEAR_AHEAD = (
    select(func.count())
    .select_from(lane_waiters)
    .where(WAITER.lane == bindparam("lane_name"), WAITER.near, WAITER.asks_at >= bindparam("overdue"), BEFORE)
    .where(WAITER.held.is_(False))
)
PUNCTUAL_AHEAD = (
    select(func.count(), func.coalesce(func.sum(WAITER.tokens), 0))
    .select_from(lane_waiters)
    .where(WAITER.lane == bindparam("lane_name"), WAITER.priority <= bindparam("priority"), BEFORE)
    .where(WAITER.asks_at >= bindparam("overdue"), WAITER.held.is_(False))
)
FIRST_TAG = (
    select(WAITER.tag)
    .where(WAITER.lane == bindparam("lane_name"), WAITER.priority == bindparam("priority"), ALIVE)
    .order_by(WAITER.tag)
    .limit(1)
)
CLASS_TAG = select(lane_classes.c.tag).where(
    lane_classes.c.lane == bindparam("lane_name"), lane_classes.c.priority == bindparam("priority")
)
TENANT_TAG = select(lane_tenants.c.tag).where(
    lane_tenants.c.lane == bindparam("lane_name"),
    lane_tenants.c.priority == bindparam("priority"),
    lane_tenants.c.tenant == bindparam("tenant"),
)
HAS_OTHERS = select(1).where(
    select(WAITER.job_id)
    .where(WAITER.lane == bindparam("lane_name"), WAITER.job_id != bindparam("key"), ALIVE)
    .exists()
)


def _set_tag(table: Any, dialect: Any) -> Any:
    """A statement that inserts a tag, or updates the stored one."""
    made = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    return made.on_conflict_do_update(index_elements=keys, set_={"tag": made.excluded.tag})


SET_CLASS = {"sqlite": _set_tag(lane_classes, sqlite), "postgresql": _set_tag(lane_classes, postgresql)}
SET_TENANT = {"sqlite": _set_tag(lane_tenants, sqlite), "postgresql": _set_tag(lane_tenants, postgresql)}


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A waiting job's place in the order."""

    job_id: str
    priority: int
    tag: int
    since: int


@dataclass(frozen=True, slots=True)
class LaneQueue:
    """The queue of one lane, in one transaction. ``dialect`` is the database's, ``time`` the lane's clock.

    A waiter that was to ask before ``lost`` has no place (Timings.lost_waiter_seconds). One that a pause holds keeps
    its place, but holds up nobody.
    """

    connection: AsyncConnection
    dialect: str
    lane: str
    time: int
    lost: int

    async def look(self, tenant: str) -> tuple[bool, bool]:
        """Whether a pause concerns a tenant's jobs, and whether any job waits that no pause holds, even a lost one."""
        values = {"lane_name": self.lane, "tenant_name": tenant}
        held, waiters = (await self.connection.execute(LOOK, values)).one()
        return bool(held), bool(waiters)

    async def has_others(self, job_id: str) -> bool:
        """Whether a job other than this one waits."""
        values = {"lane_name": self.lane, "key": job_id, "lost": self.lost}
        return await self.connection.scalar(HAS_OTHERS, values) is not None

    async def enter(self, claimant: Claimant, tokens: int = 0) -> QueueEntry:
        """Add a job to the queue unless it is there already. A job waits in one lane at a time.

        ``tokens``: the estimate of its call.
        """
        row = (await self.connection.execute(ENTRY, {"key": claimant.job_id})).first()
        if row is not None and row.lane == self.lane:
            return QueueEntry(row.job_id, row.priority, row.tag, row.since)
        if row is not None:
            await leave(self.connection, claimant.job_id)
        tag = await self._new_tag(claimant)
        values = {
            "lane": self.lane,
            "job_id": claimant.job_id,
            "tenant": claimant.tenant,
            "priority": claimant.priority,
            "tag": tag,
            "since": claimant.since,
            "asks_at": self.time,
            "near": False,
            "tokens": tokens,
        }
        await self.connection.execute(insert(lane_waiters), values)
        return QueueEntry(claimant.job_id, claimant.priority, tag, claimant.since)

    async def count_ahead(self, entry: QueueEntry) -> int:
        """Number of jobs that start before it."""
        values = {"lane_name": self.lane, "lost": self.lost, **_order_key(entry)}
        return int(await self.connection.scalar(COUNT_AHEAD, values) or 0)

    async def count_near_ahead(self, entry: QueueEntry) -> int:
        """Number of those jobs that are in a worker or on their way to one, and not overdue."""
        overdue = self.time - int(OVERDUE_SECONDS * SECOND)
        values = {"lane_name": self.lane, "overdue": overdue, **_order_key(entry)}
        return int(await self.connection.scalar(COUNT_NEAR_AHEAD, values) or 0)

    async def punctual_ahead(self, entry: QueueEntry) -> tuple[int, int]:
        """Number of jobs that start before it, wherever they wait, and are not overdue; the tokens of their calls."""
        overdue = self.time - int(OVERDUE_SECONDS * SECOND)
        values = {"lane_name": self.lane, "overdue": overdue, **_order_key(entry)}
        count, tokens = (await self.connection.execute(PUNCTUAL_AHEAD, values)).one()
        return int(count), int(tokens)

    async def set_next_request(self, entry: QueueEntry, asks_at: int, *, near: bool, held: bool = False) -> None:
        """Store when a waiting job requests its turn again. ``held``: a pause concerns it."""
        values = {"key": entry.job_id, "new_asks_at": asks_at, "new_near": near, "new_held": held}
        await self.connection.execute(SET_NEXT_REQUEST, values)

    async def dequeue(self, entry: QueueEntry) -> None:
        """Remove a job that starts; its round becomes the current one."""
        await self.connection.execute(DELETE, {"key": entry.job_id})
        values = {"lane_name": self.lane, "priority": entry.priority, "lost": self.lost}
        first = await self.connection.scalar(FIRST_TAG, values)
        await self._advance_round(entry.priority, entry.tag if first is None else min(entry.tag, first))

    async def start_without_waiting(self, claimant: Claimant) -> None:
        """Count the start of a job that has not waited as its tenant's turn."""
        await self._advance_round(claimant.priority, await self._new_tag(claimant))

    async def _advance_round(self, priority: int, tag: int) -> None:
        if tag > await self._current_round(priority):
            values = {"lane": self.lane, "priority": priority, "tag": tag}
            await self.connection.execute(SET_CLASS[self.dialect], values)

    async def _new_tag(self, claimant: Claimant) -> int:
        """The round after the last one in which the tenant has a place. A job that returns goes before all of its
        priority: it had its turn, and lost it through no fault of its own."""
        current = await self._current_round(claimant.priority)
        if claimant.returns:
            return current - 1
        key = {"priority": claimant.priority, "tenant": claimant.tenant}
        last = await self.connection.scalar(TENANT_TAG, {"lane_name": self.lane, **key})
        tag = current if last is None else max(current, last + 1)
        await self.connection.execute(SET_TENANT[self.dialect], {"lane": self.lane, "tag": tag, **key})
        return tag

    async def _current_round(self, priority: int) -> int:
        found = await self.connection.scalar(CLASS_TAG, {"lane_name": self.lane, "priority": priority})
        return int(found or 0)

    async def next_waiters(self, count: int, *, excluding: str | None) -> Sequence[Row[Any]]:
        """The rows of the jobs that start next, without those that are overdue or held, and without the job
        ``excluding``."""
        due = WAITER.asks_at >= self.time - int(OVERDUE_SECONDS * SECOND)
        query: Select[Any] = select(WAITER.job_id, WAITER.asks_at, WAITER.near, WAITER.tokens)
        query = query.where(WAITER.lane == self.lane, WAITER.held.is_(False), due)
        if excluding is not None:
            query = query.where(WAITER.job_id != excluding)
        found: Sequence[Row[Any]] = (await self.connection.execute(query.order_by(*ORDER).limit(count))).all()
        return found

    async def count_overdue(self) -> int:
        """Number of jobs that were woken and are overdue: they wait for a free slot in a worker."""
        late = self.time - int(OVERDUE_SECONDS * SECOND)
        query = select(func.count()).select_from(lane_waiters).where(WAITER.lane == self.lane, WAITER.near)
        return int(await self.connection.scalar(query.where(WAITER.asks_at.between(self.lost, late))) or 0)

    async def mark_woken(self, job_ids: Sequence[str], asks_at: int) -> None:
        """Record that jobs are on their way to a worker."""
        statement = update(lane_waiters).where(WAITER.job_id.in_(job_ids))
        await self.connection.execute(statement.values(near=True, asks_at=asks_at))

    async def delete_old_tags(self) -> None:
        """Delete the tags of tenants whose last turn was in an earlier round: they have no effect any more."""
        current = (
            select(lane_classes.c.tag)
            .where(lane_classes.c.lane == lane_tenants.c.lane, lane_classes.c.priority == lane_tenants.c.priority)
            .scalar_subquery()
        )
        old = lane_tenants.c.tag < current
        await self.connection.execute(delete(lane_tenants).where(lane_tenants.c.lane == self.lane, old))


async def leave_all(connection: AsyncConnection, job_ids: Sequence[str]) -> None:
    """``leave`` for those of the jobs that wait."""
    for job_id in (await connection.execute(WAITING, {"keys": list(job_ids)})).scalars().all():
        await leave(connection, job_id)


async def leave(connection: AsyncConnection, job_id: str) -> None:
    """Remove a job that was cancelled or has ended. The tenant's later jobs move up a round each."""
    lane = await connection.scalar(LANE_OF, {"key": job_id})
    if lane is None:
        return
    await connection.execute(LOCK_LANE, {"lane_name": lane})  # all writers take the lane first, then waiters
    left = (await connection.execute(DELETE_RETURNING, {"key": job_id})).first()
    if left is None:
        return
    current = await connection.scalar(CLASS_TAG, {"lane_name": lane, "priority": left.priority})
    if left.tag < (current or 0):
        return
    same = (WAITER.lane == lane, WAITER.priority == left.priority, WAITER.tenant == left.tenant)
    later = update(lane_waiters).where(*same, WAITER.tag > left.tag)
    await connection.execute(later.values(tag=WAITER.tag - 1))
    tenants = lane_tenants.c
    last = update(lane_tenants).where(
        tenants.lane == lane, tenants.priority == left.priority, tenants.tenant == left.tenant
    )
    await connection.execute(last.where(tenants.tag >= left.tag).values(tag=tenants.tag - 1))


def _order_key(entry: QueueEntry) -> dict[str, Any]:
    return {"priority": entry.priority, "tag": entry.tag, "since": entry.since, "job_id": entry.job_id}


_place = func.row_number().over(order_by=ORDER).label("place")
_tokens = func.sum(WAITER.tokens).over(order_by=ORDER, rows=(None, -1)).label("tokens_ahead")
_places = select(WAITER.job_id, _place, _tokens).where(WAITER.lane == bindparam("lane_name"), ALIVE).subquery()
RANKED = select(_places).where(_places.c.job_id.in_(bindparam("job_ids", expanding=True)))
"""The places of some of a lane's waiters, and the tokens of those before them."""
_held_places = select(WAITER.job_id, _place).where(WAITER.lane == bindparam("lane_name"), WAITER.held).subquery()
RANKED_HELD = select(_held_places).where(_held_places.c.job_id.in_(bindparam("job_ids", expanding=True)))
"""The same for those that a pause holds, among themselves."""
