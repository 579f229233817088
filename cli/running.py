"""Runs a command: opens what it needs, closes it again, returns its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from cli.groups import OK

if TYPE_CHECKING:
    from cli.batches import BatchCommands
    from cli.deliveries import WebhookCommands
    from cli.feed import FeedCommands
    from cli.histories import HistoryCommands
    from cli.keys import KeyCommands
    from cli.limits import LimitCommands
    from cli.pauses import PauseCommands
    from cli.replays import ReplayCommands
    from cli.schedules import ScheduleCommands
    from cli.service import Service

Commands = TypeVar("Commands")


def with_service(
    work: Callable[[Service], Awaitable[int]], *, as_json: bool, database: bool = True, runs: bool = False
) -> int:
    """Run a command on a Service; its exit code.

    ``runs``: a running service is needed, not its database alone, which may be empty yet.
    """
    _require_location(needs_service=runs)
    from cli.service import Service

    return _run(Service, work, as_json=as_json, database=database, create=runs)


def with_batches(work: Callable[[BatchCommands], Awaitable[int]], *, as_json: bool, runs: bool = False) -> int:
    """The same for `batch`."""
    _require_location(needs_service=runs)
    from cli.batches import BatchCommands

    return _run(BatchCommands, work, as_json=as_json, create=runs)


def with_keys(work: Callable[[KeyCommands], Awaitable[int]], *, as_json: bool, create: bool = False) -> int:
    """The same for `keys` and `secrets`, which need nothing but the database.

    ``create``: the command may be the first to use it.
    """
    _require_location(first=create)
    from cli.keys import KeyCommands

    return _run(KeyCommands, work, as_json=as_json, create=create, first=True)


def with_webhooks(work: Callable[[WebhookCommands], Awaitable[int]], *, as_json: bool) -> int:
    """The same for `redeliver`, `endpoints` and `webhooks`."""
    _require_location()
    from cli.deliveries import WebhookCommands

    return _run(WebhookCommands, work, as_json=as_json)


def with_feed(work: Callable[[FeedCommands], Awaitable[int]], *, as_json: bool) -> int:
    """The same for `listen`."""
    _require_location()
    from cli.feed import FeedCommands

    return _run(FeedCommands, work, as_json=as_json)


def with_histories(work: Callable[[HistoryCommands], Awaitable[int]], *, as_json: bool) -> int:
    """The same for `history`."""
    _require_location()
    from cli.histories import HistoryCommands

    return _run(HistoryCommands, work, as_json=as_json)


def with_schedules(work: Callable[[ScheduleCommands], Awaitable[int]], *, as_json: bool, create: bool = False) -> int:
    """The same for `schedules`."""
    _require_location()
    from cli.schedules import ScheduleCommands

    return _run(ScheduleCommands, work, as_json=as_json, create=create)


def with_limits(work: Callable[[LimitCommands], Awaitable[int]], *, as_json: bool, create: bool = False) -> int:
    """The same for `limits`."""
    _require_location(first=create)
    from cli.limits import LimitCommands

    return _run(LimitCommands, work, as_json=as_json, create=create, first=True)


def with_replays(work: Callable[[ReplayCommands], Awaitable[int]], *, as_json: bool) -> int:
    """The same for `replay` with a filter."""
    _require_location(needs_service=True)
    from cli.replays import ReplayCommands

    return _run(ReplayCommands, work, as_json=as_json, create=True)


def with_pauses(work: Callable[[PauseCommands], Awaitable[int]], *, as_json: bool) -> int:
    """The same for `pause` and `resume`."""
    _require_location(first=True)
    from cli.pauses import PauseCommands

    return _run(PauseCommands, work, as_json=as_json, create=True, first=True)


def _run(
    family: Callable[..., Commands],
    work: Callable[[Commands], Awaitable[int]],
    *,
    as_json: bool,
    database: bool = True,
    create: bool = False,
    first: bool = False,
) -> int:
    """Run a command on the commands of its family, which get the service's location and database."""
    from cli.place import located

    async def main() -> int:
        async with located(database=database, create=create, first=first) as (place, storage):
            return await work(family(place, storage, as_json=as_json))

    return exit_code_of(main())


def _require_location(*, needs_service: bool = False, first: bool = False) -> None:
    """Refuse where nothing runs, before the libraries are imported that would look for it."""
    from cli.endpoints_file import require_location

    require_location(os.environ, needs_service=needs_service, first=first)


def exit_code_of(main: Coroutine[Any, Any, int]) -> int:
    enable_ctrl_c()
    try:
        return asyncio.run(main)
    except BrokenPipeError:  # the reader, such as `| head`, has ended; the job goes on
        discard(sys.stdout)
        return OK


def enable_ctrl_c() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def discard(stream: TextIO) -> None:
    """Send the rest of a stream's buffer to /dev/null, so that the interpreter's exit does not fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
