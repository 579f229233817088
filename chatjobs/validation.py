"""Pydantic's validation errors as plain sentences, with a suggestion for a typo.

No sentence repeats the input. A suggestion is a known name that resembles the given one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

LONGEST_TYPO = 64
"""Longest name, in characters, that gets a suggestion: comparing takes time that grows with the square of the length,
and known names are short."""
UNKNOWN_FIELD = "is not a known field"
NOT_JSON = "has a value that JSON does not have"

NUMBERS = {  # by pydantic's type of error; templates of its context
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
}
WORDS = {  # by pydantic's type of error
    "missing": "is missing",
    "finite_number": "must be a finite number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "tuple_type": "must be an array",
    "list_type": "must be an array",
    "none_required": "must be null",
    "datetime_type": "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z",
    "datetime_parsing": "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z",
    "timezone_aware": "must have a time zone, as 2026-01-31T12:00:00Z has",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "url_parsing": "must be a URL",
    "url_scheme": "must be a URL",
    "recursion_loop": "is nested too deeply",
}
LIBRARY_WORDS = re.compile(r"^(?:Input|String|Tuple|Array|List|Dictionary|Data|Bytes|URL|Value|Set)\b.*? should ")


def reason(item: ErrorDetails) -> str:
    """The reason why one value was refused, as the end of a sentence that begins with the value's name."""
    kind, context = item["type"], item.get("ctx") or {}
    if kind == "float_type" and type(item.get("input")) is int:  # an integer beyond the range of a double
        kind = "finite_number"
    if template := NUMBERS.get(kind) or WORDS.get(kind):
        return template.format_map({name: _number(value) for name, value in context.items()})
    match kind:
        case "literal_error" | "enum":
            known, given = re.findall(r"'([^']*)'", str(context["expected"])), item.get("input")
            return choice(known, given if isinstance(given, str) else "") if known else f"must be {context['expected']}"
        case "union_tag_invalid":
            tags = re.findall(r"'([^']*)'", str(context["expected_tags"]))
            return choice(tags, str(context["tag"]))
        case "union_tag_not_found":
            return f"must be an object with {str(context['discriminator']).strip(chr(39))}"
        case "string_too_short" | "string_too_long" | "too_short" | "too_long":
            return _size(kind, context)
        case "value_error":
            return item["msg"].removeprefix("Value error, ")
        case _:
            return LIBRARY_WORDS.sub("must ", item["msg"].removeprefix("Value error, "))


def choice(known: Sequence[str], given: str) -> str:
    """The reason for a word that is not one of ``known``."""
    allowed = known[0] if len(known) == 1 else f"one of {', '.join(known)}"
    return f"must be {allowed}{did_you_mean(given, known)}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``; did you mean max_tokens?``, or an empty text if no known name resembles the given one."""
    found = resembling(given, known)
    return f"; did you mean {found}?" if found else ""


def resembling(given: str, known: Iterable[str]) -> str | None:
    """The known name that resembles the given one most, or None; case and separators make no difference."""
    if len(given) > LONGEST_TYPO:
        return None
    names = {_plain(name): name for name in known}
    if not (typed := _plain(given)):
        return None
    close = get_close_matches(typed, names, n=1, cutoff=0.7)
    close = close or [name for name in names if len(typed) >= 3 and name.startswith(typed)]
    return names[close[0]] if close else None


def unknown_field(model: type[BaseModel], path: Sequence[int | str]) -> str:
    """The reason for a field that the value of ``model`` at ``path`` does not have; its last step is the field."""
    return UNKNOWN_FIELD + did_you_mean(str(path[-1]), fields_at(model, path[:-1]))


def fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The names on the wire of the fields that a value may have at a pydantic location, sorted."""
    models = [model]
    for step in path:
        if isinstance(step, str):
            models = _inner(models, step) or [one for one in models if _is_tagged(one, step)] or models
    return sorted({field.alias or name for one in models for name, field in one.model_fields.items()})


def _inner(models: Sequence[type[BaseModel]], step: str) -> list[type[BaseModel]]:
    fields = (field for one in models for name, field in one.model_fields.items() if step in (name, field.alias))
    return [found for field in fields for found in _models(field.annotation)]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, within any unions, arrays and aliases."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _is_tagged(model: type[BaseModel], tag: str) -> bool:
    """Whether a step of a location names this member of a union, by its class or by its discriminator."""
    annotations = (field.annotation for field in model.model_fields.values())
    literals = (get_args(one) for one in annotations if get_origin(one) is Literal)
    return tag == model.__name__ or any(tag in values for values in literals)


def _size(kind: str, context: dict[str, Any]) -> str:
    text, short = kind.startswith("string"), kind.endswith("short")
    bound = context["min_length" if short else "max_length"]
    what = ("character" if text else "item") + ("" if bound == 1 else "s")
    return f"must have at {'least' if short else 'most'} {bound} {what}"


def _number(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else value


def _plain(name: str) -> str:
    return re.sub(r"[-_ .]", "", name).lower()
