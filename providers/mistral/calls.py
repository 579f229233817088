"""Tool calls assembled from streamed pieces, with and without ids and indexes. Pure.

Mistral gives each piece an index and the first an id. Other servers leave out either or both, repeat them, or give all
calls the same index. The rules, in this order:

- a piece with a known id continues the call of that id, unless its index or its name is another call's;
- an unknown id starts a call. But a piece with arguments and without a name continues the unfinished call of its index:
  some servers generate a new id for every piece;
- a piece without an id continues the last call of its index, or without an index the last call. If it has a name, and
  the call has complete arguments or another name, it starts a call;
- two pieces with names in one list are two calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from chatjobs.contracts import FunctionCall, JsonObject, ToolCall
from providers.mistral.values import decoded, expect, legal, optional, protocol, whole_text

MOST_PIECES: Final = 500


class ToolCalls:
    """The tool calls of one answer, in the order in which they began."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, pieces: list[Any]) -> None:
        """Add the pieces of one chunk. Raises UpstreamInterrupted."""
        touched: list[_Call] = []
        for position, piece in enumerate(pieces):
            found = _Piece(expect(piece, dict))
            if not found.has_content:
                continue
            call = self._call_for(found, touched) if found.identifies_call else self._call_at(position, len(pieces))
            if call is None:
                call = _Call(found.index)
                self._calls.append(call)
            call.add(found)
            touched.append(call)

    def repeats(self, pieces: list[Any]) -> bool:
        """Whether all of these complete calls are known by their ids."""
        known = {call.id for call in self._calls}
        return all(isinstance(piece, dict) and piece.get("id") in known for piece in pieces)

    def whole(self) -> tuple[ToolCall, ...]:
        """The calls at the end of the answer, ordered by index. Raises UpstreamInterrupted."""
        calls = [joined for _, group in groupby(self._calls, _Call.group_key) for joined in _rejoined(list(group))]
        indexes = [call.index for call in calls if call.index is not None]
        if len(set(indexes)) < len(calls):  # they are useless: keep the order in which the calls began
            return tuple(call.whole(index) for index, call in enumerate(calls))
        return tuple(call.whole(index) for index, call in sorted(zip(indexes, calls, strict=True), key=itemgetter(0)))

    def _call_for(self, piece: _Piece, touched: list[_Call]) -> _Call | None:
        """The call that ``piece`` continues; None if it starts a new one."""
        if piece.id and any(call.id == piece.id for call in self._calls):
            return self._last(lambda call: call.id == piece.id and not piece.differs(call))
        call = self._candidate(piece)
        if call is None or (piece.name and call in touched):
            return None
        if piece.id and call.id:
            return call if not piece.name and piece.arguments and not call.finished else None
        if not piece.name or not call.name:
            return call
        if piece.name != call.name and call.id and not piece.id and not call.finished:
            raise protocol("two tool calls cannot be told apart")
        return None if piece.name != call.name or call.finished else call

    def _candidate(self, piece: _Piece) -> _Call | None:
        if piece.index is None:
            return self._calls[-1] if self._calls else None
        same = self._last(lambda call: call.index == piece.index)
        if same is not None or piece.name or piece.id:
            return same
        if piece.index < len(self._calls) and self._calls[piece.index].index is None:
            return self._calls[piece.index]  # the calls had no indexes when they began
        return self._calls[-1] if self._calls and self._calls[-1].index is None else None

    def _call_at(self, position: int, pieces: int) -> _Call | None:
        """The call of a piece without id, name and index: by position if each call has a piece, else the last."""
        if not self._calls:
            return None
        return self._calls[position] if pieces == len(self._calls) else self._calls[-1]

    def _last(self, matches: Any) -> _Call | None:
        return next((call for call in reversed(self._calls) if matches(call)), None)


class _Piece:
    """One element of ``tool_calls``. ``arguments`` is text or an object; None if there are none."""

    def __init__(self, piece: JsonObject) -> None:
        function = optional(piece.get("function"), dict)
        self.id = _identifier(piece.get("id"))
        self.index = _index(piece.get("index"))
        self.type = optional(piece.get("type"), str)
        self.name = optional(function.get("name"), str)
        self.arguments = function.get("arguments")
        if not isinstance(self.arguments, str | dict | None):
            raise protocol("a tool call's arguments are neither text nor an object")

    @property
    def has_content(self) -> bool:
        return bool(self.id or self.name) or self.arguments is not None

    @property
    def identifies_call(self) -> bool:
        """It has an id, a name or an index to find its call by."""
        return bool(self.id or self.name) or self.index is not None

    def differs(self, call: _Call) -> bool:
        """It belongs to another call although it has the id of ``call``."""
        if None not in (self.index, call.index) and self.index != call.index:
            return True
        if not self.name or not call.name:
            return False
        return self.name != call.name or (call.finished and not call.has_arguments(self.arguments))


