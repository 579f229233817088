"""Whether a request's JSON schema is one that answers can be checked against; the check itself is in schema_check.py.

The schema has to be valid in its draft, and all its references have to lead into it: nothing is ever fetched. What is
refused here would otherwise be paid for and then fail. The size of a schema is limited (MAX_SCHEMA_BYTES), and so is
the number of schemas in it, since this costs a few tenths of a millisecond for each.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, Final

import jsonschema_specifications  # type: ignore[import-untyped]
from jsonschema import FormatChecker
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from chatjobs.contracts import ChatRequest, canonical_json
from chatjobs.errors import InvalidRequest, Problem
from domain.schema_check import TYPES, validator_class

PLACE: Final = "/response_format/json_schema/schema"
MOST_SCHEMAS: Final = 2_000
"""Objects and booleans in a schema: each may be a schema of its own."""
REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
IN_PLACE: Final = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas")
"""Keywords whose schemas apply to the same value, not to a part of it."""
KNOWN: Final = 512
MOST_RANGES: Final = 100
"""Hyphens in a regular expression with characters beyond ASCII: Python compiles a range of a million characters in some
ten milliseconds, and nothing can stop it."""
MOST_SECONDS: Final = 2.0
"""Processor time for all regular expressions of a schema; they are compiled one by one."""

TOO_MANY = f"has more than {MOST_SCHEMAS} objects and booleans, each of which may be a schema; shorten it"
TOO_DEEP = "is nested too deeply to be checked"
DRAFT = "must be the address of a draft of JSON schema, such as https://json-schema.org/draft/2020-12/schema"
SCATTERED = "has too many references to schemas outside $defs (definitions in older drafts); move them there"
NO_TARGET = "leads nowhere within the schema; put what it names into the schema ($defs): nothing is fetched"
ENDLESS = "refers to itself for the same value, which never ends; refer to it for a property or an item"
TOO_SLOW = (
    "has regular expressions that take too long to compile; use fewer ranges of characters beyond ASCII, such as"
    " [\\u0080-\\uffff]"
)
UNREADABLE = "cannot be read as the address of a schema"

_good: OrderedDict[bytes, None] = OrderedDict()
_lock = Lock()


def names_schema(body: Any) -> bool:
    """Whether decoded JSON may be a request with a schema, whose check takes a while."""
    form = body.get("response_format") if isinstance(body, dict) else None
    return isinstance(form, dict) and form.get("type") == "json_schema"


def check_schema(request: ChatRequest) -> None:
    """Refuse a request whose schema no answer can be checked against. Raises InvalidRequest.

    Takes up to a second for the largest schemas, three for regular expressions, and nothing for one that was seen
    lately. Any thread may call it.
    """
    form = request.response_format
    if form is None or form.type != "json_schema" or form.json_schema is None:
        return
    schema = form.json_schema.schema_definition
    key = hashlib.sha256(canonical_json(schema)).digest()
    with _lock:
        if key in _good:
            _good.move_to_end(key)
            return
    if problem := schema_problem(schema):
        raise InvalidRequest([problem])
    with _lock:
        _good[key] = None
        if len(_good) > KNOWN:
            _good.popitem(last=False)


class _TooSlow(Exception):
    """The regular expressions of a schema take too long to compile."""


def schema_problem(schema: Mapping[str, Any]) -> Problem | None:
    """What is wrong with a schema, and where in the request; None if nothing is."""
    if sum(1 for _ in _schemas_at_most(schema)) > MOST_SCHEMAS:
        return Problem(PLACE, TOO_MANY)
    if not isinstance(schema.get("$schema", ""), str):
        return Problem(f"{PLACE}/$schema", DRAFT)
    try:
        expressions = _Expressions()
        return _invalid(schema, "", expressions) or _References(schema, expressions).problem()
    except RecursionError:
        return Problem(PLACE, TOO_DEEP)
    except _TooSlow:
        return Problem(PLACE, TOO_SLOW)


def _schemas_at_most(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | bool):
            yield one
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


class _Expressions:
    """Compiles the regular expressions of one schema, within limits."""

    def __init__(self) -> None:
        self._left = MOST_SECONDS

    def is_good(self, value: Any) -> bool:
        """Whether a value is a regular expression, or no text. Raises re.error, _TooSlow."""
        if not isinstance(value, str):
            return True
        wide = not value.isascii() or re.search(r"\\[uUN]", value) is not None
        if wide and value.count("-") > MOST_RANGES:
            raise _TooSlow
        began = time.thread_time()
        re.compile(value)
        self._left -= time.thread_time() - began
        if self._left < 0:
            raise _TooSlow
        return True


def _unique(validator: Validator, wanted: Any, value: Any, _: Any) -> Iterator[ValidationError]:
    """``uniqueItems``: the library compares items of several types each with each other."""
    if wanted is True and isinstance(value, list) and len({canonical_json(one) for one in value}) < len(value):
        yield ValidationError("has an item twice")


def _invalid(schema: Any, place: str, expressions: _Expressions) -> Problem | None:
    """What the draft's own schema says against a schema, which stands at ``place``."""
    found = validator_class(schema if isinstance(schema, dict) else {})
    formats = FormatChecker(())
    formats.checkers = {**found.FORMAT_CHECKER.checkers, "regex": (expressions.is_good, re.error)}
    checker_class = extend(found, {"uniqueItems": _unique})  # type: ignore[no-untyped-call]
    checker = checker_class(found.META_SCHEMA, format_checker=formats)
    try:
        error = best_match(_first(checker.iter_errors(schema)))
    except (OverflowError, MemoryError):  # of the compiler of regular expressions
        return Problem(f"{PLACE}{place}", "has a regular expression that is too large")
    if error is None:
        return None
    steps = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in error.absolute_path)
    return Problem(f"{PLACE}{place}{steps}", _why(error))


