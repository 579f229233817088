"""Deliveries and their tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, case, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Delivery, DeliveryTry, Redelivering, Redelivery
from chatjobs.errors import ContentDeleted, DeliveryNotFound, JobNotFound
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import deliveries, delivery_tries, micros, now, tenant_endpoints
from storage.engine.schema import endpoints as endpoints_table
from storage.jobs import mapping
from storage.jobs.rows import by_id
from storage.webhooks import endpoints
from storage.webhooks.endpoints import ENDPOINT_DELETED, ENDPOINT_DISABLED
from storage.webhooks.tenant_endpoints import endpoint_join, signing

NOTIFY_SECONDS = 10
"""The time in which the process that took a request notifies Temporal; after it, another process does."""
SWEEP_BATCH = 100
"""Deliveries that a sweeper takes at once."""
BATCH = 200
"""Deliveries that one transaction changes."""
MOST_AT_ONCE = 10_000
"""Deliveries that one call of ``redeliver_some`` requests again."""


@dataclass(frozen=True, slots=True)
class OutgoingWebhook:
    """A delivery as a try needs it: URL and exact bytes. ``tries`` counts those already made.

    ``disabled``: its endpoint is disabled, and nothing may be sent there. ``deleted``: it was for an endpoint of all
    jobs that is gone. ``request``: identifies a requested try that Temporal was not notified of. ``secrets``: those of
    the URL, newest first; None stands for the tenant's.
    """

    id: str
    tenant: str
    url: str
    body: bytes
    body_timestamp: str
    status: str
    tries: int
    disabled: bool = False
    deleted: bool = False
    request: int | None = None
    secrets: Sequence[str | None] = field(default=(None,), repr=False)


class RecordedTry(NamedTuple):
    """The number of tries so far, and the endpoint's state after them."""

    tries: int
    endpoint: endpoints.EndpointState


class RedeliveryRequest(NamedTuple):
    """A delivery for which a try was requested. ``tries`` were made before; ``until`` identifies the request's holder,
    who notifies Temporal."""

    id: str
    tries: int
    until: int


class DeliveryStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def outgoing(self, delivery_id: str) -> OutgoingWebhook:
        """A delivery as a try needs it. Raises DeliveryNotFound."""
        joined = endpoints.disabled_join(deliveries.c.tenant, deliveries.c.url)
        query = select(deliveries, endpoints_table.c.disabled_at, tenant_endpoints.c.secrets)
        query = query.outerjoin(endpoints_table, joined)
        query = query.outerjoin(tenant_endpoints, endpoint_join(deliveries.c.tenant, deliveries.c.url))
        async with self._database.read() as connection:
            row = (await connection.execute(query.where(deliveries.c.id == delivery_id))).first()
            made = await connection.scalar(_count(delivery_id))
        if row is None:
            raise DeliveryNotFound
        return replace(
            _outgoing(row, made or 0),
            disabled=row.disabled_at is not None,
            deleted=row.of_endpoint and row.secrets is None,
            request=row.wanted_at,
            secrets=(None,) if row.secrets is None else signing(row.secrets),
        )

    @retried
    async def record_try(
        self,
        delivery_id: str,
        one_try: DeliveryTry,
        *,
        delivered: bool,
        next_try_at: datetime | None,
        sent: bool = True,
        request: int | None = None,
    ) -> RecordedTry:
        """Store a try and update its delivery, and its endpoint too if the try was ``sent``.

        ``request``: that of the OutgoingWebhook with which the try began; a newer one keeps the delivery pending.

        A try that failed and has no next one, or whose endpoint is disabled, fails the delivery for good, unless it was
        delivered before. A try that is stored already (it began at the same microsecond) is not stored twice.
        Raises DeliveryNotFound.
        """
        async with self._database.write() as connection:
            row = await _locked(connection, delivery_id)
            made = await connection.scalar(_count(delivery_id)) or 0
            same = (
                delivery_tries.c.delivery_id == delivery_id,
                delivery_tries.c.started_at == micros(one_try.started_at),
            )
            if await connection.scalar(select(delivery_tries.c.number).where(*same)) is not None:
                return RecordedTry(made, await endpoints.state(connection, row.tenant, row.url))
            await connection.execute(insert(delivery_tries).values(_try_row(delivery_id, made + 1, one_try)))
            endpoint: endpoints.EndpointState = "enabled"
            if sent:
                place = (self._database, connection, row.tenant, row.url)
                endpoint = await endpoints.record_try(*place, one_try, delivered=delivered)
            if row.wanted_at not in (None, request):  # a redelivery, requested since the try began
                await _note_success(connection, delivery_id, delivered)
            else:
                await _end_try(connection, delivery_id, delivered, next_try_at if endpoint == "enabled" else None)
        return RecordedTry(made + 1, endpoint)

    @retried
    async def refuse(self, delivery_id: str, error: str = ENDPOINT_DISABLED) -> int:
        """Fail a delivery to a disabled or deleted endpoint, with a try that says that nothing was sent.

        Returns the number of tries. Raises DeliveryNotFound.
        """
        async with self._database.write() as connection:
            row = await _locked(connection, delivery_id)
            made = await connection.scalar(_count(delivery_id)) or 0
            kept = DeliveryTry(number=0, started_at=now(), latency_ms=0, error=error)
            await connection.execute(insert(delivery_tries).values(_try_row(delivery_id, made + 1, kept)))
            if error == ENDPOINT_DISABLED:
                await endpoints.record_refusal(connection, row.tenant, row.url)
            await _end_try(connection, delivery_id, delivered=False, next_try_at=None)
        return made + 1

    @retried
    async def postpone(self, delivery_id: str, until: datetime) -> None:
        """Move the next try to a later time."""
        pending = update(deliveries).where(deliveries.c.id == delivery_id, deliveries.c.status == "pending")
        async with self._database.write() as connection:
            await connection.execute(pending.values(next_try_at=micros(until)))

    async def overdue(self, by: timedelta) -> Sequence[OutgoingWebhook]:
        """Pending deliveries whose next try is late ``by`` so much: they seem to have no workflow run."""
        query = (
            select(deliveries, _count(deliveries.c.id).scalar_subquery().label("made"))
            .where(deliveries.c.status == "pending", deliveries.c.next_try_at <= micros(now() - by))
            .where(deliveries.c.wanted_at.is_(None))
            .order_by(deliveries.c.next_try_at)
            .limit(SWEEP_BATCH)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [_outgoing(row, row.made) for row in rows]

    async def of_job(self, job_id: str, tenant: str | None = None) -> Sequence[Delivery]:
        """A job's deliveries with their tries, oldest first. Raises JobNotFound, ContentDeleted."""
        query = select(deliveries).where(deliveries.c.job_id == clean(job_id)).order_by(deliveries.c.created_at)
        async with self._database.read() as connection:
            await _check_job(connection, job_id, tenant)
            rows = (await connection.execute(query)).all()
            return [mapping.delivery(row, await mapping.tries(connection, row.id)) for row in rows]

    # ---------------------------------------------------------------------------------------- redeliveries

    @retried
    async def redeliver(
        self, delivery_id: str, *, tenant: str | None = None, job_id: str | None = None, notifying: bool = True
    ) -> RedeliveryRequest:
        """Request a try now, whatever the outcome of those before; the same bytes are sent under the same id.

        The request is durable once this returns. ``notifying``: the caller notifies Temporal; otherwise a sweeper does.
        Raises DeliveryNotFound, and for a ``job_id`` JobNotFound and ContentDeleted.
        """
        conditions = [deliveries.c.id == clean(delivery_id)]
        conditions += [] if tenant is None else [deliveries.c.tenant == tenant]
        conditions += [] if job_id is None else [deliveries.c.job_id == clean(job_id)]
        async with self._database.write() as connection:
            if job_id is not None:
                await _check_job(connection, job_id, tenant)
            found = (await connection.execute(_request_try(notifying).where(*conditions).returning(*REQUEST))).first()
        if found is None:
            raise DeliveryNotFound
        return RedeliveryRequest(*found)

    @retried
    async def redeliver_job(
        self, job_id: str, tenant: str | None = None, *, notifying: bool = True
    ) -> Sequence[RedeliveryRequest]:
        """``redeliver`` for all deliveries of a job. Raises JobNotFound, ContentDeleted."""
        async with self._database.write() as connection:
            await _check_job(connection, job_id, tenant)
            request = _request_try(notifying).where(deliveries.c.job_id == clean(job_id))
            found = (await connection.execute(request.returning(*REQUEST))).all()
        return [RedeliveryRequest(*row) for row in found]

    async def redeliver_some(self, chosen: Redelivery, tenant: str, limit: int = MOST_AT_ONCE) -> Redelivering:
        """``redeliver`` for the deliveries of a period, oldest first; the sweepers notify Temporal."""
        until = chosen.until or now()
        query: Select[Any] = (
            select(*PAGE_KEY)
            .where(deliveries.c.tenant == clean(tenant), deliveries.c.status == chosen.status)
            .where(deliveries.c.created_at >= micros(chosen.since), deliveries.c.created_at < micros(until))
            .order_by(*PAGE_KEY)
        )
        if chosen.url is not None:
            query = query.where(deliveries.c.url == clean(chosen.url))
        rest, count = query, 0
        while count < limit:
            size = min(BATCH, limit - count)
            found = await self._redeliver_batch(rest.limit(size))
            count += len(found)
            if len(found) < size:
                return Redelivering(count=count)
            rest = query.where(tuple_(*found[-1]) < tuple_(*PAGE_KEY))
        async with self._database.read() as connection:
            more = (await connection.execute(rest.limit(1))).first()
        return Redelivering(count=count, more=more is not None)

    @retried
    async def _redeliver_batch(self, query: Select[Any]) -> Sequence[Any]:
        async with self._database.write() as connection:
            found: Sequence[Any] = (await connection.execute(query)).all()
            if found:
                those = deliveries.c.id.in_([row.id for row in found])
                await connection.execute(_request_try(notifying=False).where(those))
        return found

    async def wake(self, tenant: str, url: str) -> int:
        """Request a try of all pending deliveries to an endpoint whose state has changed. Returns their number."""
        waiting = (deliveries.c.tenant == tenant, deliveries.c.url == url, deliveries.c.status == "pending")
        some = select(deliveries.c.id).where(*waiting, deliveries.c.wanted_at.is_(None)).limit(BATCH)
        count = 0
        while True:
            changed = await self._wake_batch(some)
            count += changed
            if changed < BATCH:
                return count

    @retried
    async def _wake_batch(self, some: Select[Any]) -> int:
        woken = update(deliveries).where(deliveries.c.id.in_(some)).values(wanted_at=micros(now()))
        async with self._database.write() as connection:
            return (await connection.execute(woken)).rowcount

    async def give_up(self, tenant: str, url: str, before: datetime) -> int:
        """Fail the pending deliveries to an endpoint of all jobs that was deleted at a time; one that is not reached
        fails at its next try. Returns their number."""
        to_it = (deliveries.c.tenant == tenant, deliveries.c.url == url, deliveries.c.of_endpoint)
        some = select(deliveries.c.id).where(*to_it, deliveries.c.status == "pending").limit(BATCH)
        some = some.where(deliveries.c.created_at <= micros(before))
        count = 0
        while True:
            failed = await self._give_up_batch(some)
            count += failed
            if failed < BATCH:
                return count

    @retried
    async def _give_up_batch(self, some: Select[Any]) -> int:
        ended_as = case((deliveries.c.delivered_at.is_not(None), "delivered"), else_="failed")
        over = {"status": ended_as, "next_try_at": None, "wanted_at": None}
        ended = update(deliveries).where(deliveries.c.id.in_(some), deliveries.c.status == "pending").values(over)
        kept = DeliveryTry(number=0, started_at=now(), latency_ms=0, error=ENDPOINT_DELETED)
        async with self._database.write() as connection:
            ids = (await connection.execute(ended.returning(deliveries.c.id))).scalars().all()
            counts = select(delivery_tries.c.delivery_id, func.max(delivery_tries.c.number))
            made = counts.where(delivery_tries.c.delivery_id.in_(ids)).group_by(delivery_tries.c.delivery_id)
            numbers = {row[0]: row[1] for row in (await connection.execute(made)).all()}
            if ids:
                rows = [_try_row(one, numbers.get(one, 0) + 1, kept) for one in ids]
                await connection.execute(insert(delivery_tries), rows)
        return len(ids)

    async def take_requests(self) -> Sequence[RedeliveryRequest]:
        """Take the requests that Temporal was not notified of; for NOTIFY_SECONDS no other caller gets them."""
        due = deliveries.c.wanted_at <= micros(now())
        async with self._database.read() as connection:  # most of the time there are none, and nothing is written
            if (await connection.execute(select(deliveries.c.id).where(due).limit(1))).first() is None:
                return []
        return await self._take(due)

    @retried
    async def _take(self, due: Any) -> Sequence[RedeliveryRequest]:
        until = micros(now() + timedelta(seconds=NOTIFY_SECONDS))
        some = select(deliveries.c.id).where(due).order_by(deliveries.c.wanted_at).limit(SWEEP_BATCH)
        taken = update(deliveries).where(deliveries.c.id.in_(some.with_for_update(skip_locked=True)), due)
        async with self._database.write("fast") as connection:
            found = (await connection.execute(taken.values(wanted_at=until).returning(*REQUEST))).all()
        return [RedeliveryRequest(*row) for row in found]

    async def open_request(self, delivery_id: str) -> RedeliveryRequest | None:
        """The request of a delivery that Temporal was not notified of; None if there is none."""
        query = select(*REQUEST).where(deliveries.c.id == delivery_id, deliveries.c.wanted_at.is_not(None))
        async with self._database.read() as connection:
            found = (await connection.execute(query)).first()
        return None if found is None else RedeliveryRequest(*found)

    @retried
    async def mark_notified(self, request: RedeliveryRequest) -> None:
        """Record that a request needs no further notice to Temporal. A newer request for the same delivery stays."""
        this = (deliveries.c.id == request.id, deliveries.c.wanted_at == request.until)
        async with self._database.write("fast") as connection:
            await connection.execute(update(deliveries).where(*this).values(wanted_at=None))


async def _check_job(connection: AsyncConnection, job_id: str, tenant: str | None) -> None:
    """Raises JobNotFound, ContentDeleted."""
    row = (await connection.execute(by_id(job_id, tenant))).first()
    if row is None:
        raise JobNotFound
    if row.deleted_at is not None:
        raise ContentDeleted


def _request_try(notifying: bool) -> Any:
    """The update that requests a try now. While the caller is notifying Temporal, no other process does."""
    time = now()
    until = time + timedelta(seconds=NOTIFY_SECONDS if notifying else 0)
    return update(deliveries).values(status="pending", next_try_at=micros(time), wanted_at=micros(until))


async def _locked(connection: AsyncConnection, delivery_id: str) -> Row[Any]:
    """A delivery's place and request; its row is locked, so that concurrent tries get different numbers."""
    query: Select[Any] = select(deliveries.c.tenant, deliveries.c.url, deliveries.c.wanted_at).where(
        deliveries.c.id == delivery_id
    )
    row: Row[Any] | None = (await connection.execute(query.with_for_update())).first()
    if row is None:
        raise DeliveryNotFound
    return row


async def _note_success(connection: AsyncConnection, delivery_id: str, delivered: bool) -> None:
    """Record that a delivery was delivered, which stays pending as another try of it is requested."""
    if delivered:
        this = update(deliveries).where(deliveries.c.id == delivery_id)
        await connection.execute(this.values(delivered_at=micros(now())))


async def _end_try(
    connection: AsyncConnection, delivery_id: str, delivered: bool, next_try_at: datetime | None
) -> None:
    statement = update(deliveries).where(deliveries.c.id == delivery_id, deliveries.c.status != "delivered")
    await connection.execute(statement.values(_outcome(delivered, next_try_at)))


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
        over = case((deliveries.c.delivered_at.is_not(None), "delivered"), else_="failed")
        return {"status": over, "next_try_at": None}
    return {"status": "pending", "next_try_at": micros(next_try_at)}


def _count(delivery_id: Any) -> Select[Any]:
    return select(func.count()).select_from(delivery_tries).where(delivery_tries.c.delivery_id == delivery_id)


PAGE_KEY = (deliveries.c.created_at, deliveries.c.id)
REQUEST = (deliveries.c.id, _count(deliveries.c.id).scalar_subquery(), deliveries.c.wanted_at)


def _outgoing(row: Row[Any], made: int) -> OutgoingWebhook:
    return OutgoingWebhook(row.id, row.tenant, row.url, row.body, row.body_timestamp, row.status, made)
