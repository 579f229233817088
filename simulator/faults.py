"""The script of an answer: its text and its faults, as set by a test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

OPENING = "[[sim "
CLOSING = "]]"


class DirectiveError(ValueError):
    """The ``[[sim {…}]]`` of a message is not valid."""


Continues = Literal["prefix", "continue_final_message", "assistant", "never"]
"""How a server continues a trailing assistant message: Mistral with ``prefix``, vLLM with ``continue_final_message``,
llama.cpp always. Only Mistral refuses a field it does not know; the others silently begin a new answer."""

Dialect = Literal["mistral", "vllm", "ollama", "llamacpp"]
"""Whose words the answer is in; see simulator/dialects.py."""


class ScriptModel(BaseModel):
    """A part of a script, from a test."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Fault(ScriptModel):
    kind: str

    @property
    def label(self) -> str:
        """The fault's name in the log."""
        return self.kind


After = Annotated[int, Field(ge=0)]
"""Tokens of this attempt that are sent before the fault."""


class Status(_Fault):
    """An HTTP status in place of an answer. ``{"kind": 503}`` is short for ``{"kind": "status", "status": 503}``.

    ``retry_after`` is sent unchanged: seconds, an HTTP date, junk. ``variant`` selects one of the bodies that Mistral
    sends with a 429; ``body`` (JSON, or text sent unchanged) replaces it. A redirect leads to ``location``, so that a
    client that follows it appears in the log.
    """

    kind: Literal["status"] = "status"
    status: int = Field(ge=200, le=599)
    variant: Literal["object", "short", "bare", "no_allowance", "capacity"] = "object"
    message: str | None = None
    body: Any = None
    retry_after: str | int | float | None = None
    location: str = "/v1/chat/completions?redirected=1"
    headers: dict[str, str] = {}

    @property
    def label(self) -> str:
        return str(self.status)


class Cut(_Fault):
    """The connection ends abruptly: between two frames, inside one, inside a character, or before any header.

    ``reset`` sends a TCP reset in place of a FIN.
    """

    kind: Literal["cut"] = "cut"
    after: After = 0
    where: Literal["between", "frame", "utf8", "headers"] = "between"
    reset: bool = False


class Stall(_Fault):
    """Silence, or comments at an interval, without end or for ``seconds``, after which the answer continues."""

    kind: Literal["stall"] = "stall"
    after: After = 0
    comments_every: float | None = Field(None, gt=0)
    seconds: float | None = None


class Drip(_Fault):
    """Comments and no token before the first one, without end or for ``seconds``."""

    kind: Literal["drip"] = "drip"
    every: float = Field(0.2, gt=0)
    seconds: float | None = None


class Slow(_Fault):
    """A delay of the first token or of the headers."""

    kind: Literal["slow"] = "slow"
    seconds: float = Field(ge=0)
    before: Literal["token", "headers"] = "token"


class Eof(_Fault):
    """A clean end without a finish reason, after all the text if ``after`` is not set."""

    kind: Literal["eof"] = "eof"
    after: After | None = None


class NoDone(_Fault):
    """A whole answer without ``[DONE]``."""

    kind: Literal["no_done"] = "no_done"


class Malformed(_Fault):
    """A frame that is not JSON, in the middle of a good answer."""

    kind: Literal["malformed"] = "malformed"
    after: After = 0
    data: str = '{"id":"cmpl-0","object":"chat.comp'


class UnknownChunk(_Fault):
    """A content chunk of an unknown type."""

    kind: Literal["unknown_chunk"] = "unknown_chunk"
    after: After = 0
    chunk: dict[str, Any] = {"type": "hologram", "hologram": {"id": 1}}


class StreamError(_Fault):
    """An error object as a frame of the stream, which then ends. ``retry_after`` (seconds) is a field of the object."""

    kind: Literal["error"] = "error"
    after: After = 0
    message: str = "Internal server error"
    type: str = "internal_server_error"
    code: str | None = "1000"
    retry_after: float | None = None


