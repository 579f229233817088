"""The translation of every failure of a call to Mistral into our errors, for the whole service.

A vendor's error text may repeat the request. Only the message of an error's body is used, and only if it is short and
shares nothing with the prompt or the key (``Private``). Vendor exceptions are never chained: their texts contain whole
bodies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from html import unescape
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import httpx2
from mistralai.client.errors import MistralError, NoResponseError
from mistralai.extra.exceptions import MistralClientException

from chatjobs.retry_after import retry_after
from domain.errors import UpstreamError, UpstreamInterrupted, UpstreamRateLimited, UpstreamRefused
from domain.outcomes import AttemptOutcome
from domain.ports import MODEL_NOT_FOUND
from providers.mistral.answer import ErrorObject
from providers.mistral.values import OK, decoded, whole_text

MAX_VENDOR_CHARACTERS: Final = 200
MAX_VENDOR_REASONS: Final = 3
WINDOW: Final = 12
"""A run of this many letters and digits that is also in the request counts as an echo of it."""
KEY_WINDOW: Final = 6
"""The same for the API key, of which vendors often show a part."""

NO_ALLOWANCE_HEADER: Final = "x-ratelimit-limit-req-minute"


class ErrorAnswer(Exception):
    """Mistral's response is not a stream. ``body`` is its beginning, or empty if it could not be read."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        super().__init__()
        self.status = status
        self.headers = headers
        self.body = body


