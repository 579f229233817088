"""Request bodies: read within limits, decoded strictly."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from gateway.problems import HttpProblem


async def json_body(request: Request, limit: int) -> Any:
    """The decoded JSON body. Raises HttpProblem: 400, 413, 415."""
    return decoded(await read(request, limit))


async def read(request: Request, limit: int) -> bytes:
    pieces = bytearray()
    async for piece in request.stream():
        pieces += piece
        if len(pieces) > limit:
            raise HttpProblem(413, "body_too_large", f"The body may have {limit} bytes")
    return bytes(pieces)


def decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise HttpProblem(400, "invalid_json", "The body is not JSON in UTF-8") from None
