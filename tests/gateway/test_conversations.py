"""Conversations over HTTP, with a real worker: what the model is sent, and which previous jobs are refused."""

from __future__ import annotations

import asyncio
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
from tests.support.event_reader import reading
from tests.support.factories import make_body
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import SimulatorProcess, prompt
from tests.support.stack import Stack, stack

SLOW = prompt("a long one", tokens=5_000, tokens_per_second=50)


@dataclass(frozen=True)
class Callers:
    """A client per tenant, and the model that both talk to."""

    mine: httpx2.AsyncClient
    other: httpx2.AsyncClient
    model: SimulatorProcess


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
        clients = [
            await opened.enter_async_context(door.client(headers={"Authorization": f"Bearer {keys[tenant]}"}))
            for tenant in ("mine", "other")
        ]
        yield Callers(*clients, model=started.simulator)
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
