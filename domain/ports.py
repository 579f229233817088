"""The interfaces of model, batches of a model and webhook sender, as small Protocols and values; their implementations
are in providers/.

Nothing here or in activities/ names a vendor.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from chatjobs.contracts import Channel, ChatRequest, JsonObject, ToolCall, Usage
from domain.errors import UpstreamError

CANNOT_CONTINUE = "upstream_echo"
"""The error code of an answer that does not go on from the text that it was given."""
MODEL_NOT_FOUND = "model_not_found"
"""The error code of a refusal because the server has no model of this name."""
NO_ALLOWANCE = "upstream_no_allowance"
"""The error code of a refusal because the key may make no call of this model, now or later."""

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

    ``requests_per_minute``, ``tokens_per_minute``: the limits. ``requests_left``, ``tokens_left``: of this minute.
    """

    requests_per_minute: float | None = None
    requests_left: float | None = None
    tokens_per_minute: float | None = None
    tokens_left: float | None = None

    @property
    def pause(self) -> float | None:
        """Seconds to pause the lane if nothing is left; the headers do not say when the minute ends."""
        if self.requests_left == 0 or (self.tokens_left is not None and self.tokens_left <= 0):
            return SPENT_PAUSE
        return None


class Seam(NamedTuple):
    """The answer goes on from the text that it was given: it comes once, before the first text of its own.

    ``confirmed``: the server has repeated that text, so that it goes on from exactly it.
    """

    confirmed: bool


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


ModelEvent = TextDelta | PartDelta | StillWorking | Allowance | Seam | Finish


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


class BatchLine(NamedTuple):
    """One request of a batch job; ``custom_id`` identifies its result."""

    custom_id: str
    request: ChatRequest


class BatchPhase(StrEnum):
    """How far the model's server is with a batch job."""

    QUEUED = "queued"
    """Waiting, or being validated."""
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    """Every request has an answer or an error."""
    FAILED = "failed"
    """The job as a whole failed, usually because it was refused; hardly any request has a result."""
    TIMED_OUT = "timed_out"
    """The job's time was over; some requests have a result."""
    CANCELLED = "cancelled"
    """Some requests have a result."""

    @property
    def ended(self) -> bool:
        return self not in (BatchPhase.QUEUED, BatchPhase.RUNNING, BatchPhase.CANCELLING)


class ModelBatch(NamedTuple):
    """A batch job at the model's server. ``total`` is 0 until the server has counted the requests."""

    id: str
    phase: BatchPhase
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    input_files: tuple[str, ...] = ()
    output_file: str | None = None
    error_file: str | None = None
    failure: UpstreamError | None = None
    """Why the job FAILED."""

    @property
    def complete(self) -> bool:
        """It has ended, and names the files that its counts lead to expect: they may appear some seconds later."""
        if not self.phase.ended:
            return False
        return bool(self.output_file or not self.succeeded) and bool(self.error_file or not self.failed)


class BatchAnswer(NamedTuple):
    """The whole answer to one request of a batch job: its text and parts in order, and its end."""

    pieces: tuple[TextDelta | PartDelta, ...]
    finish: Finish


LineOutcome = BatchAnswer | UpstreamError
"""The result of one request. An error has its ``reason`` and ``retryable`` as that of a live call."""
PendingRequests = Callable[[Collection[str]], Awaitable[Mapping[str, ChatRequest]]]
"""Those requests, of the ids given, that await a result."""


class BatchModel(Protocol):
    """A language model that answers many requests at its own pace.

    All methods raise UpstreamError. Every call has limits of time and size; none is repeated here.
    """

    async def upload(self, key: str, requests: AsyncIterable[BatchLine]) -> str:
        """Upload requests. Returns the id of the file. Memory does not grow with their number.

        ``key`` identifies the batch job among all that the server has. Raises UpstreamRefused (``upstream_too_large``)
        for more than the server takes.
        """
        ...

    async def find(self, key: str, *, since: datetime) -> ModelBatch | None:
        """The batch job that was created with this key, at ``since`` or later by the server's clock.

        The oldest if there are several; None if there is none.
        """
        ...

    async def create(self, key: str, file_id: str, model: str, *, timeout_hours: int) -> ModelBatch:
        """Create a batch job that answers all requests of a file. It costs money: ``find`` one first.

        After an error other than a refusal it may nevertheless exist.
        """
        ...

    async def look(self, batch_id: str) -> ModelBatch:
        """The batch job as it is now."""
        ...

    async def cancel(self, batch_id: str) -> ModelBatch:
        """Request the cancellation. The job may end otherwise: results that exist are kept and paid for."""
        ...

    def results(self, batch: ModelBatch, pending: PendingRequests) -> AsyncGenerator[tuple[str, LineOutcome], None]:
        """The results of an ended batch job by ``custom_id``, in any order, each request's at most once.

        ``pending`` is called with the ids of a few lines at a time; what it does not return is skipped: results of
        unknown requests, and second ones. A request in ``pending`` may have no result. A line that is not as it should
        be is an error of its request, never an answer. Raises UpstreamInterrupted while the files are not there yet,
        and if they did not arrive whole; then no result was yielded.
        """
        ...

    async def delete_files(self, key: str, batch: ModelBatch | None) -> None:
        """Delete the files of a batch job, also those of uploads with this key that no job has used."""
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


class ModelCatalog(Protocol):
    """The list of models of the model's server."""

    async def available(self) -> list[JsonObject]:
        """The models that the service may use, as the server describes them; each has a text as ``id``.

        Raises UpstreamError.
        """
