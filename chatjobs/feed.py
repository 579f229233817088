"""The client's calls for the events of all jobs: the feed, and the endpoints that get the webhooks of all jobs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final
from urllib.parse import urlencode

from chatjobs.calls import Http
from chatjobs.contracts import Endpoint, EndpointRequest, FeedEvent, FeedEventType, canonical_json, parse
from chatjobs.errors import StreamBroken
from chatjobs.sse import MAX_EVENT_BYTES, Parser, read_event
from chatjobs.stream import Stream

FEED: Final = "/api/events"
ENDPOINTS: Final = "/api/endpoints"
FEED_ID: Final = re.compile(r"[0-9]{1,18}")
NAMES: Final = frozenset(FeedEventType)


class FeedParser:
    """The events of the feed, each once and in order, over any number of connections.

    ``last_event_id`` is the reader's place, which the service names before the first event already.
    """

    def __init__(self, *, last_event_id: str = "", limit: int = MAX_EVENT_BYTES) -> None:
        """Raises StreamBroken if ``last_event_id`` is not an id of the feed."""
        if last_event_id and not FEED_ID.fullmatch(last_event_id):
            raise StreamBroken("this is not an id of the feed of all jobs")
        self.last_event_id = last_event_id
        self._limit = limit
        self._parser = Parser(limit=limit)

    def connect(self) -> None:
        """Begin to read a new connection, which continues after ``last_event_id``. An incomplete event is dropped."""
        self._parser = Parser(limit=self._limit)

    def feed(self, chunk: bytes) -> Iterator[tuple[str, FeedEvent]]:
        """The ids and events that this piece of the connection completes; events of unknown names are skipped.

        Raises StreamBroken, after which a new connection may help, and ResponseTooLarge.
        """
        for name, event_id, data in self._parser.feed(chunk):
            if not FEED_ID.fullmatch(event_id):
                raise StreamBroken("an event's id is not one of the feed of all jobs")
            known = self.last_event_id != "" and int(event_id) <= int(self.last_event_id)
            if not known:
                event = read_event(FeedEvent, data) if name in NAMES else None
                # Only now: an event that could not be read is asked for again.
                self.last_event_id = event_id
                if event is not None:
                    yield event_id, event

    def ends(self, event: FeedEvent) -> bool:
        """False: the feed has no end."""
        return False


def listen(
    http: Http,
    after: str | int | None,
    types: Collection[FeedEventType | str] | None,
    *,
    patience: float,
    silence: float,
    limit: int,
    timeout: float,
) -> Stream[FeedEvent]:
    """See ``ChatJobs.listen``."""
    query = "" if types is None else "?" + urlencode({"types": ",".join(FeedEventType(one).value for one in types)})
    events = FeedParser(last_event_id="" if after is None else str(after), limit=limit)
    return Stream(http, f"{FEED}{query}", events, patience, silence, timeout)


async def add_endpoint(http: Http, url: str, events: Collection[str] | None, secret: str | None) -> Endpoint:
    """See ``ChatJobs.add_endpoint``."""
    given = {"url": url, "events": None if events is None else [str(one) for one in events], "secret": secret}
    body = {name: value for name, value in given.items() if value is not None}
    parse(EndpointRequest, body)
    return await http.read(Endpoint, "POST", ENDPOINTS, body=canonical_json(body))


async def delete_endpoint(http: Http, url: str) -> None:
    """See ``ChatJobs.delete_endpoint``."""
    await http.call("DELETE", ENDPOINTS, body=canonical_json({"url": url}))
