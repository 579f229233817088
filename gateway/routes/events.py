"""The feed of all jobs of a tenant: pages of JSON with long polling, or server-sent events; resumable for 30 days."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from chatjobs import sse
from chatjobs.contracts import FeedEvent, FeedEvents, FeedEventType
from chatjobs.errors import EventsExpired, InvalidRequest, Problem
from dispatch.stream_events import KEEP_ALIVE
from domain.errors import StorageUnavailable
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.routes.jobs import LONGEST_WAIT_SECONDS, Caller, Here, json_answer
from gateway.routes.streams import EventStreamResponse
from storage.events.feed import FeedPage

log = logging.getLogger(__name__)

MOST_EVENTS = 1_000
EVENTS_AT_ONCE = 200
"""Events that a stream reads at once: a slow reader has no more of them in memory."""
NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
READY = "ready"
"""The first event of a stream: its id is the reader's place, so that a reader that has had no event yet resumes there,
too."""
BAD_ID = "after (or Last-Event-ID) is not an id of this feed; leave it out to begin now, or give 0 for the oldest event"

router = APIRouter(prefix="/api")


@router.get(
    "/events",
    response_model=FeedEvents,
    responses={
        200: {"content": {"text/event-stream": {}}},
        400: {"description": "`after` is not an id of the feed"},
        410: {"description": "Events after that id were removed"},
    },
)
async def events(
    request: Request,
    here: Here,
    caller: Caller,
    after: str | None = None,
    types: Annotated[str | None, Query(max_length=500)] = None,
    wait: Annotated[int, Query(ge=0, le=LONGEST_WAIT_SECONDS)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100,
) -> Response:
    """Every job's ``chat.created``, ``chat.started`` and terminal event, in the order of their ids.

    ``after``: the id after which to begin, such as ``next`` of the page before; ``0`` begins with the oldest event that
    is kept; without it, the feed begins now. ``types``: only these events, separated by commas. With
    ``Accept: text/event-stream`` the answer is a stream (``Last-Event-ID`` wins over ``after``). Otherwise it is a page
    of up to ``limit`` events, for which the service waits up to ``wait`` seconds if there are none yet.
    """
    wanted = _types(types)
    streams = "text/event-stream" in request.headers.get("accept", "").lower()
    resumed = request.headers.get("last-event-id", request.query_params.get("lastEventId")) if streams else None
    place = _number(resumed or after)
    if place is None:
        place = await here.events.feed.last()
    if streams:
        await _page(here, caller, place, wanted, 1)  # what is wrong with the place is said before the stream begins
        return FeedEventsResponse(here, caller, place, wanted)
    page = await _page(here, caller, place, wanted, limit)
    while not page.events and page.more:
        page = await _page(here, caller, page.next, wanted, limit)
    if not page.events and wait:
        page = await _awaited(here, caller, page, wanted, limit, wait)
    return json_answer(FeedEvents(events=tuple(page.events), next=str(page.next)))


def _types(given: str | None) -> tuple[FeedEventType, ...]:
    """Raises InvalidRequest."""
    try:
        return tuple(FeedEventType(name.strip()) for name in given.split(",")) if given is not None else ()
    except ValueError:
        names = ", ".join(one.value for one in FeedEventType)
        raise InvalidRequest([Problem("/types", f"must be some of {names}, separated by commas")]) from None


def _number(given: str | None) -> int | None:
    """Raises HttpProblem."""
    if not given:
        return None
    if not NUMBER.fullmatch(given):
        raise HttpProblem(400, "bad_event_id", BAD_ID)
    return int(given)


async def _page(
    here: Dependencies, caller: Identity, after: int, types: Sequence[FeedEventType], limit: int
) -> FeedPage:
    """Raises HttpProblem, EventsExpired, StorageUnavailable."""
    try:
        return await here.events.feed.page(after, tenant=caller.tenant, types=types, limit=limit)
    except ValueError:
        raise HttpProblem(400, "bad_event_id", BAD_ID) from None


async def _awaited(
    here: Dependencies, caller: Identity, page: FeedPage, types: Sequence[FeedEventType], limit: int, seconds: int
) -> FeedPage:
    """The first page with an event, or an empty one after so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), here.events.watch.reading():
            while not page.events:
                await here.events.watch.beyond(page.next)
                page = await _page(here, caller, page.next, types, limit)
    return page


class FeedEventsResponse(EventStreamResponse):
    """One reader's stream of the feed, from the event after a number on."""

    def __init__(self, here: Dependencies, caller: Identity, after: int, types: Sequence[FeedEventType]) -> None:
        super().__init__(here, caller)
        self._after = self._told = after
        """The number up to which everything was sent, and the one that the reader knows."""
        self._types = types

    async def send_events(self, send: Send) -> None:
        """Send events until the reader leaves, or falls so far behind that they were removed."""
        try:
            await self._tell_place(send)
            async with self._here.events.watch.reading():
                while True:
                    await self._send_page(send)
        except (EventsExpired, HttpProblem):  # it is too far behind, or the database was restored
            log.warning("a reader of the feed has lost its place", extra={"action": "feed_reader_lost"})
        except StorageUnavailable as error:
            log.warning("feed ended: %s", error, extra={"action": "feed_ended"})

    async def _tell_place(self, send: Send) -> None:
        """Tell the reader its place, which also moves past the events that it does not want."""
        self._told = self._after
        await self.write_events(send, sse.encode(READY, str(self._after), f'{{"after":"{self._after}"}}'))

    async def _send_page(self, send: Send) -> None:
        """Send the next events, or a sign of life while there are none."""
        page = await _page(self._here, self._caller, self._after, self._types, EVENTS_AT_ONCE)
        if page.events:
            await self.write_events(send, b"".join(map(_block, page.events)))
            self._told = int(page.events[-1].id)
        self._after = page.next
        if page.more:
            return None
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_seconds):
                    return await self._here.events.watch.beyond(self._after)
            except TimeoutError:
                if self._told != self._after:
                    await self._tell_place(send)
                else:
                    await self.write(send, KEEP_ALIVE)


def _block(event: FeedEvent) -> bytes:
    return sse.encode(event.event.value, event.id, event.model_dump_json())
