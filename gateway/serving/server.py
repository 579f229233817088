"""Serving the application: uvicorn with our protocol, and its shutdown."""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from gateway.routes.metrics import Metrics
from gateway.serving.open_streams import OpenStreams
from gateway.serving.protocol import KEEP_ALIVE_SECONDS, HttpProtocol

BACKLOG = 4096
GRACE_SECONDS = 5
"""For requests that are under way when the gateway gets a signal to stop; streams are ended at once."""
MOST_CONNECTIONS = 20_000
SPARE_FILES = 100
"""File descriptors kept for the database, Temporal and files; where the limit is low, half or FEWEST_SPARE_FILES."""
FEWEST_SPARE_FILES = 40
"""An idle gateway has some 27 files open; a connection that is being closed keeps its own for a moment."""
ACCEPTED_AT_ONCE = 8
"""Connections accepted before their number is checked again; asyncio would accept the whole backlog."""
OUT_OF_FILES = "socket.accept() out of system resource"
"""The beginning of asyncio's message; asyncio then stops accepting for a second."""
TOLD_EVERY_SECONDS = 60.0

log = logging.getLogger(__name__)


class Listener(socket.socket):
    """A listening socket that keeps its backlog: asyncio has one number for the backlog and the accepts per loop."""

    def listen(self, backlog: int = BACKLOG) -> None:
        super().listen(max(backlog, BACKLOG))


@asynccontextmanager
async def served(app: FastAPI, open_streams: OpenStreams, listener: socket.socket) -> AsyncIterator[None]:
    """Serve on a listening socket while the block runs, then end streams, finish requests and return."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # __main__ logs start and stop
    metrics: Metrics = app.state.metrics
    most = most_connections()
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=functools.partial(  # type: ignore[arg-type]
            HttpProtocol, most=most, refused=metrics.refused, cors=app.state.cors
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=ACCEPTED_AT_ONCE if most > SPARE_FILES else 1,
    )
    server = GatewayServer(config)
    asyncio.get_running_loop().set_exception_handler(_LoopExceptionHandler().handle)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="server")
    watching = asyncio.create_task(metrics.watch_the_loop(), name="event-loop-lag")
    try:
        yield
    finally:
        watching.cancel()
        open_streams.end_all()
        server.should_exit = True
        await serving


def most_connections() -> int:
    """The number of connections that the limit of file descriptors allows, after raising it as far as permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + SPARE_FILES
    files = max(soft, wanted if hard == resource.RLIM_INFINITY else min(hard, wanted))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    spare = min(SPARE_FILES, max(FEWEST_SPARE_FILES, files // 2))
    return max(1, min(files - spare, MOST_CONNECTIONS))


class _LoopExceptionHandler:
    """The event loop's exception handler, which logs running out of file descriptors once a minute only."""

    def __init__(self) -> None:
        self._logged_at = float("-inf")

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not str(context.get("message", "")).startswith(OUT_OF_FILES):
            loop.default_exception_handler(context)
        elif loop.time() > self._logged_at + TOLD_EVERY_SECONDS:
            self._logged_at = loop.time()
            log.error("no files are left for connections; raise ulimit -n", extra={"action": "out_of_files"})


class GatewayServer(uvicorn.Server):
    """uvicorn's server without its signal handlers: __main__ has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
