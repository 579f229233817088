"""Everything that crosses a boundary: requests, results, events, statuses.

Frozen pydantic models with the names that stand on the wire. Our own fields are camelCase there; Mistral's
objects (messages, tools, usage, sampling parameters) keep Mistral's names. Models are strict: ``"5"`` is not
an integer, an unknown field is an error. Times are aware and serialise as RFC 3339 in UTC.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    JsonValue,
    PlainSerializer,
    Strict,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticKnownError

from chatjobs.errors import InvalidRequest, Problem
from chatjobs.jcs import canonical
from chatjobs.validation import reason, unknown_field

DEFAULT_MODEL = "mistral-small-latest"
MAX_MESSAGES = 1_000
USUAL_PRIORITY = 3
MAX_TEXT_CHARACTERS = 2_000_000
MAX_SCHEMA_BYTES = 64 * 1024
MAX_PROBLEMS = 100
"""How many are told of one request, and how many unknown fields of one object are looked at: a body of 8 MiB may have a
million, and each takes time of the event loop."""
MAX_METADATA = 16
MAX_INLINE_RESULT_BYTES = 1024 * 1024
MAX_WEBHOOK_CONTENT_BYTES = 64 * 1024


class _FirstOnly(FailFast):
    """With a hash, which a member of a union needs before Python 3.14."""

    __hash__ = object.__hash__


T = TypeVar("T")
Many = Annotated[tuple[T, ...], Strict(False), _FirstOnly()]
"""A JSON array; a list given from Python is accepted and frozen into a tuple. Only its first wrong element is told: a
million wrong ones are refused as fast as one."""


def rfc3339(moment: datetime) -> str:
    """``2026-01-02T03:04:05.678901Z``: RFC 3339 in UTC, microseconds always present (so that it sorts as text)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Timestamp = Annotated[AwareDatetime, Strict(False), PlainSerializer(rfc3339, when_used="json")]
JsonObject = dict[str, JsonValue]


class _Wire(BaseModel):
    """A value with Mistral's names."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        hide_input_in_errors=True,  # a validation error may end up in a log; it must not carry the prompt
    )


class WireModel(_Wire):
    """A value of our own: snake_case in Python, camelCase on the wire."""

    model_config = ConfigDict(alias_generator=to_camel)


# ---------------------------------------------------------------------------------------------- statuses


class JobStatus(StrEnum):
    """Where a job stands, the same word on every interface."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"
    """The model stopped at a length limit: the text is kept and the job is not a failure."""

    @property
    def terminal(self) -> bool:
        return self not in (JobStatus.QUEUED, JobStatus.IN_PROGRESS)


class Channel(StrEnum):
    """Which of the two texts of an answer a piece belongs to."""

    CONTENT = "content"
    REASONING = "reasoning"


class WebhookEventType(StrEnum):
    COMPLETED = "chat.completed"
    FAILED = "chat.failed"
    CANCELLED = "chat.cancelled"
    INCOMPLETE = "chat.incomplete"

    @classmethod
    def of(cls, status: JobStatus) -> WebhookEventType:
        """The event that announces a terminal status."""
        return cls(f"chat.{status.value}")


class WebhookTestEvent(StrEnum):
    """What is sent to see whether a receiver hears it. Nobody subscribes to it."""

    TEST = "webhook.test"


# ---------------------------------------------------------------------------------------------- messages


class TextPart(_Wire):
    type: Literal["text"] = "text"
    text: str


class ImageUrl(_Wire):
    url: str
    detail: str | None = None


class ImageUrlPart(_Wire):
    """An image by URL or as a ``data:`` URL with base64."""

    type: Literal["image_url"] = "image_url"
    image_url: str | ImageUrl


class DocumentUrlPart(_Wire):
    type: Literal["document_url"] = "document_url"
    document_url: str
    document_name: str | None = None


class ReferencePart(_Wire):
    type: Literal["reference"] = "reference"
    reference_ids: Many[int | str]


class FilePart(_Wire):
    type: Literal["file"] = "file"
    file_id: str


class AudioPart(_Wire):
    """Audio as base64 or by URL."""

    type: Literal["input_audio"] = "input_audio"
    input_audio: str


_TELLING = {"reference_ids": "reference", "tool": "tool_reference", "image_url": "image_url"}


