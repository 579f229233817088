"""Tool calls that come in pieces, with and without ids and indexes: told apart, and put together. Pure.

Mistral gives each piece an index and the first an id. Others leave out either or both, repeat them, or give every call
the same index. The rules, in this order:

- a piece with an id goes on with the call of that id, unless its index or its name is another one's;
- an unknown id opens a call. A piece that has no name but arguments goes on with the unfinished call of its index: some
  servers make up a new id for every piece;
- a piece without an id goes on with the last call of its index, or without an index with the last call. Where it has a
  name, and the call has arguments that are whole or another name, it opens a call;
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
    """The calls of one answer, in the order in which they began."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, pieces: list[Any]) -> None:
        """The pieces of one chunk. Raises UpstreamInterrupted."""
        touched: list[_Call] = []
        for position, piece in enumerate(pieces):
            found = _Piece(expect(piece, dict))
            if not found.says_anything:
                continue
            call = self._of(found, touched) if found.tells else self._at(position, len(pieces))
            if call is None:
                call = _Call(found.index)
                self._calls.append(call)
            call.add(found)
            touched.append(call)

    def repeats(self, pieces: list[Any]) -> bool:
        """Whether every one of these whole calls is already there."""
        known = {call.id for call in self._calls}
        return all(isinstance(piece, dict) and piece.get("id") in known for piece in pieces)

    def whole(self) -> tuple[ToolCall, ...]:
        """The calls at the end of the answer, ordered by index. Raises UpstreamInterrupted."""
        calls = [joined for _, group in groupby(self._calls, _Call.kin) for joined in _rejoined(list(group))]
        indexes = [call.index for call in calls if call.index is not None]
        if len(set(indexes)) < len(calls):  # they tell nothing: the order is that in which the calls began
            return tuple(call.whole(index) for index, call in enumerate(calls))
        return tuple(call.whole(index) for index, call in sorted(zip(indexes, calls, strict=True), key=itemgetter(0)))

    def _of(self, piece: _Piece, touched: list[_Call]) -> _Call | None:
        """The call that ``piece`` goes on with; None where it opens one."""
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

    def _at(self, position: int, pieces: int) -> _Call | None:
        """Of a piece that tells nothing of itself: by its place where there is a piece for each call, else the last."""
        if not self._calls:
            return None
        return self._calls[position] if pieces == len(self._calls) else self._calls[-1]

    def _last(self, matches: Any) -> _Call | None:
        return next((call for call in reversed(self._calls) if matches(call)), None)


class _Piece:
    """One element of ``tool_calls``. ``arguments`` is text or an object; None where there are none."""

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
    def says_anything(self) -> bool:
        return bool(self.id or self.name) or self.arguments is not None

    @property
    def tells(self) -> bool:
        """It says to which call it belongs, or which one it opens."""
        return bool(self.id or self.name) or self.index is not None

    def differs(self, call: _Call) -> bool:
        """It has the id of ``call`` and yet is of another one."""
        if None not in (self.index, call.index) and self.index != call.index:
            return True
        if not self.name or not call.name:
            return False
        return self.name != call.name or (call.finished and not call.says(self.arguments))


class _Call:
    """A tool call in pieces: the first id, type and name count; arguments grow."""

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

    def kin(self) -> tuple[int | None, str]:
        return self.index, self.name

    def absorb(self, other: _Call) -> None:
        self._texts += other._texts
        self._objects += other._objects

    @property
    def finished(self) -> bool:
        """The arguments are whole as they stand; of very many pieces, nobody asks."""
        if len(self._texts) > MOST_PIECES:
            return False
        return any(self._objects) or isinstance(decoded("".join(self._texts)), dict)

    def says(self, arguments: str | JsonObject | None) -> bool:
        """The same arguments, or none, have come already."""
        if not arguments:
            return True
        said = self._objects[-1] if self._objects else decoded("".join(self._texts))
        return bool(said == (decoded(arguments) if isinstance(arguments, str) else arguments))

    @property
    def broken(self) -> bool:
        """There are arguments, and they are no JSON."""
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
        """One JSON text. What is no JSON is passed on as the model said it. Raises UpstreamInterrupted."""
        text = _once("".join(self._texts))
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
    """Calls of one index and name whose arguments are JSON only together are one, with a new id in every piece."""
    if len(calls) < 2 or calls[0].index is None or not all(call.broken for call in calls):
        return calls
    together = _Call(calls[0].index)
    for call in calls:
        together.absorb(call)
    if together.broken:
        return calls
    first, *others = calls
    for call in others:
        first.absorb(call)
    return [first]


def _once(text: str) -> str:
    """Arguments without an empty object in front of them, and without their repetition. Raises UpstreamInterrupted."""
    values = list(_values(text)) if decoded(text) is None else []
    said = [(value, written) for value, written in values if value] or values
    if len(values) < 2:
        return text
    if any(value != said[0][0] for value, _ in said):
        raise protocol("a tool call has the arguments of several")
    return said[0][1]


def _values(text: str) -> Iterator[tuple[JsonObject, str]]:
    """The objects that ``text`` consists of, and how each is written; nothing where it is anything else."""
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
    """``"null"`` is how Mistral leaves it out."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = optional(value, str)
    return "" if text == "null" else text


def _index(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
