"""Decoded JSON to values of the contracts, or to a list of the problems in it.

A problem names its place by a JSON pointer (RFC 6901).
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from chatjobs.contracts.fingerprints import fingerprint
from chatjobs.contracts.messages import too_many_messages
from chatjobs.contracts.nulls import MAX_PROBLEMS, without_nulls
from chatjobs.errors import InvalidRequest, Problem
from chatjobs.validation import NOT_JSON, reason, unknown_field

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], body: Any) -> M:
    """A value of ``model`` from decoded JSON; null in an optional field is as if the field were absent.

    Raises InvalidRequest, with at most ``MAX_PROBLEMS`` problems, which repeats no value of ``body``.
    """
    bare = without_nulls(model, body)
    checked_fingerprint(bare)
    return validated(model, bare)


def validated(model: type[M], body: Any) -> M:
    """A value of ``model`` from decoded JSON without nulls in optional fields (``without_nulls``), which
    ``checked_fingerprint`` has accepted. Raises InvalidRequest, as ``parse``."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest(_problems(error, body, model)) from None


def checked_fingerprint(body: Any) -> str:
    """The ``fingerprint`` of decoded JSON. Raises InvalidRequest for NaN, Infinity and lone surrogates, which JSON does
    not have (RFC 8259), and for a body that is nested too deeply to be read again (``jcs.MAX_DEPTH``)."""
    try:
        return fingerprint(body)
    except UnicodeEncodeError:  # half of a surrogate pair
        raise InvalidRequest([Problem("", NOT_JSON)]) from None
    except (TypeError, ValueError) as error:
        raise InvalidRequest([Problem("", str(error).split(":")[0])]) from None


def read_json(model: type[M], document: str | bytes) -> M:
    """A value of ``model`` from a document of another version of the service: fields that are unknown here are dropped.

    Raises ValueError, which repeats nothing of the document.
    """
    try:
        return model.model_validate_json(document)
    except ValidationError:
        # In a second pass, since this setting also drops fields that a model keeps on purpose (further usage counters).
        return model.model_validate_json(document, extra="ignore")


def _problems(error: ValidationError, body: Any, model: type[BaseModel]) -> list[Problem]:
    """The problems in a validation error, without the input; of nested places only the most precise."""
    found = [(*_place(item, body), item) for item in error.errors(include_url=False)]
    outer = {place[:cut] for place, _, _ in found for cut, letter in enumerate(place) if letter == "/"}
    problems = []
    for place, why, item in [one for one in found if one[0] not in outer][:MAX_PROBLEMS]:
        unknown = item["type"] == "extra_forbidden"
        problems.append(Problem(place, why or (unknown_field(model, item["loc"]) if unknown else reason(item))))
    return problems


def _place(item: ErrorDetails, body: Any) -> tuple[str, str | None]:
    """The JSON pointer of a problem, and its reason where the general words do not fit."""
    pointer = _pointer(item["loc"], body, absent=item["type"] == "missing")
    match item["type"]:
        case "union_tag_invalid":
            return f"{pointer}/{_tag_name(item)}", None
        case "union_tag_not_found":
            return f"{pointer}/{_tag_name(item)}", "is missing"
        case "too_long" if pointer == "/messages" and isinstance(body, dict):
            return pointer, too_many_messages(len(body["messages"]))
        case _:
            return pointer, None


def _tag_name(item: ErrorDetails) -> str:
    """The name of a union's discriminator. Pydantic quotes it; an unquoted one is a function that reads ``type``."""
    discriminator = str(item["ctx"]["discriminator"])
    return discriminator.strip("'") if discriminator.startswith("'") else "type"


def _pointer(path: tuple[int | str, ...], body: Any, *, absent: bool) -> str:
    """The JSON pointer of a pydantic location, without the names of union members, which are not in the document.

    ``absent``: the location's last step is a missing field, which is not in the document either but belongs to the
    pointer.
    """
    steps: list[str] = []
    here = body
    for number, step in enumerate(path, 1):
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and isinstance(step, int):
            here = here[step] if step < len(here) else None
        elif number < len(path) or not absent:
            continue
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{step}" for step in steps)
