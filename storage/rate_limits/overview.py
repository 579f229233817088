"""Who uses the lanes: limits, running calls, waiting jobs, pauses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Lane, LaneWaiting
from storage.engine.schema import attempts, jobs, lane_waiters, lanes, moment
from storage.rate_limits import breaker, pauses
from storage.rate_limits.budget import TokenBudget
from storage.rate_limits.running import RUNNING

WAITER = lane_waiters.c
WAITING = (
    select(WAITER.lane, WAITER.tenant, WAITER.priority, func.count())
    .group_by(WAITER.lane, WAITER.tenant, WAITER.priority)
    .order_by(WAITER.lane, WAITER.priority, WAITER.tenant)
)


async def describe(
    connection: AsyncConnection, time: int, per_second: Callable[[Row[Any]], float], tenant: str | None = None
) -> Sequence[Lane]:
    """All lanes by name, or those in which a tenant's jobs wait or run, with the counts of that tenant."""
    running = await _running(connection, time, tenant)
    waiting = await _waiting(connection, tenant)
    known = await pauses.of(connection, tenant)
    rows = (await connection.execute(select(lanes).order_by(lanes.c.name))).all()
    return [
        Lane(
            name=row.name,
            per_second=per_second(row),
            set_to=row.set_to,
            seen=row.seen,
            at_once=row.at_once,
            running=running.get(row.name, 0),
            tokens_set_to=row.tokens_set_to,
            tokens_seen=row.tokens_seen,
            **_tokens(TokenBudget.of(row, time), shown=tenant is None),
            waiting=sum(one.count for one in waiting[row.name]),
            waiting_by=tuple(waiting[row.name]),
            pauses=tuple(one for one in known if one.lane in (None, row.name)),
            paused_until=moment(row.paused_until) if row.paused_until > time else None,
            down=breaker.is_open(row),
            probes_at=moment(max(breaker.expected_start(row, time), time)) if breaker.is_open(row) else None,
            last_error=row.last_error if tenant is None else None,
        )
        for row in rows
        if tenant is None or row.name in running or waiting[row.name]
    ]


def _tokens(budget: TokenBudget | None, *, shown: bool) -> dict[str, int]:
    if budget is None:
        return {}
    return {"tokens_per_minute": budget.limit} | ({"tokens_used": budget.used} if shown else {})


async def _running(connection: AsyncConnection, time: int, tenant: str | None) -> dict[str, int]:
    """The number of running calls by lane."""
    query: Select[Any] = RUNNING.group_by(attempts.c.lane)
    if tenant is not None:
        query = query.join(jobs, jobs.c.id == attempts.c.job_id).where(jobs.c.tenant == tenant)
    return {row[0]: row[1] for row in await connection.execute(query, {"time": time})}


async def _waiting(connection: AsyncConnection, tenant: str | None) -> dict[str, list[LaneWaiting]]:
    """The waiting jobs by lane."""
    query = WAITING if tenant is None else WAITING.where(WAITER.tenant == tenant)
    found: dict[str, list[LaneWaiting]] = defaultdict(list)
    for lane, whose, priority, count in await connection.execute(query):
        found[lane].append(LaneWaiting(tenant=whose, priority=priority, count=count))
    return found
