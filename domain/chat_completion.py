"""A job's answer as a chat completion object.

Source of the format: Mistral's API reference, ``ChatCompletionResponse``; a thought is a ``thinking`` part of the
content (Mistral's documentation, "Reasoning"). What the model's server sent beside the answer stands where it stood.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from chatjobs.contracts import ChatResult, JsonObject, ToolCall

ID_PREFIX = "chatcmpl-"


def chat_completion(result: ChatResult) -> dict[str, Any]:
    """The object for a job that has an answer."""
    message: dict[str, Any] = {"role": "assistant", "content": answer_content(result), "tool_calls": None}
    if result.tool_calls:
        message["tool_calls"] = string_arguments(result.tool_calls)
    further = Further.of(result)
    message = further.message | message
    return further.top | {
        "id": f"{ID_PREFIX}{result.job_id}",
        "object": "chat.completion",
        "created": int((result.completed_at or result.created_at).timestamp()),
        "model": result.model,
        "choices": [further.choice | {"index": 0, "message": message, "finish_reason": result.finish_reason}],
        "usage": usage_object(result),
    }


class Further(NamedTuple):
    """The fields of ``ChatResult.extra``, by their place in a completion. Our own fields come before them."""

    top: JsonObject
    choice: JsonObject
    message: JsonObject

    @classmethod
    def of(cls, result: ChatResult) -> Further:
        extra = result.extra or {}
        top = {name: value for name, value in extra.items() if name not in ("choice", "message", "dropped")}
        return cls(top, _object(extra.get("choice")), _object(extra.get("message")))


def _object(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {}


def usage_object(result: ChatResult) -> dict[str, Any]:
    """The usage with all counters that clients require."""
    counters = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
    return counters | (result.usage.model_dump() if result.usage else {})


def string_arguments(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls of tools with their arguments as JSON text, which is what all clients take."""
    found = [call.model_dump(mode="json") for call in calls]
    for call in found:
        if not isinstance(arguments := call["function"]["arguments"], str):
            call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return found


def answer_content(result: ChatResult) -> Any:
    """The content of a job's answer as of a message: a text, or a list of parts if there is more than text."""
    text = result.content or ""
    if not result.reasoning and not result.content_parts:
        return text
    parts: list[dict[str, Any]] = []
    before = len(result.reasoning or "")
    if result.reasoning:
        parts.append({"type": "thinking", "thinking": [{"type": "text", "text": result.reasoning}]})
    begin = 0
    for placed in result.content_parts or ():
        end = min(max(placed.position - before, begin), len(text))
        parts += _text(text[begin:end])
        parts.append(dict(placed.part))
        begin = end
    return [*parts, *_text(text[begin:])]


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []
