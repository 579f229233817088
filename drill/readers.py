"""Readers of event streams that log every frame and reconnect after every cut.

The drill has its own simple parser, so as not to check the service by the service's code.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx2

RECONNECT_SECONDS = 0.2
TERMINAL = ("complete", "error", "cancelled")
TEMPORARY = {204, 502, 503}
PAUSE_AFTER = 3


@dataclass(frozen=True)
class ReceivedFrame:
    id: str | None
    event: str
    data: dict[str, Any]


@dataclass
class ReaderLog:
    """What one reader of a job received over all its connections."""

    job_id: str
    frames: list[ReceivedFrame] = field(default_factory=list)
    connections: int = 0
    ended: bool = False
    refused: set[int] = field(default_factory=set)
    """Statuses other than 200, 204 and those of a gateway that is temporarily unavailable."""

    @property
    def last_id(self) -> str | None:
        return next((frame.id for frame in reversed(self.frames) if frame.id is not None), None)


class StreamReader:
    """Reads a job's stream from the gateways in turn, and disconnects after every ``cut_after`` frames.

    Once, after its first frames, it reads nothing for ``pause_seconds``, with the connection open.
    """

    def __init__(
        self,
        gateways: list[str],
        job_id: str,
        *,
        key: str | None,
        cut_after: int = 0,
        pause_seconds: float = 0,
        seed: int = 0,
    ) -> None:
        self.log = ReaderLog(job_id)
        self._gateways = gateways
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._cut_after = cut_after
        self._pause_seconds = pause_seconds
        self._random = Random(seed)  # noqa: S311 - a drill is repeatable

    async def read(self, client: httpx2.AsyncClient) -> None:
        """Read until the terminal frame, over any number of connections."""
        while not self.log.ended:
            url = self._gateways[self.log.connections % len(self._gateways)]
            self.log.connections += 1
            with suppress(httpx2.TransportError):
                await self._connection(client, f"{url}/api/jobs/{self.log.job_id}/events")
            if not self.log.ended:
                await asyncio.sleep(RECONNECT_SECONDS * self._random.random())

    async def _connection(self, client: httpx2.AsyncClient, url: str) -> None:
        headers = self._headers | ({"last-event-id": self.log.last_id} if self.log.last_id else {})
        seen = 0
        async with client.stream("GET", url, headers=headers) as response:
            if response.status_code == 204:
                self.log.ended = True
            if response.status_code != 200:
                self.log.refused |= {response.status_code} - TEMPORARY
                return
            async for frame in _frames(response.aiter_text()):
                self.log.frames.append(frame)
                seen += 1
                if frame.event in TERMINAL:
                    self.log.ended = True
                    return
                if self._cut_after and seen >= self._cut_after:
                    return
                if self._pause_seconds and seen == PAUSE_AFTER:
                    seconds, self._pause_seconds = self._pause_seconds, 0
                    await asyncio.sleep(seconds)


async def _frames(pieces: AsyncIterator[str]) -> AsyncIterator[ReceivedFrame]:
    """Whole frames. An unfinished one is dropped, as the format's specification says."""
    rest = ""
    async for piece in pieces:
        *blocks, rest = (rest + piece).split("\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and line[0] != ":")
            if "data" in fields:
                yield ReceivedFrame(fields.get("id"), fields.get("event", "message"), json.loads(fields["data"]))
