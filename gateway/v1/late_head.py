"""Responses that have a status of their own as long as nothing was sent."""

from __future__ import annotations

from starlette.types import Send

from gateway.routes.streams import JobEventsResponse


class LateHeadResponse(JobEventsResponse):
    """A response whose head is sent with its first byte. One that is not ``_complete`` at its end is broken off."""

    _head_sent = False
    _complete = False

    async def begin(self, send: Send) -> None:
        """Nothing: ``write`` sends the head."""

    async def write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        if not (data or self._complete):
            return  # also the end of a response that is not complete
        if not self._head_sent:
            self._head_sent = True
            await super().begin(send)
        await super().write(send, data, more=more)