def _inner_type(part: Any) -> str:
    """The type of a part within a part, where it may be left out: then it is told by a field that only it has."""
    if not isinstance(part, dict):
        return str(getattr(part, "type", ""))
    given = part.get("type")
    if given is None:
        return next((name for field, name in _TELLING.items() if field in part), "text")
    return given if isinstance(given, str) else ""


class ResourcePart(_Wire):
    type: Literal["resource"] = "resource"
    uri: str
    content: Annotated[
        Annotated[TextPart, Tag("text")] | Annotated[ImageUrlPart, Tag("image_url")], Discriminator(_inner_type)
    ]


class ResourceLinkPart(_Wire):
    type: Literal["resource_link"] = "resource_link"
    uri: str
    metadata: JsonObject | None = None


class ToolReferencePart(_Wire):
    type: Literal["tool_reference"] = "tool_reference"
    tool: str
    title: str
    url: str | None = None
    favicon: str | None = None
    description: str | None = None


class ThinkingPart(_Wire):
    """Reasoning from an earlier turn, given back to the model."""

    type: Literal["thinking"] = "thinking"
    thinking: Many[
        Annotated[
            Annotated[TextPart, Tag("text")]
            | Annotated[ReferencePart, Tag("reference")]
            | Annotated[ToolReferencePart, Tag("tool_reference")],
            Discriminator(_inner_type),
        ]
    ]
    signature: str | None = None
    closed: bool | None = None


ContentPart = Annotated[
    TextPart
    | ImageUrlPart
    | DocumentUrlPart
    | ReferencePart
    | FilePart
    | AudioPart
    | ResourcePart
    | ResourceLinkPart
    | ThinkingPart,
    Field(discriminator="type"),
]
Content = str | Many[ContentPart]


class FunctionCall(_Wire):
    name: str
    arguments: str | JsonObject


class ToolCall(_Wire):
    """One call of a tool by the model; streamed pieces are merged by ``index``."""

    id: str = "null"
    type: str = "function"
    function: FunctionCall
    index: int = 0


class SystemMessage(_Wire):
    role: Literal["system"] = "system"
    content: Content


class UserMessage(_Wire):
    role: Literal["user"] = "user"
    content: Content


class AssistantMessage(_Wire):
    """``prefix=True`` on the last message makes the model go on from its text."""

    role: Literal["assistant"] = "assistant"
    content: Content | None = None
    tool_calls: Many[ToolCall] | None = None
    prefix: bool = False


class ToolMessage(_Wire):
    role: Literal["tool"] = "tool"
    content: Content | None = None
    tool_call_id: str | None = None
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def message_text(message: SystemMessage | UserMessage | AssistantMessage | ToolMessage) -> str:
    """The text of a message, its text parts joined."""
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content if isinstance(part, TextPart))


# ----------------------------------------------------------------------------------------------- request


class Function(_Wire):
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    parameters: JsonObject
    description: str | None = None
    strict: bool | None = None


class FunctionTool(_Wire):
    type: Literal["function"] = "function"
    function: Function


class HostedTool(_Wire):
    """A tool that runs at Mistral: image generation, document library, connector."""

    model_config = ConfigDict(extra="allow")
    type: Literal["image_generation", "document_library", "connector", "web_search", "code_interpreter"]


Tool = Annotated[FunctionTool | HostedTool, Field(discriminator="type")]


class FunctionName(_Wire):
    name: str


class ToolChoice(_Wire):
    type: Literal["function"] = "function"
    function: FunctionName


class JsonSchema(_Wire):
    name: str
    schema_definition: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Wire):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _bounded_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing; give the schema that the answer shall have")
        if self.json_schema and len(canonical_json(self.json_schema.schema_definition)) > MAX_SCHEMA_BYTES:
            raise ValueError(f"the schema may have {MAX_SCHEMA_BYTES} bytes; shorten it")
        return self


class Prediction(_Wire):
    type: Literal["content"] = "content"
    content: str = ""


def _http_url(url: str) -> str:
    """Only the shape; whether the address may be called is decided by the sender, at connect time."""
    if not re.fullmatch(r"(?i)https?://[!-~]+", url):
        raise ValueError("must be an absolute http or https URL in ASCII, without spaces")
    return url


class Webhook(WireModel):
    """Where the outcome is delivered, and which outcomes."""

    url: Annotated[str, StringConstraints(max_length=2_048), AfterValidator(_http_url)]
    events: Many[WebhookEventType] = tuple(WebhookEventType)


Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]
Milliseconds = Annotated[int, Field(ge=0, le=3_600_000)]


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


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


