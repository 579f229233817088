"""Cancelling a job as the gateway does: the request is stored, then sent to Temporal."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from chatjobs.contracts import JobStatus
from dispatch.intake import Intake
from domain.errors import TemporalUnavailable
from storage.jobs.store import JobStore


class HasJobs(Protocol):
    @property
    def intake(self) -> Intake: ...
    @property
    def jobs(self) -> JobStore: ...


async def cancel(service: HasJobs, job_id: str) -> JobStatus:
    """The job's status after the request. While Temporal is unavailable, the sweeper sends it later."""
    status = await service.jobs.seals.request_cancel(job_id)
    if not status.terminal:
        with suppress(TemporalUnavailable):
            await service.intake.send_cancel(job_id)
    return status
