"""The command `replay` for all jobs that match a filter."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import typer

from chatjobs.contracts import Batch, BatchStatus, ReplayEstimate
from chatjobs.errors import ChatJobsError
from cli.output import one_line, write
from cli.place import ServiceLocation
from cli.views import Printer
from dispatch.batches import BatchDispatch
from dispatch.replays import ReplayIntake
from dispatch.stores import batch_runs
from domain.batches import BatchHandle
from domain.values import RunRef
from storage.batches.drafts import DraftStore
from storage.batches.queries import BatchQueries
from storage.batches.replays import ReplayStore
from storage.engine.database import Database

OK, FAILED, INTERRUPTED = 0, 1, 130
LOOK_SECONDS = 0.5


class ReplayCommands:
    """Each command is a method that prints and returns the exit code."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._place = place
        self._database = database
        self._as_json = as_json
        self._printer = Printer(as_json=as_json)
        self._queries = BatchQueries(database)

    async def replay(self, body: dict[str, Any], *, dry_run: bool, yes: bool, wait: bool) -> int:
        """Show what a replay would do, and start it once that is confirmed. Raises InvalidRequest."""
        policy = await self._place.webhook_rules(self._database).now()
        intake = ReplayIntake(ReplayStore(self._database), lambda: policy)
        tenant = self._place.settings.chatjobs_direct_tenant
        estimate = await intake.accept({**body, "dryRun": True}, tenant=tenant)
        if isinstance(estimate, ReplayEstimate):
            self._show(estimate, dry_run=dry_run)
            if dry_run or not estimate.count:
                return OK
            if not (yes or self._confirmed(estimate.count)):
                self._printer.notice("nothing was started")
                return OK
        self._place.require_service()
        accepted = await intake.accept(body, tenant=tenant)
        return await self._started(accepted, wait=wait) if isinstance(accepted, BatchHandle) else OK

    def _show(self, estimate: ReplayEstimate, *, dry_run: bool) -> None:
        if self._as_json:
            if dry_run:
                write(f"{one_line(estimate.model_dump(mode='json'))}\n")
            return
        used = "" if estimate.estimated_tokens is None else f", about {estimate.estimated_tokens:,} tokens"
        left_out = f"; {estimate.skipped:,} more were deleted" if estimate.skipped else ""
        jobs = "1 job" if estimate.count == 1 else f"{estimate.count:,} jobs"
        self._printer.notice(f"{jobs} to replay{used}{left_out}")
        for job_id in estimate.first_job_ids if dry_run else ():
            write(f"{job_id}\n")

    def _confirmed(self, count: int) -> bool:
        """Whether the user says yes. Raises BadParameter where nobody can be asked."""
        if self._as_json or not sys.stdin.isatty():
            raise typer.BadParameter(f"add --yes to replay {count} jobs, or --dry-run to look at them first")
        return typer.confirm("Replay them?", err=True)

    async def _started(self, accepted: BatchHandle, *, wait: bool) -> int:
        batch_id = accepted.batch_id
        if not self._as_json:
            write(f"{batch_id}\n")  # first, as the replay is durable from here on
        try:
            await self._dispatch_start(batch_id)
        except ChatJobsError as error:
            self._printer.notice(f"{error.message}; the replay is stored and will be started when Temporal is back")
        batch = await self._queries.get(batch_id)
        if wait:
            try:
                batch = await self._ended(batch_id)
            except asyncio.CancelledError:  # Ctrl-C
                self._printer.notice(f"detached; the replay goes on: {self._place.links.of(RunRef(batch_id))}")
                return INTERRUPTED
        if self._as_json:
            write(f"{one_line(batch.model_dump(mode='json'))}\n")
        return FAILED if wait and not _is_good(batch) else OK

    async def _dispatch_start(self, batch_id: str) -> None:
        runs, drafts = batch_runs(self._place.settings, self._database), DraftStore(self._database)
        await BatchDispatch(runs, drafts, await self._place.connect()).start(batch_id)

    async def _ended(self, batch_id: str) -> Batch:
        shown = ""
        while True:
            batch = await self._queries.get(batch_id)
            if (line := _progress(batch)) != shown:
                self._printer.notice(line)
                shown = line
            if batch.status.terminal:
                return batch
            await asyncio.sleep(LOOK_SECONDS)


def _progress(batch: Batch) -> str:
    counts = batch.counts
    ended = f"{counts.completed} of {counts.total} completed, {counts.failed} failed"
    cancelled = f", {counts.cancelled} cancelled" if counts.cancelled else ""
    phase = " (canary)" if batch.phase == "canary" and not batch.status.terminal else ""
    stopped = f": {batch.stopped}" if batch.stopped else ""
    return f"{batch.status.value}{phase}: {ended}{cancelled}{stopped}"


def _is_good(batch: Batch) -> bool:
    return batch.status is BatchStatus.COMPLETED and not batch.counts.failed