def _few(value: Any) -> Any:
    """Refused by its length before its values are looked at, which pydantic would do first."""
    if isinstance(value, dict) and len(value) > MAX_METADATA:
        limits = {"field_type": "Dictionary", "max_length": MAX_METADATA, "actual_length": len(value)}
        raise PydanticKnownError("too_long", limits)
    return value


Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA), BeforeValidator(_few)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
RequestId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
StopSequence = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenCount = Annotated[int, Field(ge=1, lt=2**31)]
SignedInt64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class ChatRequest(_Wire):
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
    callback: Annotated[str, StringConstraints(max_length=2_048), AfterValidator(_http_url)] | None = None
    webhook: Webhook | None = None
    metadata: Metadata = {}
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


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], body: Any) -> M:
    """A value of ``model`` from decoded JSON; null in an optional field is as if it were absent.

    Raises InvalidRequest.
    """
    body = without_nulls(model, body)
    try:
        return model.model_validate_json(canonical_json(body))
    except ValidationError as error:
        raise InvalidRequest(_problems(error, body, model)) from None
    except (TypeError, ValueError) as error:  # not JSON: NaN, Infinity, lone surrogates
        raise InvalidRequest([Problem("", str(error).split(":")[0])]) from None


def without_nulls(annotation: Any, value: Any) -> Any:
    """Decoded JSON without the nulls that stand in optional fields of ``annotation``'s models.

    JSON objects that are not ours (schemas, parameters of tools) stay as they are.
    """
    if isinstance(value, dict):
        model = _model_of(annotation, value)
        return value if model is None else _without_nulls(model, value)
    if isinstance(value, list):
        elements = _elements_of(annotation)
        return value if elements is None else [without_nulls(elements, one) for one in value]
    return value


