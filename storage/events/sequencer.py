"""Gives the changes of jobs their numbers: one process at a time, after they were committed.

A number that is given where a job changes would be visible out of order: transactions commit in another order than
they began, and a reader that has seen number 8 would never ask for number 7. So triggers write the changes without one
(migration 0016), and ``Sequencer`` moves those that are committed to ``events``, in an order that never changes again.
It holds the row of ``event_numbers`` for that, so that a number is visible only after all that are smaller; whoever
dies with it changes nothing.

Each change comes once: a job is inserted once, ``begun`` takes each revision once, and a seal has to be undone, under a
new revision, before the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time

from sqlalchemy import bindparam, delete, insert, select, update

from domain.errors import StorageUnavailable
from storage.engine.database import Database, retried
from storage.engine.schema import event_numbers, events, job_changes

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""Between two looks when there is nothing to do."""
BEHIND_SECONDS = 5.0
"""The same in a worker, which has work only where no gateway runs."""
REST = 1.0
"""After a transaction the database is left alone for so many times as long as it took."""
MOST_AT_ONCE = 400
"""Changes that one transaction numbers: on SQLite it takes some milliseconds, in which nobody else writes."""

ANY = select(job_changes.c.id).limit(1)
CHANGES = select(job_changes).order_by(job_changes.c.id).limit(MOST_AT_ONCE)
LAST = select(event_numbers.c.last).where(event_numbers.c.id == 1).with_for_update(skip_locked=True)
MOVED = update(event_numbers).where(event_numbers.c.id == 1)
EVENTS = insert(events)
DONE = delete(job_changes).where(job_changes.c.id.in_(bindparam("ids", expanding=True)))


class Sequencer:
    """Each gateway runs one, and each worker. ``look_seconds``: between two looks when there is nothing to do."""

    def __init__(self, database: Database, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._database = database
        self._look_seconds = look_seconds

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            began, numbered = time.monotonic(), 0
            try:
                numbered = await self.step()
            except StorageUnavailable as error:
                log.warning("events wait: %s", error, extra={"action": "events_wait"})
            except Exception:
                log.exception("events were not numbered", extra={"action": "events_failed"})
            full = numbered == MOST_AT_ONCE
            await asyncio.sleep(REST * (time.monotonic() - began) if full else self._look_seconds)

    @retried
    async def step(self) -> int:
        """Number up to MOST_AT_ONCE changes, and return how many. 0 if there are none, or another process is at it.

        Durable, so that no reader has seen a number that another event gets after a power loss. Raises
        StorageUnavailable.
        """
        async with self._database.single() as connection:
            if (await connection.execute(ANY)).first() is None:
                return 0
        async with self._database.write() as connection:
            last = await connection.scalar(LAST)
            if last is None:
                return 0
            changes = (await connection.execute(CHANGES)).all()
            if changes:
                rows = [
                    {
                        "number": number,
                        "tenant": change.tenant,
                        "job_id": change.job_id,
                        "event": change.event,
                        "revision": change.revision,
                        "at": change.at,
                        "error_code": change.error_code,
                    }
                    for number, change in enumerate(changes, last + 1)
                ]
                await connection.execute(EVENTS, rows)
                await connection.execute(DONE, {"ids": [change.id for change in changes]})
                await connection.execute(MOVED.values(last=last + len(changes)))
        return len(changes)


def behind(database: Database) -> Sequencer:
    """That of a worker."""
    return Sequencer(database, look_seconds=BEHIND_SECONDS)
