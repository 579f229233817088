"""The generation of one answer: its pieces in order, counted and cut off at ``max_tokens``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

from simulator import answers
from simulator.calls import ChatCall
from simulator.faults import Reference, Script, ScriptedCall
from simulator.structured import begins_again

MIN_TOKENS, MAX_TOKENS = 60, 105
"""An ordinary answer ends at the first end of a sentence after a number of tokens in this range."""


class Text(NamedTuple):
    text: str
    tokens: int = 1


class Thinking(NamedTuple):
    text: str
    tokens: int = 1


class References(NamedTuple):
    ids: list[int | str]
    tokens: int = 0


class CallPiece(NamedTuple):
    """A part of tool call number ``call``: the first has id and name, the others have pieces of the arguments."""

    call: int
    arguments: str
    id: str | None = None
    name: str | None = None
    tokens: int = 1


Piece = Text | Thinking | References | CallPiece


class Generation:
    """The pieces of the answer to a call. ``reason`` is the finish reason, known after the last piece.

    The text depends only on model, messages, random seed and the seed of the process, so a prefix that the text begins
    with is continued where it ends. A blank prefix gets an unrelated text, as at Mistral.
    """

    def __init__(self, call: ChatCall, script: Script, *, seed: str, endless: bool = False) -> None:
        self._call = call
        self._script = script
        self._seed = f"{seed} garbage" if call.prefix is not None and not call.prefix.strip() else seed
        self._endless = endless
        self.reason = ""
        self.reached_limit = False

    def pieces(self) -> Iterator[Piece]:
        """All pieces in order: thinking, text with references, tool calls."""
        return grouped(self._capped(), self._script.tokens_per_chunk)

    def _capped(self) -> Iterator[Piece]:
        left = None if self._endless else self._call.max_tokens
        for piece in self._all():
            if left is not None:
                left -= piece.tokens
                if left < 0:
                    self.reached_limit = True
                    self.reason = self._script.finish_reason or "length"
                    return
            yield piece
        self.reason = self._script.finish_reason or ("tool_calls" if self._tool_calls() else "stop")

    def _all(self) -> Iterator[Piece]:
        if self._script.reasoning and not (self._call.prefix or "").strip():
            yield from map(Thinking, answers.tokenise(self._script.reasoning))
        if self._has_text():
            yield from self._content()
        for index, call in enumerate(self._tool_calls()):
            yield from self._call_pieces(index, call)

    def _has_text(self) -> bool:
        script = self._script
        has_text = script.text is not None or script.pieces is not None or script.tokens is not None
        return has_text or not self._tool_calls()

    def _content(self) -> Iterator[Piece]:
        if self._script.continuation is not None and self._call.prefix:
            return map(Text, answers.tokenise(self._script.continuation))
        tokens = answers.until_stop(self._text(), self._call.stops) if self._call.stops else self._text()
        prefix = "" if begins_again(self._call, self._script) else self._call.prefix or ""
        number, rest = answers.resume(tokens, prefix)
        return with_references(map(Text, rest), self._script.references, number)

    def _text(self) -> Iterator[str]:
        """The tokens of the whole text, regardless of prefix and limits."""
        script, prose = self._script, answers.prose(self._seed)
        if self._endless:
            return prose
        if script.pieces is not None:
            return iter(script.pieces)
        if script.text is not None:
            return iter(answers.tokenise(script.text))
        at_least = Random(f"{self._seed} length").randint(MIN_TOKENS, MAX_TOKENS)  # noqa: S311 - the same each time
        ordinary = answers.whole_sentences(prose, at_least)
        tokens = ordinary if script.tokens is None else islice(prose, script.tokens)
        return iter(answers.tokenise(json.dumps({"answer": "".join(tokens)}))) if self._call.wants_json else tokens

    def _tool_calls(self) -> list[ScriptedCall]:
        if self._script.tool_calls or self._call.forced_tool is None:
            return self._script.tool_calls
        return [ScriptedCall(name=self._call.forced_tool)]

    def _call_pieces(self, index: int, call: ScriptedCall) -> Iterator[CallPiece]:
        rng = Random(f"{self._seed} call {index}")  # noqa: S311 - the same id each time
        name = call.id or "".join(rng.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=9))
        arguments = answers.tokenise(call.arguments_text)
        if self._script.tool_style == "whole":
            yield CallPiece(index, call.arguments_text, name, call.name, 1 + len(arguments))
            return
        yield CallPiece(index, "", name, call.name)
        yield from (CallPiece(index, piece) for piece in arguments)


def with_references(texts: Iterable[Text], references: list[Reference], number: int) -> Iterator[Piece]:
    """Texts with references between them. The first ``number`` tokens and their references were sent before."""
    waiting = sorted((r for r in references if r.after > number or number == 0), key=lambda r: r.after)
    for position, text in enumerate(texts, number):
        while waiting and waiting[0].after <= position:
            yield References(waiting.pop(0).ids)
        yield text
    yield from (References(reference.ids) for reference in waiting)


def grouped(pieces: Iterator[Piece], size: int) -> Iterator[Piece]:
    """The pieces with adjacent texts joined to ``size`` tokens each."""
    if size == 1:
        yield from pieces
        return
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, Text):
            texts.append(piece.text)
        if texts and (len(texts) == size or not isinstance(piece, Text)):
            yield Text("".join(texts), len(texts))
            texts.clear()
        if not isinstance(piece, Text):
            yield piece
    if texts:
        yield Text("".join(texts), len(texts))
