"""A chat-completion request, validated as strictly as by Mistral."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, ValidationError

from simulator.answers import tokenise
from simulator.faults import Continues, without_directive

KNOWN_MODELS = re.compile(
    r"(mistral|ministral|magistral|codestral|devstral|pixtral|voxtral|open|labs|ft:)[a-z0-9._:-]*", re.IGNORECASE
)
_OF_VLLM = ("continue_final_message", "add_generation_prompt", "chat_template_kwargs", "min_p", "echo")
"""Fields of vLLM, which Mistral refuses."""
_REFUSED_ROLE_PAIRS = {("user", "tool"), ("tool", "user"), ("system", "tool"), ("assistant", "system")}
"""Pairs of consecutive roles that Mistral refuses."""


class Message(BaseModel):
    """One message of any role; only the fields that the simulator reads are validated."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, JsonValue]] | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    prefix: bool = False
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The text, its text parts joined."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(str(part.get("text", "")) for part in self.content if part.get("type") == "text")


class ChatCall(BaseModel):
    """The body of ``POST /v1/chat/completions``. An unknown field is an error, as at Mistral; see ``lenient``."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    max_tokens: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    random_seed: int | None = None
    response_format: dict[str, JsonValue] | None = None
    tools: list[dict[str, JsonValue]] | None = None
    tool_choice: str | dict[str, JsonValue] | None = None
    # Accepted, without effect on the answer.
    temperature: float | None = None
    top_p: float | None = None
    min_tokens: int | None = None
    top_k: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    prompt_logprobs: bool | int | None = None
    top_prompt_logprobs: int | None = None
    metadata: dict[str, JsonValue] | None = None
    prediction: JsonValue = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    prompt_mode: str | None = None
    guardrails: JsonValue = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    safe_prompt: bool | None = None
    # Those of _OF_VLLM, and of all servers but Mistral's.
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    min_p: float | None = None
    echo: bool | None = None
    stream_options: dict[str, JsonValue] | None = None
    _continues: Continues = PrivateAttr("prefix")

    @classmethod
    def lenient(cls, body: bytes) -> tuple[ChatCall, ValidationError | None]:
        """The call, without its unknown fields, and the error about these, if there are any. Raises ValidationError."""
        try:
            return cls.model_validate_json(body), None
        except ValidationError as error:
            unknown = [item["loc"] for item in error.errors(include_url=False) if item["type"] == "extra_forbidden"]
            if not unknown:
                raise
            document = json.loads(body)
            for place in unknown:
                _remove(document, place)
            return cls.model_validate(document), error

    def served_as(self, continues: Continues) -> None:
        """Set the kind of server that answers; called before anything else."""
        self._continues = continues

    @property
    def continues(self) -> Continues:
        """How the server that answers continues a text."""
        return self._continues

    @cached_property
    def trailing(self) -> str | None:
        """The text of an assistant message at the end."""
        last = self.messages[-1]
        return last.text if last.role == "assistant" else None

    @cached_property
    def prefix(self) -> str | None:
        """The text that the answer continues."""
        match self._continues:
            case "prefix":
                continues = self.messages[-1].prefix
            case "continue_final_message":
                continues = self.continue_final_message is True and self.add_generation_prompt is False
            case "assistant":
                continues = True
            case "never":
                continues = False
        return self.trailing if continues else None

    @property
    def message_is_prefix(self) -> bool:
        """Whether the answer continues a prefix in Mistral's way."""
        return self._continues == "prefix" and self.prefix is not None

    @cached_property
    def prompt(self) -> str:
        """The text of the last user message."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def conversation(self) -> str:
        """SHA-256 (hex) of model and messages without a trailing prefix: the same for all attempts."""
        return _digest(self.model, [message.model_dump(exclude_none=True) for message in self._conversation])

    @property
    def subject(self) -> str:
        """SHA-256 (hex) of what the answer's text depends on: the conversation without directives, and the seed.

        A trailing message that is not continued is part of the conversation, which then gets another answer.
        """
        messages = self.messages if self.prefix is None else self._conversation
        texts = [(message.role, without_directive(message.text)) for message in messages]
        return _digest(self.model, [texts, self.random_seed])

    @property
    def _conversation(self) -> Sequence[Message]:
        return self.messages if self.trailing is None else self.messages[:-1]

    @property
    def stops(self) -> Sequence[str]:
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in found if stop]

    @property
    def wants_json(self) -> bool:
        return (self.response_format or {}).get("type") in ("json_object", "json_schema")

    @property
    def forced_tool(self) -> str | None:
        """The name of the tool that must be called."""
        if isinstance(self.tool_choice, dict):
            return _function_name(self.tool_choice)
        return _function_name(self.tools[0]) if self.tools and self.tool_choice in ("any", "required") else None

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens of all messages, prefix included, plus four for each message."""
        return sum(4 + len(tokenise(message.text)) for message in self.messages)

    @property
    def parameters(self) -> dict[str, Any]:
        """The given fields without the messages."""
        return self.model_dump(exclude={"messages"}, exclude_unset=True)

    def refusal(self) -> tuple[str, str, str] | None:
        """Message, type and code of Mistral's 400 for a well-formed request; None if it is not refused."""
        if not KNOWN_MODELS.fullmatch(self.model):
            return f"Invalid model: {self.model}", "invalid_model", "1500"
        if self._continues != "prefix":
            return None
        if foreign := next((name for name in _OF_VLLM if getattr(self, name) is not None), None):
            return f"Extra inputs are not permitted: {foreign}", "invalid_request_error", "3000"
        return self._out_of_order()

    def _out_of_order(self) -> tuple[str, str, str] | None:
        roles = [message.role for message in self.messages]
        wrong = next((pair for pair in pairwise(roles) if pair in _REFUSED_ROLE_PAIRS), None)
        if wrong:
            return f"Unexpected role '{wrong[1]}' after role '{wrong[0]}'", "invalid_request_message_order", "3230"
        if any(m.role == "assistant" and not (m.content or m.tool_calls or m.prefix) for m in self.messages):
            why = "Assistant message must have either content or tool_calls, but not none."
            return why, "invalid_request_assistant_message", "3240"
        if self.prefix is not None and self.tools:
            return "Prefix cannot be used with tools", "invalid_request_prefix", "3231"
        if roles[-1] in ("user", "tool") or self.prefix is not None:
            return None
        asked = "Expected last role User or Tool (or Assistant with prefix True) for serving but got"
        return f"{asked} {roles[-1]}", "invalid_request_message_order", "3230"


def _remove(document: Any, place: Sequence[int | str]) -> None:
    *way, name = place
    for step in way:
        document = document[step]
    del document[name]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _function_name(holder: dict[str, Any]) -> str:
    function = holder.get("function")
    return str(function.get("name", "")) if isinstance(function, dict) else ""
