"""The echo of a prefix: taken off, however it is cut, and nothing else with it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.ports import CANNOT_CONTINUE, Finish, ModelEvent, PartDelta, Progress, TextDelta
from chatjobs.contracts import Channel, ChatRequest, Usage, message_text
from chatjobs.errors import UpstreamInterrupted
from providers.mistral import expected_echo, request_body
from providers.mistral_echo import SURE, Echo
from simulator.answers import echo as simulated
from storage.text import clean
from tests.factories import make_body

STOP = Finish("stop", Usage())
LETTERS = "ab \n\0é😀"
TEXTS = st.text(LETTERS, max_size=60)
PREFIXES = st.text(LETTERS, min_size=1, max_size=60)
CUTS = st.lists(st.integers(0, 200), max_size=12)


def deltas(text: str, cuts: list[int]) -> list[ModelEvent]:
    """A text as it may come: cut anywhere, between the halves of a surrogate pair too."""
    units = text.encode("utf-16-le")
    places = sorted({0, len(units), *(cut * 2 for cut in cuts if cut * 2 < len(units))})
    pieces = [units[start:end].decode("utf-16-le", "surrogatepass") for start, end in pairwise(places)]
    return [TextDelta(Channel.CONTENT, piece) for piece in pieces if piece]


def taken(echo: Echo, events: list[ModelEvent]) -> list[ModelEvent]:
    """What the reader of the answer gets, with the echo off."""
    return [own for event in events for own in ([event] if echo.decided else echo.take(event))]


def said(events: list[ModelEvent]) -> str:
    """As storage keeps it."""
    return clean("".join(event.text for event in events if isinstance(event, TextDelta)))


@given(PREFIXES, TEXTS, CUTS)
def test_an_echo_is_taken_off(prefix: str, text: str, cuts: list[int]) -> None:
    """However it is cut, and whatever the answer says behind it: the prefix once more, for example."""
    events = taken(Echo(prefix), [*deltas(prefix + text, cuts), STOP])
    assert said(events) == clean(text)
    assert events[-1] == STOP


@given(PREFIXES, TEXTS, CUTS)
def test_without_an_echo_all_is_text(prefix: str, text: str, cuts: list[int]) -> None:
    """Even if it begins as the prefix does, for so long as chance may have it."""
    common = next(
        (at for at, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), min(map(len, (prefix, text)))
    )
    if common == len(prefix) or common >= SURE:
        return
    assert said(taken(Echo(prefix), [*deltas(text, cuts), STOP])) == clean(text)


@given(st.integers(0, 5), TEXTS, CUTS, st.booleans())
def test_spaces_that_are_there_already_are_not_said_twice(
    blanks: int, text: str, cuts: list[int], echoes: bool
) -> None:
    """They were not sent, so that the model says them again, or not."""
    text = text.lstrip(" ")
    prefix = "A prefix with spaces behind it"
    for spaces in ("", " " * blanks):
        events = deltas((prefix if echoes else "") + spaces + text, cuts)
        assert said(taken(Echo(prefix, blanks), [*events, STOP])) == clean(text)


@given(st.text(LETTERS + "xyz", min_size=2 * SURE, max_size=200), CUTS)
def test_an_echo_that_differs_is_refused(prefix: str, cuts: list[int]) -> None:
    """Nobody knows what such an answer goes on from; no part of it is passed on."""
    (text,) = simulated(prefix, "differing")
    if prefix[len(prefix) // 2 :].isspace():
        return
    events, echo = deltas(text, cuts), Echo(prefix)
    with pytest.raises(UpstreamInterrupted) as refused:
        said(taken(echo, [*events, STOP]))
    assert refused.value.reason == CANNOT_CONTINUE


@pytest.mark.parametrize("text", ["on we go", ""])
def test_an_echo_may_lack_the_blanks_at_its_end(text: str) -> None:
    prefix = "Once upon a time there was a long text" + "\n\n"
    assert said(taken(Echo(prefix), [*deltas(prefix.rstrip() + text, [10]), STOP])) == text


def test_what_is_withheld_is_progress() -> None:
    """It moves the stall clock; and what is neither text nor end passes while nothing is withheld."""
    thought = TextDelta(Channel.REASONING, "Hm")
    events = taken(Echo("Hello"), [thought, *deltas("Hello you", [2]), STOP])
    assert events == [thought, Progress(), TextDelta(Channel.CONTENT, " you"), STOP]


def test_an_echo_is_not_interrupted() -> None:
    """Something else in the middle of it shows that it is none."""
    part = PartDelta({"type": "reference"})
    events = taken(Echo("Hello"), [*deltas("He", []), part, *deltas("llo", []), STOP])
    assert events == [Progress(), *deltas("He", []), part, *deltas("llo", []), STOP]


def test_a_connection_that_breaks_in_the_echo_leaves_nothing() -> None:
    assert said(taken(Echo("Hello"), deltas("Hell", [1, 2, 3]))) == ""


OWN = {"role": "assistant", "prefix": True}


@pytest.mark.parametrize(
    ("own", "text", "sent"),
    [
        (None, "Hello", "Hello"),
        (None, "Hello  ", "Hello"),
        ("My own ", None, "My own "),
        ("My own ", "Hello ", "My own Hello"),
        ([{"type": "text", "text": "My "}, {"type": "text", "text": "own "}], "Hello", "My own Hello"),
    ],
)
def test_what_is_sent_is_what_is_expected(own: object, text: str | None, sent: str) -> None:
    """The caller's prefix and the transcript are one message, and come back as one."""
    body = make_body()
    if own is not None:
        body["messages"].append(OWN | {"content": own})
    request = ChatRequest.parse(body)
    last = ChatRequest.model_validate_json(request_body(request, text)).messages[-1]
    assert (last.role, message_text(last)) == ("assistant", sent)
    echo = expected_echo(request, text)
    assert echo is not None
    assert said(taken(echo, [*deltas(sent + " on", [3]), STOP])) == ("on" if (text or "").endswith(" ") else " on")


def test_no_echo_is_expected_of_a_plain_request() -> None:
    assert expected_echo(ChatRequest.parse(make_body()), None) is None
