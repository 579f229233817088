"""The results of a batch job: lines of JSON in, outcomes of requests out. Pure.

A line is ``{"custom_id", "response": {"status_code", "body"}, "error"}``; docs/streams.md has the table of variants.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, Final, NamedTuple

from chatjobs.contracts import ChatRequest, JsonObject
from domain.continuing import Practice
from domain.errors import UpstreamError, UpstreamInterrupted
from domain.ports import BatchAnswer, LineOutcome, ModelEvent, PartDelta, TextDelta
from providers.mistral.answer import Answer, ErrorObject, is_error_value
from providers.mistral.chat import expected_echo, request_body
from providers.mistral.echo import Echo
from providers.mistral.errors import ErrorAnswer, Private, not_mistral, translated
from providers.mistral.sdk import MAX_ERROR_BYTES
from providers.mistral.stream import MAX_RESPONSE_BYTES, too_large
from providers.mistral.values import OK, decoded, parsed

GROUP_LINES: Final = 100
GROUP_BYTES: Final = 4 * 1024 * 1024
"""A group of lines ends with the line that reaches one of these."""
_BLOCK: Final = 64 * 1024
_HEAD: Final = 4096
_CUSTOM_ID: Final = re.compile(rb'"custom_id"\s*:\s*"((?:[^"\\]|\\.)*)"')


class ResultLine(NamedTuple):
    """One line. ``value`` is the error of the request if the line cannot be read."""

    custom_id: str
    value: JsonObject | UpstreamError


def groups(file: IO[bytes], max_line: int = MAX_RESPONSE_BYTES) -> Iterator[list[ResultLine | None]]:
    """The lines of a file in groups, with None for a line whose request is not known."""
    group, size = list[ResultLine | None](), 0
    while line := file.readline(max_line + 1):
        if len(line) > max_line and not line.endswith(b"\n"):
            _skip_line(file)
            group.append(_unreadable(line, too_large("One result of the batch job")))
        elif line.strip():
            group.append(_result_line(line))
        size += len(line)
        if len(group) == GROUP_LINES or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    yield group


def ends_within_a_line(file: IO[bytes]) -> bool:
    """Whether the last line has no end and is not JSON: the file was cut there, if nothing else marks its end."""
    end = file.seek(0, 2)
    start = file.seek(max(0, end - MAX_RESPONSE_BYTES))
    last = file.read(end - start).rpartition(b"\n")[2]
    return bool(last.strip()) and decoded(last.decode(errors="replace")) is None


def outcome(line: ResultLine, request: ChatRequest, practice: Practice) -> LineOutcome:
    """What a line says about its request, which was sent by ``practice``."""
    if isinstance(line.value, UpstreamError):
        return line.value
    try:
        return _answer(_completion(line.value), expected_echo(request, None, practice))
    except UpstreamError as error:
        return error
    except (ErrorAnswer, ErrorObject) as error:
        return translated(error, Private(request_body(request, None, practice)))


# ------------------------------------------------------------------------------------------------------- lines


def _result_line(line: bytes) -> ResultLine | None:
    try:
        value = parsed(line)
    except UpstreamInterrupted:
        return _unreadable(line, not_mistral("a result of the batch job is not JSON"))
    if not isinstance(value, dict):
        return None
    custom_id = value.get("custom_id")
    return ResultLine(custom_id, value) if isinstance(custom_id, str) else None


def _unreadable(line: bytes, error: UpstreamError) -> ResultLine | None:
    found = _CUSTOM_ID.search(line[:_HEAD])
    custom_id = decoded(f'"{found[1].decode(errors="replace")}"') if found else None
    return ResultLine(custom_id, error) if isinstance(custom_id, str) else None


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
        pass


# ----------------------------------------------------------------------------------------------------- answers


def _completion(line: JsonObject) -> JsonObject:
    """The completion in a line. Raises ErrorAnswer, ErrorObject, UpstreamInterrupted for a line that has none."""
    response, error = line.get("response"), line.get("error")
    if not isinstance(response, dict):
        raise ErrorObject({"error": error}) if is_error_value(error) else not_mistral("a result has no response")
    status, body = _status(response.get("status_code")), _body(response.get("body"))
    if status is not None and status != OK:
        raise ErrorAnswer(status, {}, _written(body or error))
    if is_error_value(error):
        raise ErrorObject({"error": error})
    if status is None or not isinstance(body, dict):
        raise not_mistral("a result has no status, or no completion")
    return body


def _answer(completion: JsonObject, echo: Echo | None) -> BatchAnswer:
    """Raises ErrorObject, UpstreamError."""
    answer = Answer()
    events = list(answer.document(completion))
    finish = answer.finish()
    pieces = _without_echo([*events, finish], echo)
    return BatchAnswer(tuple(one for one in pieces if isinstance(one, TextDelta | PartDelta)), finish)


def _without_echo(events: Iterable[ModelEvent], echo: Echo | None) -> Iterator[ModelEvent]:
    for event in events:
        if echo is None or echo.decided:
            yield event
        else:
            yield from echo.take(event)


def _status(value: Any) -> int | None:
    """A status as a number, also one that is written as text."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _body(value: Any) -> Any:
    """A body, also one that is written as JSON in a string."""
    inner = decoded(value) if isinstance(value, str) else None
    return inner if isinstance(inner, dict) else value


def _written(error: Any) -> bytes:
    return json.dumps(error).encode()[:MAX_ERROR_BYTES]
