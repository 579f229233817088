"""The steps of a response on the connection, with the fault in it. No clock, no socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from simulator import oddities, wire
from simulator.answers import echo
from simulator.calls import ChatCall
from simulator.dialects import OpenAiFrames, Server
from simulator.faults import (
    Cut,
    Drip,
    Empty,
    Endless,
    Eof,
    Fault,
    FinishFault,
    FramesFault,
    Huge,
    Malformed,
    NoDone,
    Odd,
    Script,
    Slow,
    Stall,
    Status,
    StreamError,
    UnknownChunk,
    WrongType,
)
from simulator.generation import Generation, Piece, Text
from simulator.refusals import Headers, Refusal

Outcome = Literal["finished", "refused", "cut", "client_gone", "shutdown"]


class Start(NamedTuple):
    """Status line and headers."""

    status: int
    headers: Headers


class Send(NamedTuple):
    """Bytes of the body with so many tokens, sent when these are due; with 0, at once."""

    data: bytes
    tokens: int = 0


class Wait(NamedTuple):
    """A pause in seconds, None without end, with a comment every ``comments_every`` seconds."""

    seconds: float | None
    comments_every: float | None = None


class Hold(NamedTuple):
    """A pause until the request is released."""


class Close(NamedTuple):
    """The clean end of the response."""

    outcome: Outcome = "finished"


class Abort(NamedTuple):
    """The connection is broken, by FIN or by reset."""

    reset: bool


Step = Start | Send | Wait | Hold | Close | Abort


class Tempo(NamedTuple):
    """Seconds to the first token, and from one token to the next."""

    first: float
    interval: float


@dataclass(frozen=True)
class Reply:
    """One request, and the script, fault and timing of its answer. Each frame has ``answer_id`` and ``created``."""

    call: ChatCall
    script: Script
    fault: Fault | None
    seed: str
    tempo: Tempo
    answer_id: str
    created: int
    server: Server

    @cached_property
    def frames(self) -> wire.FrameWriter:
        return self.server.frames(self.answer_id, self.call.model, self.created, self.script.framing)

    @cached_property
    def generation(self) -> Generation:
        return Generation(self.call, self.script, seed=self.seed, endless=isinstance(self.fault, Endless))

    @property
    def echo_style(self) -> str:
        """The script's style; by default only Mistral's way of continuing repeats the prefix."""
        chosen = "echo" in self.script.model_fields_set
        return self.script.echo if chosen or self.server.echoes(self.call) else "none"

    def usage(self, tokens: int) -> wire.Usage | None:
        reported = self.script.usage and self.server.reports_usage(self.call)
        return wire.usage(self.call.prompt_tokens, tokens) if reported else None

    @property
    def counts_in_chunks(self) -> bool:
        return self.script.usage == "chunks" or self.server.counts_in_chunks(self.call)

    def steps(self, headers: Headers) -> Iterator[Step]:
        """All steps; answers and refusals have the ``headers``."""
        headers = headers | self.script.headers
        match self.fault:
            case Status():
                return refused(self.server.status(self.fault), headers)
            case WrongType():
                return self._wrong_type(self.fault, headers)
            case FramesFault():
                return _scripted(self.fault, headers)
            case Odd(name=name):
                return _scripted(oddities.named(name), headers)
        return self._streamed(headers) if self.call.stream else self._document(headers)

    def document(self) -> tuple[bytes, int]:
        """The answer as one JSON document, and its number of tokens."""
        pieces = list(self.generation.pieces())
        tokens = sum(piece.tokens for piece in pieces)
        prefix = "".join(echo(self.call.prefix or "", self.echo_style))
        message = self.server.message(pieces, echo=prefix, as_list=self.script.content_as_list)
        reason = self.fault.reason if isinstance(self.fault, FinishFault) else self.generation.reason
        answer = wire.completion(self.answer_id, self.call.model, self.created, message, reason)
        used = self.usage(tokens)
        return wire.json_bytes(answer if used is None else answer | {"usage": used}), tokens

    def _document(self, headers: Headers) -> Iterator[Step]:
        match self.fault:
            case Cut(reset=reset):
                yield Wait(self.tempo.first)
                yield Abort(reset)
                return
            case Stall(seconds=seconds) | Drip(seconds=seconds) | Slow(seconds=seconds):
                yield Wait(seconds)
            case Endless():
                yield Wait(None)
        body, tokens = self.document()
        yield Wait(self.tempo.first + tokens * self.tempo.interval)
        yield Start(200, headers | {"content-type": wire.JSON_TYPE})
        yield Send(body[: len(body) // 2] if isinstance(self.fault, Malformed) else body, tokens)
        yield Close()

    def _wrong_type(self, fault: WrongType, headers: Headers) -> Iterator[Step]:
        yield Wait(self.tempo.first)
        yield Start(200, headers | {"content-type": fault.content_type})
        if fault.body is not None:
            yield Send(fault.body.encode())
        elif fault.content_type.startswith(wire.JSON_TYPE):
            yield Send(*self.document())
        else:
            yield Send(b"<!doctype html><title>Please wait</title><h1>Checking your browser\xe2\x80\xa6</h1>\n")
        yield Close("cut")

    def _streamed(self, headers: Headers) -> Iterator[Step]:
        """Headers at once, then a pause up to the first token, unless a fault changes that."""
        fault = self.fault
        if isinstance(fault, Slow) and fault.before == "headers":
            yield Wait(fault.seconds)
        if isinstance(fault, Cut) and fault.where == "headers":
            yield Abort(fault.reset)
            return
        stream = {"content-type": wire.EVENT_STREAM, "cache-control": "no-cache"}
        yield Start(200, headers | stream)
        if self.script.framing.bom:
            yield Send(wire.BOM)
        if isinstance(fault, Drip):
            yield Wait(fault.seconds, fault.every)
        yield Wait(fault.seconds if isinstance(fault, Slow) and fault.before == "token" else self.tempo.first)
        yield from self._empty(fault) if isinstance(fault, Empty) else _EventStream(self).steps()

    def _empty(self, fault: Empty) -> Iterator[Step]:
        if fault.done:
            yield Send(self.frames.done())
        yield Close("cut")


class _EventStream:
    """The frames of one event stream, with a count of the tokens sent."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._frames = reply.frames
        self._body = self._all()
        self._sent = 0
        self._hold = reply.script.hold
        self._ended = False  # the chunk with the finish reason was sent

    def steps(self) -> Iterator[Step]:
        if role := self._frames.role():
            yield Send(role)
        match self._reply.fault:
            case Cut() as fault:
                yield from self._until(fault.after)
                yield from self._cut_frame(fault)
                yield Abort(fault.reset)
            case Eof() as fault:
                yield from self._until(fault.after)
                yield Close("cut")
            case StreamError() as fault:
                yield from self._until(fault.after)
                yield Send(self._frames.error(fault))
                yield Close("cut")
            case FinishFault() as fault:
                yield from self._until(fault.after)
                yield from self._end(fault.reason)
            case NoDone():
                yield from self._until(None)
                if not self._ended:
                    yield self._last(self._reply.generation.reason)
                yield Close()
            case fault:
                yield from self._with_insertion(fault)
                yield from self._until(None)
                yield from self._end(self._reply.generation.reason)

    def _with_insertion(self, fault: Fault | None) -> Iterator[Step]:
        """The beginning of an otherwise whole answer, up to and with the inserted fault."""
        if isinstance(fault, Stall | Malformed | UnknownChunk | Huge):
            yield from self._until(fault.after)
        match fault:
            case Stall():
                yield Wait(fault.seconds, fault.comments_every)
            case Malformed():
                yield Send(self._frames.data(fault.data))
            case UnknownChunk():
                yield Send(self._frames.delta({"content": [fault.chunk]}))
            case Huge():
                yield Send(self._frames.text("x" * fault.bytes))

    def _until(self, tokens: int | None) -> Iterator[Step]:
        """Frames until so many tokens were sent in this attempt; with None, all that remain."""
        while tokens is None or self._sent < tokens:
            if self._hold is not None and self._sent >= self._hold:
                self._hold = None
                yield Hold()
            step = next(self._body, None)
            if step is None:
                return
            self._sent += step.tokens
            yield step

    def _all(self) -> Iterator[Send]:
        script = self._reply.script
        for text in echo(self._reply.call.prefix or "", self._reply.echo_style):
            yield Send(self._frames.text(text, as_list=script.content_as_list))
        nameless = script.tool_style == "nameless"
        for piece, last in _with_last(self._reply.generation.pieces()):
            used = self._reply.usage(self._sent + piece.tokens)
            if last and self._ends_with(piece):
                yield self._end_with(piece, used)
                return
            used = used if self._reply.counts_in_chunks else None
            *early, frame = self._frames.piece(piece, as_list=script.content_as_list, nameless=nameless, used=used)
            yield from map(Send, early)
            yield Send(frame, piece.tokens)

    def _ends_with(self, piece: Piece) -> bool:
        """Whether the finish reason is in the chunk of the last piece."""
        fault, frames = self._reply.fault, self._frames
        plain = isinstance(piece, Text) and not isinstance(fault, FinishFault | Eof)
        return plain and isinstance(frames, OpenAiFrames) and frames.merges_end and self._reply.generation.reached_limit

    def _end_with(self, piece: Piece, used: wire.Usage | None) -> Send:
        assert isinstance(self._frames, OpenAiFrames)  # noqa: S101 - as of _ends_with
        self._ended = True
        return Send(self._frames.end_with(piece, self._reply.generation.reason, used), piece.tokens)

    def _cut_frame(self, fault: Cut) -> Iterator[Send]:
        """The beginning of the next frame, if the cut is inside it."""
        if fault.where == "frame":
            step = next(self._body, None)
            yield Send(wire.cut_inside(self._frames.role() if step is None else step.data))
        elif fault.where == "utf8":
            yield Send(wire.cut_inside_character(self._frames.text(" café")))

    def _end(self, reason: str) -> Iterator[Step]:
        if not self._ended:
            yield self._last(reason)
        yield Send(self._frames.done())
        yield Close()

    def _last(self, reason: str) -> Send:
        return Send(self._frames.last(reason, self._reply.usage(self._sent)))


def _with_last(pieces: Iterator[Piece]) -> Iterator[tuple[Piece, bool]]:
    """The pieces, and of each whether it is the last."""
    piece = next(pieces, None)
    while piece is not None:
        following = next(pieces, None)
        yield piece, following is None
        piece = following


def _scripted(fault: FramesFault, headers: Headers) -> Iterator[Step]:
    yield Start(200, headers | {"content-type": fault.content_type, "cache-control": "no-cache"})
    for frame in [*fault.frames, *(oddities.ENDING if fault.ending else ())]:
        if frame.cut is not None:
            yield Abort(frame.cut == "reset")
            return
        yield Wait(frame.wait) if frame.wait is not None else Send(wire.scripted(frame))
    yield Close()


def refused(refusal: Refusal, headers: Headers) -> Iterator[Step]:
    """A complete response in place of an answer, sent at once."""
    if refusal.status not in (204, 304):
        headers = {"content-length": str(len(refusal.body))} | headers
    yield Start(refusal.status, headers | refusal.headers)
    if refusal.body:
        yield Send(refusal.body)
    yield Close("refused")
