"""How calls of Mistral fail: each failure becomes one of our errors, bounded, without secrets or prompts."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from mistralai.client import Mistral, models
from mistralai.client._hooks import AfterSuccessContext

from chatjobs.contracts import Channel, ChatRequest
from domain.errors import UpstreamError, UpstreamInterrupted, UpstreamRateLimited, UpstreamRefused
from domain.ports import MODEL_NOT_FOUND, Finish, ModelEvent, StillWorking, TextDelta
from domain.timings import Timings
from providers.mistral import chat as mistral
from providers.mistral import sdk
from providers.mistral.chat import MistralChat
from providers.mistral.errors import Private
from tests.support.mistral_stream import DONE, END, HELLO, USAGE, call, chunk, sse, text
from tests.support.raw_http import STREAM_HEAD, RawServer, Reply, Visit, head, part, plain, raw_server, stream

KEY = "sk-live-abcdef1234567890"
SECRET_PROMPT = "The launch code is 0000-1111-2222."
REQUEST = ChatRequest.parse(
    {
        "messages": [{"role": "system", "content": "Marvin"}, {"role": "user", "content": SECRET_PROMPT}],
        "model": "mistral-small-latest",
    }
)
KERNEL_BYTES = 15_000_000
"""More than the buffers of a loopback connection hold, so that a server that sent less was not read to the end."""


@asynccontextmanager
async def chat(
    server: RawServer, url: str | None = None, *, timings: Timings = Timings()
) -> AsyncIterator[MistralChat]:
    model = MistralChat(KEY, url or server.url, timings=timings)
    try:
        yield model
    finally:
        await model.aclose()


async def events(model: MistralChat) -> list[ModelEvent]:
    async with aclosing(model.stream(REQUEST)) as said:
        return [event async for event in said]


async def failure(*replies: Reply, timings: Timings = Timings()) -> UpstreamError:
    """How one call fails. The error is checked for what must never be in one."""
    async with raw_server(*replies) as server, chat(server, timings=timings) as model:
        with pytest.raises(UpstreamError) as failed:
            await events(model)
    assert_harmless(failed.value)
    return failed.value


def assert_harmless(error: UpstreamError) -> None:
    shown = "".join(traceback.format_exception(error))
    for secret in (KEY, KEY[-10:], "launch code", "0000-1111", "Marvin"):
        assert secret not in shown
    assert len(error.message) <= 500
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


# -------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Case:
    """A reply, and the error that comes of it."""

    reply: Reply
    error: type[UpstreamError]
    code: str
    status: int | None
    says: str = ""


async def reset(visit: Visit) -> None:
    visit.writer.transport.abort()


async def cut_head(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 OK\r\ncontent-")
    visit.writer.close()


async def cut_body(visit: Visit) -> None:
    await visit.send(STREAM_HEAD, part(sse(text("Hel"))), b"ff\r\ndata: {")
    visit.writer.close()


def status(line: str, **headers: str) -> bytes:
    return plain(line, {"object": "error", "message": "Something is off.", "type": "x", "code": "1"}, **headers)


REFUSED, LIMITED, INTERRUPTED = UpstreamRefused, UpstreamRateLimited, UpstreamInterrupted
CASES = {
    "400": Case(status("400 Bad Request"), REFUSED, "upstream_rejected", 400, "Mistral says: Something is off."),
    "401": Case(status("401 Unauthorized"), REFUSED, "upstream_unauthorized", 401, "MISTRAL_API_KEY"),
    "403": Case(status("403 Forbidden"), REFUSED, "upstream_unauthorized", 403, "MISTRAL_API_KEY"),
    "404": Case(status("404 Not Found"), REFUSED, "upstream_rejected", 404, "the model's name"),
    "408": Case(status("408 Request Timeout"), INTERRUPTED, "upstream_unavailable", 408, "try again"),
    "413": Case(status("413 Too Large"), REFUSED, "upstream_rejected", 413),
    "422": Case(
        plain("422 Unprocessable", {"detail": [{"loc": ["body", "x"], "msg": "Field required", "input": "x"}]}),
        REFUSED,
        "upstream_rejected",
        422,
        "Mistral says: Field required",
    ),
    "422 with an object as message": Case(
        plain("422 Unprocessable", {"message": {"detail": [{"msg": "Field required"}, {"msg": 7}, "x"]}}),
        REFUSED,
        "upstream_rejected",
        422,
        "Mistral says: Field required",
    ),
    "429": Case(status("429 Too Many Requests"), LIMITED, "upstream_rate_limited", 429, "slow down"),
    "429 without allowance": Case(
        status("429 Too Many Requests", x_ratelimit_limit_req_minute="0"), REFUSED, "upstream_no_allowance", 429
    ),
    "500": Case(status("500 Internal Server Error"), INTERRUPTED, "upstream_unavailable", 500),
    "503 without a body": Case(plain("503 Service Unavailable"), INTERRUPTED, "upstream_unavailable", 503),
    "529": Case(status("529 Overloaded"), INTERRUPTED, "upstream_unavailable", 529),
    "status nobody knows": Case(status("999 What"), INTERRUPTED, "upstream_protocol", 999),
    "204": Case(head("204 No Content"), INTERRUPTED, "upstream_protocol", 204),
    "301": Case(plain("301 Moved", location="/elsewhere"), INTERRUPTED, "upstream_protocol", 301),
    "html": Case(plain("200 OK", b"<html>", content_type="text/html"), INTERRUPTED, "upstream_protocol", 200),
    "json": Case(plain("200 OK", {"choices": []}), INTERRUPTED, "upstream_protocol", 200),
    "compressed": Case(
        plain("200 OK", gzip.compress(HELLO), content_type="text/event-stream", content_encoding="gzip"),
        INTERRUPTED,
        "upstream_protocol",
        200,
    ),
    "not HTTP": Case(b"SSH-2.0-x\r\n\r\n", INTERRUPTED, "upstream_unreachable", None),
    "reset before the head": Case(reset, INTERRUPTED, "upstream_unreachable", None),
    "closed within the head": Case(cut_head, INTERRUPTED, "upstream_unreachable", None),
    "closed within the body": Case(cut_body, INTERRUPTED, "upstream_cut", 200, "try again"),
    "chunk of no size": Case(STREAM_HEAD + b"zz\r\n", INTERRUPTED, "upstream_cut", 200),
    "no finish reason": Case(stream(sse(text("Hel"))), INTERRUPTED, "upstream_cut", 200),
    "empty stream": Case(stream(), INTERRUPTED, "upstream_empty", 200),
    "only comments": Case(stream(b": ping\n\n"), INTERRUPTED, "upstream_empty", 200),
    "malformed": Case(stream(b"data: {\n\n"), INTERRUPTED, "upstream_protocol", 200),
    "invalid UTF-8": Case(stream(b'data: {"choices": "\xff"}\n\n'), INTERRUPTED, "upstream_protocol", 200),
    "finish reason error": Case(stream(sse(text("Hel", "error"))), INTERRUPTED, "upstream_error", 200),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_every_failure_has_its_error(case: Case) -> None:
    error = await failure(case.reply)
    assert (type(error), error.reason, error.http_status) == (case.error, case.code, case.status)
    assert case.says in error.message


NAME = "ghost/of-a-model:7b"
NO_SUCH_MODEL: dict[str, tuple[int, Any]] = {
    "Mistral": (
        400,
        {"object": "error", "message": f"Invalid model: {NAME}", "type": "invalid_model", "code": "1500"},
    ),
    "Mistral, by its code": (400, {"message": "No.", "code": "1500"}),
    "Mistral, without a name": (400, {"object": "error", "message": "Invalid model: ", "type": "invalid_model"}),
    "OpenAI": (
        404,
        {
            "error": {
                "message": f"The model `{NAME}` does not exist or you do not have access to it.",
                "type": "invalid_request_error",
                "param": None,
                "code": "model_not_found",
            }
        },
    ),
    "OpenAI, of a project": (
        403,
        {
            "error": {
                "message": f"Project `p` does not have access to model `{NAME}`",
                "type": "invalid_request_error",
                "code": "model_not_found",
            }
        },
    ),
    "vLLM": (
        404,
        {"error": {"message": f"The model `{NAME}` does not exist.", "type": "NotFoundError", "param": "model"}},
    ),
    "vLLM before 0.10": (
        404,
        {"object": "error", "message": f"The model `{NAME}` does not exist.", "type": "NotFoundError", "code": 404},
    ),
    "Ollama": (
        404,
        {"error": {"message": f'model "{NAME}" not found, try pulling it first', "type": "api_error", "code": None}},
    ),
    "Ollama, newer": (
        404,
        {"error": {"message": f"model '{NAME}' not found", "type": "not_found_error", "param": None, "code": None}},
    ),
    "llama.cpp's router": (
        400,
        {"error": {"code": 400, "message": "model not found", "type": "invalid_request_error"}},
    ),
    "llama.cpp's router, with the name": (
        404,
        {"error": {"code": 404, "message": f"model '{NAME}' not found", "type": "not_found_error"}},
    ),
    "LM Studio": (
        404,
        {"error": {"message": "No models loaded. Please load a model.", "code": "model_not_found", "param": "model"}},
    ),
    "LiteLLM": (
        400,
        {
            "error": {
                "message": f"/chat/completions: Invalid model name passed in model={NAME}. Call `/v1/models` to view"
                " available models for your key.",
                "type": "invalid_request_error",
                "param": "model",
                "code": "400",
            }
        },
    ),
    "LiteLLM, older": (
        400,
        {"error": {"message": f"400: {{'error': 'Invalid model name passed in model={NAME}'}}", "type": "None"}},
    ),
    "LiteLLM, of another server": (
        404,
        {"error": {"message": f"litellm.NotFoundError: OpenAIException - The model `{NAME}` does not exist."}},
    ),
    "OpenRouter": (400, {"error": {"message": f"{NAME} is not a valid model ID", "code": 400}}),
}


@pytest.mark.parametrize("case", NO_SUCH_MODEL.values(), ids=NO_SUCH_MODEL)
async def test_a_model_that_does_not_exist_has_a_reason_of_its_own(case: tuple[int, Any]) -> None:
    """In the words of each server, before and in the stream; another model may answer."""
    status_code, body = case
    error = await failure(plain(f"{status_code} x", body))
    assert (type(error), error.reason, error.http_status) == (REFUSED, MODEL_NOT_FOUND, status_code)
    assert "GET /v1/models" in error.message
    streamed = await failure(stream(sse(body)))
    assert (type(streamed), streamed.reason) == (REFUSED, MODEL_NOT_FOUND)


NOT_THE_MODEL: dict[str, tuple[int, Any, str]] = {
    "FastAPI, another address": (404, {"detail": "Not Found"}, "upstream_rejected"),
    "Ollama, another address": (404, b"404 page not found", "upstream_rejected"),
    "llama.cpp, another address": (
        404,
        {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}},
        "upstream_rejected",
    ),
    "a web server": (404, b"<html>no model was not found here: model x not found</html>", "upstream_rejected"),
    "Mistral, another address": (404, {"message": "no Route matched with those values"}, "upstream_rejected"),
    "a missing file of the request": (404, {"detail": "File f-1 not found"}, "upstream_rejected"),
    "a tool that the model called": (
        400,
        {"message": "Tool 'f', called by the model does not exist", "type": "invalid_request_error"},
        "upstream_rejected",
    ),
    "a parameter": (400, {"message": "Invalid model parameters: top_k", "type": "bad_request"}, "upstream_rejected"),
    "a key that may not use it": (
        401,
        {"error": {"message": "key not allowed to access model. Tried to access x", "type": "key_model_access_denied"}},
        "upstream_unauthorized",
    ),
    "words of a 403": (403, {"message": "Forbidden: the model x does not exist for you"}, "upstream_unauthorized"),
    "busy": (429, {"error": {"message": "No deployments available for selected model"}}, "upstream_rate_limited"),
    "loading": (503, {"error": {"code": 503, "message": "Loading model"}}, "upstream_unavailable"),
}


@pytest.mark.parametrize("case", NOT_THE_MODEL.values(), ids=NOT_THE_MODEL)
async def test_other_failures_do_not_pass_for_a_missing_model(case: tuple[int, Any, str]) -> None:
    """A wrong address above all: no other model would answer there."""
    status_code, body, reason = case
    content_type = "text/html" if isinstance(body, bytes) else "application/json"
    assert (await failure(plain(f"{status_code} x", body, content_type=content_type))).reason == reason


IN_STREAM: dict[str, tuple[dict[str, Any], type[UpstreamError], str]] = {
    "rate limit": ({"type": "rate_limit_error", "code": None}, LIMITED, "upstream_rate_limited"),
    "rate limit by number": ({"type": "x", "code": "1300"}, LIMITED, "upstream_rate_limited"),
    "capacity": ({"type": "service_tier_capacity_exceeded", "code": "3505"}, LIMITED, "upstream_rate_limited"),
    "invalid request": ({"type": "invalid_request_error", "code": 3051}, REFUSED, "upstream_rejected"),
    "credentials": ({"type": "authentication_error"}, REFUSED, "upstream_unauthorized"),
    "status 503": ({"type": "x", "raw_status_code": 503}, INTERRUPTED, "upstream_unavailable"),
    "status 429": ({"type": "x", "code": 429}, LIMITED, "upstream_rate_limited"),
    "anything else": ({"type": "internal_server_error", "code": "3000"}, INTERRUPTED, "upstream_error"),
}


@pytest.mark.parametrize("wrap", [lambda e: {"object": "error"} | e, lambda e: {"error": e}], ids=["flat", "nested"])
@pytest.mark.parametrize("case", IN_STREAM.values(), ids=IN_STREAM)
async def test_an_error_in_the_stream_is_what_it_says(
    case: tuple[dict[str, Any], type[UpstreamError], str], wrap: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    error = await failure(stream(sse(text("Hel")), sse(wrap({"message": "Something is off."} | case[0]))))
    assert (type(error), error.reason, error.http_status) == (*case[1:], 200)
    assert "Something is off." in error.message


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with raw_server(b"") as server:
        url = server.url
    async with chat(server, url) as model:
        with pytest.raises(UpstreamInterrupted) as failed:
            await events(model)
    assert (failed.value.reason, failed.value.http_status) == ("upstream_unreachable", None)
    assert_harmless(failed.value)


async def test_redirects_are_not_followed() -> None:
    async with raw_server(plain("307 Moved", location="/elsewhere")) as server, chat(server) as model:
        with pytest.raises(UpstreamInterrupted):
            await events(model)
    assert len(server.visits) == 1


# ----------------------------------------------------------------------------------------------- Retry-After

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(("line", "code"), [("429 Too Many Requests", "rate_limited"), ("503 x", "unavailable")])
async def test_retry_after_comes_with_the_error(line: str, code: str) -> None:
    error = await failure(status(line, retry_after="7"))
    assert (error.reason, error.retry_after) == (f"upstream_{code}", 7.0)


# ------------------------------------------------------------------------------------- what an error may repeat


@pytest.mark.parametrize(
    "said",
    [
        f"Cannot answer: {SECRET_PROMPT}",
        "…the LAUNCH code is\\n0000-1111…",
        "code is 0000/1111/2222",
        "Hello Marvin!",
        f"Invalid key {KEY}",
        "Key ending in 567890 is unknown",
        "x" * 201,
        {"launch": "code"},
        ["launch code is 0000-1111-2222"],
        None,
    ],
    ids=repr,
)
async def test_words_that_repeat_the_request_are_left_out(said: Any) -> None:
    """As are long ones, and those that are no text."""
    body = {"message": said, "detail": said, "input": SECRET_PROMPT, "authorization": KEY}
    assert "Mistral says" not in (await failure(plain("400 Bad Request", body))).message
    in_stream = stream(sse(text("a"), {"object": "error", "message": said, "type": "invalid_request"}))
    assert "Mistral says" not in (await failure(in_stream)).message


@pytest.mark.parametrize("prompt", ["日本語のとても秘密の計画について", "clé secrète très privée"])
async def test_a_prompt_that_comes_back_escaped_is_recognised(prompt: str) -> None:
    """As JSON, as a URL, as HTML."""
    private = Private(json.dumps({"messages": [{"content": prompt}]}).encode())
    ways = [json.dumps(prompt), quote(prompt), "".join(f"&#{ord(one)};" for one in prompt), json.dumps({"m": prompt})]
    assert all(private.appears_in(f"cannot answer {way}") for way in ways)


async def test_long_reasons_are_shortened_at_a_word() -> None:
    error = await failure(plain("400 Bad Request", {"message": "The tool has no schema. " * 20}))
    assert "Mistral says: The tool has no schema. The" in error.message
    assert error.message.endswith(" …")


async def test_places_and_codes_are_shown_only_where_they_are_names() -> None:
    """And never where they stand in the request."""
    details = [
        {"loc": ["body", "messages", 0, "content"], "msg": "Field required"},
        {"loc": ["body", "The launch code is"], "msg": "Not this one"},
        {"loc": "Marvin", "msg": "Nor this"},
        {"loc": ["body", "x"], "msg": SECRET_PROMPT},
    ]
    said = (await failure(plain("422 x", {"detail": details, "code": "Marvin"}))).message
    shown = ["Field required (at body.messages.0.content)", "Not this one", "Nor this", "at body.x"]
    assert said.partition("Mistral says: ")[2].split("; ") == shown


CAPACITY = "Service tier capacity exceeded for this model."
BODIES: dict[str, tuple[dict[str, Any], type[UpstreamError]]] = {
    "capacity": ({"object": "error", "message": CAPACITY, "type": "invalid_request_error", "code": None}, LIMITED),
    "rate limit": ({"message": "Requests rate limit exceeded"}, LIMITED),
    "gateway's": ({"error": {"message": "litellm.RateLimitError: MistralException - busy", "type": None}}, LIMITED),
    "quota": ({"error": {"message": "quota exceeded"}}, LIMITED),
    "code 3505": ({"error": {"type": "x", "code": 3505}}, LIMITED),
    "credit": ({"error": {"message": "You exceeded your quota", "type": "insufficient_quota"}}, REFUSED),
    "too long": ({"error": {"message": "x", "type": "exceed_context_size_error"}}, REFUSED),
    "too long in words": ({"error": "Prompt is too long: the context capacity is exceeded, 9 tokens"}, REFUSED),
    "overloaded": ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, INTERRUPTED),
    "anything": ({"error": {"message": "A thing happened."}}, INTERRUPTED),
}


@pytest.mark.parametrize("case", BODIES.values(), ids=BODIES)
async def test_a_body_without_a_status_is_classified_by_its_words(
    case: tuple[dict[str, Any], type[UpstreamError]],
) -> None:
    """In a stream, and in a document with the status of a success."""
    body, error = case
    assert type(await failure(stream(sse(text("Hel"), body)))) is error
    assert type(await failure(plain("200 OK", body, content_type="application/json"))) is error


@pytest.mark.parametrize("status_code", [400, 401, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("words", ["Something is off.", CAPACITY, "Requests rate limit exceeded"])
async def test_a_status_within_a_stream_is_as_good_as_one_before_it(status_code: int, words: str) -> None:
    """The same class and code, whether the status is the response's or the error's own."""
    body = {"object": "error", "message": words, "type": "invalid_request_error", "code": status_code}
    alone = await failure(plain(f"{status_code} x", body | {"code": None}))
    for within in (body, {"error": body}, {"error": json.dumps(body)}):
        streamed = await failure(stream(sse(text("Hel"), within)))
        assert (type(streamed), streamed.reason) == (type(alone), alone.reason)
    field = await failure(stream(b"error: " + json.dumps(body).encode() + b"\n\n"))
    assert (type(field), field.reason) == (type(alone), alone.reason)


async def test_other_words_are_passed_on_in_one_line() -> None:
    error = await failure(plain("400 Bad Request", {"message": "Invalid model:\n mistral-small-latest\x00"}))
    assert error.message.endswith("(HTTP 400). Mistral says: Invalid model: mistral-small-latest\ufffd")


@pytest.mark.parametrize("body", [b"\xff", b"[" * 20_000, b"<html>", b"7", b'"x"', b"null", b'{"message": '])
async def test_any_body_will_do(body: bytes) -> None:
    assert (await failure(plain("400 Bad Request", body))).reason == "upstream_rejected"


def test_what_a_request_holds_is_recognised_anywhere_in_it() -> None:
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Ottokar's sceptre"}]}],
        "tools": [{"function": {"name": "f", "parameters": {"description": "Syldavian affairs"}}}],
        "stop": ["Klow"],
    }
    private = Private(json.dumps(body).encode())
    assert all(map(private.appears_in, ["ottokar s sceptre?", "about syldavian AFFAIRS", "at Klow."]))
    assert not any(map(private.appears_in, ["role user, type text", "Klows", "Ottokar's", "function"]))


async def test_an_error_body_is_read_to_16_kb_at_most() -> None:
    async def endless(visit: Visit) -> None:
        await visit.send(head("400 Bad Request", content_type="application/json", transfer_encoding="chunked"))
        while True:
            await visit.send(part(b"x" * 65_536))

    async with raw_server(endless) as server, chat(server) as model:
        with pytest.raises(UpstreamRefused):
            await events(model)
        await asyncio.wait_for(server.visits[0].gone.wait(), 2)
    assert server.visits[0].sent < KERNEL_BYTES


async def test_an_error_body_that_does_not_come_is_not_waited_for() -> None:
    async def silent(visit: Visit) -> None:
        await visit.send(head("503 x", content_length="10"))
        await asyncio.sleep(30)

    error = await failure(silent, timings=Timings(model_error_seconds=0.1))
    assert error.reason == "upstream_unavailable"


# ---------------------------------------------------------------------------------------- limits and closing


async def flood(visit: Visit) -> None:
    """One line without end."""
    await visit.send(STREAM_HEAD, part(b"data: "))
    while True:
        await visit.send(part(b"x" * 65_536))


async def drip(visit: Visit) -> None:
    """A token, then comments for ever."""
    await visit.send(STREAM_HEAD, part(sse(text("Hel"))))
    while True:
        await visit.send(part(b": ping\n\n"))
        await asyncio.sleep(0.01)


async def comments(visit: Visit) -> None:
    await visit.send(STREAM_HEAD)
    while True:
        await visit.send(part(b": ping\n\n" * 8_000))


async def test_a_line_without_end_is_read_to_1_mb() -> None:
    async with raw_server(flood) as server, chat(server) as model:
        with pytest.raises(UpstreamRefused) as failed:
            await events(model)
        await asyncio.wait_for(server.visits[0].gone.wait(), 2)
    assert failed.value.reason == "upstream_too_large"
    assert_harmless(failed.value)
    assert server.visits[0].sent < KERNEL_BYTES


async def test_a_response_without_end_is_read_to_16_mb() -> None:
    error = await failure(comments)
    assert (type(error), error.reason) == (UpstreamRefused, "upstream_too_large")


async def test_closing_the_generator_closes_the_connection() -> None:
    async with raw_server(drip) as server, chat(server) as model:
        async with aclosing(model.stream(REQUEST)) as said:
            assert isinstance(await anext(said), TextDelta)
        await asyncio.wait_for(server.visits[0].gone.wait(), 2)


async def silent(visit: Visit) -> None:
    await asyncio.sleep(30)


async def silent_after_a_token(visit: Visit) -> None:
    await visit.send(STREAM_HEAD, part(sse(text("Hel"))))
    await asyncio.sleep(30)


@pytest.mark.parametrize("reply", [silent, silent_after_a_token, drip])
async def test_cancelling_closes_the_connection(reply: Reply) -> None:
    async with raw_server(reply) as server, chat(server) as model:
        call = asyncio.ensure_future(events(model))
        await asyncio.wait_for(server.visited.wait(), 30)
        await asyncio.sleep(0.1)
        call.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - began < 1
        await asyncio.wait_for(server.visits[0].gone.wait(), 2)


async def test_a_callers_clock_is_not_mistaken_for_a_failure() -> None:
    """First token, stall and total are the caller's: TimeoutError comes out as it is."""
    async with raw_server(silent_after_a_token) as server, chat(server) as model:
        call = asyncio.ensure_future(events(model))
        await asyncio.wait_for(server.visited.wait(), 30)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await call
        await asyncio.wait_for(server.visits[0].gone.wait(), 2)


