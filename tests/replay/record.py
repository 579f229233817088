"""Record the histories that tests/workflows/test_replay.py replays.

    python -m tests.replay.record                      # the scenarios that have no history yet
    python -m tests.replay.record completed inline     # these, anew

A history stands for the runs that are open, or may be reset, while a new version is deployed. So when a workflow
changes on purpose, do not record its histories anew: guard the change with ``workflow.patched``, keep the old
histories, and record the new way under a new name. Only a version that no run was ever started with may be dropped.

Nothing of the machine is kept: the workers' identity is fixed, and stack traces, which hold paths, are left out.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from temporalio.client import ScheduleActionExecutionStartWorkflow, WithStartWorkflowOperation, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from domain.errors import UpstreamRefused
from domain.names import ACCEPTED_UPDATE, CHAT_JOB, JOBS_QUEUE, RETENTION, WEBHOOK_DELIVERY, delivery_workflow_id
from domain.payloads import DeliveryStart, RetentionOrder
from domain.ports import Finish
from domain.timings import Timings
from storage.engine.database import Database
from tests.support.batches import submit_batch
from tests.support.cancelling import cancel
from tests.support.factories import make_body
from tests.support.fakes import HELLO, OK, Gate, answered, eventually, text
from tests.support.house import HOOK, House, house
from tests.support.temporal_server import binary, temporal_server
from workflows import options

HISTORIES = Path(__file__).parent / "histories"
IDENTITY = "a recorder"
SHORT_HISTORY = 40
PAUSED_SECONDS = 0.5
TIMINGS = Timings(batch_paused_seconds=PAUSED_SECONDS)
Run = WorkflowHandle[Any, Any]
Scenario = Callable[[House, str], Awaitable[Run]]


async def completed(here: House, job_id: str) -> Run:
    return await stored(here, job_id)


async def incomplete(here: House, job_id: str) -> Run:
    here.model.scripts = [[*text("Hello"), Finish("length")]]
    return await stored(here, job_id)


async def failed(here: House, job_id: str) -> Run:
    here.model.scripts = [[UpstreamRefused(code="upstream_rejected")]]
    return await stored(here, job_id)


async def cancelled(here: House, job_id: str) -> Run:
    """Through Temporal, in the middle of the stream."""
    here.model.scripts = [[*text("Hel"), Gate()]]
    await here.submit(jobId=job_id, callback=HOOK)
    await here.readable(job_id, 3)
    await here.run(job_id).cancel()
    return here.run(job_id)


async def cancelled_by_us(here: House, job_id: str) -> Run:
    """Only the row knows: the run asks Temporal to be cancelled."""
    gate = Gate()
    here.model.scripts = [[gate, *HELLO]]
    await here.submit(jobId=job_id, callback=HOOK)
    await gate.reached()
    await here.jobs.seals.request_cancel(job_id)
    gate.open()
    return here.run(job_id)


async def cancelled_too_late(here: House, job_id: str) -> Run:
    """During the first webhook try: the job completes."""
    gate = Gate()
    here.sender.answers = [gate, OK]
    run = await stored(here, job_id, callback=HOOK)
    await gate.reached()
    await run.cancel()
    gate.open()
    return run


async def delivered(here: House, job_id: str) -> Run:
    """The first webhook try succeeds."""
    return await stored(here, job_id, callback=HOOK)


async def handed_over(here: House, job_id: str) -> Run:
    """The first webhook try fails, and a run of its own goes on."""
    here.sender.answers = [answered(500)]
    return await stored(here, job_id, callback=HOOK)


async def inline(here: House, job_id: str) -> Run:
    return await here.direct({"request": make_body()}, job_id=job_id)


async def accepted(here: House, job_id: str) -> Run:
    """With the update that answers once the job is stored."""
    here.started.append(job_id)
    operation: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
        CHAT_JOB,
        {"request": make_body()},
        id=job_id,
        task_queue=JOBS_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
    )
    await here.client.execute_update_with_start_workflow(ACCEPTED_UPDATE, start_workflow_operation=operation)
    return here.run(job_id)


async def cron(here: House, job_id: str) -> Run:
    """The first run of a cron, whose job has an id of its own."""
    started = await here.direct({"request": make_body()}, job_id=job_id, cron_schedule="@every 1s")

    async def over() -> bool:
        return any(job.status.terminal for job in await here.jobs.queries.list(tenant="default"))

    await eventually(over)
    await here.run(job_id).terminate()
    return here.client.get_workflow_handle(job_id, run_id=started.first_execution_run_id)


async def invalid(here: House, job_id: str) -> Run:
    return await here.direct({"request": {"messages": []}}, job_id=job_id)


async def webhook_in_three_days(here: House, job_id: str) -> Run:
    """The whole schedule, in vain."""
    here.sender.answers = [answered(500)]
    await here.accept(jobId=job_id, callback=HOOK)
    await cancel(here, job_id)
    delivery_id = (await here.jobs.queries.get(job_id)).deliveries[0].id
    return await here.client.start_workflow(
        WEBHOOK_DELIVERY,
        DeliveryStart(delivery_id=delivery_id),
        id=delivery_workflow_id(delivery_id),
        task_queue=JOBS_QUEUE,
    )


async def not_indexed(here: House, job_id: str) -> Run:
    """Without search attributes."""
    return await stored(here, job_id)


async def retention(here: House, job_id: str) -> Run:
    """With something to remove."""
    await here.submit(jobId=job_id)
    await here.ended(job_id)
    return await here.client.start_workflow(RETENTION, RetentionOrder(days=1e-9), id="retention", task_queue=JOBS_QUEUE)


async def scheduled(here: House, job_id: str) -> Run:
    """A run that one of our schedules starts."""
    return await _triggered(here, job_id, deleted=False)


async def schedule_deleted(here: House, job_id: str) -> Run:
    """The schedule was deleted before Temporal was told of it: there is no job."""
    return await _triggered(here, job_id, deleted=True)


async def scheduled_batch(here: House, job_id: str) -> Run:
    """A run that makes a batch, and waits for its end."""
    return await _triggered(here, job_id, deleted=False, batch={"items": [{"body": make_body()}]})


async def _triggered(here: House, name: str, *, deleted: bool, **wish: Any) -> Run:
    body = {"id": name, "cron": "0 0 29 2 *", **(wish or {"request": make_body()})}
    schedule, _ = await here.schedules.put(body, tenant="default")
    await here.schedules.apply(schedule)
    if deleted:
        await here.jobs.schedules.delete("default", name)
    handle = here.client.get_schedule_handle(schedule.name)
    await handle.trigger()

    async def started() -> Run | None:
        for one in (await handle.describe()).info.recent_actions:
            if isinstance(one.action, ScheduleActionExecutionStartWorkflow):
                return here.run(one.action.workflow_id)
        return None

    return cast(Run, await eventually(started))


async def batch(here: House, job_id: str) -> Run:
    """Three parts, and a webhook."""
    return await batch_of(here, 30, webhook=HOOK)


async def batch_paused(here: House, job_id: str) -> Run:
    """For so long that it gives its activities back; then it is resumed."""
    gate = Gate()
    here.model.scripts = [[gate, *HELLO], HELLO]
    run = await batch_of(here, 30, concurrency=3)
    await gate.reached()
    runs = here.parts.upkeep().batch_runs
    await runs.pause(run.id)
    await asyncio.sleep(2 * PAUSED_SECONDS)
    gate.open()

    async def idle() -> bool:
        return not (await run.describe()).raw_description.pending_activities

    await eventually(idle)
    await runs.resume(run.id)
    await here.parts.upkeep().batches.start(run.id)
    return run


async def batch_cancelled(here: House, job_id: str) -> Run:
    """Through Temporal, in the middle of an answer."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), gate]]
    run = await batch_of(here, 3)
    await gate.reached()
    await run.cancel()
    return run


