"""The activity of a job that has a workflow of its own: one attempt at its answer (completer.py)."""

from __future__ import annotations

import asyncio

from temporalio import activity

from activities.attempt import AttemptContext
from activities.completer import AttemptReport, Completer
from activities.heartbeats import heartbeating
from domain.names import COMPLETE_CHAT
from domain.payloads import CompletionSummary, JobRef
from domain.timings import Timings
from storage.engine.schema import micros


class CompletionActivities:
    def __init__(self, *, completer: Completer, timings: Timings = Timings()) -> None:
        self._completer = completer
        self._timings = timings

    @activity.defn(name=COMPLETE_CHAT)
    async def complete_chat(self, ref: JobRef) -> CompletionSummary:
        """Make an attempt at a job. Fails with the error's code as type; Temporal starts the next attempt."""
        report = AttemptReport()
        # Heartbeats until the end: the claim and the last flush may wait for the database.
        async with heartbeating(report.now, timings=self._timings) as beats:
            stopping = asyncio.create_task(activity.wait_for_worker_shutdown())
            try:
                return await self._completer.attempt(ref.job_id, _context(ref, beats, stopping), report)
            finally:
                stopping.cancel()
                await asyncio.gather(stopping, return_exceptions=True)


def _context(ref: JobRef, beats: asyncio.Task[None], stopping: asyncio.Task[None]) -> AttemptContext:
    info = activity.info()
    return AttemptContext(
        # Grows across retries and Resets, by the server's clock; the attempt number restarts after a Reset.
        fence=micros(info.current_attempt_scheduled_time),
        run_id=info.workflow_run_id or "",
        number=info.attempt,
        seconds_since_scheduled=(info.started_time - info.scheduled_time).total_seconds(),
        heartbeat_seconds=info.heartbeat_timeout.total_seconds() if info.heartbeat_timeout else float("inf"),
        beats=beats,
        stopping=stopping,
        job_cancelled=_job_cancelled,
        reopens=ref.reopens,
    )


def _job_cancelled() -> bool:
    """Whether the job is cancelled. Else only this attempt ends: the worker stops, an operator paused or reset the
    activity, or the run is gone."""
    why = activity.cancellation_details()
    return why is None or why.cancel_requested