async def test_cancelling_within_the_sdks_hooks_closes_the_connection() -> None:
    """Between the response and the SDK's return nobody else holds it."""

    class Slow:
        def after_success(self, context: AfterSuccessContext, response: Any) -> Any:
            time.sleep(0.3)
            return response

    async with raw_server(silent_after_a_token) as server, chat(server) as model:
        model._calls._sdk.sdk_configuration.__dict__["_hooks"].register_after_success_hook(Slow())
        call = asyncio.ensure_future(events(model))
        await asyncio.sleep(0.15)
        call.cancel()
        await asyncio.wait_for(server.visits[0].gone.wait(), 2)
        await asyncio.gather(call, return_exceptions=True)
    assert call.cancelled()


# --------------------------------------------------------------------------------------- after the finish reason

FINISHED = [TextDelta(Channel.CONTENT, words) for words in ("Hel", "lo")]


def then(*pieces: bytes, close: Callable[[Visit], None] = lambda visit: None) -> Reply:
    """A whole answer without usage, and then this."""

    async def reply(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(sse(text("Hel"), text("lo"), text("", "stop"))))
        for piece in pieces:
            await asyncio.sleep(0.02)
            await visit.send(piece)
        close(visit)
        await asyncio.sleep(30)

    return reply


LATE_USAGE = {"choices": [], "usage": USAGE}
ENDINGS = {
    "usage and [DONE]": (then(part(sse(LATE_USAGE)), part(DONE)), USAGE),
    "usage without a blank line": (then(part(sse(LATE_USAGE)[:-1]), b"0\r\n\r\n"), USAGE),
    "[DONE] at once": (then(part(DONE)), None),
    "end of the response": (then(b"0\r\n\r\n"), None),
    "a cut": (then(close=lambda visit: visit.writer.close()), None),
    "a reset": (then(close=lambda visit: visit.writer.transport.abort()), None),
    "usage, then a cut": (then(part(sse(LATE_USAGE)), close=lambda visit: visit.writer.close()), USAGE),
    "junk": (then(part(b"data: {\n\n")), None),
    "an error": (then(part(sse({"object": "error", "message": "x"}))), None),
    "nothing": (then(), None),
    "comments": (then(*[part(b": ping\n\n")] * 100), None),
}


