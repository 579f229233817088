"""The values that cross a boundary: requests, results, events, webhooks. Read the modules in this order:

base          the base models; times, ids, names and other scalars
statuses      the status of a job, the channels of an answer, the events of webhooks
messages      messages, the parts of their content, calls of tools
request       ChatRequest: Mistral's parameters, limits, retries, webhook
results       Job: its text, usage, error, attempts and deliveries
events        the events of a job's stream
webhooks      the body of a webhook; endpoints, redelivery, the test call
workflow      the argument, the status and the result of the Temporal workflow ChatJob
parsing       decoded JSON to values of these models, or to a list of problems
nulls         null in an optional field is as if the field were absent
fingerprints  canonical JSON and its hash

Import names from here, not from the modules.
"""

from __future__ import annotations

from chatjobs.contracts.base import (
    JOB_ID,
    MAX_METADATA,
    HttpUrl,
    JobId,
    JsonObject,
    Many,
    Metadata,
    MetadataKey,
    MetadataValue,
    Milliseconds,
    ModelName,
    RequestId,
    Seconds,
    SignedInt64,
    StopSequence,
    Timestamp,
    TokenCount,
    WireModel,
    rfc3339,
)
from chatjobs.contracts.events import (
    CancelledEvent,
    ChunkEvent,
    CompleteEvent,
    ErrorEvent,
    QueuedEvent,
    ResetEvent,
    StartEvent,
    StreamEvent,
)
from chatjobs.contracts.fingerprints import canonical_json, earlier_fingerprint, fingerprint
from chatjobs.contracts.messages import (
    MAX_MESSAGES,
    AssistantMessage,
    AudioPart,
    Content,
    ContentPart,
    DocumentUrlPart,
    FilePart,
    FunctionCall,
    ImageUrl,
    ImageUrlPart,
    Message,
    ReferencePart,
    ResourceLinkPart,
    ResourcePart,
    SystemMessage,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolMessage,
    ToolReferencePart,
    UserMessage,
    message_text,
    too_many_messages,
)
from chatjobs.contracts.nulls import MAX_PROBLEMS, without_nulls
from chatjobs.contracts.parsing import checked_fingerprint, parse, read_json, validated
from chatjobs.contracts.request import (
    DEFAULT_MODEL,
    MAX_SCHEMA_BYTES,
    MAX_TEXT_CHARACTERS,
    OURS,
    USUAL_PRIORITY,
    Backoff,
    ChatRequest,
    Function,
    FunctionName,
    FunctionTool,
    HostedTool,
    JsonSchema,
    Limits,
    Prediction,
    ResponseFormat,
    Retry,
    Tool,
    ToolChoice,
    Webhook,
)
from chatjobs.contracts.results import (
    MAX_INLINE_RESULT_BYTES,
    Attempt,
    ChatResult,
    Delivery,
    DeliveryTry,
    ErrorCause,
    Job,
    JobAccepted,
    JobError,
    JobPage,
    PlacedPart,
    QueuePlace,
    QueueReason,
    Usage,
)
from chatjobs.contracts.statuses import Channel, JobStatus, WebhookEventType, WebhookTestEvent
from chatjobs.contracts.webhooks import (
    MAX_WEBHOOK_CONTENT_BYTES,
    Endpoint,
    EndpointList,
    EndpointStatus,
    Redelivering,
    Redelivery,
    WebhookData,
    WebhookEvent,
    WebhookTest,
)
from chatjobs.contracts.workflow import JobOutcome, JobStart, WorkflowStatus

__all__ = [  # noqa: RUF022 -- in reading order
    # base
    "MAX_METADATA",
    "Many",
    "rfc3339",
    "Timestamp",
    "JsonObject",
    "WireModel",
    "HttpUrl",
    "Seconds",
    "Milliseconds",
    "MetadataKey",
    "MetadataValue",
    "Metadata",
    "ModelName",
    "RequestId",
    "JOB_ID",
    "JobId",
    "StopSequence",
    "TokenCount",
    "SignedInt64",
    # statuses
    "JobStatus",
    "Channel",
    "WebhookEventType",
    "WebhookTestEvent",
    # messages
    "MAX_MESSAGES",
    "TextPart",
    "ImageUrl",
    "ImageUrlPart",
    "DocumentUrlPart",
    "ReferencePart",
    "FilePart",
    "AudioPart",
    "ResourcePart",
    "ResourceLinkPart",
    "ToolReferencePart",
    "ThinkingPart",
    "ContentPart",
    "Content",
    "FunctionCall",
    "ToolCall",
    "SystemMessage",
    "UserMessage",
    "AssistantMessage",
    "ToolMessage",
    "Message",
    "message_text",
    "too_many_messages",
    # request
    "DEFAULT_MODEL",
    "USUAL_PRIORITY",
    "MAX_TEXT_CHARACTERS",
    "MAX_SCHEMA_BYTES",
    "Function",
    "FunctionTool",
    "HostedTool",
    "Tool",
    "FunctionName",
    "ToolChoice",
    "JsonSchema",
    "ResponseFormat",
    "Prediction",
    "Webhook",
    "Limits",
    "Backoff",
    "Retry",
    "ChatRequest",
    "OURS",
    # results
    "MAX_INLINE_RESULT_BYTES",
    "Usage",
    "ErrorCause",
    "JobError",
    "PlacedPart",
    "Attempt",
    "DeliveryTry",
    "Delivery",
    "QueueReason",
    "QueuePlace",
    "ChatResult",
    "Job",
    "JobAccepted",
    "JobPage",
    # events
    "StartEvent",
    "ChunkEvent",
    "ResetEvent",
    "CompleteEvent",
    "QueuedEvent",
    "ErrorEvent",
    "CancelledEvent",
    "StreamEvent",
    # webhooks
    "MAX_WEBHOOK_CONTENT_BYTES",
    "WebhookData",
    "WebhookEvent",
    "EndpointStatus",
    "Endpoint",
    "EndpointList",
    "Redelivery",
    "Redelivering",
    "WebhookTest",
    # workflow
    "JobStart",
    "WorkflowStatus",
    "JobOutcome",
    # parsing
    "parse",
    "validated",
    "checked_fingerprint",
    "read_json",
    # nulls
    "MAX_PROBLEMS",
    "without_nulls",
    # fingerprints
    "canonical_json",
    "fingerprint",
    "earlier_fingerprint",
]
