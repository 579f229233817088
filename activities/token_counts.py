"""Counts of an answer's tokens while it is streamed."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from chatjobs.contracts import Usage
from domain.ports import UsageSoFar
from domain.tokens import ceiling, of_delta

MOST_IDLE: Final = 4
"""Deltas in a row that may add no token: they are pieces of one."""
SLACK: Final = 8
"""Tokens without text that a delta may have beyond one for each of its bytes."""
SHORT: Final = 32
"""Characters of the longest delta whose counts are cached."""


@lru_cache(maxsize=8_192)
def _bounds(text: str) -> tuple[int, int, int]:
    """Words of a delta, and its tokens at most: if deltas are tokens, and if they hold several. Most deltas are words,
    which repeat."""
    words = len(text.split())
    return words, of_delta(text, words), max(words, ceiling(text))


class Counter:
    """Counts the tokens of what one attempt writes.

    A server may report its count with the deltas (``told``). The count is trusted as long as every delta has one and it
    grows as text can make it grow: some servers send a figure that is not a count before the end.
    """

    def __init__(self) -> None:
        self.deltas = 0
        self.count = 0
        """The server's count, or else the number of deltas."""
        self.least = 0
        """A lower bound of the tokens."""
        self.merged = False
        """There was a delta of several tokens."""
        self._singly = 0  # an upper bound, if deltas are tokens except where their text shows otherwise
        self._ceiling = 0  # an upper bound, if deltas hold several tokens
        self._trusted = True
        self._idle = 0
        self._last: UsageSoFar | None = None

    def take(self, text: str, told: UsageSoFar | None) -> int:
        """Count one delta: its tokens, or 1 where the server does not say."""
        words, singly, most = _bounds(text) if len(text) <= SHORT else _bounds.__wrapped__(text)
        step = self._step(text, words, told)
        self.deltas += 1
        if step is None:
            self._trusted = False
            step = 0 if "\udc00" <= text[0] <= "\udfff" else 1  # the second half of a character adds no token
            self._singly += singly
            self._ceiling += max(step, most)
            self.least += max(step, words)
        else:
            self._singly += step
            self._ceiling += step
            self.least += step
        self.merged = self.merged or words > 1 or step > 1
        self.count += step
        return step

    def skip(self, told: UsageSoFar | None) -> None:
        """Skip what the server counted up to here, which is not new text."""
        if told is not None and self._trusted:
            self._last = told

    @property
    def most(self) -> int:
        """An upper bound of the tokens, as far as the deltas show."""
        most = self._ceiling if self.merged else self._singly
        return most if self._trusted else max(most, self.deltas)

    @property
    def exact(self) -> bool:
        """Whether the server has counted all of the answer."""
        return self._trusted and self._last is not None

    @property
    def usage(self) -> Usage | None:
        """The call's usage; None unless the server has counted all of it."""
        if not self.exact or self._last is None or not self._last.prompt_tokens:
            return None
        prompt, completion = self._last
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def _step(self, text: str, words: int, told: UsageSoFar | None) -> int | None:
        """The delta's tokens by the server's count; None if that is not to be trusted."""
        if told is None or not self._trusted:
            return None
        step = told.completion_tokens - (self._last.completion_tokens if self._last else 0)
        self._idle = 0 if step else self._idle + 1
        if not words // 2 <= step <= len(text.encode(errors="replace")) + SLACK or self._idle > MOST_IDLE:
            return None
        if self._last is None and not step:
            return None
        self._last = told
        return step
