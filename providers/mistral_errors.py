"""Every way in which a call of Mistral fails, translated into our errors: here and nowhere else.

What a vendor says about an error may repeat the request. Of an error's body only its message is used, and only if it
is short and shares nothing with the prompt or the key (``Private``). Vendor exceptions are never chained: their texts
hold whole bodies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, NamedTuple

import httpx2
from mistralai.client.errors import MistralError, NoResponseError
from mistralai.extra.exceptions import MistralClientException

from chatjobs.errors import UpstreamError, UpstreamInterrupted, UpstreamRateLimited, UpstreamRefused
from providers.mistral_answer import OK, ErrorObject
from providers.retry_after import retry_after

MAX_VENDOR_CHARACTERS: Final = 200
MAX_VENDOR_REASONS: Final = 3
WINDOW: Final = 12
"""A run of so many letters and digits that also stands in the request is taken for an echo of it."""
KEY_WINDOW: Final = 6
"""The same for the API key: vendors like to show a part of it."""

NO_ALLOWANCE_HEADER: Final = "x-ratelimit-limit-req-minute"


class ErrorAnswer(Exception):
    """Mistral answered, but not with a stream. ``body`` is its beginning, or empty where it could not be read."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        super().__init__()
        self.status = status
        self.headers = headers
        self.body = body


