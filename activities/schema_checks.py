"""Checks of structured answers, made in processes that can be killed (domain/schema_check.py).

A check that takes longer than usual is made again among the slow ones, which have a process of their own: a schema
whose check takes for ever costs others a quarter of a second at most. One that took for ever begins there next time.
Tenants take turns there.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from threading import Lock, local
from typing import Final

from domain import schema_check
from domain.schema_check import HEAD, LENGTH, CheckOrder, CheckVerdict, Mismatch

USUAL_SECONDS: Final = 0.25
SLOW_SECONDS: Final = 2.0
"""Processor time that a check may take, at first and among the slow ones."""
PATIENCE_SECONDS: Final = 20.0
"""The time that a check may take in all, on a machine that has other things to do."""
PROCESSES: Final = 2
MOST_WAITING: Final = 50
"""Slow checks of a tenant that may wait for each other; a further one stays undecided."""
MOST_HOPELESS: Final = 8
"""The same, of schemas with which the last check took for ever."""
KNOWN_HOPELESS: Final = 1_000
MOST_CHARACTERS: Final = 16_000_000
TRIES: Final = 2
"""Times that a check is begun whose process was ended by something else."""
ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What the process gets of the environment, which holds secrets."""
UNDECIDED: Final = {
    "time": "its check takes too long",
    "memory": "its check takes too much memory",
    "nested": "it is nested too deeply",
    "error": "the schema cannot be applied to it",
    "length": "it is too long",
    "busy": "too many slow checks were waiting",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check. ``problems``: none, if the answer matches. ``undecided``: a key of UNDECIDED, if it is not
    known whether it does."""

    problems: tuple[Mismatch, ...] = ()
    undecided: str | None = None

    @property
    def matches(self) -> bool:
        return not self.problems and self.undecided is None


@dataclass(frozen=True, slots=True)
class _SlowCheck:
    schema: str | None
    text: str
    result: Future[Checked]


class SchemaChecks:
    """The processes of one worker; each is started when it is first needed."""

    def __init__(self) -> None:
        self._usual = ThreadPoolExecutor(PROCESSES, thread_name_prefix="schema-check")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="slow-schema-check")
        self._hopeless: OrderedDict[bytes, None] = OrderedDict()
        self._waiting = Counter[str]()
        self._queues: OrderedDict[str, deque[_SlowCheck]] = OrderedDict()
        """By tenant; the first one is the next."""
        self._own = local()
        self._children: set[_Child] = set()
        self._lock = Lock()

    async def check(self, schema: str | None, text: str, tenant: str = "") -> Checked:
        """Whether a text is JSON that matches. ``schema``: as JSON; None: any object is right. ``tenant``: whose it is.

        Takes less than a millisecond as a rule. Raises OSError if no process can be started.
        """
        if len(text) > MOST_CHARACTERS:
            return Checked(undecided="length")
        loop, key = asyncio.get_running_loop(), hashlib.sha256((schema or "").encode()).digest()
        hopeless = key in self._hopeless
        if not hopeless:
            found = await loop.run_in_executor(self._usual, self._made, schema, text, USUAL_SECONDS)
            if found.undecided != "time":
                return found
        if self._waiting[tenant] >= (MOST_HOPELESS if hopeless else MOST_WAITING):
            return Checked(undecided="busy")
        self._waiting[tenant] += 1
        try:
            found = await asyncio.wrap_future(self._queued(tenant, schema, text))
        finally:
            self._waiting[tenant] -= 1
            self._waiting += Counter()  # without the tenants that have none
        self._remember(key, hopeless=found.undecided == "time")
        return found

    def close(self) -> None:
        """End the processes. A check that runs stays undecided."""
        for pool in (self._usual, self._slow):
            pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for child in list(self._children):
                child.kill()
            self._children.clear()
            for one in chain.from_iterable(self._queues.values()):
                one.result.cancel()
            self._queues.clear()

    def _queued(self, tenant: str, schema: str | None, text: str) -> Future[Checked]:
        """The result of a slow check, which waits for its tenant's turn."""
        work = _SlowCheck(schema, text, Future())
        with self._lock:
            self._queues.setdefault(tenant, deque()).append(work)
        self._slow.submit(self._next)
        return work.result

    def _next(self) -> None:
        """Make the slow check that is the next, in the thread for them."""
        with self._lock:
            if not self._queues:  # closed
                return
            tenant, queue = self._queues.popitem(last=False)
            work = queue.popleft()
            if queue:
                self._queues[tenant] = queue
        if not work.result.set_running_or_notify_cancel():
            return
        try:
            work.result.set_result(self._made(work.schema, work.text, SLOW_SECONDS))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
            work.result.set_exception(error)

    def _remember(self, key: bytes, *, hopeless: bool) -> None:
        self._hopeless.pop(key, None)
        if hopeless:
            self._hopeless[key] = None
        if len(self._hopeless) > KNOWN_HOPELESS:
            self._hopeless.popitem(last=False)

    def _made(self, schema: str | None, text: str, seconds: float) -> Checked:
        """One check, in a thread of its own, by that thread's process."""
        # Escapes would make an answer up to twelve times as long, and the event loop stands still meanwhile.
        order = json.dumps(CheckOrder(schema=schema, text=text), ensure_ascii=False).encode(errors="surrogatepass")
        for _ in range(TRIES):
            child: _Child | None = getattr(self._own, "child", None)
            if child is None:
                child = self._own.child = _Child()
                with self._lock:
                    self._children.add(child)
            verdict = child.verdict(HEAD.pack(len(order), seconds) + order)
            if isinstance(verdict, dict):
                return Checked(tuple(verdict["problems"]), verdict["undecided"])
            self._own.child = None
            with self._lock:
                self._children.discard(child)
            if verdict == "time":
                return Checked(undecided="time")
        return Checked(undecided="error")


class _Child:
    """One process. After ``verdict`` has returned a word, it has ended."""

    def __init__(self) -> None:
        known = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", schema_check.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=known,
            bufsize=0,
        )

    def verdict(self, order: bytes) -> CheckVerdict | str:
        """The reply to an order; ``time`` if its time was over, ``ended`` if the process has ended."""
        until = time.monotonic() + PATIENCE_SECONDS
        try:
            self._write(order, until)
            (length,) = LENGTH.unpack(self._read(LENGTH.size, until))
            found: CheckVerdict = json.loads(self._read(length, until))
            return found
        except TimeoutError:
            self.kill()
            return "time"
        except (OSError, EOFError):
            self.kill()
            return "time" if self._process.returncode == -schema_check.OVERTIME else "ended"

    def kill(self) -> None:
        """End the process, if it has not, and wait until it has."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _write(self, data: bytes, until: float) -> None:
        target = _descriptor(self._process.stdin)
        os.set_blocking(target, False)
        view = memoryview(data)
        while view:
            _ready(until, write=target)
            view = view[os.write(target, view) :]

    def _read(self, length: int, until: float) -> bytes:
        source, found = _descriptor(self._process.stdout), bytearray()
        while len(found) < length:
            _ready(until, read=source)
            piece = os.read(source, length - len(found))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)


def _descriptor(pipe: object) -> int:
    fileno = getattr(pipe, "fileno", None)
    if fileno is None:
        raise EOFError
    return int(fileno())


def _ready(until: float, *, read: int | None = None, write: int | None = None) -> None:
    """Wait until a pipe is ready. Raises TimeoutError."""
    poll = select.poll()  # select.select takes no descriptor above 1023, and a worker has thousands
    poll.register(read if read is not None else write or 0, select.POLLIN if read is not None else select.POLLOUT)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


@cache
def shared() -> SchemaChecks:
    """Those of this process."""
    checks = SchemaChecks()
    atexit.register(checks.close)
    return checks
