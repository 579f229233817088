"""Cross-origin resource sharing: the pages of other origins that may call the API, by an exact list.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol. Credentials are never allowed: a page of another origin calls
with a key or a stream token of its own, and the session cookie of our page is of no use to it.
"""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

ANY_METHOD = b"GET, HEAD, POST, PUT, PATCH, DELETE"
"""Also those that a path does not have: a browser shows a 405 or 404 only after a preflight that allows the method."""
REQUEST_HEADERS = b"Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, Traceparent, Tracestate"
EXPOSED_HEADERS = b"Allow, Idempotency-Replayed, Location, Preference-Applied, Retry-After, WWW-Authenticate, X-Job-Id"
PREFLIGHT_SECONDS = b"600"


class Cors:
    """``origins`` as browsers write them: ``https://app.example``."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origin.encode("ascii") for origin in origins)

    def headers(self, request: Iterable[tuple[bytes, bytes]]) -> Headers:
        """What an answer to a request with these headers says about origins. Nothing where no origin is listed."""
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
        """What the answer to a preflight of a listed origin has besides ``headers``; None for any other request."""
        given = list(request)
        asks = any(name == b"access-control-request-method" for name, _ in given)
        if not asks or self._origin(given) is None:
            return None
        return [
            (b"access-control-allow-methods", ANY_METHOD),
            (b"access-control-allow-headers", REQUEST_HEADERS),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ]

    def _origin(self, request: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """The origin that a request comes from, if it is listed."""
        given = [value for name, value in request if name == b"origin"]
        return given[0] if len(given) == 1 and given[0] in self._origins else None
