"""What must come of the odd streams of simulator/oddities.py, for the tests of the decoder and those over the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator import oddities
from simulator.oddities import CALLS, REASONING, TEXT, USAGE

_CALLING = tuple(name for name in oddities.WHOLE if name.startswith(("W2", "W9", "W8 a finish reason with each call")))
_REPORTED = (
    "W5 empty and zero",
    "W5 no total",
    "W5 within the choice",
    "W6 everywhere",
    "W8 text after the finish reason",
    "W8 a broken frame after the end",
    "W8 an error after the end",
    "W14 provisional figures",
)


@dataclass(frozen=True)
class Outcome:
    """A whole answer. ``calls`` are names and arguments."""

    text: str = TEXT
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    usage: dict[str, int] | None = None
    reason: str = "stop"


def outcome(name: str) -> Outcome:
    """What a whole stream of this name says."""
    return Outcome(
        text="" if name in _CALLING else TEXT,
        reasoning=REASONING if name.startswith("W3") else "",
        calls=CALLS if name in _CALLING else (),
        usage=USAGE if name in _REPORTED else None,
        reason="tool_calls" if name == "W8 a finish reason with each call" else "stop",
    )


WHOLE = {name: outcome(name) for name in oddities.WHOLE}

BROKEN: dict[str, str] = dict.fromkeys(oddities.BROKEN, "upstream_cut") | {
    "W6 nothing but pings": "upstream_empty",
    "W8 stop on every chunk, an error": "upstream_error",
    "finish reason abort": "upstream_error",
    "finish reason insufficient_system_resource": "upstream_error",
}
"""Names of streams that are cut, and the code of the interruption."""

ERRORS: dict[str, tuple[str, str]] = {
    "W4 capacity": ("upstream_rate_limited", "Service tier capacity exceeded"),
    "W4 capacity after some text": ("upstream_rate_limited", "Service tier capacity exceeded"),
    "W4 rate limit as words": ("upstream_rate_limited", "Requests rate limit exceeded"),
    "W4 rate limit as a string": ("upstream_rate_limited", "Rate limit exceeded, please slow down"),
    "W4 rate limit by status": ("upstream_rate_limited", "Provider returned error"),
    "W4 rate limit within a string": ("upstream_rate_limited", "Slow.; code 1300"),
    "W4 error field, 429": ("upstream_rate_limited", "Too busy."),
    "W4 error field, 400": ("upstream_rejected", "exceeds the available context size"),
    "W4 error in an object, 400": ("upstream_rejected", "exceeds the available context size"),
    "W4 event error, 400": ("upstream_rejected", "Bad tool schema."),
    "W4 error field, 500": ("upstream_unavailable", "slot unavailable"),
    "W4 words alone": ("upstream_error", "something broke"),
    "W4 within the choice": ("upstream_rate_limited", "Busy."),
}
"""Names of streams that are errors: the code, and words of the message."""


def fault(name: str) -> dict[str, Any]:
    """The simulator's fault for a stream."""
    return {"kind": "odd", "name": name}