class Huge(_Fault):
    """One frame with a text of so many bytes, which does not count as a token."""

    kind: Literal["huge"] = "huge"
    after: After = 0
    bytes: int = Field(2_000_000, ge=1, le=64_000_000)


class Endless(_Fault):
    """An answer that never ends, whatever ``max_tokens`` says."""

    kind: Literal["endless"] = "endless"


class Empty(_Fault):
    """200 and an empty event stream, or one with only ``[DONE]``."""

    kind: Literal["empty"] = "empty"
    done: bool = False


class WrongType(_Fault):
    """200 with another content type than an event stream; ``application/json`` has the whole completion."""

    kind: Literal["wrong_type"] = "wrong_type"
    content_type: str = "text/html"
    body: str | None = None


class FinishFault(_Fault):
    """Another finish reason (``error``, ``model_length``, an unknown one), at the end or after so many tokens."""

    kind: Literal["finish"] = "finish"
    reason: str = "error"
    after: After | None = None


class ScriptedFrame(ScriptModel):
    """One step of a scripted stream, by the field that is set.

    ``json`` is a frame with this JSON; ``delta``, one with a single choice, beside ``finish`` and ``usage``; ``raw`` is
    bytes sent unchanged; ``wait`` is a pause in seconds; ``cut`` breaks the connection.
    """

    json_: Any = Field(None, alias="json")
    delta: Any = None
    finish: Any = None
    usage: Any = None
    raw: str | None = None
    wait: float | None = Field(None, ge=0)
    cut: Literal["fin", "reset"] | None = None

    @property
    def document(self) -> Any:
        """The frame's JSON."""
        if "json_" in self.model_fields_set:
            return self.json_
        choice = {"index": 0, "delta": self.delta, "finish_reason": self.finish}
        document = {"id": "x", "choices": [choice]}
        return document | {"usage": self.usage} if "usage" in self.model_fields_set else document


class FramesFault(_Fault):
    """An answer of only these frames, for any request, and a clean end of the response.

    ``ending`` adds the chunk with finish reason ``stop``, and ``[DONE]``.
    """

    kind: Literal["frames"] = "frames"
    frames: list[ScriptedFrame]
    ending: bool = True
    content_type: str = "text/event-stream"


class Odd(_Fault):
    """An answer by name; see simulator/oddities.py."""

    kind: Literal["odd"] = "odd"
    name: str

    @property
    def label(self) -> str:
        return f"odd: {self.name}"


def long_form(fault: Any) -> Any:
    """``{"kind": 429}`` and ``{"kind": "429"}`` as the status fault they are short for."""
    if isinstance(fault, Mapping) and str(fault.get("kind")).isdigit():
        return {**fault, "kind": "status", "status": int(str(fault["kind"]))}
    return fault


Fault = Annotated[
    Status | Cut | Stall | Drip | Slow | Eof | NoDone | Malformed | UnknownChunk | StreamError | Huge | Endless | Empty
    | WrongType | FinishFault | FramesFault | Odd,
    Field(discriminator="kind"),
    BeforeValidator(long_form),
]  # fmt: skip


class FrameStyle(ScriptModel):
    """How the frames of an event stream are written. ``split`` is the number of bytes per write (HTTP chunk)."""

    eol: Literal["lf", "cr", "crlf"] = "lf"
    bom: bool = False
    comments: bool = False
    """A comment before each frame."""
    multiline: bool = False
    """Each JSON object over several ``data:`` lines."""
    space: bool = True
    """A space after ``data:``."""
    ascii: bool = False
    """Non-ASCII characters as JSON escapes, astral ones as surrogate pairs."""
    split_surrogates: bool = False
    """The two halves of an astral character in two frames."""
    padding: bool = False
    """An additional field ``p`` of varying length in each frame."""
    split: int | None = Field(None, ge=1)


class ScriptedCall(ScriptModel):
    """A tool call of the model. ``arguments`` given as an object are written as JSON, a string is sent unchanged."""

    name: str
    arguments: str | dict[str, Any] = {}
    id: str | None = None

    @property
    def arguments_text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments, ensure_ascii=False)


