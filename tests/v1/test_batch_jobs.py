"""Mistral's batch API with Mistral's client: upload, create, poll, read the results; each job is a batch."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from mistralai.client.models import BatchJob
from sqlalchemy import select, update

from chatjobs.contracts import BatchWebhookEvent
from storage.batches.batch_jobs import CLAIM_LASTS
from storage.engine.database import Database
from storage.engine.schema import batch_jobs, batches, micros, now, requests
from storage.keys import KeyStore
from tests.support.factories import make_body
from tests.support.gateway import Gateway, alone, gateway
from tests.support.receiver import Receiver, receiver
from tests.support.simulator_process import prompt
from tests.support.snippets import output, snippets
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long

PATIENCE = 60.0
ENDS = ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED")
MODEL = "mistral-small-latest"
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
NEVER = "00000000-0000-4000-8000-000000000000"
SLOW: dict[str, Any] = {"tokens": 5_000, "tokens_per_second": 20}
MANY = 20_000
OF_ANOTHER_TIME = timedelta(hours=200)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}
    options = {"batch_seconds": 0, "batch_rate": 0}
    with stack(tmp_path_factory.mktemp("batch-jobs"), env=env, simulator=options) as started:
        yield started, gateway(started)


@pytest.fixture
def mistral(running: tuple[Stack, Gateway]) -> Iterator[Mistral]:
    with Mistral(api_key="any", server_url=running[1].url) as client:
        yield client
    sys.stdout.write(running[0].news())


@pytest.fixture
async def http(running: tuple[Stack, Gateway]) -> AsyncIterator[httpx2.AsyncClient]:
    async with running[1].client() as client:
        yield client


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as started:
        yield started


def line(name: str | None = None, words: str = "Hello", **fields: Any) -> bytes:
    named = {} if name is None else {"custom_id": name}
    return json.dumps({**named, "body": make_body(words, **fields)}).encode() + b"\n"


def uploaded(mistral: Mistral, *lines: bytes, name: str = "in.jsonl") -> str:
    return mistral.files.upload(file={"file_name": name, "content": b"".join(lines)}, purpose="batch").id


def created(mistral: Mistral, *lines: bytes, **fields: Any) -> BatchJob:
    """A job with one input file."""
    chosen = {"model": MODEL, "endpoint": CHAT} | fields
    return mistral.batch.jobs.create(input_files=[uploaded(mistral, *lines)], **chosen)


def ended(mistral: Mistral, job: BatchJob, *statuses: str) -> BatchJob:
    """The job, once it has one of these statuses: any terminal one, unless given."""
    end = time.monotonic() + PATIENCE
    while job.status not in (statuses or ENDS):
        assert time.monotonic() < end, job
        time.sleep(0.05)  # as clients do: a status does not say when it changes
        job = mistral.batch.jobs.get(job_id=job.id)
    return job


def results(mistral: Mistral, file_id: Any) -> dict[str, Any]:
    """The lines of a file of results, by their names; none is there twice."""
    text = mistral.files.download(file_id=file_id).read()
    lines = [json.loads(one) for one in text.splitlines()]
    found = {one["custom_id"]: one for one in lines}
    assert len(found) == len(lines)
    return found


def outputs_of(job: BatchJob) -> list[dict[str, Any]]:
    assert isinstance(job.outputs, list)
    return job.outputs


def refusal(call: Any) -> tuple[int, str]:
    """The status and the message of a refusal, which has Mistral's form."""
    with pytest.raises(SDKError) as caught:
        call()
    error = json.loads(caught.value.body)
    assert error["object"] == "error"
    return caught.value.status_code, error["message"]


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(database_url)
    try:
        yield database
    finally:
        await database.close()


async def changed(database_url: str, job_id: str, **values: Any) -> None:
    """Change the row of a job, as time or a crash would."""
    async with opened(database_url) as database, database.write() as connection:
        await connection.execute(update(batch_jobs).where(batch_jobs.c.id == job_id).values(**values))


# ----------------------------------------------------------------------------------------------- whole jobs


