"""The faults of the calls of files and batch jobs."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import defaultdict, deque
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simulator.batch_scripts import CallFault, CallName, CallRule, CutCall, EndlessBody, OtherBody
from simulator.faults import Stall, Status
from simulator.refusals import of_fault

TRANSPORT: Final = "simulator.transport"
"""Where the connection's transport is in the state of a request; see BreakableProtocol."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""``struct linger``: on, zero seconds."""


def break_off(transport: asyncio.Transport, *, reset: bool) -> None:
    """End a connection abruptly."""
    if not reset:
        transport.close()  # sends what was written, then FIN, without the last HTTP chunk
        return
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class CallFaults:
    """The faults that the next calls have, by the name of the call."""

    def __init__(self) -> None:
        self._coming: defaultdict[CallName, deque[CallFault | None]] = defaultdict(deque)
        self.counts: defaultdict[CallName, int] = defaultdict(int)

    def add(self, rule: CallRule) -> None:
        self._coming[rule.call].extend(rule.faults)

    def clear(self) -> None:
        self._coming.clear()
        self.counts.clear()

    def take(self, call: CallName) -> CallFault | None:
        self.counts[call] += 1
        coming = self._coming[call]
        return coming.popleft() if coming else None


class Faulty:
    """A route with faults."""

    def __init__(self, app: ASGIApp, faults: CallFaults, call: CallName) -> None:
        self._app, self._faults, self._call = app, faults, call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._faults.take(self._call)
        match fault:
            case Status():
                await _drain(receive)
                refusal = of_fault(fault)
                await Response(refusal.body, refusal.status, refusal.headers)(scope, receive, send)
            case OtherBody(body=body, content_type=content_type):
                await _drain(receive)
                await Response(body, media_type=content_type)(scope, receive, send)
            case EndlessBody():
                await _drain(receive)
                await _endless(send, scope["state"][TRANSPORT])
            case Stall(seconds=seconds):
                await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))
                await self._app(scope, receive, send)
            case CutCall(received=0, reset=reset):
                break_off(scope["state"][TRANSPORT], reset=reset)
            case CutCall():
                cut = _Cut(fault, scope["state"][TRANSPORT], receive, send)
                await self._app(scope, cut.receive, cut.send)
            case None:
                await self._app(scope, receive, send)


class _Cut:
    """A connection that breaks."""

    def __init__(self, fault: CutCall, transport: asyncio.Transport, receive: Receive, send: Send) -> None:
        self._fault, self._transport = fault, transport
        self._receive, self._send = receive, send
        self._received = self._sent = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._fault.received is not None and self._received >= self._fault.received:
            break_off(self._transport, reset=self._fault.reset)
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and self._fault.sent is not None:
            body = message["body"][: max(0, self._fault.sent - self._sent)]
            self._sent += len(message["body"])
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            if self._sent >= self._fault.sent:
                break_off(self._transport, reset=self._fault.reset)
            return
        await self._send(message)


async def _drain(receive: Receive) -> None:
    message: dict[str, Any] = {"more_body": True}
    while message.get("more_body"):
        message = dict(await receive())


async def _endless(send: Send, transport: asyncio.Transport) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while not transport.is_closing():
        await send({"type": "http.response.body", "body": b" " * 65536, "more_body": True})
        await asyncio.sleep(0)
