"""Pieces of Mistral's stream, for tests."""

from __future__ import annotations

import json
from typing import Any

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
DONE = b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A completion chunk with one choice."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return base | more


def text(content: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return chunk({"content": content}, finish, **more)


def call(
    arguments: Any = "", *, index: int | None = 0, name: str | None = None, id: str | None = None
) -> dict[str, Any]:
    """One delta of a tool call; what is None is left out."""
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not None}
    fields = {"id": id, "index": index, "function": function}
    return {key: value for key, value in fields.items() if value is not None}


def calls(*deltas: dict[str, Any]) -> dict[str, Any]:
    return chunk({"tool_calls": list(deltas)})


def sse(*documents: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents)


END = text("", "stop", usage=USAGE)
HELLO = sse(text("Hel"), text("lo"), END) + DONE
