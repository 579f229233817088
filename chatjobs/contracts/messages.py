"""A conversation: messages, the parts that their content is made of, and calls of tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from chatjobs.contracts.base import JsonObject, Many, StrictModel

MAX_MESSAGES = 1_000


class TextPart(StrictModel):
    type: Literal["text"] = "text"
    text: str


class ImageUrl(StrictModel):
    url: str
    detail: str | None = None


class ImageUrlPart(StrictModel):
    """An image by URL or as a ``data:`` URL with base64."""

    type: Literal["image_url"] = "image_url"
    image_url: str | ImageUrl


class DocumentUrlPart(StrictModel):
    type: Literal["document_url"] = "document_url"
    document_url: str
    document_name: str | None = None


class ReferencePart(StrictModel):
    type: Literal["reference"] = "reference"
    reference_ids: Many[int | str]


class FilePart(StrictModel):
    type: Literal["file"] = "file"
    file_id: str


class AudioPart(StrictModel):
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


class ResourcePart(StrictModel):
    type: Literal["resource"] = "resource"
    uri: str
    content: Annotated[
        Annotated[TextPart, Tag("text")] | Annotated[ImageUrlPart, Tag("image_url")], Discriminator(_inner_type)
    ]


class ResourceLinkPart(StrictModel):
    type: Literal["resource_link"] = "resource_link"
    uri: str
    metadata: JsonObject | None = None


class ToolReferencePart(StrictModel):
    type: Literal["tool_reference"] = "tool_reference"
    tool: str
    title: str
    url: str | None = None
    favicon: str | None = None
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


class FunctionCall(StrictModel):
    name: str
    arguments: str | JsonObject


class ToolCall(StrictModel):
    """One call of a tool by the model; streamed pieces are merged by ``index``."""

    id: str = "null"
    type: str = "function"
    function: FunctionCall
    index: int = 0


class SystemMessage(StrictModel):
    role: Literal["system"] = "system"
    content: Content


class UserMessage(StrictModel):
    role: Literal["user"] = "user"
    content: Content


class AssistantMessage(StrictModel):
    """``prefix=True`` on the last message makes the model go on from its text."""

    role: Literal["assistant"] = "assistant"
    content: Content | None = None
    tool_calls: Many[ToolCall] | None = None
    prefix: bool = False


class ToolMessage(StrictModel):
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


def too_many_messages(count: int) -> str:
    return f"must have at most {MAX_MESSAGES} messages, and has {count}; leave out or summarise the oldest"
