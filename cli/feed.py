"""The command `listen`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from chatjobs.contracts import FeedEvent, FeedEventType
from chatjobs.errors import InvalidRequest, Problem
from cli.groups import OK
from cli.output import complain, local_time, safe, write
from cli.place import ServiceLocation
from domain.errors import StorageUnavailable
from storage.engine.database import Database
from storage.events.feed import EventFeed, FeedPage

LOOK_SECONDS = 0.25
PATIENCE_SECONDS = 60
"""How long the database may be unavailable before the command gives up."""
AT_ONCE = 200


class FeedCommands:
    """Prints the events of all jobs. The gateways and workers that run give them their numbers."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._feed = EventFeed(database)
        self._default_tenant = place.settings.chatjobs_direct_tenant
        self._as_json = as_json

    async def listen(
        self,
        after: int | None,
        types: Collection[FeedEventType],
        tenant: str | None,
        *,
        everyone: bool,
        most: int | None,
    ) -> int:
        """Print events until interrupted, or ``most`` of them. Raises EventsExpired, InvalidRequest."""
        place = await self._feed.last() if after is None else after
        owner = None if everyone else tenant or self._default_tenant
        left = most
        try:
            while left is None or left > 0:
                page = await self._page(place, owner, types, min(left or AT_ONCE, AT_ONCE))
                for event in page.events:
                    write(f"{event.model_dump_json() if self._as_json else _line(event)}\n")
                place = page.next
                left = None if left is None else left - len(page.events)
                if not page.more:
                    await asyncio.sleep(LOOK_SECONDS)
        except asyncio.CancelledError:
            complain(f"go on with --after {place}")
            raise
        return OK

    async def _page(self, after: int, tenant: str | None, types: Collection[FeedEventType], limit: int) -> FeedPage:
        """The next events, also after a short outage of the database."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await self._feed.page(after, tenant=tenant, types=types, limit=limit)
            except ValueError:
                raise InvalidRequest([Problem("/after", "must be the id of an event of the feed")]) from None
            except StorageUnavailable:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(LOOK_SECONDS)


def _line(event: FeedEvent) -> str:
    parts = (event.id, local_time(event.timestamp), event.event.value, event.job_id, event.model, event.error_code)
    return "  ".join(safe(part) for part in parts if part)
