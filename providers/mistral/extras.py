"""The fields of an answer that this version does not know: they are kept beside the answer. Pure, and bounded.

Such fields are of a server (``system_fingerprint``, ``timings`` of llama.cpp, ``prompt_token_ids`` of vLLM), of a
gateway (``citations``, ``provider_specific_fields`` of LiteLLM) or of a later version of the format. They come in
chunks, in choices and in deltas. Of a field of the chunk the last value counts: servers repeat it. The pieces of a
field of a choice or a delta are joined: lists are concatenated (``logprobs``, ``token_ids``), and objects merged.
"""

from __future__ import annotations

import json
from typing import Any, Final

from chatjobs.contracts import JsonObject
from domain.errors import UpstreamInterrupted
from providers.mistral.values import legal

MAX_BYTES: Final = 64 * 1024
"""The limit of all fields of an answer together, as JSON."""
MOST_DROPPED: Final = 20
LONGEST_NAME: Final = 100

CHOICE, MESSAGE, DROPPED = "choice", "message", "dropped"
PER_CHUNK: Final = frozenset({"id", "object", "created", "model", "index", "type", "event", "p", "obfuscation"})
"""Fields that are about one chunk, among them the padding that hides the length of its text."""
OF_CHUNK: Final = PER_CHUNK | {"choices", "usage", "x_groq", "error", CHOICE, MESSAGE, DROPPED}
OF_CHOICE: Final = frozenset({"index", "delta", "message", "finish_reason", "text", "usage", "error"})
OF_DELTA: Final = (
    frozenset({"role", "content", "refusal", "images", "audio", "tool_calls", "function_call", "prefix"})
    | {"reasoning_content", "reasoning", "thinking", "reasoning_details"}
)  # fmt: skip


class Extras:
    """The unknown fields of one answer so far."""

    def __init__(self) -> None:
        self._fields: dict[str, dict[str, Any]] = {"": {}, CHOICE: {}, MESSAGE: {}}
        self._sizes: dict[tuple[str, str], int] = {}
        self._dropped: set[tuple[str, str]] = set()
        """Once there are many, no further fields are kept."""

    def take_chunk(self, chunk: JsonObject) -> None:
        """Add the fields of a chunk. One without ``choices`` is a ping, or of another format."""
        if not (chunk.keys() <= OF_CHUNK) and isinstance(chunk.get("choices"), list):
            self._take("", chunk, OF_CHUNK)

    def take_choice(self, choice: JsonObject) -> None:
        if not (choice.keys() <= OF_CHOICE):
            self._take(CHOICE, choice, OF_CHOICE)

    def take_delta(self, delta: JsonObject) -> None:
        """Add the fields of a delta or of a whole message."""
        if not (delta.keys() <= OF_DELTA):
            self._take(MESSAGE, delta, OF_DELTA)

    def whole(self) -> JsonObject | None:
        """Fields of the chunks by name, those of the message and the choice under ``message`` and ``choice``; the names
        of fields that were left out, as they are too large, under ``dropped``. None without any."""
        found = dict(self._fields[""])
        for place in (MESSAGE, CHOICE):
            if self._fields[place]:
                found[place] = self._fields[place]
        if self._dropped:
            found[DROPPED] = sorted(map(_shown, self._dropped))[:MOST_DROPPED]
        return found or None

    def _take(self, place: str, holder: JsonObject, known: frozenset[str]) -> None:
        fields = self._fields[place]
        for name, value in holder.items():
            if name in known or value in (None, "", [], {}):
                continue
            if fields.get(name) == value and not (place and isinstance(value, list | dict)):
                continue  # repeated; but a list in a choice is one more piece, also if it is the same
            if (place, name) not in self._dropped and (name in fields or len(self._dropped) < MOST_DROPPED):
                self._keep(fields, (place, name), value)

    def _keep(self, fields: dict[str, Any], path: tuple[str, str], value: Any) -> None:
        place, name = path
        try:
            ((name, value),) = legal({name: value}).items()
        except UpstreamInterrupted:  # a number that JSON does not have, or too many levels
            self._drop(fields, path)
            return
        joined = bool(place) and _joinable(fields.get(name), value)
        before = self._sizes.get(path, 0)
        size = len(json.dumps({name: value})) + (before if joined else 0)
        if sum(self._sizes.values()) - before + size > MAX_BYTES:
            self._drop(fields, path)
            return
        self._sizes[path] = size
        fields[name] = _joined(fields[name], value) if joined else value

    def _drop(self, fields: dict[str, Any], path: tuple[str, str]) -> None:
        """Leave a field out, all of it: half of a list would pass for the whole."""
        fields.pop(path[1], None)
        self._sizes.pop(path, None)
        self._dropped.add(path)


def _shown(path: tuple[str, str]) -> str:
    return ".".join(filter(None, path))[:LONGEST_NAME].encode(errors="replace").decode()


def _joinable(old: Any, new: Any) -> bool:
    return isinstance(old, list | dict) and type(old) is type(new)


def _joined(old: Any, new: Any) -> Any:
    """``old``, which is changed, with the content of ``new``."""
    if isinstance(old, list):
        old.extend(new)
        return old
    for name, value in new.items():
        old[name] = _joined(old[name], value) if _joinable(old.get(name), value) else value
    return old
