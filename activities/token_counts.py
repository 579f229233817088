"""Counting the tokens of an answer while it comes."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from chatjobs.contracts import Usage
from domain.ports import Told
from domain.tokens import ceiling, of_delta

MOST_IDLE: Final = 4
"""Deltas in a row that may come without a token: pieces of one."""
SLACK: Final = 8
"""Tokens without text of their own that a delta may have beside one for each of its bytes."""


SHORT: Final = 32
"""Characters of deltas that are remembered."""


@lru_cache(maxsize=8_192)
def _judged(text: str) -> tuple[int, int, int]:
    """Words of a delta, and its tokens at most: if it is one, and if it is several. Deltas repeat: most are words."""
    words = len(text.split())
    return words, of_delta(text, words), max(words, ceiling(text))


class Counter:
    """Tokens of what one attempt writes.

    A server may count as it goes (``told``). It is believed as long as it does so with every delta, and the count grows
    as text can make it grow: some servers send a figure that is none before the end.
    """

    def __init__(self) -> None:
        self.deltas = 0
        self.count = 0
        """What the server counted, or deltas."""
        self.least = 0
        """Not more than there are."""
        self.merged = False
        """There was a delta of several tokens."""
        self._singly = 0  # at most, if deltas are tokens but where they show that they are not
        self._ceiling = 0  # at most, if they are not
        self._believed = True
        self._idle = 0
        self._last: Told | None = None

    def take(self, text: str, told: Told | None) -> int:
        """Count one delta: its tokens, or 1 where the server does not say."""
        words, singly, most = _judged(text) if len(text) <= SHORT else _judged.__wrapped__(text)
        step = self._step(text, words, told)
        self.deltas += 1
        if step is None:
            self._believed = False
            step = 0 if "\udc00" <= text[0] <= "\udfff" else 1  # the second half of a character is no token more
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

    def skip(self, told: Told | None) -> None:
        """What was said up to here is no new text."""
        if told is not None and self._believed:
            self._last = told

    @property
    def most(self) -> int:
        """Not fewer than there are, as far as the deltas tell."""
        most = self._ceiling if self.merged else self._singly
        return most if self._believed else max(most, self.deltas)

    @property
    def exact(self) -> bool:
        """The server has counted all of it."""
        return self._believed and self._last is not None

    @property
    def usage(self) -> Usage | None:
        """What the call has used, where the server has counted all of it."""
        if not self.exact or self._last is None or not self._last.prompt_tokens:
            return None
        prompt, completion = self._last
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def _step(self, text: str, words: int, told: Told | None) -> int | None:
        if told is None or not self._believed:
            return None
        step = told.completion_tokens - (self._last.completion_tokens if self._last else 0)
        self._idle = 0 if step else self._idle + 1
        if not words // 2 <= step <= len(text.encode(errors="replace")) + SLACK or self._idle > MOST_IDLE:
            return None
        if self._last is None and not step:
            return None
        self._last = told
        return step
