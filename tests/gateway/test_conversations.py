"""Conversations over HTTP, with a real worker: what the model is sent, and which previous jobs are refused."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from storage.engine.database import Database
from storage.keys import KeyStore
from tests.support.factories import make_body
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import SimulatorProcess, prompt
from tests.support.snippets import output, snippets
from tests.support.stack import Stack, stack

SLOW = prompt("a long one", tokens=5_000, tokens_per_second=50)


@dataclass(frozen=True)
class Callers:
    """A client per tenant, and the model that both talk to."""

    mine: httpx2.AsyncClient
    other: httpx2.AsyncClient
    model: SimulatorProcess
    env: dict[str, str]
    """Of a program that calls as the first tenant."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway, dict[str, str]]]:
    env = {"CHATJOBS_PORT": "0", "MISTRAL_REQUESTS_PER_SECOND": "1000", "CHATJOBS_MAX_BODY_BYTES": "3000000"}
    with stack(tmp_path_factory.mktemp("conversations"), env=env) as started:
        keys = asyncio.run(_made_keys(started.database_url))
        yield started, gateway(started), keys


async def _made_keys(database_url: str) -> dict[str, str]:
    database = await Database.open(database_url)
    keys = {tenant: (await KeyStore(database).add(tenant=tenant))[1] for tenant in ("mine", "other")}
    await database.close()
    return keys


@pytest.fixture
async def callers(running: tuple[Stack, Gateway, dict[str, str]]) -> AsyncIterator[Callers]:
    started, door, keys = running
    async with AsyncExitStack() as opened:
        clients = {
            tenant: await opened.enter_async_context(door.client(headers={"Authorization": f"Bearer {keys[tenant]}"}))
            for tenant in ("mine", "other")
        }
        env = {"CHATJOBS_URL": door.url, "CHATJOBS_API_KEY": keys["mine"], "PATH": os.environ["PATH"]}
        yield Callers(**clients, model=started.simulator, env=env | {"NO_PROXY": "127.0.0.1"})
    sys.stdout.write(started.news())


