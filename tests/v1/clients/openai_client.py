"""The official ``openai`` package against /v1."""

from __future__ import annotations

from typing import Any

import openai
import runner
from pydantic import BaseModel


class Answer(BaseModel):
    answer: str


class Kinds:
    """What each kind of case does; the outcomes of all clients have the same form."""

    @staticmethod
    def chat(client: openai.OpenAI, case: dict[str, Any], messages: Any = None, **further: Any) -> dict[str, Any]:
        given = messages or runner.messages(case)
        done = client.chat.completions.create(model=case["model"], messages=given, **further)
        return outcome(done.choices[0].message, done.choices[0].finish_reason, done.usage)

    @staticmethod
    def stream(client: openai.OpenAI, case: dict[str, Any], **further: Any) -> dict[str, Any]:
        """With the package's own accumulator of chunks."""
        given = runner.messages(case)
        with client.chat.completions.stream(model=case["model"], messages=given, **further) as stream:
            pieces = [event.delta for event in stream if event.type == "content.delta"]
            done = stream.get_final_completion()
        found = outcome(done.choices[0].message, done.choices[0].finish_reason, done.usage)
        return found | {"pieces": len(pieces)}

    @staticmethod
    def reasoning(client: openai.OpenAI, case: dict[str, Any]) -> dict[str, Any]:
        """Mistral's thoughts are parts of the content, which this client passes on as they are."""
        text, thoughts = "", ""
        for chunk in client.chat.completions.create(model=case["model"], messages=runner.messages(case), stream=True):
            content: Any = chunk.choices[0].delta.content
            for part in [{"type": "text", "text": content or ""}] if isinstance(content, str | None) else content:
                text += part.get("text", "")
                thoughts += "".join(one["text"] for one in part.get("thinking", ()))
        return {"text": text, "reasoning": thoughts}

    @staticmethod
    def tools(client: openai.OpenAI, case: dict[str, Any]) -> dict[str, Any]:
        """A call of a tool, its result, and the answer to that."""
        given: list[Any] = runner.messages(case)
        done = client.chat.completions.create(model=case["model"], messages=given, tools=[runner.WEATHER])
        message = done.choices[0].message
        first = outcome(message, done.choices[0].finish_reason, done.usage)
        call_id = (message.tool_calls or [])[0].id
        given += [message, {"role": "tool", "tool_call_id": call_id, "content": "sunny"}]
        return first | {"then": Kinds.chat(client, case, given)["text"]}

    @staticmethod
    def tools_stream(client: openai.OpenAI, case: dict[str, Any]) -> dict[str, Any]:
        return Kinds.stream(client, case, tools=[runner.WEATHER])

    @staticmethod
    def schema(client: openai.OpenAI, case: dict[str, Any]) -> dict[str, Any]:
        given = runner.messages(case)
        done = client.chat.completions.parse(model=case["model"], messages=given, response_format=Answer)
        parsed = done.choices[0].message.parsed
        return {"parsed": parsed.model_dump() if parsed else None}

    @staticmethod
    def image(client: openai.OpenAI, case: dict[str, Any]) -> dict[str, Any]:
        return Kinds.chat(client, case, runner.image_messages(case))

    @staticmethod
    def models(client: openai.OpenAI, case: dict[str, Any]) -> dict[str, Any]:
        names = [model.id for model in client.models.list()]
        return {"models": names, "one": client.models.retrieve(names[0]).id}

    @staticmethod
    def parameters(client: openai.OpenAI, case: dict[str, Any]) -> dict[str, Any]:
        further = {"max_completion_tokens": 5, "seed": 7, "metadata": {"order": "42"}}
        return Kinds.chat(client, case, **further)


def outcome(message: Any, finish: Any, usage: Any) -> dict[str, Any]:
    return {
        "text": message.content,
        "calls": [[call.function.name, call.function.arguments] for call in message.tool_calls or ()],
        "finish": finish,
        "usage": [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens] if usage else None,
    }


def client_of(case: dict[str, Any]) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{case['url']}/v1",
        api_key=case["key"],
        default_headers=case.get("headers"),
        max_retries=case["retries"],
    )


def failure(error: Exception) -> dict[str, Any]:
    return {"status": getattr(error, "status_code", None)}


runner.run(client_of, failure, Kinds)
