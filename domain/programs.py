"""What the processes that serve have in common: logs, the signals that end them, exit codes."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import ValidationError

from chatjobs.errors import ChatJobsError
from domain import logs
from domain.settings import Settings, problems

UNUSABLE = 2
YOUNG_OBJECTS = 10_000
"""New objects between two garbage collections. Python's own 700 costs 6 % of a worker's time: it makes few cycles."""

Serve = Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]]
"""Serves until the event is set. Raises ChatJobsError, which says what to do, if it cannot."""


def run(name: str, serve: Serve) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit code. Errors that say what to do next become one line."""
    logs.configure()
    try:
        asyncio.run(_until_signal(serve))
    except ChatJobsError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return UNUSABLE
    except ValidationError as error:
        sys.stderr.write(f"{name}: the settings are not valid: {problems(error)}\n")
        return UNUSABLE
    return 0


async def _until_signal(serve: Serve) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(Settings(), stop)


def freeze_imports() -> None:
    """Take what was imported, which stays, out of garbage collection: each pass over it stops a process for 25 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
