"""What every gateway does for batch jobs beside its requests: it reads and checks their files, and sees to their ends.

All that is to be done stands in the rows of the jobs, and any gateway does what another one has left.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from chatjobs.contracts import BatchSettings
from chatjobs.errors import BatchFinished, BatchNotFound, ChatJobsError, InvalidRequest, Problem, bounded
from dispatch.batches import BatchDispatch
from dispatch.webhook_rules import WebhookRules
from domain.batch_jobs import BatchJobClaim
from domain.errors import BatchJobNotFound, FileNotFound, StorageError, TemporalUnavailable
from gateway.batch_upload import Line, Upload
from gateway.problems import HttpProblem
from gateway.serving.ndjson import lines
from gateway.v1.completions import completion_request
from storage.batches.batch_jobs import BatchJobStore
from storage.batches.drafts import DraftStore
from storage.batches.runs import BatchRunStore
from storage.files.queries import FileQueries
from storage.files.uploads import FileUploads

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""Between two looks for something to do, unless a request brings it."""
SWEEP_SECONDS: Final = 60.0
"""Between two removals of uploads that broke off."""
RENEW_SECONDS: Final = 10.0
AT_ONCE: Final = {"read": 4, "erase": 1, "sweep": 1}
"""Tasks of a kind that run at once in this process: reading a file of a million lines takes minutes."""
LINE: Final = re.compile(r"\b[Ll]ine ([0-9]+)")


class Unwanted(Exception):
    """The job was cancelled or deleted while its files were read."""


