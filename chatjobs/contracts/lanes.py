"""Lanes (the calls that share one rate limit of the model): their limits, who uses them, and what pauses them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from chatjobs.contracts.base import Many, Timestamp, WireModel

LaneName = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
"""The name of a lane, as `starter.py limits list` shows it, such as ``0a1b2c3d:mistral-small``."""
TenantName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""The name of a tenant."""
PauseReason = Annotated[str, StringConstraints(max_length=500)]
"""Why something is paused, for people."""


class PauseRequest(WireModel):
    """What to pause: the jobs of a lane, of a tenant, of a tenant in a lane, or, with neither, of everybody.

    With an API key, ``tenant`` must be the key's own.
    """

    lane: LaneName | None = None
    tenant: TenantName | None = None
    reason: PauseReason = ""


class Pause(WireModel):
    """A pause: no call of the model starts for the jobs that it concerns. Answers that are being generated go on.

    Jobs that wait keep their place, and ``limits.queueSeconds`` goes on.
    """

    pause_id: str
    lane: str | None = None
    """None: all lanes."""
    tenant: str | None = None
    """None: all tenants."""
    reason: str
    paused_at: Timestamp
    paused_by: str
    """The id of an API key, or ``operator``."""
    may_resume: bool = Field(True)
    """Whether the caller may end it: an operator may end all pauses, a key those that a key of its tenant began."""


class PauseList(WireModel):
    """The pauses that concern the caller's jobs, oldest first."""

    pauses: Many[Pause]


class LaneWaiting(WireModel):
    """Jobs of one tenant and priority that wait in a lane."""

    tenant: str
    priority: int
    count: int


class Lane(WireModel):
    """A lane: its limits, and who uses it.

    With an API key, the counts are those of the key's tenant, and ``lastError`` is left out.
    """

    name: str = Field(alias="lane")
    per_second: float
    """Calls that may start in a second."""
    set_to: float | None = None
    """``perSecond`` as an operator set it."""
    seen: float | None = None
    """``perSecond`` as the model's headers say."""
    at_once: int | None = None
    """Calls that may run at once; None: any number."""
    running: int
    """Calls that run."""
    tokens_per_minute: int | None = None
    """Tokens that calls may use in a minute; None: any number."""
    tokens_set_to: int | None = None
    """``tokensPerMinute`` as an operator set it."""
    tokens_seen: int | None = None
    """``tokensPerMinute`` as the model's headers say."""
    tokens_used: int | None = None
    """Tokens of the last minute, with what is reserved for calls that run; None without a limit, and with an API
    key."""
    waiting: int
    """Jobs that wait."""
    waiting_by: Many[LaneWaiting]
    """The same by priority and tenant."""
    pauses: Many[Pause]
    """The pauses that concern this lane, or all lanes."""
    paused_until: Timestamp | None = None
    """The end of a pause that the model asked for."""
    down: bool
    """The model fails every call; one job at a time tries it again."""
    probes_at: Timestamp | None = None
    last_error: str | None = None


class LaneList(WireModel):
    """Lanes, by name."""

    lanes: Many[Lane]
