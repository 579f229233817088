"""Serving the application: uvicorn, told to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI

from gateway.registry import Registry

BACKLOG = 4096
GRACE_SECONDS = 5
"""For requests that are under way when the gateway is told to stop; streams are ended at once."""


@asynccontextmanager
async def served(app: FastAPI, registry: Registry, listener: socket.socket) -> AsyncIterator[None]:
    """Serve on a listening socket while the block runs, then end streams, finish requests and return."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="server")
    try:
        yield
    finally:
        registry.end_all()
        server.should_exit = True
        await serving


class Server(uvicorn.Server):
    """Signals are the entry point's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
