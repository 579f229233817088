"""Lanes (the calls that share one rate limit of the model): what pauses them."""

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
