"""What we send is what the SDK sends: method, address, headers and body, on the wire."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx2
import mistralai.client
import pytest
from mistralai.client import Mistral
from mistralai.client._hooks import BeforeRequestContext
from mistralai.client.basesdk import BaseSDK
from mistralai.client.chat import Chat
from mistralai.extra.observability.telemetry import configure_telemetry
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, NoOpTracer, TracerProvider

from chatjobs.contracts import OURS, ChatRequest
from domain.ports import Finish
from providers.mistral.chat import MistralChat, request_body
from tests.support.mistral_stream import HELLO, USAGE
from tests.support.raw_http import RawServer, Visit, raw_server, stream

KEY = "sk-test-1234567890"
HI = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": ["string", "null"], "default": None}}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "description": "d", "strict": True}}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "naïve 😀"},
            {"type": "image_url", "image_url": "https://x.example/y.png"},
            {"type": "image_url", "image_url": {"url": "https://x.example/y.png", "detail": "low"}},
            {"type": "document_url", "document_url": "https://x.example/d.pdf", "document_name": "d"},
            {"type": "reference", "reference_ids": [1, "a"]},
            {"type": "file", "file_id": "f1"},
            {"type": "input_audio", "input_audio": "QUJD"},
        ],
    },
    {
        "role": "assistant",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}, "index": 0},
            {"id": "c2", "function": {"name": "f", "arguments": {"a": None}}},
        ],
    },
    {"role": "tool", "content": "r", "tool_call_id": "c1", "name": "f"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "h"}], "closed": True},
            {"type": "text", "text": "x"},
        ],
    },
    {"role": "user", "content": "Go on."},
    {"role": "assistant", "content": "Once", "prefix": True},
]
GUARDRAIL = {
    "block_on_error": True,
    "moderation_llm_v1": {
        "model_name": "m",
        "custom_category_thresholds": {"sexual": 0.1},
        "ignore_other_categories": True,
    },
}
PARAMETERS: dict[str, Any] = {
    "temperature": 0.3,
    "top_p": 0.9,
    "top_k": 5,
    "max_tokens": 10,
    "min_tokens": 1,
    "stop": ["a", "b"],
    "random_seed": 7,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    "tools": [FUNCTION],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "repetition_penalty": 1.1,
    "logprobs": True,
    "top_logprobs": 3,
    "prompt_logprobs": True,
    "top_prompt_logprobs": 2,
    "n": 1,
    "prediction": {"type": "content", "content": "p"},
    "parallel_tool_calls": False,
    "reasoning_effort": "high",
    "prompt_mode": "reasoning",
    "guardrails": [GUARDRAIL],
    "prompt_cache_key": "k",
    "service_tier": "auto",
    "safe_prompt": False,
}
REQUESTS = (
    {name: {name: value} for name, value in PARAMETERS.items()}
    | {"nothing but messages": {}, "stop as a string": {"stop": "a"}, "tool_choice in a word": {"tool_choice": "any"}}
    | {"a conversation": {"messages": CONVERSATION}, "everything": PARAMETERS | {"messages": CONVERSATION}}
)


@asynccontextmanager
async def chat(server: RawServer, key: str | None = KEY) -> AsyncIterator[MistralChat]:
    model = MistralChat(key, server.url)
    try:
        yield model
    finally:
        await model.aclose()


async def asked(model: MistralChat, body: dict[str, Any], continue_from: str | None = None) -> None:
    """One completion, to its end."""
    async with aclosing(model.stream(ChatRequest.parse(body), continue_from)) as events:
        said = [event async for event in events]
    assert isinstance(said[-1], Finish)


async def sdk_asked(server: RawServer, body: dict[str, Any]) -> None:
    async with httpx2.AsyncClient() as client:
        sdk = Mistral(api_key=KEY, server_url=server.url, async_client=client)
        async for _ in await sdk.chat.stream_async(**body):
            pass


def seen(visit: Visit) -> tuple[str, dict[str, str], Any]:
    """Request line, headers (the length differs with the spelling of the JSON) and body."""
    headers = {name: value for name, value in visit.headers.items() if name != "content-length"}
    return visit.head.split("\r\n")[0], headers, json.loads(visit.body)


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
async def test_sends_what_the_sdk_sends(fields: dict[str, Any]) -> None:
    """One header differs on purpose: we refuse compression, so that size limits hold for what arrives."""
    body = {"model": "mistral-large-latest", "messages": HI} | fields
    async with raw_server(stream(HELLO)) as server, chat(server) as model:
        await sdk_asked(server, body)
        await asked(model, body)
    (their_line, their_headers, their_body), (our_line, our_headers, our_body) = map(seen, server.visits)
    assert (our_line, our_body) == (their_line, their_body)
    assert our_headers == their_headers | {"accept-encoding": "identity"}
    assert our_body["stream"] is True


def test_the_table_has_every_parameter() -> None:
    assert set(PARAMETERS) == set(ChatRequest.model_fields) - OURS - {"messages", "model"}


def test_nothing_of_ours_is_sent() -> None:
    ours = {"id": "r", "metadata": {"a": "b"}, "onInterrupt": "fail", "maxSegments": 2, "stream": False}
    hook = {"webhook": {"url": "https://x.example"}, "limits": {"stallSeconds": 1}, "jobId": "j"}
    body = json.loads(request_body(ChatRequest.parse({"messages": HI} | ours | hook)))
    assert body == {"messages": HI, "model": "mistral-small-latest", "stream": True}


def test_further_parameters_are_sent_as_they_are() -> None:
    extra = {"min_p": 0.1, "chat_template_kwargs": {"thinking": None}, "nothing": None}
    body = json.loads(request_body(ChatRequest.parse({"messages": HI, "extra": extra})))
    assert body == {"messages": HI, "model": "mistral-small-latest", "stream": True} | extra


def test_the_order_of_a_schema_is_the_callers() -> None:
    """A model that is constrained to a schema writes its properties in their order: reasons first, then the answer."""
    schema = {"type": "object", "properties": {"reasoning": {"type": "string"}, "answer": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = request_body(ChatRequest.parse({"messages": HI, "response_format": wanted}))
    assert list(json.loads(body)["response_format"]["json_schema"]["schema"]["properties"]) == ["reasoning", "answer"]


def test_null_says_nothing_but_within_the_callers_own_json() -> None:
    """An absent parameter and null are the same to Mistral; in a JSON Schema they are not."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"default": None}}}
    body = json.loads(request_body(ChatRequest.parse({"messages": HI, "temperature": None, "tools": [tool]})))
    assert "temperature" not in body
    assert body["tools"] == [tool]


