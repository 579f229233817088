"""Pauses: no call of the model starts for the jobs of a lane, of a tenant, of a tenant in a lane, or of everybody.

A pause is a row. Every reservation looks for one that concerns its job, under the lane's lock, and a granted turn is
checked again just before the call (limiter.py), so that a pause holds for all workers within their next look. The
waiting jobs that it concerns are marked as ``held``: they keep their place, and hold up nobody.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Pause
from chatjobs.errors import PauseNotFound
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import lane_classes, lane_tenants, lane_waiters, lanes, micros, moment, now, pauses

OPERATOR = "operator"
"""``paused_by`` of a pause that the command line, or the local user of a service without keys, began."""
ANY = ""
"""In the columns ``lane`` and ``tenant``: the pause concerns all of them."""

WAITER = lane_waiters.c
CONCERNS_WAITER = and_(pauses.c.lane.in_((ANY, WAITER.lane)), pauses.c.tenant.in_((ANY, WAITER.tenant)))
HOLDING = (
    select(pauses.c.id)
    .where(pauses.c.lane.in_((ANY, bindparam("lane_name"))), pauses.c.tenant.in_((ANY, bindparam("tenant_name"))))
    .limit(1)
)


async def holds(connection: AsyncConnection, lane: str, tenant: str) -> bool:
    """Whether a pause concerns a tenant's jobs in a lane."""
    return await connection.scalar(HOLDING, {"lane_name": lane, "tenant_name": tenant}) is not None


async def of(connection: AsyncConnection, tenant: str | None = None) -> Sequence[Pause]:
    """All pauses, or those that concern a tenant's jobs; oldest first."""
    query = select(pauses).order_by(pauses.c.paused_at, pauses.c.id)
    if tenant is not None:
        query = query.where(pauses.c.tenant.in_((ANY, tenant)))
    return [_pause(row) for row in (await connection.execute(query)).all()]


class PauseStore:
    """Begins and ends pauses. In all methods None stands for all lanes or all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def pause(
        self, *, lane: str | None = None, tenant: str | None = None, reason: str = "", by: str = OPERATOR
    ) -> Pause:
        """Begin a pause, durably. One that is there already is returned with its time; the reason becomes the new one,
        and an operator's pause stays an operator's."""
        scope = (pauses.c.lane == clean(lane or ANY), pauses.c.tenant == clean(tenant or ANY))
        async with self._database.write() as connection:
            row = (await connection.execute(select(pauses).where(*scope).with_for_update())).first()
            if row is None:
                values = {
                    "id": f"pause_{uuid.uuid4().hex[:16]}",
                    "lane": clean(lane or ANY),
                    "tenant": clean(tenant or ANY),
                    "reason": clean(reason),
                    "paused_at": micros(now()),
                    "paused_by": by,
                }
                made = (await connection.execute(insert(pauses).values(values).returning(*pauses.c))).one()
                await self._hold(connection, made)
                return _pause(made)
            changes = {"reason": clean(reason), "paused_by": OPERATOR if by == OPERATOR else row.paused_by}
            changed = update(pauses).where(pauses.c.id == row.id).values(changes).returning(*pauses.c)
            return _pause((await connection.execute(changed)).one())

    @retried
    async def resume(self, pause_id: str) -> None:
        """End a pause, durably: the jobs that no other one holds are woken in their order. Raises PauseNotFound."""
        async with self._database.write() as connection:
            ended = delete(pauses).where(pauses.c.id == clean(pause_id)).returning(*pauses.c)
            row = (await connection.execute(ended)).first()
            if row is None:
                raise PauseNotFound
            await self._release(connection, row)

    async def get(self, pause_id: str) -> Pause:
        """Raises PauseNotFound."""
        async with self._database.single() as connection:
            row = (await connection.execute(select(pauses).where(pauses.c.id == clean(pause_id)))).first()
        if row is None:
            raise PauseNotFound
        return _pause(row)

    async def find(self, *, lane: str | None = None, tenant: str | None = None) -> Pause:
        """The pause of exactly this scope. Raises PauseNotFound."""
        scope = (pauses.c.lane == clean(lane or ANY), pauses.c.tenant == clean(tenant or ANY))
        async with self._database.single() as connection:
            row = (await connection.execute(select(pauses).where(*scope))).first()
        if row is None:
            raise PauseNotFound
        return _pause(row)

    async def list(self, tenant: str | None = None) -> Sequence[Pause]:
        """All pauses, or those that concern a tenant's jobs; oldest first."""
        async with self._database.single() as connection:
            return await of(connection, tenant)

    async def _hold(self, connection: AsyncConnection, pause: Row[Any]) -> None:
        """Mark the waiting jobs that a new pause concerns."""
        await _lock_lanes(connection, pause)
        await connection.execute(update(lane_waiters).where(*_concerned(pause)).values(held=True, near=False))

    async def _release(self, connection: AsyncConnection, pause: Row[Any]) -> None:
        """Unmark the waiting jobs that nothing holds any more. Those of a tenant go on in the round of the others: they
        were behind, and would else all start before anybody else."""
        await _lock_lanes(connection, pause)
        others = select(pauses.c.id).where(CONCERNS_WAITER).correlate(lane_waiters).exists()
        released = and_(*_concerned(pause), WAITER.held, ~others)
        behind = (
            select(WAITER.lane, WAITER.priority, WAITER.tenant, (lane_classes.c.tag - func.min(WAITER.tag)).label("by"))
            .join(lane_classes, and_(lane_classes.c.lane == WAITER.lane, lane_classes.c.priority == WAITER.priority))
            .where(released)
            .group_by(WAITER.lane, WAITER.priority, WAITER.tenant, lane_classes.c.tag)
        )
        for lane, priority, tenant, by in (await connection.execute(behind)).all():
            if by <= 0:
                continue
            for table in (lane_waiters, lane_tenants):
                same = and_(table.c.lane == lane, table.c.priority == priority, table.c.tenant == tenant)
                await connection.execute(update(table).where(same).values(tag=table.c.tag + by))
        await connection.execute(update(lane_waiters).where(released).values(held=False))


async def _lock_lanes(connection: AsyncConnection, pause: Row[Any]) -> None:
    """Lock the lanes that a pause concerns: all writers take the lane first, then waiters."""
    query = select(lanes.c.name).where(or_(pause.lane == ANY, lanes.c.name == pause.lane)).order_by(lanes.c.name)
    await connection.execute(query.with_for_update())


def _concerned(pause: Row[Any]) -> list[Any]:
    """The conditions on the waiters that a pause concerns."""
    conditions = []
    if pause.lane != ANY:
        conditions.append(WAITER.lane == pause.lane)
    if pause.tenant != ANY:
        conditions.append(WAITER.tenant == pause.tenant)
    return conditions


def _pause(row: Row[Any]) -> Pause:
    return Pause(
        pause_id=row.id,
        lane=row.lane or None,
        tenant=row.tenant or None,
        reason=row.reason,
        paused_at=moment(row.paused_at),
        paused_by=row.paused_by,
    )
