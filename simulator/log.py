"""The log of requests and their outcomes, which tests read and wait for."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from simulator.replies import Outcome

MAX_ENTRIES = 10_000
MAX_CONVERSATIONS = 200_000
MAX_PROMPT_CHARACTERS = 20_000


@dataclass(eq=False)
class LogEntry:
    """One request. Times are unix seconds; ``outcome`` is None until the answer has ended."""

    number: int
    model: str = ""
    prompt: str = ""
    messages: list[dict[str, Any]] | None = None
    """The whole conversation as it came; None for one of more than MAX_PROMPT_CHARACTERS."""
    prefix: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    conversation: str = ""
    stream: bool = False
    attempt: int = 0
    fault: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    batch: str | None = None
    """The batch job that it is an item of."""
    started: float = field(default_factory=time.time)
    ended: float | None = None
    status: int | None = None
    tokens_sent: int = 0
    outcome: Outcome | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry as ``GET /sim/requests`` shows it."""
        return {
            "number": self.number,
            "time": self.started,
            "startedAt": _rfc3339(self.started),
            "endedAt": _rfc3339(self.ended),
            "ended": self.ended,
            "model": self.model,
            "conversation": self.conversation,
            "attempt": self.attempt,
            "prompt": self.prompt,
            "messages": self.messages,
            "prefix": self.prefix,
            "parameters": self.parameters,
            "stream": self.stream,
            "fault": self.fault,
            "tokens_sent": self.tokens_sent,
            "status": self.status,
            "outcome": self.outcome,
            "headers": self.headers,
            "batch": self.batch,
        }


def _rfc3339(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class RequestLog:
    """The requests in the order of their arrival; the oldest are dropped."""

    def __init__(self) -> None:
        self._entries: deque[LogEntry] = deque(maxlen=MAX_ENTRIES)
        self._attempts: OrderedDict[str, int] = OrderedDict()
        self._waiting: set[_Waiter] = set()
        self._released: set[str] = set()
        self._release = asyncio.Event()
        self._count = 0

    def begin(self, headers: dict[str, str], *, batch: str | None = None) -> LogEntry:
        self._count += 1
        entry = LogEntry(self._count, headers=headers, batch=batch)
        self._entries.append(entry)
        return entry

    def attempt(self, conversation: str) -> int:
        """Count another attempt of a conversation. Returns its number, from 1."""
        number = self._attempts.pop(conversation, 0) + 1
        self._attempts[conversation] = number
        if len(self._attempts) > MAX_CONVERSATIONS:
            self._attempts.popitem(last=False)
        return number

    def described(self) -> None:
        """The newest entry has its prompt now, so that waiters can match it."""
        for waiter in self._waiting:
            waiter.search(self)

    def sent(self, entry: LogEntry, tokens: int) -> None:
        entry.tokens_sent += tokens
        self._changed(entry)

    def release(self, contains: str) -> None:
        """Do not hold requests whose prompt contains this text, neither present nor later ones."""
        self._released.add(contains)
        self._release.set()
        self._release = asyncio.Event()

    async def released(self, entry: LogEntry) -> None:
        """Wait until a release matches the request."""
        while not any(contains in entry.prompt for contains in self._released):
            await self._release.wait()

    def end(self, entry: LogEntry, outcome: Outcome) -> None:
        """Record the outcome, unless there is one already."""
        if entry.outcome is None:
            entry.outcome, entry.ended = outcome, time.time()
            self._changed(entry)

    def _changed(self, entry: LogEntry) -> None:
        for waiter in self._waiting:
            waiter.check(entry)

    def entries(self, contains: str = "") -> list[LogEntry]:
        """The requests whose last user message contains the text."""
        return [entry for entry in self._entries if contains in entry.prompt]

    def clear(self) -> int:
        """Drop all requests and counts of attempts. Returns the number of requests."""
        count = len(self._entries)
        self._entries.clear()
        self._attempts.clear()
        self._released.clear()
        return count

    async def wait(self, contains: str, requests: int, tokens: int, *, ended: bool, timeout: float) -> LogEntry | None:
        """The matching request of this number, once it has sent so many tokens (or ended); None after ``timeout``."""
        waiter = _Waiter(contains, requests, tokens, ended)
        self._waiting.add(waiter)
        waiter.search(self)
        try:
            async with asyncio.timeout(timeout):
                return await waiter.found
        except TimeoutError:
            return None
        finally:
            self._waiting.discard(waiter)


class _Waiter:
    def __init__(self, contains: str, requests: int, tokens: int, ended: bool) -> None:
        self._contains, self._requests, self._tokens, self._ended = contains, requests, tokens, ended
        self._entry: LogEntry | None = None
        self.found: asyncio.Future[LogEntry] = asyncio.get_running_loop().create_future()

    def search(self, log: RequestLog) -> None:
        """Find the request; too slow to be repeated for each token of other requests."""
        if self._entry is None and len(matching := log.entries(self._contains)) >= self._requests:
            self._entry = matching[self._requests - 1]
            self.check(self._entry)

    def check(self, entry: LogEntry) -> None:
        """Finish if this is the request and it has got as far as awaited."""
        if entry is not self._entry or self.found.done():
            return
        if entry.tokens_sent >= self._tokens and (entry.outcome is not None or not self._ended):
            self.found.set_result(entry)
