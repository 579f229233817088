"""Streams behind nginx as Debian has it, whose buffering is on."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chatjobs.contracts import Channel
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.writer import TranscriptWriter
from tests.support.event_reader import reading
from tests.support.factories import accepted, claimed, ending, finished
from tests.support.gateway import alone, gateway
from tests.support.needs import find, reason
from tests.support.nginx import nginx
from tests.support.stack import Stack

pytestmark = pytest.mark.skipif(find("nginx") is None, reason=reason("nginx"))

FIRST_BYTE_SECONDS = 0.2
TOKENS = 20


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Stack]:
    with alone(tmp_path) as built:
        yield built


@pytest.fixture
def proxied(machine: Stack, tmp_path: Path) -> Iterator[str]:
    with nginx(tmp_path, gateway(machine).url) as url:
        yield url


@pytest.fixture
async def database(machine: Stack, proxied: str) -> AsyncIterator[Database]:
    """The gateway's, so that ``store`` and ``writer`` are a worker's."""
    found = await Database.open(machine.database_url)
    yield found
    await found.close()


async def test_nothing_is_held_back(proxied: str, store: JobStore, writer: TranscriptWriter) -> None:
    """The head comes at once, and each token is read before the next one is written."""
    claim = await claimed(store, await accepted(store))
    job_writer = writer.open(claim)
    times = []
    for _ in range(5):
        began = time.monotonic()
        async with reading(f"{proxied}/api/jobs/{claim.job_id}/events"):
            times.append(time.monotonic() - began)
    assert sorted(times)[2] < FIRST_BYTE_SECONDS
    async with reading(f"{proxied}/api/jobs/{claim.job_id}/events") as reader:
        for number in range(TOKENS):
            job_writer.append(Channel.CONTENT, f"{number} ")
            event = await reader.next()
            if event is not None and event.event == "start":
                event = await reader.next()
            assert event is not None
            assert json.loads(event.data)["content"] == f"{number} "
        await job_writer.finish(finished(claim))
        await store.seals.seal(ending(claim.job_id), run_id="run-1")
        last = await reader.next()
        assert last is not None
        assert last.event == "complete"
        assert await reader.next() is None
        assert reader.complete


async def test_a_posted_stream_is_not_held_back_either(proxied: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    async with reading(f"{proxied}/api/chat/stream", body=body) as reader:
        assert reader.status == 200
        assert reader.headers["x-job-id"]


async def test_a_long_stream_through_an_http_1_0_proxy(
    machine: Stack, tmp_path: Path, proxied: str, store: JobStore, writer: TranscriptWriter
) -> None:
    """nginx speaks HTTP/1.0 to what is behind it, unless told otherwise."""
    claim = await claimed(store, await accepted(store))
    job_writer = writer.open(claim)
    job_writer.append(Channel.CONTENT, "0123456789 " * 20_000)
    await job_writer.finish(finished(claim))
    await store.seals.seal(ending(claim.job_id), run_id="run-1")
    async with reading(f"{proxied}/api/jobs/{claim.job_id}/events") as reader:
        events = await reader.all()
    text = "".join(json.loads(event.data)["content"] for event in events if event.event == "chunk")
    assert text == "0123456789 " * 20_000
    assert events[-1].event == "complete"
