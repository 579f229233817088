"""The request for a response: OpenAI's parameters as those of a job.

Source: OpenAI's API reference, POST /v1/responses. What becomes of each parameter stands in ``PARAMETERS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from chatjobs.contracts import (
    ChatRequest,
    FunctionTool,
    JsonObject,
    Many,
    Metadata,
    ModelName,
    ResponseFormat,
    ToolChoice,
    parse,
)
from chatjobs.contracts.base import StrictModel
from chatjobs.errors import InvalidRequest, Problem
from domain.conversations import ThreadPlace
from gateway.v1.responses_input import Conversation, GivenInput, GivenModel, JsonDict


class Use(Enum):
    """What becomes of a parameter."""

    TRANSLATED = "it becomes a part of the job's request"
    ECHOED = "it changes nothing here, and the response repeats it"
    IGNORED = "it changes nothing here"
    REFUSED = "an answer without it would be another one than the caller asked for"


PARAMETERS: Final[Mapping[str, Use]] = {
    "background": Use.TRANSLATED,
    "input": Use.TRANSLATED,
    "instructions": Use.TRANSLATED,
    "max_output_tokens": Use.TRANSLATED,
    "metadata": Use.TRANSLATED,
    "model": Use.TRANSLATED,
    "parallel_tool_calls": Use.TRANSLATED,
    "previous_response_id": Use.TRANSLATED,
    "prompt_cache_key": Use.TRANSLATED,
    "reasoning": Use.TRANSLATED,  # effort; summary is repeated
    "store": Use.TRANSLATED,
    "stream": Use.TRANSLATED,
    "temperature": Use.TRANSLATED,
    "text": Use.TRANSLATED,  # format; verbosity is repeated
    "tool_choice": Use.TRANSLATED,
    "tools": Use.TRANSLATED,
    "top_p": Use.TRANSLATED,
    "max_tool_calls": Use.ECHOED,  # it counts calls of OpenAI's own tools
    "prompt_cache_retention": Use.ECHOED,
    "safety_identifier": Use.ECHOED,
    "user": Use.ECHOED,
    "access_programs": Use.IGNORED,
    "background_options": Use.IGNORED,  # a job begins as soon as it can, which is within every window
    "context_management": Use.IGNORED,  # a conversation that is too long fails, and says so
    "image": Use.IGNORED,
    "include": Use.IGNORED,  # log probabilities are refused; the rest belongs to tools that there are not
    "prompt_cache_options": Use.IGNORED,
    "service_tier": Use.IGNORED,  # the response names the tier that it got: default
    "stream_options": Use.IGNORED,  # events are not padded
    "truncation": Use.IGNORED,  # the response says disabled: nothing is dropped from a conversation in silence
    "conversation": Use.REFUSED,
    "moderation": Use.REFUSED,
    "prompt": Use.REFUSED,
    "top_logprobs": Use.REFUSED,  # unless 0
}
"""All parameters of OpenAI's. Others are Mistral's or this service's own, and are passed on under their names."""
REFUSALS: Final = {
    "conversation": "is not there here; give previous_response_id, or the earlier items in input",
    "moderation": "is not there here; give guardrails, which Mistral applies",
    "prompt": "is a template that is stored at OpenAI; give its text as instructions or input",
    "top_logprobs": "must be 0: log probabilities are not kept",
}
OURS_ALONE: Final = {
    "messages": "is not a parameter of a response; give input",
    "max_tokens": "is not a parameter of a response; give max_output_tokens",
    "n": "is not a parameter of a response, which has one answer",
    "response_format": "is not a parameter of a response; give text.format",
    "reasoning_effort": "is not a parameter of a response; give reasoning.effort",
}
"""Fields of a job's request that have another name here."""
USUAL_ECHO: Final[JsonDict] = {
    "background": True,
    "instructions": None,
    "max_tool_calls": None,
    "previous_response_id": None,
    "service_tier": "default",
    "store": True,
    "top_logprobs": 0,
    "truncation": "disabled",
}
"""The parameters that a response repeats, of a request without them."""
LOGPROBS: Final = "message.output_text.logprobs"
FIELDS: Final = frozenset(field.alias or name for name, field in ChatRequest.model_fields.items())
POINTERS: Final = {
    "/max_tokens": "/max_output_tokens",
    "/response_format/json_schema": "/text/format",
    "/response_format": "/text/format",
    "/reasoning_effort": "/reasoning/effort",
}


# ----------------------------------------------------------------------------------------------------- models