@contextmanager
def mistral_errors(
    private: Private, *, streaming: bool = False, headers: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Raises UpstreamError in place of whatever the SDK, the HTTP client or Mistral's answer came up with.

    ``streaming``: the head of a successful response was already read, so that a lost connection is a cut; ``headers``
    are those of that head.
    """
    try:
        yield
    except ErrorAnswer as answer:
        raise _from_answer(answer, private) from None
    except ErrorObject as error:
        raise _from_object(error.document, private, headers or {}) from None
    except MistralError as error:  # of a hook of the SDK; we read answers ourselves, and bounded
        known = ErrorAnswer(error.status_code, error.headers, error.body.encode(errors="replace"))
        raise _from_answer(known, private) from None
    except MistralClientException:
        raise _unauthorized("Mistral's SDK found no usable credentials", None) from None
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, NoResponseError, OSError) as error:
        # OSError: a TLS failure in mid-stream is not translated by the HTTP client.
        raise _from_network(error, streaming) from None


# ------------------------------------------------------------------------------------------- what went wrong


class Fault(NamedTuple):
    """A class of errors: ours, its code, and what the reader should do."""

    error: type[UpstreamError]
    code: str
    advice: str


REJECTED: Final = Fault(
    UpstreamRefused, "upstream_rejected", "Mistral refused the request; correct it and send it again"
)
UNKNOWN: Final = Fault(
    UpstreamRefused,
    "upstream_rejected",
    "Mistral does not know this model or address; check the model's name and MISTRAL_SERVER_URL",
)
UNAUTHORIZED: Final = Fault(
    UpstreamRefused,
    "upstream_unauthorized",
    "Mistral refused the API key; check MISTRAL_API_KEY and what the key may use",
)
NO_ALLOWANCE: Final = Fault(
    UpstreamRefused,
    "upstream_no_allowance",
    "The API key has an allowance of 0 requests a minute for this model; ask Mistral to raise it, or use another model",
)
RATE_LIMITED: Final = Fault(
    UpstreamRateLimited, "upstream_rate_limited", "Mistral asked us to slow down; try again later"
)
UNAVAILABLE: Final = Fault(
    UpstreamInterrupted, "upstream_unavailable", "Mistral is not available at the moment; try again"
)
PROTOCOL: Final = Fault(
    UpstreamInterrupted,
    "upstream_protocol",
    "Mistral's answer is not an event stream; check MISTRAL_SERVER_URL and any proxy in between, or try again",
)
FAILED: Final = Fault(UpstreamInterrupted, "upstream_error", "Mistral broke the answer off with an error; try again")

_BY_STATUS: Final = {401: UNAUTHORIZED, 403: UNAUTHORIZED, 404: UNKNOWN, 408: UNAVAILABLE, 429: RATE_LIMITED}


def _of_status(status: int) -> Fault:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status < 500:
        return REJECTED
    return UNAVAILABLE if 500 <= status < 600 else PROTOCOL


def _from_answer(answer: ErrorAnswer, private: Private) -> UpstreamError:
    fault = _of_status(answer.status)
    if fault is RATE_LIMITED and answer.headers.get(NO_ALLOWANCE_HEADER, "").strip() == "0":
        fault = NO_ALLOWANCE
    said = None if fault is PROTOCOL else _vendor_text(_document(answer.body), private)
    return fault.error(
        _message(fault, f"HTTP {answer.status}", said),
        code=fault.code,
        http_status=answer.status,
        retry_after=retry_after(answer.headers, datetime.now(UTC)),
    )


def _from_object(document: Mapping[str, Any], private: Private, headers: Mapping[str, str]) -> UpstreamError:
    fault = _of_object(document)
    message = _message(fault, "in the stream", _vendor_text(document, private))
    pause = retry_after(_headers_in(document) or headers, datetime.now(UTC))
    return fault.error(message, code=fault.code, http_status=OK, retry_after=pause)


def _headers_in(document: Mapping[str, Any]) -> Mapping[str, str]:
    """The header Retry-After that an error object tells: as a field of its own, or among a server's own headers."""
    inner = document.get("error")
    for place in (document, inner, inner.get("metadata") if isinstance(inner, Mapping) else None):
        headers = place.get("headers") if isinstance(place, Mapping) else None
        for fields in (place, headers):
            for name, value in fields.items() if isinstance(fields, Mapping) else ():
                if name.lower().replace("_", "-") in ("retry-after", "retryafter") and _is_pause(value):
                    return {"retry-after": str(value)}
    return {}


def _is_pause(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _from_network(error: Exception, streaming: bool) -> UpstreamInterrupted:
    """Only the kind of failure is told; texts of exceptions may hold addresses and headers."""
    kind = type(error).__name__
    if streaming:
        message = f"The connection to Mistral broke before the answer was whole ({kind}); try again."
        return UpstreamInterrupted(message, code="upstream_cut", http_status=OK)
    message = f"Mistral cannot be reached ({kind}); check the network and MISTRAL_SERVER_URL, or try again."
    return UpstreamInterrupted(message, code="upstream_unreachable")


def _unauthorized(message: str, status: int | None) -> UpstreamRefused:
    return UpstreamRefused(f"{message}; check MISTRAL_API_KEY.", code=UNAUTHORIZED.code, http_status=status)


def _message(fault: Fault, where: str, said: str | None) -> str:
    return f"{fault.advice} ({where})." + (f" Mistral says: {said}" if said else "")


# ------------------------------------------------------------------------------------ errors inside a stream

_STATUS_FIELDS: Final = ("raw_status_code", "status_code", "status", "code")
_BUSY_CODES: Final = frozenset({"1300", "3505"})
"""Mistral's own numbers: requests over the rate limit, capacity of the service tier exceeded."""
_WORDS: Final = (
    (re.compile(r"rate.?limit|too.?many.?requests|capacity"), RATE_LIMITED),
    (re.compile(r"auth|permission|forbidden|api.?key"), UNAUTHORIZED),
    (re.compile(r"invalid|not.?found|validation|bad.?request|unprocessable|too.?long|too.?large"), REJECTED),
)


def _of_object(document: Mapping[str, Any]) -> Fault:
    """By status where the error has one, else by the words of its ``type`` and ``code``."""
    inner = document.get("error")
    error = inner if isinstance(inner, Mapping) else document
    values = [error.get(name) for name in _STATUS_FIELDS]
    if any(str(value) in _BUSY_CODES for value in values):
        return RATE_LIMITED
    for value in values:
        if re.fullmatch(r"[45]\d\d", str(value)):
            return _of_status(int(str(value)))
    words = f"{error.get('type')} {error.get('code')}".lower()
    return next((fault for pattern, fault in _WORDS if pattern.search(words)), FAILED)


# -------------------------------------------------------------------------------------- what the vendor says


class Private:
    """What must not appear in an error: the request's own texts and the key. ``body`` is the request's JSON."""

    def __init__(self, body: bytes = b"null") -> None:
        self._body = body
        self._key = ""

    @cached_property
    def _written(self) -> list[tuple[str, str]]:
        """Each text and its letters; only errors need them."""
        return [(text, _letters(text)) for text in _texts(json.loads(self._body))]

    def hide_key(self, authorization: str) -> None:
        """The value of the request's ``Authorization`` header."""
        self._key = _letters(authorization.rpartition(" ")[2])

    def appears_in(self, text: str) -> bool:
        """Whether ``text`` shares a run of letters and digits with the request, or is likely to."""
        letters = _letters(text)
        if _shares(letters, self._key, KEY_WINDOW):
            return True
        return any(_echoes(text, letters, own, own_letters) for own, own_letters in self._written)


def _echoes(text: str, letters: str, own: str, own_letters: str) -> bool:
    """A short text of the request counts as echoed where it stands as a whole word."""
    if len(own_letters) >= WINDOW:
        return _shares(letters, own_letters, WINDOW)
    word = own.strip().casefold()
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text.casefold()) is not None


def _shares(text: str, other: str, window: int) -> bool:
    if not other:
        return False
    window = min(window, len(other))
    return any(text[start : start + window] in other for start in range(len(text) - window + 1))


def _letters(text: str) -> str:
    """Without case, blanks and punctuation, which echoes quote and escape in their own ways."""
    return re.sub(r"[\W_]+", "", text.casefold())


_NAMES_NOT_TEXTS: Final = frozenset({"role", "type", "model", "service_tier", "reasoning_effort", "prompt_mode"})


def _texts(value: Any) -> Iterator[str]:
    """Every text in a request that somebody wrote: all strings but the words of Mistral's own vocabulary."""
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


def _vendor_text(document: Any, private: Private) -> str | None:
    """What Mistral says, as far as it may be repeated; None where there is nothing of the kind."""
    fit = [text for text in _reasons(document) if len(text) <= MAX_VENDOR_CHARACTERS and not private.appears_in(text)]
    return "; ".join(fit[:MAX_VENDOR_REASONS]) or None


def _reasons(document: Any) -> Iterator[str]:
    """``message``, ``detail`` or ``detail[].msg``, at the top or within ``error`` or ``message``."""
    if not isinstance(document, dict):
        return
    for name in ("message", "detail", "error"):
        match document.get(name):
            case str(text) if text.strip():
                yield text.strip()
            case list(details):
                yield from (one["msg"] for one in details[:10] if isinstance(one, dict) and _is_text(one.get("msg")))
            case dict(inner):
                yield from _reasons(inner)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# ------------------------------------------------------------------------------------------------ Retry-After
