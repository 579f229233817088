"""The simulator speaks Mistral's API of files and batch jobs, for Mistral's own client."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from mistralai.client.models import BatchJob

from tests.support.simulator_process import SimulatorProcess, prompt, simulator

MODEL = "mistral-small-latest"
ENDED = {"SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED"}


@pytest.fixture(scope="module")
def process() -> Iterator[SimulatorProcess]:
    with simulator() as found:
        yield found


@pytest.fixture
def sim(process: SimulatorProcess) -> SimulatorProcess:
    process.drop_batches()
    return process


@pytest.fixture
async def client(sim: SimulatorProcess) -> AsyncIterator[Mistral]:
    async with httpx2.AsyncClient(timeout=30) as http:
        yield Mistral(api_key="test-key", server_url=sim.url, async_client=http)


def item(number: int, text: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": f"item-{number}", "body": {"messages": [{"role": "user", "content": text}], **body}}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def uploaded(client: Mistral, content: bytes, name: str = "input.jsonl") -> str:
    file = await client.files.upload_async(file={"file_name": name, "content": io.BytesIO(content)}, purpose="batch")
    return file.id


async def started(client: Mistral, content: bytes, **options: Any) -> BatchJob:
    options = {"model": MODEL, "endpoint": "/v1/chat/completions"} | options
    return await client.batch.jobs.create_async(input_files=[await uploaded(client, content)], **options)


def is_running(job: BatchJob) -> bool:
    return job.status == "RUNNING"


def has_ended(job: BatchJob) -> bool:
    return job.status in ENDED


async def until(client: Mistral, job: BatchJob, reached: Callable[[BatchJob], bool] = has_ended) -> BatchJob:
    async with asyncio.timeout(20):
        while not reached(job):
            await asyncio.sleep(0.01)
            job = await client.batch.jobs.get_async(job_id=job.id)
    return job


async def ended(client: Mistral, content: bytes, **options: Any) -> BatchJob:
    return await until(client, await started(client, content, **options))


async def lines(client: Mistral, file_id: Any) -> list[dict[str, Any]]:
    response = await client.files.download_async(file_id=file_id)
    return [json.loads(line) for line in (await response.aread()).splitlines()]


async def outcome(client: Mistral, file_id: Any) -> dict[str, Any]:
    return {line["custom_id"]: line["response"] for line in await lines(client, file_id)}


async def test_every_item_has_the_answer_of_an_ordinary_completion(sim: SimulatorProcess, client: Mistral) -> None:
    prompts = [prompt(f"number {number}") for number in range(30)]
    job = await ended(client, jsonl(*(item(number, text) for number, text in enumerate(prompts))))
    assert (job.status, job.total_requests, job.succeeded_requests, job.failed_requests) == ("SUCCESS", 30, 30, 0)
    assert job.error_file is None
    found = await lines(client, job.output_file)
    assert [line["custom_id"] for line in found] != [f"item-{number}" for number in range(30)], "the order is none"
    by_id = {line["custom_id"]: line for line in found}
    assert len(by_id) == len(found) == 30
    for number, text in enumerate(prompts):
        body = by_id[f"item-{number}"]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == sim.answer(text)["text"]
        assert [entry["batch"] for entry in sim.requests(text)] == [job.id]


async def test_files_are_listed_shown_and_deleted(client: Mistral) -> None:
    content = jsonl(item(0, "a"), item(1, "b"))
    file_id = await uploaded(client, content, "found-by-its-name.jsonl")
    await uploaded(client, content, "another.jsonl")
    listed = await client.files.list_async(search="by-its-name", purpose="batch", source=["upload"])
    assert [(file.id, file.size_bytes, file.num_lines) for file in listed.data] == [(file_id, len(content), 2)]
    shown = await client.files.retrieve_async(file_id=file_id)
    assert (shown.filename, shown.purpose, shown.sample_type) == ("found-by-its-name.jsonl", "batch", "batch_request")
    assert await (await client.files.download_async(file_id=file_id)).aread() == content
    assert (await client.files.delete_async(file_id=file_id)).deleted
    with pytest.raises(SDKError) as gone:
        await client.files.download_async(file_id=file_id)
    assert gone.value.status_code == 404


async def test_jobs_are_listed_by_metadata_status_and_page(sim: SimulatorProcess, client: Mistral) -> None:
    name = prompt()
    jobs = [await ended(client, jsonl(item(0, "x")), metadata={"batch": name, "n": str(n)}) for n in range(3)]
    newest = await client.batch.jobs.list_async(metadata={"batch": name}, page_size=2)
    assert newest.total == 3
    assert [job.id for job in newest.data or ()] == [jobs[2].id, jobs[1].id]
    second = await client.batch.jobs.list_async(metadata={"batch": name}, page=1, page_size=2, order_by="created")
    assert [job.id for job in second.data or ()] == [jobs[2].id]
    one = await client.batch.jobs.list_async(metadata={"batch": name, "n": "1"}, status=["SUCCESS"])
    assert [job.id for job in one.data or ()] == [jobs[1].id]
    assert (await client.batch.jobs.list_async(metadata={"batch": name}, status=["FAILED", "RUNNING"])).data == []


async def test_requests_may_come_inline(client: Mistral) -> None:
    texts = [prompt(text="yes"), prompt(text="no")]
    requests: Any = [item(number, text) for number, text in enumerate(texts)]
    job = await client.batch.jobs.create_async(requests=requests, model=MODEL, endpoint="/v1/chat/completions")
    job = await until(client, job)
    outputs = {line["custom_id"]: line["response"]["body"] for line in job.outputs or ()}
    assert [outputs[f"item-{n}"]["choices"][0]["message"]["content"] for n in range(2)] == ["yes", "no"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b'{"custom_id": "a", "body": {', {}, "Invalid line"),
        (jsonl({"custom_id": "a"}), {}, "Invalid line"),
        (jsonl(item(0, "a"), item(0, "b")), {}, "Duplicate custom_id"),
        (jsonl(item(0, "a")), {"model": None}, "No model"),
        (b"\n", {}, "empty"),
    ],
)
async def test_an_invalid_input_fails_the_job(
    client: Mistral, content: bytes, options: dict[str, Any], message: str
) -> None:
    job = await ended(client, content, **options)
    assert (job.status, job.output_file, job.error_file) == ("FAILED", None, None)
    assert message in job.errors[0].message


async def test_items_that_are_refused_are_in_the_error_file(sim: SimulatorProcess, client: Mistral) -> None:
    given = [
        item(0, prompt(text="fine")),
        item(1, prompt("unavailable", faults=[{"kind": 503}])),
        item(2, prompt("a field that is not known"), nonsense=1),
        item(3, prompt("streamed"), stream=True),
    ]
    job = await ended(client, jsonl(*given))
    assert (job.status, job.succeeded_requests, job.failed_requests) == ("SUCCESS", 1, 3)
    assert set(await outcome(client, job.output_file)) == {"item-0"}
    refused = await outcome(client, job.error_file)
    assert {name: one["status_code"] for name, one in refused.items()} == {"item-1": 503, "item-2": 422, "item-3": 400}


async def test_a_model_in_each_body(client: Mistral) -> None:
    job = await ended(client, jsonl(item(0, prompt(), model=MODEL), item(1, prompt(), model="gpt-4")), model=None)
    assert set(await outcome(client, job.output_file)) == {"item-0"}
    assert (await outcome(client, job.error_file))["item-1"]["status_code"] == 400


async def test_partial_and_odd_results(sim: SimulatorProcess, client: Mistral) -> None:
    sim.batches(failed=2, missing=1, without=["item-5"], doubled=1, lines=["{oops", '{"custom_id": "unknown"}'])
    job = await ended(client, jsonl(*(item(number, prompt(text="x")) for number in range(6))))
    text = (await (await client.files.download_async(file_id=str(job.output_file))).aread()).decode().splitlines()
    assert text[-2:] == ["{oops", '{"custom_id": "unknown"}']
    ids = [json.loads(line)["custom_id"] for line in text[:-2]]
    assert sorted(set(ids)) == ["item-3", "item-4"]
    assert (len(ids), ids[0]) == (3, ids[2])
    assert set(await outcome(client, job.error_file)) == {"item-0", "item-1"}


async def test_a_timeout_leaves_partial_results(sim: SimulatorProcess, client: Mistral) -> None:
    sim.batches(timeout_after=2)
    job = await ended(client, jsonl(*(item(number, prompt(text="x")) for number in range(5))))
    assert (job.status, job.completed_requests, job.total_requests) == ("TIMEOUT_EXCEEDED", 2, 5)
    assert set(await outcome(client, job.output_file)) == {"item-0", "item-1"}


async def test_a_cancelled_job_keeps_what_it_has(sim: SimulatorProcess, client: Mistral) -> None:
    sim.batches(hold=3, cancel_seconds=0.3)
    job = await started(client, jsonl(*(item(number, prompt(text="x")) for number in range(5))))
    job = await until(client, job, lambda found: found.completed_requests == 3)
    assert job.status == "RUNNING"
    assert (await client.batch.jobs.cancel_async(job_id=job.id)).status == "CANCELLATION_REQUESTED"
    job = await until(client, job)
    assert (job.status, job.succeeded_requests) == ("CANCELLED", 3)
    assert len(await outcome(client, job.output_file)) == 3
    assert (await client.batch.jobs.cancel_async(job_id=job.id)).status == "CANCELLED"


async def test_a_held_job_goes_on_when_it_is_released(sim: SimulatorProcess, client: Mistral) -> None:
    sim.batches(hold=0)
    job = await until(client, await started(client, jsonl(item(0, prompt(text="x")))), is_running)
    sim.release_batches()
    assert (await until(client, job)).status == "SUCCESS"


async def test_files_and_their_content_may_come_late(sim: SimulatorProcess, client: Mistral) -> None:
    sim.batches(late_files=0.3, late_content=0.6)
    job = await ended(client, jsonl(item(0, prompt(text="x"))))
    assert (job.status, job.output_file) == ("SUCCESS", None)
    job = await until(client, job, lambda found: bool(found.output_file))
    with pytest.raises(SDKError):
        await client.files.download_async(file_id=str(job.output_file))
    await asyncio.sleep(0.4)
    assert len(await outcome(client, job.output_file)) == 1


async def test_every_call_can_fail_once(sim: SimulatorProcess, client: Mistral) -> None:
    job = await ended(client, jsonl(item(0, prompt(text="x"))))
    file_id = str(job.output_file)
    calls: dict[str, Any] = {
        "upload": lambda: uploaded(client, b"{}"),
        "files": client.files.list_async,
        "file": lambda: client.files.retrieve_async(file_id=file_id),
        "content": lambda: client.files.download_async(file_id=file_id),
        "create": lambda: started(client, jsonl(item(0, "x"))),
        "jobs": client.batch.jobs.list_async,
        "job": lambda: client.batch.jobs.get_async(job_id=job.id),
        "cancel": lambda: client.batch.jobs.cancel_async(job_id=job.id),
        "delete": lambda: client.files.delete_async(file_id=file_id),
    }
    for name, call in calls.items():
        sim.faults(name, {"kind": 429}, {"kind": 503})
        for status in (429, 503):
            with pytest.raises(SDKError) as refused:
                await call()
            assert refused.value.status_code == status, name
        await call()


async def test_a_connection_can_break_within_an_upload_and_a_download(sim: SimulatorProcess, client: Mistral) -> None:
    content = jsonl(*(item(number, "x" * 1000) for number in range(500)))
    sim.faults("upload", {"kind": "cut", "received": 1000})
    with pytest.raises(httpx2.TransportError):
        await uploaded(client, content)
    file_id = await uploaded(client, content)
    sim.faults("content", {"kind": "cut", "sent": 1000}, {"kind": "cut", "sent": 1000, "reset": True})
    for _ in range(2):
        response = await client.files.download_async(file_id=file_id)
        with pytest.raises(httpx2.TransportError):
            await response.aread()


async def test_no_key_no_answer(sim: SimulatorProcess) -> None:
    async with httpx2.AsyncClient(base_url=sim.url) as http:
        for path in ("/v1/files", "/v1/batch/jobs"):
            assert (await http.get(path)).status_code == 401
