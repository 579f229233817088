"""Chat completions: Mistral's request as a job's, a job's answer as Mistral's chunks.

Sources: Mistral's API reference, POST /v1/chat/completions, and the request parameters of OpenAI's clients.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from json import JSONEncoder
from typing import Any, Final, NamedTuple

from chatjobs.contracts import Channel, ChatRequest, Job, JobStatus, JsonObject, QueuePlace
from chatjobs.errors import InvalidRequest, Problem
from dispatch.stream_events import KEEP_ALIVE
from domain.chat_completion import ID_PREFIX, Further, chat_completion, string_arguments, usage_object
from domain.values import JobHandle, Slice

CALLBACK: Final = "X-Chatjobs-Callback"
METADATA: Final = "X-Chatjobs-Metadata"
SYNONYMS: Final = {"max_completion_tokens": "max_tokens", "seed": "random_seed"}
"""OpenAI's names for parameters of Mistral's."""
HANDLED: Final = frozenset({"stream", "stream_options"})
"""Parameters about the form of the response: a job always streams, and its usage is always reported."""
FIELDS: Final = frozenset(field.alias or name for name, field in ChatRequest.model_fields.items())
CHOICE_FIELDS: Final = frozenset({"index", "delta"})
CHUNK_FIELDS: Final = frozenset({"id", "object", "created", "model", "choices"})
DONE: Final = b"data: [DONE]\n\n"

_json_string = JSONEncoder(ensure_ascii=False).encode
_LINE_ENDS: Final = str.maketrans({"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""Characters that some clients' SSE parsers (those on Python's ``splitlines``) take for the end of a line."""


class CompletionRequest(NamedTuple):
    """A request for a chat completion: the body of its job, and whether the answer is to be streamed."""

    body: JsonObject
    stream: bool


# --------------------------------------------------------------------------------------------------- request


def completion_request(body: Any, headers: Mapping[str, str]) -> CompletionRequest:
    """The job that a request's decoded JSON asks for, which is not validated yet. Raises InvalidRequest.

    Unknown parameters become those of ``extra``. The service's own fields may be given as for ``POST /api/jobs``;
    ``X-Chatjobs-Callback`` and ``X-Chatjobs-Metadata`` (a JSON object) stand for two of them.
    """
    if not isinstance(body, dict):
        raise InvalidRequest([Problem("", "must be an object")])
    if body.get("model") is None:
        raise InvalidRequest([Problem("/model", "is missing")])
    stream = body.get("stream")
    if not isinstance(stream, bool | None):
        raise InvalidRequest([Problem("/stream", "must be true or false")])
    given = {SYNONYMS.get(name, name): value for name, value in body.items() if value is not None}
    given |= {name: value for name, value in body.items() if name in SYNONYMS.values() and value is not None}
    job = {name: value for name, value in given.items() if name in FIELDS and name not in HANDLED}
    unknown = {name: value for name, value in given.items() if name not in FIELDS and name not in HANDLED}
    if unknown:
        own = job.get("extra", {})
        job["extra"] = {**unknown, **own} if isinstance(own, dict) else own
    if isinstance(messages := job.get("messages"), list):
        job["messages"] = [_message(message) for message in messages]
    return CompletionRequest(with_our_headers(job, headers), stream is True)


def with_our_headers(job: JsonObject, headers: Mapping[str, str]) -> JsonObject:
    """A job's body with what the ``X-Chatjobs-…`` headers say. Raises InvalidRequest."""
    metadata = job.get("metadata", {})
    if isinstance(metadata, dict):  # other services take any JSON as a value
        metadata = {name: _text(value) for name, value in metadata.items() if value is not None}
    if (given := headers.get(METADATA)) is not None:
        metadata = {**(metadata if isinstance(metadata, dict) else {}), **_header_object(given)}
    job = {**job, "metadata": metadata} if metadata else {n: v for n, v in job.items() if n != "metadata"}
    if (callback := headers.get(CALLBACK)) is not None:
        job["callback"] = callback
    return job


