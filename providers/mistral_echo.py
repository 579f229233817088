"""The echo of a prefix at the start of an answer: told apart from the answer, and taken off. Pure.

Mistral repeats the text that an answer shall continue from: at once, in pieces, or not at all; nothing announces which.
So the text that comes is withheld while it could be the echo, and then

- all of the prefix has come: it was the echo. Only an answer that says the whole prefix once more from its very
  beginning, of a server that does not echo, is mistaken for it;
- it turned out to be something else after fewer than ``SURE`` characters: there is no echo, and all of it is text;
- it did after more: a server that repeats the prefix with changes has understood something else than we asked for, and
  nobody can say where its answer begins. The text cannot be continued there (``upstream_echo``);
- the connection broke before: what was withheld was never there. It is asked for again.

An echo that lacks the prefix's blanks at the end is one, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from activities.ports import CANNOT_CONTINUE, Finish, ModelEvent, Progress, TextDelta
from chatjobs.contracts import Channel
from chatjobs.errors import UpstreamInterrupted
from providers.mistral_values import OK, whole_text

SURE: Final = 16
"""So many characters of the prefix do not come by chance."""


class Echo:
    """Takes the echo off one answer: ``take`` its events until ``decided``; those that follow are the answer's own.

    ``prefix`` is the text as it was sent, ``blanks`` how many spaces behind it were not sent though they are there:
    the answer says them again.
    """

    def __init__(self, prefix: str, blanks: int = 0) -> None:
        self._prefix = _comparable(prefix)
        self._blanks = blanks
        self._matched = 0
        self._half = ""
        self._withheld: list[TextDelta] = []
        self._echoed = not self._prefix

    @property
    def decided(self) -> bool:
        return self._echoed and not self._blanks

    def take(self, event: ModelEvent) -> Iterable[ModelEvent]:
        """What of an event, and of those withheld before it, is the answer's own. Raises UpstreamInterrupted."""
        if isinstance(event, TextDelta) and event.channel is Channel.CONTENT:
            return self._without_blanks(self._text(event) if not self._echoed else [event])
        if not isinstance(event, Finish) and not self._withheld:
            return [event]
        released = [] if self._echoed else self._deviation("")
        return [*self._without_blanks(released), event]

    def _text(self, delta: TextDelta) -> list[TextDelta]:
        self._withheld.append(delta)
        text = self._half + delta.text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""  # its other half may come in the next one
        text = _comparable(text[: len(text) - len(self._half)])
        left = len(self._prefix) - self._matched
        if not self._prefix.startswith(text[:left], self._matched):
            return self._deviation(text)
        self._matched += min(len(text), left)
        return self._own(text[left:]) if len(text) >= left else []

    def _deviation(self, text: str) -> list[TextDelta]:
        """``text`` is not what the prefix has at this place (or nothing follows): what was all this?"""
        same = next((at for at, character in enumerate(text) if self._prefix[self._matched + at] != character), 0)
        matched = self._matched + same
        if matched < SURE:
            self._echoed = True
            return self._withheld
        if self._prefix[matched:].isspace():
            return self._own(text[same:])
        raise UpstreamInterrupted(
            "Mistral did not go on from the text so far, but from a different one.",
            code=CANNOT_CONTINUE,
            http_status=OK,
        )

    def _own(self, text: str) -> list[TextDelta]:
        """The echo is over, and this is what comes behind it."""
        self._echoed = True
        text += self._half
        return [TextDelta(Channel.CONTENT, text)] if text else []

    def _without_blanks(self, deltas: Iterable[TextDelta]) -> list[ModelEvent]:
        """Without the spaces that are there already. What is withheld is progress, too: it moves the clocks."""
        own: list[ModelEvent] = []
        for delta in deltas:
            text = delta.text
            if self._blanks:
                text = text[len(text[: self._blanks]) - len(text[: self._blanks].lstrip(" ")) :]
                self._blanks = 0 if text else self._blanks - len(delta.text)
            if text:
                own.append(TextDelta(delta.channel, text))
        return own or [Progress()]


def _comparable(text: str) -> str:
    """As storage keeps it: a text that was stored and sent is the same as what is echoed, whatever stood in it."""
    return whole_text(text).replace("\0", "\ufffd")