def _without_nulls(model: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    """Without most of its unknown fields, too, where there are many: those that are left are refused."""
    fields = _fields_of(model)
    most = MAX_PROBLEMS if model.model_config.get("extra") == "forbid" else None
    unknown = set(islice((name for name in value if name not in fields), most))
    return {
        name: without_nulls(fields[name].annotation, inner) if name in fields else inner
        for name, inner in value.items()
        if (inner is not None or fields[name].is_required() if name in fields else name in unknown)
    }


@cache
def _fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """By both of their names, that in Python and that on the wire."""
    return {name: field for key, field in model.model_fields.items() for name in (key, field.alias or key)}


TAGS = ("role", "type")
"""What the members of unions are told apart by."""


def _model_of(annotation: Any, value: dict[str, Any]) -> type[BaseModel] | None:
    """The model that an object is meant to be: the only one there is, or that with its role or type."""
    models = _kinds_of(annotation).models
    if len(models) > 1 and any(value.get(name) is not None for name in TAGS):
        models = [one for one in models if _has_tag_of(one, value)]
    return models[0] if models else None


def _has_tag_of(model: type[BaseModel], value: dict[str, Any]) -> bool:
    return any(isinstance(tag := value.get(name), str) and tag in known for name, known in _tags_of(model))


@cache
def _tags_of(model: type[BaseModel]) -> list[tuple[str, tuple[Any, ...]]]:
    fields = model.model_fields
    return [(name, get_args(fields[name].annotation)) for name in TAGS if name in fields]


def _elements_of(annotation: Any) -> Any:
    """What the elements of an array are; None where it may not be one, or one of anything."""
    return _kinds_of(annotation).elements


class _Kinds(NamedTuple):
    """What an annotation lets an object and the elements of an array be."""

    annotation: Any
    models: list[type[BaseModel]]
    elements: Any


_KINDS: dict[int, _Kinds] = {}
"""By the annotation's ``id``, since not every annotation has a hash; each is a part of a model here, and stays."""


def _kinds_of(annotation: Any) -> _Kinds:
    if (known := _KINDS.get(id(annotation))) and known.annotation is annotation:
        return known
    members = _members(annotation)
    arrays = [get_args(one)[0] for one in members if get_origin(one) is tuple]
    models = [one for one in members if isinstance(one, type) and issubclass(one, BaseModel)]
    found = _KINDS[id(annotation)] = _Kinds(annotation, models, arrays[0] if arrays else None)
    return found


def _members(annotation: Any) -> list[Any]:
    """The members of a union, however it is nested and annotated."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]


def read_json(model: type[M], document: str | bytes) -> M:
    """A value of ``model`` as another version of the service wrote it: fields unknown here are dropped.

    Raises ValueError, which echoes nothing.
    """
    try:
        return model.model_validate_json(document)
    except ValidationError:
        # A second pass, since this setting also drops what is kept on purpose (further usage counters).
        return model.model_validate_json(document, extra="ignore")


def _problems(error: ValidationError, body: Any, model: type[BaseModel]) -> list[Problem]:
    """Where and why, as JSON pointers (RFC 6901), without the input; only the most precise of nested places."""
    found = [(*_place(item, body), item) for item in error.errors(include_url=False)]
    outer = {place[:cut] for place, _, _ in found for cut, letter in enumerate(place) if letter == "/"}
    told = [(place, why, item) for place, why, item in found if place not in outer][:MAX_PROBLEMS]
    return [Problem(place, why or _why(item, model)) for place, why, item in told]


def _place(item: ErrorDetails, body: Any) -> tuple[str, str | None]:
    """Where it is, and why, where the words for all do not fit."""
    pointer = _pointer(item["loc"], body, absent=item["type"] == "missing")
    match item["type"]:
        case "union_tag_invalid":
            return f"{pointer}/{_tag_name(item)}", None
        case "union_tag_not_found":
            return f"{pointer}/{_tag_name(item)}", "is missing"
        case "too_long" if pointer == "/messages" and isinstance(body, dict):
            return pointer, too_many_messages(len(body["messages"]))
        case _:
            return pointer, None


def _tag_name(item: ErrorDetails) -> str:
    """The field that pydantic calls ``'role'``. A function in its place finds the ``type``."""
    discriminator = str(item["ctx"]["discriminator"])
    return discriminator.strip("'") if discriminator.startswith("'") else "type"


def too_many_messages(count: int) -> str:
    return f"must have at most {MAX_MESSAGES} messages, and has {count}; leave out or summarise the oldest"


def _why(item: ErrorDetails, model: type[BaseModel]) -> str:
    return unknown_field(model, item["loc"]) if item["type"] == "extra_forbidden" else reason(item)


def _pointer(path: tuple[int | str, ...], body: Any, *, absent: bool) -> str:
    """A pydantic location without the names of union members, which are not in the document.

    ``absent``: its last step is a field that is missing, which is not there either, but belongs to the pointer.
    """
    steps: list[str] = []
    here = body
    for number, step in enumerate(path, 1):
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and isinstance(step, int):
            here = here[step] if step < len(here) else None
        elif number < len(path) or not absent:
            continue
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{step}" for step in steps)


def _has_parts(message: SystemMessage | UserMessage) -> bool:
    return not isinstance(message.content, str) and any(not isinstance(p, TextPart) for p in message.content)


OURS = frozenset(
    {"request_id", "job_id", "callback", "webhook", "metadata", "on_interrupt", "max_segments", "limits", "stream"}
    | {"priority", "retry"}
)
"""The fields of ChatRequest that are not Mistral's, or not forwarded."""


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, as UTF-8; numbers as Python writes them.

    Raises ValueError for NaN, Infinity and lone surrogates, which JSON (RFC 8259) does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def fingerprint(body: Any) -> str:
    """SHA-256 (hex) over the canonical JSON (RFC 8785) of a request as it was received, before defaults.

    Raises ValueError for what is not JSON.
    """
    return hashlib.sha256(canonical(body)).hexdigest()


def earlier_fingerprint(body: Any) -> str:
    """The fingerprint as it was before numbers were canonical. Stored jobs have it; new ones do not get it."""
    return hashlib.sha256(canonical_json(body)).hexdigest()


# ----------------------------------------------------------------------------------------------- results


class Usage(_Wire):
    """Tokens as Mistral counts them; further counters are kept as they came."""

    model_config = ConfigDict(extra="allow", strict=False)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ErrorCause(WireModel):
    """What went wrong last before a limit ended the job. ``code`` and ``message`` are as in ``JobError``."""

    code: str
    message: str


class JobError(WireModel):
    """Why a job failed. ``code`` is stable; ``message`` is for people, at most 500 characters, without secrets.

    ``cause`` is there where a limit of the job ended it: ``code`` names the limit, ``cause`` what had kept the job from
    ending in time. It is left out where ``code`` says it all.
    """

    code: str
    message: str
    retryable: bool = False
    cause: ErrorCause | None = Field(None, exclude_if=lambda cause: cause is None)


class PlacedPart(WireModel):
    """A piece of an answer that is not text (a reference, an image) and the position where it stood."""

    position: int
    part: JsonObject


class Attempt(WireModel):
    """One HTTP call to Mistral on behalf of a job."""

    number: int
    started_at: Timestamp
    ended_at: Timestamp | None = None
    outcome: str | None = None
    http_status: int | None = None
    usage: Usage | None = None
    estimated: bool = False
    first_token_ms: int | None = None
    tokens_per_second: float | None = None


class DeliveryTry(WireModel):
    """One POST of a delivery. ``response`` holds the first kilobyte of the answer."""

    number: int
    started_at: Timestamp
    status_code: int | None = None
    latency_ms: int
    error: str | None = None
    response: str | None = None


class Delivery(WireModel):
    """The promise to hand one event to one URL. ``id`` is the ``webhook-id`` header of every try."""

    id: str
    event: WebhookEventType
    url: str
    status: Literal["pending", "delivered", "failed"]
    created_at: Timestamp
    next_try_at: Timestamp | None = None
    delivered_at: Timestamp | None = None
    tries: Many[DeliveryTry] = ()


EndpointStatus = Literal["ok", "failing", "disabled"]


class Endpoint(WireModel):
    """How deliveries to one URL fare. ``failures`` and ``successes`` count tries.

    A URL that fails for five days without one success, or answers 410, is disabled: ``disabledReason`` is ``failing``
    or ``gone``. Deliveries to it fail at once, with ``endpoint_disabled``, until it is enabled by hand.
    """

    url: str
    status: EndpointStatus
    failing_since: Timestamp | None = None
    failures: int
    successes: int
    last_success_at: Timestamp | None = None
    last_failure_at: Timestamp | None = None
    last_error: str | None = None
    disabled_at: Timestamp | None = None
    disabled_reason: str | None = None


class EndpointList(WireModel):
    """The disabled ones first, then those that fail."""

    endpoints: Many[Endpoint]


class Redelivery(WireModel):
    """Which deliveries to make again: those of events ``since`` a time and before another one."""

    since: Timestamp
    until: Timestamp | None = None
    """None is now."""
    status: Literal["pending", "delivered", "failed"] = "failed"
    url: Annotated[str, StringConstraints(max_length=2_048)] | None = None


class Redelivering(WireModel):
    """How many deliveries are made again. ``more``: there are others; ask again."""

    count: int
    more: bool = False


class WebhookTest(WireModel):
    """What came of a test call: a status, or an error in its place.

    ``advice`` tells what a receiver has to know of the secret, where libraries read it in another way.
    """

    delivered: bool
    status_code: int | None = None
    latency_ms: int
    error: str | None = None
    advice: str | None = Field(None, exclude_if=lambda advice: advice is None)


QueueReason = Literal["rate_limit", "paused", "model_down"]


class QueuePlace(WireModel):
    """Where a job stands that waits to call the model; ``position`` 1 is next.

    ``reason``: the model's rate limit, a pause that the model asked for, or a model that fails every call.
    """

    position: int
    expected_start_at: Timestamp
    reason: QueueReason = "rate_limit"


class ChatResult(WireModel):
    """A job as GET shows it, without attempts and deliveries: the result of a job started with its request inline.

    ``content`` is partial while the job runs and after it failed or was cancelled. ``sha256`` is over the UTF-8
    bytes of ``content``. ``contentParts`` and ``contentOmitted`` are left out where they say nothing.
    """

    job_id: str
    request_id: str
    status: JobStatus
    model: str
    created_at: Timestamp
    started_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: Many[ToolCall] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    usage_estimated: bool = False
    error: JobError | None = None
    epoch: int = 1
    position: int = 0
    sha256: str | None = None
    metadata: dict[str, str] = {}
    replay_of: str | None = None
    batch_id: str | None = None
    temporal_url: str | None = None
    deleted_at: Timestamp | None = Field(None, exclude_if=lambda time: time is None)
    """Its request, its texts and its deliveries were deleted then."""
    content_parts: Many[PlacedPart] | None = Field(None, exclude_if=lambda parts: parts is None)
    content_omitted: bool = Field(False, exclude_if=lambda omitted: not omitted)
    """The result is over 1 MiB and was left out of Temporal: read ``statusUrl``."""
    status_url: str | None = Field(None, exclude_if=lambda url: url is None)


class Job(ChatResult):
    """A job as ``GET /api/jobs/{jobId}`` shows it."""

    attempts: Many[Attempt] = ()
    deliveries: Many[Delivery] = ()
    replays: Many[str] = ()
    """The jobs that replay this one, oldest first."""
    queue: QueuePlace | None = Field(None, exclude_if=lambda place: place is None)
    """While the job waits for the model's rate limit."""


class JobAccepted(WireModel):
    """What the caller of a new job gets: where everything about it is."""

    job_id: str
    request_id: str
    status: JobStatus
    status_url: str
    events_url: str
    cancel_url: str
    temporal_url: str
    replay_of: str | None = None


class JobPage(WireModel):
    """Jobs without their texts, newest first; ``nextCursor`` is None on the last page."""

    jobs: Many[Job]
    next_cursor: str | None = None


class JobOutcome(WireModel):
    """The result of a job whose request is in storage: nothing private crosses Temporal."""

    job_id: str
    status: JobStatus
    position: int
    sha256: str


class JobStart(WireModel):
    """The argument of the workflow type ``ChatJob``: the id of a stored job, or a request inline."""

    job_id: JobId | None = None
    request: JsonObject | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.job_id is None) == (self.request is None):
            raise ValueError('give {"request": {…}} or {"jobId": "…"}, one of them')
        return self


