"""Checks of Host and Origin, which keep pages of other sites from using the service through a visitor's browser.

Without keys anybody who reaches the gateway may use it, so also a page of another site in a browser on this machine.
Such a request is recognised by its Host, the name that the browser believes to connect to (with DNS rebinding any name
resolves to this machine), and by its Origin, the page it comes from. With keys the same holds for cookies, which
browsers send by themselves.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request

from gateway.problems import HttpProblem

DEFAULT_PORTS = {"http": 80, "https": 443}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
FOREIGN_SITES = ("cross-site", "same-site")

Authority = tuple[str, int | None]
"""A host in lower case, and a port."""


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Origins:
    """``public_url``: the gateway's URL for browsers, if it differs from the Host header.

    ``listed``: the origins whose pages may call the API, though not with the cookie of our page.
    """

    def __init__(self, public_url: str | None, listed: Sequence[str] = ()) -> None:
        self._listed = frozenset(listed)
        self._public = _origin(public_url.rstrip("/")) if public_url else None
        self.https = bool(public_url and public_url.lower().startswith("https:"))

    def check_host(self, request: Request) -> None:
        """The Host must be a loopback name or the public one (against DNS rebinding). Raises HttpProblem (421)."""
        host = _host(request)
        named = host[0] if host else ""
        if not (is_loopback(named) or (self._public and named == self._public[0])):
            raise HttpProblem(
                421,
                "host_not_allowed",
                "Without keys this service answers to loopback names only; use http://127.0.0.1, or add a key",
            )

    def check_origin(self, request: Request, *, listed: bool = False) -> None:
        """The request must not come from a page of another origin. ``listed``: listed origins are allowed.

        Raises HttpProblem (403).
        """
        origin = request.headers.get("origin")
        if origin is None:
            foreign = request.headers.get("sec-fetch-site") in FOREIGN_SITES and request.method not in SAFE_METHODS
        else:
            foreign = not self.is_own(request) and not (listed and origin in self._listed)
        if foreign:
            detail = "Pages of another origin may not use this service, unless CHATJOBS_CORS_ORIGINS lists that origin"
            raise HttpProblem(403, "origin_not_allowed", detail)

    def is_own(self, request: Request) -> bool:
        """Whether a request comes from our page, or from no page at all."""
        origin = request.headers.get("origin")
        if origin is None:
            return True
        came_from = _origin(origin)
        return came_from is not None and came_from in (self._public, _host(request, origin))


def _origin(url: str) -> Authority | None:
    """The authority in ``scheme://host:port``; None for anything else, such as the ``null`` of a sandboxed page."""
    scheme, separator, authority = url.partition("://")
    port = DEFAULT_PORTS.get(scheme.lower())
    return _authority(authority, port) if separator and port else None


def _host(request: Request, origin: str = "http://") -> Authority | None:
    """The Host header; a missing port is the default of the origin's scheme: a proxy may terminate https for us."""
    scheme = origin.partition("://")[0].lower()
    return _authority(request.headers.get("host", ""), DEFAULT_PORTS.get(scheme))


def _authority(text: str, default_port: int | None) -> Authority | None:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.netloc != text or "@" in text or parts.path or parts.query or parts.fragment:
        return None
    return host, port if port is not None else default_port
