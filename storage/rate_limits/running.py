"""The calls that run in a lane: its open attempts, as far as their workers live.

An attempt is in the ledger from the transaction that grants its turn until it ends, so that nothing else has to be
written for a call, and nothing can be left behind: a worker renews one lease for all its calls, and those of a worker
that died or stands still count no more once the lease is over.
"""

from __future__ import annotations

import asyncio
import logging
import uuid

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import StorageError
from domain.timings import Timings
from storage.engine.database import Database, retried
from storage.engine.schema import attempts, worker_leases
from storage.rate_limits.breaker import SECOND

RETRY_SECONDS = 0.2
"""Between tries to renew the lease while the database is away."""
FORGOTTEN_AFTER = 24 * 3600
"""Seconds after which a lease that is over is deleted."""

CALLS = attempts.c
COUNT_RUNNING = (
    select(func.count())
    .select_from(attempts.join(worker_leases, worker_leases.c.id == CALLS.worker))
    .where(CALLS.lane == bindparam("lane_name"), CALLS.ended_at.is_(None), CALLS.job_id != bindparam("key"))
    .where(worker_leases.c.until > bindparam("time"))
)
RUNNING = (
    select(CALLS.lane, func.count())
    .select_from(attempts.join(worker_leases, worker_leases.c.id == CALLS.worker))
    .where(CALLS.lane.is_not(None), CALLS.ended_at.is_(None), worker_leases.c.until > bindparam("time"))
)
"""The same for several lanes: to be grouped by lane."""

log = logging.getLogger(__name__)


async def count_running(connection: AsyncConnection, lane: str, time: int, *, besides: str = "") -> int:
    """The number of calls that run in a lane, without that of the job ``besides``."""
    values = {"lane_name": lane, "time": time, "key": besides}
    return int(await connection.scalar(COUNT_RUNNING, values) or 0)


class WorkerLease:
    """The lease of a process for all its calls; ``run`` renews it."""

    def __init__(self, database: Database, *, timings: Timings = Timings()) -> None:
        self.id = uuid.uuid4().hex
        self._database = database
        self._seconds = timings.worker_lease_seconds
        self._pause = timings.lease_renewal_seconds
        self._until = 0

    async def run(self) -> None:
        """Renew the lease until cancelled."""
        while True:
            try:
                await self.renew()
            except StorageError as error:
                log.warning("lease not renewed: %s", error, extra={"action": "lease_waits"})
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("lease not renewed", extra={"action": "lease_failed"})
                await asyncio.sleep(self._pause)
            else:
                await asyncio.sleep(self._pause)

    @retried
    async def renew(self) -> None:
        async with self._database.write("fast") as connection:
            time = await self._database.time(connection)
            await self._renew(connection, time)
            forgotten = worker_leases.c.until < time - FORGOTTEN_AFTER * SECOND
            await connection.execute(delete(worker_leases).where(forgotten))

    async def ensure(self, connection: AsyncConnection, time: int) -> None:
        """Renew the lease in the caller's transaction if it is over, so that the call that begins with it counts."""
        if self._until <= time:
            await self._renew(connection, time)

    async def _renew(self, connection: AsyncConnection, time: int) -> None:
        dialect = sqlite if self._database.is_sqlite else postgresql
        until = time + int(self._seconds * SECOND)
        made = dialect.insert(worker_leases).values(id=self.id, until=until)
        await connection.execute(made.on_conflict_do_update(index_elements=["id"], set_={"until": made.excluded.until}))
        self._until = until