@contextmanager
def mistral_errors(
    private: Private, *, streaming: bool = False, headers: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Raises UpstreamError in place of the errors of the SDK, of the HTTP client and of Mistral's responses.

    ``streaming``: the head of a successful response was already read, so a lost connection is a cut; ``headers`` are
    those of that head.
    """
    try:
        yield
    except (ErrorAnswer, ErrorObject) as error:
        raise translated(error, private, headers) from None
    except MistralError as error:  # from a hook of the SDK; we read responses ourselves, within limits
        known = ErrorAnswer(error.status_code, error.headers, error.body.encode(errors="replace"))
        raise _from_answer(known, private) from None
    except MistralClientException:
        message = "Mistral's SDK found no usable credentials; check MISTRAL_API_KEY."
        raise UpstreamRefused(message, code=UNAUTHORIZED.code, http_status=None) from None
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, NoResponseError, OSError) as error:
        # OSError: a TLS failure in mid-stream is not translated by the HTTP client.
        raise _from_network(error, streaming) from None


def translated(
    error: ErrorAnswer | ErrorObject, private: Private, headers: Mapping[str, str] | None = None
) -> UpstreamError:
    """The error for a response, or for an error object in a response with these ``headers``."""
    if isinstance(error, ErrorAnswer):
        return _from_answer(error, private)
    return _from_object(error.document, private, headers or {})


# --------------------------------------------------------------------------------------------- error classes


class ErrorClass(NamedTuple):
    """A class of errors: our exception, its code, and advice for the reader."""

    error: type[UpstreamError]
    code: str
    advice: str


REJECTED: Final = ErrorClass(
    UpstreamRefused, "upstream_rejected", "Mistral refused the request; correct it and send it again"
)
UNKNOWN: Final = ErrorClass(
    UpstreamRefused,
    "upstream_rejected",
    "Mistral does not know this model or address; check the model's name and MISTRAL_SERVER_URL",
)
NO_SUCH_MODEL: Final = ErrorClass(
    UpstreamRefused,
    MODEL_NOT_FOUND,
    "The server has no such model, or this key may not use it; GET /v1/models lists those that it has",
)
UNAUTHORIZED: Final = ErrorClass(
    UpstreamRefused,
    "upstream_unauthorized",
    "Mistral refused the API key; check MISTRAL_API_KEY, and what the key and the plan of its account may use",
)
NO_ALLOWANCE: Final = ErrorClass(
    UpstreamRefused,
    "upstream_no_allowance",
    "The API key has an allowance of 0 requests a minute for this model; ask Mistral to raise it, or use another model",
)
RATE_LIMITED: Final = ErrorClass(
    UpstreamRateLimited, AttemptOutcome.RATE_LIMITED.value, "Mistral asked us to slow down; try again later"
)
UNAVAILABLE: Final = ErrorClass(
    UpstreamInterrupted, "upstream_unavailable", "Mistral is not available at the moment; try again"
)
PROTOCOL: Final = ErrorClass(
    UpstreamInterrupted,
    "upstream_protocol",
    "Mistral's answer is not an event stream; check MISTRAL_SERVER_URL and any proxy in between, or try again",
)
SPENT: Final = ErrorClass(
    UpstreamRefused,
    "upstream_no_allowance",
    "The plan or the credit of the API key's account is used up; look at the account's limits, or use another key",
)
FAILED: Final = ErrorClass(
    UpstreamInterrupted, "upstream_error", "Mistral broke the answer off with an error; try again"
)

_BY_STATUS: Final = {
    401: UNAUTHORIZED,
    402: SPENT,
    403: UNAUTHORIZED,
    404: UNKNOWN,
    408: UNAVAILABLE,
    429: RATE_LIMITED,
}


def _of_status(status: int) -> ErrorClass:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status < 500:
        return REJECTED
    return UNAVAILABLE if 500 <= status < 600 else PROTOCOL


def _from_answer(answer: ErrorAnswer, private: Private) -> UpstreamError:
    said = ErrorBody.of(_document(answer.body))
    fault = _of_status(answer.status)
    if answer.status >= 400:
        fault = _classified(answer.status, said)
    if fault is RATE_LIMITED and answer.headers.get(NO_ALLOWANCE_HEADER, "").strip() == "0":
        fault = NO_ALLOWANCE
    words = None if fault is PROTOCOL else said.repeatable(private)
    return fault.error(
        _message(fault, f"HTTP {answer.status}", words),
        code=fault.code,
        http_status=answer.status,
        retry_after=retry_after(answer.headers, datetime.now(UTC)),
    )


def _from_object(document: Mapping[str, Any], private: Private, headers: Mapping[str, str]) -> UpstreamError:
    """The error for an error object in a stream, as for the same body with a status."""
    said = ErrorBody.of(document)
    fault = _classified(said.status, said)
    message = _message(fault, "in the stream", said.repeatable(private))
    pause = retry_after(_headers_in(document) or headers, datetime.now(UTC))
    return fault.error(message, code=fault.code, http_status=OK, retry_after=pause)


def _headers_in(document: Mapping[str, Any]) -> Mapping[str, str]:
    """The header Retry-After in an error object: as a field, or among the headers that a server repeats in it."""
    for layer in _layers(document):
        headers = layer.get("headers")
        for fields in (layer, headers):
            for name, value in fields.items() if isinstance(fields, Mapping) else ():
                named = name.lower().replace("_", "-") in ("retry-after", "retryafter")
                if named and type(value) in (str, int, float):
                    return {"retry-after": str(value)}
    return {}


def _from_network(error: Exception, streaming: bool) -> UpstreamInterrupted:
    """The error for a network failure, with the exception's class only: its text may contain addresses and headers."""
    kind = type(error).__name__
    if streaming:
        message = f"The connection to Mistral broke before the answer was whole ({kind}); try again."
        return UpstreamInterrupted(message, code=AttemptOutcome.CUT.value, http_status=OK)
    message = f"Mistral cannot be reached ({kind}); check the network and MISTRAL_SERVER_URL, or try again."
    return UpstreamInterrupted(message, code="upstream_unreachable")


def not_mistral(why: str) -> UpstreamInterrupted:
    """The error for a response, other than an answer, that is not in Mistral's format."""
    return UpstreamInterrupted(f"What answers does not speak as Mistral does: {why}", code=PROTOCOL.code)


def failed_batch(errors: list[Any]) -> UpstreamError:
    """The error for a batch job that failed as a whole.

    Its errors are about requests of which none is at hand here, so that their words cannot be checked and are not
    shown.
    """
    fault = _classified(None, ErrorBody.of({"errors": errors}))
    return fault.error(f"{fault.advice} (the batch job failed with {len(errors)} errors).", code=fault.code)


def _message(fault: ErrorClass, where: str, words: str | None) -> str:
    return f"{fault.advice} ({where})." + (f" Mistral says: {words}" if words else "")


# ---------------------------------------------------------------------------------------------- classification

_BUSY_CODES: Final = frozenset({"1300", "3505"})
"""Mistral's error codes: requests over the rate limit, capacity of the service tier exceeded."""
_TOO_LONG: Final = re.compile(
    r"context.?(length|size|window)|exceed_context|(prompt|input|request|context).{0,40}too.?(long|large)"
)
_SURELY_BUSY: Final = re.compile(r"service.?tier.?capacity|rate.?limits?.?(is.)?(exceeded|reached)|too.?many.?requests")
_BUSY: Final = re.compile(
    r"rate.?limit|too.?many.?requests|throttl|slow.?down|resource.?exhausted|quota"
    r"|capacity.{0,20}exceed|exceed\w*.{0,20}capacity|(at|over|no|out.of|insufficient|full).?capacity"
)
_SPENT: Final = re.compile(r"insufficient.?(quota|balance|credit|funds)|payment.?required|out.of.credit")
_KEY: Final = re.compile(r"auth|permission|forbidden|api.?key")
_INVALID_MODEL_CODES: Final = frozenset({"1500"})
"""Mistral's error code of ``invalid_model``."""
_NO_SUCH_MODEL_KIND: Final = re.compile(
    r"(?<!\S)(invalid_?model(_?id|_?name)?|unknown_?model|no_?such_?model|model_?not_?(found|exist)(_?error)?)(?!\S)"
)
_NO_SUCH_MODEL: Final = re.compile(
    r"\b(invalid|unknown|no.such) model( name| id)?(\W*$|[:=.] ?| [`'\"\u2018\u201c(]| passed in\b)"
    r"|not a valid model\b"
    r"|(?<!by the )\bmodel:? ?(\S{1,256} )?(was |is |could )?(not (be )?found|does(n't| not) exist|not exist)\b"
)
"""The words of Mistral and LiteLLM; of OpenRouter; of vLLM, OpenAI, llama.cpp and Ollama. For text in lower case."""
_MODEL_STATUSES: Final = frozenset({None, 400, 403, 404, 422})
"""The statuses with which servers refuse an unknown model; None: an error in a stream."""
_WRONG: Final = re.compile(r"invalid|not.?found|validation|bad.?request|unprocessable|too.?long|too.?large")
_OUT_OF_ORDER: Final = re.compile(r"overloaded|unavailable|bad.?gateway|gateway.?time|timed?.?out")


def _classified(status: int | None, body: ErrorBody) -> ErrorClass:
    """The class by Mistral's error codes, then by a ``status`` of 4xx, then by words, then by any other ``status``.

    Words are needed where the status is unspecific: exceeded capacity comes as 503, and in a stream without a status as
    an ``invalid_request_error``.
    """
    if _BUSY_CODES.intersection(body.codes):
        return RATE_LIMITED
    if status in (None, 402, 429) and _SPENT.search(f"{body.kinds} {body.words}"):
        return SPENT
    if status == 400 and _SURELY_BUSY.search(f"{body.kinds} {body.words}"):
        return RATE_LIMITED
    if status in _MODEL_STATUSES and _names_no_model(body, status):
        return NO_SUCH_MODEL
    if status is not None and 400 <= status < 500:
        return _of_status(status)
    if _TOO_LONG.search(body.kinds):
        return REJECTED
    if _BUSY.search(body.kinds) or (_BUSY.search(body.words) and not _TOO_LONG.search(body.words)):
        return RATE_LIMITED
    return _by_words(body) if status is None else _of_status(status)


def _names_no_model(body: ErrorBody, status: int | None) -> bool:
    """Whether the error says that the model does not exist. A 403 says so by its code only (OpenAI's, for models that a
    project may not use): the words of a 403 are about access. A 404 without such a code or words is a wrong address."""
    if _INVALID_MODEL_CODES.intersection(body.codes) or _NO_SUCH_MODEL_KIND.search(body.kinds):
        return True
    return status != 403 and any(_NO_SUCH_MODEL.search(reason.words.lower()) for reason in body.reasons)


def _by_words(body: ErrorBody) -> ErrorClass:
    for pattern, fault in ((_KEY, UNAUTHORIZED), (_WRONG, REJECTED)):
        if pattern.search(body.kinds):
            return fault
    if _TOO_LONG.search(body.words):
        return REJECTED
    return UNAVAILABLE if _OUT_OF_ORDER.search(f"{body.kinds} {body.words}") else FAILED


# ---------------------------------------------------------------------------------------- the vendor's text


class Private:
    """The texts that must not appear in an error: the request's own and the key. ``body`` is the request's JSON."""

    def __init__(self, body: bytes = b"null") -> None:
        self._body = body
        self._key = ""

    @cached_property
    def _written(self) -> list[tuple[str, str]]:
        """Each text and its letters, computed when an error needs them."""
        return [(text, _letters(text)) for text in _texts(json.loads(self._body))]

    def hide_key(self, authorization: str) -> None:
        """Add the key in the value of the request's ``Authorization`` header."""
        self._key = _letters(authorization.rpartition(" ")[2])

    def appears_in(self, text: str) -> bool:
        """Whether ``text``, or an unescaped form of it, shares a run of letters and digits with the request."""
        return any(self._appears_in(one) for one in {text, _unescaped(text), unquote(text), unescape(text)})

    def _appears_in(self, text: str) -> bool:
        letters = _letters(text)
        if _shares(letters, self._key, KEY_WINDOW):
            return True
        return any(_echoes(text, letters, own, own_letters) for own, own_letters in self._written)


class Withheld(Private):
    """For a request with texts that are not at hand: a server's words about it are not shown."""

    def appears_in(self, text: str) -> bool:
        return True


def _echoes(text: str, letters: str, own: str, own_letters: str) -> bool:
    """Whether ``text`` repeats ``own``, a text of the request; a short one has to appear as a whole word."""
    if len(own_letters) >= WINDOW:
        return _shares(letters, own_letters, WINDOW)
    word = own.strip().casefold()
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text.casefold()) is not None


