"""JSON Canonicalization Scheme (RFC 8785): one text for all JSON documents with the same meaning.

One difference: an integer keeps all its digits. The scheme would round one beyond 2**53 to a double, and two requests
with different seeds or order numbers would have the same text.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

MAX_DEPTH = 190
"""Levels of arrays and objects within each other: the parser that reads stored requests (pydantic's) stops at 200."""

_string = json.JSONEncoder(ensure_ascii=False).encode
"""Escapes the characters that RFC 8785, section 3.2.2.2, requires, and no others."""


def canonical(value: Any) -> bytes:
    """The canonical text of decoded JSON, as UTF-8.

    Raises ValueError for NaN, Infinity, lone surrogates and more than MAX_DEPTH levels, TypeError for what is not JSON.
    """
    pieces: list[str] = []
    _add(value, pieces, 0)
    return "".join(pieces).encode()


def _add(value: Any, pieces: list[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} arrays or objects are nested in each other")
    match value:
        case None | bool() | str():
            pieces.append(_string(value))
        case int():
            pieces.append(_integer(value))
        case float():
            pieces.append(number(value))
        case list() | tuple():
            for place, element in enumerate(value):
                pieces.append("," if place else "[")
                _add(element, pieces, depth + 1)
            pieces.append("]" if value else "[]")
        case dict():
            for place, name in enumerate(sorted(value, key=_utf_16)):
                pieces.append(f"{',' if place else '{'}{_string(name)}:")
                _add(value[name], pieces, depth + 1)
            pieces.append("}" if value else "{}")
        case _:
            raise TypeError(f"{type(value).__name__} is not JSON")


def _utf_16(name: str) -> bytes:
    """The key by which members are sorted: UTF-16 code units (RFC 8785, section 3.2.3)."""
    return name.encode("utf-16-be")


def _integer(value: int) -> str:
    if abs(value) <= 2**53:
        return str(value)
    try:
        text = number(float(value))
    except OverflowError:
        return str(value)
    return text if Decimal(text) == value else str(value)


def number(value: float) -> str:
    """A number as ECMAScript's Number::toString writes it (ECMA-262, section 6.1.6.1.20).

    Raises ValueError for NaN and Infinity.
    """
    sign, numerals, exponent = Decimal(repr(value)).normalize().as_tuple()
    if not isinstance(exponent, int):
        raise ValueError("NaN and Infinity are not JSON")
    digits = "".join(map(str, numerals))
    if digits == "0":
        return "0"
    return "-" * sign + _unsigned(digits, len(digits) + exponent)


def _unsigned(digits: str, point: int) -> str:
    """``digits`` with a decimal point after the first ``point`` of them, which may be negative or beyond the last."""
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{point - 1:+d}"
