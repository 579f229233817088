"""The official ``mistralai`` package against /v1."""

from __future__ import annotations

from typing import Any

import httpx2
import runner
from mistralai.client import Mistral
from mistralai.client.utils import BackoffStrategy, RetryConfig
from pydantic import BaseModel


class Answer(BaseModel):
    answer: str


class Kinds:
    """What each kind of case does; the outcomes of all clients have the same form."""

    @staticmethod
    def chat(client: Mistral, case: dict[str, Any], messages: Any = None, **further: Any) -> dict[str, Any]:
        done = client.chat.complete(model=case["model"], messages=messages or runner.messages(case), **further)
        return outcome(done.choices[0].message, done.choices[0].finish_reason, done.usage)

    @staticmethod
    def stream(client: Mistral, case: dict[str, Any], **further: Any) -> dict[str, Any]:
        text, thoughts, pieces, calls, finish, usage = "", "", 0, [], None, None
        with client.chat.stream(model=case["model"], messages=runner.messages(case), **further) as events:
            for event in events:
                (choice,) = event.data.choices
                more, thought = split(choice.delta.content)
                text, thoughts, pieces = text + more, thoughts + thought, pieces + bool(more)
                calls += choice.delta.tool_calls or []
                finish, usage = choice.finish_reason or finish, event.data.usage or usage
        return {
            "text": text,
            "reasoning": thoughts,
            "pieces": pieces,
            "calls": [[call.function.name, call.function.arguments] for call in calls],
            "finish": finish,
            "usage": counted(usage),
        }

    reasoning = stream

    @staticmethod
    def tools(client: Mistral, case: dict[str, Any]) -> dict[str, Any]:
        """A call of a tool, its result, and the answer to that."""
        given: list[Any] = runner.messages(case)
        done = client.chat.complete(model=case["model"], messages=given, tools=[runner.WEATHER])
        message = done.choices[0].message
        first = outcome(message, done.choices[0].finish_reason, done.usage)
        given += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}]
        return first | {"then": Kinds.chat(client, case, given)["text"]}

    @staticmethod
    def tools_stream(client: Mistral, case: dict[str, Any]) -> dict[str, Any]:
        return Kinds.stream(client, case, tools=[runner.WEATHER])

    @staticmethod
    def schema(client: Mistral, case: dict[str, Any]) -> dict[str, Any]:
        done = client.chat.parse(Answer, model=case["model"], messages=runner.messages(case))
        return {"parsed": done.choices[0].message.parsed.model_dump()}

    @staticmethod
    def image(client: Mistral, case: dict[str, Any]) -> dict[str, Any]:
        return Kinds.chat(client, case, runner.image_messages(case))

    @staticmethod
    def models(client: Mistral, case: dict[str, Any]) -> dict[str, Any]:
        names = [model.id for model in client.models.list().data]
        return {"models": names, "one": client.models.retrieve(model_id=names[0]).id}

    @staticmethod
    def parameters(client: Mistral, case: dict[str, Any]) -> dict[str, Any]:
        return Kinds.chat(client, case, max_tokens=5, random_seed=7, metadata={"order": "42"})


def split(content: Any) -> tuple[str, str]:
    """The text and the thoughts of a content."""
    if not isinstance(content, list):
        return content or "", ""
    texts = [part.text for part in content if part.type == "text"]
    thoughts = [inner.text for part in content if part.type == "thinking" for inner in part.thinking]
    return "".join(texts), "".join(thoughts)


def outcome(message: Any, finish: Any, usage: Any) -> dict[str, Any]:
    text, thoughts = split(message.content)
    calls = [[call.function.name, call.function.arguments] for call in message.tool_calls or ()]
    return {"text": text, "reasoning": thoughts, "calls": calls, "finish": finish, "usage": counted(usage)}


def counted(usage: Any) -> list[int] | None:
    return [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens] if usage else None


def client_of(case: dict[str, Any]) -> Mistral:
    retries = None
    if case["retries"]:
        retries = RetryConfig("backoff", BackoffStrategy(100, 1_000, 1.5, 20_000), retry_connection_errors=True)
    http = httpx2.Client(headers=case.get("headers"), timeout=60)
    return Mistral(server_url=case["url"], api_key=case["key"], client=http, retry_config=retries)


def failure(error: Exception) -> dict[str, Any]:
    return {"status": getattr(error, "status_code", None)}


runner.run(client_of, failure, Kinds)