def test_a_file_of_requests_becomes_a_file_of_answers(mistral: Mistral) -> None:
    before = int(time.time())
    job = created(mistral, *(line(f"item-{n}", prompt(f"Hello {n}")) for n in range(25)), metadata={"order": "42"})
    assert (job.status, job.total_requests, job.object, job.endpoint) == ("QUEUED", 0, "batch", CHAT)
    job = ended(mistral, job)
    assert (job.status, job.errors, job.model, job.metadata) == ("SUCCESS", [], MODEL, {"order": "42"})
    assert (job.total_requests, job.completed_requests, job.succeeded_requests, job.failed_requests) == (25, 25, 25, 0)
    assert job.started_at
    assert job.completed_at
    assert before <= job.created_at <= job.started_at <= job.completed_at <= time.time()
    assert job.error_file is None
    answers = results(mistral, job.output_file)
    assert sorted(answers) == sorted(f"item-{n}" for n in range(25))
    for answer in answers.values():
        assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
        completion = answer["response"]["body"]
        assert (completion["object"], completion["model"]) == ("chat.completion", MODEL)
        assert completion["choices"][0]["message"]["content"]
    file = mistral.files.retrieve(file_id=str(job.output_file))
    assert (file.sample_type, file.source, file.num_lines) == ("batch_result", "mistral", 25)
    assert file.size_bytes == len(mistral.files.download(file_id=file.id).read())


def test_results_are_measured_when_they_are_asked_for_alone(mistral: Mistral) -> None:
    """A list would read the whole outputs of a page of jobs."""
    job = ended(mistral, created(mistral, line("a")))
    file_id = str(job.output_file)

    def listed() -> list[int]:
        return [one.size_bytes for one in mistral.files.list(search=f"{job.id}_output").data]

    assert listed() == [0]
    size = mistral.files.retrieve(file_id=file_id).size_bytes
    assert size == len(mistral.files.download(file_id=file_id).read())
    assert listed() == [size]


def test_requests_without_an_answer_are_in_the_error_file(mistral: Mistral) -> None:
    broken = prompt(faults=[{"kind": 400}], repeat_last=True)
    job = ended(mistral, created(mistral, line("good", prompt("Hello")), line("bad", broken)))
    assert (job.status, job.succeeded_requests, job.failed_requests, job.completed_requests) == ("SUCCESS", 1, 1, 2)
    assert list(results(mistral, job.output_file)) == ["good"]
    errors = results(mistral, job.error_file)
    assert list(errors) == ["bad"]
    assert errors["bad"]["response"] is None
    assert errors["bad"]["error"]["code"].startswith("upstream_")
    file = mistral.files.retrieve(file_id=str(job.error_file))
    assert (file.sample_type, file.num_lines) == ("batch_error", 1)


def test_requests_in_the_body_have_their_answers_in_the_job(mistral: Mistral) -> None:
    """As Mistral's own example reads them (client-python, async_batch_job_chat_completion_inline.py)."""
    asked: Any = [{"custom_id": str(n), "body": make_body(prompt(f"Hello {n}"))} for n in range(5)]
    job = mistral.batch.jobs.create(requests=asked, model=MODEL, endpoint=CHAT)
    job = ended(mistral, job)
    outputs = outputs_of(job)
    assert {one["custom_id"] for one in outputs} == set("01234")
    assert all(one["response"]["body"]["choices"] for one in outputs)
    assert len(job.input_files) == 1
    assert mistral.files.retrieve(file_id=job.input_files[0]).source == "mistral"
    assert len(mistral.files.download(file_id=job.input_files[0]).read().splitlines()) == 5
    assert mistral.batch.jobs.get(job_id=job.id, inline=False).outputs is None


def test_the_answers_of_a_file_are_in_the_job_if_it_is_asked(mistral: Mistral) -> None:
    job = ended(mistral, created(mistral, *(line(str(n), prompt(f"Hello {n}")) for n in range(250))))
    assert job.outputs is None
    outputs = outputs_of(mistral.batch.jobs.get(job_id=job.id, inline=True))
    assert [one["custom_id"] for one in outputs] == [str(n) for n in range(250)]


def test_several_files_are_one_job(mistral: Mistral) -> None:
    inputs = [uploaded(mistral, line(f"{n}-a"), line(f"{n}-b")) for n in range(3)]
    job = ended(mistral, mistral.batch.jobs.create(input_files=inputs, model=MODEL, endpoint=CHAT))
    assert job.input_files == inputs
    assert sorted(results(mistral, job.output_file)) == ["0-a", "0-b", "1-a", "1-b", "2-a", "2-b"]


