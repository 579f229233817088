"""Request bodies: read within limits, decoded strictly.

JSON as in RFC 8259 and no more: UTF-8, no duplicate names in an object, no NaN, no number beyond a double, no lone
surrogate. Parsers disagree about such bodies, and the hash of the parsed body identifies a retry.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any, NoReturn

from starlette.requests import Request

from chatjobs.contracts import MAX_MESSAGES, too_many_messages
from chatjobs.errors import InvalidRequest, Problem
from dispatch.intake import LARGE_BYTES
from gateway.problems import HttpProblem

MOST_VALUES = 20_000
"""Values in one body. An invalid message costs far more than its bytes: each value may be a problem to report."""
MOST_COUNTED_VALUES = 200_000
"""Up to this number of values, a body with more than MOST_VALUES is still decoded, for a more specific error."""
MOST_DEPTH = 64
NOT_JSON = "The body is not JSON (RFC 8259) in UTF-8"
NOT_VALID = InvalidRequest.__doc__ or ""
CONTENT_TYPE = re.compile(r"application/json\s*(;\s*charset\s*=\s*\"?utf-8\"?\s*)?", re.IGNORECASE)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
SURROGATES = re.compile("[\ud800-\udfff]")
TOKEN = re.compile(
    r"[\[\]{}]"
    # An unterminated string matches to the end of the text, so that no byte is scanned twice.
    r'|"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)(?P<colon>\s*:)?'
    r"|-?(?:[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|NaN|Infinity)",
    re.DOTALL,
)
REASONS = {
    "Expecting value": "a value is missing",
    "Expecting property name": "a name in double quotes is missing",
    "Expecting ':'": "a colon is missing",
    "Expecting ','": "a comma or the closing bracket is missing",
    "Illegal trailing comma": "a comma stands before a closing bracket",
    "Unterminated string": "a string has no end",
    "Invalid control character": "a control character in a string must be escaped",
    "Invalid \\": "an escape in a string is not one of JSON's",
    "Extra data": "something follows after the end of the document",
}
"""Our wording of the messages of Python's decoder, by how they begin."""
EVERYTHING_ELSE = bytes(set(range(256)) - set(b"[]{},"))
ONE_BRACKET = bytes.maketrans(b"{}", b"[]")


async def json_body(request: Request, limit: int) -> Any:
    """The decoded JSON body. Raises HttpProblem: 400, 413, 415."""
    value, _ = await sized_json_body(request, limit)
    return value


async def sized_json_body(request: Request, limit: int) -> tuple[Any, int]:
    """The decoded JSON body and its size in bytes. Raises HttpProblem: 400, 413, 415."""
    check_type(request)
    body = await read(request, limit)
    return await _decoded(body), len(body)


async def optional_json_body(request: Request, limit: int) -> Any:
    """The decoded JSON body, or None for an empty one. Raises HttpProblem: 400, 413, 415."""
    body = await read(request, limit)
    if not body:
        return None
    check_type(request)
    return await _decoded(body)