async def begun(client: httpx2.AsyncClient, message: str, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/api/jobs", json=make_body(message, **fields))
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def ended(client: httpx2.AsyncClient, message: str = "", *, key: str = "", **fields: Any) -> dict[str, Any]:
    """A job that has ended. ``message``: prompt() unless given."""
    headers = {"Prefer": "wait=60"} | ({"Idempotency-Key": key} if key else {})
    answer = await client.post("/api/jobs", json=make_body(message or prompt(), **fields), headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def refused(client: httpx2.AsyncClient, status: int, previous: str, **fields: Any) -> dict[str, Any]:
    """The problem with which a follow-up is refused."""
    answer = await client.post("/api/jobs", json=make_body(prompt(), previousJobId=previous, **fields))
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def listed(client: httpx2.AsyncClient, **params: str) -> list[str]:
    """The ids of the jobs in a list, oldest first."""
    answer = await client.get("/api/jobs", params=params)
    assert answer.status_code == 200, answer.text
    return [job["jobId"] for job in reversed(answer.json()["jobs"])]


def sent(model: SimulatorProcess, message: str) -> list[dict[str, Any]]:
    """The messages of the one call whose last message of the user is this, without a prefix that is false."""
    (request,) = model.requests(message)
    return [
        {name: value for name, value in one.items() if (name, value) != ("prefix", False)}
        for one in request["messages"]
    ]


# ------------------------------------------------------------------------------------------- what the model is sent


async def test_the_model_gets_the_whole_conversation(callers: Callers) -> None:
    """Three turns: each call has the messages and answers before it, and the list by thread has them all."""
    asked = [prompt(f"question {number}") for number in range(3)]
    first = await ended(callers.mine, asked[0])
    second = await ended(callers.mine, asked[1], previousJobId=first["jobId"])
    third = await ended(callers.mine, asked[2], previousJobId=second["jobId"])
    assert sent(callers.model, asked[2]) == [
        {"role": "user", "content": asked[0]},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": asked[1]},
        {"role": "assistant", "content": second["content"]},
        {"role": "user", "content": asked[2]},
    ]
    ids = [job["jobId"] for job in (first, second, third)]
    assert [job["thread"] for job in (first, second, third)] == [ids[0]] * 3
    assert [job["previousJobId"] for job in (first, second, third)] == [None, *ids[:2]]
    assert await listed(callers.mine, thread=ids[0]) == ids
    assert await listed(callers.other, thread=ids[0]) == []
    asked_again = (await callers.mine.get(f"/api/jobs/{ids[2]}/request")).json()
    assert [message["content"] for message in asked_again["messages"]][-1] == asked[2]
    assert "previousJobId" not in asked_again, "posted again, it would have the messages twice"


async def test_the_stream_of_a_chat_goes_on_too(callers: Callers) -> None:
    """POST /api/chat/stream takes the same body."""
    first = await ended(callers.mine)
    message = prompt()
    body = make_body(message, previousJobId=first["jobId"])
    async with callers.mine.stream("POST", "/api/chat/stream", json=body) as stream:
        job_id = stream.headers["x-job-id"]
        await stream.aread()
    assert [one["role"] for one in sent(callers.model, message)] == ["user", "assistant", "user"]
    assert await listed(callers.mine, thread=first["jobId"]) == [first["jobId"], job_id]


async def test_parameters_are_not_taken_over(callers: Callers) -> None:
    """The messages are; model, temperature, metadata and webhook are those of the follow-up."""
    first = await ended(callers.mine, model="mistral-large-latest", temperature=0.1, metadata={"order": "42"})
    second = await ended(callers.mine, previousJobId=first["jobId"])
    assert (second["model"], second["metadata"]) == ("mistral-small-latest", {})
    asked = (await callers.mine.get(f"/api/jobs/{second['jobId']}/request")).json()
    assert set(asked) == {"messages"}


async def test_a_system_message_takes_the_place_of_the_first(callers: Callers) -> None:
    """Behind an answer the model would refuse it."""
    question, instructions = prompt(), {"role": "system", "content": "Be brief."}
    first = await ended(
        callers.mine, messages=[{"role": "system", "content": "Be verbose."}, make_body("Hi")["messages"][0]]
    )
    messages = [instructions, {"role": "user", "content": question}]
    await ended(callers.mine, messages=messages, previousJobId=first["jobId"])
    assert [one["role"] for one in sent(callers.model, question)] == ["system", "user", "assistant", "user"]
    assert sent(callers.model, question)[0] == instructions


async def test_calls_of_tools_are_answered(callers: Callers) -> None:
    """The calls stand in the assistant's message; what does not answer them is refused before the model does."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    first = await ended(callers.mine, tools=tools, tool_choice="any")
    (call,) = first["toolCalls"]
    problem = await refused(callers.mine, 422, first["jobId"], tools=tools)
    assert problem["errors"] == [
        {"pointer": "/messages/0/role", "message": problem["errors"][0]["message"]},
    ]
    assert "called tools" in problem["errors"][0]["message"]
    answer = {"role": "tool", "tool_call_id": call["id"], "name": "weather", "content": uuid.uuid4().hex}
    second = await ended(callers.mine, messages=[answer], tools=tools, previousJobId=first["jobId"])
    (request,) = [
        one
        for one in callers.model.requests()
        if one["messages"] and one["messages"][-1].get("content") == answer["content"]
    ]
    assert [one["role"] for one in request["messages"]] == ["user", "assistant", "tool"]
    assert request["messages"][1]["tool_calls"][0]["id"] == call["id"]
    assert second["status"] == "completed"


async def test_reasoning_is_given_back_as_a_thought(callers: Callers) -> None:
    first = await ended(callers.mine, prompt(reasoning="Let me think."))
    assert first["reasoning"]
    question = prompt()
    await ended(callers.mine, question, previousJobId=first["jobId"])
    assert sent(callers.model, question)[1]["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": first["reasoning"]}], "closed": True},
        {"type": "text", "text": first["content"]},
    ]


async def test_a_prefix_and_its_answer_are_one_message(callers: Callers) -> None:
    first = await ended(
        callers.mine,
        messages=[{"role": "user", "content": prompt()}, {"role": "assistant", "content": "Well, ", "prefix": True}],
    )
    question = prompt()
    await ended(callers.mine, question, previousJobId=first["jobId"])
    assert sent(callers.model, question)[1:2] == [{"role": "assistant", "content": "Well, " + first["content"]}]


# -------------------------------------------------------------------------------------- jobs without a whole answer


async def test_a_running_job_is_409_and_its_partial_text_goes_on(callers: Callers) -> None:
    first = await begun(callers.mine, SLOW)
    await callers.model.wait(SLOW, tokens=20)
    assert (await refused(callers.mine, 409, first["jobId"]))["code"] == "job_running"
    await callers.mine.post(first["cancelUrl"])
    async with asyncio.timeout(30):
        await callers.mine.get(first["eventsUrl"])
    cancelled = (await callers.mine.get(first["statusUrl"])).json()
    assert cancelled["status"] == "cancelled"
    question = prompt()
    await ended(callers.mine, question, previousJobId=first["jobId"])
    assert sent(callers.model, question)[1] == {"role": "assistant", "content": cancelled["content"]}


async def test_a_job_without_text_is_422(callers: Callers) -> None:
    """Failed, or cancelled before it began."""
    failed = await ended(callers.mine, prompt(faults=[{"kind": "status", "status": 422}]))
    assert failed["status"] == "failed"
    waiting = await begun(callers.mine, prompt(), startAt="2027-01-31T12:00:00Z")
    assert (await refused(callers.mine, 409, waiting["jobId"]))["code"] == "job_running"
    await callers.mine.post(waiting["cancelUrl"])
    for job in (failed, waiting):
        problem = await refused(callers.mine, 422, job["jobId"])
        assert (problem["code"], problem["errors"][0]["pointer"]) == ("validation_failed", "/previousJobId")
        assert "without text" in problem["errors"][0]["message"]


async def test_a_job_that_is_not_there_is_404(callers: Callers) -> None:
    """Whether it is nobody's or another tenant's."""
    theirs = await ended(callers.other)
    answers = [await refused(callers.mine, 404, previous) for previous in (theirs["jobId"], "job_of_nobody")]
    assert answers[0] == answers[1]
    assert "previousJobId" in answers[0]["detail"]
    assert (await refused(callers.mine, 422, "no id!"))["errors"][0]["pointer"] == "/previousJobId"


async def test_a_deleted_job_is_410_and_the_same_request_again_is_its_job(callers: Callers) -> None:
    """The rest of the conversation works: the follow-up has the messages, and further ones go on from it."""
    first = await ended(callers.mine)
    message, key = prompt(), uuid.uuid4().hex
    second = await ended(callers.mine, message, key=key, previousJobId=first["jobId"])
    assert (await callers.mine.delete(f"/api/jobs/{first['jobId']}")).status_code == 204
    problem = await refused(callers.mine, 410, first["jobId"])
    assert (problem["code"], "in messages" in problem["detail"]) == ("content_deleted", True)
    again = await ended(callers.mine, message, key=key, previousJobId=first["jobId"])
    assert again["jobId"] == second["jobId"]
    other = await callers.mine.post(
        "/api/jobs", json=make_body(prompt(), previousJobId=first["jobId"]), headers={"Idempotency-Key": key}
    )
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    third = await ended(callers.mine, previousJobId=second["jobId"])
    assert await listed(callers.mine, thread=first["jobId"]) == [one["jobId"] for one in (first, second, third)]


async def test_parallel_posts_of_one_key_are_one_job(callers: Callers) -> None:
    first = await ended(callers.mine)
    message, key = prompt(), uuid.uuid4().hex
    jobs = await asyncio.gather(
        *(ended(callers.mine, message, key=key, previousJobId=first["jobId"]) for _ in range(10))
    )
    assert len({job["jobId"] for job in jobs}) == 1
    assert len(sent(callers.model, message)) == 3


# ------------------------------------------------------------------------------------------------------- branches


async def test_a_replay_is_a_branch(callers: Callers) -> None:
    """It has the request as it was sent, its place in the conversation, and its thread: also where the previous job was
    deleted, and where the first job is replayed."""
    first = await ended(callers.mine)
    message = prompt()
    second = await ended(callers.mine, message, previousJobId=first["jobId"])
    await callers.mine.delete(f"/api/jobs/{first['jobId']}")
    branch = (await callers.mine.post(f"/api/jobs/{second['jobId']}/replay", json={"temperature": 0.2})).json()
    found = await _awaited(callers.mine, branch["jobId"])
    assert (found["previousJobId"], found["thread"], found["replayOf"]) == (
        first["jobId"],
        first["jobId"],
        second["jobId"],
    )
    asked = [
        (await callers.mine.get(f"/api/jobs/{one}/request")).json()["messages"]
        for one in (second["jobId"], branch["jobId"])
    ]
    assert asked[0] == asked[1]
    root = await ended(callers.mine)
    edited = make_body(prompt())
    again = (await callers.mine.post(f"/api/jobs/{root['jobId']}/replay", json=edited)).json()
    found = await _awaited(callers.mine, again["jobId"])
    assert (found["previousJobId"], found["thread"]) == (None, root["jobId"])
    assert await listed(callers.mine, thread=root["jobId"]) == [root["jobId"], again["jobId"]]
    refusal = await callers.mine.post(f"/api/jobs/{root['jobId']}/replay", json={"previousJobId": second["jobId"]})
    assert refusal.json()["errors"][0]["pointer"] == "/previousJobId"


async def test_replays_of_many_are_branches(callers: Callers) -> None:
    tag = {"tag": uuid.uuid4().hex}
    first = await ended(callers.mine)
    second = await ended(callers.mine, previousJobId=first["jobId"], metadata=tag)
    body = {"filter": {"metadata": tag}}
    made = await callers.mine.post("/api/replays", json=body)
    assert made.status_code == 202, made.text
    async with asyncio.timeout(60):
        await callers.mine.get(f"/api/batches/{made.json()['batchId']}/events")
    (branch,) = await listed(callers.mine, replayOf=second["jobId"])
    found = (await callers.mine.get(f"/api/jobs/{branch}")).json()
    assert (found["previousJobId"], found["thread"]) == (first["jobId"], first["jobId"])
    overridden = body | {"overrides": {"previousJobId": first["jobId"]}}
    refusal = await callers.mine.post("/api/replays", json=overridden)
    assert [one["pointer"] for one in refusal.json()["errors"]] == ["/overrides/previousJobId"]


async def test_where_no_conversation_goes_on(callers: Callers) -> None:
    """Items of a batch, its defaults, and schedules say so."""
    first = (await ended(callers.mine))["jobId"]
    request = make_body(previousJobId=first)
    batch = await callers.mine.post("/api/batches", json={"items": [{"custom_id": "1", "body": request}]})
    assert [one["pointer"] for one in batch.json()["errors"]] == ["/items/0/body/previousJobId"]
    with_defaults = {"items": [{"custom_id": "1", "body": make_body()}], "defaults": {"previousJobId": first}}
    assert (await callers.mine.post("/api/batches", json=with_defaults)).status_code == 422
    schedule = await callers.mine.post("/api/schedules", json={"every": "1h", "request": request})
    assert [one["pointer"] for one in schedule.json()["errors"]] == ["/request/previousJobId"]


async def test_what_would_be_too_long_is_refused_before_it_is_stored(callers: Callers) -> None:
    """By its bytes, with images, and by its number of messages."""
    image = {"type": "image_url", "image_url": "data:image/png;base64," + "A" * 1_600_000}
    first = await ended(
        callers.mine, messages=[{"role": "user", "content": [{"type": "text", "text": prompt()}, image]}]
    )
    again = [{"role": "user", "content": [{"type": "text", "text": prompt()}, image]}]
    problem = await refused(callers.mine, 422, first["jobId"], messages=again)
    assert "bytes, and a request may have 3000000; leave the field out" in problem["errors"][0]["message"]
    many = await ended(
        callers.mine, messages=[{"role": "user", "content": "Hello"}] * 999 + make_body(prompt())["messages"]
    )
    problem = await refused(callers.mine, 422, many["jobId"])
    assert "conversation of 1002 messages, and a request may have 1000" in problem["errors"][0]["message"]


async def _awaited(client: httpx2.AsyncClient, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        await client.get(f"/api/jobs/{job_id}/events")
    return dict((await client.get(f"/api/jobs/{job_id}")).json())


async def test_the_examples_of_the_page_work(callers: Callers) -> None:
    """docs/conversations.md: the commands list a thread of three, the program one of two with one model."""
    (commands,) = snippets("conversations.md", "bash")
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-ec", commands],
        env=callers.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"jobId"') == 3
    assert '"content":"How long is it?"' in done.stdout
    (program,) = snippets("conversations.md", "python")
    printed = await asyncio.to_thread(output, program, env=callers.env)
    assert printed.endswith("mistral-large-latest How long is it?\nmistral-large-latest Name a river in Italy\n")
