"""The check of one answer against the JSON schema of its request, and the program of the process that makes it.

The process can be killed, which a thread cannot: a regular expression, or references that double at each step, may take
for ever. The kernel ends it once a check has used up its time (SIGPROF), also if its parent has died meanwhile; its
memory is limited. It is started by its path, in isolated mode, so that it imports nothing but jsonschema.

An order is a head (HEAD: the length of what follows, and the seconds of processor time) and a CheckOrder as JSON. A
reply is a length (LENGTH) and a CheckVerdict as JSON.
"""

from __future__ import annotations

import json
import math
import re
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO, Final, TypedDict

import jsonschema_specifications  # type: ignore[import-untyped]
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

HEAD: Final = struct.Struct(">Id")
LENGTH: Final = struct.Struct(">I")
MOST_BYTES: Final = 1024 * 1024 * 1024
"""Address space of the process."""
OVERTIME: Final = signal.SIGPROF
"""The signal that ends the process once the time of a check is over."""
HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped half of a surrogate pair. (Text in storage has no others.)"""
MOST_PROBLEMS: Final = 5
MOST_ERRORS: Final = 50
"""Errors of the library that are looked at for different problems."""
MOST_DIGITS: Final = 4_300
"""Of a whole number; Python reads no longer ones (sys.set_int_max_str_digits), nor do most others."""
MOST_WORDS: Final = 300
"""Characters of what a schema wants, in the words for the model."""
MOST_PLACE: Final = 200
"""Characters of a place: names may be as long as the schema, and stand in each other. Temporal takes no long error."""
VALIDATORS: Final = 64
NOT_READ: Final = ("nested", "memory", "error")
TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


class CheckOrder(TypedDict):
    """``schema``: as JSON; None: any object is right."""

    schema: str | None
    text: str


class Mismatch(TypedDict):
    """One thing that is wrong with an answer.

    ``place`` (JSON pointer, RFC 6901) and ``words`` repeat nothing of the answer: names that the schema does not have
    are ``*``. ``pointer`` and ``wanted``, for the model, are exact.
    """

    place: str
    words: str
    pointer: str
    wanted: str


class CheckVerdict(TypedDict):
    """``problems``: none, if the answer matches. ``undecided``: why that is not known; one of NOT_READ."""

    problems: list[Mismatch]
    undecided: str | None


class NotJson(ValueError):
    """The text is not one JSON document that everybody reads in the same way."""


# ----------------------------------------------------------------------------------------------------- reading


def read(text: str) -> Any:
    """The value of a JSON text (RFC 8259).

    Raises NotJson also for what readers of JSON do not agree on: a name twice in one object, half of a surrogate pair,
    a number beyond those of Python's int and float.
    """
    if not text.strip(" \t\r\n"):
        raise NotJson("is empty, not JSON")
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_int=_whole, parse_float=_real, object_pairs_hook=_members
        )
    except json.JSONDecodeError as error:
        fence = "; it must not stand in a code block" if text.lstrip().startswith("```") else ""
        raise NotJson(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}{fence}") from None
    if HALF.search(text) and not all(map(_is_whole, _texts(value))):
        raise NotJson("has half of a surrogate pair in a text")
    return value


def _no_constant(_: str) -> Any:
    raise NotJson("is not JSON: it has NaN or Infinity")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise NotJson(f"has a number of more than {MOST_DIGITS} digits")
    return int(digits)


def _real(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise NotJson("has a number beyond 1.8e308")
    return value


def _members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotJson("has an object with the same name twice")
    return members


def _texts(value: Any) -> Iterator[str]:
    """All names of objects and all texts in a JSON value."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as members:
                yield from members
                waiting += members.values()
            case list() as items:
                waiting += items
            case str(text):
                yield text


def _is_whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------- checking


def validator_class(schema: Mapping[str, Any]) -> type[Validator]:
    """The validator of the draft that ``$schema`` names; of 2020-12 where it names none that is known."""
    found: type[Validator] = validator_for(schema, default=Draft202012Validator)
    return found


@lru_cache(VALIDATORS)
def _validator(schema: str) -> tuple[Validator, frozenset[str]]:
    """The validator of a schema, which fetches no reference, and all names in the schema."""
    read_schema = json.loads(schema)
    made = validator_class(read_schema)(read_schema, registry=jsonschema_specifications.REGISTRY)
    return made, frozenset(_texts(read_schema))


def check(schema: str | None, text: str) -> CheckVerdict:
    """Whether a text is JSON and matches. May take for ever. ``schema``: see CheckOrder."""
    try:
        value = read(text)
        if schema is None:
            found = [] if isinstance(value, dict) else [_problem("", "must be an object")]
            return {"problems": found, "undecided": None}
        validator, names = _validator(schema)
        errors = islice(validator.iter_errors(value), MOST_ERRORS)
        problems = {(one["pointer"], one["wanted"]): one for one in (_mismatch(error, names) for error in errors)}
        return {"problems": [*problems.values()][:MOST_PROBLEMS], "undecided": None}
    except NotJson as error:
        return {"problems": [_problem("", str(error))], "undecided": None}
    except RecursionError:
        return {"problems": [], "undecided": "nested"}
    except MemoryError:
        return {"problems": [], "undecided": "memory"}
    except Exception as error:  # noqa: BLE001 - a schema that the library does not survive is no match
        sys.stderr.write(f"{type(error).__name__}\n")
        return {"problems": [], "undecided": "error"}


