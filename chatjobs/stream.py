"""A client's stream of events, which reconnects where it broke off. For client.py and batches.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Final, Generic, Protocol, Self, TypeVar

from chatjobs.calls import Http, failure, reachable
from chatjobs.errors import ServiceUnavailable, StreamBroken

STREAMS_REPEATED: Final = frozenset({408, 425, 429, *range(500, 600)})
"""HTTP statuses after which a stream connects again."""
MAX_PROBLEM_BYTES: Final = 64 * 1024
"""Most bytes of an error's body."""
BROKEN_IN_A_ROW: Final = 3
"""Connections in a row whose events do not fit together, after which the stream fails."""
LASTING_SECONDS: Final = 5.0
"""A connection that lasted longer counts as no failure, even if it brought no event."""


E = TypeVar("E")


class Events(Protocol[E]):
    """The events of one stream over several connections, from their bytes."""

    last_event_id: str
    """The id of the last event that the reader has."""

    def connect(self) -> None:
        """Begin to read a new connection, which continues after ``last_event_id``."""
        ...

    def feed(self, chunk: bytes) -> Iterator[tuple[str, E]]:
        """The ids and events that a piece completes. Raises StreamBroken, ResponseTooLarge."""
        ...

    def ends(self, event: E) -> bool:
        """Whether an event is the last one."""
        ...


class Stream(Generic[E]):
    """The events of a job or batch: ``async for event in stream``; in an ``async with`` to leave the loop early.

    ``last_event_id`` is the id of the last event that the loop received; give it to ``AsyncChatJobs.stream`` or
    ``BatchCalls.watch`` to continue in another process. Iterate once. Iterating raises ServiceUnavailable after
    ``patience`` seconds without a byte from the service, StreamBroken if its events do not fit together, TimeoutError
    after ``timeout`` seconds in all, and the service's errors. ``silence``: seconds without a response after which a
    connection counts as dead.
    """

    def __init__(
        self, http: Http, path: str, events: Events[E], patience: float, silence: float, timeout: float
    ) -> None:
        self.last_event_id = events.last_event_id
        self._http = http
        self._path = path
        self._events = events
        self._patience = patience
        self._silence = silence
        self._timeout = timeout
        self._ready: deque[tuple[str, E]] = deque()
        self._connection: AsyncIterator[bytes] | None = None
        self._closing = contextlib.AsyncExitStack()
        self._received_at = self._connected_at = 0.0
        self._failures = 0
        self._broken = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. What is streamed continues."""
        self._connection = None
        await self._closing.aclose()

    async def __aiter__(self) -> AsyncIterator[E]:
        self._received_at = asyncio.get_running_loop().time()
        deadline = self._received_at + self._timeout
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    found = await self._next()
                if found is None:
                    return
                self.last_event_id, event = found
                yield event
                if self._events.ends(event):
                    return
        finally:
            await self.aclose()

    async def _next(self) -> tuple[str, E] | None:
        """The next event and its id; None if the service answers that none follows."""
        while not self._ready:
            try:
                if (connection := self._connection or await self._connect()) is None:
                    return None
                await self._receive(connection)
            except (ServiceUnavailable, StreamBroken) as error:
                await self._recover(error)
        return self._ready.popleft()

    async def _connect(self) -> AsyncIterator[bytes] | None:
        """The bytes of a new connection; None if the reader has the terminal event already."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._events.last_event_id:
            headers["Last-Event-ID"] = self._events.last_event_id
        request = self._http.client.build_request("GET", self._path, headers=headers)
        self._connected_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._silence):
                response = await self._closing.enter_async_context(self._http.opened(request))
                if response.status_code not in (200, 204):
                    body = await self._http.body(response, MAX_PROBLEM_BYTES)
                    raise failure(response, body, repeated=STREAMS_REPEATED)
        except TimeoutError:
            raise ServiceUnavailable(f"no stream within {self._silence:g} seconds") from None
        if response.status_code == 204 and self._events.last_event_id.endswith(".end"):
            return None
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise ServiceUnavailable("the answer is not a stream of events", status=response.status_code)
        self._events.connect()
        self._connection = response.aiter_raw()
        return self._connection

    async def _receive(self, connection: AsyncIterator[bytes]) -> None:
        """Wait for the next bytes, and queue the events that they complete."""
        with reachable():
            piece = await anext(connection, None)
        if piece is None:
            raise ServiceUnavailable("the stream was cut")
        self._received_at = asyncio.get_running_loop().time()
        for found in self._events.feed(piece):
            self._ready.append(found)
            self._failures = self._broken = 0

    async def _recover(self, error: ServiceUnavailable | StreamBroken) -> None:
        """Wait before the next connection. Raises the error if there is to be none."""
        await self.aclose()
        self._broken += isinstance(error, StreamBroken)
        now = asyncio.get_running_loop().time()
        silent = now - self._received_at
        if silent >= self._patience or self._broken >= BROKEN_IN_A_ROW:
            raise error
        if self._received_at - self._connected_at > LASTING_SECONDS:
            self._failures = 0
        wait = max(self._http.backoff(self._failures), error.retry_after or 0)
        self._failures += 1
        await asyncio.sleep(min(wait, self._patience - silent))
