"""LangChain's ``langchain-mistralai`` against /v1."""

from __future__ import annotations

from typing import Any

import httpx
import runner
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_mistralai import ChatMistralAI
from pydantic import BaseModel


class Answer(BaseModel):
    """An answer."""

    answer: str


class Kinds:
    """What each kind of case does; the outcomes of all clients have the same form."""

    @staticmethod
    def chat(client: ChatMistralAI, case: dict[str, Any], messages: Any = None) -> dict[str, Any]:
        return outcome(client.invoke(messages or runner.messages(case)))

    @staticmethod
    def stream(client: Any, case: dict[str, Any]) -> dict[str, Any]:
        chunks = list(client.stream(runner.messages(case)))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        return outcome(whole) | {"pieces": sum(bool(chunk.content) for chunk in chunks)}

    reasoning = stream

    @staticmethod
    def tools(client: ChatMistralAI, case: dict[str, Any]) -> dict[str, Any]:
        """A call of a tool, its result, and the answer to that."""
        given = HumanMessage(case["prompt"])
        message = client.bind_tools([runner.WEATHER]).invoke([given])
        result = ToolMessage("sunny", tool_call_id=message.tool_calls[0]["id"])
        return outcome(message) | {"then": Kinds.chat(client, case, [given, message, result])["text"]}

    @staticmethod
    def tools_stream(client: ChatMistralAI, case: dict[str, Any]) -> dict[str, Any]:
        return Kinds.stream(client.bind_tools([runner.WEATHER]), case)

    @staticmethod
    def schema(client: ChatMistralAI, case: dict[str, Any]) -> dict[str, Any]:
        found: Any = client.with_structured_output(Answer, method="json_schema").invoke(case["prompt"])
        return {"parsed": found.model_dump()}

    @staticmethod
    def image(client: ChatMistralAI, case: dict[str, Any]) -> dict[str, Any]:
        return Kinds.chat(client, case, runner.image_messages(case))


def outcome(message: AIMessage) -> dict[str, Any]:
    content: Any = message.content
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [part if isinstance(part, str) else part.get("text", "") for part in parts]
    thoughts = [inner["text"] for part in parts if isinstance(part, dict) for inner in part.get("thinking", ())]
    usage = message.usage_metadata
    return {
        "text": "".join(texts),
        "reasoning": "".join(thoughts),
        "calls": [[call["name"], call["args"]] for call in message.tool_calls],
        "finish": message.response_metadata.get("finish_reason"),
        "usage": [usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]] if usage else None,
    }


def client_of(case: dict[str, Any]) -> ChatMistralAI:
    headers = {"Authorization": f"Bearer {case['key']}", **case.get("headers", {})}
    http = httpx.Client(base_url=f"{case['url']}/v1", headers=headers, timeout=60)
    found: Any = ChatMistralAI(
        model_name=case["model"],
        endpoint=f"{case['url']}/v1",
        api_key=case["key"],
        client=http,
        max_retries=case["retries"],
    )
    return found


def failure(error: Exception) -> dict[str, Any]:
    return {"status": error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None}


runner.run(client_of, failure, Kinds)
