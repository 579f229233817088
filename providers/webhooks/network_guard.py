"""The network as webhooks may use it: names are looked up once, every address is judged, and a judged one is dialled.

A client that looks a name up again when it connects can be led elsewhere meanwhile (DNS rebinding). Here the address
that was judged is the one that is dialled; the name stays what TLS verifies and what the Host header says.
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
"""Addresses of one host that are tried, the rest of a long answer is only judged."""
MAX_ADDRESSES = 64
"""Of one name; judging thousands would hold up everybody else."""
MAX_LOOKUPS = 64
"""At once; a look-up cannot be cancelled and holds a thread until the resolver's own time is over (10 s and more)."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""All addresses of a host name, as text. Raises socket.gaierror, NetworkBusy."""
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class NetworkBusy(OSError):
    """This process has no room for another look-up; nothing was sent."""


class SystemResolver:
    """Names as the operating system knows them.

    Each name is looked up once at a time, in a thread of its own that nobody waits for: the event loop's own threads
    are few, and a silent name server would take them from everybody, and from a process that wants to end.
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
        found.add_done_callback(lambda done: done.exception())  # nobody may be left to take it

        def settle(addresses: Sequence[str], failure: Exception | None) -> None:
            del self._running[host]
            if failure is None:
                found.set_result(addresses)
            else:
                found.set_exception(failure)

        def look_up() -> None:
            try:
                outcome = partial(settle, _system_addresses(host), None)
            except (OSError, UnicodeError) as error:
                outcome = partial(settle, (), error)
            with contextlib.suppress(RuntimeError):  # the event loop has ended meanwhile
                loop.call_soon_threadsafe(outcome)

        self._running[host] = found
        threading.Thread(target=look_up, name="webhook-name", daemon=True).start()
        return found


def _system_addresses(host: str) -> Sequence[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


async def resolved(
    endpoints: Iterable[str], resolve: Resolve | None = None, *, timings: Timings = Timings()
) -> tuple[str, ...]:
    """``WebhookPolicy.deny`` entries for ``host:port``: the name, and every address that it has now.

    A name that is not known (yet) is denied as a name only.
    """
    resolve = resolve or SystemResolver()
    entries: list[str] = []
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        entries.append(endpoint)
        with contextlib.suppress(OSError, UnicodeError, TimeoutError):
            async with asyncio.timeout(timings.webhook_resolve_seconds):
                entries += [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in await resolve(host.strip("[]"))]
    return tuple(dict.fromkeys(entries))


def is_own(address: Address) -> bool:
    """Whether it is this machine's, on whichever interface.

    A datagram socket that is connected to an own address has that address itself; connecting one sends nothing.
    """
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        own: str = probe.getsockname()[0]
        return ip_address(own) == address
    return False  # there is no way to it at all


Policy = WebhookPolicy | Callable[[], WebhookPolicy]
"""A policy, or what gives the one in force."""


def in_force(policy: Policy | None) -> Callable[[], WebhookPolicy | None]:
    return (lambda: policy) if policy is None or isinstance(policy, WebhookPolicy) else policy


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Connections to hosts whose every address the policy lets pass. Without a policy all do."""

    def __init__(
        self, policy: Policy | None = None, resolve: Resolve | None = None, *, timings: Timings = Timings()
    ) -> None:
        self._policy = in_force(policy)
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
            _judge(policy, host, addresses, port)
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
        """The first that answers. One that does not leaves time for those after it."""
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


def _judge(policy: WebhookPolicy, host: str, addresses: Iterable[Address], port: int) -> None:
    """One address that is denied denies all: which one is dialled could be the attacker's choice."""
    for address in addresses:
        reason = policy.denial(host, address, port, own=is_own(address))
        if reason:
            raise WebhookAddressDenied(reason)


class _GuardedStream(httpcore2.AsyncNetworkStream):
    """httpcore2's stream, with a time for TLS alone, and closed when the handshake ends in any way but well."""

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
