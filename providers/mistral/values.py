"""JSON values of Mistral's responses: parsing, type checks, cleaning for storage. Pure."""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

from pydantic_core import from_json

from chatjobs.contracts import JsonObject
from domain.errors import UpstreamInterrupted

OK: Final = 200
"""The status of every response whose body is read as an answer."""
DONE: Final = "[DONE]"
DEEPEST: Final = 50
"""Nesting levels of values that are stored unchanged; JSON libraries fail at their own limits."""

T = TypeVar("T")

_JSON_NAMES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "nothing",
}


def parsed(data: bytes) -> Any:
    """The JSON value of ``data``; ``[DONE]`` stays that text. Raises UpstreamInterrupted.

    Lone surrogates are legal JSON, and the halves of a pair may come in two chunks.
    """
    try:
        return from_json(data, cache_strings="keys")
    except ValueError:
        return _parsed_slowly(data)  # pydantic's parser refuses lone surrogates


def _parsed_slowly(data: bytes) -> Any:
    """As ``parsed``, also with blanks around the value, or with a second ``data:`` that a gateway has put in front."""
    try:
        text = data.decode().strip()  # json.loads would guess UTF-16 from bytes, but the format is UTF-8
        while text.startswith("data:"):
            text = text[5:].strip()
        return text if text == DONE else json.loads(text)
    except (ValueError, RecursionError):
        raise protocol("a chunk is not JSON in UTF-8") from None


def decoded(text: str) -> Any:
    """The JSON value of ``text``; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def legal(part: JsonObject) -> JsonObject:
    """``part`` cleaned for storage: text is valid Unicode. Raises UpstreamInterrupted for NaN or depth over DEEPEST."""
    if _deeper(part, DEEPEST):
        raise protocol("a part of the answer is nested too deep")
    try:
        text = json.dumps(part, allow_nan=False, ensure_ascii=False)
    except (ValueError, RecursionError):
        raise protocol("a part of the answer has a number that JSON does not have") from None
    whole = whole_text(text)
    return part if whole is text else expect(json.loads(whole), dict)


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _deeper(one, levels - 1) for one in inner)


def whole_text(text: str) -> str:
    """``text`` with the halves of surrogate pairs joined, and U+FFFD for lone ones."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def expect(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise protocol(
            f"a chunk has {_JSON_NAMES.get(type(value), 'something else')} where {_JSON_NAMES[kind]} belongs"
        )
    return value


def optional(value: Any, kind: type[T]) -> T:
    """``value`` checked for its ``kind``; an empty one for None."""
    return kind() if value is None else expect(value, kind)


def protocol(what: str) -> UpstreamInterrupted:
    return UpstreamInterrupted(
        f"Mistral's stream is not in its format: {what}; check MISTRAL_SERVER_URL, or try again.",
        code="upstream_protocol",
        http_status=OK,
    )
