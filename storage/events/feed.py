"""The feed of all jobs: pages of events in the order of their numbers, and their removal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import FeedEvent, FeedEventType
from chatjobs.errors import EventsExpired
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import event_horizons, event_numbers, events, jobs, micros, moment

REMOVED_AT_ONCE = 500
"""Events that one transaction removes."""
LOOKED_AT_ONCE = 50_000
"""Numbers among which a page looks for events of some types: there may be none of them for millions."""

LAST = select(event_numbers.c.last).where(event_numbers.c.id == 1)
OLDEST = select(events.c.number, events.c.tenant, events.c.at).order_by(events.c.number).limit(REMOVED_AT_ONCE)
ROWS = select(
    *(events.c.number, events.c.job_id, events.c.event, events.c.revision, events.c.at, events.c.error_code),
    *(jobs.c.request_id, jobs.c.model, jobs.c.metadata, jobs.c.batch_id, jobs.c.replay_of, jobs.c.schedule_id),
    jobs.c.thread,
).join(jobs, jobs.c.id == events.c.job_id)
"""A job that retention has removed ended before its last event's time was over: its events are as old."""


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Some events in order, or none. ``next``: the number after which the reader goes on. ``more``: there may be others
    now."""

    events: Sequence[FeedEvent]
    next: int
    more: bool


class EventFeed:
    """Reads events. In all methods ``tenant`` None is any."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last(self) -> int:
        """The number of the newest event of all tenants; 0 if there was none yet."""
        async with self._database.single() as connection:
            return int(await connection.scalar(LAST) or 0)

    async def page(
        self, after: int, *, tenant: str | None, types: Collection[FeedEventType] = (), limit: int
    ) -> FeedPage:
        """The events after a number, oldest first; after 0 they begin with the oldest that is kept. ``types``: only
        these; none: all.

        Raises EventsExpired if events after that number were removed, ValueError if the number was never given.
        """
        async with self._database.read() as connection:
            last = int(await connection.scalar(LAST) or 0)
            if after > last:
                raise ValueError("no event has this number yet")
            removed = min(await _removed(connection, tenant), last)
            if 0 < after < removed:
                raise EventsExpired
            after = after or removed
            query = _after(after, tenant, types).limit(limit)
            found = (await connection.execute(query)).all() if after < last else []
        full = len(found) == limit
        reached = min(last, after + LOOKED_AT_ONCE) if types else last
        place = found[-1].number if full else reached
        return FeedPage([_event(row) for row in found], place, more=full or reached < last)

    @retried
    async def remove(self, before: datetime) -> int:
        """Remove the oldest events, up to REMOVED_AT_ONCE of them, if their time is before another one. Returns how
        many."""
        old: dict[str, int] = {}
        last = count = 0
        async with self._database.write("fast") as connection:
            for row in (await connection.execute(OLDEST)).all():
                if row.at >= micros(before):
                    break
                old[row.tenant] = last = row.number
                count += 1
            if count:
                await self._move_horizons(connection, old)
                await connection.execute(delete(events).where(events.c.number <= last))
        return count

    async def _move_horizons(self, connection: AsyncConnection, removed: dict[str, int]) -> None:
        insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
        greater = func.max if self._database.is_sqlite else func.greatest  # another one may have removed more meanwhile
        horizon = insert(event_horizons)
        farthest = greater(event_horizons.c.removed, horizon.excluded.removed)
        moved = horizon.on_conflict_do_update(index_elements=[event_horizons.c.tenant], set_={"removed": farthest})
        rows = [{"tenant": tenant, "removed": number} for tenant, number in sorted(removed.items())]
        await connection.execute(moved, rows)


def _after(after: int, tenant: str | None, types: Collection[FeedEventType]) -> Select[Any]:
    """The query for the events after a number."""
    query = ROWS.where(events.c.number > after).order_by(events.c.number)
    if tenant is not None:
        query = query.where(events.c.tenant == clean(tenant))
    if types:
        named = [one.value.removeprefix("chat.") for one in types]
        query = query.where(events.c.event.in_(named), events.c.number <= after + LOOKED_AT_ONCE)
    return query


async def _removed(connection: AsyncConnection, tenant: str | None) -> int:
    """The greatest number that was removed; 0 if none was."""
    query = select(func.max(event_horizons.c.removed))
    if tenant is not None:
        query = query.where(event_horizons.c.tenant == clean(tenant))
    return int(await connection.scalar(query) or 0)


def _event(row: Any) -> FeedEvent:
    event = FeedEventType(f"chat.{row.event}")
    return FeedEvent(
        id=str(row.number),
        event=event,
        timestamp=moment(row.at),
        job_id=row.job_id,
        request_id=row.request_id,
        status=event.status,
        model=row.model,
        metadata=row.metadata,
        revision=row.revision,
        batch_id=row.batch_id,
        replay_of=row.replay_of,
        thread=row.thread,
        schedule_id=row.schedule_id,
        error_code=row.error_code,
    )
