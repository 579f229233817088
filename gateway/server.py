"""Serving the application: uvicorn with our protocol, told to end."""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI

from gateway.metrics import Metrics
from gateway.protocol import KEEP_ALIVE_SECONDS, Protocol
from gateway.registry import Registry

BACKLOG = 4096
GRACE_SECONDS = 5
"""For requests that are under way when the gateway is told to stop; streams are ended at once."""
MOST_CONNECTIONS = 20_000
SPARE_FILES = 100
"""For the database, Temporal and files."""


@asynccontextmanager
async def served(app: FastAPI, registry: Registry, listener: socket.socket) -> AsyncIterator[None]:
    """Serve on a listening socket while the block runs, then end streams, finish requests and return."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # that it starts and stops, we say ourselves
    metrics: Metrics = app.state.metrics
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=functools.partial(  # type: ignore[arg-type]
            Protocol, most=most_connections(), refused=metrics.refused, cors=app.state.cors
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="server")
    watching = asyncio.create_task(metrics.watch_the_loop(), name="event-loop-lag")
    try:
        yield
    finally:
        watching.cancel()
        registry.end_all()
        server.should_exit = True
        await serving


def most_connections() -> int:
    """As many as the operating system gives us files for, once we have asked for all that we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + SPARE_FILES
    files = max(soft, wanted if hard == resource.RLIM_INFINITY else min(hard, wanted))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(1, min(files - SPARE_FILES, MOST_CONNECTIONS))


class Server(uvicorn.Server):
    """Signals are the entry point's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
