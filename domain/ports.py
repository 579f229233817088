"""The interfaces of model and webhook sender, as small Protocols and values; their implementations are in providers/.

Nothing here or in activities/ names a vendor.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import ContextVar
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from chatjobs.contracts import Channel, ChatRequest, JsonObject, ToolCall, Usage

CANNOT_CONTINUE = "upstream_echo"
"""The error code of an answer that does not go on from the text that it was given."""

SENT: ContextVar[Callable[[], None] | None] = ContextVar("SENT", default=None)
"""A callback that a model calls, in the context of its stream, when it sends the request: rate limits count from it."""
SPENT_PAUSE = 5.0


class Continuing(StrEnum):
    """Whether a model continues a text that it is given. Only a model that is known to is asked to."""

    KNOWN = "known"
    UNPROVEN = "unproven"
    NEVER = "never"


class UsageSoFar(NamedTuple):
    """The usage of the call so far, which some servers report during the stream."""

    prompt_tokens: int
    completion_tokens: int


class TextDelta(NamedTuple):
    """A piece of text, never empty, as it came (it may end in half of a surrogate pair).

    ``told``: the count up to its end, where the server counts as it goes.
    """

    channel: Channel
    text: str
    told: UsageSoFar | None = None


class PartDelta(NamedTuple):
    """A piece of the answer that is not text (reference, image, a kind yet unknown), as the server sent it."""

    part: JsonObject


class StillWorking(NamedTuple):
    """A sign of life without new text: a piece of what is only whole at the end (a tool call), or repeated text.

    ``told``: the count up to here, which includes no new text.
    """

    told: UsageSoFar | None = None


class Allowance(NamedTuple):
    """The rate limit in the headers of the response, the first event of a stream. None: not in the headers.

    ``requests_per_minute``: the limit. ``requests_left`` and ``tokens_left``: of this minute.
    """

    requests_per_minute: float | None = None
    requests_left: float | None = None
    tokens_left: float | None = None

    @property
    def pause(self) -> float | None:
        """Seconds to pause the lane if nothing is left; the headers do not say when the minute ends."""
        if self.requests_left == 0 or (self.tokens_left is not None and self.tokens_left <= 0):
            return SPENT_PAUSE
        return None


class Finish(NamedTuple):
    """The answer is whole. Exactly one ends every stream that did not raise."""

    reason: str
    usage: Usage | None = None
    """As reported; counts that were not reported are 0."""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def exact_usage(self) -> Usage | None:
        """The reported usage; None where a count is missing and has to be estimated."""
        whole = self.usage is not None and self.usage.prompt_tokens > 0 and self.usage.completion_tokens > 0
        return self.usage if whole else None

    def counted(self, estimate: Usage) -> tuple[Usage, bool]:
        """The usage, with missing counts taken from ``estimate``, and whether any were."""
        if self.usage is None:
            return estimate, True
        prompt = self.usage.prompt_tokens or estimate.prompt_tokens
        completion = self.usage.completion_tokens or estimate.completion_tokens
        if (prompt, completion) == (self.usage.prompt_tokens, self.usage.completion_tokens):
            return self.usage, False
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return self.usage.model_copy(update=counts), True


ModelEvent = TextDelta | PartDelta | StillWorking | Allowance | Finish


class ChatModel(Protocol):
    """A language model that streams."""

    def lane(self, model: str) -> str:
        """The rate limit that calls of ``model`` share: of one key and one family of models."""
        ...

    def continuing(self, model: str) -> Continuing:
        """Whether ``model`` goes on from a text that it is given."""
        ...

    def unsent(self, request: ChatRequest, text: str) -> str:
        """The whitespace at the end of ``text`` that is not sent when the model continues it. The model generates it
        again, which costs tokens of that call and is no new text."""
        ...

    def stream(self, request: ChatRequest, continue_from: str | None = None) -> AsyncGenerator[ModelEvent, None]:
        """Stream one completion of ``request``; close the generator to end the connection.

        ``continue_from``: the content so far. Only text that follows it is yielded; the same is true for a prefix of
        the caller's own, which precedes it. If the model does not continue it, UpstreamError has the ``reason``
        CANNOT_CONTINUE, or the request is refused. The caller enforces time limits (comments and empty chunks yield no
        event); the implementation enforces size limits. Raises UpstreamError (domain/errors.py), never a vendor's
        exception.
        """
        ...


BUSY: Final = "busy"
"""The error of a POST that was not made, as too many to this receiver are under way. It does not count as a try."""


class WebhookResponse(NamedTuple):
    """The result of one POST: a status, or an error in its place. ``response``: the first kilobyte of the answer."""

    latency_ms: int
    status_code: int | None = None
    error: str | None = None
    response: str | None = None
    retry_after: float | None = None
    """Seconds, from the header ``Retry-After`` (both of its forms), not yet clamped."""

    @property
    def delivered(self) -> bool:
        return self.error is None and self.status_code is not None and 200 <= self.status_code < 300


class WebhookSender(Protocol):
    """Posts to receivers of webhooks. It decides itself which addresses it refuses."""

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> WebhookResponse:
        """Make one POST, in 15 s in all. A failure is a result, not an exception."""
        ...
