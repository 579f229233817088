"""Removal of the echo, and of repeated whitespace, from the beginning of a continued answer. Pure.

Some servers repeat the text that an answer is to continue: at once, in pieces, or not at all, without announcing it.
So text is withheld while it could be the echo, until

- all of the prefix has arrived: it was the echo. Only an answer of a server without echo that repeats the whole prefix
  from its beginning is mistaken for one;
- it differs after fewer than ``SURE`` characters: there is no echo, and all of it is text of the answer;
- it differs later: the server repeats another text than it was sent, and the beginning of its answer is unknown. The
  text cannot be continued (``upstream_echo``);
- the connection breaks before: the withheld text is discarded, and requested again.

If it is known whether the server echoes (continuing.Practice), fewer cases are left.

Whitespace that was not sent (``dropped``) has to come next, all of it, before anything else. If the model generates
something else, or ends, it does not continue the text that readers have seen: the text cannot be continued. The same
holds if the echo lacks whitespace of the text that was sent: the model has not seen it, either. No part of an answer is
passed on before that is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from chatjobs.contracts import Channel
from domain.errors import UpstreamInterrupted
from domain.ports import CANNOT_CONTINUE, Finish, ModelEvent, StillWorking, TextDelta, UsageSoFar
from providers.mistral.values import OK, whole_text

SURE: Final = 16
"""A match of this many characters of the prefix is no coincidence."""


class Echo:
    """Removes the echo from one answer: pass its events to ``take`` until ``decided``, then use them unchanged.

    ``prefix`` is the text as it was sent, ``dropped`` the whitespace after it that was not. ``shown``: readers have
    seen that whitespace, so the answer must repeat it; else it is the caller's own, and an answer without it is fine.
    ``echoes``: whether the server echoes, None if that is not known; ``usual``: it probably does.
    """

    def __init__(
        self, prefix: str, dropped: str = "", *, shown: bool = True, echoes: bool | None = None, usual: bool = True
    ) -> None:
        self._prefix = _comparable(prefix)
        self._dropped = dropped
        self._repeated = 0
        self._shown = shown
        self._echoes = echoes
        self._usual = usual
        self._matched = 0
        self._half = ""
        self._withheld: list[TextDelta] = []
        self._echoed = not self._prefix or echoes is False
        self._told: UsageSoFar | None = None  # of the last delta that was echo only
        self.confirmed = False
        """The prefix has come back whole, and nothing else before it."""

    @property
    def decided(self) -> bool:
        return self._echoed and not self._dropped

    def take(self, event: ModelEvent) -> Iterable[ModelEvent]:
        """The events, from this one and the withheld ones, that belong to the answer. Raises UpstreamInterrupted."""
        if isinstance(event, TextDelta) and event.channel is Channel.CONTENT:
            echoed = self._echoed
            own = self._without_dropped(self._match(event) if not echoed else [event])
            if own and not echoed and self._told is not None:
                return [StillWorking(self._told), *own]
            if not own and self._echoed:  # all of it was repetition
                return [StillWorking(event.told)]
            return own or [StillWorking()]  # withheld text is progress, too: it resets the timeouts
        if not isinstance(event, Finish) and not self._withheld:
            return [event]
        own = self._without_dropped([] if self._echoed else self._deviation(""))
        if isinstance(event, Finish) and self._dropped:
            own = self._missing_whitespace("")
        return [*own, event]

    def _match(self, delta: TextDelta) -> list[TextDelta]:
        self._told = self._withheld[-1].told if self._withheld else None
        self._withheld.append(delta)
        text = self._half + delta.text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""  # the other half may be in the next delta
        text = _comparable(text[: len(text) - len(self._half)])
        left = len(self._prefix) - self._matched
        if not self._prefix.startswith(text[:left], self._matched):
            return self._deviation(text)
        self._matched += min(len(text), left)
        return self._prefix_complete(text[left:]) if len(text) >= left else []

    def _prefix_complete(self, behind: str) -> list[TextDelta]:
        """Decide after all of the prefix has arrived, followed by the text ``behind``."""
        if self._echoes or self._usual or len(self._prefix) >= SURE:
            return self._after_echo(behind)
        if self._shown:  # a few repeated characters, from a server that probably does not echo: ambiguous
            raise _cannot_continue()
        return self._no_echo()

    def _deviation(self, text: str) -> list[TextDelta]:
        """Decide after ``text`` has differed from the prefix, or the answer has ended within it."""
        same = next((at for at, character in enumerate(text) if self._prefix[self._matched + at] != character), 0)
        matched = self._matched + same
        if matched and self._prefix[matched:].isspace():
            if self._shown:
                raise _cannot_continue()
            return self._after_echo(text[same:])
        if matched >= SURE or (self._echoes and self._withheld):
            raise _cannot_continue()
        return self._no_echo()

    def _no_echo(self) -> list[TextDelta]:
        """There is no echo: release the withheld text."""
        self._echoed, self._told = True, None
        return self._withheld

    def _after_echo(self, text: str) -> list[TextDelta]:
        """The echo is complete; ``text`` follows it."""
        self._echoed = True
        self.confirmed = bool(self._prefix) and self._matched == len(self._prefix)
        text += self._half
        return [TextDelta(Channel.CONTENT, text, self._withheld[-1].told if self._withheld else None)] if text else []

    def _without_dropped(self, deltas: Iterable[TextDelta]) -> list[ModelEvent]:
        """The deltas without their repetition of the dropped whitespace."""
        own: list[ModelEvent] = []
        for delta in deltas:
            if not self._dropped:
                own.append(delta)
                continue
            expected = self._dropped[self._repeated : self._repeated + len(delta.text)]
            if not delta.text.startswith(expected):
                own += self._missing_whitespace(delta.text, delta.told)
                continue
            self._repeated += len(expected)
            if self._repeated == len(self._dropped):
                self._dropped = ""
                own += [delta._replace(text=rest)] if (rest := delta.text[len(expected) :]) else []
        return own

    def _missing_whitespace(self, text: str, told: UsageSoFar | None = None) -> list[ModelEvent]:
        """The answer has ``text``, or ends, in place of the dropped whitespace."""
        if self._shown:
            raise _cannot_continue()
        text = self._dropped[: self._repeated] + text
        self._dropped = ""
        return [TextDelta(Channel.CONTENT, text, told)] if text else []


def _cannot_continue() -> UpstreamInterrupted:
    return UpstreamInterrupted(
        "Mistral did not go on from the text so far, but from a different one.", code=CANNOT_CONTINUE, http_status=OK
    )


def _comparable(text: str) -> str:
    """``text`` as storage keeps it, so that a stored and sent text equals its echo whatever it contained."""
    return whole_text(text).replace("\0", "\ufffd")
