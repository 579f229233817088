"""Null in an optional field is as if the field were absent: such nulls are dropped before validation."""

from __future__ import annotations

from functools import cache
from heapq import nsmallest
from operator import is_
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

MAX_PROBLEMS = 100
"""Most problems that are reported of one request, and most unknown fields of one object that are examined: a body of
8 MiB may have a million, and each takes time of the event loop."""

TAGS = ("role", "type")
"""The fields that distinguish the members of unions."""


def without_nulls(annotation: Any, value: Any) -> Any:
    """Decoded JSON without the nulls in optional fields of ``annotation``'s models; ``value`` itself if it has none.

    JSON objects that have no model (schemas, arguments of tools) stay as they are.
    """
    if isinstance(value, dict):
        model = _model_of(annotation, value)
        return value if model is None else _without_nulls(model, value)
    if isinstance(value, list):
        elements = _kinds_of(annotation).elements
        if elements is None:
            return value
        found = [without_nulls(elements, one) for one in value]
        return value if all(map(is_, found, value)) else found
    return value


def _without_nulls(model: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    """An object without nulls in optional fields. Of many unknown fields only the first are kept, which are refused."""
    fields = _fields_of(model)
    most = MAX_PROBLEMS if model.model_config.get("extra") == "forbid" else None
    unknown = {name for name in value if name not in fields}
    if most is not None and len(unknown) > most:
        unknown = set(nsmallest(most, unknown))  # the same ones in any order of the body
    found = {
        name: without_nulls(fields[name].annotation, inner) if name in fields else inner
        for name, inner in value.items()
        if (inner is not None or fields[name].is_required() if name in fields else name in unknown)
    }
    return value if len(found) == len(value) and all(map(is_, found.values(), value.values())) else found


@cache
def _fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A model's fields by both of their names, that in Python and that on the wire."""
    return {name: field for key, field in model.model_fields.items() for name in (key, field.alias or key)}


def _model_of(annotation: Any, value: dict[str, Any]) -> type[BaseModel] | None:
    """The model of an object: the only one there is, or the one with its role or type; None if there is none."""
    models = _kinds_of(annotation).models
    if len(models) > 1 and any(value.get(name) is not None for name in TAGS):
        models = [one for one in models if _has_tag_of(one, value)]
    return models[0] if models else None


def _has_tag_of(model: type[BaseModel], value: dict[str, Any]) -> bool:
    return any(isinstance(tag := value.get(name), str) and tag in known for name, known in _tags_of(model))


@cache
def _tags_of(model: type[BaseModel]) -> list[tuple[str, tuple[Any, ...]]]:
    """A model's distinguishing fields, each with the values that it may have."""
    fields = model.model_fields
    return [(name, get_args(fields[name].annotation)) for name in TAGS if name in fields]


class _Kinds(NamedTuple):
    """The models that an annotation allows for an object, and the annotation of an array's elements.

    ``elements`` is None if there may be no array, or one of anything.
    """

    annotation: Any
    models: list[type[BaseModel]]
    elements: Any


_KINDS: dict[int, _Kinds] = {}
"""A cache by the annotation's ``id``, since some annotations have no hash; each is part of a model and never freed."""


def _kinds_of(annotation: Any) -> _Kinds:
    if (known := _KINDS.get(id(annotation))) and known.annotation is annotation:
        return known
    members = _members(annotation)
    arrays = [get_args(one)[0] for one in members if get_origin(one) is tuple]
    models = [one for one in members if isinstance(one, type) and issubclass(one, BaseModel)]
    found = _KINDS[id(annotation)] = _Kinds(annotation, models, arrays[0] if arrays else None)
    return found


def _members(annotation: Any) -> list[Any]:
    """The members of a union, however it is nested and annotated."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]
