"""Cron expressions of five fields, as Temporal's Schedules read them, checked before Temporal sees them.

Temporal takes more than five fields, drops what follows a ``#`` and takes a step that is larger than its range, and
each of these would run at other times than its author believes. They are refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

NAMES: Final = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
"""The expressions that are one word."""
MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
DAYS: Final = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
DAYS_OF_MONTH: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
PART: Final = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d{1,3}))?", re.ASCII)


class _Field(NamedTuple):
    name: str
    least: int
    most: int
    words: Mapping[str, int]


def _words(names: Sequence[str], first: int) -> dict[str, int]:
    """Each name and its first three letters, with its number."""
    return {word: number for number, name in enumerate(names, first) for word in (name, name[:3])}


FIELDS: Final = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of the month", 1, 31, {}),
    _Field("month", 1, 12, _words(MONTHS, 1)),
    _Field("day of the week", 0, 7, _words(DAYS, 0)),
)


def checked(expression: str) -> str:
    """The expression with single blanks. Raises ValueError, whose text continues a sentence about the expression."""
    if expression.startswith("@"):
        if expression not in NAMES:
            raise ValueError(f"must be one of {', '.join(NAMES)}, or five fields; for an interval, give every")
        return expression
    parts = expression.split()
    if len(parts) != len(FIELDS):
        names = ", ".join(field.name for field in FIELDS)
        raise ValueError(f"must have five fields ({names}), or be a name such as @daily; it has {len(parts)}")
    _, _, days, months, _ = (_values(part, field) for part, field in zip(parts, FIELDS, strict=True))
    if not any(min(days) <= DAYS_OF_MONTH[month - 1] for month in months):
        raise ValueError("names a day that none of its months has")
    return " ".join(parts)


def _values(text: str, field: _Field) -> set[int]:
    """The numbers that a field stands for. Raises ValueError."""
    return set().union(*(_range(part, field) for part in text.split(",")))


def _range(text: str, field: _Field) -> range:
    found = PART.fullmatch(text)
    if found is None:
        raise ValueError(f"has a value for the {field.name} that is no number, range, step or list of these")
    first, last, step = found["first"], found["last"], int(found["step"] or 1)
    if first == "*":
        if last is not None:
            raise ValueError(f"has a value for the {field.name} that is no number, range, step or list of these")
        low, high = field.least, field.most
    else:
        low = _number(first, field)
        high = _number(last, field) if last is not None else field.most if found["step"] else low
    if high < low:
        raise ValueError(f"has a range for the {field.name} whose end is before its beginning")
    if not 1 <= step <= max(field.most - field.least, 1):
        raise ValueError(f"has a step for the {field.name} that is not from 1 to {field.most - field.least}")
    return range(low, high + 1, step)


def _number(text: str, field: _Field) -> int:
    number = field.words.get(text.lower(), int(text) if text.isdigit() and len(text) <= 2 else -1)
    if not field.least <= number <= field.most:
        names = " or a name in English" if field.words else ""
        raise ValueError(f"has a value for the {field.name} that is not from {field.least} to {field.most}{names}")
    return number
