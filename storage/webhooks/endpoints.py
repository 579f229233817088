"""The health of webhook endpoints: one row per tenant and URL, updated with every try.

A URL that has failed for five days without one success, or that answered 410, is disabled: nothing is sent to it until
it is enabled by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Row, and_, case, delete, exists, func, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import BatchEventType, DeliveryTry, Endpoint, EndpointStatus, WebhookEventType
from chatjobs.errors import EndpointNotFound
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import endpoints, micros, moment, now, tenant_endpoints
from storage.webhooks.tenant_endpoints import endpoint_join, signing

GONE = 410
DISABLED_AFTER = timedelta(days=5)
QUIET = timedelta(hours=48)
"""A failure after so long without a try begins a new series of failures. Tries of one delivery are at most 29 hours
apart."""
ENDPOINT_DISABLED = "endpoint_disabled"
"""The error of a try that was not made."""
ENDPOINT_DELETED = "endpoint_deleted"
"""The same, for an endpoint of all jobs that is gone."""
DELETED_AT_ONCE = 1_000
MOST_LISTED = 1_000

EndpointState = Literal["enabled", "disabled", "just_disabled"]
RANKS: tuple[EndpointStatus, ...] = ("disabled", "failing", "ok")
"""The order of lists."""
LISTED = select(endpoints, tenant_endpoints.c.events, tenant_endpoints.c.secrets).outerjoin(
    tenant_endpoints, endpoint_join(endpoints.c.tenant, endpoints.c.url)
)


class EndpointStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self, tenant: str, *, status: EndpointStatus | None = None, limit: int = MOST_LISTED
    ) -> Sequence[Endpoint]:
        """A tenant's endpoints: the disabled ones, then the failing ones, then the others; the last used first."""
        last = case(
            (endpoints.c.last_failure_at.is_(None), func.coalesce(endpoints.c.last_success_at, 0)),
            (endpoints.c.last_success_at > endpoints.c.last_failure_at, endpoints.c.last_success_at),
            else_=endpoints.c.last_failure_at,
        )
        order = (_rank(), last.desc(), endpoints.c.url)
        query = LISTED.where(endpoints.c.tenant == clean(tenant)).order_by(*order).limit(limit)
        if status is not None:
            query = query.where(_rank() == RANKS.index(status))
        async with self._database.read() as connection:
            return [_endpoint(row) for row in (await connection.execute(query)).all()]

    @retried
    async def enable(self, tenant: str, url: str) -> Endpoint:
        """Enable an endpoint; its five days begin anew. Idempotent. Raises EndpointNotFound."""
        enabled = {"disabled_at": None, "disabled_reason": None, "failing_since": None}
        async with self._database.write() as connection:
            await connection.execute(update(endpoints).where(_is(tenant, url)).values(enabled))
            row = (await connection.execute(LISTED.where(_is(tenant, url)))).first()
        if row is None:
            raise EndpointNotFound
        return _endpoint(row)

    async def get(self, tenant: str, url: str) -> Endpoint:
        """One endpoint. Raises EndpointNotFound."""
        async with self._database.single() as connection:
            row = (await connection.execute(LISTED.where(_is(tenant, url)))).first()
        if row is None:
            raise EndpointNotFound
        return _endpoint(row)

    @retried
    async def delete_unused(self, before: datetime) -> int:
        """Delete up to DELETED_AT_ONCE endpoints without a delivery since a time, but for those of all jobs. Returns
        their number."""
        place = (endpoints.c.tenant, endpoints.c.url)
        used = (endpoints.c.last_success_at, endpoints.c.last_failure_at)
        of_all_jobs = exists().where(endpoint_join(*place))
        unused = and_(~of_all_jobs, *(or_(time.is_(None), time < micros(before)) for time in used))
        some = select(*place).where(unused).limit(DELETED_AT_ONCE)
        async with self._database.write("fast") as connection:
            deleted = await connection.execute(delete(endpoints).where(unused, tuple_(*place).in_(some)))
        return deleted.rowcount


def disabled_join(tenant: Any, url: Any) -> Any:
    """The condition that joins a disabled endpoint."""
    return and_(endpoints.c.tenant == tenant, endpoints.c.url == url, endpoints.c.disabled_at.is_not(None))


