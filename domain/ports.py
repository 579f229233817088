"""What the activities need from the outside, as small Protocols and plain values.

``providers/`` holds the real ones; nothing here or in activities/ names a vendor.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import ContextVar
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from chatjobs.contracts import Channel, ChatRequest, JsonObject, ToolCall, Usage

CANNOT_CONTINUE = "upstream_echo"
"""The code of an answer that does not go on from the text it was given."""

SENT: ContextVar[Callable[[], None] | None] = ContextVar("SENT", default=None)
"""Called by a model, in the context of its stream, when the request is on its way: the rate limit counts from then."""
SPENT_PAUSE = 5.0


class Continuing(StrEnum):
    """Whether a model goes on from a text that it is given. Only one that is known to is asked to."""

    KNOWN = "known"
    UNPROVEN = "unproven"
    NEVER = "never"


class Told(NamedTuple):
    """What the server says in the middle of an answer that the call has used up to there."""

    prompt_tokens: int
    completion_tokens: int


class TextDelta(NamedTuple):
    """A piece of text, never empty, as it came (it may end in half of a surrogate pair).

    ``told``: the count up to its end, where the server counts as it goes.
    """

    channel: Channel
    text: str
    told: Told | None = None


class PartDelta(NamedTuple):
    """A piece of the answer that is not text (reference, image, a kind yet unknown), with Mistral's own names."""

    part: JsonObject


class StillWorking(NamedTuple):
    """The model is working on something that is only whole at the end (a tool call), or says again what is there.

    ``told``: the count up to here, which is none of new text.
    """

    told: Told | None = None


class Allowance(NamedTuple):
    """What the answer's headers say of the rate limit; it comes first. None: they do not say.

    ``requests_per_minute``: the limit. ``requests_left`` and ``tokens_left``: of this minute.
    """

    requests_per_minute: float | None = None
    requests_left: float | None = None
    tokens_left: float | None = None

    @property
    def pause(self) -> float | None:
        """Seconds that the lane had better wait: nobody says when the minute ends."""
        if self.requests_left == 0 or (self.tokens_left is not None and self.tokens_left <= 0):
            return SPENT_PAUSE
        return None


class Finish(NamedTuple):
    """The answer is whole. Exactly one ends every stream that did not raise."""

    reason: str
    usage: Usage | None = None
    """As reported; a count that was not is 0."""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def exact_usage(self) -> Usage | None:
        """None where a count is missing: whoever needs it has to estimate."""
        whole = self.usage is not None and self.usage.prompt_tokens > 0 and self.usage.completion_tokens > 0
        return self.usage if whole else None

    def counted(self, estimate: Usage) -> tuple[Usage, bool]:
        """The usage, with what was not reported taken from ``estimate``; and whether anything was."""
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
        """The whitespace at the end of ``text`` that is not sent when the model is to go on from it: the model has to
        say it again, which costs tokens of that call and is no new text."""
        ...

    def stream(self, request: ChatRequest, continue_from: str | None = None) -> AsyncGenerator[ModelEvent, None]:
        """Stream one completion of ``request``; close the generator to end the connection.

        ``continue_from`` is the content that is already there: what follows it is streamed, and nothing of it again.
        The same is true for a prefix of the caller's own, which goes before it. Where a model cannot be made to go on
        from there, UpstreamError's ``reason`` is CANNOT_CONTINUE, or the request is refused.
        The caller keeps the time limits (comments and empty chunks yield nothing); the implementation keeps the size
        limits. Raises UpstreamError (chatjobs/errors.py), never a vendor's exception.
        """
        ...


BUSY: Final = "busy"
"""The error of a POST that was not made: too many to this receiver are under way. It is no try; come back later."""


class WebhookResponse(NamedTuple):
    """What came of one POST: a status, or an error in its place. ``response`` is the first kilobyte of the answer."""

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
    """Posts to strangers. Which addresses it refuses is its own business."""

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> WebhookResponse:
        """One POST, 15 s in all. A failure is an answer, not an exception."""
        ...
