"""The models that may take an answer over from the one that a request names. Pure."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from chatjobs.contracts import Limits

FIELD: Final = '"fallbackModels":'
"""Only a request whose JSON contains this has other models: a quote within a text is escaped."""
_USUAL_SECONDS: Final = Limits().fallback_seconds


class Fallback(NamedTuple):
    """The models that come after the present one, in order, and ``limits.fallbackSeconds``."""

    models: tuple[str, ...] = ()
    seconds: float = _USUAL_SECONDS


NONE: Final = Fallback()


def after(model: str, body: str) -> Fallback:
    """What a stored request, as JSON, says about the models after ``model``."""
    if FIELD not in body:
        return NONE
    request = json.loads(body)
    following = tuple(request.get("fallbackModels") or ())
    if model in following:
        following = following[following.index(model) + 1 :]
    limits = request.get("limits") or {}
    return Fallback(following, limits.get("fallbackSeconds", _USUAL_SECONDS))
