"""Calls of the official Python client, one for each line of JSON on standard input; the results go to standard output.

It runs in an environment of its own, which has ``openai``. Every object and event is validated against the client's own
types: the client itself only constructs them, and would not complain about a missing field.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from openai.lib.streaming.responses import ResponseStreamManager
from openai.pagination import SyncCursorPage
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from openai.types.webhooks import UnwrapWebhookEvent
from pydantic import BaseModel, TypeAdapter

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEMS: TypeAdapter[Any] = TypeAdapter(ResponseItem)
WEBHOOKS: TypeAdapter[Any] = TypeAdapter(UnwrapWebhookEvent)


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_unset=True, by_alias=True) if isinstance(value, BaseModel) else value


def checked(adapter: TypeAdapter[Any], value: Any) -> Any:
    document = plain(value)
    adapter.validate_python(document)
    return document


class Parsed(BaseModel):
    """What ``responses.parse`` is to make of an answer."""

    city: str
    people: int


def answer(call: dict[str, Any]) -> None:
    client = openai.OpenAI(base_url=call["url"], api_key=call.get("key") or "none", max_retries=0, timeout=60)
    method: Any = client
    for name in call["method"].split("."):
        method = getattr(method, name)
    named = dict(call.get("params") or {})
    if call["method"] in ("responses.parse", "responses.stream") and named.pop("parsed", False):
        named["text_format"] = Parsed
    if call["method"] == "webhooks.unwrap":
        return say(result=checked(WEBHOOKS, method(named["payload"], named["received"], secret=named["secret"])))
    result = method(*call.get("args", ()), **named, extra_headers=call.get("headers") or {})
    stop_after = call.get("stop_after")
    if isinstance(result, openai.Stream):
        with result:
            for number, event in enumerate(result, 1):
                say(event=checked(EVENTS, event))
                if number == stop_after:
                    break
        return say(result=None)
    if isinstance(result, ResponseStreamManager):
        with result as stream:
            for event in stream:
                say(event=plain(event))
            return say(result=plain(stream.get_final_response()))
    if isinstance(result, SyncCursorPage):
        return say(result=[checked(ITEMS, item) for item in result])  # of all pages
    if isinstance(result, Response):
        checked(TypeAdapter(Response), result)
        return say(
            result=plain(result), output_text=result.output_text, parsed=plain(getattr(result, "output_parsed", None))
        )
    return say(result=plain(result))


for line in sys.stdin:
    try:
        answer(json.loads(line))
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        say(
            error=type(error).__name__,
            status=error.status_code,
            message=str(error),
            code=error.code,
            param=error.param,
            body=body,
        )
    except Exception as error:  # noqa: BLE001 - the test that made the call looks at it
        say(error=type(error).__name__, message=str(error))
