"""Workers killed with -9 at every step of a batch job: every item is answered, and none is paid for twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storage.batches.queries import BatchQueries
from tests.support.batches import submit_batch
from tests.support.service import PATIENCE, Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Stack]:
    """A stack whose worker the test starts itself."""
    options = {"batch_seconds": 0, "batch_rate": 0}
    with stack(tmp_path, workers=0, simulator=options, env={"CHATJOBS_HEARTBEAT_SECONDS": "2"}) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


POINTS = ("after_upload", "after_create", "before_finish_commit", "after_finish", "after_seal")


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_that_is_killed_asks_nothing_twice(machine: Stack, live: Service, point: str) -> None:
    """After the upload, after the creation of the batch job, and while its results are stored."""
    texts = [prompt(f"{point} {number}", tokens=400) for number in range(20)]
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    batch_id = await submit_batch(live.database, live.client, bodies, lane="batch")
    doomed = machine.run("doomed", "-m", "tests.support.dying_worker", point, ready="worker ready")
    assert await asyncio.to_thread(doomed.popen.wait, PATIENCE) == -signal.SIGKILL
    machine.add_worker()
    async with asyncio.timeout(PATIENCE):
        await live.client.get_workflow_handle(batch_id).result()
    batch = await BatchQueries(live.database).get(batch_id)
    assert batch.counts.completed == 20
    found: dict[str, str | None] = {}
    async for page in BatchQueries(live.database).output(batch_id):
        found |= {item.custom_id: item.result.content for item in page}
    for number, text in enumerate(texts):
        assert found[f"item-{number}"] == machine.simulator.answer(text)["text"]
        assert len(machine.simulator.requests(text)) == 1