@pytest.mark.parametrize(("reply", "usage"), ENDINGS.values(), ids=ENDINGS)
async def test_nothing_can_undo_a_finished_answer(reply: Reply, usage: dict[str, int] | None) -> None:
    """Late usage is waited for, shortly."""
    async with raw_server(reply) as server, chat(server, timings=Timings(model_late_seconds=0.2)) as model:
        began = time.monotonic()
        *said, end = await events(model)
        assert time.monotonic() - began < 1.5
    assert said == FINISHED
    assert isinstance(end, Finish)
    assert (end.reason, end.usage and end.usage.model_dump()) == ("stop", usage)


FRAMELESS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    ("frames", "whole"),
    [
        (sse(text("Hello", "stop")), False),
        (sse(text("Hello", "stop")) + DONE, True),
        (sse(text("Hel"), text("lo", "stop")), True),
    ],
    ids=["doubtful", "[DONE]", "certain"],
)
async def test_the_end_of_a_connection_is_no_proper_end(frames: bytes, whole: bool) -> None:
    """Where nothing else ends a response, it ends there, and so does one that is cut."""

    async def reply(visit: Visit) -> None:
        await visit.send(FRAMELESS, frames)
        visit.writer.close()

    async with raw_server(reply, stream(frames)) as server, chat(server) as model:
        if whole:
            assert isinstance((await events(model))[-1], Finish)
        else:
            with pytest.raises(UpstreamInterrupted) as failed:
                await events(model)
            assert failed.value.reason == "upstream_cut"
        assert isinstance((await events(model))[-1], Finish)  # a response that says where it ends