class _Call:
    """A tool call assembled from pieces: the first id, type and name count; arguments are concatenated."""

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id = self._type = self.name = ""
        self._texts: list[str] = []
        self._objects: list[JsonObject] = []

    def add(self, piece: _Piece) -> None:
        self.id = self.id or piece.id
        self._type = self._type or piece.type
        self.name = self.name or piece.name
        if isinstance(piece.arguments, str):
            self._texts.append(piece.arguments)
        elif piece.arguments is not None:
            self._objects.append(legal(piece.arguments))

    def group_key(self) -> tuple[int | None, str]:
        return self.index, self.name

    def absorb(self, other: _Call) -> None:
        self._texts += other._texts
        self._objects += other._objects

    @property
    def finished(self) -> bool:
        """The arguments so far are complete JSON; not checked, and False, for very many pieces."""
        if len(self._texts) > MOST_PIECES:
            return False
        return any(self._objects) or isinstance(decoded("".join(self._texts)), dict)

    def has_arguments(self, arguments: str | JsonObject | None) -> bool:
        """``arguments`` is empty, or equal to the arguments so far."""
        if not arguments:
            return True
        known = self._objects[-1] if self._objects else decoded("".join(self._texts))
        return bool(known == (decoded(arguments) if isinstance(arguments, str) else arguments))

    @property
    def is_invalid_json(self) -> bool:
        """There are arguments that are not JSON."""
        return not self._objects and bool(self._texts) and decoded("".join(self._texts)) is None

    def whole(self, index: int) -> ToolCall:
        if not self.name:
            raise protocol("a tool call has no name")
        return ToolCall(
            id=whole_text(self.id) or "null",
            type=whole_text(self._type) or "function",
            function=FunctionCall(name=whole_text(self.name), arguments=whole_text(self._arguments())),
            index=index,
        )

    def _arguments(self) -> str:
        """The arguments as one JSON text; text that is not JSON is passed on unchanged. Raises UpstreamInterrupted."""
        text = _deduplicated("".join(self._texts))
        known = [one for one in self._objects if one]
        if not known:
            return text or ("{}" if self._objects else "")
        last = known[-1]
        if any(name not in last or last[name] != value for one in known[:-1] for name, value in one.items()):
            raise protocol("a tool call's arguments contradict each other")
        if text.strip() not in ("", "{}") and decoded(text) != last:
            raise protocol("a tool call's arguments are text and another object")
        return json.dumps(last, ensure_ascii=False)


def _rejoined(calls: list[_Call]) -> list[_Call]:
    """Join calls of one index and name whose arguments are JSON only when concatenated: the server gave every piece a
    new id."""
    if len(calls) < 2 or calls[0].index is None or not all(call.is_invalid_json for call in calls):
        return calls
    together = _Call(calls[0].index)
    for call in calls:
        together.absorb(call)
    if together.is_invalid_json:
        return calls
    first, *others = calls
    for call in others:
        first.absorb(call)
    return [first]


def _deduplicated(text: str) -> str:
    """Arguments without a leading empty object and without repetitions. Raises UpstreamInterrupted."""
    values = list(_values(text)) if decoded(text) is None else []
    non_empty = [(value, written) for value, written in values if value] or values
    if len(values) < 2:
        return text
    if any(value != non_empty[0][0] for value, _ in non_empty):
        raise protocol("a tool call has the arguments of several")
    return non_empty[0][1]


def _values(text: str) -> Iterator[tuple[JsonObject, str]]:
    """The JSON objects that ``text`` consists of, each with its source text; nothing if it is anything else."""
    decoder, at, found = json.JSONDecoder(), 0, list[tuple[JsonObject, str]]()
    text = text.strip()
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        if not isinstance(value, dict):
            return
        found.append((value, text[at:end]))
        at = end + len(text[end:]) - len(text[end:].lstrip())
    yield from found


def _identifier(value: Any) -> str:
    """An id as text; Mistral sends ``"null"`` for none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = optional(value, str)
    return "" if text == "null" else text


def _index(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
