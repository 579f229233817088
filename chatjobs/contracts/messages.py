"""A conversation: messages, the parts of their content, and calls of tools.

Names and meanings are Mistral's. Source: Mistral's API reference, POST /v1/chat/completions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from chatjobs.contracts.base import JsonObject, Many, StrictModel

MAX_MESSAGES = 1_000
"""Most messages of one request."""

# -------------------------------------------------------------------------------------- parts of content


class TextPart(StrictModel):
    """A piece of text."""

    type: Literal["text"] = "text"
    text: str


class ImageUrl(StrictModel):
    """The URL of an image, and the detail in which the model reads it."""

    url: str
    """An http or https URL, or a ``data:`` URL with base64."""
    detail: str | None = None
    """``low``, ``auto`` or ``high``."""


class ImageUrlPart(StrictModel):
    """An image by URL or as a ``data:`` URL with base64."""

    type: Literal["image_url"] = "image_url"
    image_url: str | ImageUrl


class DocumentUrlPart(StrictModel):
    """A document by URL, such as a PDF."""

    type: Literal["document_url"] = "document_url"
    document_url: str
    document_name: str | None = None
    """The document's file name."""


class ReferencePart(StrictModel):
    """A citation of sources that an earlier message gave."""

    type: Literal["reference"] = "reference"
    reference_ids: Many[int | str]


class FilePart(StrictModel):
    """A file that was uploaded to Mistral."""

    type: Literal["file"] = "file"
    file_id: str
    """Mistral's id of the file."""


class AudioPart(StrictModel):
    """Audio as base64 or by URL."""

    type: Literal["input_audio"] = "input_audio"
    input_audio: str


_DISTINCTIVE_FIELDS = {"reference_ids": "reference", "tool": "tool_reference", "image_url": "image_url"}
"""Fields that only one type of inner part has, and that type."""


def _inner_type(part: Any) -> str:
    """The type of a part within a part. Where it is left out, a field that only one type has stands for it."""
    if not isinstance(part, dict):
        return str(getattr(part, "type", ""))
    given = part.get("type")
    if given is None:
        return next((name for field, name in _DISTINCTIVE_FIELDS.items() if field in part), "text")
    return given if isinstance(given, str) else ""


class ResourcePart(StrictModel):
    """The content of a resource, such as one that a connector returned."""

    type: Literal["resource"] = "resource"
    uri: str
    content: Annotated[
        Annotated[TextPart, Tag("text")] | Annotated[ImageUrlPart, Tag("image_url")], Discriminator(_inner_type)
    ]


class ResourceLinkPart(StrictModel):
    """A link to a resource, without its content."""

    type: Literal["resource_link"] = "resource_link"
    uri: str
    metadata: JsonObject | None = None


class ToolReferencePart(StrictModel):
    """A source that a tool found, such as a result of a web search."""

    type: Literal["tool_reference"] = "tool_reference"
    tool: str
    """The name of the tool."""
    title: str
    url: str | None = None
    favicon: str | None = None
    """The URL of the source's icon."""
    description: str | None = None


class ThinkingPart(StrictModel):
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
    """Mistral's signature of the reasoning, given back as it came."""
    closed: bool | None = None
    """Whether the reasoning is complete; only used in a prefix."""


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
"""One part of a message's content; ``type`` says which."""
Content = str | Many[ContentPart]
"""The content of a message: a text, or parts."""

# ----------------------------------------------------------------------------------------- calls of tools


class FunctionCall(StrictModel):
    """The function that the model calls, and with what arguments."""

    name: str
    arguments: str | JsonObject
    """JSON as text, as the model wrote it, or an object."""


class ToolCall(StrictModel):
    """One call of a tool by the model; streamed pieces are merged by ``index``."""

    id: str = "null"
    """The id that the tool's answer gives as ``tool_call_id``."""
    type: str = "function"
    function: FunctionCall
    index: int = 0
    """The number of the call within the answer, from 0."""


# ----------------------------------------------------------------------------------------------- messages


class SystemMessage(StrictModel):
    """Instructions to the model."""

    role: Literal["system"] = "system"
    content: Content


class UserMessage(StrictModel):
    """A message of the user."""

    role: Literal["user"] = "user"
    content: Content


class AssistantMessage(StrictModel):
    """A message of the model. ``prefix=True`` on the last message makes the model go on from its text."""

    role: Literal["assistant"] = "assistant"
    content: Content | None = None
    tool_calls: Many[ToolCall] | None = None
    prefix: bool = False


class ToolMessage(StrictModel):
    """The answer of a tool that the model called."""

    role: Literal["tool"] = "tool"
    content: Content | None = None
    tool_call_id: str | None = None
    """The ``id`` of the call that this answers."""
    name: str | None = None
    """The name of the function that was called."""


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
"""One message of a conversation; ``role`` says which."""


def message_text(message: SystemMessage | UserMessage | AssistantMessage | ToolMessage) -> str:
    """The text of a message, its text parts joined; empty if it has none."""
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content if isinstance(part, TextPart))


def too_many_messages(count: int) -> str:
    """Why a request with ``count`` messages, more than ``MAX_MESSAGES``, is refused."""
    return f"must have at most {MAX_MESSAGES} messages, and has {count}; leave out or summarise the oldest"
