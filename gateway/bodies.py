"""Request bodies: read within limits, decoded strictly.

JSON as in RFC 8259 and no more: UTF-8, no name twice in an object, no NaN, no number beyond a double, no half of a
surrogate pair. Two readers would understand such a body differently, and our hash of it is what a retry is known by.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn

from starlette.requests import Request

from gateway.problems import HttpProblem

MOST_VALUES = 20_000
"""Values in one body. A message that is wrong costs far more than its bytes: each value may be a problem to report."""
MOST_DEPTH = 64
BIG = 64 * 1024
"""Bytes from which decoding goes to a thread."""
CONTENT_TYPE = re.compile(r"application/json\s*(;\s*charset\s*=\s*\"?utf-8\"?\s*)?", re.IGNORECASE)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
EVERYTHING_ELSE = bytes(set(range(256)) - set(b"[]{},"))
ONE_BRACKET = bytes.maketrans(b"{}", b"[]")


async def json_body(request: Request, limit: int) -> Any:
    """The decoded JSON body. Raises HttpProblem: 400, 413, 415."""
    check_type(request)
    return await _decoded(await read(request, limit))


async def optional_json_body(request: Request, limit: int) -> Any:
    """The decoded JSON body, or None where there is none. Raises HttpProblem: 400, 413, 415."""
    body = await read(request, limit)
    if not body:
        return None
    check_type(request)
    return await _decoded(body)


def check_type(request: Request) -> None:
    """Raises HttpProblem."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpProblem(415, "unsupported_media_type", "Send the body as it is, without Content-Encoding")
    if not CONTENT_TYPE.fullmatch(request.headers.get("content-type", "").strip()):
        raise HttpProblem(415, "unsupported_media_type", "Send the body as application/json, in UTF-8")


async def read(request: Request, limit: int) -> bytes:
    """The whole body. How long it may take is decided by the protocol. Raises HttpProblem."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    pieces = bytearray()
    async for piece in request.stream():
        pieces += piece
        if len(pieces) > limit:
            raise _too_large(limit)
    return bytes(pieces)


def _too_large(limit: int) -> HttpProblem:
    return HttpProblem(413, "body_too_large", f"The body may have {limit} bytes")


async def _decoded(body: bytes) -> Any:
    return decoded(body) if len(body) < BIG else await asyncio.to_thread(decoded, body)


def decoded(body: bytes) -> Any:
    """Raises HttpProblem: 400, 413."""
    brackets = body.count(b"[") + body.count(b"{")
    if brackets + body.count(b",") > MOST_VALUES:
        _check_structure(body)
    try:
        value = DECODER.decode(body.decode())
        if brackets > MOST_DEPTH:
            _check_depth(value)
        if SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise HttpProblem(400, "invalid_json", "The body is not JSON (RFC 8259) in UTF-8") from None
    return value


def _check_structure(body: bytes) -> None:
    """Before anything is built of it: millions of brackets make seconds of work. Raises HttpProblem."""
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    structure = outside.translate(ONE_BRACKET, EVERYTHING_ELSE)
    if b"[" * (MOST_DEPTH + 1) in structure.replace(b",", b""):
        raise HttpProblem(400, "invalid_json", f"The body is nested more than {MOST_DEPTH} deep")
    if structure.count(b"[") + structure.count(b",") > MOST_VALUES:
        raise HttpProblem(413, "body_too_large", f"The body may have {MOST_VALUES} values")


def _check_depth(value: Any) -> None:
    """Raises HttpProblem."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise HttpProblem(400, "invalid_json", f"The body is nested more than {MOST_DEPTH} deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is beyond a double")
    return number


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)
