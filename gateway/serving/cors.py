"""Cross-origin resource sharing: an exact list of the other origins whose pages may call the API.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol. Credentials are never allowed: a page of another origin
authenticates with a key or a stream token, not with the session cookie of our page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

ANY_METHOD = b"GET, HEAD, POST, PUT, PATCH, DELETE"
"""Every method for every path: a browser shows a 405 or 404 only after a preflight that allows the method."""
REQUEST_HEADERS = b"Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, Traceparent, Tracestate"
EXPOSED_HEADERS = b"Allow, Idempotency-Replayed, Location, Preference-Applied, Retry-After, WWW-Authenticate, X-Job-Id"
PREFLIGHT_SECONDS = b"600"
MOST_NAMED = 64
"""Headers of a preflight that are looked at."""
NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
"""A header's name (RFC 9110, 5.6.2)."""


class Cors:
    """``origins`` as browsers write them: ``https://app.example``."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origin.encode("ascii") for origin in origins)

    def headers(self, request: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The CORS headers of the response to a request with these headers; none if no origin is configured."""
        if not self._origins:
            return []
        origin = self._origin(request)
        vary = (b"vary", b"Origin")
        if origin is None:
            return [vary]
        return [
            vary,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
        ]

    def preflight(self, request: Iterable[tuple[bytes, bytes]]) -> Headers | None:
        """The headers, besides ``headers``, of the response to a listed origin's preflight; None for other requests."""
        given = list(request)
        asks = any(name == b"access-control-request-method" for name, _ in given)
        if not asks or self._origin(given) is None:
            return None
        return [
            (b"access-control-allow-methods", ANY_METHOD),
            (b"access-control-allow-headers", _allowed(given)),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ]

    def _origin(self, request: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """The value of the Origin header if it is listed."""
        given = [value for name, value in request if name == b"origin"]
        return given[0] if len(given) == 1 and given[0] in self._origins else None


def _allowed(request: Headers) -> bytes:
    """The request headers that are allowed: ours, and those that the preflight names, such as ``x-stainless-os`` of a
    client library. A header tells the API nothing that its caller might not say."""
    wanted = next((value for name, value in request if name == b"access-control-request-headers"), b"")
    names = [name.strip() for name in wanted.split(b",")][:MOST_NAMED]
    known = REQUEST_HEADERS.lower().split(b", ")
    others = [name for name in names if NAME.fullmatch(name) and name.lower() not in known]
    return b", ".join([REQUEST_HEADERS, *others])
