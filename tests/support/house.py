"""The service in this process, for tests: workers with a scripted model and sender, on a real Temporal and database.

async with house(client, database, model=ScriptedModel(...), gates=Gates({"before claim": gate})) as here:
    job_id = await here.submit()
    await here.agree(job_id, JobStatus.COMPLETED)
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.contracts import Job, JobStatus, WebhookEventType
from dispatch.intake import Intake
from dispatch.job_schedules import JobSchedules
from domain.names import (
    BATCHES_QUEUE,
    CHAT_JOB,
    COMPLETIONS_QUEUE,
    JOBS_QUEUE,
    STATUS_QUERY,
    WEBHOOKS_QUEUE,
    new_job_id,
)
from domain.ports import BatchModel, ChatModel, WebhookSender
from domain.settings import Settings
from domain.timings import Timings
from domain.values import Cursor, JobHandle, Slice
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from storage.webhooks.deliveries import DeliveryStore
from tests.support.factories import make_body
from tests.support.fakes import PATIENCE, SECRET, GatedJobs, GatedTranscript, Gates, ScriptedModel, ScriptedSender
from tests.support.service import Watched
from worker import WorkerParts

QUEUES = (JOBS_QUEUE, COMPLETIONS_QUEUE, BATCHES_QUEUE, WEBHOOKS_QUEUE)
HOOK = "http://receiver.example/hook"
QUICK = Timings(failure_pause_seconds=0.01)
"""Attempts follow each other without a pause."""
RUNS = {
    JobStatus.COMPLETED: WorkflowExecutionStatus.COMPLETED,
    JobStatus.INCOMPLETE: WorkflowExecutionStatus.COMPLETED,
    JobStatus.FAILED: WorkflowExecutionStatus.FAILED,
    JobStatus.CANCELLED: WorkflowExecutionStatus.CANCELED,
}
"""How the run of a job ends."""


@dataclass(frozen=True)
class GatedParts(WorkerParts):
    gates: Gates = field(default_factory=Gates)

    @property
    def jobs(self) -> JobStore:
        return GatedJobs(self.database, self.gates)


class House:
    def __init__(self, parts: GatedParts, reader: TranscriptReader) -> None:
        self.parts = parts
        self.client = parts.client
        self.reader = reader
        self.jobs = replace(parts, gates=Gates()).jobs
        self.deliveries = DeliveryStore(parts.database)
        self.intake = Intake(jobs=self.jobs, client=parts.client, indexed=parts.indexed)
        self.schedules = JobSchedules(jobs=self.jobs, intake=self.intake, client=parts.client, timings=parts.timings)
        self.started: list[str] = []

    @property
    def model(self) -> ScriptedModel:
        assert isinstance(self.parts.model, ScriptedModel)
        return self.parts.model

    @property
    def sender(self) -> ScriptedSender:
        assert isinstance(self.parts.sender, ScriptedSender)
        return self.parts.sender

    async def accept(self, prompt: str = "Hello", **fields: Any) -> str:
        """The id of a job that is accepted, and not started."""
        return (await self.intake.accept(make_body(prompt, **fields), tenant="default")).job_id

    async def submit(self, prompt: str = "Hello", **fields: Any) -> str:
        """The id of a job that is accepted and started."""
        job_id = await self.accept(prompt, **fields)
        await self.start(job_id)
        return job_id

    async def start(self, job_id: str) -> None:
        job = await self.jobs.queries.get(job_id)
        handle = JobHandle(job_id, job.request_id, "default", job.model, job.status, 3, job.created_at)
        await self.intake.start(handle)
        self.started.append(job_id)

    async def direct(self, *arguments: Any, job_id: str | None = None, **options: Any) -> WorkflowHandle[Any, Any]:
        """A job started straight through Temporal."""
        job_id = job_id or new_job_id()
        self.started.append(job_id)
        return await self.client.start_workflow(CHAT_JOB, args=arguments, id=job_id, task_queue=JOBS_QUEUE, **options)

    def run(self, job_id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(job_id)

    async def ended(self, job_id: str) -> Job:
        """The job, once its newest run is over, however it ended."""
        try:
            async with asyncio.timeout(PATIENCE):
                with suppress(WorkflowFailureError):
                    await self.run(job_id).result()
        except TimeoutError:
            job = await self.jobs.queries.get(job_id)
            pending = (await self.run(job_id).describe()).raw_description.pending_activities
            raise AssertionError(f"{job.status} after {PATIENCE} s: {job.attempts}, {pending}") from None
        return await self.jobs.queries.get(job_id)

    async def failure(self, job_id: str) -> ApplicationError:
        """Why the run failed."""
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(WorkflowFailureError) as caught:
                await self.run(job_id).result()
        assert isinstance(caught.value.cause, ApplicationError)
        return caught.value.cause

    async def watched(self, job_id: str, cursor: Cursor | None = None) -> Watched:
        """What a reader who follows the job to its end has then."""
        watched = Watched()
        async with asyncio.timeout(PATIENCE):
            async for piece in self.reader.follow(cursor or Cursor(job_id)):
                watched.take(piece)
        return watched

    async def readable(self, job_id: str, characters: int) -> Slice:
        """What is in the transcript, once there are so many characters."""
        cursor = Cursor(job_id)
        async with asyncio.timeout(PATIENCE):
            while (piece := await self.reader.wait(cursor)).position < characters:
                cursor = piece.cursor
        return await self.reader.read(Cursor(job_id))

    async def step(self, job_id: str) -> str:
        """Of the query ``status``: "status/step"."""
        answer = await self.run(job_id).query(STATUS_QUERY)
        assert answer["jobId"] == job_id
        return f"{answer['status']}/{answer['step']}"

    async def agree(self, job_id: str, status: JobStatus, *, posts: int = 1) -> Job:
        """Wait for the end; row, run, terminal event and webhook have to tell the same story."""
        job = await self.ended(job_id)
        described = await self.run(job_id).describe()
        terminal = await self.reader.read(Cursor(job_id))
        assert (job.status, described.status, terminal.status) == (status, RUNS[status], status)
        event = WebhookEventType.of(status)
        assert [delivery.event for delivery in job.deliveries] == [event]
        assert len(self.sender.posts) == posts
        for post in self.sender.posts:
            assert (post.id, post.event.event, post.event.data.status) == (job.deliveries[0].id, event, status)
            assert post.event.data.content == job.content or post.event.data.content_omitted
        return job

    async def clean_up(self) -> None:
        """Nothing of this test may wake up in the next one."""
        for job_id in self.started:
            run = self.run(job_id)
            if (await run.describe()).status is WorkflowExecutionStatus.RUNNING:
                try:
                    await run.terminate("the test is over")
                except RPCError as error:
                    if error.status is not RPCStatusCode.NOT_FOUND:  # it has just ended by itself
                        raise


@asynccontextmanager
async def house(
    client: Client,
    database: Database,
    *,
    model: ChatModel | None = None,
    batch_model: BatchModel | None = None,
    sender: WebhookSender | None = None,
    gates: Gates | None = None,
    queues: Collection[str] = QUEUES,
    indexed: bool = True,
    timings: Timings = Timings(),
    **settings: Any,
) -> AsyncIterator[House]:
    """A running service; nobody works on task queues other than ``queues``. There is no sweeper."""
    gates = gates or Gates()
    chosen = Settings(
        **(
            dict[str, Any](webhook_secret=SECRET, chatjobs_heartbeat_seconds=5, mistral_requests_per_second=1_000)
            | settings
        )
    )
    model, sender = model or ScriptedModel(), sender or ScriptedSender()
    parts = GatedParts(
        chosen, client, database, model, sender, indexed, gates=gates, timings=timings, batch_model=batch_model
    )
    async with AsyncExitStack() as closing:
        reader = await closing.enter_async_context(TranscriptReader(database).running())
        here = House(parts, reader)
        async with working(parts, queues):
            yield here
            await here.clean_up()


@asynccontextmanager
async def working(parts: GatedParts, queues: Collection[str] = QUEUES) -> AsyncIterator[None]:
    """Workers of one process, until the end of the block."""
    # The SDK warns where a cancel finds its activity just gone; as an error that would end its worker.
    warnings.filterwarnings("default", message="Cannot find activity to cancel")
    transcript = GatedTranscript(parts.database, timings=parts.timings)
    transcript.gates = parts.gates
    async with transcript.running(), AsyncExitStack() as stack:
        upkeep = parts.upkeep()
        await stack.enter_async_context(upkeep.first_tries.running())
        workers = [worker for worker in parts.workers(transcript, upkeep) if worker.task_queue in queues]
        for worker in workers:
            await stack.enter_async_context(worker)
        yield
        await asyncio.gather(*(worker.shutdown() for worker in workers))