class WorkflowStatus(WireModel):
    """The answer of ChatJob's query ``status``."""

    job_id: str
    status: JobStatus
    step: Literal["accepting", "completing", "storing", "notifying", "done"]


# ------------------------------------------------------------------------------------------------ events


class StartEvent(WireModel):
    type: Literal["start"] = Field("start", exclude=True)
    job_id: str
    request_id: str
    model: str
    attempt: int
    timestamp: Timestamp


class ChunkEvent(WireModel):
    """``index`` counts frames of this connection, ``tokenCount`` the deltas of the epoch so far, or its tokens where
    the model's server counts them as it goes."""

    type: Literal["chunk"] = Field("chunk", exclude=True)
    content: str
    channel: Channel
    index: int
    token_count: int


class ResetEvent(WireModel):
    """Drop the text so far: the answer starts over."""

    type: Literal["reset"] = Field("reset", exclude=True)
    attempt: int
    reason: str


class CompleteEvent(WireModel):
    """Terminal, also for incomplete jobs."""

    type: Literal["complete"] = Field("complete", exclude=True)
    status: Literal[JobStatus.COMPLETED, JobStatus.INCOMPLETE]
    total_tokens: int | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    tool_calls: Many[ToolCall] | None = None
    sha256: str


class QueuedEvent(WireModel):
    """The job waits to call the model. It has no id: it is news, not a part of the answer."""

    type: Literal["queued"] = Field("queued", exclude=True)
    position: int
    expected_start_at: Timestamp
    reason: QueueReason = "rate_limit"


