"""The live feed of all jobs and figures over time, for the page's list and charts."""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import datetime, timedelta
from typing import Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from chatjobs.contracts import JobStatus
from dispatch.stream_events import KEEP_ALIVE
from domain.errors import StorageUnavailable
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.page.overview import MOST_CHANGED, OVERLAP, Feed, Stats, message
from gateway.problems import HttpProblem
from gateway.routes.jobs import Caller, Here, cursor_of
from gateway.routes.streams import EventStreamResponse
from storage.engine.schema import moment, now

log = logging.getLogger(__name__)

PAGE = 50
RESUMABLE = timedelta(minutes=5)
"""A reader that was disconnected for longer gets the first page again."""

router = APIRouter(prefix="/api")


@router.get("/feed", responses={200: {"content": {"text/event-stream": {}}}}, response_model=None)
async def feed(request: Request, here: Here, caller: Caller) -> Response:
    """Counts per status and changed jobs, as server-sent events.

    The first event is ``hello``, with the first page of jobs, unless ``Last-Event-ID`` (or ``?lastEventId=``) is
    recent; ``jobs`` has the jobs that have changed since.
    """
    given = request.headers.get("last-event-id", request.query_params.get("lastEventId"))
    return FeedStream(here, caller, _read_id(given) if given else None)


def _read_id(given: str) -> datetime | None:
    """The time in an event id; None if it is too long ago to resume from. Raises HttpProblem."""
    if not re.fullmatch(r"[0-9]{1,17}", given):
        raise HttpProblem(400, "bad_event_id", "Last-Event-ID is not an id of this stream; leave it out to start over")
    since = moment(int(given))
    return since if timedelta(0) <= now() - since + OVERLAP < RESUMABLE else None


class FeedStream(EventStreamResponse):
    """One reader of a feed; ``since`` is None for a reader that does not resume."""

    def __init__(self, here: Dependencies, caller: Identity, since: datetime | None) -> None:
        super().__init__(here, caller)
        self._since = since

    async def send_events(self, send: Send) -> None:
        try:
            with self._here.feeds.joined(self._caller.tenant) as joined:
                await self._send_messages(send, joined)
        except StorageUnavailable as error:
            log.warning("feed ended: %s", error, extra={"action": "feed_ended"})

    async def _send_messages(self, send: Send, joined: Feed) -> None:
        number = joined.number
        await self.write_events(send, await self._first())
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_seconds):
                    messages, number = await joined.after(number), joined.number
            except TimeoutError:
                await self.write(send, KEEP_ALIVE)
            else:
                await self.write_events(send, await self._hello() if messages is None else messages)

    async def _first(self) -> bytes:
        """The first message: the changes since ``since`` for a reader that resumes, else ``hello``."""
        if self._since is None:
            return await self._hello()
        at, overview, tenant = now(), self._here.feeds.overview, self._caller.tenant
        changed = await overview.changed(tenant, self._since - OVERLAP, limit=MOST_CHANGED)
        return message(
            "jobs",
            at,
            await overview.counts(tenant),
            await self._here.details.many(changed.jobs),
            more=changed.more,
        )

    async def _hello(self) -> bytes:
        at, tenant = now(), self._caller.tenant
        counts = await self._here.feeds.overview.counts(tenant)
        found = await self._here.details.many(await self._here.jobs.queries.list(tenant=tenant, limit=PAGE))
        cursor = cursor_of(found[-1]) if len(found) == PAGE else None
        return message("hello", at, counts, found, nextCursor=cursor)


@router.get("/stats", response_model=Stats)
async def stats(here: Here, caller: Caller, window: Literal["15m", "1h", "6h", "24h", "7d"] = "1h") -> Response:
    """Finished jobs, their final statuses and durations, over time."""
    found = await here.figures.stats(caller.tenant, window)
    return Response(found.model_dump_json(), headers={"Cache-Control": "no-store"}, media_type="application/json")


@router.get("/counts")
async def counts(here: Here, caller: Caller) -> dict[JobStatus, int]:
    """The number of jobs per status."""
    return await here.feeds.overview.counts(caller.tenant)