def _header_object(given: str) -> dict[str, str]:
    """The JSON object in a header; headers are Latin-1, so other characters are escaped, or UTF-8 bytes."""
    try:
        found = json.loads(given.encode("latin-1"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest(
            [Problem("/metadata", f'the header {METADATA} must be a JSON object, as in {{"order": "42"}}')]
        )
    return {name: _text(value) for name, value in found.items() if value is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _message(message: Any) -> Any:
    """A message without what OpenAI's clients add to an answer that they give back, and with Mistral's roles."""
    if not isinstance(message, dict):
        return message
    kept = {name: value for name, value in message.items() if value is not None and value != []}
    return kept | {"role": "system"} if kept.get("role") == "developer" else kept


# ---------------------------------------------------------------------------------------------------- chunks


class AnswerRestarted(Exception):
    """The text that the reader has is void: the answer started over."""


class NoAnswer(Exception):
    """The job ended without an answer."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.job_id)
        self.job = job


def _answered(job: Job) -> Job:
    if job.status not in (JobStatus.COMPLETED, JobStatus.INCOMPLETE):
        raise NoAnswer(job)
    return job


class WholeFraming:
    """The completion object of a job, once it has ended."""

    media_type = "application/json"
    keep_alive = b""
    needs_text = True

    def encoded(self, piece: Slice) -> bytes:
        """Nothing: the text comes with the object."""
        return b""

    def queued(self, place: QueuePlace) -> bytes:
        return b""

    def ending(self, job: Job) -> bytes:
        """The object. Raises NoAnswer."""
        return json.dumps(chat_completion(_answered(job)), ensure_ascii=False).encode()


class ChunkFraming:
    """The chunks of a job's answer for one reader, from the beginning."""

    media_type = "text/event-stream; charset=utf-8"
    keep_alive = KEEP_ALIVE
    needs_text = False

    def __init__(self, job: JobHandle) -> None:
        self._head = (
            f'data: {{"id":"{ID_PREFIX}{job.job_id}","object":"chat.completion.chunk",'
            f'"created":{int(job.created_at.timestamp())},"model":{_json_string(job.model)},'
            '"choices":[{"index":0,"delta":'
        )
        self._begun = False

    def encoded(self, piece: Slice) -> bytes:
        """The text of a slice. Raises AnswerRestarted."""
        if piece.reset and self._begun:
            raise AnswerRestarted
        return self._chunks(_delta(run.channel, run.text) for run in piece.runs) if piece.runs else b""

    def queued(self, place: QueuePlace) -> bytes:
        """Nothing: Mistral has no such event."""
        return b""

    def ending(self, job: Job) -> bytes:
        """The last chunk and ``[DONE]``. Raises NoAnswer."""
        parts = [json.dumps({"content": [dict(placed.part)]}) for placed in _answered(job).content_parts or ()]
        further = Further.of(job)
        last: dict[str, Any] = {**further.message, "content": ""}
        if job.tool_calls:
            last["tool_calls"] = string_arguments(job.tool_calls)
        choice = json.dumps({**_without(further.choice, CHOICE_FIELDS), "finish_reason": job.finish_reason})
        chunk = json.dumps({**_without(further.top, CHUNK_FIELDS), "usage": usage_object(job)})
        end = f"{json.dumps(last)},{choice[1:]}],{chunk[1:]}\n\n"
        return self._chunks(parts) + f"{self._head}{end}".encode() + DONE

    def _chunks(self, deltas: Iterable[str]) -> bytes:
        if not self._begun:
            self._begun = True
            deltas = ('{"role":"assistant","content":""}', *deltas)
        return "".join(f'{self._head}{delta},"finish_reason":null}}]}}\n\n' for delta in deltas).encode()


def _without(fields: JsonObject, names: frozenset[str]) -> JsonObject:
    return {name: value for name, value in fields.items() if name not in names}


def _delta(channel: Channel, text: str) -> str:
    string = _json_string(text).translate(_LINE_ENDS)
    if channel is Channel.CONTENT:
        return f'{{"content":{string}}}'
    return f'{{"content":[{{"type":"thinking","thinking":[{{"type":"text","text":{string}}}]}}]}}'
