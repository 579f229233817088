"""Mistral's batch API: we send what the SDK sends; what comes back is an answer to a request, or its error."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from mistralai.client import Mistral
from mistralai.client.models import BatchJob

from chatjobs.contracts import Channel, ChatRequest
from domain.continuing import AS_MISTRAL
from domain.errors import UpstreamError, UpstreamInterrupted, UpstreamRateLimited, UpstreamRefused
from domain.ports import BatchAnswer, BatchLine, BatchPhase, Finish, LineOutcome, ModelBatch, PartDelta, TextDelta
from domain.timings import Timings
from providers.mistral import batch as module
from providers.mistral import batch_results
from providers.mistral.batch import MistralBatch
from providers.mistral.batch_results import ResultLine, groups, outcome
from providers.mistral.chat import request_body
from tests.support.raw_http import RawServer, Reply, Visit, raw_server
from tests.support.simulator_process import SimulatorProcess, prompt, simulator

MODEL = "mistral-small-latest"
KEY = "sk-test-1234567890"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def process() -> Iterator[SimulatorProcess]:
    with simulator() as found:
        yield found


@pytest.fixture
def sim(process: SimulatorProcess) -> SimulatorProcess:
    process.drop_batches()
    return process


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[MistralBatch]:
    model = MistralBatch(KEY, url, practice=lambda _: AS_MISTRAL, **options)
    try:
        yield model
    finally:
        await model.aclose()


@pytest.fixture
async def model(sim: SimulatorProcess) -> AsyncIterator[MistralBatch]:
    async with client(sim.url) as found:
        yield found


def asked(text: str, *further: dict[str, Any], **parameters: Any) -> ChatRequest:
    messages = [{"role": "user", "content": text}, *further]
    return ChatRequest.parse({"model": MODEL, "messages": messages} | parameters)


async def each(requests: Mapping[str, ChatRequest]) -> AsyncIterator[BatchLine]:
    for custom_id, request in requests.items():
        yield BatchLine(custom_id, request)


@dataclass
class Items:
    """Requests, as long as they have no result."""

    requests: dict[str, ChatRequest]
    calls: list[int] = field(default_factory=list)
    key: str = field(default_factory=prompt)

    @classmethod
    def of(cls, count: int, **script: Any) -> Items:
        return cls({f"job_{number}": asked(prompt(str(number), **script)) for number in range(count)})

    async def pending(self, ids: Collection[str]) -> Mapping[str, ChatRequest]:
        self.calls.append(len(ids))
        return {one: self.requests[one] for one in ids if one in self.requests}

    async def uploaded(self, model: MistralBatch) -> str:
        return await model.upload(self.key, each(self.requests))

    async def started(self, model: MistralBatch) -> ModelBatch:
        return await model.create(self.key, await self.uploaded(model), MODEL, timeout_hours=24)

    async def ended(self, model: MistralBatch) -> ModelBatch:
        return await until(model, await self.started(model), lambda batch: batch.complete)

    async def results(self, model: MistralBatch, batch: ModelBatch) -> dict[str, LineOutcome]:
        """All results; a request with a result does not wait any more."""
        found = dict[str, LineOutcome]()
        async with aclosing(model.results(batch, self.pending)) as results:
            async for custom_id, result in results:
                assert custom_id not in found
                found[custom_id] = result
                del self.requests[custom_id]
        return found


async def until(model: MistralBatch, batch: ModelBatch, reached: Callable[[ModelBatch], bool]) -> ModelBatch:
    async with asyncio.timeout(30):
        while not reached(batch):
            await asyncio.sleep(0.01)
            batch = await model.look(batch.id)
    return batch


def text_of(result: LineOutcome) -> str:
    assert isinstance(result, BatchAnswer), result
    texts = (piece for piece in result.pieces if isinstance(piece, TextDelta))
    return "".join(piece.text for piece in texts if piece.channel is Channel.CONTENT)


def reason_of(result: LineOutcome) -> str:
    assert isinstance(result, UpstreamError), result
    return result.reason


# ------------------------------------------------------------------------------------------------ the whole way


async def test_every_request_gets_the_answer_that_a_live_call_would_get(
    sim: SimulatorProcess, model: MistralBatch
) -> None:
    items = Items.of(250)
    asked_for = {custom_id: request.messages[-1].content for custom_id, request in items.requests.items()}
    batch = await items.ended(model)
    assert (batch.phase, batch.total, batch.succeeded, batch.failed) == (BatchPhase.DONE, 250, 250, 0)
    results = await items.results(model, batch)
    assert len(results) == 250
    assert items.calls == [100, 100, 50], "a few lines at a time"
    for custom_id in ("job_0", "job_111", "job_249"):
        said = sim.answer(str(asked_for[custom_id]))
        answer = results[custom_id]
        assert text_of(answer) == said["text"]
        assert isinstance(answer, BatchAnswer)
        assert answer.finish.reason == said["finish_reason"]
        assert answer.finish.usage is not None
        assert answer.finish.usage.model_dump(exclude_none=True) == said["usage"]


async def test_a_line_is_the_request_of_a_live_call_without_stream(sim: SimulatorProcess, model: MistralBatch) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    request = asked(
        "naïve 😀\n", temperature=0.3, stop=["x"], tools=[tool], metadata={"a": "b"}, limits={"totalSeconds": 9}, id="r"
    )
    file_id = await model.upload("a-key", each({'job "1"\n': request}))
    async with httpx2.AsyncClient(base_url=sim.url, headers={"authorization": "Bearer k"}) as http:
        content = (await http.get(f"/v1/files/{file_id}/content")).content
    line = json.loads(content)
    assert content.count(b"\n") == 1
    live = json.loads(request_body(request))
    assert line == {"custom_id": 'job "1"\n', "body": {name: live[name] for name in live if name != "stream"}}
    assert live["stream"] is True


async def test_a_callers_own_beginning_is_not_part_of_the_answer(sim: SimulatorProcess, model: MistralBatch) -> None:
    text = prompt(text="Once upon a time there was a gull.")
    beginning = {"role": "assistant", "content": "Once upon ", "prefix": True}
    items = Items({"job_1": asked(text, beginning)})
    batch = await items.ended(model)
    assert text_of((await items.results(model, batch))["job_1"]) == "a time there was a gull."


async def test_a_job_is_found_by_its_key(sim: SimulatorProcess, model: MistralBatch) -> None:
    items, others = Items.of(1, text="x"), Items.of(1, text="x")
    assert await model.find(items.key, since=LONG_AGO) is None
    first = await items.started(model)
    await others.started(model)
    second = await items.started(model)
    found = await model.find(items.key, since=LONG_AGO)
    assert found is not None
    assert found.id == first.id != second.id
    assert await model.find(items.key, since=datetime.now(UTC) + timedelta(hours=1)) is None


async def test_a_job_is_found_on_a_server_that_knows_no_filter_and_few_at_a_time() -> None:
    def page(request: Visit) -> bytes:
        number = int(httpx2.URL(request.head.split()[1]).params["page"])
        shown = ("other", "mine") if number == 1 else ("other", "other")
        size = module.PAGE if number < 2 else 7
        jobs = [job(f"{number}-{at}", key=shown[at % 2]) for at in range(size)]
        return json_response({"data": jobs})

    async def reply(visit: Visit) -> None:
        await visit.send(page(visit))

    async with raw_server(reply) as server, client(server.url) as model:
        found = await model.find("mine", since=LONG_AGO)
        assert found is not None
        assert found.id == "1-99", "the oldest"
        assert len(server.visits) == 3
        assert await model.find("mine", since=datetime.now(UTC)) is None
        assert len(server.visits) == 4, "what follows is older"


async def test_cancelling_keeps_what_is_there(sim: SimulatorProcess, model: MistralBatch) -> None:
    sim.batches(hold=3, cancel_seconds=0.2)
    items = Items.of(5, text="x")
    batch = await until(model, await items.started(model), lambda found: found.succeeded == 3)
    assert (batch.phase, batch.phase.ended) == (BatchPhase.RUNNING, False)
    assert (await model.cancel(batch.id)).phase is BatchPhase.CANCELLING
    batch = await until(model, batch, lambda found: found.complete)
    assert batch.phase is BatchPhase.CANCELLED
    assert sorted(await items.results(model, batch)) == ["job_0", "job_1", "job_2"]
    assert sorted(items.requests) == ["job_3", "job_4"]
    assert (await model.cancel(batch.id)).phase is BatchPhase.CANCELLED


async def test_a_server_that_refuses_to_cancel_what_has_ended(sim: SimulatorProcess, model: MistralBatch) -> None:
    batch = await Items.of(1, text="x").ended(model)
    sim.faults("cancel", {"kind": 400}, {"kind": 409}, {"kind": 503})
    for _ in range(2):
        assert (await model.cancel(batch.id)).phase is BatchPhase.DONE
    with pytest.raises(UpstreamInterrupted):
        await model.cancel(batch.id)


async def test_files_are_deleted_also_those_that_no_job_has_used(sim: SimulatorProcess, model: MistralBatch) -> None:
    items = Items.of(2, text="x")
    left_over = await items.uploaded(model)
    others = await Items.of(1).uploaded(model)
    batch = await items.ended(model)
    await model.delete_files(items.key, batch)
    await model.delete_files(items.key, batch)  # they are gone already
    async with httpx2.AsyncClient(base_url=sim.url, headers={"authorization": "Bearer k"}) as http:
        for file_id in (left_over, *batch.input_files, str(batch.output_file)):
            assert (await http.get(f"/v1/files/{file_id}")).status_code == 404
        assert (await http.get(f"/v1/files/{others}")).status_code == 200


# ------------------------------------------------------------------------------------------- jobs that end otherwise


async def test_a_job_that_fails_as_a_whole(sim: SimulatorProcess, model: MistralBatch) -> None:
    sim.batches(invalid=["Invalid model: private words of a prompt"])
    batch = await Items.of(1, text="x").ended(model)
    assert batch.phase is BatchPhase.FAILED
    assert isinstance(batch.failure, UpstreamError)
    assert "private words" not in str(batch.failure)
    assert "the batch job failed with 1 errors" in str(batch.failure)
    assert await Items.of(1).results(model, batch) == {}


async def test_partial_results(sim: SimulatorProcess, model: MistralBatch) -> None:
    sim.batches(failed=2, missing=1, without=["job_5"])
    items = Items.of(8, text="x")
    batch = await items.ended(model)
    assert (batch.phase, batch.succeeded, batch.failed) == (BatchPhase.DONE, 6, 2)
    results = await items.results(model, batch)
    assert {one: reason_of(results.pop(one)) for one in ("job_0", "job_1")} == dict.fromkeys(
        ("job_0", "job_1"), "upstream_unavailable"
    )
    assert {one: text_of(result) for one, result in results.items()} == dict.fromkeys(
        ("job_3", "job_4", "job_6", "job_7"), "x"
    )
    assert sorted(items.requests) == ["job_2", "job_5"], "they have no result"


async def test_a_job_whose_time_is_over(sim: SimulatorProcess, model: MistralBatch) -> None:
    sim.batches(timeout_after=2)
    items = Items.of(5, text="x")
    batch = await items.ended(model)
    assert (batch.phase, batch.total, batch.succeeded) == (BatchPhase.TIMED_OUT, 5, 2)
    assert len(await items.results(model, batch)) == 2
    assert len(items.requests) == 3


async def test_doubled_unknown_and_broken_lines(sim: SimulatorProcess, model: MistralBatch) -> None:
    items = Items.of(4, text="x")
    lines = [
        "{oops",
        "[]",
        "null",
        '{"custom_id": 7}',
        '{"custom_id": "job_of_another", "response": {"status_code": 200, "body": {}}}',
        '{"custom_id": "job_3", "response": {"status_code": 200, "body": {"choices": [{"mess',
    ]
    sim.batches(doubled=2, lines=lines, without=["job_3"])
    results = await items.results(model, await items.ended(model))
    assert reason_of(results.pop("job_3")) == "upstream_protocol"
    assert {one: text_of(result) for one, result in results.items()} == dict.fromkeys(("job_0", "job_1", "job_2"), "x")


async def test_an_answer_counts_before_an_error_and_the_first_answer_before_others(
    sim: SimulatorProcess, model: MistralBatch
) -> None:
    def line(status: int, body: Any) -> str:
        return json.dumps({"custom_id": "job_0", "response": {"status_code": status, "body": body}})

    def said(text: str) -> dict[str, Any]:
        return {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}

    sim.batches(without=["job_0"], lines=[line(503, {}), line(200, said("first")), line(200, said("second"))])
    items = Items.of(2, text="x")
    assert text_of((await items.results(model, await items.ended(model)))["job_0"]) == "first"


async def test_files_that_come_late(sim: SimulatorProcess, model: MistralBatch) -> None:
    sim.batches(late_files=0.3, late_content=0.8)
    items = Items.of(1, text="x")
    batch = await until(model, await items.started(model), lambda found: found.phase.ended)
    assert (batch.phase, batch.complete) == (BatchPhase.DONE, False)
    batch = await until(model, batch, lambda found: found.complete)
    with pytest.raises(UpstreamInterrupted, match="does not have the results"):
        await items.results(model, batch)
    async with asyncio.timeout(10):
        while items.requests:
            await asyncio.sleep(0.1)
            try:
                await items.results(model, batch)
            except UpstreamInterrupted:
                continue


# --------------------------------------------------------------------------------------------------- failing calls

FAULTS: list[tuple[dict[str, Any], type[UpstreamError], str]] = [
    ({"kind": 429, "retry_after": 7}, UpstreamRateLimited, "upstream_rate_limited"),
    ({"kind": 503}, UpstreamInterrupted, "upstream_unavailable"),
    ({"kind": 401}, UpstreamRefused, "upstream_unauthorized"),
    ({"kind": 302}, UpstreamInterrupted, "upstream_protocol"),
    ({"kind": "cut", "received": 0}, UpstreamInterrupted, "upstream_unreachable"),
    ({"kind": "cut", "received": 0, "reset": True}, UpstreamInterrupted, "upstream_unreachable"),
    ({"kind": "cut", "sent": 5}, UpstreamInterrupted, "upstream_cut"),
    ({"kind": "other", "body": "<html>", "content_type": "text/html"}, UpstreamInterrupted, "upstream_protocol"),
    ({"kind": "stall"}, UpstreamInterrupted, "upstream_timeout"),
]
IMPATIENT = Timings(batch_call_seconds=1.5, batch_transfer_seconds=1.5)


@pytest.mark.parametrize("call", ["upload", "create", "jobs", "job", "cancel", "content", "files", "delete"])
async def test_every_call_fails_with_a_code_of_ours_and_works_again(sim: SimulatorProcess, call: str) -> None:
    async with client(sim.url, timings=IMPATIENT) as model:
        items = Items.of(1, text="x")
        batch = await items.ended(model)
        file_id = batch.input_files[0]

        async def results() -> None:
            await Items(dict(items.requests)).results(model, batch)

        calls: dict[str, Callable[[], Any]] = {
            "upload": lambda: items.uploaded(model),
            "create": lambda: model.create(items.key, file_id, MODEL, timeout_hours=1),
            "jobs": lambda: model.find(items.key, since=LONG_AGO),
            "job": lambda: model.look(batch.id),
            "cancel": lambda: model.cancel(batch.id),
            "content": results,
            "files": lambda: model.delete_files(items.key, None),
            "delete": lambda: model.delete_files(items.key, batch),
        }
        for fault, error, code in FAULTS:
            if (call, fault["kind"]) == ("delete", "other") or (call == "delete" and "sent" in fault):
                continue  # the body of that response is not read
            sim.faults(call, fault)
            with pytest.raises(error) as failed:
                await calls[call]()
            assert (failed.value.reason, code) == (code, code), fault
            if fault["kind"] == 429:
                assert failed.value.retry_after == 7
        await calls[call]()


@pytest.mark.parametrize("call", ["upload", "jobs", "content"])
async def test_a_response_without_end_is_given_up(
    sim: SimulatorProcess, model: MistralBatch, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RESULT_BYTES", 1_000_000)
    items = Items.of(1, text="x")
    batch = await items.ended(model)
    sim.faults(call, {"kind": "endless"})
    calls: dict[str, Callable[[], Any]] = {
        "upload": lambda: items.uploaded(model),
        "jobs": lambda: model.find(items.key, since=LONG_AGO),
        "content": lambda: items.results(model, batch),
    }
    with pytest.raises(UpstreamError) as failed:
        await calls[call]()
    assert failed.value.reason == ("upstream_too_large" if call == "content" else "upstream_protocol")


async def test_a_broken_download_yields_nothing_and_works_again(sim: SimulatorProcess, model: MistralBatch) -> None:
    items = Items.of(300, text="x" * 300)
    batch = await items.ended(model)
    for reset in (False, True):
        sim.faults("content", {"kind": "cut", "sent": 100_000, "reset": reset})
        with pytest.raises(UpstreamInterrupted) as failed:
            await items.results(model, batch)
        assert failed.value.reason == "upstream_cut"
        assert len(items.requests) == 300
    assert len(await items.results(model, batch)) == 300


async def test_a_broken_upload_works_again(sim: SimulatorProcess, model: MistralBatch) -> None:
    items = Items.of(2000, text="x" * 1000)
    sim.faults("upload", {"kind": "cut", "received": 500_000})
    with pytest.raises(UpstreamInterrupted) as failed:
        await items.uploaded(model)
    assert failed.value.reason == "upstream_unreachable"
    assert await items.uploaded(model)


@pytest.mark.parametrize(("ending", "cut"), [(b"", False), (b"\n", False), (b'{"custom_id": "job_2", "resp', True)])
async def test_a_download_that_ends_with_its_connection(ending: bytes, cut: bool) -> None:
    """Only half a line shows that it was cut."""
    line = result("job_1", 200, whole("x")).encode()
    reply = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nconnection: close\r\n\r\n"
        + line
        + b"\n"
        + ending
    )
    async with raw_server(reply) as server, client(server.url) as model:
        items = Items({"job_1": asked("a")})
        batch = ModelBatch("b", BatchPhase.DONE, output_file="f")
        if cut:
            with pytest.raises(UpstreamInterrupted) as failed:
                await items.results(model, batch)
            assert failed.value.reason == "upstream_cut"
        else:
            assert list(await items.results(model, batch)) == ["job_1"]


async def test_what_the_server_does_not_take_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server(b"") as server, client(server.url) as model:
        for limit in ("MAX_FILE_BYTES", "MAX_REQUESTS"):
            with monkeypatch.context() as patch:
                patch.setattr(module, limit, 2)
                with pytest.raises(UpstreamRefused) as failed:
                    await model.upload("key", each({f"job_{number}": asked("x") for number in range(3)}))
                assert failed.value.reason == "upstream_too_large"
        assert server.visits == []


async def test_a_refused_upload_does_not_repeat_the_requests(sim: SimulatorProcess, model: MistralBatch) -> None:
    secret = "the words of somebody's prompt"
    sim.faults("upload", {"kind": 422, "message": f"line 1 is wrong: {secret}"})
    with pytest.raises(UpstreamRefused) as failed:
        await model.upload("key", each({"job_1": asked(secret)}))
    assert "somebody" not in str(failed.value)


# ------------------------------------------------------------------------------------------------- one line at a time


def whole(content: Any, reason: Any = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


def result(custom_id: str, status: Any, body: Any, **more: Any) -> str:
    return json.dumps({"id": "y", "custom_id": custom_id, "response": {"status_code": status, "body": body}, **more})


def told(line: dict[str, Any]) -> LineOutcome:
    """The outcome, without the counts in its texts."""
    found = outcome(ResultLine("job_1", line), asked("Where do the boats go?"), AS_MISTRAL)
    if isinstance(found, UpstreamError):
        return found
    pieces = (one._replace(told=None) if isinstance(one, TextDelta) else one for one in found.pieces)
    return found._replace(pieces=tuple(pieces))


def response(status: Any, body: Any, **more: Any) -> LineOutcome:
    return told(json.loads(result("job_1", status, body, **more)))


def test_an_answer_in_parts_keeps_kinds_and_order() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    reference: dict[str, Any] = {"type": "reference", "reference_ids": [1]}
    answer = response(
        200, whole([thinking, {"type": "text", "text": "It is "}, reference, {"type": "text", "text": "so."}])
    )
    assert isinstance(answer, BatchAnswer)
    assert answer.pieces == (
        TextDelta(Channel.REASONING, "Hm."),
        TextDelta(Channel.CONTENT, "It is "),
        PartDelta(reference),
        TextDelta(Channel.CONTENT, "so."),
    )
    assert answer.finish.usage is not None
    assert answer.finish.usage.total_tokens == 5


def test_reasoning_beside_the_content() -> None:
    answer = response(200, whole("So.", reasoning_content="Hm."))
    assert isinstance(answer, BatchAnswer)
    assert answer.pieces == (TextDelta(Channel.REASONING, "Hm."), TextDelta(Channel.CONTENT, "So."))


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ({"a": 1}, '{"a": 1}'),
        ({}, "{}"),
        ("not json", "not json"),
        ('{"a":1}{"a":1}', '{"a":1}'),
    ],
)
def test_tool_calls(arguments: Any, read: str) -> None:
    calls = [
        {"id": "c1", "function": {"name": "f", "arguments": arguments}},
        {"function": {"name": "g", "arguments": "{}"}},
    ]
    answer = response(200, whole("", "tool_calls", tool_calls=calls))
    assert isinstance(answer, BatchAnswer)
    assert answer.pieces == ()
    assert [(call.id, call.function.name, call.function.arguments) for call in answer.finish.tool_calls] == [
        ("c1", "f", read),
        ("null", "g", "{}"),
    ]


@pytest.mark.parametrize(
    ("reason", "read"),
    [("length", "length"), ("max_tokens", "length"), ("model_length", "model_length"), ("odd", "odd")],
)
def test_finish_reasons(reason: str, read: str) -> None:
    answer = response(200, whole("x", reason))
    assert isinstance(answer, BatchAnswer)
    assert answer.finish.reason == read


def test_usage_may_be_missing() -> None:
    body = whole("x")
    del body["usage"]
    assert response(200, body) == BatchAnswer((TextDelta(Channel.CONTENT, "x"),), Finish("stop"))


def test_a_status_and_a_body_as_text() -> None:
    assert text_of(response("200", json.dumps(whole("x")), error={})) == "x"


NO_ANSWERS: dict[str, tuple[Any, str, bool]] = {
    "no finish reason": (whole("x", None), "upstream_cut", True),
    "an empty finish reason": (whole("x", ""), "upstream_cut", True),
    "an empty answer without a finish reason": (whole("", None), "upstream_empty", True),
    "a failure for a finish reason": (whole("x", "error"), "upstream_error", True),
    "no choices": ({"object": "chat.completion", "choices": []}, "upstream_protocol", True),
    "content of another kind": (whole(7), "upstream_protocol", True),
    "a call without a name": (
        whole("", "tool_calls", tool_calls=[{"id": "a", "function": {}}]),
        "upstream_protocol",
        True,
    ),
    "an error object": (
        {"object": "error", "message": "Rate limit exceeded", "code": "1300"},
        "upstream_rate_limited",
        True,
    ),
    "an error in an object": (
        {"error": {"message": "Bad.", "type": "invalid_request_error"}},
        "upstream_rejected",
        False,
    ),
    "text": ("<html>", "upstream_protocol", True),
    "a list": ([], "upstream_protocol", True),
    "nothing": (None, "upstream_protocol", True),
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_a_body_that_is_no_answer_is_an_error(name: str) -> None:
    body, code, retryable = NO_ANSWERS[name]
    error = response(200, body)
    assert (reason_of(error), isinstance(error, UpstreamError) and error.retryable) == (code, retryable)


STATUSES = {
    400: ("upstream_rejected", False),
    422: ("upstream_rejected", False),
    401: ("upstream_unauthorized", False),
    404: ("upstream_rejected", False),
    429: ("upstream_rate_limited", True),
    500: ("upstream_unavailable", True),
    503: ("upstream_unavailable", True),
    0: ("upstream_protocol", True),
    302: ("upstream_protocol", True),
    None: ("upstream_protocol", True),
    True: ("upstream_protocol", True),
    "abc": ("upstream_protocol", True),
}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_that_is_none_of_success_is_an_error_whatever_the_body(status: Any) -> None:
    error = response(status, whole("x"))
    assert (reason_of(error), isinstance(error, UpstreamError) and error.retryable) == STATUSES[status]


LINES: dict[str, tuple[dict[str, Any], str]] = {
    "an error as text": ({"error": "Internal server error", "response": None}, "upstream_error"),
    "an error as an object": ({"error": {"message": "Too many requests", "code": 429}}, "upstream_rate_limited"),
    "an error beside an answer": (
        {"response": {"status_code": 200, "body": whole("x")}, "error": "x"},
        "upstream_error",
    ),
    "a status beside an error": (
        {"response": {"status_code": 429, "body": None}, "error": "Slow"},
        "upstream_rate_limited",
    ),
    "neither": ({}, "upstream_protocol"),
    "a response that is text": ({"response": "x"}, "upstream_protocol"),
    "a completion in place of a response": (whole("x"), "upstream_protocol"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_another_shape_is_an_error(name: str) -> None:
    line, code = LINES[name]
    assert reason_of(told(line)) == code


def test_an_error_does_not_repeat_the_request() -> None:
    error = response(400, {"object": "error", "message": "Cannot answer: Where do the boats go?", "code": "3000"})
    assert "boats" not in str(error)
    assert "code 3000" in str(error)
    assert "no such parameter" in str(response(400, {"message": "no such parameter"}))


def test_a_line_that_is_too_long_is_an_error_of_its_request(tmp_path: Path) -> None:
    path = tmp_path / "results"
    lines = [
        result("job_1", 200, whole("x" * 2000)),
        result("job_2", 200, whole("x")),
        "x" * 2000,
        result("job_3", 200, {}),
    ]
    path.write_text("\n".join(lines))
    with path.open("rb") as file:
        (found,) = groups(file, max_line=1000)
    assert [line and line.custom_id for line in found] == ["job_1", "job_2", None, "job_3"]
    assert found[0] is not None
    assert isinstance(found[0].value, UpstreamRefused)
    assert found[0].value.reason == "upstream_too_large"


def test_large_lines_come_in_small_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_results, "GROUP_BYTES", 2500)
    path = tmp_path / "results"
    path.write_text("\n".join(result(f"job_{number}", 200, whole("x" * 1000)) for number in range(5)))
    with path.open("rb") as file:
        assert [len(group) for group in groups(file)] == [2, 2, 1]


# --------------------------------------------------------------------------------------------------- the server's words


def job(name: str, *, key: str = "key", **more: Any) -> dict[str, Any]:
    found = {"id": name, "object": "batch", "input_files": ["in"], "metadata": {"chatjobs_batch": key}, "errors": []}
    counts = dict.fromkeys(("total_requests", "completed_requests", "succeeded_requests", "failed_requests"), 0)
    return found | counts | {"endpoint": "/v1/chat/completions", "status": "QUEUED", "created_at": 1_700_000_000} | more


def json_response(document: Any) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (job("b"), ModelBatch("b", BatchPhase.QUEUED, input_files=("in",))),
        (job("b", status="running", total_requests="9"), ModelBatch("b", BatchPhase.RUNNING, input_files=("in",))),
        (job("b", status="PAUSED_FOR_TEA"), ModelBatch("b", BatchPhase.RUNNING, input_files=("in",))),
        ({"id": "b", "status": None}, ModelBatch("b", BatchPhase.RUNNING)),
        (
            job(
                "b",
                status="SUCCESS",
                succeeded_requests=2,
                failed_requests=1,
                output_file="o",
                error_file="",
                metadata=None,
            ),
            ModelBatch("b", BatchPhase.DONE, 0, 2, 1, ("in",), "o"),
        ),
        (
            job("b", status="SUCCESS", succeeded_requests=-1, input_files=None, output_file={}, errors=None),
            ModelBatch("b", BatchPhase.DONE),
        ),
    ],
)
async def test_a_job_is_read_tolerantly(document: Any, expected: ModelBatch) -> None:
    async with raw_server(json_response(document)) as server, client(server.url) as model:
        assert await model.look("b") == expected


@pytest.mark.parametrize("document", [[], {}, {"id": 7}, {"id": ""}, "x", None])
async def test_a_job_without_an_id_is_none(document: Any) -> None:
    async with raw_server(json_response(document)) as server, client(server.url) as model:
        with pytest.raises(UpstreamInterrupted) as failed:
            await model.create("key", "file", MODEL, timeout_hours=1)
        assert failed.value.reason == "upstream_protocol"


async def test_our_calls_are_those_of_the_sdk() -> None:
    """Method, address, headers and body, on the wire. The SDK names the visibility of a file, which is the default."""
    file = {
        "id": "f", "object": "file", "bytes": 1, "created_at": 1, "filename": "key.jsonl", "purpose": "batch",
        "sample_type": "batch_request", "source": "upload", "deleted": True,
    }  # fmt: skip
    documents: list[Any] = [
        file,
        job("b"),
        {"data": [], "total": 0},
        job("b"),
        job("b"),
        {"data": [], "object": "list"},
        file,
    ]
    ours: list[Reply] = [json_response(one) for one in documents]
    async with raw_server(*ours) as server, client(server.url) as model:
        await model.upload("key", each({"job_1": asked("x")}))
        await model.create("key", "f", MODEL, timeout_hours=24)
        await model.find("key", since=LONG_AGO)
        await model.look("b")
        await model.cancel("b")
        await model.delete_files("key", ModelBatch("b", BatchPhase.DONE, input_files=("f",)))
    async with raw_server(*ours) as reference, httpx2.AsyncClient(headers={"accept-encoding": "identity"}) as http:
        sdk = Mistral(api_key=KEY, server_url=reference.url, async_client=http)
        await sdk.files.upload_async(file={"file_name": "key.jsonl", "content": server_file(server)}, purpose="batch")
        await sdk.batch.jobs.create_async(
            input_files=["f"],
            endpoint="/v1/chat/completions",
            model=MODEL,
            metadata={"chatjobs_batch": "key"},
            timeout_hours=24,
        )
        await sdk.batch.jobs.list_async(metadata={"chatjobs_batch": "key"}, created_after=LONG_AGO)
        assert isinstance(await sdk.batch.jobs.get_async(job_id="b"), BatchJob)
        await sdk.batch.jobs.cancel_async(job_id="b")
        await sdk.files.list_async(search="key", purpose="batch")
        await sdk.files.delete_async(file_id="f")
    assert [described(visit) for visit in server.visits] == [described(visit) for visit in reference.visits]


def server_file(server: RawServer) -> bytes:
    """The file in the form of the first visit."""
    return server.visits[0].body.split(b"\r\n\r\n")[-1].rpartition(b"\r\n--")[0]


def described(visit: Visit) -> Any:
    method, target, _ = visit.head.split("\r\n")[0].split()
    url = httpx2.URL(target)
    headers = {name: value for name, value in visit.headers.items() if name not in ("host", "content-length")}
    if "multipart" in headers.get("content-type", ""):
        headers["content-type"] = "multipart/form-data"
        return method, url.path, headers, fields(visit.body)
    return method, url.path, sorted(url.params.multi_items()), headers, json.loads(visit.body or b"null")


def fields(body: bytes) -> Iterable[tuple[str, bytes]]:
    """Name and content of the fields of a form, but for the visibility."""
    parts = [part.partition(b"\r\n\r\n") for part in body.split(b"\r\n--")]
    named = [
        (head.decode().partition(' name="')[2].partition('"')[0], content) for head, _, content in parts if content
    ]
    return sorted(one for one in named if one[0] != "visibility")


# --------------------------------------------------------------------------------------------------------- at large

LARGE = 100_000
MEASURED = """
import asyncio, json, resource, sys
from tests.providers.test_mistral_batch import AS_MISTRAL, LONG_AGO, MODEL, BatchLine, MistralBatch, asked, until

