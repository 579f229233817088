"""Deliveries and their tries: what was promised to receivers, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Delivery, DeliveryTry
from chatjobs.errors import DeliveryNotFound
from storage import presenting
from storage.database import Database, retried
from storage.schema import deliveries, delivery_tries, micros, now
from storage.text import clean


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a try needs: where to, and the exact bytes. ``tries`` counts those already made."""

    id: str
    tenant: str
    url: str
    body: bytes
    body_timestamp: str
    status: str
    tries: int


class DeliveryStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def parcel(self, delivery_id: str) -> Parcel:
        """Raises DeliveryNotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(deliveries).where(deliveries.c.id == delivery_id))).first()
            made = await connection.scalar(_count(delivery_id))
        return _parcel(row, made or 0)

    @retried
    async def record(
        self,
        delivery_id: str,
        one_try: DeliveryTry,
        *,
        delivered: bool,
        next_try_at: datetime | None,
    ) -> int:
        """Store a try and what follows from it; the number of tries so far is returned.

        Not delivered and no next try: the delivery has failed for good. Delivered once, it stays delivered. A try that
        is there already (it began at the same microsecond) is not stored twice. Raises DeliveryNotFound.
        """
        async with self._database.write() as connection:
            await _locked(connection, delivery_id)
            made = await connection.scalar(_count(delivery_id)) or 0
            if await connection.scalar(_same(delivery_id, one_try)) is not None:
                return made
            await connection.execute(insert(delivery_tries).values(_try_row(delivery_id, made + 1, one_try)))
            statement = update(deliveries).where(deliveries.c.id == delivery_id, deliveries.c.status != "delivered")
            await connection.execute(statement.values(_outcome(delivered, next_try_at)))
        return made + 1

    @retried
    async def put_off(self, delivery_id: str, until: datetime) -> None:
        """The next try is later than was said, without one being made meanwhile."""
        pending = update(deliveries).where(deliveries.c.id == delivery_id, deliveries.c.status == "pending")
        async with self._database.write() as connection:
            await connection.execute(pending.values(next_try_at=micros(until)))

    async def get(self, delivery_id: str, tenant: str | None = None) -> Delivery:
        """A delivery with its tries. Raises DeliveryNotFound."""
        query = select(deliveries).where(deliveries.c.id == delivery_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
            if row is None or tenant not in (None, row.tenant):
                raise DeliveryNotFound
            return presenting.delivery(row, await presenting.tries(connection, delivery_id))

    async def overdue(self, by: timedelta, limit: int = 100) -> Sequence[Parcel]:
        """Pending deliveries whose next try should have been made: nobody seems to own them."""
        query = (
            select(deliveries, _count(deliveries.c.id).scalar_subquery().label("made"))
            .where(deliveries.c.status == "pending", deliveries.c.next_try_at <= micros(now() - by))
            .order_by(deliveries.c.next_try_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [_parcel(row, row.made) for row in rows]


async def _locked(connection: AsyncConnection, delivery_id: str) -> None:
    """Two tries at once (one of them by hand) get two numbers."""
    query = select(deliveries.c.id).where(deliveries.c.id == delivery_id).with_for_update()
    if await connection.scalar(query) is None:
        raise DeliveryNotFound


def _same(delivery_id: str, one_try: DeliveryTry) -> Any:
    found = select(delivery_tries.c.number).where(delivery_tries.c.delivery_id == delivery_id)
    return found.where(delivery_tries.c.started_at == micros(one_try.started_at))


def _try_row(delivery_id: str, number: int, one_try: DeliveryTry) -> dict[str, Any]:
    return {
        "delivery_id": delivery_id,
        "number": number,
        "started_at": micros(one_try.started_at),
        "latency_ms": one_try.latency_ms,
        "status_code": one_try.status_code,
        "error": clean(one_try.error)[:512] if one_try.error else None,
        "response": clean(one_try.response) if one_try.response is not None else None,
    }


def _outcome(delivered: bool, next_try_at: datetime | None) -> dict[str, Any]:
    if delivered:
        return {"status": "delivered", "next_try_at": None, "delivered_at": micros(now())}
    if next_try_at is None:
        return {"status": "failed", "next_try_at": None}
    return {"status": "pending", "next_try_at": micros(next_try_at)}


def _count(delivery_id: Any) -> Select[Any]:
    return select(func.count()).select_from(delivery_tries).where(delivery_tries.c.delivery_id == delivery_id)


def _parcel(row: Row[Any] | None, made: int) -> Parcel:
    if row is None:
        raise DeliveryNotFound
    return Parcel(row.id, row.tenant, row.url, row.body, row.body_timestamp, row.status, made)