class BatchJobWork:
    """Made once for the process; ``run`` works until it is cancelled."""

    def __init__(
        self,
        jobs: BatchJobStore,
        uploads: FileUploads,
        files: FileQueries,
        drafts: DraftStore,
        runs: BatchRunStore,
        dispatch: BatchDispatch,
        *,
        rules: WebhookRules,
        longest_line: int,
    ) -> None:
        self._jobs = jobs
        self._uploads = uploads
        self._files = files
        self._drafts = drafts
        self._runs = runs
        self._dispatch = dispatch
        self._rules = rules
        self._longest_line = longest_line
        self._news = asyncio.Event()
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By the kind of work and the job."""
        self._sweep_at = 0.0

    def look(self) -> None:
        """Look for work now: a job was created or cancelled."""
        self._news.set()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                self._news.clear()
                await self._guarded(self._look(), "look")
                try:
                    await asyncio.wait_for(self._news.wait(), LOOK_SECONDS)
                except TimeoutError:
                    continue
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        due = await self._jobs.due()
        for job_id in due.late:
            await self._guarded(self.cancel(job_id, late=True), job_id)
        for job_id in due.ended:
            await self._guarded(self._jobs.settle(job_id), job_id)
        for batch_id in due.unwanted:
            await self._guarded(self._cancel_batch(batch_id), batch_id)
        for job_id in due.unread:
            self._begin("read", job_id, self.read)
        for job_id in due.deleted:
            self._begin("erase", job_id, self._jobs.erase)
        if time.monotonic() > self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            self._begin("sweep", "-", lambda _: self._uploads.discard_abandoned())

    def _begin(self, kind: str, job_id: str, work: Callable[[str], Awaitable[object]]) -> None:
        """Begin work that may take minutes, unless it runs already or as much of its kind as may run at once."""
        running = sum(one == kind for one, _ in self._tasks)
        if (kind, job_id) in self._tasks or running >= AT_ONCE[kind]:
            return
        task = asyncio.create_task(self._guarded(work(job_id), job_id), name=f"{kind} batch job {job_id}")
        self._tasks[kind, job_id] = task
        task.add_done_callback(lambda _: self._ended(kind, job_id))

    def _ended(self, kind: str, job_id: str) -> None:
        self._tasks.pop((kind, job_id), None)
        self.look()

    async def _guarded(self, work: Awaitable[object], what: str) -> None:
        """Nothing that goes wrong with one job ends the work for the others."""
        try:
            await work
        except (StorageError, TemporalUnavailable, HttpProblem) as error:
            log.warning("batch job waits: %s", error, extra={"action": "batch_job_waits", "batch_job": what})
            await asyncio.sleep(LOOK_SECONDS)
        except BatchJobNotFound:
            log.info("batch job is gone", extra={"action": "batch_job_gone", "batch_job": what})
        except Exception:
            log.exception("batch job failed", extra={"action": "batch_job_failed", "batch_job": what})
            await asyncio.sleep(LOOK_SECONDS)

    # ---------------------------------------------------------------------------------------------- cancelling

    async def cancel(self, job_id: str, tenant: str | None = None, *, late: bool = False) -> None:
        """Cancel a job, durably; one that has ended stays as it is. What fails once it is recorded, the next look of
        any gateway does. Raises BatchJobNotFound, StorageError."""
        job = await self._jobs.cancel(job_id, tenant, late=late)
        if job.batch_id is not None and job.completed_at is None:
            await self._cancel_batch(job.batch_id)

    async def _cancel_batch(self, batch_id: str) -> None:
        """The sweepers finish what is recorded here."""
        try:
            await self._runs.cancel(batch_id)
        except (BatchFinished, BatchNotFound):
            return

    # ------------------------------------------------------------------------------------------------- reading

    async def read(self, job_id: str) -> None:
        """Read and check the files of a job, and make its batch. Raises HttpProblem, StorageError,
        TemporalUnavailable, after which it is read again."""
        claim = await self._jobs.claim(job_id)
        if claim is None:
            return
        if claim.made:
            await self._begun(claim, claim.batch_id)
            return
        reading = FileReading(claim, self._files, self._jobs, self._longest_line)
        try:
            batch_id = await self._made(claim, reading)
        except Unwanted:
            await self._jobs.release(job_id)
            return
        except (HttpProblem, ChatJobsError) as error:
            if _may_pass(error):
                await self._jobs.release(job_id)
                raise
            await self._jobs.refuse(job_id, reading.reasons(error))
            return
        except BaseException:
            await asyncio.shield(self._jobs.release(job_id))
            raise
        await self._begun(claim, batch_id)

    async def _begun(self, claim: BatchJobClaim, batch_id: str) -> None:
        """Record the batch of a job, and start it or, if the job was cancelled meanwhile, cancel it."""
        if await self._jobs.made(claim.job_id, batch_id):
            await self._dispatch.start(batch_id)
        else:
            await self._cancel_batch(batch_id)

    async def _made(self, claim: BatchJobClaim, reading: FileReading) -> str:
        """The id of the batch. Raises HttpProblem, ChatJobsError, Unwanted."""
        names = [(await self._files.get(file_id, claim.tenant)).filename for file_id in claim.input_files]
        settings = BatchSettings(
            name=None if claim.inline else names[0][:256],
            webhook=claim.webhook,
            lane="batch" if claim.lane == "batch" else "live",
            deadline=claim.expires_at if claim.lane == "batch" else None,
        )
        upload = Upload(
            *(self._drafts, self._rules(), claim.tenant, settings, claim.key),
            batch_id=claim.batch_id,
            translate=lambda line: item_of(line, claim.model),
        )
        async with aclosing(reading.groups()) as groups:
            return (await upload.accept(groups)).batch_id


def _may_pass(error: HttpProblem | ChatJobsError) -> bool:
    """Whether reading again may help: the database was away, not the files wrong."""
    return isinstance(error, StorageError) or (isinstance(error, HttpProblem) and error.status >= 500)


def item_of(line: Any, model: str | None) -> Any:
    """An item of a batch, from the JSON of a line; ``model``: that of the job, for lines without one.

    Raises InvalidRequest.
    """
    if not isinstance(line, dict) or not isinstance(body := line.get("body"), dict):
        return line  # the contract says what is wrong
    if body.get("model") is None and model is not None:
        body = {**body, "model": model}
    try:
        return {**line, "body": completion_request(body, {}).body}
    except InvalidRequest as error:
        raise InvalidRequest([Problem(f"/body{one.pointer}", one.message) for one in error.problems]) from None


def _later(first: int, found: re.Match[str]) -> str:
    return f"line {first + int(found[1])}"


class FileReading:
    """The lines of a job's files, one after the other, while the claim is renewed."""

    def __init__(self, claim: BatchJobClaim, files: FileQueries, jobs: BatchJobStore, longest_line: int) -> None:
        self._claim = claim
        self._files = files
        self._jobs = jobs
        self._longest_line = longest_line
        self._firsts: list[int] = []
        """For each file, the number of lines before it."""
        self._renewed = time.monotonic()

    async def groups(self) -> AsyncGenerator[Sequence[Line], None]:
        """The lines; their numbers go on from file to file. Raises HttpProblem, FileNotFound, Unwanted."""
        last = 0
        for file_id in self._claim.input_files:
            first = last
            self._firsts.append(first)
            try:
                async for group in lines(self._content(file_id), self._longest_line):
                    await self._renew()
                    last = first + group[-1][0]
                    yield [Line(first + number, text) for number, text in group]
            except HttpProblem as error:  # a line that is too long
                raise HttpProblem(error.status, error.code, LINE.sub(partial(_later, first), error.detail)) from None

    async def _content(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The content of a file, whole. Raises FileNotFound if it is deleted meanwhile."""
        left = (await self._files.get(file_id, self._claim.tenant)).size or 0
        async with aclosing(self._files.content(file_id)) as pieces:
            async for piece in pieces:
                left -= len(piece)
                yield piece
        if left:
            raise FileNotFound

    async def _renew(self) -> None:
        if time.monotonic() < self._renewed + RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        if not await self._jobs.renew(self._claim.job_id):
            raise Unwanted

    def reasons(self, error: ChatJobsError | HttpProblem) -> list[str]:
        """Why the files make no batch, for people."""
        if isinstance(error, FileNotFound):
            return ["An input file was deleted before it was read; upload it again"]
        if isinstance(error, HttpProblem):
            found = [one.message for one in error.errors] or [error.detail]
        else:
            found = [str(error)]
        return [bounded(LINE.sub(self._place, one)) for one in found]

    def _place(self, found: re.Match[str]) -> str:
        number = int(found[1])
        if self._claim.inline:
            return f"requests/{number - 1}"
        if len(self._claim.input_files) < 2:
            return found[0]
        index = max(at for at, first in enumerate(self._firsts) if first < number or not at)
        return f"line {number - self._firsts[index]} of file {self._claim.input_files[index]}"