def test_requests_without_a_name_are_called_by_their_number(mistral: Mistral) -> None:
    job = ended(mistral, created(mistral, line(), line()))
    assert sorted(results(mistral, job.output_file)) == ["0", "1"]


async def test_a_job_is_a_batch_whose_items_are_jobs(http: httpx2.AsyncClient, mistral: Mistral) -> None:
    job = ended(mistral, created(mistral, line("a", prompt("Hello"))))
    batch_id = (await http.get(f"/v1/batch/jobs/{job.id}")).headers["x-batch-id"]
    assert batch_id == f"batch_{uuid.UUID(job.id).hex}"
    batch = (await http.get(f"/api/batches/{batch_id}")).json()
    assert (batch["name"], batch["status"], batch["lane"]) == ("in.jsonl", "completed", "live")
    jobs = (await http.get("/api/jobs", params={"batchId": batch_id})).json()["jobs"]
    assert [one["status"] for one in jobs] == ["completed"]


async def test_a_request_is_the_one_that_was_written(running: tuple[Stack, Gateway], mistral: Mistral) -> None:
    """Its own model wins, an unknown parameter is forwarded (and refused there); OpenAI's lines are taken, too."""
    own = line("own", prompt("Hello"), model="mistral-large-latest", zeal=1.5, stream=True, seed=3)
    openai = {"custom_id": "openai", "method": "POST", "url": CHAT, "body": make_body(prompt("Hello"))}
    job = ended(mistral, created(mistral, own, json.dumps(openai).encode()))
    assert (job.succeeded_requests, job.failed_requests) == (1, 1)
    prefix = f"job_{uuid.UUID(job.id).hex}"
    async with opened(running[0].database_url) as database, database.read() as connection:
        query = select(requests.c.body).where(requests.c.job_id.startswith(prefix)).order_by(requests.c.job_id)
        first, second = (json.loads(body) for body in (await connection.execute(query)).scalars())
    assert (first["model"], first["random_seed"], first["extra"]) == (
        "mistral-large-latest",
        3,
        {"zeal": 1.5},
    )
    assert second["model"] == MODEL


def test_the_header_chooses_the_cheap_lane(running: tuple[Stack, Gateway], mistral: Mistral) -> None:
    running[0].simulator.drop_batches()
    job = created(mistral, line("a", prompt("Hello")), http_headers={"X-Chatjobs-Lane": "batch"})
    assert ended(mistral, job).succeeded_requests == 1
    assert running[0].simulator.calls()["create"] == 1


async def test_the_end_is_announced(hooks: Receiver, mistral: Mistral) -> None:
    job = created(mistral, line("a"), http_headers={"X-Chatjobs-Callback": hooks.url("/hook")})
    sent = (await hooks.arrived(1, path="/hook"))[0]
    event = BatchWebhookEvent.model_validate_json(sent.body)
    assert event.data.batch_id == f"batch_{uuid.UUID(job.id).hex}"
    assert event.data.counts.completed == 1


async def test_a_key_makes_one_job(http: httpx2.AsyncClient, mistral: Mistral) -> None:
    body = {"endpoint": CHAT, "model": MODEL, "requests": [{"body": make_body()}]}
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    answers = await asyncio.gather(*(http.post("/v1/batch/jobs", json=body, headers=headers) for _ in range(5)))
    assert {one.status_code for one in answers} == {200}
    assert len({one.json()["id"] for one in answers}) == 1
    assert sum("idempotency-replayed" not in one.headers for one in answers) == 1
    other = await http.post("/v1/batch/jobs", json=body | {"model": "other"}, headers=headers)
    assert other.status_code == 422
    for more in ({"X-Chatjobs-Lane": "batch"}, {"X-Chatjobs-Callback": "http://127.0.0.1:9/"}):
        other = await http.post("/v1/batch/jobs", json=body, headers=headers | more)
        assert other.status_code == 422
        again = headers | more | {"Idempotency-Key": uuid.uuid4().hex}
        answers_again = [await http.post("/v1/batch/jobs", json=body, headers=again) for _ in range(2)]
        assert len({one.json()["id"] for one in answers_again}) == 1
    assert ended(mistral, mistral.batch.jobs.get(job_id=answers[0].json()["id"])).total_requests == 1


