"""Scripts for what is not one answer: batch jobs, and the calls of files and batch jobs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from simulator.faults import ScriptModel, Stall, Status, long_form

CallName = Literal["upload", "files", "file", "content", "delete", "create", "jobs", "job", "cancel"]
"""The calls: the first five are of files, the others of batch jobs."""


class CutCall(ScriptModel):
    """The connection ends abruptly after so many bytes of the request's or of the response's body.

    ``reset`` sends a TCP reset in place of a FIN.
    """

    kind: Literal["cut"] = "cut"
    received: int | None = Field(None, ge=0)
    sent: int | None = Field(None, ge=0)
    reset: bool = False


class EndlessBody(ScriptModel):
    """200 and a body without end."""

    kind: Literal["endless"] = "endless"


class OtherBody(ScriptModel):
    """200 with this body in place of the response."""

    kind: Literal["other"] = "other"
    body: str
    content_type: str = "application/json"


CallFault = Annotated[
    Status | Stall | CutCall | EndlessBody | OtherBody, Field(discriminator="kind"), BeforeValidator(long_form)
]


class CallRule(ScriptModel):
    """The faults of the next calls of one kind, one for each; null lets a call pass."""

    call: CallName
    faults: list[CallFault | None]


class BatchScript(ScriptModel):
    """What becomes of a batch job. An empty script is an ordinary job: every line is answered. Times are in seconds."""

    seconds: float | None = Field(None, ge=0)
    """How long the job is QUEUED; None: by the process's option ``--batch-seconds``."""
    invalid: tuple[str, ...] = ()
    """The errors with which the job is FAILED before it runs."""
    failed: int = Field(0, ge=0)
    """The number of items, the first ones, whose line is an error 500 in the error file."""
    missing: int = Field(0, ge=0)
    """The number of items, those after the failed ones, that are in neither file."""
    without: tuple[str, ...] = ()
    """The ``custom_id`` of further items that are in neither file."""
    lines: tuple[str, ...] = ()
    """Lines of the output file in addition to those of the items, sent unchanged."""
    doubled: int = Field(0, ge=0)
    """The number of lines, the first ones of the output file, that come again at its end."""
    timeout_after: int | None = Field(None, ge=0)
    """The number of items after which the job is TIMEOUT_EXCEEDED."""
    hold: int | None = Field(None, ge=0)
    """The number of items after which the job pauses until ``POST /sim/batches/release``."""
    cancel_seconds: float = Field(0, ge=0)
    """How long a cancelled job stays CANCELLATION_REQUESTED."""
    late_files: float = Field(0, ge=0)
    """How long a job that has ended does not name its files yet."""
    late_content: float = Field(0, ge=0)
    """How long the content of its files is 404."""


class BatchRule(ScriptModel):
    """A script for jobs whose metadata has a value that contains ``match``; with ``times``, for so many."""

    script: BatchScript
    match: str = ""
    times: int | None = Field(None, ge=1)