def check_type(request: Request) -> None:
    """Check Content-Type and Content-Encoding. Raises HttpProblem (415)."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpProblem(415, "unsupported_media_type", "Send the body as it is, without Content-Encoding")
    if not CONTENT_TYPE.fullmatch(request.headers.get("content-type", "").strip()):
        raise HttpProblem(415, "unsupported_media_type", "Send the body as application/json, in UTF-8")


async def read(request: Request, limit: int) -> bytes:
    """The whole body; protocol.py enforces the time limit. Raises HttpProblem (413)."""
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
    return decoded(body) if len(body) < LARGE_BYTES else await asyncio.to_thread(decoded, body)


def decoded(body: bytes, most_values: int = MOST_VALUES) -> Any:
    """The JSON value of ``body``. Raises HttpProblem (400, 413, 422)."""
    brackets = body.count(b"[") + body.count(b"{")
    if brackets + body.count(b",") > most_values:
        _check_structure(body, most_values)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        before = body[: error.start].decode()
        raise _not_json(before, len(before), "the bytes there are not UTF-8") from None
    try:
        value = DECODER.decode(text)
        if brackets > MOST_DEPTH:
            _check_depth(value)
        if SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _not_json(text, error.pos, _reason(text, error)) from None
    except (ValueError, RecursionError):
        place, why = fault(text)
        raise _not_json(text, place, why) from None
    return value


def _not_json(text: str, place: int, why: str) -> HttpProblem:
    """The error for character ``place`` of ``text``; lines and columns count from 1, in characters, as in editors."""
    line = text.count("\n", 0, place) + 1
    column = place - text.rfind("\n", 0, place)
    return HttpProblem(400, "invalid_json", f"{NOT_JSON}: line {line}, column {column}: {why}")


def _reason(text: str, error: json.JSONDecodeError) -> str:
    """The decoder's message in words of ours, which repeat nothing of the input."""
    if not text.strip(" \t\r\n"):
        return "the body is empty"
    if text.startswith("\ufeff"):
        return "a byte order mark; send the body without it"
    if error.pos >= len(text):
        return "the document ends too early"
    return next((ours for theirs, ours in REASONS.items() if error.msg.startswith(theirs)), "this is not JSON")


def _check_structure(body: bytes, most_values: int) -> None:
    """Check depth and number of values before decoding: millions of brackets take seconds. Raises HttpProblem."""
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    structure = outside.translate(ONE_BRACKET, EVERYTHING_ELSE)
    if b"[" * (MOST_DEPTH + 1) in structure.replace(b",", b""):
        text = body.decode(errors="replace")
        raise _not_json(text, *fault(text))
    values = structure.count(b"[") + structure.count(b",")
    if values > most_values:
        _check_messages(body, values)
        detail = f"The body may have {most_values} values, which are members of objects and elements of arrays; it has"
        raise HttpProblem(413, "body_too_large", f"{detail} {values}")


def _check_messages(body: bytes, values: int) -> None:
    """Report too many messages as the validation error that it is (422, not 413). Raises HttpProblem."""
    if values > MOST_COUNTED_VALUES:
        return
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(body)
        messages = value.get("messages") if isinstance(value, dict) else None
        if isinstance(messages, list) and len(messages) > MAX_MESSAGES:
            raise HttpProblem(
                422, "validation_failed", NOT_VALID, errors=[Problem("/messages", too_many_messages(len(messages)))]
            )


def _check_depth(value: Any) -> None:
    """Raises ValueError for a value nested deeper than MOST_DEPTH."""
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
    raise ValueError("nested too deep")


def fault(text: str) -> tuple[int, str]:
    """The first position where a text that Python's decoder accepts breaks our rules, and why; slow."""
    names: list[set[str] | None] = []
    """The names seen in each open object; None for an open array."""
    for found in TOKEN.finditer(text):
        place, piece = found.start(), found[0]
        if piece in "[{":
            names.append(set() if piece == "{" else None)
            if len(names) > MOST_DEPTH:
                return place, f"the body is nested more than {MOST_DEPTH} deep"
        elif piece in "]}":
            if names:
                names.pop()
        elif piece[0] == '"':
            value = _string(piece)
            if SURROGATES.search(value):
                return place, "a string has half of a surrogate pair"
            if found["colon"] is not None and names and names[-1] is not None:
                if value in names[-1]:
                    return place, "a name stands twice in an object"
                names[-1].add(value)
        elif why := _number_fault(piece):
            return place, why
    return 0, "this is not JSON"


def _string(piece: str) -> str:
    """The value of a JSON string; the source text of an invalid one."""
    try:
        return str(json.loads(piece.rstrip(" \t\r\n:")))
    except ValueError:
        return piece


def _number_fault(piece: str) -> str | None:
    """Why a number is not accepted; None if it is."""
    if piece.lstrip("-") in ("NaN", "Infinity"):
        return "NaN and Infinity are not JSON"
    try:
        _ = float(piece) if set(piece) & set(".eE") else int(piece)
    except ValueError:  # Python limits the digits of an int
        return "a number is too long"
    return "a number is beyond a double" if abs(float(piece)) == float("inf") else None


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