async def record_try(
    database: Database, connection: AsyncConnection, tenant: str, url: str, one_try: DeliveryTry, *, delivered: bool
) -> EndpointState:
    """Count a try that was sent, and disable the endpoint if that is due. The caller's transaction is a write."""
    time = now()
    if delivered:
        last = {"failing_since": None, "last_success_at": micros(time)}
        first: dict[str, Any] = {"failures": 0, "successes": 1, **last}
        changes: dict[str, Any] = {"successes": endpoints.c.successes + 1, **last}
    else:
        first, changes = _failed(time, one_try)
    dialect = sqlite if database.is_sqlite else postgresql
    counted = (
        dialect.insert(endpoints)
        .values(tenant=tenant, url=url, **first)
        .on_conflict_do_update(index_elements=[endpoints.c.tenant, endpoints.c.url], set_=changes)
        .returning(endpoints.c.failing_since, endpoints.c.disabled_at)
    )
    row = (await connection.execute(counted)).one()
    if row.disabled_at is not None:
        return "disabled"
    reason = None if delivered else _disable_reason(row.failing_since, time, one_try.status_code)
    if reason is None:
        return "enabled"
    disabled = {"disabled_at": micros(time), "disabled_reason": reason}
    await connection.execute(update(endpoints).where(_is(tenant, url)).values(disabled))
    return "just_disabled"


async def record_refusal(connection: AsyncConnection, tenant: str, url: str) -> None:
    """Count a try that was not sent because the endpoint is disabled: the endpoint is in use all the same."""
    used = {"failures": endpoints.c.failures + 1, "last_failure_at": micros(now())}
    await connection.execute(update(endpoints).where(_is(tenant, url)).values(used))


async def state(connection: AsyncConnection, tenant: str, url: str) -> EndpointState:
    found = await connection.scalar(select(endpoints.c.url).where(disabled_join(tenant, url)))
    return "enabled" if found is None else "disabled"


def _disable_reason(failing_since: int, time: datetime, status: int | None) -> str | None:
    if status == GONE:
        return "gone"
    return "failing" if time - moment(failing_since) >= DISABLED_AFTER else None


def _failed(time: datetime, one_try: DeliveryTry) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of an endpoint's first row after a failed try, and the changes to a row that is stored already."""
    begins = or_(endpoints.c.failing_since.is_(None), endpoints.c.last_failure_at < micros(time - QUIET))
    since = case((begins, micros(time)), else_=endpoints.c.failing_since)
    error = clean(one_try.error or f"HTTP {one_try.status_code}")[:512]
    last = {"last_failure_at": micros(time), "last_error": error}
    first = {"failures": 1, "successes": 0, "failing_since": micros(time), **last}
    return first, {"failures": endpoints.c.failures + 1, "failing_since": since, **last}


def _rank() -> Any:
    """The place of an endpoint's status in RANKS."""
    return case((endpoints.c.disabled_at.is_not(None), 0), (endpoints.c.failing_since.is_not(None), 1), else_=2)


def _is(tenant: str, url: str) -> Any:
    return and_(endpoints.c.tenant == clean(tenant), endpoints.c.url == clean(url))


def _endpoint(row: Row[Any]) -> Endpoint:
    failing: EndpointStatus = "failing" if row.failing_since is not None else "ok"
    return Endpoint(
        url=row.url,
        status="disabled" if row.disabled_at is not None else failing,
        failing_since=_time(row.failing_since),
        failures=row.failures,
        successes=row.successes,
        last_success_at=_time(row.last_success_at),
        last_failure_at=_time(row.last_failure_at),
        last_error=row.last_error,
        disabled_at=_time(row.disabled_at),
        disabled_reason=row.disabled_reason,
        events=None if row.events is None else tuple(map(_event, json.loads(row.events))),
        own_secret=row.secrets is not None and signing(row.secrets)[0] is not None,
    )


def _event(name: str) -> WebhookEventType | BatchEventType:
    return BatchEventType(name) if name.startswith("batch.") else WebhookEventType(name)


def _time(value: int | None) -> datetime | None:
    return None if value is None else moment(value)