async def batch_continued(here: House, job_id: str) -> Run:
    """The first of its runs."""
    with short_histories():
        run = await batch_of(here, 160)
        first = (await run.describe()).run_id
        await run.result()
    return here.client.get_workflow_handle(run.id, run_id=first)


async def batch_of(here: House, count: int, **settings: Any) -> Run:
    bodies = [make_body(f"Hello {number}") for number in range(count)]
    return here.run(await submit_batch(here.parts.database, here.client, bodies, **settings))


@contextmanager
def short_histories() -> Iterator[None]:
    """Runs of a batch end after some ten events, where they have others to begin."""
    long, options.LONGEST_HISTORY = options.LONGEST_HISTORY, SHORT_HISTORY
    try:
        yield
    finally:
        options.LONGEST_HISTORY = long


async def stored(here: House, job_id: str, **fields: Any) -> Run:
    await here.submit(jobId=job_id, **fields)
    return here.run(job_id)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        *(completed, incomplete, failed, cancelled, cancelled_by_us, cancelled_too_late, delivered, handed_over),
        *(inline, accepted, invalid, cron, not_indexed, webhook_in_three_days, retention),
        *(scheduled, schedule_deleted, scheduled_batch),
        *(batch, batch_paused, batch_cancelled, batch_continued),
    )
}
SKIPPING_TIME = (webhook_in_three_days,)
SHORT = (batch_continued.__name__,)
"""Histories that replay under ``short_histories`` only."""
WITHOUT_INDEX = (not_indexed, webhook_in_three_days)


async def record(name: str, directory: Path = HISTORIES) -> None:
    """Run a scenario and keep its history."""
    scenario = SCENARIOS[name]
    async with recording(scenario) as here:
        run = await scenario(here, f"job_{name}")
        await asyncio.gather(run.result(), return_exceptions=True)
        history = json.loads((await run.fetch_history()).to_json())
    content = json.dumps(without_machine(history), indent=1)
    await asyncio.to_thread((directory / f"{name}.json").write_text, content + "\n")


@asynccontextmanager
async def recording(scenario: Scenario) -> AsyncIterator[House]:
    """A service for one scenario, with a Temporal of its own."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        database = await Database.open(f"sqlite:///{directory / 'chatjobs.db'}")
        async with (
            any_temporal(directory, skipping=scenario in SKIPPING_TIME) as client,
            house(client, database, indexed=scenario not in WITHOUT_INDEX, timings=TIMINGS) as here,
        ):
            yield here
        await database.close()


@asynccontextmanager
async def any_temporal(directory: Path, *, skipping: bool) -> AsyncIterator[Any]:
    if not skipping:
        with temporal_server(directory / "temporal") as server:
            yield await server.connect(IDENTITY)
        return
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=binary("temporal-test-server"),
        data_converter=pydantic_data_converter,
        identity=IDENTITY,
    ) as environment:
        yield environment.client


def without_machine(value: Any) -> Any:
    """A history without the stack traces of its failures."""
    if isinstance(value, dict):
        return {name: without_machine(item) for name, item in value.items() if name != "stackTrace"}
    return [without_machine(item) for item in value] if isinstance(value, list) else value


async def main(names: list[str]) -> None:
    for name in names or [name for name in SCENARIOS if not (HISTORIES / f"{name}.json").exists()]:
        await record(name)
        print(f"recorded {name}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
