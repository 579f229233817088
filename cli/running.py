"""Runs a command: opens what it needs, closes it again, and makes its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TextIO

from cli.groups import OK

if TYPE_CHECKING:
    from cli.deliveries import WebhookCommands
    from cli.keys import KeyCommands
    from cli.limits import LimitCommands
    from cli.service import Service


def with_service(
    work: Callable[[Service], Awaitable[int]], *, as_json: bool, database: bool = True, runs: bool = False
) -> int:
    """Run a command's own part with what it needs, closed again at the end; its exit code.

    ``runs``: a running service is needed, not its database alone, which may be empty yet.
    """
    _expect_something(needs_service=runs)
    from cli.service import opened

    async def main() -> int:
        async with opened(as_json=as_json, database=database, create=runs) as service:
            return await work(service)

    return exit_code_of(main())


def with_keys(work: Callable[[KeyCommands], Awaitable[int]], *, as_json: bool, create: bool = False) -> int:
    """The same for `keys` and `secrets`, which need nothing but the database.

    ``create``: the command may be the first to use it.
    """
    _expect_something(first=create)
    from cli.keys import opened

    async def main() -> int:
        async with opened(as_json=as_json, create=create) as commands:
            return await work(commands)

    return exit_code_of(main())


def with_webhooks(work: Callable[[WebhookCommands], Awaitable[int]], *, as_json: bool) -> int:
    """The same for `redeliver`, `endpoints` and `webhooks`."""
    _expect_something()
    from cli.deliveries import opened

    async def main() -> int:
        async with opened(as_json=as_json) as webhooks:
            return await work(webhooks)

    return exit_code_of(main())


def with_limits(work: Callable[[LimitCommands], Awaitable[int]], *, as_json: bool, create: bool = False) -> int:
    """The same for `limits`."""
    _expect_something(first=create)
    from cli.limits import opened

    async def main() -> int:
        async with opened(as_json=as_json, create=create) as limits:
            return await work(limits)

    return exit_code_of(main())


def _expect_something(*, needs_service: bool = False, first: bool = False) -> None:
    """Say that nothing runs here before the libraries are imported that would look for it."""
    from cli.endpoints_file import expect_something

    expect_something(os.environ, needs_service=needs_service, first=first)


def exit_code_of(main: Coroutine[Any, Any, int]) -> int:
    heed_ctrl_c()
    try:
        return asyncio.run(main)
    except BrokenPipeError:  # `| head` has seen enough; the job goes on
        discard(sys.stdout)
        return OK


def heed_ctrl_c() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def discard(stream: TextIO) -> None:
    """What is still in its buffer goes nowhere: the interpreter's exit would complain of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