def _function_tool(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") != "function":
        raise ValueError("must be a tool of type function; Mistral's models have none of OpenAI's own tools")
    return value


class GivenTool(GivenModel):
    """A function of the caller's, in OpenAI's flat form."""

    type: Literal["function"]
    name: str
    parameters: JsonObject | None = None
    description: str | None = None
    strict: bool | None = None


class ChosenTool(GivenModel):
    """The one function that the model must call."""

    type: Literal["function"]
    name: str


class GivenFormat(GivenModel):
    """The form of the answer, in OpenAI's flat form."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_definition: JsonObject | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _with_schema(self) -> Self:
        if self.type == "json_schema" and (self.name is None or self.schema_definition is None):
            raise ValueError("must have a name and a schema")
        return self


class GivenTextOptions(GivenModel):
    """``text``."""

    format: GivenFormat = GivenFormat()
    verbosity: str | None = None


class GivenReasoningOptions(GivenModel):
    """``reasoning``."""

    effort: Annotated[str, Field(max_length=32)] | None = None
    summary: Annotated[str, Field(max_length=32)] | None = None
    generate_summary: Annotated[str, Field(max_length=32)] | None = None


class ResponseRequest(StrictModel):
    """The parameters of a response that are translated or repeated; what their values may be stands in ChatRequest."""

    model: ModelName
    input: GivenInput
    instructions: str | None = None
    background: bool = False
    stream: bool = False
    store: bool = True
    previous_response_id: str | None = None
    metadata: Metadata = Field({})
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    tools: Many[Annotated[GivenTool, BeforeValidator(_function_tool)]] = ()
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    text: GivenTextOptions = GivenTextOptions()
    reasoning: GivenReasoningOptions = GivenReasoningOptions()
    max_tool_calls: int | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=32)] | None = None
    safety_identifier: Annotated[str, Field(max_length=256)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None


class ResponseSettings(StrictModel):
    """A request for a response as it is stored beside its job's request.

    ``echo``: the parameters that the response repeats. ``instructions``: whether the first message is the request's.
    ``developers`` and ``calls``: see Conversation.
    """

    echo: JsonObject
    background: bool = True
    instructions: bool = False
    developers: Many[int] = ()
    calls: dict[str, str] = Field({})


class EarlierTurns(NamedTuple):
    """The conversation that a response goes on from, without the instructions of its last response."""

    messages: Sequence[JsonDict] = ()
    developers: Sequence[int] = ()
    calls: Mapping[str, str] = {}
    place: ThreadPlace | None = None
    """That of the response that follows."""
    size: int = 0
    """The bytes of the request and the answer that the messages come from."""


NO_TURNS: Final = EarlierTurns()


class Translation(NamedTuple):
    """A request for a response as that of a job. ``places``: the item of the input that each message begins with."""

    body: JsonDict
    settings: ResponseSettings
    places: Mapping[int, int]


# ---------------------------------------------------------------------------------------------- translation


def parsed_request(body: Any) -> ResponseRequest:
    """The request in a decoded JSON body. Raises InvalidRequest."""
    if not isinstance(body, dict):
        raise InvalidRequest([Problem("", "must be an object")])
    refused = [Problem(f"/{name}", why) for name, why in REFUSALS.items() if body.get(name)]
    refused += [Problem(f"/{name}", why) for name, why in OURS_ALONE.items() if body.get(name) is not None]
    include = body.get("include")
    if isinstance(include, list) and LOGPROBS in include:
        refused.append(Problem("/include", f"must not have {LOGPROBS}: log probabilities are not kept"))
    if refused:
        raise InvalidRequest(refused)
    request = parse(ResponseRequest, {name: value for name, value in body.items() if name in _MODELLED})
    if request.background and not request.store:
        raise InvalidRequest([Problem("/store", "must be true for a response in the background, which is read later")])
    return request


_MODELLED: Final = frozenset(ResponseRequest.model_fields)


def translated(request: ResponseRequest, body: JsonDict, earlier: EarlierTurns = NO_TURNS) -> Translation:
    """The job's request. ``body`` is the one that ``request`` was parsed from, for parameters that are passed on.

    Raises InvalidRequest.
    """
    conversation = _conversation(request, earlier)
    job: JsonDict = {"model": request.model, "messages": [*conversation.messages], "metadata": {**request.metadata}}
    job |= _parameters(request)
    job |= _passed_on(body)
    settings = ResponseSettings(
        echo=_echo(request),
        background=request.background,
        instructions=bool(request.instructions),
        developers=tuple(conversation.developers),
        calls=conversation.calls,
    )
    return Translation(job, settings, conversation.places)


def _conversation(request: ResponseRequest, earlier: EarlierTurns) -> Conversation:
    first: list[JsonDict] = [{"role": "system", "content": request.instructions}] if request.instructions else []
    developers = [index + len(first) for index in earlier.developers]
    conversation = Conversation([*first, *earlier.messages], developers, earlier.calls)
    if isinstance(request.input, str):
        conversation.ask(request.input)
    else:
        for place, item in enumerate(request.input):
            conversation.add(place, item)
        conversation.end_answer()
        if not conversation.places or conversation.messages[-1]["role"] == "assistant":
            why = "must end with a message of the user or the output of a function, for the model to answer"
            raise InvalidRequest([Problem("/input", why)])
    _check_outputs(conversation.messages)
    return conversation


def _check_outputs(messages: Sequence[JsonDict]) -> None:
    """Raises InvalidRequest for a call without an output, which Mistral refuses."""
    for message, following in pairwise(messages):
        if message.get("tool_calls") and following["role"] != "tool":
            why = "lacks the output of a function that was called: a function_call_output follows each call"
            raise InvalidRequest([Problem("/input", why)])


def _parameters(request: ResponseRequest) -> JsonDict:
    found: JsonDict = {
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning_effort": request.reasoning.effort,
        "response_format": _format(request.text.format),
    }
    if request.tools:
        found["tools"] = [_tool(tool) for tool in request.tools]
        found["parallel_tool_calls"] = request.parallel_tool_calls
        choice = request.tool_choice
        named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, ChosenTool) else choice
        found["tool_choice"] = named
    return {name: value for name, value in found.items() if value is not None}


def _tool(tool: GivenTool) -> JsonDict:
    function = {
        "name": tool.name,
        "parameters": tool.parameters or {},
        "description": tool.description,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _format(given: GivenFormat) -> JsonDict | None:
    """None for text, which Mistral answers with anyway."""
    if given.type != "json_schema":
        return None if given.type == "text" else {"type": given.type}
    schema: JsonDict = {"name": given.name, "schema": given.schema_definition}
    schema |= {"description": given.description} if given.description is not None else {}
    schema |= {"strict": given.strict} if given.strict is not None else {}
    return {"type": "json_schema", "json_schema": schema}


def _echo(request: ResponseRequest) -> JsonDict:
    reasoning, choice = request.reasoning, request.tool_choice
    return USUAL_ECHO | {
        "background": request.background,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
        "safety_identifier": request.safety_identifier,
        "store": request.store,
        "temperature": request.temperature,
        "text": _given(request.text.model_dump(mode="json")),
        "tool_choice": choice.model_dump(mode="json") if isinstance(choice, ChosenTool) else choice or "auto",
        "tools": [tool.model_dump(mode="json") for tool in request.tools],
        "top_p": request.top_p,
        "user": request.user,
    }


def settings_of(request: ChatRequest) -> ResponseSettings:
    """The settings of a job that was not made as a response."""
    functions = [tool.function for tool in request.tools or () if isinstance(tool, FunctionTool)]
    choice = request.tool_choice
    named = {"type": "function", "name": choice.function.name} if isinstance(choice, ToolChoice) else choice or "auto"
    form = request.response_format or ResponseFormat()
    schema = form.json_schema.model_dump(mode="json") if form.json_schema else {}
    echo = USUAL_ECHO | {
        "max_output_tokens": request.max_tokens,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": request.reasoning_effort, "summary": None},
        "temperature": request.temperature,
        "text": {"format": _given({"type": form.type, **schema})},
        "tool_choice": "required" if named == "any" else named,
        "tools": [{"type": "function", **function.model_dump(mode="json")} for function in functions],
        "top_p": request.top_p,
    }
    return ResponseSettings(echo=echo)


def _given(value: Any) -> Any:
    """A JSON object without nulls."""
    if isinstance(value, dict):
        return {name: _given(inner) for name, inner in value.items() if inner is not None}
    return value


def _passed_on(body: JsonDict) -> JsonDict:
    """Parameters that are not OpenAI's: fields of a job's request, and unknown ones, which go to the model's server."""
    others = {name: value for name, value in body.items() if name not in PARAMETERS and value is not None}
    fields = {name: value for name, value in others.items() if name in FIELDS}
    unknown = {name: value for name, value in others.items() if name not in FIELDS}
    extra = fields.get("extra", {})
    if unknown and isinstance(extra, dict):
        fields["extra"] = {**unknown, **extra}
    return fields


def in_their_words(error: InvalidRequest, places: Mapping[int, int]) -> InvalidRequest:
    """The problems of a job's request, with pointers into the request for the response."""
    return InvalidRequest([Problem(_pointer(one.pointer, places), one.message) for one in error.problems])


def _pointer(pointer: str, places: Mapping[int, int]) -> str:
    for ours, theirs in POINTERS.items():
        if pointer == ours or pointer.startswith(f"{ours}/"):
            return theirs + pointer.removeprefix(ours)
    steps = pointer.split("/")
    if len(steps) > 1 and steps[1] == "messages":
        index = int(steps[2]) if len(steps) > 2 and steps[2].isdecimal() else -1
        return f"/input/{places[index]}" if index in places else "/input"
    if len(steps) > 3 and steps[1] == "tools" and steps[3] == "function":
        return "/".join((*steps[:3], *steps[4:]))
    return pointer
