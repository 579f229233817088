"""Schedules: requests that become a job again and again."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from chatjobs import cron
from chatjobs.contracts.base import JobId, JsonObject, Many, Timestamp, WireModel
from chatjobs.contracts.statuses import BatchStatus, JobStatus

SCHEDULE_ID = "[A-Za-z0-9_-]{1,64}"
"""The regular expression of a schedule's id."""
MAX_EVERY_SECONDS = 366 * 24 * 3600
USUAL_CATCHUP_SECONDS = 24 * 3600
MAX_NOTE = 512

ScheduleId = Annotated[str, StringConstraints(pattern=f"^{SCHEDULE_ID}$")]
"""The id of a schedule: unique for its tenant, and the beginning of the ids of its jobs."""
ScheduleOverlap = Literal["skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow_all"]
"""What happens at the time of a run while an earlier one of the schedule has not ended, under Temporal's names."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
SHORT = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
ISO = re.compile(r"P(?:(\d{1,6})D)?(?:T(?=\d)(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,9})S)?)?", re.ASCII)


def _interval(value: Any) -> Any:
    """Whole seconds from a number, ``15m`` or ``PT15M``."""
    if isinstance(value, str):
        if found := SHORT.fullmatch(value):
            return int(found[1]) * UNITS[found[2]]
        if (found := ISO.fullmatch(value)) and any(found.groups()):
            return sum(int(part or 0) * size for part, size in zip(found.groups(), (86_400, 3_600, 60, 1), strict=True))
        raise PydanticCustomError("interval", 'must be whole seconds, or a length of time such as "15m" or "PT15M"')
    return value


Every = Annotated[
    int,
    Field(ge=1, le=MAX_EVERY_SECONDS),
    BeforeValidator(_interval),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_EVERY_SECONDS},
                {"type": "string", "examples": ["15m", "PT15M"]},
            ],
        },
        mode="validation",
    ),
]
"""The time between two runs, in seconds. ``90s``, ``15m``, ``2h``, ``7d`` and ISO 8601 (``PT15M``) are read, too."""
Cron = Annotated[str, StringConstraints(max_length=256), AfterValidator(cron.checked)]
"""A cron expression of five fields, or a name such as ``@daily``."""
ZoneName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+/-]{1,64}$")]
"""The IANA name of a time zone. The service checks that there is such a zone."""
Note = Annotated[str, StringConstraints(max_length=MAX_NOTE)]
"""Why a schedule was paused or resumed, for people."""


class ScheduleTiming(WireModel):
    """When a schedule's runs are: ``cron`` in ``timezone``, or ``every`` so many seconds since 1970.

    At a change of the clock, a time that the day does not have is skipped, and one that it has twice is the second.
    """

    cron: Cron | None = None
    every: Every | None = None
    timezone: ZoneName = "UTC"
    overlap: ScheduleOverlap = "skip"
    catchup_seconds: Annotated[int, Field(ge=10, le=MAX_EVERY_SECONDS)] = USUAL_CATCHUP_SECONDS
    """A run that an outage kept from its time is made up for if it is not later than this."""


class ScheduleRequest(ScheduleTiming):
    """What ``POST /api/schedules`` takes. The schedule with this id, if there is one, is replaced.

    One of ``cron`` and ``every``, and one of ``request`` (as ``POST /api/jobs`` takes it) and ``batch`` (as
    ``POST /api/batches`` does) must be given. Without an ``id`` a new one is made.
    """

    id: ScheduleId | None = None
    request: JsonObject | None = None
    batch: JsonObject | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("must have cron or every, one of them")
        if (self.request is None) == (self.batch is None):
            raise ValueError("must have request or batch, one of them")
        if self.every is not None and "timezone" in self.model_fields_set:
            raise ValueError("must have no timezone with every, whose runs do not follow a clock on the wall")
        return self


class ScheduleNote(WireModel):
    """The body of ``pause`` and ``resume``."""

    note: Note | None = None


class ScheduleRun(WireModel):
    """A job or a batch that a schedule has made: it has the id of one of them."""

    job_id: JobId | None = None
    batch_id: str | None = None
    status: JobStatus | BatchStatus
    created_at: Timestamp
    completed_at: Timestamp | None = None


class Schedule(ScheduleTiming):
    """A schedule as it is stored. ``pending``: Temporal does not have its newest state yet, and gets it."""

    id: ScheduleId
    request: JsonObject | None = None
    """What each run asks; left out in lists."""
    batch: JsonObject | None = None
    """The same for batches."""
    paused: bool
    note: str | None = None
    created_at: Timestamp
    updated_at: Timestamp
    next_runs: Many[Timestamp] = ()
    """The next times of runs, as Temporal has named them; none while it is paused."""
    last_runs: Many[ScheduleRun] = ()
    """Its newest jobs, or batches, newest first."""
    pending: bool
    temporal_url: str | None = None


class SchedulePage(WireModel):
    """A page of schedules, by their ids. ``next_cursor`` is for ``cursor`` of the next page; None: this is the last."""

    schedules: Many[Schedule]
    next_cursor: str | None = None
