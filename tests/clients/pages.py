"""Pages of another origin than the service's, which import the JavaScript client as it is; and a proxy that cuts."""

from __future__ import annotations

import asyncio
import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clients.generated import CLIENT
from tests.support.cutter import Cutter, cutter


class Pages(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """The origin of a folder that has an empty page, and the client in ``/client``."""
    (folder / "index.html").write_text(
        "<!doctype html><link rel=icon href=data:,><title>elsewhere</title><main></main>"
    )
    (folder / "client").symlink_to(CLIENT)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def cutting(target: str, sizes: Iterator[int | None]) -> Iterator[Cutter]:
    """``cutter`` in a thread of its own, for tests that are not async."""
    ready, done = threading.Event(), threading.Event()
    found: list[Cutter] = []

    async def serve() -> None:
        async with cutter(target, sizes) as proxy:
            found.append(proxy)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        done.set()
        thread.join(10)
