"""The network backend of webhooks: it resolves a name once, checks every address, and connects to a checked address.

A client that resolves the name again when it connects is open to DNS rebinding. Here the address that was checked is
the one that is connected to; the name remains what TLS verifies and what the Host header has.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any

import anyio
import httpcore2

from domain.errors import WebhookAddressDenied
from domain.timings import Timings
from domain.webhook_urls import Address, WebhookPolicy

MAX_DIALLED = 4
"""Addresses of one host to which a connection is tried; further ones are only checked."""
MAX_ADDRESSES = 64
"""Addresses of one name; checking thousands would block the event loop."""
MAX_LOOKUPS = 64
"""Concurrent look-ups; one cannot be cancelled and holds a thread until the resolver's own timeout (10 s and more)."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""All addresses of a host name, as text. Raises socket.gaierror, NetworkBusy."""
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class NetworkBusy(OSError):
    """Too many look-ups are running in this process; nothing was sent."""


class SystemResolver:
    """Resolves names with the operating system's getaddrinfo.

    Concurrent look-ups of a name share one, which runs in a daemon thread of its own: a silent name server would block
    all threads of the event loop's executor, and the exit of the process.
    """

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Future[Sequence[str]]] = {}

    async def __call__(self, host: str) -> Sequence[str]:
        found = self._running.get(host)
        if found is None:
            if len(self._running) >= MAX_LOOKUPS:
                raise NetworkBusy("too many look-ups at once")
            found = self._start(host)
        return await asyncio.shield(found)

    def _start(self, host: str) -> asyncio.Future[Sequence[str]]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[str]] = loop.create_future()
        found.add_done_callback(lambda done: done.exception())  # no caller may be left to retrieve it

        def settle(addresses: Sequence[str], failure: Exception | None) -> None:
            del self._running[host]
            if failure is None:
                found.set_result(addresses)
            else:
                found.set_exception(failure)

        def look_up() -> None:
            try:
                answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                outcome = partial(settle, [str(answer[4][0]) for answer in answers], None)
            except (OSError, UnicodeError) as error:
                outcome = partial(settle, (), error)
            with contextlib.suppress(RuntimeError):  # the event loop has ended meanwhile
                loop.call_soon_threadsafe(outcome)

        self._running[host] = found
        threading.Thread(target=look_up, name="webhook-name", daemon=True).start()
        return found


def is_own(address: Address) -> bool:
    """Whether the address belongs to an interface of this machine.

    A datagram socket connected to an own address gets that address as its local one; connecting sends nothing.
    """
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        own: str = probe.getsockname()[0]
        return ip_address(own) == address
    return False  # no route to it


Policy = WebhookPolicy | Callable[[], WebhookPolicy]
"""A policy, or a function that returns the current one."""


def current_policy(policy: Policy | None) -> Callable[[], WebhookPolicy | None]:
    """``policy`` as a function that returns the current one."""
    return (lambda: policy) if policy is None or isinstance(policy, WebhookPolicy) else policy


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects only to hosts whose addresses the policy all allows; without a policy, to every host."""

    def __init__(
        self, policy: Policy | None = None, resolve: Resolve | None = None, *, timings: Timings = Timings()
    ) -> None:
        self._policy = current_policy(policy)
        self._resolve = resolve or SystemResolver()
        self._network = httpcore2.AnyIOBackend()
        self._timings = timings

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises WebhookAddressDenied, socket.gaierror (no answer in 3 s, too), NetworkBusy, httpcore2's errors."""
        addresses = await self._addresses(host)
        policy = self._policy()
        if policy is not None:
            _check(policy, host, addresses, port)
        return await self._dial(addresses[:MAX_DIALLED], port)

    async def _addresses(self, host: str) -> Sequence[Address]:
        with contextlib.suppress(ValueError):
            return (ip_address(host),)
        try:
            async with asyncio.timeout(self._timings.webhook_resolve_seconds):
                found = await self._resolve(host)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "the name server did not answer in time") from None
        unique = dict.fromkeys(found)
        if not 0 < len(unique) <= MAX_ADDRESSES:
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address, or too many")
        return tuple(map(ip_address, unique))

    async def _dial(self, addresses: Sequence[Address], port: int) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address that accepts; the time left is divided among the remaining addresses."""
        ends = asyncio.get_running_loop().time() + self._timings.webhook_connect_seconds
        for left in range(len(addresses), 1, -1):
            share = (ends - asyncio.get_running_loop().time()) / left
            with contextlib.suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return await self._connect(addresses[-left], port, share)
        return await self._connect(addresses[-1], port, ends - asyncio.get_running_loop().time())

    async def _connect(self, address: Address, port: int, seconds: float) -> httpcore2.AsyncNetworkStream:
        stream = await self._network.connect_tcp(str(address), port, timeout=max(seconds, 0.0))
        return _GuardedStream(stream, self._timings.webhook_tls_seconds)

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        raise WebhookAddressDenied("webhooks are not sent to sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _check(policy: WebhookPolicy, host: str, addresses: Iterable[Address], port: int) -> None:
    """Raises WebhookAddressDenied if any address is denied: an attacker could choose which one is connected to."""
    for address in addresses:
        reason = policy.denial(host, address, port, own=is_own(address))
        if reason:
            raise WebhookAddressDenied(reason)


class _GuardedStream(httpcore2.AsyncNetworkStream):
    """httpcore2's stream, with a time limit for TLS of its own, and closed if the handshake fails or is cancelled."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, tls_seconds: float) -> None:
        self._stream = stream
        self._tls_seconds = tls_seconds

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, self._tls_seconds)
        except BaseException:  # httpcore2 closes after an Exception only, which a cancellation is not
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
