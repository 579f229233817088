"""The streams that are open, so that they can be ended: at shutdown, and when their key is revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class OpenStream:
    """A stream's task is cancelled to end it; ``ending`` tells it why, and how to take its leave."""

    task: asyncio.Task[None]
    key_id: str | None
    ending: str | None = None

    def end(self, why: str) -> None:
        """Once is enough: a second cancel would interrupt the leave-taking."""
        if self.ending is None:
            self.ending = why
            self.task.cancel()


SHUTDOWN = "shutdown"
REVOKED = "revoked"
HUNG_UP = "hung up"


class OpenStreams:
    def __init__(self) -> None:
        self._open: set[OpenStream] = set()
        self._closing = False

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def entered(self, key_id: str | None) -> Iterator[OpenStream]:
        """Register the current task as a stream, while the block runs."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream runs in a task")
        stream = OpenStream(task, key_id)
        self._open.add(stream)
        if self._closing:
            stream.end(SHUTDOWN)
        try:
            yield stream
        finally:
            self._open.discard(stream)

    def end_all(self) -> None:
        """For good: streams that open later end at once."""
        self._closing = True
        for stream in list(self._open):
            stream.end(SHUTDOWN)

    def key_ids(self) -> set[str | None]:
        """The keys with which streams were opened; None where none was asked for."""
        return {stream.key_id for stream in self._open}

    def end_of_key(self, key_id: str | None) -> None:
        for stream in list(self._open):
            if stream.key_id == key_id:
                stream.end(REVOKED)