def test_the_program_of_the_page_works(running: tuple[Stack, Gateway], tmp_path: Path) -> None:
    (program,), (lines,) = snippets("batches.md", "python mistral"), snippets("batches.md", "jsonl")
    (tmp_path / "items.jsonl").write_text(lines)
    shown = output(program, cwd=tmp_path, env={"CHATJOBS_URL": running[1].url}).splitlines()
    assert shown[0] == "SUCCESS 3 []"
    assert [json.loads(one)["custom_id"] for one in shown[1:] if one] == ["ours", "mistral", "openai"]


# --------------------------------------------------------------------------------------- files that are wrong

LONG = line("long", "x" * 9_000_000)
WRONG = {
    "no JSON": ([line("a"), b"{\n"], "line 2"),
    "no object": ([line("a"), line("b"), b"[]\n"], "line 3"),
    "no body": ([b'{"custom_id": "a"}\n'], "line 1: /body"),
    "no messages": ([line("a"), b'{"custom_id": "b", "body": {}}\n'], "line 2: /body/messages"),
    "a wrong parameter": ([line("a", temperature="hot")], "line 1: /body/temperature"),
    "two of one name": ([line("a"), b"\n", line("b"), line("a")], "line 4: /custom_id is that of line 1"),
    "no model": ([line("a")], "line 1: /body/model"),
    "another endpoint": ([b'{"url": "/v1/embeddings", "body": {"input": "a"}}\n'], "line 1: /url"),
    "nothing": ([b"\n \n"], "at least one"),
    "not text": ([b"\xff\xfe\x00\x01"], "line 1"),
    "a line that is long": ([line("a"), LONG], "line 2 is too long"),
}


