"""Plays the steps of a reply on a connection, in time, and detects when the client disconnects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from simulator import wire
from simulator.call_faults import TRANSPORT, break_off
from simulator.log import LogEntry, RequestLog
from simulator.replies import Abort, Close, Hold, Send, Start, Step, Wait

_logger = logging.getLogger(__name__)


class BreakableProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which passes its transport to the application, so that it can break the connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][TRANSPORT] = self.transport


class Player:
    """Sends one answer."""

    def __init__(self, scope: Scope, send: AsgiSend, log: RequestLog, entry: LogEntry) -> None:
        self._transport: asyncio.Transport = scope["state"][TRANSPORT]
        self._asgi_send = send
        self._log = log
        self._entry = entry
        self._clock = asyncio.get_running_loop().time
        self._due = self._clock()
        self.pace(interval=0, split=None)

    def pace(self, *, interval: float, split: int | None) -> None:
        """Set the seconds per token and the maximum of bytes per write."""
        self._interval, self._split = interval, split

    async def play(self, steps: Iterator[Step], receive: Receive) -> None:
        """Play to the end, or until the client disconnects."""
        playing = asyncio.create_task(self._play(steps))
        watching = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((playing, watching), return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                self._log.end(self._entry, "client_gone")
            elif error := playing.exception():
                _logger.error("request %d broke", self._entry.number, exc_info=error)
                self._log.end(self._entry, "cut")
                raise error
        except asyncio.CancelledError:
            self._log.end(self._entry, "shutdown")
            raise
        finally:
            playing.cancel()
            watching.cancel()
            await asyncio.gather(playing, watching, return_exceptions=True)

    async def _play(self, steps: Iterator[Step]) -> None:
        for step in steps:
            match step:
                case Send(data, tokens):
                    await self._send(data, tokens)
                case Wait(seconds, comments_every):
                    await self._wait(seconds, comments_every)
                case Hold():
                    await self._log.released(self._entry)
                    self._due = self._clock()
                case Start(status, headers):
                    await self._start(status, headers)
                case Close(outcome):
                    await self._body(b"", more=False)
                    self._log.end(self._entry, outcome)
                case Abort(reset):
                    break_off(self._transport, reset=reset)
                    self._log.end(self._entry, "cut")

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self._entry.status = status
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._asgi_send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _send(self, data: bytes, tokens: int) -> None:
        """Send at the time that is due, counted from the first token, so that the rate does not drift."""
        if tokens:
            await asyncio.sleep(self._due - self._clock())
            self._due += tokens * self._interval
        if self._split is None:
            await self._body(data)
        else:
            for at in range(0, len(data), self._split):
                await self._body(data[at : at + self._split])
        if tokens:
            self._log.sent(self._entry, tokens)

    async def _wait(self, seconds: float | None, comments_every: float | None) -> None:
        """Pause; later tokens are due from its end on."""
        if comments_every is None:
            await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))
        else:
            await self._comment(seconds, comments_every)
        self._due = self._clock()

    async def _comment(self, seconds: float | None, every: float) -> None:
        end = None if seconds is None else self._clock() + seconds
        while end is None or self._clock() < end:
            await self._body(wire.COMMENT)
            await asyncio.sleep(every)

    async def _body(self, data: bytes, *, more: bool = True) -> None:
        await self._asgi_send({"type": "http.response.body", "body": data, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    message: dict[str, Any] = {"type": ""}
    while message["type"] != "http.disconnect":
        message = dict(await receive())