class Reference(ScriptModel):
    """A reference chunk after so many tokens of the answer's text."""

    after: int = Field(0, ge=0)
    ids: list[int | str]


class Script(ScriptModel):
    """Text, timing, form and faults of an answer. An empty script is an ordinary answer.

    Times are in seconds. The text is ``pieces`` (each a token; an empty one is a token without text of its own, such as
    the first bytes of a character), else ``text``, else prose of ``tokens`` tokens.
    ``tokens_per_second`` 0 is as fast as possible. ``faults`` holds one fault, or null, for each attempt of the same
    conversation; after the last come none, or with ``repeat_last`` the last again.
    """

    tokens: int | None = Field(None, ge=0, le=5_000_000)
    text: str | None = None
    pieces: list[str] | None = None
    tokens_per_chunk: int = Field(1, ge=1)
    reasoning: str | None = None
    tool_calls: list[ScriptedCall] = []
    tool_style: Literal["pieces", "whole", "nameless"] = "pieces"
    references: list[Reference] = []
    content_as_list: bool = False
    finish_reason: str | None = None
    usage: bool | Literal["chunks"] = True
    """At the end of the answer, never, or cumulative in every chunk."""
    first_token_seconds: float | None = Field(None, ge=0)
    tokens_per_second: float | None = Field(None, ge=0)
    echo: Literal["whole", "pieces", "none", "differing"] = "whole"
    continues: Continues | None = None
    """How the server continues a trailing assistant message; None: by the process's option ``--continues``, or by
    the dialect."""
    dialect: Dialect | None = None
    """The dialect of the answer; None: the process's option ``--dialect``."""
    continuation: str | None = None
    """The text after any continued prefix, in place of the rest of the answer."""
    json_prefix: Literal["continues", "begins_again"] = "continues"
    """Whether an answer that is to be JSON continues a prefix; see simulator/structured.py."""
    repairs: list[Script] = []
    """Of the calls that repair the answer: one for each, and then the last again."""
    framing: FrameStyle = FrameStyle()
    headers: dict[str, str] = {}
    """Response headers that are added to the default ones (``x-ratelimit-…``) or replace them."""
    faults: list[Fault | None] = []
    repeat_last: bool = False
    failing: str | None = None
    """The model that has the faults; None: every one."""
    hold: int | None = Field(None, ge=0)
    """Tokens of each attempt after which the answer pauses until ``POST /sim/release`` matches its prompt, so that a
    test of an unfinished answer does not depend on the machine's speed."""

    def fault(self, attempt: int) -> Fault | None:
        """The fault of an attempt, counted from 1."""
        if self.repeat_last and self.faults:
            attempt = min(attempt, len(self.faults))
        return self.faults[attempt - 1] if attempt <= len(self.faults) else None


class Rule(ScriptModel):
    """A script for requests without a directive whose last user message contains ``match``.

    With ``times``, it is removed after so many requests.
    """

    script: Script
    match: str = ""
    times: int | None = Field(None, ge=1)


def read_directive(text: str) -> Script | None:
    """The script of the first ``[[sim {…}]]`` in a message. Raises DirectiveError."""
    try:
        found = _find_directive(text)
        return None if found is None else Script.model_validate(found[2])
    except ValueError as error:  # of JSON, or of pydantic
        raise DirectiveError(f"{OPENING}…{CLOSING}: {error}") from error


def without_directive(text: str) -> str:
    """The message without its directive."""
    try:
        start, end, _ = _find_directive(text) or (0, 0, None)
    except ValueError:
        return text
    return text[:start] + text[end:]


def _find_directive(text: str) -> tuple[int, int, Any] | None:
    """Start and end of the directive, and its decoded JSON, which may itself contain the closing brackets."""
    start = text.find(OPENING)
    if start < 0:
        return None
    value, end = json.JSONDecoder().raw_decode(text, start + len(OPENING))
    if not text.startswith(CLOSING, end):
        raise ValueError(f"the JSON object is not followed by {CLOSING}")
    return start, end + len(CLOSING), value
