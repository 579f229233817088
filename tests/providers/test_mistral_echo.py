"""The echo of a prefix: taken off, however it is cut, and nothing else with it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatjobs.contracts import Channel, ChatRequest, Usage, message_text
from domain.continuing import AS_MISTRAL, NEVER, USUAL, Drops, Practice, Way, is_mistral, server_name
from domain.errors import UpstreamInterrupted
from domain.ports import CANNOT_CONTINUE, Finish, ModelEvent, PartDelta, StillWorking, TextDelta
from domain.text import clean
from providers.mistral.chat import expected_echo, request_body
from providers.mistral.echo import SURE, Echo
from simulator.answers import echo as simulated
from tests.support.factories import make_body

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
    prefix = prefix.rstrip()
    common = next(
        (at for at, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), min(map(len, (prefix, text)))
    )
    if common == len(prefix) or common >= SURE:  # an echo, or may be one
        return
    assert said(taken(Echo(prefix), [*deltas(text, cuts), STOP])) == clean(text)


WHITESPACE = st.text(" \t\n\r\u00a0\u2003\u3000", min_size=1, max_size=9)
PREFIX = "A prefix with something behind it:"


@given(WHITESPACE, TEXTS, CUTS, st.booleans())
def test_whitespace_that_was_not_sent_is_said_again(dropped: str, text: str, cuts: list[int], echoes: bool) -> None:
    """All of it, in the same order, whatever follows: then it is there once."""
    events = deltas((PREFIX if echoes else "") + dropped + text, cuts)
    assert said(taken(Echo(PREFIX, dropped), [*events, STOP])) == clean(text)


@given(WHITESPACE, st.text(LETTERS + "\t\r\u00a0x", max_size=20), CUTS, st.booleans())
def test_anything_else_in_its_place_cannot_be_continued(dropped: str, text: str, cuts: list[int], echoes: bool) -> None:
    """Less of it, other whitespace, a word, or the end: nothing of the answer is passed on."""
    if text.startswith(dropped):
        return
    echo, passed, events = Echo(PREFIX, dropped), list[ModelEvent](), deltas((PREFIX if echoes else "") + text, cuts)
    with pytest.raises(UpstreamInterrupted) as refused:
        passed.extend(own for event in [*events, STOP] for own in echo.take(event))
    assert (refused.value.reason, said(passed)) == (CANNOT_CONTINUE, "")


@given(WHITESPACE, st.text(LETTERS, max_size=20), CUTS, st.booleans(), st.integers(0, 9))
def test_whitespace_of_the_caller_need_not_be_said_again(
    dropped: str, text: str, cuts: list[int], echoes: bool, again: int
) -> None:
    """Nobody has read anything of such an answer: what the model says is the answer."""
    text = dropped[:again] + text
    events = [*deltas((PREFIX if echoes else "") + text, cuts), STOP]
    expected = text[len(dropped) :] if text.startswith(dropped) else text
    assert said(taken(Echo(PREFIX, dropped, shown=False), events)) == clean(expected)


INDENTED = "def f(x):\n    if x:\n"


@pytest.mark.parametrize(
    ("sent", "dropped", "answer"),
    [
        pytest.param(INDENTED, " " * 8, "    return 1", id="C1"),
        pytest.param(INDENTED, " " * 8, "\ndef g():", id="C2"),
        pytest.param("I like cats", " ", ", dogs and birds.", id="C3"),
        pytest.param("| a | b |\n|---|---|\n|", " ", "1 | 2 |", id="table"),
        pytest.param('{"a": {\n', "\t\t", "\t}", id="JSON"),
        pytest.param("key:\n", "  ", "", id="YAML"),
    ],
)
@pytest.mark.parametrize("echo", ["whole", "pieces", "none"])
def test_what_the_model_did_not_say_is_never_glued(sent: str, dropped: str, answer: str, echo: str) -> None:
    texts = [*simulated(sent, echo), *filter(None, [answer])]
    with pytest.raises(UpstreamInterrupted) as refused:
        taken(Echo(sent, dropped), [*(TextDelta(Channel.CONTENT, text) for text in texts), STOP])
    assert refused.value.reason == CANNOT_CONTINUE


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
@pytest.mark.parametrize("prefix", ["Once upon a time there was a long text\n\n", "Short\n"])
def test_an_echo_without_the_whitespace_at_its_end(prefix: str, text: str) -> None:
    """The model has not seen it, either: what it says does not follow the text that readers have."""
    events = [*deltas(prefix.rstrip() + text, [10]), STOP]
    with pytest.raises(UpstreamInterrupted) as refused:
        taken(Echo(prefix), events)
    assert refused.value.reason == CANNOT_CONTINUE
    assert said(taken(Echo(prefix, shown=False), events)) == text
    assert said(taken(Echo(prefix), [*deltas(prefix + text, [10]), STOP])) == text


def test_a_server_that_is_known_to_echo_or_not() -> None:
    """Nothing is guessed: a text that is said again is text; an answer that begins otherwise is no continuation."""
    assert said(taken(Echo("ha, ", echoes=False), [*deltas("ha, ha", [2]), STOP])) == "ha, ha"
    assert said(taken(Echo("ha, ", echoes=True), [*deltas("ha, ha", [2]), STOP])) == "ha"
    with pytest.raises(UpstreamInterrupted):
        taken(Echo("ha, ", echoes=True), [*deltas("Here is a laugh", [2]), STOP])


def test_a_few_characters_from_a_server_that_usually_does_not_echo() -> None:
    """They may be an echo, or the text once more: an answer that was shown starts over, else all is text."""
    with pytest.raises(UpstreamInterrupted):
        taken(Echo("ha, ", usual=False), [*deltas("ha, ha", [2]), STOP])
    assert said(taken(Echo("ha, ", usual=False, shown=False), [*deltas("ha, ha", [2]), STOP])) == "ha, ha"


def test_what_is_withheld_is_progress() -> None:
    """It moves the stall clock; and what is neither text nor end passes while nothing is withheld."""
    thought = TextDelta(Channel.REASONING, "Hm")
    events = taken(Echo("Hello"), [thought, *deltas("Hello you", [2]), STOP])
    assert events == [thought, StillWorking(), TextDelta(Channel.CONTENT, " you"), STOP]


def test_an_echo_is_not_interrupted() -> None:
    """Something else in the middle of it shows that it is none."""
    part = PartDelta({"type": "reference"})
    events = taken(Echo("Hello"), [*deltas("He", []), part, *deltas("llo", []), STOP])
    assert events == [StillWorking(), *deltas("He", []), part, *deltas("llo", []), STOP]


def test_a_connection_that_breaks_in_the_echo_leaves_nothing() -> None:
    assert said(taken(Echo("Hello"), deltas("Hell", [1, 2, 3]))) == ""


OWN = {"role": "assistant", "prefix": True}
PARTS = [{"type": "text", "text": "My "}, {"type": "text", "text": "own "}]


def sent_of(own: object, text: str | None, practice: Practice) -> tuple[ChatRequest, dict[str, Any]]:
    """A request with a prefix of the caller's, and what is sent for it."""
    body = make_body()
    if own is not None:
        body["messages"].append(OWN | {"content": own})
    request = ChatRequest.parse(body)
    return request, json.loads(request_body(request, text, practice))


