"""The input of a response: OpenAI's items as a conversation's messages, and messages as items.

Source: OpenAI's API reference, POST /v1/responses (``input``) and GET /v1/responses/{id}/input_items.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from chatjobs.contracts import (
    MAX_MESSAGES,
    AssistantMessage,
    Content,
    ContentPart,
    DocumentUrlPart,
    FilePart,
    ImageUrl,
    ImageUrlPart,
    JsonObject,
    Many,
    Message,
    TextPart,
    ThinkingPart,
    ToolMessage,
)
from chatjobs.contracts.base import StrictModel
from chatjobs.errors import InvalidRequest, Problem

JsonDict = dict[str, Any]
"""A JSON object in the making."""
CALL_ID: Final = re.compile("[A-Za-z0-9]{9}")
"""The id of a tool call that every version of Mistral's API takes."""
ANSWERS: Final = ("assistant", "tool")
"""The roles behind which Mistral takes no system message."""


class GivenModel(StrictModel):
    """A value that callers often give back as they got it: with fields that mean nothing here, which are dropped."""

    model_config = ConfigDict(extra="ignore")


M = TypeVar("M", bound=GivenModel)


def _with_one_source(part: M, *names: str) -> M:
    if sum(getattr(part, name) is not None for name in names) != 1:
        raise ValueError(f"must have one of {', '.join(names)}")
    return part


# ---------------------------------------------------------------------------------------------------- parts


class GivenText(GivenModel):
    """A text, of a caller or of an earlier answer."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"] = "input_text"
    text: str


class GivenRefusal(GivenModel):
    """A refusal in an earlier answer."""

    type: Literal["refusal"]
    refusal: str


class GivenImage(GivenModel):
    """An image by URL, or as a ``data:`` URL."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None

    @model_validator(mode="after")
    def _located(self) -> Self:
        return _with_one_source(self, "image_url", "file_id")


class GivenFile(GivenModel):
    """A document by URL, as base64, or by the id of a file that was uploaded to Mistral."""

    type: Literal["input_file"]
    file_url: str | None = None
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None

    @model_validator(mode="after")
    def _located(self) -> Self:
        return _with_one_source(self, "file_url", "file_data", "file_id")


def _part_type(part: Any) -> str:
    given = part.get("type") if isinstance(part, dict) else getattr(part, "type", "")
    return "text" if given in ("input_text", "output_text", "text") else str(given)


GivenPart = Annotated[
    Annotated[GivenText, Tag("text")]
    | Annotated[GivenRefusal, Tag("refusal")]
    | Annotated[GivenImage, Tag("input_image")]
    | Annotated[GivenFile, Tag("input_file")],
    Discriminator(_part_type),
]
"""One part of an item's content; ``type`` says which."""
GivenContent = str | Many[GivenPart]

# ---------------------------------------------------------------------------------------------------- items


class GivenMessage(GivenModel):
    """A message, in its short or its full form."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: GivenContent


class GivenCall(GivenModel):
    """A call of a function in an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class GivenOutput(GivenModel):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: GivenContent


class GivenReasoning(GivenModel):
    """The reasoning of an earlier answer."""

    type: Literal["reasoning"]
    summary: Many[GivenText] = ()
    content: Many[GivenText] | None = None


KNOWN_ITEMS: Final = ("message", "function_call", "function_call_output", "reasoning")


def _known_item(value: Any) -> Any:
    """The item, if it is of a type that a conversation with Mistral has. Raises ValueError."""
    given = value.get("type", "message") if isinstance(value, dict) else None
    if given == "item_reference":
        raise ValueError("is a reference to another item; give the item itself, or previous_response_id")
    if given not in KNOWN_ITEMS:
        raise ValueError(f"must be an item of type {', '.join(KNOWN_ITEMS)}; Mistral's models take no other")
    return value


def _item_type(item: Any) -> str:
    return str(item.get("type", "message")) if isinstance(item, dict) else str(getattr(item, "type", ""))


GivenItem = Annotated[
    Annotated[GivenMessage, Tag("message")]
    | Annotated[GivenCall, Tag("function_call")]
    | Annotated[GivenOutput, Tag("function_call_output")]
    | Annotated[GivenReasoning, Tag("reasoning")],
    Discriminator(_item_type),
]
CheckedItem = Annotated[GivenItem, BeforeValidator(_known_item)]
"""One item of a response's input; ``type`` says which, and may be left out of a message."""
GivenInput = str | Annotated[Many[CheckedItem], Field(min_length=1)]


# -------------------------------------------------------------------------------------- items to messages


class _Placed(NamedTuple):
    """A message, and the index in the input of the item that it begins with, if it comes from there."""

    message: JsonDict
    place: int | None
    developer: bool = False