@pytest.mark.parametrize(("lines", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_file_that_is_wrong_makes_a_job_that_has_failed(mistral: Mistral, lines: list[bytes], why: str) -> None:
    """As at Mistral, where files are read after the answer; the errors name the line, and nothing was started."""
    model = None if why.endswith("/model") else MODEL
    job = ended(mistral, created(mistral, *lines, model=model))
    assert (job.status, job.total_requests, job.output_file, job.error_file) == ("FAILED", 0, None, None)
    assert why in job.errors[0].message
    assert job.completed_at is not None


def test_errors_name_the_file_where_there_are_several(mistral: Mistral) -> None:
    inputs = [uploaded(mistral, line("a"), line("b")), uploaded(mistral, line("c"), b"\n", line("b"))]
    job = ended(mistral, mistral.batch.jobs.create(input_files=inputs, model=MODEL, endpoint=CHAT))
    assert job.status == "FAILED"
    assert f"line 3 of file {inputs[1]}: /custom_id is that of line 2 of file {inputs[0]}" in job.errors[0].message


def test_errors_name_the_request_where_it_was_in_the_body(mistral: Mistral) -> None:
    asked: Any = [{"body": make_body()}, {"body": {"messages": "no"}}]
    job = ended(mistral, mistral.batch.jobs.create(requests=asked, model=MODEL, endpoint=CHAT))
    assert job.status == "FAILED"
    assert job.errors[0].message.startswith("requests/1: /body/messages")


def test_many_errors_are_bounded(mistral: Mistral) -> None:
    job = ended(mistral, created(mistral, *(b"wrong\n" for _ in range(1_000))))
    assert (job.status, len(job.errors)) == ("FAILED", 20)


# ------------------------------------------------------------------------------------- requests that are wrong

BAD: dict[str, tuple[Any, str]] = {
    "another endpoint": ({"endpoint": "/v1/embeddings", "input_files": [NEVER]}, "endpoint"),
    "no input": ({"endpoint": CHAT}, "input_files"),
    "both inputs": ({"endpoint": CHAT, "input_files": [NEVER], "requests": [{"body": {}}]}, "input_files"),
    "no files": ({"endpoint": CHAT, "input_files": []}, "input_files"),
    "no requests": ({"endpoint": CHAT, "requests": []}, "requests"),
    "many requests": ({"endpoint": CHAT, "requests": [{"body": {}}] * 10_001}, "requests"),
    "an agent": ({"endpoint": CHAT, "agent_id": "ag:1", "input_files": [NEVER]}, "agent_id"),
    "a long time": ({"endpoint": CHAT, "timeout_hours": 169, "input_files": [NEVER]}, "timeout_hours"),
    "no time": ({"endpoint": CHAT, "timeout_hours": 0, "input_files": [NEVER]}, "timeout_hours"),
    "no endpoint": ({"input_files": [NEVER]}, "endpoint"),
    "an unknown field": ({"endpoint": CHAT, "input_files": [NEVER], "completion_window": "24h"}, "completion_window"),
    "no object": ([], ""),
}


@pytest.mark.parametrize(("body", "place"), BAD.values(), ids=BAD.keys())
async def test_a_request_that_is_wrong_is_refused(http: httpx2.AsyncClient, body: Any, place: str) -> None:
    before = (await http.get("/v1/batch/jobs")).json()["total"]
    answer = await http.post("/v1/batch/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["object"] == "error"
    assert place in answer.json()["message"]
    assert (await http.get("/v1/batch/jobs")).json()["total"] == before


async def test_other_headers_are_refused(http: httpx2.AsyncClient) -> None:
    body = {"endpoint": CHAT, "requests": [{"body": make_body(model=MODEL)}]}
    for header in (
        {"X-Chatjobs-Lane": "slow"},
        {"X-Chatjobs-Callback": "http://10.0.0.1/"},
        {"X-Chatjobs-Callback": "x"},
    ):
        answer = await http.post("/v1/batch/jobs", json=body, headers=header)
        assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("file_id", [NEVER, "none", ""])
def test_a_file_that_is_not_there_is_not_found(mistral: Mistral, file_id: str) -> None:
    assert refusal(lambda: mistral.batch.jobs.create(input_files=[file_id], model=MODEL, endpoint=CHAT))[0] == 404


def test_results_are_no_input(mistral: Mistral) -> None:
    job = ended(mistral, created(mistral, line("a")))
    again = refusal(lambda: mistral.batch.jobs.create(input_files=[str(job.output_file)], model=MODEL, endpoint=CHAT))
    assert again[0] == 422


def test_a_job_that_is_not_there_is_not_found(mistral: Mistral) -> None:
    jobs = mistral.batch.jobs
    for call in (jobs.get, jobs.cancel, jobs.delete):
        for job_id in (NEVER, "none"):
            assert refusal(lambda call=call, job_id=job_id: call(job_id=job_id))[0] == 404


# ------------------------------------------------------------------------------------------- lists and changes


def test_the_list_has_pages_and_filters(mistral: Mistral) -> None:
    mark, jobs = uuid.uuid4().hex, mistral.batch.jobs
    made = [created(mistral, line("a"), metadata={"mark": mark, "n": str(n)}, model=f"model-{n % 2}") for n in range(4)]
    made.append(created(mistral, b"wrong", metadata={"mark": mark}))
    ids = [ended(mistral, job).id for job in made]

    def found(metadata: Any = None, **wanted: Any) -> list[str]:
        page = jobs.list(metadata={"mark": mark} | (metadata or {}), **wanted)
        return [one.id for one in page.data or ()]

    assert found() == ids[::-1]
    assert [found(page=page, page_size=2) for page in range(4)] == [ids[:2:-1], ids[2:0:-1], ids[:1], []]
    assert jobs.list(metadata={"mark": mark}, page_size=1).total == 5
    assert found(order_by="created") == ids
    assert found({"n": "2"}) == [ids[2]]
    assert found(model="model-1") == [ids[3], ids[1]]
    assert found(status=["SUCCESS"]) == ids[3::-1]
    assert found(status=["FAILED", "RUNNING"]) == [ids[4]]
    assert found(created_after=datetime.now(UTC) + OF_ANOTHER_TIME) == found(agent_id="ag:1") == []
    assert found(created_after=datetime.now(UTC) - OF_ANOTHER_TIME, created_by_me=True) == ids[::-1]


async def test_a_filter_that_is_no_metadata_is_refused(http: httpx2.AsyncClient) -> None:
    for query in ("x" * 65 + "=v", "=v", "k=" + "v" * 513, "&".join(f"k{n}=v" for n in range(17))):
        answer = await http.get(f"/v1/batch/jobs?{query}")
        assert answer.status_code == 422, query
    assert (await http.get("/v1/batch/jobs?a%22b=v")).json()["data"] == []


def test_a_job_that_is_cancelled_keeps_what_it_has(running: tuple[Stack, Gateway], mistral: Mistral) -> None:
    quick, slow = prompt("Hello"), prompt("long", **SLOW)
    job = created(mistral, line("quick", quick), line("slow", slow))
    asyncio.run(running[0].simulator.wait(slow, tokens=1))
    job = ended(mistral, job, "RUNNING")
    while job.succeeded_requests < 1:
        job = mistral.batch.jobs.get(job_id=job.id)
    assert mistral.batch.jobs.cancel(job_id=job.id).status in ("CANCELLATION_REQUESTED", "CANCELLED")
    job = ended(mistral, job)
    assert (job.status, job.succeeded_requests, job.completed_requests) == ("CANCELLED", 1, 1)
    assert list(results(mistral, job.output_file)) == ["quick"]
    assert results(mistral, job.error_file)["slow"]["error"]["code"] == "cancelled"
    assert mistral.batch.jobs.cancel(job_id=job.id).status == "CANCELLED"


def test_a_job_whose_time_is_over_ends(running: tuple[Stack, Gateway], mistral: Mistral) -> None:
    slow = prompt("long", **SLOW)
    job = created(mistral, line("slow", slow), timeout_hours=1)
    asyncio.run(running[0].simulator.wait(slow, tokens=1))
    asyncio.run(changed(running[0].database_url, job.id, expires_at=micros(now())))
    job = ended(mistral, job)
    assert (job.status, job.completed_requests, job.output_file) == ("TIMEOUT_EXCEEDED", 0, None)


LEFT_OVER = {
    "a cancellation": ({"cancel_requested_at": 1}, "CANCELLED"),
    "a timeout": ({"timed_out_at": 1}, "TIMEOUT_EXCEEDED"),
    "a batch that is not recorded": (
        {"cancel_requested_at": 1, "completed_at": 1, "batch_id": None, "claimed_at": 1},
        "CANCELLED",
    ),
}


@pytest.mark.parametrize(("row", "status"), LEFT_OVER.values(), ids=LEFT_OVER)
def test_what_a_gateway_left_over_is_done(
    running: tuple[Stack, Gateway], mistral: Mistral, row: dict[str, Any], status: str
) -> None:
    """A gateway that died had recorded this, and no more."""
    slow = prompt("long", **SLOW)
    job = created(mistral, line("slow", slow))
    asyncio.run(running[0].simulator.wait(slow, tokens=1))
    asyncio.run(changed(running[0].database_url, job.id, **row))
    end = time.monotonic() + PATIENCE
    while (job := ended(mistral, job, status)).error_file is None:
        assert time.monotonic() < end, job
        job = mistral.batch.jobs.get(job_id=job.id)
    assert (job.completed_requests, job.output_file) == (0, None)
    assert results(mistral, job.error_file)["slow"]["error"]["code"] == "cancelled"


async def test_a_batch_that_goes_on_after_its_end_has_new_results(http: httpx2.AsyncClient, mistral: Mistral) -> None:
    once = prompt("Hello", faults=[{"kind": 400}])
    job = ended(mistral, created(mistral, line("good"), line("bad", once)))
    assert job.failed_requests == 1
    size = mistral.files.retrieve(file_id=str(job.output_file)).size_bytes
    batch_id = f"batch_{uuid.UUID(job.id).hex}"
    assert (await http.post(f"/api/batches/{batch_id}/resume")).status_code == 202
    again = ended(mistral, mistral.batch.jobs.get(job_id=job.id))
    assert (again.status, again.succeeded_requests, again.output_file) == ("SUCCESS", 2, job.output_file)
    file = mistral.files.retrieve(file_id=str(job.output_file))
    assert file.num_lines == 2
    assert file.size_bytes == len(mistral.files.download(file_id=file.id).read()) > size


def test_a_deleted_job_is_gone_with_its_results(running: tuple[Stack, Gateway], mistral: Mistral) -> None:
    secret = uuid.uuid4().hex
    asked: Any = [{"body": make_body(secret)}]
    job = ended(mistral, mistral.batch.jobs.create(requests=asked, model=MODEL, endpoint=CHAT))
    gone = mistral.batch.jobs.delete(job_id=job.id)
    assert (gone.id, gone.deleted) == (job.id, True)
    assert refusal(lambda: mistral.batch.jobs.get(job_id=job.id))[0] == 404
    for file_id in (str(job.output_file), *job.input_files):
        assert refusal(lambda file_id=file_id: mistral.files.download(file_id=file_id))[0] == 404
    asyncio.run(_until_gone(running[0].database_url, secret))


async def _until_gone(database_url: str, secret: str) -> None:
    async with opened(database_url) as database, asyncio.timeout(PATIENCE):
        query = select(requests.c.job_id).where(requests.c.body.contains(secret))
        while True:
            async with database.read() as connection:
                if (await connection.execute(query)).first() is None:
                    return
            await asyncio.sleep(0.05)


def test_a_job_that_runs_is_not_deleted(running: tuple[Stack, Gateway], mistral: Mistral) -> None:
    slow = prompt("long", **SLOW)
    job = created(mistral, line("slow", slow))
    asyncio.run(running[0].simulator.wait(slow, tokens=1))
    assert refusal(lambda: mistral.batch.jobs.delete(job_id=job.id))[0] == 409
    mistral.batch.jobs.cancel(job_id=job.id)
    ended(mistral, job)


# ------------------------------------------------------------------------------------------ tenants and crashes


async def keys_of(database_url: str) -> list[str]:
    async with opened(database_url) as database:
        return [(await KeyStore(database).add(tenant=tenant))[1] for tenant in ("acme", "other")]


def test_a_job_is_for_its_tenant_alone(tmp_path: Path) -> None:
    with alone(tmp_path) as built:
        mine, others = asyncio.run(keys_of(built.database_url))
        door = gateway(built)
        with Mistral(api_key=mine, server_url=door.url) as acme, Mistral(api_key=others, server_url=door.url) as other:
            job = created(acme, line("a"))
            for call in (other.batch.jobs.get, other.batch.jobs.cancel, other.batch.jobs.delete):
                assert refusal(lambda call=call: call(job_id=job.id))[0] == 404
            taken = refusal(lambda: other.batch.jobs.create(input_files=job.input_files, model=MODEL, endpoint=CHAT))
            assert taken[0] == 404
            assert other.batch.jobs.list().total == 0
            assert acme.batch.jobs.get(job_id=job.id).status == "QUEUED"


async def test_the_gateway_dies_while_it_reads(tmp_path: Path) -> None:
    """Another one reads the files again; there is one batch of them, and no draft is left."""
    many = b"".join(line(f"item-{n}", "x" * 200) for n in range(MANY))
    with alone(tmp_path) as built:
        door = gateway(built)
        async with opened(built.database_url) as database:
            with Mistral(api_key="any", server_url=door.url) as mistral:
                job = await asyncio.to_thread(created, mistral, many)
            await _until_status(database, "draft")
            door.process.kill()
            before = micros(now() - CLAIM_LASTS - timedelta(seconds=1))
            await changed(built.database_url, job.id, claimed_at=before)  # as if it had died a while ago
            again = gateway(built, "gateway-2")
            await _until_status(database, "queued")
            async with Mistral(api_key="any", server_url=again.url) as mistral:
                shown = await mistral.batch.jobs.get_async(job_id=job.id)
            assert (shown.status, shown.total_requests) == ("QUEUED", MANY)
            async with database.read() as connection:
                found = (await connection.execute(select(batches.c.status, batches.c.total))).all()
            assert sorted(map(tuple, found)) == [("draft", 0), ("queued", MANY)]  # a sweeper deletes the draft later


async def _until_status(database: Database, status: str) -> None:
    query = select(batches.c.id).where(batches.c.status == status, batches.c.id.is_not(None))
    async with asyncio.timeout(PATIENCE):
        while True:
            async with database.read() as connection:
                if (await connection.execute(query)).first() is not None:
                    return
            await asyncio.sleep(0.02)
