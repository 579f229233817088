"""The commands `redeliver` and `endpoints`: webhooks made again, and how the URLs that they go to do."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chatjobs.contracts import Endpoint, EndpointList, Redelivering, Redelivery, WireModel
from chatjobs.errors import DeliveryNotFound
from storage.database import Database
from storage.deliveries import DeliveryStore
from storage.endpoints import EndpointStore
from terminal.output import complain, console, local_time, one_line, safe, write
from terminal.place import find

OK = 0
DELIVERY_PREFIX = "whe_"
COLOURS = {"ok": "green", "failing": "yellow", "disabled": "red"}


class Webhooks:
    """Each command is a method: it prints, and returns the exit code. Workers and gateways do what is stored here."""

    def __init__(self, database: Database, default_tenant: str, *, as_json: bool) -> None:
        self._deliveries = DeliveryStore(database)
        self._endpoints = EndpointStore(database)
        self._default_tenant = default_tenant
        self._as_json = as_json

    async def redeliver(self, name: str) -> int:
        """``name`` is a delivery's id or a job's."""
        return self._told(Redelivering(count=await self._again(name)))

    async def redeliver_some(self, chosen: Redelivery, tenant: str | None) -> int:
        return self._told(await self._deliveries.redeliver_some(chosen, tenant or self._default_tenant))

    async def list_endpoints(self, tenant: str | None) -> int:
        found = await self._endpoints.list(tenant or self._default_tenant)
        if self._as_json:
            self._print(EndpointList(endpoints=tuple(found)))
        elif found:
            console().print(_table(found))
        else:
            complain("no webhook was sent lately")
        return OK

    async def enable(self, url: str, tenant: str | None) -> int:
        enabled = await self._endpoints.enable(tenant or self._default_tenant, url)
        if self._as_json:
            self._print(enabled)
        else:
            write(f"{safe(enabled.url)} enabled\n")
            complain("what failed meanwhile is not sent by itself: `starter.py redeliver --since … --url …`")
        return OK

    async def _again(self, name: str) -> int:
        if name.startswith(DELIVERY_PREFIX):
            with suppress(DeliveryNotFound):
                await self._deliveries.redeliver(name, telling=False)
                return 1
        return len(await self._deliveries.redeliver_job(name, telling=False))

    def _told(self, made: Redelivering) -> int:
        if self._as_json:
            self._print(made)
            return OK
        write(f"{made.count} {'delivery' if made.count == 1 else 'deliveries'} will be made again\n")
        if made.more:
            complain("there are more: give this command again")
        return OK

    def _print(self, value: WireModel) -> None:
        write(f"{one_line(value.model_dump(mode='json'))}\n")


def _table(endpoints: Sequence[Endpoint]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("status", "to", "delivered", "failed", "since", "last error"):
        table.add_column(column, overflow="fold")
    for one in endpoints:
        status = Text(one.status + (f" ({one.disabled_reason})" if one.disabled_reason else ""), COLOURS[one.status])
        counts = (str(one.successes), str(one.failures))
        since = local_time(one.disabled_at or one.failing_since)
        table.add_row(status, safe(one.url), *counts, since, safe(one.last_error or ""))
    return table


@asynccontextmanager
async def opened(*, as_json: bool) -> AsyncIterator[Webhooks]:
    """What the commands work with. Raises ConfigurationError, StorageUnavailable."""
    logging.getLogger().addHandler(logging.NullHandler())  # what a person should know is said by the commands
    place = find()
    database = await place.open_database(create=False)
    try:
        yield Webhooks(database, place.settings.chatjobs_direct_tenant, as_json=as_json)
    finally:
        await database.close()