class Conversation:
    """Collects items into messages, after those of ``earlier``. Reasoning, text and calls of one answer become one
    assistant message.

    ``developers``: the indices of messages whose role is ``developer``, which Mistral does not know. ``calls``: the
    callers' own ids of calls, by those that stand for them.
    """

    def __init__(
        self,
        earlier: Sequence[JsonDict] = (),
        developers: Sequence[int] = (),
        calls: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        said_by_developers = {*developers}
        given = [_Placed(message, None, index in said_by_developers) for index, message in enumerate(earlier)]
        count = next((index for index, one in enumerate(given) if one.message["role"] != "system"), len(given))
        self._instructions, self._turns = given[:count], given[count:]
        """The system messages at the beginning, and everything after them."""
        self._answered = any(one.message["role"] in ANSWERS for one in given)
        self._most = len(given) + MAX_MESSAGES
        self.calls: dict[str, str] = dict(calls)
        self._parts: list[JsonDict] = []
        self._tool_calls: list[JsonDict] = []
        self._begun = 0
        self._names: dict[str, str] = {}

    @property
    def messages(self) -> list[JsonDict]:
        return [one.message for one in self._all()]

    @property
    def places(self) -> dict[int, int]:
        """The index in the input of the item that a message begins with, by the message's index."""
        return {index: one.place for index, one in enumerate(self._all()) if one.place is not None}

    @property
    def developers(self) -> list[int]:
        return [index for index, one in enumerate(self._all()) if one.developer]

    def ask(self, text: str) -> None:
        """Add an input that is one text: a message of the user's, which no item begins."""
        self._turns.append(_Placed({"role": "user", "content": text}, None))

    def add(self, place: int, item: GivenMessage | GivenCall | GivenOutput | GivenReasoning) -> None:
        """Add the item at a place of the input. Raises InvalidRequest for too many messages."""
        if not self._parts and not self._tool_calls:
            self._begun = place
        match item:
            case GivenReasoning():
                self._think(place, item)
            case GivenMessage(role="assistant"):
                self._say(place, item)
            case GivenCall():
                self._call(item)
            case GivenOutput():
                self.end_answer()
                message = {"role": "tool", "content": _content(item.output), "tool_call_id": self._id(item.call_id)}
                self._append(place, message | ({"name": name} if (name := self._names.get(item.call_id)) else {}))
            case GivenMessage(role="user"):
                self.end_answer()
                self._append(place, {"role": "user", "content": _content(item.content)})
            case GivenMessage():
                self.end_answer()
                self._instruct(place, item)

    def end_answer(self) -> None:
        """End the assistant message that is being collected."""
        if not self._parts and not self._tool_calls:
            return
        only_text = len(self._parts) == 1 and self._parts[0]["type"] == "text"
        message: JsonDict = {"role": "assistant"}
        if self._parts:
            message["content"] = self._parts[0]["text"] if only_text else [*self._parts]
        if self._tool_calls:
            message["tool_calls"] = [*self._tool_calls]
        self._append(self._begun, message)
        self._parts, self._tool_calls = [], []

    def _instruct(self, place: int, item: GivenMessage) -> None:
        """Add a system message. Behind an answer Mistral refuses it (mistral-common, ``_validate_message_order``): then
        it joins those at the beginning."""
        message = {"role": "system", "content": _content(item.content)}
        first = self._answered or not self._turns
        self._put(
            self._instructions if first else self._turns, _Placed(message, place, developer=item.role == "developer")
        )

    def _append(self, place: int, message: JsonDict) -> None:
        self._answered = self._answered or message["role"] in ANSWERS
        self._put(self._turns, _Placed(message, place))

    def _put(self, where: list[_Placed], message: _Placed) -> None:
        """Raises InvalidRequest, before the work for too many messages is done."""
        if len(self._instructions) + len(self._turns) == self._most:
            why = f"must lead to at most {MAX_MESSAGES} messages; leave out or summarise the oldest"
            raise InvalidRequest([Problem("/input", why)])
        where.append(message)

    def _all(self) -> Iterator[_Placed]:
        return chain(self._instructions, self._turns)

    def _think(self, place: int, item: GivenReasoning) -> None:
        """Reasoning without a text (it may be encrypted, or empty) is of no use to another model."""
        self._go_on_in_new_message(place)
        thoughts = [{"type": "text", "text": one.text} for one in item.content or item.summary if one.text]
        if thoughts:
            self._parts.append({"type": "thinking", "thinking": [*thoughts], "closed": True})

    def _say(self, place: int, item: GivenMessage) -> None:
        self._go_on_in_new_message(place)
        texts = [item.content] if isinstance(item.content, str) else [_text_of(part) for part in item.content]
        self._parts += [{"type": "text", "text": text} for text in texts if text]

    def _call(self, item: GivenCall) -> None:
        self._names[item.call_id] = item.name
        function: JsonDict = {"name": item.name, "arguments": item.arguments}
        index = len(self._tool_calls)
        self._tool_calls.append(
            {"id": self._id(item.call_id), "type": "function", "function": function, "index": index}
        )

    def _go_on_in_new_message(self, place: int) -> None:
        """What follows calls of functions belongs to another answer."""
        if self._tool_calls:
            self.end_answer()
            self._begun = place

    def _id(self, call_id: str) -> str:
        mistrals = mistral_call_id(call_id)
        if mistrals != call_id:
            self.calls[mistrals] = call_id
        return mistrals


def mistral_call_id(call_id: str) -> str:
    """The id itself where Mistral takes it, else nine characters of its digest: the same ones in every request."""
    return call_id if CALL_ID.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]


