"""What callers give as prompts, requests and items of a batch, as JSON of the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from chatjobs.contracts import BatchItem, ChatRequest
from chatjobs.errors import InvalidRequest, Problem
from chatjobs.validation import NOT_JSON

T = TypeVar("T")
Prompt = str | Sequence[Any] | ChatRequest
"""The prompt of a job: the text of a user message, messages (as models or as dicts), or a whole request."""
Item = Prompt | Mapping[str, Any] | BatchItem | tuple[str, Prompt | Mapping[str, Any]]
"""An item of a batch: a prompt, a request as a dict, an item as it stands in a batch file (as a model or as a dict with
``body``), or a pair of the ``custom_id`` and a prompt or request."""


def request_body(prompt: Prompt, fields: Mapping[str, Any]) -> bytes:
    """A request as JSON: only the fields that were given. Raises InvalidRequest."""
    body = {**prompt_fields(prompt), **named(fields)}
    ChatRequest.parse(body)
    return json_bytes(body)


def item_line(item: Item) -> bytes:
    """An item of a batch as a line of JSON, with its end. The service checks the request. Raises InvalidRequest."""
    try:
        return json_bytes(_item_fields(item)) + b"\n"
    except (TypeError, ValueError):
        raise InvalidRequest([Problem("", NOT_JSON)]) from None


def _item_fields(item: Item) -> Mapping[str, Any]:
    match item:
        case BatchItem():
            return item.model_dump(mode="json", include=item.model_fields_set)
        case (str() as custom_id, request) if isinstance(item, tuple):
            return {"custom_id": custom_id, "body": _request_fields(request)}
        case Mapping() if "body" in item:
            return _plain_fields(item)
        case _:
            return {"body": _request_fields(item)}


def _request_fields(request: Any) -> Mapping[str, Any]:
    return _plain_fields(request) if isinstance(request, Mapping) else prompt_fields(request)


def _plain_fields(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: plain(value) for name, value in given.items()}


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """The fields of a request that a prompt sets."""
    if isinstance(prompt, ChatRequest):
        # Not exclude_unset, which would drop the role of messages that were made in Python.
        return prompt.model_dump(mode="json", include=prompt.model_fields_set)
    return {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else plain(prompt)}


def named(fields: Mapping[str, Any], model: type[BaseModel] = ChatRequest) -> dict[str, Any]:
    """Fields of a request, or of another model, under their names on the wire."""
    known = model.model_fields
    return {known[name].alias or name if name in known else name: plain(value) for name, value in fields.items()}


def plain(value: Any) -> Any:
    """A value as decoded JSON. Raises InvalidRequest."""
    try:
        return to_jsonable_python(value, by_alias=True)
    except ValueError:
        raise InvalidRequest([Problem("", NOT_JSON)]) from None


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, the members of objects in the caller's order. Raises ValueError for NaN, Infinity and lone
    surrogates, which JSON (RFC 8259) does not have, and TypeError."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """The items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
