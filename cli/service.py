"""The commands on jobs, each a method of Service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError

from chatjobs.contracts import ChatRequest, Job, JobStatus, QueuePlace
from chatjobs.errors import ChatJobsError, JobIdConflict, JobNotFound
from cli.output import console, one_line, write
from cli.pages import job_list, job_page, nothing_listed
from cli.place import ServiceLocation
from cli.views import Printer, View, view_for
from cli.waiting import WaitReporter
from dispatch.intake import Intake
from dispatch.job_details import JobDetails
from dispatch.schedules import delete_runs
from dispatch.server_knowledge import PrefixRule
from dispatch.stores import job_store
from dispatch.stream_events import Framing, last_frame, queued_frame
from dispatch.temporal import RPC_TIMEOUT, indexed
from domain.errors import StorageUnavailable, TemporalUnavailable
from domain.names import CHAT_JOB, JOBS_QUEUE, new_job_id
from domain.values import Cursor, JobHandle, RunRef
from storage.engine.database import Database
from storage.engine.schema import now
from storage.jobs.follow_up import catch_up
from storage.jobs.store import JobStore
from storage.rate_limits.limiter import Limiter
from storage.rate_limits.queueing import QueueReader
from storage.transcript.reader import TranscriptReader

OK, JOB_FAILED, INTERRUPTED = 0, 1, 130
INDEX_SECONDS = 3.0
"""How long a search first brings the index up to date, if that is behind."""
LOOK_AGAIN_SECONDS = 0.5
"""Pause before another look for a job that only Temporal knows yet, or at a database that is unavailable."""
PATIENCE_SECONDS = 60
"""How long the database may be unavailable before a watcher gives up."""


class Service:
    """Each command is a method that prints and returns the exit code.

    ``database`` is None for a command that goes through Temporal alone.
    """

    def __init__(self, place: ServiceLocation, database: Database | None, *, as_json: bool) -> None:
        self._place = place
        self._database = database
        self._as_json = as_json
        self._printer = Printer(as_json=as_json)
        self._client: Client | None = None

    # -------------------------------------------------------------------------------------------- commands

    async def chat(self, body: dict[str, Any], *, reasoning: bool) -> int:
        self._place.require_service()
        accepted = await (await self._intake()).accept(await self._with_model(body), tenant=self._tenant)
        job = await self._job(accepted.job_id)
        with view_for(as_json=self._as_json, job=job, reasoning=reasoning) as view:
            view.notice(f"job {job.job_id}")
            starting = asyncio.create_task(self._start(accepted, view))
            try:
                ended = await self._followed(job, Cursor(job.job_id), view)
            finally:
                starting.cancel()
        return self._outcome(job, ended, view)

    async def start(self, body: dict[str, Any], idempotency_key: str | None, *, wait: bool) -> int:
        self._place.require_service()
        body = await self._with_model(body)
        accepted = await (await self._intake()).accept(body, tenant=self._tenant, idempotency_key=idempotency_key)
        return await self._started(accepted, wait=wait)

    async def replay(self, job_id: str, overrides: dict[str, Any], *, wait: bool) -> int:
        self._place.require_service()
        accepted = await (await self._intake()).replay(job_id, tenant=self._tenant, overrides=overrides)
        return await self._started(accepted, wait=wait)

    async def resume(self, job_id: str, *, wait: bool) -> int:
        self._place.require_service()
        return await self._started(await self._jobs.seals.resume(job_id), wait=wait)

    async def start_direct(self, body: dict[str, Any], *, wait: bool) -> int:
        request = ChatRequest.parse(body)
        job_id = request.job_id or new_job_id()
        handle = await self._start_workflow(job_id, body, request.model)
        if wait:
            return await self._result(handle)
        known = {"jobId": job_id, "status": JobStatus.QUEUED, "temporalUrl": self._place.links.of(RunRef(job_id))}
        write(f"{one_line(known) if self._as_json else job_id}\n")
        return OK

    async def watch(self, job_id: str, epoch: int, position: int, *, reasoning: bool) -> int:
        job = await self._found(job_id)
        if not job.status.terminal:
            self._place.require_service()
        with view_for(as_json=self._as_json, job=job, reasoning=reasoning) as view:
            ended = await self._followed(job, Cursor(job_id, epoch, position), view)
        return self._outcome(job, ended, view)

    async def show(self, job_id: str) -> int:
        self._print(await self._job(job_id))
        return OK

    async def list(self, *, status: str | None, limit: int, **filters: Any) -> int:
        """``filters`` are the other fields of JobFilter."""
        chosen = JobStatus(status) if status else None
        if filters.get("search") and self._database is not None:  # there may be no gateway, which keeps the index
            await catch_up(self._database, INDEX_SECONDS)
        found = await self._jobs.queries.list(status=chosen, limit=limit, **filters)
        jobs = await self._details.many(found)
        if self._as_json:
            write(f"{one_line({'jobs': [job.model_dump(mode='json') for job in jobs]})}\n")
        elif jobs:
            console().print(job_list(jobs))
        else:
            given = {"status": status, **filters}
            self._printer.notice(nothing_listed({name: value for name, value in given.items() if value}))
        return OK

    async def cancel(self, job_id: str) -> int:
        status = await self._jobs.seals.request_cancel(job_id)
        if not status.terminal:
            await self._or_notice(self._send_cancel(job_id), "the cancel is stored and will be sent", self._printer)
        if self._as_json:
            self._print(await self._job(job_id))
        else:
            write(f"{job_id} {status if status.terminal else f'{status}, asked to cancel'}\n")
        return OK

    async def delete(self, job_id: str) -> int:
        if run := await self._jobs.seals.delete(job_id):
            again = "its history has the job's request: give this command again"
            await self._or_notice(self._delete_runs(run), again, self._printer)
        if self._as_json:
            self._print(await self._job(job_id))
        else:
            write(f"{job_id} deleted\n")
        return OK

    # --------------------------------------------------------------------------------------------- starting

    async def _with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request that names no model and goes on with a conversation, with the model of that."""
        previous = body.get("previousJobId")
        if not isinstance(previous, str) or "model" in body:
            return body
        try:
            model = (await self._jobs.queries.outline(previous, self._tenant)).model
        except JobNotFound:
            return body  # it is refused with the reason
        return body | {"model": model} if model else body

    async def _started(self, accepted: JobHandle, *, wait: bool) -> int:
        job = await self._job(accepted.job_id)
        if not self._as_json:
            write(f"{job.job_id}\n")  # first, as the job is durable from here on
        elif not wait:
            self._print(job)
        await self._start(accepted, self._printer)
        if not wait:
            return OK
        ended = await self._followed(job, Cursor(job.job_id), self._printer)
        if ended and self._as_json:
            self._print(ended)
        return self._outcome(job, ended, self._printer)

    async def _start(self, job: JobHandle, view: View) -> None:
        if not job.status.terminal and job.is_due(now()):
            await self._or_notice(self._start_stored(job), "the job is stored and will be started", view)

    async def _start_stored(self, job: JobHandle) -> None:
        client = await self._temporal()
        intake = Intake(jobs=self._jobs, client=client, indexed=await indexed(client))
        await intake.start(job)

    async def _start_workflow(self, job_id: str, body: dict[str, Any], model: str) -> WorkflowHandle[Any, Any]:
        client = await self._temporal()
        try:
            return await client.start_workflow(
                CHAT_JOB,
                {"request": body},
                id=job_id,
                task_queue=JOBS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                static_summary=f"chat with {model}",
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            raise JobIdConflict from None
        except RPCError as error:
            raise TemporalUnavailable(f"Temporal did not take the job ({error.status.name})") from None

    async def _send_cancel(self, job_id: str) -> None:
        await Intake(jobs=self._jobs, client=await self._temporal()).send_cancel(job_id)

    async def _delete_runs(self, run: RunRef) -> None:
        await delete_runs(await self._temporal(), run)

    async def _or_notice(self, action: Awaitable[None], consequence: str, view: View) -> None:
        """Await a call of Temporal; if Temporal is unavailable, print the consequence."""
        try:
            await action
        except ChatJobsError as error:
            view.notice(f"{error.message}; {consequence} when Temporal is back")

    # --------------------------------------------------------------------------------------------- watching

    async def _found(self, job_id: str) -> Job:
        """The job; waits for it if only Temporal knows it yet. Raises JobNotFound."""
        try:
            return await self._job(job_id)
        except JobNotFound:
            if not await self._runs(job_id):
                raise
        self._printer.notice("no worker has taken the job yet; waiting for one")
        async with WaitReporter(job_id, self._temporal, self._printer.waits).running():
            while await self._runs(job_id):
                with suppress(JobNotFound):
                    return await self._job(job_id)
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
        return await self._job(job_id)

    async def _runs(self, job_id: str) -> bool:
        try:
            run = await (await self._temporal()).get_workflow_handle(job_id).describe(rpc_timeout=RPC_TIMEOUT)
        except (RPCError, TemporalUnavailable):
            return False
        return run.workflow_type == CHAT_JOB and run.status is WorkflowExecutionStatus.RUNNING

    async def _followed(self, job: Job, cursor: Cursor, view: View) -> Job | None:
        """Show a stream to its end. Returns the ended job, or None after Ctrl-C."""
        waiting = WaitReporter(job.job_id, self._temporal, view.waits, job.start_at)

        def queued(place: QueuePlace) -> None:
            waiting.queued(place)
            view.show(queued_frame(place))

        try:
            async with (
                TranscriptReader(self._open_database).running() as reader,
                QueueReader(self._limiter).running() as queue,
                waiting.running(),
            ):
                with queue.watched(job.job_id, queued):
                    return await self._follow(reader, job, cursor, view, waiting)
        except asyncio.CancelledError:  # Ctrl-C
            return None

    async def _follow(
        self, reader: TranscriptReader, job: Job, cursor: Cursor, view: View, waiting: WaitReporter
    ) -> Job:
        framing = Framing(job, resumed=cursor.position > 0)
        unavailable_since: float | None = None
        while True:
            try:
                async for piece in reader.follow(cursor):
                    waiting.progress()
                    for frame in framing.frames(piece):
                        view.show(frame)
                    cursor, unavailable_since = piece.cursor, None
                ended = await self._job(job.job_id)
            except StorageUnavailable as error:
                if unavailable_since is None:
                    unavailable_since = time.monotonic()
                    view.notice(f"{error.message}; waiting for it")
                if time.monotonic() - unavailable_since > PATIENCE_SECONDS:
                    raise
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                continue
            # The outcome is not that of the stream shown if the job was reopened meanwhile: it is followed further.
            if ended.status.terminal and (ended.epoch, ended.position) == (cursor.epoch, cursor.position):
                view.show(last_frame(ended))
                return ended

    def _outcome(self, job: Job, ended: Job | None, view: View) -> int:
        if ended is None:
            view.notice(f"detached; the job goes on. To watch it again: starter.py watch {job.job_id}")
            return INTERRUPTED
        view.ended(ended)
        return OK if ended.status in (JobStatus.COMPLETED, JobStatus.INCOMPLETE) else JOB_FAILED

    async def _result(self, handle: WorkflowHandle[Any, Any]) -> int:
        """Wait for a job by its run, as there may be no database here."""
        if not self._as_json:
            write(f"{handle.id}\n")
        try:
            async with WaitReporter(handle.id, self._temporal, self._printer.waits).running():
                result = await handle.result()
        except asyncio.CancelledError:  # Ctrl-C
            self._printer.notice(f"detached; the job goes on. Its result: starter.py show {handle.id}")
            return INTERRUPTED
        except RPCError as error:
            raise TemporalUnavailable(f"Temporal does not answer ({error.status.name}); the job goes on") from None
        except WorkflowFailureError as error:
            failed = isinstance(error.cause, ApplicationError)
            self._printer.notice(f"failed: {error.cause}" if failed else "cancelled")
            return JOB_FAILED
        if self._as_json:
            write(f"{one_line(result)}\n")
        return OK

    # ------------------------------------------------------------------------------------------------ parts

    @property
    def _tenant(self) -> str:
        return self._place.settings.chatjobs_direct_tenant

    @property
    def _open_database(self) -> Database:
        if self._database is None:
            raise StorageUnavailable("This command was started without a database")
        return self._database

    @property
    def _jobs(self) -> JobStore:
        return job_store(self._place.settings, self._open_database, self._limiter)

    @property
    def _details(self) -> JobDetails:
        return JobDetails(self._place.links, self._place.settings.chatjobs_prices, self._jobs.queries)

    @property
    def _limiter(self) -> Limiter:
        return Limiter(self._open_database, per_second=self._place.settings.mistral_requests_per_second)

    async def _intake(self) -> Intake:
        policy = await self._place.webhook_rules(self._open_database).now()
        prefixes = PrefixRule(self._place.settings, self._open_database)
        most_bytes = self._place.settings.chatjobs_max_body_bytes
        return Intake(jobs=self._jobs, client=None, policy=lambda: policy, prefixes=prefixes, most_bytes=most_bytes)

    async def _job(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        return await self._details.one(await self._jobs.queries.get(job_id))

    async def _temporal(self) -> Client:
        """Raises TemporalUnavailable."""
        if self._client is None:
            self._client = await self._place.connect()
        return self._client

    def _print(self, job: Job) -> None:
        if self._as_json:
            write(f"{one_line(job.model_dump(mode='json'))}\n")
        else:
            console().print(job_page(job), soft_wrap=True)
