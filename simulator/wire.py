"""The bytes of Mistral's wire format: frames of an event stream, JSON documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from simulator.faults import FrameStyle, ScriptedFrame, StreamError
from simulator.generation import CallPiece, Piece, References, Text, Thinking

BOM: Final = b"\xef\xbb\xbf"
COMMENT: Final = b": keep-alive\n\n"
EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
JSON_TYPE: Final = "application/json"

_EOL: Final = {"lf": "\n", "cr": "\r", "crlf": "\r\n"}
_HOLE: Final = "\N{REPLACEMENT CHARACTER}hole\N{REPLACEMENT CHARACTER}"
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_escaped = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode

Usage = dict[str, int]


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def json_bytes(document: Any) -> bytes:
    """Compact JSON in UTF-8; with escapes if there is a lone surrogate."""
    try:
        return _compact(document).encode()
    except UnicodeEncodeError:
        return _escaped(document).encode()


class FrameWriter:
    """The frames of one streamed answer. What is the same for all tokens is serialised once."""

    def __init__(self, answer_id: str, model: str, created: int, framing: FrameStyle) -> None:
        self._chunk = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._framing = framing
        self._eol = _EOL[framing.eol]
        self._encode = _escaped if framing.ascii else _compact
        self._around: dict[str, tuple[str, str]] = {}

    def piece(self, piece: Piece, *, as_list: bool, nameless: bool, used: Usage | None = None) -> list[bytes]:
        """The frame of a piece, with the usage up to its end; two for a text whose surrogates are split."""
        match piece:
            case Text(text) if used is not None:
                return [self._counted(part, used, as_list=as_list) for part in self._parts(text)]
            case Text(text):
                return [self.text(part, as_list=as_list) for part in self._parts(text)]
            case Thinking(text):
                return [self._filled("thinking", text)]
            case References(ids):
                return [self.delta({"content": [{"type": "reference", "reference_ids": ids}]})]
            case CallPiece():
                return [self.delta({"content": "", "tool_calls": [_call_delta(piece, nameless=nameless)]})]

    def role(self) -> bytes:
        return self.delta({"role": "assistant", "content": ""})

    def text(self, text: str, *, as_list: bool = False) -> bytes:
        return self._filled("list" if as_list else "text", text)

    def _counted(self, text: str, used: Usage, *, as_list: bool) -> bytes:
        content = [{"type": "text", "text": text}] if as_list else text
        payload = self._json({"content": content}, used=used)
        if any("\ud800" <= character <= "\udfff" for character in text):
            payload = _escaped(json.loads(payload))
        return self.data(payload)

    def delta(self, delta: dict[str, Any]) -> bytes:
        return self.data(self._json(delta))

    def last(self, reason: str, used: Usage | None) -> bytes:
        """The chunk with the finish reason, and the usage if there is one."""
        return self.data(self._json({"content": ""}, reason, used))

    def done(self) -> bytes:
        return self.data("[DONE]")

    def error(self, fault: StreamError) -> bytes:
        body: dict[str, object] = {
            "object": "error",
            "message": fault.message,
            "type": fault.type,
            "param": None,
            "code": fault.code,
        }
        if fault.retry_after is not None:
            body["retry_after"] = fault.retry_after
        return self.data(self._encode(body))

    def data(self, payload: str) -> bytes:
        """A frame with any text as its data."""
        return self._event(payload).encode()

    def _parts(self, text: str) -> list[str]:
        return split_surrogates(text) if self._framing.split_surrogates else [text]

    def _filled(self, shape: str, text: str) -> bytes:
        before, after = self._around.get(shape) or self._make_around(shape)
        try:
            return f"{before}{self._encode(text)}{after}".encode()
        except UnicodeEncodeError:  # half of a surrogate pair is legal in JSON only as an escape
            return f"{before}{_escaped(text)}{after}".encode()

    def _make_around(self, shape: str) -> tuple[str, str]:
        """The parts of a frame of this shape before and after its text."""
        part = {"type": "text", "text": _HOLE}
        content: Any = {"text": _HOLE, "list": [part], "thinking": [{"type": "thinking", "thinking": [part]}]}[shape]
        before, after = self._event(self._json({"content": content})).split(self._encode(_HOLE))
        self._around[shape] = before, after
        return before, after

    def _json(self, delta: dict[str, Any], reason: str | None = None, used: Usage | None = None) -> str:
        chunk = self._chunk | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        if used is not None:
            chunk["usage"] = used
        if self._framing.padding:
            chunk["p"] = "abcdefghijklmnopqrstuvwxyz"[: len(str(delta)) % 26]
        return self._encode(chunk)

    def _event(self, payload: str) -> str:
        if self._framing.multiline:
            # A line break between two members of an object is white space in JSON.
            payload = payload.replace(',"choices":', ',\n"choices":').replace('"delta":{', '"delta":{\n')
        field = "data: " if self._framing.space else "data:"
        lines = "".join(f"{field}{line}{self._eol}" for line in payload.split("\n"))
        comment = f": keep-alive{self._eol}" if self._framing.comments else ""
        return f"{comment}{lines}{self._eol}"


def scripted(frame: ScriptedFrame) -> bytes:
    """The bytes of a frame of a scripted stream; empty for a pause or a cut."""
    if frame.raw is not None:
        return frame.raw.encode()
    if frame.wait is not None or frame.cut is not None:
        return b""
    return b"data: " + json_bytes(frame.document) + b"\n\n"


def _call_delta(piece: CallPiece, *, nameless: bool) -> dict[str, Any]:
    name = {} if nameless and piece.name is None else {"name": piece.name or ""}
    function = {"function": name | {"arguments": piece.arguments}, "index": piece.call}
    return function if piece.id is None else {"id": piece.id} | function


def split_surrogates(text: str) -> list[str]:
    """The text split inside its first character beyond the BMP, if it has one."""
    at = next((i for i, character in enumerate(text) if ord(character) > 0xFFFF), None)
    if at is None:
        return [text]
    high, low = divmod(ord(text[at]) - 0x10000, 0x400)
    return [text[:at] + chr(0xD800 + high), chr(0xDC00 + low) + text[at + 1 :]]


def cut_inside(frame: bytes) -> bytes:
    """The first half of a frame."""
    return frame[: len(frame) // 2]


def cut_inside_character(frame: bytes) -> bytes:
    """A frame up to the middle of its first character of several bytes."""
    return frame[: next(i for i, byte in enumerate(frame) if byte >= 0xC0) + 1]


def completion(answer_id: str, model: str, created: int, message: dict[str, Any], reason: str) -> dict[str, Any]:
    """The document of a non-streamed answer, without its usage."""
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": answer_id, "object": "chat.completion", "created": created, "model": model, "choices": [choice]}


def message(pieces: Iterable[Piece], *, echo: str, as_list: bool) -> dict[str, Any]:
    """The pieces of an answer as one assistant message; ``content`` is a list unless all pieces are text."""
    found = list(pieces)
    parts = list(_parts(found, echo))
    plain = not as_list and all(part["type"] == "text" for part in parts)
    content = "".join(part["text"] for part in parts) if plain else parts
    return {"role": "assistant", "tool_calls": whole_calls(found) or None, "content": content}


def _parts(pieces: list[Piece], echo: str) -> Iterator[dict[str, Any]]:
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Thinking))
    if reasoning:
        yield {"type": "thinking", "thinking": [{"type": "text", "text": reasoning}]}
    text = echo
    for piece in pieces:
        if isinstance(piece, Text):
            text += piece.text
        elif isinstance(piece, References):
            yield from ({"type": "text", "text": text},) if text else ()
            yield {"type": "reference", "reference_ids": piece.ids}
            text = ""
    if text:
        yield {"type": "text", "text": text}


def whole_calls(pieces: list[Piece]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for piece in (piece for piece in pieces if isinstance(piece, CallPiece)):
        start = {"id": piece.id, "function": {"name": piece.name, "arguments": ""}, "index": piece.call}
        calls.setdefault(piece.call, start)["function"]["arguments"] += piece.arguments
    return list(calls.values())


def models(created: int, owner: str) -> dict[str, Any]:
    """The document of ``GET /v1/models``."""
    names = ("mistral-small-latest", "mistral-medium-latest", "mistral-large-latest", "magistral-medium-latest")
    return {"object": "list", "data": [_model_card(name, created, owner) for name in names]}


def _model_card(name: str, created: int, owner: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owner,
        "capabilities": {
            "completion_chat": True,
            "function_calling": True,
            "reasoning": name.startswith("magistral"),
            "completion_fim": False,
            "fine_tuning": False,
            "vision": False,
            "classification": False,
        },
        "name": name,
        "description": "A simulated model.",
        "max_context_length": 131072,
        "aliases": [],
        "deprecation": None,
        "default_model_temperature": 0.3,
        "type": "base",
    }