class ErrorEvent(WireModel):
    type: Literal["error"] = Field("error", exclude=True)
    code: str
    message: str
    retryable: bool
    cause: ErrorCause | None = Field(None, exclude_if=lambda cause: cause is None)


class CancelledEvent(WireModel):
    type: Literal["cancelled"] = Field("cancelled", exclude=True)
    status: Literal[JobStatus.CANCELLED] = JobStatus.CANCELLED
    usage: Usage | None = None
    sha256: str


StreamEvent = QueuedEvent | StartEvent | ChunkEvent | ResetEvent | CompleteEvent | ErrorEvent | CancelledEvent


class WebhookData(WireModel):
    """What a receiver learns of a job. ``content`` is left out (``contentOmitted``) over 64 KiB."""

    job_id: str
    request_id: str
    status: JobStatus
    model: str
    content: str | None = Field(None, exclude_if=lambda content: content is None)
    tool_calls: Many[ToolCall] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    error: JobError | None = None
    completed_at: Timestamp
    sha256: str
    metadata: dict[str, str] = {}
    status_url: str
    content_omitted: bool = Field(False, exclude_if=lambda omitted: not omitted)


class WebhookEvent(WireModel):
    """The body of a webhook. ``webhook.test`` announces nothing: its data are an example."""

    event: WebhookEventType | WebhookTestEvent
    timestamp: Timestamp
    data: WebhookData
