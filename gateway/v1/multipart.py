"""Forms with files (multipart/form-data, RFC 7578), read as they arrive: memory holds one piece of the body."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from gateway.problems import HttpProblem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM: Final = b"multipart/form-data"
NOT_A_FORM: Final = "Send the file as multipart/form-data with the fields file and purpose"
BROKEN: Final = "The form is not valid multipart/form-data (RFC 7578)"
DISPOSITION: Final = b"content-disposition"
TYPE: Final = b"content-type"
MOST_PARTS: Final = 100


@dataclass(frozen=True, slots=True)
class PartHead:
    """The beginning of a field. ``filename`` is None unless the field is a file."""

    name: str
    filename: str | None
    content_type: str


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the field that began last."""

    data: bytes


class PartEnd:
    """The end of the field that began last."""


FormEvent = PartHead | PartData | PartEnd


async def form_events(request: Request) -> AsyncGenerator[FormEvent, None]:
    """The fields of the form in a request's body. Raises HttpProblem (400, 415)."""
    form = _Form(_boundary(request))
    async for piece in request.stream():
        for event in form.feed(piece):
            yield event
    form.check_end()


def _boundary(request: Request) -> bytes:
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpProblem(415, "unsupported_media_type", "Send the body as it is, without Content-Encoding")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != FORM or not options.get(b"boundary"):
        raise HttpProblem(415, "unsupported_media_type", NOT_A_FORM)
    return options[b"boundary"]


class _Form:
    """Turns the callbacks of the parser into events."""

    def __init__(self, boundary: bytes) -> None:
        self._events: list[FormEvent] = []
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._parts = 0
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_head,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError:
            raise HttpProblem(400, "bad_request", BROKEN) from None

    def feed(self, piece: bytes) -> list[FormEvent]:
        """The events in a piece of the body. Raises HttpProblem."""
        try:
            self._parser.write(piece)
        except FormParserError:
            raise HttpProblem(400, "bad_request", BROKEN) from None
        events, self._events = self._events, []
        return events

    def check_end(self) -> None:
        """Raises HttpProblem if the form is not complete."""
        if not self._ended:
            raise HttpProblem(400, "bad_request", f"{BROKEN}: it has no closing boundary")

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_head(self) -> None:
        self._parts += 1
        _, options = parse_options_header(self._headers.get(DISPOSITION))
        if b"name" not in options or self._parts > MOST_PARTS:
            raise HttpProblem(400, "bad_request", f"{BROKEN}: a field has no name, or there are too many")
        filename = options.get(b"filename")
        kind, _ = parse_options_header(self._headers.get(TYPE))
        self._events.append(
            PartHead(_text(options[b"name"]), None if filename is None else _text(filename), _text(kind))
        )

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(data[start:end]))

    def _on_part_end(self) -> None:
        self._events.append(PartEnd())

    def _on_end(self) -> None:
        self._ended = True


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
