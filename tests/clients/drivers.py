"""Calls of a client from a table, for tests: the Python client in this process, the JavaScript client in Node.

Both give the same outcomes: JSON with the value, the values of an iterator, or the error.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import httpx2
from pydantic import BaseModel

from chatjobs.client import AsyncChatJobs as Client
from chatjobs.client import Outcome
from chatjobs.errors import ChatJobsError
from chatjobs.stream import Stream
from chatjobs.webhooks import verify, verify_any, verify_legacy
from tests.support.needs import program

Json = Any
DRIVER = Path(__file__).parent / "driver.mjs"


@dataclass(frozen=True)
class Call:
    """A call of a method under its name in Python; ``verify`` verifies a webhook. Times are in seconds."""

    do: str
    args: tuple[Json, ...] = ()
    options: dict[str, Json] = field(default_factory=dict)


def call(do: str, *args: Json, **options: Json) -> Call:
    return Call(do, args, options)


class Driver(Protocol):
    """A client, by what it makes of calls."""

    async def run(self, url: str, options: dict[str, Json], calls: list[Call]) -> list[dict[str, Json]]:
        """The outcomes of calls on one client of the service at ``url``."""
        ...


def error_of(error: Exception) -> dict[str, Json]:
    problems = getattr(error, "problems", None)
    return {
        "name": type(error).__name__,
        "code": error.code if isinstance(error, ChatJobsError) else None,
        "message": str(error),
        "status": getattr(error, "status", None),
        "reason": getattr(error, "reason", None) if isinstance(error, ChatJobsError) else None,
        "retry_after": getattr(error, "retry_after", None),
        "problems": None if problems is None else [list(problem) for problem in problems],
        "retryable": getattr(error, "retryable", None),
        "cause": getattr(error, "cause", None),
    }


def plain(value: Any) -> Json:
    """A value of the Python client as the JavaScript client has it."""
    match value:
        case Outcome(index=index, job=job, error=error):
            return {"index": index, "job": plain(job), "error": error and error_of(error)}
        case StrEnum():
            return value.value
        case tuple():
            return [plain(one) for one in value]
        case BaseModel():
            kind = getattr(value, "type", None)  # the name of an event is not in its data
            data = value.model_dump(mode="json")
            return data if kind is None else {"type": kind} | data
        case _:
            return value


class Python:
    """The Python client."""

    async def run(self, url: str, options: dict[str, Json], calls: list[Call]) -> list[dict[str, Json]]:
        try:
            client = Client(
                url, transport=httpx2.AsyncHTTPTransport(), backoff=lambda failures: 0.01 * failures, **options
            )
        except ChatJobsError as error:
            return [{"error": error_of(error)}]
        async with client:
            return [await self._outcome(client, one) for one in calls]

    async def _outcome(self, client: Client, one: Call) -> dict[str, Json]:
        try:
            if one.do == "verify":
                return {"value": plain(_verified(one))}
            found = attrgetter(one.do)(client)(*one.args, **one.options)
            if hasattr(found, "__aiter__"):
                return await _listed(found)
            return {"value": plain(await found)}
        except (ChatJobsError, TimeoutError, TypeError, ValueError) as error:
            return {"error": error_of(error)}


def _verified(one: Call) -> Any:
    body, headers, secrets = one.args
    content = base64.b64decode(body)
    if one.options.get("legacy"):
        return verify_legacy(content, headers, secrets=secrets)
    now = datetime.fromisoformat(one.options["now"])
    tolerance = timedelta(seconds=one.options.get("tolerance", 300))
    chosen = verify_any if one.options.get("any") else verify
    return chosen(content, headers, secrets=secrets, now=now, tolerance=tolerance)


async def _listed(values: AsyncIterator[Any]) -> dict[str, Json]:
    found: dict[str, Json] = {"values": []}
    try:
        async for value in values:
            found["values"].append(plain(value))
    except (ChatJobsError, TimeoutError, TypeError, ValueError) as error:
        found["error"] = error_of(error)
    return found | ({"last_event_id": values.last_event_id} if isinstance(values, Stream) else {})


class JavaScript:
    """The JavaScript client, in one process of Node for all cases. ``close`` it."""

    def __init__(self) -> None:
        command = [program("node"), str(DRIVER)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def run(self, url: str, options: dict[str, Json], calls: list[Call]) -> list[dict[str, Json]]:
        named = [{"do": one.do, "args": one.args, "options": one.options or None} for one in calls]
        found: list[dict[str, Json]] = await asyncio.to_thread(
            self._asked, json.dumps({"url": url, "options": options, "calls": named})
        )
        return found

    def _asked(self, case: str) -> Json:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "node has ended; its complaint is above"
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