request = asked(sys.argv[2])

async def requests(count):
    for number in range(count):
        yield BatchLine(f"job_{number}", request)

async def main():
    model = MistralBatch("k", sys.argv[1], practice=lambda _: AS_MISTRAL)
    async def run(count):
        key = f"{sys.argv[2]}-{count}"
        batch = await model.create(key, await model.upload(key, requests(count)), MODEL, timeout_hours=1)
        while not batch.complete:
            await asyncio.sleep(0.2)
            batch = await model.look(batch.id)
        seen = bytearray(count)
        async def pending(ids):
            numbers = {one: int(one.removeprefix("job_")) for one in ids}
            return {one: request for one, number in numbers.items() if not seen[number]}
        async for custom_id, result in model.results(batch, pending):
            seen[int(custom_id.removeprefix("job_"))] = hasattr(result, "finish")
        return sum(seen)
    assert await run(2_000) == 2_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answered = await run(int(sys.argv[3]))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await model.aclose()
    print(json.dumps({"answered": answered, "grown": (after - before) / 1024}))

asyncio.run(main())
"""


@pytest.mark.long
def test_a_hundred_thousand_requests_in_flat_memory() -> None:
    """The client has a process of its own: from 2,000 requests to 100,000 it grows by less than 20 MB."""
    with simulator() as sim:
        name = prompt()
        sim.script(match=name, text="An answer of a few words.")
        before = psutil.Process(sim.process.pid).memory_info().rss
        command = [sys.executable, "-c", MEASURED, sim.url, name, str(LARGE)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
        simulator_grown = (psutil.Process(sim.process.pid).memory_info().rss - before) / 2**20
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answered"] == LARGE
    assert found["grown"] < 20, found
    assert simulator_grown < 40, "its log of requests is limited"
