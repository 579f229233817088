"""Batch jobs: what they are told to do, and the task that does it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from simulator import batch_items, refusals
from simulator.batch_items import AnswerLine, Item
from simulator.batch_scripts import BatchRule, BatchScript
from simulator.files import Content, FileStore, Spool, StoredFile
from simulator.refusals import Refused
from simulator.state import Simulator

JobStatus = Literal["QUEUED", "RUNNING", "SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLATION_REQUESTED", "CANCELLED"]
ENDED: Final = ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED")
TURN: Final = 20
"""Items between two turns of the event loop."""
MAX_INLINE: Final = 10_000
_DISORDER: Final = 8
"""Lines that wait for the output file; a random one of them is written next."""


class NewBatchJob(BaseModel):
    """The body of ``POST /v1/batch/jobs`` (``mistralai.client.models.CreateBatchJobRequest``)."""

    model_config = ConfigDict(extra="forbid")
    endpoint: Literal["/v1/chat/completions"]
    input_files: list[str] | None = None
    requests: list[Item] | None = Field(None, max_length=MAX_INLINE)
    model: str | None = None
    agent_id: str | None = None
    metadata: dict[str, JsonValue] | None = None
    timeout_hours: int = Field(24, ge=1, le=168)


@dataclass(eq=False)
class BatchJob:
    """One job. Times are unix seconds; ``named``: when its files appear in it, by the monotonic clock."""

    new: NewBatchJob
    script: BatchScript
    inputs: list[StoredFile]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: int = field(default_factory=lambda: int(time.time()))
    started: int | None = None
    completed: int | None = None
    status: JobStatus = "QUEUED"
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    output: StoredFile | None = None
    rejects: StoredFile | None = None
    named: float = 0
    cancelling: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def lines(self) -> Iterable[bytes]:
        for file in self.inputs:
            yield from file.content.lines()

    def outputs(self) -> list[Any]:
        """The lines of the output file, decoded."""
        return [] if self.output is None else [json.loads(line) for line in self.output.content.lines()]

    def as_json(self) -> dict[str, Any]:
        """The job as Mistral shows it (``mistralai.client.models.BatchJob``)."""
        named = time.monotonic() >= self.named
        return {
            "id": self.id,
            "object": "batch",
            "input_files": [file.id for file in self.inputs],
            "metadata": self.new.metadata,
            "endpoint": self.new.endpoint,
            "model": self.new.model,
            "agent_id": self.new.agent_id,
            "output_file": self.output.id if self.output and named else None,
            "error_file": self.rejects.id if self.rejects and named else None,
            "errors": self.errors,
            "outputs": None,
            "status": self.status,
            "created_at": self.created,
            "started_at": self.started,
            "completed_at": self.completed,
            "total_requests": self.total,
            "completed_requests": self.succeeded + self.failed,
            "succeeded_requests": self.succeeded,
            "failed_requests": self.failed,
        }


class BatchJobs:
    """The jobs of one process, in the order of their creation."""

    def __init__(self, simulator: Simulator, files: FileStore) -> None:
        self._simulator = simulator
        self._files = files
        self._tasks: set[asyncio.Task[None]] = set()
        self._release = asyncio.Event()
        self.jobs: dict[str, BatchJob] = {}
        self.rules: list[BatchRule] = []

    def create(self, new: NewBatchJob) -> BatchJob:
        """A job that has begun. Raises Refused."""
        if (new.input_files is None) == (new.requests is None):
            raise Refused(refusals.error(400, "Give either input_files or requests", "invalid_request_error", "3000"))
        job = BatchJob(new, self._script(new), [*self._inputs(new)])
        self.jobs[job.id] = job
        task = asyncio.create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def cancel(self, job: BatchJob) -> None:
        """Request the cancellation of a job; one that has ended stays as it is."""
        if not job.ended:
            job.status = "CANCELLATION_REQUESTED"
            job.cancelling.set()

    def release(self) -> None:
        """Jobs that are held go on."""
        self._release.set()
        self._release = asyncio.Event()

    def _script(self, new: NewBatchJob) -> BatchScript:
        told = list(map(str, (new.metadata or {}).values()))
        for at, rule in reversed(list(enumerate(self.rules))):
            if not rule.match or any(rule.match in value for value in told):
                if rule.times is not None:
                    left = rule.times - 1
                    self.rules[at : at + 1] = [rule.model_copy(update={"times": left})] if left else []
                return rule.script
        return BatchScript()

    def _inputs(self, new: NewBatchJob) -> Iterable[StoredFile]:
        if new.requests is not None:
            spool = Spool()
            for request in new.requests:
                spool.write(request.model_dump_json(exclude_none=True).encode() + b"\n")
            name = f"{uuid.uuid4()}.jsonl"
            yield self._files.add(StoredFile(name, spool.content(), "batch_request", len(new.requests), "mistral"))
        for file_id in new.input_files or ():
            file = self._files.get(file_id)
            if file is None:
                raise Refused(refusals.error(404, f"No such file: {file_id}", "not_found", "1600"))
            yield file

    async def _run(self, job: BatchJob) -> None:
        queued = self._simulator.options.batch_seconds if job.script.seconds is None else job.script.seconds
        await _pause(job, queued)
        if not job.cancelling.is_set():
            job.errors = await self._errors(job)
        if job.errors:
            job.status, job.completed = "FAILED", int(time.time())
            return
        output, rejects = Results(), Results()
        status = await self._work(job, output, rejects)
        if status == "CANCELLED":
            await asyncio.sleep(job.script.cancel_seconds)
        self._end(job, status, output, rejects)

    async def _errors(self, job: BatchJob) -> list[dict[str, Any]]:
        validation = batch_items.Validation(needs_model=job.new.model is None)
        async for line in _in_turns(job.lines()):
            validation.take(line)
        job.total = validation.lines
        return validation.errors() + [{"message": message, "count": 1} for message in job.script.invalid]

    async def _work(self, job: BatchJob, output: Results, rejects: Results) -> JobStatus:
        """Answer the items. Returns how the job ends."""
        if not job.cancelling.is_set():
            job.status, job.started = "RUNNING", int(time.time())
        script, began = job.script, time.monotonic()
        waiting = _Disorder(output, seed=f"{self._simulator.options.seed} {job.total}")
        number = 0
        async for line in _in_turns(job.lines()):
            if number == script.hold:
                await self._held(job)
            await self._due(job, began, number)
            if job.cancelling.is_set() or number == script.timeout_after:
                break
            self._answer(job, line, number, waiting, rejects)
            number += 1
        waiting.empty()
        output.finish(script.doubled, script.lines)
        if job.cancelling.is_set():
            return "CANCELLED"
        return "SUCCESS" if number == job.total else "TIMEOUT_EXCEEDED"

    def _answer(self, job: BatchJob, line: bytes, number: int, output: _Disorder, rejects: Results) -> None:
        script = job.script
        if number < script.failed:
            answer = batch_items.failed(line)
        else:
            answer = batch_items.answered(self._simulator, line, job=job.id, model=job.new.model)
        job.succeeded += answer.succeeded
        job.failed += not answer.succeeded
        missing = script.failed <= number < script.failed + script.missing
        if missing or (script.without and Item.model_validate_json(line).custom_id in script.without):
            return
        (output if answer.succeeded else rejects).write(answer)

    async def _held(self, job: BatchJob) -> None:
        """Wait for a release, or for the cancellation."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._release, job.cancelling)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _due(self, job: BatchJob, began: float, number: int) -> None:
        if rate := self._simulator.options.batch_rate:
            await _pause(job, began + number / rate - time.monotonic())

    def _end(self, job: BatchJob, status: JobStatus, output: Results, rejects: Results) -> None:
        script, now = job.script, time.monotonic()
        available = now + script.late_content
        job.named = now + script.late_files
        if output.lines:
            name = f"{job.id}_output.jsonl"
            file = StoredFile(name, output.content(), "batch_result", output.lines, "mistral", available)
            job.output = self._files.add(file)
        if rejects.lines:
            name = f"{job.id}_errors.jsonl"
            file = StoredFile(name, rejects.content(), "batch_error", rejects.lines, "mistral", available)
            job.rejects = self._files.add(file)
        job.status, job.completed = status, int(time.time())


