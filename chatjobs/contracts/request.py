"""The request for a chat job: Mistral's parameters, and the service's own limits, retries and webhook.

Source of Mistral's parameters, their meanings and ranges: Mistral's API reference, POST /v1/chat/completions.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, Strict, StringConstraints, field_validator, model_validator

from chatjobs.contracts.base import (
    HttpUrl,
    JobId,
    JsonObject,
    Many,
    Metadata,
    Milliseconds,
    ModelName,
    RequestId,
    Seconds,
    SignedInt64,
    StopSequence,
    StrictModel,
    TokenCount,
    WireModel,
    WrittenTime,
)
from chatjobs.contracts.fingerprints import canonical_json
from chatjobs.contracts.messages import (
    MAX_MESSAGES,
    AssistantMessage,
    Message,
    SystemMessage,
    TextPart,
    UserMessage,
    message_text,
)
from chatjobs.contracts.parsing import parse
from chatjobs.contracts.statuses import WebhookEventType

DEFAULT_MODEL = "mistral-small-latest"
USUAL_PRIORITY = 3
"""The priority of a request that gives none, between 1 (first) and 5 (last)."""
MAX_TEXT_CHARACTERS = 2_000_000
"""Most characters of the texts of all messages together."""
MAX_SCHEMA_BYTES = 64 * 1024
"""Most bytes of a response's JSON schema, as canonical JSON."""
MAX_FALLBACK_MODELS = 4
MAX_EXTRA = 32
"""Most parameters of ``extra``."""
MAX_EXTRA_BYTES = 64 * 1024
"""Most bytes of ``extra``, as canonical JSON."""
EXTRA_NAME = re.compile("[A-Za-z0-9_.-]{1,64}")
"""The name of a parameter in ``extra``."""

# ------------------------------------------------------------------------------------------------- tools


class Function(StrictModel):
    """A function of the caller's that the model may call."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    parameters: JsonObject
    """The JSON schema of the arguments."""
    description: str | None = None
    strict: bool | None = None
    """Whether the arguments must match the schema."""


class FunctionTool(StrictModel):
    """A tool that is a function of the caller's."""

    type: Literal["function"] = "function"
    function: Function


class HostedTool(StrictModel):
    """A tool that runs at Mistral, such as web search or image generation."""

    model_config = ConfigDict(extra="allow")
    type: Literal["image_generation", "document_library", "connector", "web_search", "code_interpreter"]


Tool = Annotated[FunctionTool | HostedTool, Field(discriminator="type")]
"""A tool that the model may use; ``type`` says which."""


class FunctionName(StrictModel):
    """The name of a function among the request's tools."""

    name: str


class ToolChoice(StrictModel):
    """The one function that the model must call."""

    type: Literal["function"] = "function"
    function: FunctionName


# --------------------------------------------------------------------------------- the form of the answer


class JsonSchema(StrictModel):
    """The JSON schema that the answer must match."""

    name: str
    schema_definition: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    """Whether the model is held to the schema."""


