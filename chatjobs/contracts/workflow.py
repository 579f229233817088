"""What crosses Temporal: the argument, the query and the result of the workflow type ``ChatJob``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from chatjobs.contracts.base import JobId, JsonObject, WireModel
from chatjobs.contracts.statuses import JobStatus


class JobStart(WireModel):
    """The argument of the workflow type ``ChatJob``: the id of a stored job, or a request inline."""

    job_id: JobId | None = None
    request: JsonObject | None = None
    """A body as ``POST /api/jobs`` takes it."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.job_id is None) == (self.request is None):
            raise ValueError('give {"request": {…}} or {"jobId": "…"}, one of them')
        return self


class WorkflowStatus(WireModel):
    """The answer of ChatJob's query ``status``."""

    job_id: str
    status: JobStatus
    step: Literal["accepting", "completing", "storing", "notifying", "done"]
    """The step that the workflow has reached: the last one that began."""


class JobOutcome(WireModel):
    """The result of a job whose request is in storage: nothing private crosses Temporal."""

    job_id: str
    status: JobStatus
    position: int
    """Characters of the answer, over both channels."""
    sha256: str
    """Of the answer's UTF-8 bytes, in hexadecimal digits."""
