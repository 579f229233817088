"""A proxy that breaks event streams off: a real one, on loopback, in a thread for each connection.

with cutting_proxy(door.url) as proxy:
    proxy.events = 3          # the next stream breaks off in the middle of its fourth event
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

INTO = 9
"""Bytes of the event after the last whole one that still get through."""


@dataclass
class CuttingProxy:
    url: str
    events: int = 0
    """How many events of each stream get through; responses with fewer pass whole."""


@contextmanager
def cutting_proxy(url: str) -> Iterator[CuttingProxy]:
    upstream = urlsplit(url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = CuttingProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
        address = (upstream.hostname or "", upstream.port or 80)
        accepting = threading.Thread(target=_accept, args=(listener, address, proxy))
        accepting.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(10)


def _accept(listener: socket.socket, address: tuple[str, int], proxy: CuttingProxy) -> None:
    with suppress(OSError):  # the listener is shut down
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(address, timeout=30)
            threading.Thread(target=_requests, args=(client, server), daemon=True).start()
            threading.Thread(target=_responses, args=(client, server, proxy), daemon=True).start()


def _requests(client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError):
        while data := client.recv(65_536):
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)


def _responses(client: socket.socket, server: socket.socket, proxy: CuttingProxy) -> None:
    left, seen = proxy.events, b""
    with client, server, suppress(OSError):
        while data := server.recv(65_536):
            seen += data
            while left and (end := seen.find(b"\n\n")) >= 0:
                left -= 1
                client.sendall(seen[: end + 2])
                seen = seen[end + 2 :]
            if left == 0 and proxy.events:
                client.sendall(seen[:INTO])
                client.shutdown(socket.SHUT_RDWR)
                return
            client.sendall(seen)
            seen = b""