async def test_a_doubtful_end_is_not_waited_out() -> None:
    """A finish reason beside all there is, then silence: there may be more, and the clock on silence decides."""

    async def reply(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(sse(text("Hello", "stop"))))
        await asyncio.sleep(30)

    async with raw_server(reply) as server, chat(server, timings=Timings(model_late_seconds=0.05)) as model:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await events(model)


async def test_what_comes_late_belongs_to_the_answer() -> None:
    """Text and calls behind the finish reason; waiting for them is no silence; pings do not make it longer."""
    timings = Timings(model_late_seconds=0.6, model_sign_of_life_seconds=0.1)
    called = chunk({"tool_calls": [call("{}", name="f", id="1")]}, "tool_calls")

    async def reply(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(sse(text("Hel"), text("", "stop"))))
        await asyncio.sleep(0.4)
        await visit.send(part(sse(LATE_USAGE)))
        await asyncio.sleep(0.4)
        await visit.send(part(sse(text("lo"), called)))
        await asyncio.sleep(0.8)
        await visit.send(part(sse(text("", "stop"))))
        await visit.send(part(DONE))

    async with raw_server(reply) as server, chat(server, timings=timings) as model:
        *said, end = await events(model)
    assert [event for event in said if not isinstance(event, StillWorking)] == FINISHED
    assert said.count(StillWorking()) > 3
    assert isinstance(end, Finish)
    assert (end.reason, [one.function.name for one in end.tool_calls]) == ("tool_calls", ["f"])

    async def pings(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(sse(text("Hello"), text("", "stop"))))
        while True:
            await visit.send(part(sse({"type": "ping"})))
            await asyncio.sleep(0.05)

    async with raw_server(pings) as server, chat(server, timings=timings) as model, asyncio.timeout(5):
        assert isinstance((await events(model))[-1], Finish)


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "application/octet-stream"])
async def test_an_answer_that_is_labelled_as_something_else(media_type: str) -> None:
    """A whole completion in place of a stream, with blanks in front as keep-alive, and a stream with another label."""
    message = {"role": "assistant", "content": "Hello"}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}
    for body in (b" \n \n" + json.dumps(document).encode(), HELLO, b": ping\n\n" + HELLO):
        async with raw_server(plain("200 OK", body, content_type=media_type)) as server, chat(server) as model:
            *said, end = await events(model)
        assert "".join(event.text for event in said if isinstance(event, TextDelta)) == "Hello"
        assert isinstance(end, Finish)