def _first(errors: Iterator[ValidationError]) -> Iterator[ValidationError]:
    for error in errors:
        yield error
        return


def _why(error: ValidationError) -> str:
    value: Any = error.validator_value
    if error.absolute_path and error.absolute_path[-1] == "type":
        return f"must be one of {', '.join(sorted(TYPES))}, or a list of them"
    if error.validator == "type":
        return f"must be of type {' or '.join([value] if isinstance(value, str) else value)}"
    if error.validator == "format":
        what = "a regular expression that Python's re understands" if value == "regex" else f"a valid {value}"
        return f"must be {what}"
    if error.validator == "enum":
        return f"must be one of {', '.join(map(str, value))}"
    return f"is not valid in a JSON schema ({error.validator})"


class _References:
    """The references of a schema, and the schemas that they lead to."""

    def __init__(self, schema: Mapping[str, Any], expressions: _Expressions) -> None:
        self._schema = schema
        self._expressions = expressions
        self._valid: set[int] = set()
        """The schemas that the draft's own schema has nothing against."""
        self._looked_at = 0
        self._places = {id(one): place for one, place in _placed(schema)}
        self._seen: set[int] = set()
        self._applied: dict[int, list[int]] = {}
        """By schema: those that apply to the same value."""

    def problem(self) -> Problem | None:
        registry: Registry[Any] = jsonschema_specifications.REGISTRY
        resource = Resource.from_contents(self._schema, default_specification=DRAFT202012)
        try:
            self._note_valid(resource)
            # Without ``crawl`` each look-up of a name would search the whole schema.
            base = registry.with_resource("", resource).crawl().resolver()
            own = base.in_subresource(resource)
        except ValueError:
            return Problem(f"{PLACE}/$id", UNREADABLE)
        return self._walked(resource, own) or self._endless()

    def _walked(self, resource: Resource[Any], resolver: Any) -> Problem | None:
        """The first reference that leads nowhere."""
        waiting = [(resource, resolver)]
        while waiting:
            one, here = waiting.pop()
            if not isinstance(one.contents, dict) or id(one.contents) in self._seen:
                continue
            self._seen.add(id(one.contents))
            applied = self._applied.setdefault(id(one.contents), [])
            for keyword in REFERENCES:
                if not isinstance(reference := one.contents.get(keyword), str):
                    continue
                place = f"{self._places.get(id(one.contents), '')}/{keyword}"
                try:
                    target = here.lookup(reference)
                except Unresolvable:
                    return Problem(f"{PLACE}{place}", NO_TARGET)
                except ValueError:
                    return Problem(f"{PLACE}{place}", UNREADABLE)
                if not isinstance(target.contents, dict | bool):
                    return Problem(f"{PLACE}{place}", "must lead to a schema, which is an object or a boolean")
                known = id(target.contents) in self._places
                if known and (wrong := self._target(target.contents)):
                    return wrong
                if known:
                    applied.append(id(target.contents))
                    waiting.append((resource.from_contents(target.contents, DRAFT202012), target.resolver))
            applied += map(id, _in_place(one.contents))
            try:
                waiting += [(sub, here.in_subresource(sub)) for sub in one.subresources()]
            except ValueError:
                return Problem(f"{PLACE}{self._places.get(id(one.contents), '')}", UNREADABLE)
        return None

    def _target(self, contents: Any) -> Problem | None:
        """What is wrong with the target of a reference, which may stand where no schema is expected."""
        if id(contents) in self._valid:
            return None
        self._looked_at += sum(1 for _ in _schemas_at_most(contents))
        if self._looked_at > 2 * MOST_SCHEMAS:  # such targets may stand in each other
            return Problem(PLACE, SCATTERED)
        if wrong := _invalid(contents, self._places[id(contents)], self._expressions):
            return wrong
        self._note_valid(Resource.from_contents(contents, DRAFT202012))
        return None

    def _note_valid(self, resource: Resource[Any]) -> None:
        waiting = [resource]
        while waiting:
            one = waiting.pop()
            if isinstance(one.contents, dict) and id(one.contents) not in self._valid:
                self._valid.add(id(one.contents))
                waiting += one.subresources()

    def _endless(self) -> Problem | None:
        """A schema that applies to the same value as itself."""
        done: set[int] = set()
        for start in self._applied:
            path: list[tuple[int, Iterator[int]]] = [(start, iter(self._applied.get(start, ())))]
            open_now = {start}
            while path:
                here, further = path[-1]
                following = next(further, None)
                if following is None:
                    path.pop()
                    open_now.discard(here)
                    done.add(here)
                elif following in open_now:
                    return Problem(f"{PLACE}{self._places.get(following, '')}", ENDLESS)
                elif following not in done:
                    open_now.add(following)
                    path.append((following, iter(self._applied.get(following, ()))))
        return None


def _in_place(schema: Mapping[str, Any]) -> Iterator[Any]:
    for keyword in IN_PLACE:
        found = schema.get(keyword)
        if isinstance(found, list):
            yield from found
        elif keyword == "dependentSchemas" and isinstance(found, dict):
            yield from found.values()
        elif found is not None:
            yield found


def _placed(schema: Any) -> Iterator[tuple[Any, str]]:
    """All objects in a schema, each with its JSON pointer."""
    waiting = [(schema, "")]
    while waiting:
        one, place = waiting.pop()
        if isinstance(one, dict):
            yield one, place
            steps: Any = one.items()
        else:
            steps = enumerate(one) if isinstance(one, list) else ()
        waiting += [(part, f"{place}/{str(step).replace('~', '~0').replace('/', '~1')}") for step, part in steps]