class ResponseFormat(StrictModel):
    """The form of the answer: text, any JSON object, or JSON that matches a schema (at most 64 KiB)."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    """Required where ``type`` is ``json_schema``."""

    @model_validator(mode="after")
    def _bounded_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing; give the schema that the answer shall have")
        if self.json_schema and len(canonical_json(self.json_schema.schema_definition)) > MAX_SCHEMA_BYTES:
            raise ValueError(f"the schema may have {MAX_SCHEMA_BYTES} bytes; shorten it")
        return self


class Prediction(StrictModel):
    """A text that the answer is expected to resemble, which lets the model answer faster."""

    type: Literal["content"] = "content"
    content: str = ""


# -------------------------------------------------------------------------------- the service's own fields


class Webhook(WireModel):
    """The URL that the outcome is delivered to, and the outcomes that are delivered (all, unless given).

    ``format``: the form of the body. ``openai`` is the event of a response as OpenAI sends it, such as
    ``response.completed``, with the response's id.
    """

    url: HttpUrl
    events: Many[Annotated[WebhookEventType, Strict(False)]] = tuple(WebhookEventType)
    format: Literal["chatjobs", "openai"] = Field("chatjobs", exclude_if=lambda form: form == "chatjobs")


class Limits(WireModel):
    """Time limits of one job, in seconds, and bounds on what its attempts may cost.

    ``stallSeconds`` is the longest silence within an answer: its default ends a call of a dead server, not of a slow
    one. ``maxLost`` is how many times in a row a worker may die with this job without adding a character; then the job
    fails with ``worker_lost`` and keeps its text. ``maxTotalTokens`` counts prompts and answers of every call,
    estimated where Mistral did not report them. Once it is reached the job fails with ``max_total_tokens`` and keeps
    its text; no call asks the model for more than is left.
    """

    queue_seconds: Seconds = 3_600
    """From acceptance to the first call of the model."""
    first_token_seconds: Seconds = 60
    """From the beginning of a call to the first piece of its answer."""
    stall_seconds: Seconds = 120
    """Between two pieces of an answer."""
    total_seconds: Seconds = 3_600
    """From the beginning of the first attempt to the end of the answer, over all attempts."""
    max_total_tokens: Annotated[int, Field(gt=0, lt=2**53)] | None = None
    """In tokens; None is no bound."""
    max_lost: Annotated[int, Field(ge=1, le=1_000)] = 5
    fallback_seconds: Seconds = 30
    """How long the model may fail, or refuse calls for their rate, before the next of ``fallbackModels`` goes on."""


class Backoff(WireModel):
    """The pause after a failure, in milliseconds: ``fixed`` is always ``delay``, ``exponential`` doubles it each time.

    Up to a fifth is added at random, so that jobs that failed together do not call again together. ``exponential``
    grows to 30 s, or to ``delay`` where that is longer. A longer ``Retry-After`` of the server is obeyed, up to 5 min.
    """

    type: Literal["exponential", "fixed"] = "exponential"
    delay: Milliseconds = 500


class Retry(WireModel):
    """How often a job's call may fail. Only real failures count: a 429, a deploy or the death of a worker does not.

    ``attempts`` is the number of calls that may fail at the same position of the answer. After an interruption that
    brought new text the count begins again at one, up to 10 × (``attempts`` - 1) failures in all.
    """

    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    backoff: Backoff = Backoff()


class ChatRequest(StrictModel):
    """The request for one chat job: Mistral's chat-completion parameters under their own names, and the service's own.

    Only ``messages`` is required. ``stream`` is accepted and ignored: a job always streams. ``metadata`` is not
    forwarded. ``onInterrupt`` is what happens to an answer whose attempt ended in the middle: it continues after its
    last character, starts over (a ``reset`` for readers), or the job fails with ``interrupted`` and keeps its text;
    what cannot continue (tools, another response format, an unfinished thought, blank text) starts over. With
    ``maxSegments`` > 1 an answer that stopped at ``max_tokens`` continues in another call, up to so many;
    ``max_tokens`` is the limit of each segment, so that the whole may have ``max_tokens`` × ``maxSegments``.
    Source of the parameters: Mistral's API reference, POST /v1/chat/completions.
    """

    messages: Annotated[Many[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    """The conversation, oldest first, at most ``MAX_TEXT_CHARACTERS`` characters together."""
    model: ModelName = DEFAULT_MODEL

    # Mistral's parameters, under Mistral's names. None leaves the choice to Mistral.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Randomness of the sampling; 0 is the least."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Nucleus sampling: only the likeliest tokens with this probability together are considered."""
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Only so many of the likeliest tokens are considered."""
    max_tokens: TokenCount | None = None
    """Most tokens of the answer, or of each of its segments."""
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Fewest tokens of the answer."""
    stream: bool | None = None
    """Ignored: a job always streams."""
    stop: StopSequence | Annotated[Many[StopSequence], Field(max_length=16)] | None = None
    """The texts before which the answer ends."""
    random_seed: SignedInt64 | None = None
    """The seed of the sampling; calls with the same seed give the same answer."""
    response_format: ResponseFormat | None = None
    tools: Annotated[Many[Tool], Field(max_length=128)] | None = None
    """The tools that the model may use; no two functions have the same name."""
    tool_choice: Literal["auto", "none", "any", "required"] | ToolChoice | None = None
    """Whether the model must call a tool: ``any`` and ``required`` are the same."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Penalty for a word that the answer already has."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Penalty for a word that grows with its number in the answer."""
    repetition_penalty: Annotated[float, Field(ge=0)] | None = None
    logprobs: bool | None = None
    """Whether the answer has the log probabilities of its tokens."""
    top_logprobs: Annotated[int, Field(ge=0, le=128)] | None = None
    """Number of alternatives per token of the answer."""
    prompt_logprobs: bool | None = None
    """Whether the answer has the log probabilities of the prompt's tokens."""
    top_prompt_logprobs: Annotated[int, Field(ge=0, le=128)] | None = None
    """Number of alternatives per token of the prompt."""
    n: Literal[1] | None = None
    """Number of answers: a job has one."""
    prediction: Prediction | None = None
    parallel_tool_calls: bool | None = None
    """Whether the model may call several tools at once."""
    reasoning_effort: Annotated[str, StringConstraints(max_length=32)] | None = None
    """How long the model reasons, in Mistral's words, such as ``high`` or ``none``."""
    prompt_mode: Literal["reasoning"] | None = None
    """``reasoning``: Mistral adds its system prompt for reasoning models."""
    guardrails: Annotated[Many[JsonObject], Field(max_length=16)] | None = None
    """Moderation rules that Mistral applies."""
    prompt_cache_key: Annotated[str, StringConstraints(max_length=256)] | None = None
    """A key of Mistral's prompt cache, for requests with a common beginning."""
    service_tier: Literal["auto", "standard_only"] | None = None
    """Whether Mistral may use priority capacity."""
    safe_prompt: bool | None = None
    """Whether Mistral adds its safety prompt before the conversation."""

    # The service's own.
    request_id: RequestId | None = Field(None, alias="id")
    """The caller's own id of the request; None gets a new UUID."""
    job_id: JobId | None = Field(None, alias="jobId")
    """The id of the new job; None gets one from the service. An id that is taken is refused."""
    previous_job_id: JobId | None = Field(None, alias="previousJobId")
    """The id of a job that has ended: its messages and its answer precede ``messages``, and are stored with them. A
    system message at the beginning of ``messages`` takes the place of the one before. No other field is taken over."""
    fallback_models: Annotated[Many[ModelName], Field(max_length=MAX_FALLBACK_MODELS)] = Field(
        (), alias="fallbackModels"
    )
    """The models that take over, in this order, where ``model`` does not exist, is down, or fails or refuses calls for
    their rate for longer than ``limits.fallbackSeconds``. The next one continues the same answer, as after any other
    interruption; with tools, and for JSON, it starts over. Each model keeps to its own rate limits."""
    callback: HttpUrl | None = None
    """Short for ``webhook.url``, with all events."""
    webhook: Webhook | None = None
    metadata: Metadata = Field({})
    on_interrupt: Literal["continue", "restart", "fail"] = Field("continue", alias="onInterrupt")
    max_segments: Annotated[int, Field(ge=1, le=100)] = Field(1, alias="maxSegments")
    """Most calls that one answer may take because each stopped at ``max_tokens``."""
    limits: Limits = Limits()
    retry: Retry = Retry()
    priority: Annotated[int, Field(ge=1, le=5)] = USUAL_PRIORITY
    """1 goes first. Within one priority, tenants take turns."""
    extra: JsonObject = Field({})
    """Further parameters for the model's server, forwarded as they are: those that this version does not know. At most
    ``MAX_EXTRA``, and ``MAX_EXTRA_BYTES`` together; none may have the name of another field."""
    start_at: WrittenTime | None = Field(None, alias="startAt")
    """The model is not called before this time, at most 90 days ahead; a past time is at once. Until then the job is
    ``queued``, and ``limits.queueSeconds`` counts from then. A replay does not repeat it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.callback and self.webhook and self.callback != self.webhook.url:
            raise ValueError("callback and webhook.url differ; give one of them")
        last = self.messages[-1]
        if isinstance(last, AssistantMessage) and not last.prefix:
            raise ValueError("the last message is the assistant's; set prefix to true to let the model go on from it")
        names = [tool.function.name for tool in self.tools or () if isinstance(tool, FunctionTool)]
        if len(names) != len(set(names)):
            raise ValueError("two tools have the same name")
        if len({self.model, *self.fallback_models}) <= len(self.fallback_models):
            raise ValueError("model and fallbackModels name a model twice; name each once")
        return self

    @field_validator("extra")
    @classmethod
    def _unknown_parameters(cls, extra: JsonObject) -> JsonObject:
        if len(extra) > MAX_EXTRA:
            raise ValueError(f"may have {MAX_EXTRA} parameters")
        fields = cls.model_fields
        known = sorted(extra.keys() & {*fields, *(field.alias for field in fields.values() if field.alias)})
        if known:
            raise ValueError(f"{known[0]} is a field of the request; give it there")
        if any(not EXTRA_NAME.fullmatch(name) for name in extra):
            raise ValueError("a parameter's name has 1 to 64 letters, digits, dots, hyphens and underscores")
        if len(canonical_json(extra)) > MAX_EXTRA_BYTES:
            raise ValueError(f"may have {MAX_EXTRA_BYTES} bytes; shorten it")
        return extra

    @model_validator(mode="after")
    def _bounded_text(self) -> Self:
        texts = [message_text(message) for message in self.messages]
        if sum(map(len, texts)) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"the messages may have {MAX_TEXT_CHARACTERS} characters together")
        for message, text in zip(self.messages, texts, strict=True):
            if text.strip() or not isinstance(message, (SystemMessage, UserMessage)):
                continue
            if isinstance(message.content, str) or all(isinstance(part, TextPart) for part in message.content):
                raise ValueError(f"the content of a {message.role} message is blank")
        return self

    @classmethod
    def parse(cls, body: Any) -> Self:
        """The request in a decoded JSON body. Raises InvalidRequest, which repeats no value of it."""
        return parse(cls, body)

    def target(self) -> Webhook | None:
        """The webhook to notify, from ``webhook`` or ``callback``; None if there is neither."""
        return self.webhook or (Webhook(url=self.callback) if self.callback else None)


OURS = frozenset(
    {"request_id", "job_id", "callback", "webhook", "metadata", "on_interrupt", "max_segments", "limits", "stream"}
    | {"previous_job_id", "priority", "retry", "start_at", "extra", "fallback_models"}
)
"""The fields of ChatRequest that are the service's own, or not forwarded to Mistral."""
