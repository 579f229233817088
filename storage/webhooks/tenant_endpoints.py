"""Endpoints that get the webhooks of all jobs and batches of their tenant, each with its own secrets.

The transactions that end a job or batch read them, and store a delivery for each: rows.py says for a job's row whether
its tenant has any, so that those without cost no statement.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, and_, bindparam, delete, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import BatchEventType, EndpointRequest, WebhookEventType
from chatjobs.errors import EndpointNotFound, TooManyEndpoints
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import endpoints, micros, now, tenant_endpoints
from storage.keys import OLD_SECRET_SIGNS

MOST_ENDPOINTS = 16
"""Endpoints of a tenant."""
MOST_SECRETS = 8
"""Secrets of an endpoint that sign at the same time."""
CHANGE_LOCK = text("SELECT pg_advisory_xact_lock(7236)")
SUBSCRIBED = select(tenant_endpoints.c.tenant, tenant_endpoints.c.url, tenant_endpoints.c.events).where(
    tenant_endpoints.c.tenant.in_(bindparam("tenants", expanding=True))
)
Secrets = Sequence[tuple[str | None, int | None]]
"""(secret, until when it signs in microseconds; None: until it is replaced), newest first. The secret None stands for
those of the tenant."""


class Subscriber(NamedTuple):
    """An endpoint and the events that it gets."""

    url: str
    events: frozenset[str]


class TenantEndpointStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def put(self, tenant: str, wanted: EndpointRequest) -> bool:
        """Add an endpoint, or change the one with this URL: its events, and its secret if a new one is given.

        Durable. The URL is in its normal form. Returns whether it is new. Raises TooManyEndpoints.
        """
        tenant, url = clean(tenant), clean(wanted.url)
        async with self._database.write() as connection:
            if not self._database.is_sqlite:  # two processes that add at once would add one too many
                await connection.execute(CHANGE_LOCK)
            query = select(tenant_endpoints).where(tenant_endpoints.c.tenant == tenant)
            known = {row.url: row for row in (await connection.execute(query)).all()}
            if url not in known and len(known) >= MOST_ENDPOINTS:
                raise TooManyEndpoints
            time = now()
            values = {
                "events": json.dumps([event.value for event in dict.fromkeys(wanted.events)]),
                "secrets": json.dumps(_rotated(known.get(url), wanted.secret, time)),
                "updated_at": micros(time),
            }
            if url in known:
                await connection.execute(update(tenant_endpoints).where(_is(tenant, url)).values(values))
            else:
                identity = {"tenant": tenant, "url": url, "created_at": micros(time)}
                await connection.execute(insert(tenant_endpoints), identity | values)
            dialect = sqlite if self._database.is_sqlite else postgresql
            health = dialect.insert(endpoints).on_conflict_do_nothing()
            await connection.execute(health, {"tenant": tenant, "url": url, "failures": 0, "successes": 0})
        return url not in known

    @retried
    async def delete(self, tenant: str, url: str) -> None:
        """Delete an endpoint and its secrets, durably: jobs and batches that end from now on are not sent there. Its
        health stays. Raises EndpointNotFound."""
        async with self._database.write() as connection:
            deleted = await connection.execute(delete(tenant_endpoints).where(_is(clean(tenant), clean(url))))
        if not deleted.rowcount:
            raise EndpointNotFound("No endpoint of all jobs has this URL; look at `starter.py endpoints`")

    async def secrets_of(self, tenant: str, url: str) -> Sequence[str | None] | None:
        """The secrets that sign what is sent to a URL now, newest first; None in it stands for the tenant's. None: it
        is no endpoint of all jobs."""
        query = select(tenant_endpoints.c.secrets).where(_is(clean(tenant), clean(url)))
        async with self._database.single() as connection:
            found = await connection.scalar(query)
        return None if found is None else signing(found)


def endpoint_join(tenant: Any, url: Any) -> Any:
    """The condition that joins the endpoint of all jobs with a URL."""
    return and_(tenant_endpoints.c.tenant == tenant, tenant_endpoints.c.url == url)


def signing(stored: str) -> Sequence[str | None]:
    """The secrets that sign now, from the column ``secrets``."""
    time = micros(now())
    return [secret for secret, until in json.loads(stored) if until is None or until > time] or [None]


async def subscribers(connection: AsyncConnection, tenants: Collection[str]) -> Mapping[str, Sequence[Subscriber]]:
    """The endpoints of tenants, by tenant."""
    found: dict[str, list[Subscriber]] = defaultdict(list)
    if tenants:
        for row in (await connection.execute(SUBSCRIBED, {"tenants": sorted(tenants)})).all():
            found[row.tenant].append(Subscriber(row.url, frozenset(json.loads(row.events))))
    return found


def urls_for(
    event: WebhookEventType | BatchEventType, among: Sequence[Subscriber], *, besides: str | None
) -> Sequence[str]:
    """The URLs that get an event. ``besides``: the one that gets it already, as the webhook of the job or batch."""
    return [one.url for one in among if event.value in one.events and one.url != besides]


def _rotated(row: Row[Any] | None, secret: str | None, time: datetime) -> Secrets:
    """The secrets of an endpoint after a change; ``secret`` is None where it keeps what it has."""
    if row is None:
        return [(secret, None)]
    current: Secrets = [(one, until) for one, until in json.loads(row.secrets) if until is None or until > micros(time)]
    if secret is None or (current and current[0][0] == secret):
        return current
    until = micros(time + OLD_SECRET_SIGNS)
    older = [(one, until if end is None else end) for one, end in current if one != secret]
    return [(secret, None), *older][:MOST_SECRETS]


def _is(tenant: str, url: str) -> Any:
    return and_(tenant_endpoints.c.tenant == tenant, tenant_endpoints.c.url == url)
