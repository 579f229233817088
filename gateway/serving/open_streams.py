"""The registry of open streams, with which they are ended at shutdown and when their key is revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class OpenStream:
    """One stream. It is ended by cancelling its task; ``end_reason`` is then set, and None for any other cancel."""

    task: asyncio.Task[None]
    key_id: str | None
    end_reason: str | None = None

    def end(self, why: str) -> None:
        """Cancel the task, once: a second cancel would interrupt the end of the response."""
        if self.end_reason is None:
            self.end_reason = why
            self.task.cancel()


SHUTDOWN = "shutdown"
REVOKED = "revoked"
DISCONNECTED = "hung up"


class OpenStreams:
    def __init__(self) -> None:
        self._open: set[OpenStream] = set()
        self._closing = False

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def registered(self, key_id: str | None) -> Iterator[OpenStream]:
        """Register the current task as a stream while the block runs."""
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
        """End all streams, and from now on every new one at once."""
        self._closing = True
        for stream in list(self._open):
            stream.end(SHUTDOWN)

    def key_ids(self) -> set[str | None]:
        """The keys with which streams were opened; None for streams opened without one."""
        return {stream.key_id for stream in self._open}

    def end_for_key(self, key_id: str | None) -> None:
        for stream in list(self._open):
            if stream.key_id == key_id:
                stream.end(REVOKED)