@pytest.mark.parametrize(
    ("own", "text", "sent"),
    [
        (None, "Hello", "Hello"),
        (None, "Hello  ", "Hello"),
        (None, "Hello\n\t  ", "Hello\n\t"),
        ("My own ", None, "My own"),
        ("My own ", "Hello ", "My own Hello"),
        ("My own ", "  ", "My own"),
        (PARTS, "Hello", "My own Hello"),
        (PARTS, None, "My own"),
    ],
)
def test_what_is_sent_is_what_is_expected(own: object, text: str | None, sent: str) -> None:
    """The caller's prefix and the transcript are one message, and come back as one."""
    request, body = sent_of(own, text, AS_MISTRAL)
    last = ChatRequest.model_validate({"messages": body["messages"]}).messages[-1]
    assert (last.role, message_text(last)) == ("assistant", sent)
    echo = expected_echo(request, text)
    assert echo is not None
    whole = message_text(request.messages[-1]) * (own is not None) + (text or "")
    assert said(taken(echo, [*deltas(whole + "on", [3]), STOP])) == "on"


@pytest.mark.parametrize(
    ("way", "prefix", "flags"),
    [
        (Way.PREFIX, True, {}),
        (Way.CONTINUE_FINAL_MESSAGE, None, {"continue_final_message": True, "add_generation_prompt": False}),
        (Way.ASSISTANT, None, {}),
    ],
)
@pytest.mark.parametrize(("own", "text"), [(None, "Hello\n "), ("Hello", None)])
def test_what_each_way_sends(way: Way, prefix: bool | None, flags: dict[str, Any], own: object, text: str) -> None:
    """The caller's own prefix is sent in the server's way, too."""
    _, body = sent_of(own, text, USUAL[way])
    *_, last = body["messages"]
    content = "Hello\n" if way is Way.PREFIX and text else "Hello"
    assert (last["role"], last["content"], last.get("prefix")) == ("assistant", content, prefix)
    asked = ("continue_final_message", "add_generation_prompt")
    assert {name: body[name] for name in asked if name in body} == flags
    _, plain = sent_of(None, None, USUAL[way])
    assert not any(name in plain for name in asked)


def test_a_server_that_does_not_continue_gets_the_request_as_it_is() -> None:
    request, body = sent_of("Mine ", None, NEVER)
    assert body["messages"][-1] == OWN | {"content": "Mine "}
    assert expected_echo(request, None, NEVER) is None


def test_a_server_that_gives_the_model_all_text_gets_all_of_it() -> None:
    _, body = sent_of(None, "def f():\n    ", Practice(Way.ASSISTANT, Drops.NOTHING, echoes=False))
    assert body["messages"][-1]["content"] == "def f():\n    "


def test_no_echo_is_expected_of_a_plain_request() -> None:
    assert expected_echo(ChatRequest.parse(make_body()), None) is None


@pytest.mark.parametrize(
    ("url", "name", "mistral"),
    [
        (None, "https://api.mistral.ai", True),
        ("https://api.mistral.ai/", "https://api.mistral.ai", True),
        ("https://user:secret@EU.api.mistral.ai:8443/x/?key=1", "https://eu.api.mistral.ai:8443/x", True),
        ("http://[::1]:8000", "http://[::1]:8000", False),
        ("https://mistral.ai.example", "https://mistral.ai.example", False),
        ("https://notmistral.ai", "https://notmistral.ai", False),
    ],
)
def test_a_server_has_a_name(url: str | None, name: str, mistral: bool) -> None:
    assert (server_name(url), is_mistral(url)) == (name, mistral)