def _problem(place: str, words: str) -> Mismatch:
    return {"place": place, "words": words, "pointer": place, "wanted": words}


def _mismatch(error: ValidationError, names: frozenset[str]) -> Mismatch:
    """An error of the library in our words: its own repeat the answer. Of alternatives, the error of the likeliest."""
    inner = best_match([error]) or error
    path = list(inner.absolute_path)
    words, wanted = _words(inner)
    return {
        "place": _pointer(step if isinstance(step, int) or step in names else "*" for step in path),
        "words": words,
        "pointer": _pointer(path),
        "wanted": wanted if len(wanted) <= MOST_WORDS else f"{wanted[: MOST_WORDS - 1]}…",
    }


def _pointer(path: Iterable[int | str]) -> str:
    """The JSON pointer of a path; a long one ends early, with an ellipsis."""
    pointer = ""
    for step in path:
        pointer += "/" + str(step)[:MOST_PLACE].replace("~", "~0").replace("/", "~1")
        if len(pointer) > MOST_PLACE:
            return f"{pointer[: MOST_PLACE - 1]}…"
    return pointer


LIMITS: Final = {
    "minimum": "is below the minimum",
    "exclusiveMinimum": "is not above the exclusive minimum",
    "maximum": "is above the maximum",
    "exclusiveMaximum": "is not below the exclusive maximum",
    "multipleOf": "is no multiple of what it must be",
    "minLength": "is too short",
    "maxLength": "is too long",
    "pattern": "does not match the pattern",
    "minItems": "has too few items",
    "maxItems": "has too many items",
    "minProperties": "has too few properties",
    "maxProperties": "has too many properties",
    "enum": "is none of the values of enum",
    "const": "is not the value of const",
    "minContains": "contains too few of the items that it must",
    "maxContains": "contains too many of the items that it must",
}
"""What is wrong; the words for the model add the keyword's value."""
OTHERS: Final = {
    "additionalProperties": "has a property that the schema does not allow",
    "unevaluatedProperties": "has a property that the schema does not allow",
    "unevaluatedItems": "has an item that the schema does not allow",
    "additionalItems": "has an item that the schema does not allow",
    "uniqueItems": "has the same item twice",
    "contains": "does not contain an item that it must",
    "anyOf": "matches none of the alternatives",
    "oneOf": "does not match exactly one of the alternatives",
    "not": "matches what it must not",
    "dependentRequired": "lacks a property that another one requires",
    "dependencies": "lacks a property that another one requires",
    "propertyNames": "has a property whose name does not match",
}


def _words(error: ValidationError) -> tuple[str, str]:
    """What is wrong: without any value, and for the model."""
    keyword, value, instance, schema = _parts(error)
    if keyword == "type":
        types = [value] if isinstance(value, str) else value
        words = "must be of type " + " or ".join(one for one in types if isinstance(one, str) and one in TYPES)
        return words, words
    if keyword == "required" and isinstance(value, list):
        missing = [name for name in value if name not in instance]
        lacks = next((name for name in missing if error.message.startswith(repr(name))), missing[0])
        return f"lacks the property {_short(lacks)}", f"lacks the property {json.dumps(lacks, ensure_ascii=False)}"
    if keyword in LIMITS:
        said = LIMITS[keyword]
        return said, f"{said} ({keyword}: {json.dumps(value, ensure_ascii=False)})"
    if keyword == "additionalProperties" and "patternProperties" not in schema:
        known = schema.get("properties", {})
        unknown = ", ".join(json.dumps(name, ensure_ascii=False) for name in instance if name not in known)
        return OTHERS[keyword], f"{OTHERS[keyword]}: {unknown}"
    said = OTHERS.get(str(keyword), "is not allowed here")
    return said, said


def _parts(error: ValidationError) -> tuple[str | None, Any, Any, Any]:
    """Keyword, its value, instance and schema of an error. Those of an error without a keyword are of no use."""
    return error.validator, error.validator_value, error.instance, error.schema  # type: ignore[return-value]


def _short(name: str) -> str:
    return name if len(name) <= 64 and name.isprintable() else f"{''.join(filter(str.isprintable, name))[:63]}…"


# --------------------------------------------------------------------------------------------------- the process


def main() -> None:
    """Answer orders until the input ends."""
    signal.signal(OVERTIME, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the end of the input is for this one
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    own = MOST_BYTES if most == resource.RLIM_INFINITY else min(MOST_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (own, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as likeliest:  # rather than the worker
        likeliest.write("1000")
    check('{"type": "object"}', "{}")  # the first one is slow
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(HEAD.size)) == HEAD.size:
        length, seconds = HEAD.unpack(head)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        verdict = _verdict(source, length)
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply = json.dumps(verdict).encode()
        target.write(LENGTH.pack(len(reply)) + reply)
        target.flush()


def _verdict(source: BinaryIO, length: int) -> CheckVerdict:
    body = source.read(length)
    if len(body) < length:
        raise SystemExit
    try:
        order: CheckOrder = json.loads(body)
    except MemoryError:
        return {"problems": [], "undecided": "memory"}
    return check(order["schema"], order["text"])


if __name__ == "__main__":
    main()
