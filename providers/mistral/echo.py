"""The beginning of a continued answer: the echo and the whitespace that is there already are taken off. Pure.

Some servers repeat the text that an answer shall continue: at once, in pieces, or not at all; nothing announces which.
So the text that comes is withheld while it could be the echo, and then

- all of the prefix has come: it was the echo. Only an answer that says the whole prefix once more from its very
  beginning, of a server that does not echo, is mistaken for it;
- it turned out to be something else after fewer than ``SURE`` characters: there is no echo, and all of it is text;
- it did after more: the server repeats another text than it was sent, and nobody can say where its answer begins. The
  text cannot be continued there (``upstream_echo``);
- the connection broke before: what was withheld was never there. It is asked for again.

Where it is known whether the server echoes (continuing.Practice), there is less to guess.

Whitespace that was not sent (``dropped``) has to come next, all of it, before anything else. If the model says
something else there, or ends, it does not go on from the text that readers have seen: the text cannot be continued.
The same holds where the echo lacks whitespace of the text that was sent: the model has not seen it, either.
Nothing of an answer is passed on before that is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from chatjobs.contracts import Channel
from domain.errors import UpstreamInterrupted
from domain.ports import CANNOT_CONTINUE, Finish, ModelEvent, StillWorking, TextDelta, Told
from providers.mistral.values import OK, whole_text

SURE: Final = 16
"""So many characters of the prefix do not come by chance."""


class Echo:
    """Takes the echo off one answer: ``take`` its events until ``decided``; those that follow are the answer's own.

    ``prefix`` is the text as it was sent, ``dropped`` the whitespace behind it that was not. ``shown``: readers have
    seen that whitespace, so that it must be said again; else it is the caller's own, and an answer without it stands.
    ``echoes``: whether the server echoes, None where that is not known; ``usual``: it probably does.
    """

    def __init__(
        self, prefix: str, dropped: str = "", *, shown: bool = True, echoes: bool | None = None, usual: bool = True
    ) -> None:
        self._prefix = _comparable(prefix)
        self._dropped = dropped
        self._again = 0
        self._shown = shown
        self._echoes = echoes
        self._usual = usual
        self._matched = 0
        self._half = ""
        self._withheld: list[TextDelta] = []
        self._echoed = not self._prefix or echoes is False
        self._told: Told | None = None  # at the end of the last delta that was echo and nothing else

    @property
    def decided(self) -> bool:
        return self._echoed and not self._dropped

    def take(self, event: ModelEvent) -> Iterable[ModelEvent]:
        """What of an event, and of those withheld before it, is the answer's own. Raises UpstreamInterrupted."""
        if isinstance(event, TextDelta) and event.channel is Channel.CONTENT:
            echoed = self._echoed
            own = self._said_again(self._text(event) if not echoed else [event])
            if own and not echoed and self._told is not None:
                return [StillWorking(self._told), *own]
            if not own and self._echoed:  # said again, every bit of it
                return [StillWorking(event.told)]
            return own or [StillWorking()]  # what is withheld is progress, too: it moves the clocks
        if not isinstance(event, Finish) and not self._withheld:
            return [event]
        own = self._said_again([] if self._echoed else self._deviation(""))
        if isinstance(event, Finish) and self._dropped:
            own = self._unsaid("")
        return [*own, event]

    def _text(self, delta: TextDelta) -> list[TextDelta]:
        self._told = self._withheld[-1].told if self._withheld else None
        self._withheld.append(delta)
        text = self._half + delta.text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""  # its other half may come in the next one
        text = _comparable(text[: len(text) - len(self._half)])
        left = len(self._prefix) - self._matched
        if not self._prefix.startswith(text[:left], self._matched):
            return self._deviation(text)
        self._matched += min(len(text), left)
        return self._whole(text[left:]) if len(text) >= left else []

    def _whole(self, behind: str) -> list[TextDelta]:
        """All of the prefix has come, and ``behind`` it."""
        if self._echoes or self._usual or len(self._prefix) >= SURE:
            return self._own(behind)
        if self._shown:  # a server that probably does not echo says a few characters again: either may be meant
            raise _cannot_continue()
        return self._all()

    def _deviation(self, text: str) -> list[TextDelta]:
        """``text`` is not what the prefix has at this place (or nothing follows): what was all this?"""
        same = next((at for at, character in enumerate(text) if self._prefix[self._matched + at] != character), 0)
        matched = self._matched + same
        if matched and self._prefix[matched:].isspace():
            if self._shown:
                raise _cannot_continue()
            return self._own(text[same:])
        if matched >= SURE or (self._echoes and self._withheld):
            raise _cannot_continue()
        return self._all()

    def _all(self) -> list[TextDelta]:
        """There is no echo."""
        self._echoed, self._told = True, None
        return self._withheld

    def _own(self, text: str) -> list[TextDelta]:
        """The echo is over, and this is what comes behind it."""
        self._echoed = True
        text += self._half
        return [TextDelta(Channel.CONTENT, text, self._withheld[-1].told if self._withheld else None)] if text else []

    def _said_again(self, deltas: Iterable[TextDelta]) -> list[ModelEvent]:
        """The deltas without the whitespace that is there already."""
        own: list[ModelEvent] = []
        for delta in deltas:
            if not self._dropped:
                own.append(delta)
                continue
            expected = self._dropped[self._again : self._again + len(delta.text)]
            if not delta.text.startswith(expected):
                own += self._unsaid(delta.text, delta.told)
                continue
            self._again += len(expected)
            if self._again == len(self._dropped):
                self._dropped = ""
                own += [delta._replace(text=rest)] if (rest := delta.text[len(expected) :]) else []
        return own

    def _unsaid(self, text: str, told: Told | None = None) -> list[ModelEvent]:
        """The answer says ``text`` (or nothing) where whitespace should have been said again."""
        if self._shown:
            raise _cannot_continue()
        text = self._dropped[: self._again] + text
        self._dropped = ""
        return [TextDelta(Channel.CONTENT, text, told)] if text else []


def _cannot_continue() -> UpstreamInterrupted:
    return UpstreamInterrupted(
        "Mistral did not go on from the text so far, but from a different one.", code=CANNOT_CONTINUE, http_status=OK
    )


def _comparable(text: str) -> str:
    """As storage keeps it: a text that was stored and sent is the same as what is echoed, whatever stood in it."""
    return whole_text(text).replace("\0", "\ufffd")