class Results:
    """The lines of one file of results."""

    def __init__(self) -> None:
        self._spool = Spool()
        self.lines = 0

    def write(self, line: AnswerLine) -> None:
        self._spool.write(line.data)
        self.lines += 1

    def finish(self, doubled: int, further: tuple[str, ...]) -> None:
        """Repeat the first lines, and add others."""
        first = [line for line, _ in zip(self.content().lines(), range(doubled), strict=False)]
        for data in (*first, *map(str.encode, further)):
            self.write(AnswerLine(data + b"\n", succeeded=True))

    def content(self) -> Content:
        return self._spool.content()


class _Disorder:
    """Lines on their way to a file, in a random order that is the same for the same seed."""

    def __init__(self, results: Results, *, seed: str) -> None:
        self._results = results
        self._random = Random(seed)  # noqa: S311 - repeatable
        self._waiting: list[AnswerLine] = []

    def write(self, line: AnswerLine) -> None:
        self._waiting.append(line)
        if len(self._waiting) > _DISORDER:
            self._next()

    def empty(self) -> None:
        while self._waiting:
            self._next()

    def _next(self) -> None:
        self._results.write(self._waiting.pop(self._random.randrange(len(self._waiting))))


async def _pause(job: BatchJob, seconds: float) -> None:
    """Wait, unless the job is cancelled."""
    if seconds > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await job.cancelling.wait()


async def _in_turns(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    """The lines; the event loop has its turn between them."""
    for number, line in enumerate(lines):
        if number % TURN == 0:
            await asyncio.sleep(0)
        yield line