def _shares(text: str, other: str, window: int) -> bool:
    if not other:
        return False
    window = min(window, len(other))
    return any(text[start : start + window] in other for start in range(len(text) - window + 1))


def _unescaped(text: str) -> str:
    r"""``text`` with characters in place of ``\uXXXX`` and ``\xXX``."""
    escapes = r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})"
    return whole_text(re.sub(escapes, lambda found: chr(int(found[1] or found[2], 16)), text))


def _letters(text: str) -> str:
    """``text`` without case, blanks and punctuation, which echoes quote and escape in various ways."""
    return re.sub(r"[\W_]+", "", text.casefold())


_NAMES_NOT_TEXTS: Final = frozenset({"role", "type", "model", "service_tier", "reasoning_effort", "prompt_mode"})


def _texts(value: Any) -> Iterator[str]:
    """Every text in a request that a person wrote: all strings except Mistral's own vocabulary."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name not in _NAMES_NOT_TEXTS:
                yield from _texts(one)


def _document(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        return None


MAX_LAYERS: Final = 5
MAX_DETAILS: Final = 10
MAX_PATH_CHARACTERS: Final = 80
_STATUS_FIELDS: Final = ("raw_status_code", "status_code", "statusCode", "http_status", "status", "code", "error_code")
_KIND_FIELDS: Final = ("type", "code", "error_type", "status", "reason")
_WORD_FIELDS: Final = ("message", "detail", "error", "msg", "error_message", "error_msg", "errmsg", "status_msg")
_LAYER_FIELDS: Final = (*_WORD_FIELDS, "errors", "body", "metadata", "raw", "base_resp", "data")
_STATUS: Final = re.compile(r"[45]\d\d")
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")


class Reason(NamedTuple):
    """One message of an error: its words, and the place in the request that they refer to."""

    words: str
    place: str = ""


@dataclass(frozen=True)
class ErrorBody:
    """The contents of an error's body, of all its layers: objects in objects, in lists, and as JSON in strings."""

    codes: tuple[str, ...] = ()
    kinds: str = ""
    """Types and codes, in lower case."""
    reasons: tuple[Reason, ...] = ()

    @classmethod
    def of(cls, document: Any) -> ErrorBody:
        codes, kinds, reasons = list[str](), list[str](), list[Reason]()
        for layer in _layers(document):
            codes += [str(value) for name in _STATUS_FIELDS if _is_code(value := layer.get(name))]
            kinds += [str(value) for name in _KIND_FIELDS if _is_code(value := layer.get(name))]
            reasons += _reasons(layer)
        return cls(tuple(codes), " ".join(kinds).lower(), tuple(dict.fromkeys(reasons)))

    @property
    def words(self) -> str:
        return " ".join(reason.words for reason in self.reasons).lower()

    @property
    def status(self) -> int | None:
        return next((int(code) for code in self.codes if _STATUS.fullmatch(code)), None)

    def repeatable(self, private: Private) -> str | None:
        """The words, places and codes that may be shown; None if there are none."""
        shown = [text for reason in self.reasons if (text := _shown(reason, private))]
        code = next((code for code in self.codes if not _STATUS.fullmatch(code) and _CODE.fullmatch(code)), "")
        if code and not private.appears_in(code):
            shown = [*shown[:MAX_VENDOR_REASONS], f"code {code}"]
        return "; ".join(shown[: MAX_VENDOR_REASONS + 1]) or None