@pytest.mark.parametrize(
    ("messages", "last"),
    [
        (HI, [*HI, {"role": "assistant", "content": " there", "prefix": True}]),
        (
            [*HI, {"role": "assistant", "content": "Hello", "prefix": True}],
            [*HI, {"role": "assistant", "content": "Hello there", "prefix": True}],
        ),
        (
            [*HI, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}], "prefix": True}],
            [
                *HI,
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}],
                    "prefix": True,
                },
            ],
        ),
    ],
    ids=["a question", "a prefix", "a prefix in parts"],
)
def test_an_answer_goes_on_from_the_text_so_far(messages: list[Any], last: list[Any]) -> None:
    """As an assistant message with ``prefix``; a prefix of the caller's and the text are one message."""
    assert json.loads(request_body(ChatRequest.parse({"messages": messages}), " there"))["messages"] == last


@pytest.mark.parametrize("text", [None, ""])
def test_without_text_there_is_no_prefix(text: str | None) -> None:
    """A blank prefix is known to yield garbage."""
    assert json.loads(request_body(ChatRequest.parse({"messages": HI}), text))["messages"] == HI


async def test_the_sdks_hooks_run() -> None:
    """They carry its service-account credentials and its tracing."""
    seen_by_hook: list[str] = []

    class Hook:
        def before_request(self, context: BeforeRequestContext, request: httpx2.Request) -> httpx2.Request:
            seen_by_hook.append(f"{context.operation_id} {context.tags} {context.base_url == server.url}")
            request.headers["x-hook"] = "was here"
            return request

    async with raw_server(stream(HELLO)) as server, chat(server) as model:
        model._calls._sdk.sdk_configuration.__dict__["_hooks"].register_before_request_hook(Hook())
        await asked(model, {"messages": HI})
    assert seen_by_hook == ["stream_chat ['chat'] True"]
    assert server.visits[0].headers["x-hook"] == "was here"


async def test_credentials_may_come_from_the_sdks_own_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", "sk-from-the-environment")
    async with raw_server(stream(HELLO)) as server, chat(server, key=None) as model:
        await asked(model, {"messages": HI})
    assert server.visits[0].headers["authorization"] == "Bearer sk-from-the-environment"


def test_the_sdk_is_the_one_we_know() -> None:
    """We call methods of its that may change without notice. On failure: compare Chat.stream_async with ours."""
    assert mistralai.client.VERSION.startswith("3.7.")
    build = inspect.signature(BaseSDK._build_request_async).parameters
    assert {"request", "base_url", "get_serialized_body", "security", "accept_header_value"} <= set(build)
    send = inspect.signature(BaseSDK.do_request_async).parameters
    assert list(send) == ["self", "hook_ctx", "request", "is_error_status_code", "stream", "retry_config"]
    source = inspect.getsource(Chat.stream_async)
    assert 'path="/v1/chat/completions#stream"' in source
    assert 'operation_id="stream_chat"' in source


@pytest.mark.parametrize("key", ["sk-1234\n", " sk-1234", "sk-é", "sk-1234\x00"])
def test_a_key_that_no_header_can_carry_is_refused_at_once(key: str) -> None:
    """Without repeating it."""
    with pytest.raises(ValueError, match="MISTRAL_API_KEY") as refusal:
        MistralChat(key)
    assert "sk-" not in str(refusal.value)


@pytest.mark.parametrize("url", ["api.mistral.ai", "localhost:8000", "ftp://x.example", "http://", "http://x:port"])
def test_an_address_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="MISTRAL_SERVER_URL"):
        MistralChat(KEY, url)


async def test_the_sdks_tracing_sees_the_answer() -> None:
    """Where tracing is configured, its span ends with the answer and knows the tokens."""
    spans: list[Span] = []

    class Span(NonRecordingSpan):
        def __init__(self) -> None:
            super().__init__(INVALID_SPAN_CONTEXT)
            self.attributes: dict[str, Any] = {}
            self.ended = False
            spans.append(self)

        def set_attribute(self, key: str, value: Any) -> None:
            self.attributes[key] = value

        def end(self, end_time: int | None = None) -> None:
            self.ended = True

    class Tracer(NoOpTracer):
        def start_span(self, *arguments: Any, **more: Any) -> Span:
            return Span()

    class Provider(TracerProvider):
        def get_tracer(self, *arguments: Any, **more: Any) -> Tracer:
            return Tracer()

    async with raw_server(stream(HELLO)) as server, chat(server) as model:
        configure_telemetry(model._calls._sdk, Provider(), redaction=False)
        await asked(model, {"messages": HI})
    assert [span.ended for span in spans] == [True]
    assert spans[0].attributes["gen_ai.usage.output_tokens"] == USAGE["completion_tokens"]