async def test_a_document_in_place_of_a_stream_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistral, "MAX_RESPONSE_BYTES", 1000)
    for body in (b'{"x": "' + b"x" * 2000, b" " * 20_000):
        error = await failure(plain("200 OK", body, content_type="application/json"))
        assert error.reason in ("upstream_too_large", "upstream_protocol")


# ---------------------------------------------------------------------------------------------- further kindness


async def test_a_deprecated_model_is_logged_and_answers(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK's own hook would read the body for a warning, which fails for every stream of such a model."""
    old = stream(HELLO).replace(b"\r\n", b"\r\nx-model-deprecation-timestamp: 2027-01-01\r\n", 1)
    with caplog.at_level(logging.WARNING, logger=sdk.__name__):
        async with raw_server(old) as server, chat(server) as model:
            assert isinstance((await events(model))[-1], Finish)
            theirs = Mistral(api_key=KEY, server_url=server.url, async_client=model._calls._http)
            with pytest.raises(httpx2.ResponseNotRead):  # the day it does not, _note_deprecation can go
                await theirs.chat.stream_async(model="m", messages=[models.UserMessage(content="Hi")])
    assert [record.__dict__["action"] for record in caplog.records] == ["model_deprecated"]


async def test_connections_are_kept_for_the_next_request() -> None:
    """Also where the consumer leaves at Finish, as the activity does."""

    async def polite(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, part(HELLO))
        await asyncio.sleep(0.02)
        await visit.send(b"0\r\n\r\n")

    async with raw_server(polite, stream(HELLO)) as server, chat(server) as model:
        for _ in range(3):
            async with aclosing(model.stream(REQUEST)) as said:
                async for event in said:
                    if isinstance(event, Finish):
                        break
    assert [visit.connection for visit in server.visits] == [0, 0, 0]


async def test_many_streams_at_once() -> None:
    async def spoken(visit: Visit) -> None:
        await visit.send(STREAM_HEAD)
        for character in "Hello":
            await visit.send(part(sse(text(character))))
        await visit.send(part(sse(END) + DONE), b"0\r\n\r\n")

    async with raw_server(spoken) as server, chat(server) as model:
        answers = await asyncio.gather(*(events(model) for _ in range(100)))
    texts = {"".join(event.text for event in answer if isinstance(event, TextDelta)) for answer in answers}
    assert texts == {"Hello"}


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is how many networks reach Mistral."""
    async with raw_server(stream(HELLO)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        async with chat(proxy, "http://mistral.example") as model:
            assert isinstance((await events(model))[-1], Finish)
    assert proxy.visits[0].head.startswith("POST http://mistral.example/v1/chat/completions HTTP/1.1\r\n")
