"""Token counts of an answer; servers report them once, on every chunk, provisionally, or empty. Pure."""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError

from chatjobs.contracts import Usage
from domain.errors import UpstreamInterrupted
from domain.ports import UsageSoFar
from providers.mistral.values import legal

MOST: Final = 2**53
"""A larger count is ignored."""

_PROMPT, _COMPLETION, _TOTAL = "prompt_tokens", "completion_tokens", "total_tokens"
_COUNTS: Final = (_PROMPT, _COMPLETION, _TOTAL)
_OTHER_NAMES: Final = {_PROMPT: "input_tokens", _COMPLETION: "output_tokens"}


class ReportedUsage:
    """The last count of each kind; zero and null never replace a count."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def take(self, reported: Any) -> bool:
        """Add the usage that one chunk reports; whether it has a count. Invalid values are left out: they must not fail
        the answer."""
        if not isinstance(reported, dict):
            return False
        found = {name: _count(reported.get(name)) for name in _COUNTS}
        for name, other in _OTHER_NAMES.items():
            found[name] = found[name] or _count(reported.get(other))
        if any(found.values()):
            self._values.pop(_TOTAL, None)  # it was the sum of older counts
        further = {name: value for name, value in reported.items() if name not in _COUNTS}
        self._values |= {name: value for name, value in (found | further).items() if value or value is False}
        return any(found.values())

    def so_far(self, reported: Any) -> UsageSoFar | None:
        """The usage so far that one chunk reports; None without a completion count."""
        completion = self._count_in(reported, _COMPLETION)
        return UsageSoFar(self._count_in(reported, _PROMPT), completion) if completion else None

    @staticmethod
    def _count_in(reported: Any, name: str) -> int:
        if not isinstance(reported, dict):
            return 0
        return _count(reported.get(name)) or _count(reported.get(_OTHER_NAMES[name]))

    def usage(self) -> Usage | None:
        """The usage of the answer; None if none was reported. A missing count is computed from the others, or 0."""
        if not any(self._values.get(name) for name in _COUNTS):
            return None
        prompt, completion, total = (self._values.get(name, 0) for name in _COUNTS)
        if not completion and total > prompt > 0:
            completion = total - prompt
        elif not prompt and total > completion > 0:
            prompt = total - completion
        counts = {_PROMPT: prompt, _COMPLETION: completion, _TOTAL: max(total, prompt + completion)}
        try:
            return Usage.model_validate(legal(self._values | counts))
        except (ValidationError, UpstreamInterrupted):
            return Usage.model_validate(counts)


def _count(value: Any) -> int:
    """A positive whole number, also one written as text or with a fraction of zero; 0 for everything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST else 0