def arguments_text(arguments: str | JsonObject) -> str:
    """A call's arguments as JSON text, as every client of OpenAI's expects them."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _content(given: str | Sequence[Any]) -> Any:
    return given if isinstance(given, str) else [_part(part) for part in given]


def _text_of(part: Any) -> str:
    """The text of a part of an answer; empty for a part that no answer has."""
    match part:
        case GivenText():
            return part.text
        case GivenRefusal():
            return part.refusal
        case _:
            return ""


def _part(part: Any) -> JsonDict:
    match part:
        case GivenImage() if part.image_url is not None:
            image: JsonDict = {"url": part.image_url} | ({"detail": part.detail} if part.detail else {})
            return {"type": "image_url", "image_url": image}
        case GivenFile() if part.file_id is None:
            url = part.file_url if part.file_url is not None else _data_url(part)
            return {"type": "document_url", "document_url": url} | (
                {"document_name": part.filename} if part.filename else {}
            )
        case GivenImage() | GivenFile():
            return {"type": "file", "file_id": part.file_id}
        case _:
            return {"type": "text", "text": _text_of(part)}


def _data_url(part: GivenFile) -> str:
    """``file_data`` as a URL; clients give base64 with and without the beginning of a ``data:`` URL."""
    data = part.file_data or ""
    return data if data.startswith("data:") else f"data:application/pdf;base64,{data}"


# -------------------------------------------------------------------------------------- messages to items


def input_items(
    job_id: str, messages: Sequence[Message], developers: Sequence[int], calls: Mapping[str, str]
) -> list[JsonDict]:
    """The items of a conversation, oldest first, each with an id of its own that never changes.

    ``developers`` and ``calls`` are those of the Conversation that the messages come from.
    """
    found: list[JsonDict] = []
    said_by_developers = {*developers}
    for index, message in enumerate(messages):
        for number, item in enumerate(_items(message, index in said_by_developers, calls)):
            prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}.get(str(item["type"]), "fco")
            found.append({"id": f"{prefix}_{job_id}_in{index}_{number}", **item})
    return found


def first_id(job_id: str) -> str:
    """The id of the item of a conversation's first message, where that is not an answer."""
    return f"msg_{job_id}_in0_0"


def _items(message: Message, developer: bool, calls: Mapping[str, str]) -> Iterator[JsonDict]:
    match message:
        case ToolMessage():
            call_id = message.tool_call_id or ""
            output = message.content if isinstance(message.content, str) else [*_input_parts(message.content or ())]
            yield {
                "type": "function_call_output",
                "call_id": calls.get(call_id, call_id),
                "output": output,
                "status": "completed",
            }
        case AssistantMessage():
            yield from _answer_items(message, calls)
        case _:
            role = "developer" if developer else message.role
            yield {"type": "message", "role": role, "content": [*_input_parts(message.content)], "status": "completed"}


def _answer_items(message: AssistantMessage, calls: Mapping[str, str]) -> Iterator[JsonDict]:
    parts: Sequence[ContentPart] = (
        [TextPart(text=message.content)] if isinstance(message.content, str) else message.content or ()
    )
    for part in parts:
        if isinstance(part, ThinkingPart):
            texts = [{"type": "summary_text", "text": one.text} for one in part.thinking if isinstance(one, TextPart)]
            yield {"type": "reasoning", "summary": [*texts], "status": "completed"}
        elif isinstance(part, TextPart):
            content: JsonDict = {"type": "output_text", "text": part.text, "annotations": []}
            yield {"type": "message", "role": "assistant", "content": [content], "status": "completed"}
    for call in message.tool_calls or ():
        yield {
            "type": "function_call",
            "call_id": calls.get(call.id, call.id),
            "name": call.function.name,
            "arguments": arguments_text(call.function.arguments),
            "status": "completed",
        }


def _input_parts(content: Content | Sequence[ContentPart]) -> Iterator[JsonDict]:
    for part in [TextPart(text=content)] if isinstance(content, str) else content:
        match part:
            case TextPart():
                yield {"type": "input_text", "text": part.text}
            case ImageUrlPart():
                image = part.image_url if isinstance(part.image_url, ImageUrl) else ImageUrl(url=part.image_url)
                yield {"type": "input_image", "image_url": image.url, "detail": image.detail or "auto"}
            case DocumentUrlPart():
                where = "file_data" if part.document_url.startswith("data:") else "file_url"
                name = {"filename": part.document_name} if part.document_name else {}
                yield {"type": "input_file", where: part.document_url, **name}
            case FilePart():
                yield {"type": "input_file", "file_id": part.file_id}
            case _:
                yield part.model_dump(mode="json")  # of a job that was made with Mistral's parts
