"""A chat job as a caller asks for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

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
MAX_TEXT_CHARACTERS = 2_000_000
MAX_SCHEMA_BYTES = 64 * 1024


class Function(StrictModel):
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    parameters: JsonObject
    description: str | None = None
    strict: bool | None = None


class FunctionTool(StrictModel):
    type: Literal["function"] = "function"
    function: Function


class HostedTool(StrictModel):
    """A tool that runs at Mistral: image generation, document library, connector."""

    model_config = ConfigDict(extra="allow")
    type: Literal["image_generation", "document_library", "connector", "web_search", "code_interpreter"]


Tool = Annotated[FunctionTool | HostedTool, Field(discriminator="type")]


class FunctionName(StrictModel):
    name: str


class ToolChoice(StrictModel):
    type: Literal["function"] = "function"
    function: FunctionName


class JsonSchema(StrictModel):
    name: str
    schema_definition: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(StrictModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _bounded_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing; give the schema that the answer shall have")
        if self.json_schema and len(canonical_json(self.json_schema.schema_definition)) > MAX_SCHEMA_BYTES:
            raise ValueError(f"the schema may have {MAX_SCHEMA_BYTES} bytes; shorten it")
        return self


class Prediction(StrictModel):
    type: Literal["content"] = "content"
    content: str = ""


class Webhook(WireModel):
    """Where the outcome is delivered, and which outcomes."""

    url: HttpUrl
    events: Many[WebhookEventType] = tuple(WebhookEventType)


class Limits(WireModel):
    """Separate clocks of one job, in seconds, and bounds on what its attempts may cost.

    ``stallSeconds`` is the longest silence within an answer: its default ends a call of a dead server, not of a slow
    one. ``maxLost``: how many times in a row a worker may die with this job without bringing a new character; then
    the job fails with ``worker_lost`` and keeps its text.
    ``maxTotalTokens`` counts prompts and answers of every call, estimated where Mistral did not say. Once it is reached
    the job fails with ``max_total_tokens`` and keeps its text; the model is never asked for more than is left.
    """

    queue_seconds: Seconds = 3_600
    first_token_seconds: Seconds = 60
    stall_seconds: Seconds = 120
    total_seconds: Seconds = 3_600
    max_total_tokens: Annotated[int, Field(gt=0, lt=2**53)] | None = None
    max_lost: Annotated[int, Field(ge=1, le=1_000)] = 5


class Backoff(WireModel):
    """The pause after a failure, in milliseconds: ``fixed`` is always ``delay``, ``exponential`` doubles it each time.

    Up to a fifth is added, so that jobs that failed together do not come back together. ``exponential`` grows to 30 s,
    or to ``delay`` where that is longer. What the server asks for with ``Retry-After`` is waited for in any case.
    """

    type: Literal["exponential", "fixed"] = "exponential"
    delay: Milliseconds = 500


class Retry(WireModel):
    """How often a job's call may fail. Only real failures count: no 429, no deploy, no worker that died.

    ``attempts`` is the number of calls that may fail at the same place of the answer. An interruption that brought new
    text is at a new place and counts from one again, up to ten times as many failures in all.
    """

    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    backoff: Backoff = Backoff()


class ChatRequest(StrictModel):
    """One chat job as a caller asks for it: Mistral's chat-completion parameters under their own names, and ours.

    Only ``messages`` is required. ``stream`` is accepted and ignored: a job always streams. ``metadata`` is ours and is
    not forwarded. ``onInterrupt`` says what becomes of an answer whose attempt ended in the middle: it goes on from its
    last character, starts over (a ``reset`` for readers), or the job fails with ``interrupted`` and keeps its text;
    what cannot go on (tools, another response format, an unfinished thought, blank text) starts over. With
    ``maxSegments`` > 1 an answer that stopped at ``max_tokens`` goes on in another call, up to so many; ``max_tokens``
    is the limit of each segment, so that the whole may have ``max_tokens`` × ``maxSegments``.
    Source of the parameters: Mistral's API reference, POST /v1/chat/completions.
    """

    messages: Annotated[Many[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: ModelName = DEFAULT_MODEL
    # Mistral's parameters, under Mistral's names.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    max_tokens: TokenCount | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stream: bool | None = None
    stop: StopSequence | Annotated[Many[StopSequence], Field(max_length=16)] | None = None
    random_seed: SignedInt64 | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[Many[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "any", "required"] | ToolChoice | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=128)] | None = None
    prompt_logprobs: bool | None = None
    top_prompt_logprobs: Annotated[int, Field(ge=0, le=128)] | None = None
    n: Literal[1] | None = None
    prediction: Prediction | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, StringConstraints(max_length=32)] | None = None
    prompt_mode: Literal["reasoning"] | None = None
    guardrails: Annotated[Many[JsonObject], Field(max_length=16)] | None = None
    prompt_cache_key: Annotated[str, StringConstraints(max_length=256)] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    safe_prompt: bool | None = None
    # Ours.
    request_id: RequestId | None = Field(None, alias="id")
    job_id: JobId | None = Field(None, alias="jobId")
    callback: HttpUrl | None = None
    webhook: Webhook | None = None
    metadata: Metadata = Field({})
    on_interrupt: Literal["continue", "restart", "fail"] = Field("continue", alias="onInterrupt")
    max_segments: Annotated[int, Field(ge=1, le=100)] = Field(1, alias="maxSegments")
    limits: Limits = Limits()
    retry: Retry = Retry()
    priority: Annotated[int, Field(ge=1, le=5)] = USUAL_PRIORITY
    """1 goes first. Within one priority, tenants take turns."""

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
        return self

    @model_validator(mode="after")
    def _bounded_text(self) -> Self:
        texts = [message_text(message) for message in self.messages]
        if sum(map(len, texts)) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"the messages may have {MAX_TEXT_CHARACTERS} characters together")
        for message, text in zip(self.messages, texts, strict=True):
            if isinstance(message, (SystemMessage, UserMessage)) and not text.strip() and not _has_parts(message):
                raise ValueError(f"the content of a {message.role} message is blank")
        return self

    @classmethod
    def parse(cls, body: Any) -> Self:
        """The request in a decoded JSON body. Raises InvalidRequest, which names the places and echoes nothing."""
        return parse(cls, body)

    def target(self) -> Webhook | None:
        """The webhook to notify, whichever way it was given."""
        return self.webhook or (Webhook(url=self.callback) if self.callback else None)


def _has_parts(message: SystemMessage | UserMessage) -> bool:
    return not isinstance(message.content, str) and any(not isinstance(p, TextPart) for p in message.content)


OURS = frozenset(
    {"request_id", "job_id", "callback", "webhook", "metadata", "on_interrupt", "max_segments", "limits", "stream"}
    | {"priority", "retry"}
)
"""The fields of ChatRequest that are not Mistral's, or not forwarded."""