def _shown(reason: Reason, private: Private) -> str:
    words = "" if private.appears_in(reason.words) else _shortened(reason.words)
    place = "" if not reason.place or private.appears_in(reason.place) else f"at {reason.place}"
    return f"{words} ({place})" if words and place else words or place


def _shortened(words: str) -> str:
    """``words`` cut after a whole word to MAX_VENDOR_CHARACTERS."""
    if len(words) <= MAX_VENDOR_CHARACTERS:
        return words
    head, blank, _ = words[:MAX_VENDOR_CHARACTERS].rpartition(" ")
    return f"{head} …" if blank else ""


def _layers(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The objects of an error from the outside in, including those written as JSON in a string."""
    if isinstance(value, str):
        value = _json_within(value)
    if depth >= MAX_LAYERS:
        return
    if isinstance(value, list):
        for one in value[:MAX_DETAILS]:
            yield from _layers(one, depth + 1) if isinstance(one, dict) else ()
    elif isinstance(value, dict):
        yield value
        for name in _LAYER_FIELDS:
            yield from _layers(value.get(name), depth + 1)


def _reasons(layer: Mapping[str, Any]) -> Iterator[Reason]:
    """The words of one object, without those of nested objects."""
    place = _place(layer)
    for name in _WORD_FIELDS:
        text = layer.get(name)
        if isinstance(text, str) and text.strip() and _json_within(text) is None:
            yield Reason(text.strip(), place)


def _place(layer: Mapping[str, Any]) -> str:
    """The place of an error: ``loc`` of a validation error, or OpenAI's ``param``; field names and numbers only."""
    found = layer.get("loc") or layer.get("param")
    steps = found if isinstance(found, list) else [found]
    if not all(isinstance(step, int) or (isinstance(step, str) and _CODE.fullmatch(step)) for step in steps):
        return ""
    return ".".join(map(str, steps))[:MAX_PATH_CHARACTERS]


def _json_within(text: str) -> Any:
    """The JSON object or list that a text consists of or ends with; None if there is none."""
    start = min((at for at in (text.find("{"), text.find("[{")) if at >= 0), default=-1)
    value = decoded(text[start:].strip()) if start >= 0 else None
    return value if isinstance(value, dict | list) else None


def _is_code(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and 0 < len(str(value)) <= 64
