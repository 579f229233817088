"""Whether a request may be answered."""

from __future__ import annotations

from starlette.requests import Request


def authorized(request: Request) -> bool:
    """Whether the request has a key; any key is valid."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and bool(key.strip())
