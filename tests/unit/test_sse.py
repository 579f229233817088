"""chatjobs/sse.py: the text of server-sent events, however it is cut; the events of a job, each once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatjobs.contracts import Channel, ChunkEvent, CompleteEvent, QueuedEvent, ResetEvent, StartEvent, StreamEvent
from chatjobs.errors import ResponseTooLarge, StreamBroken
from chatjobs.sse import EventId, JobEvents, Parser, Place, ServerEvent, encode

CHUNK = '{"content":"Hello there,","channel":"content","index":0,"tokenCount":3}'
START = '{"jobId":"job_1","requestId":"r","model":"m","attempt":1,"timestamp":"2026-01-02T03:04:05.678901Z"}'
END = '{"status":"completed","sha256":"00"}'
PIECES = st.sampled_from(
    (
        *(b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"7", b"chunk", b"x", b"datax"),
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xf0\x9f", "é".encode(), "🌊".encode()),
    )
)
STREAMS = st.lists(PIECES, max_size=40).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=12)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))


def cut(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    """The pieces of ``data`` between the places; some may be empty."""
    ends = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return (data[start:end] for start, end in pairwise(ends))


def parsed(data: bytes, places: Iterable[int] = (), parser: Parser | None = None) -> list[ServerEvent]:
    parser = parser or Parser()
    return [event for piece in cut(data, places) for event in parser.feed(piece)]


def by_the_book(data: bytes) -> tuple[list[ServerEvent], str, int | None]:
    """The specification's section 9.2.6 word by word, over the whole text: events, last id, reconnection time."""
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    events, last_id, retry, kind, buffer = [], "", None, "", ""
    for line in re.split("\r\n|\n|\r", text)[:-1]:  # what comes after the last line end is incomplete
        if line == "":
            if buffer:
                events.append(ServerEvent(kind or "message", last_id, buffer.removesuffix("\n")))
            kind, buffer = "", ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            buffer += value + "\n"
        elif field == "id" and "\0" not in value:
            last_id = value
        elif field == "retry" and value and set(value) <= set("0123456789"):
            retry = int(value)
    return events, last_id, retry


# ------------------------------------------------------------------------------------------------ encode


def test_an_event_on_the_wire() -> None:
    """Event, id, data, in this order, each on its line."""
    assert encode("chunk", "1.12", CHUNK) == f"event: chunk\nid: 1.12\ndata: {CHUNK}\n\n".encode()


def test_data_of_several_lines() -> None:
    assert encode("x", "1", "a\nb\r\nc\rd") == b"event: x\nid: 1\ndata: a\ndata: b\ndata: c\ndata: d\n\n"


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b"])
def test_names_and_ids_of_one_line(bad: str) -> None:
    for event, event_id in ((bad, "1"), ("x", bad)):
        with pytest.raises(ValueError):
            encode(event, event_id, "data")


@given(st.lists(st.tuples(LINE, LINE, TEXT), max_size=4), CUTS)
def test_what_is_encoded_is_read_back(events: list[tuple[str, str, str]], places: list[int]) -> None:
    """Line breaks in the data come back as line feeds."""
    wire = b"".join(encode(*event) for event in events)
    expected = [(name or "message", event_id, re.sub("\r\n|\r", "\n", data)) for name, event_id, data in events]
    assert parsed(wire, places) == expected


# ------------------------------------------------------------------------------------------------- parse


@given(STREAMS, CUTS)
def test_any_stream_in_any_pieces_is_read_by_the_book(stream: bytes, places: list[int]) -> None:
    parser = Parser()
    events = parsed(stream, places, parser)
    assert (events, parser.last_event_id, parser.retry) == by_the_book(stream)


@given(STREAMS)
def test_byte_by_byte(stream: bytes) -> None:
    assert parsed(stream, range(len(stream))) == parsed(stream)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "", "YHOO\n+2\n10")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
            [("message", "1", "first event"), ("message", "", "second event")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "", "\n")]),
        (b"data:test\n\ndata: test\n\n", [("message", "", "test"), ("message", "", "test")]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [("message", "", "a")]),
        (b"id: 7\n\nid: 8\0\ndata: a\n\n", [("message", "7", "a")]),
        (b"event: x\n\ndata: a\n\n", [("message", "", "a")]),
        (b"Data: a\ndata : b\n\n", []),
        (b"data: \xf0\x9f\n\n", [("message", "", "\ufffd")]),
    ],
    ids=["lines", "comment, ids", "empty", "one space", "bom", "NUL in an id", "no data", "names", "not UTF-8"],
)
def test_what_the_specification_shows(stream: bytes, events: list[tuple[str, str, str]]) -> None:
    assert parsed(stream) == events
    assert parsed(stream, range(len(stream))) == events


@pytest.mark.parametrize(("line", "retry"), [("retry: 1000", 1000), ("retry: 1e3", None), ("retry", None)])
def test_the_time_to_reconnect(line: str, retry: int | None) -> None:
    parser = Parser()
    assert parsed(f"{line}\n\n".encode(), parser=parser) == []
    assert parser.retry == retry


@pytest.mark.parametrize("line", [b"data: ", b": ", b"nothing", b"id: "])
def test_a_line_without_end_is_given_up(line: bytes) -> None:
    """Before more than the limit, and one piece, is in memory."""
    parser = Parser(limit=1_000)
    with pytest.raises(ResponseTooLarge):
        parsed(line + b"x" * 2_000, range(0, 2_000, 100), parser)


@pytest.mark.parametrize("line", [b"data\n", b"data: 12345\n"])
def test_an_event_without_end_is_given_up(line: bytes) -> None:
    parser = Parser(limit=1_000)
    with pytest.raises(ResponseTooLarge):
        parsed(line * 1_001, range(0, 20_000, len(line)), parser)


def test_a_long_stream_of_short_events_is_no_event_without_end() -> None:
    parser = Parser(limit=100)
    assert sum(1 for _ in range(1_000) for _ in parser.feed(b"data: 12345\n\n")) == 1_000


def test_a_long_line_in_small_pieces_takes_linear_time() -> None:
    """200,000 bytes one by one: quadratic work would take minutes."""
    data = b"data: " + b"x" * 200_000 + b"\n\n"
    assert len(parsed(data, range(len(data)))[0].data) == 200_000


# --------------------------------------------------------------------------------------- a job's events


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1.0", EventId(Place(1, 0), terminal=False)),
        ("12.345.end", EventId(Place(12, 345), terminal=True)),
        ("01.05", EventId(Place(1, 5), terminal=False)),
        ("999999999." + "9" * 15, EventId(Place(10**9 - 1, 10**15 - 1), terminal=False)),
    ],
)
def test_ids_of_events(text: str, found: EventId) -> None:
    assert EventId.parse(text) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1.", ".1", "0.5", "000.5", "1.-5", "-1.5", "1.5.END", "1.5.end.end", " 1.5", "1.5\n", "1.\xb2"),
        *("٣.5", "1" * 10 + ".5", "1." + "9" * 16),
    ],
)
def test_what_is_not_the_id_of_an_event(text: str) -> None:
    with pytest.raises(ValueError, match="not the id of an event"):
        EventId.parse(text)


def test_ids_sort_as_the_events_come() -> None:
    ids = ["1.0", "1.9", "1.10", "2.0", "2.3", "2.3.end", "3.0"]
    assert [EventId.parse(one) for one in ids] == sorted(map(EventId.parse, ids))


def chunk(text: str, position: int, epoch: int = 1) -> bytes:
    """A chunk that ends at ``position``."""
    event = ChunkEvent(content=text, channel=Channel.CONTENT, index=0, token_count=1)
    return encode("chunk", f"{epoch}.{position}", event.model_dump_json())


START_FRAME = encode("start", "1.0", START)
RESET_FRAME = encode("reset", "2.0", '{"attempt":2,"reason":"restart"}')


def told(events: JobEvents, *frames: bytes) -> list[StreamEvent]:
    return [event for frame in frames for _, event in events.feed(frame)]


def texts(found: list[StreamEvent]) -> list[str]:
    return [event.content for event in found if isinstance(event, ChunkEvent)]


def test_the_events_of_a_job_have_types() -> None:
    found = told(
        JobEvents(), START_FRAME, chunk("a🌊", 2), RESET_FRAME, chunk("b", 1, 2), encode("complete", "2.1.end", END)
    )
    assert [type(event) for event in found] == [StartEvent, ChunkEvent, ResetEvent, ChunkEvent, CompleteEvent]


def test_an_event_that_was_cut_counts_only_when_it_comes_whole() -> None:
    """A reader comes back with the id of the last whole event, and gets the rest."""
    events = JobEvents()
    assert texts(told(events, START_FRAME, chunk("ab", 2), chunk("cd", 4)[:-3])) == ["ab"]
    assert events.last_event_id == "1.2"
    events.connect()
    assert texts(told(events, chunk("cdef", 6))) == ["cdef"]


def test_a_start_that_comes_again_is_not_told_again() -> None:
    events = JobEvents()
    told(events, START_FRAME, chunk("ab", 2))
    events.connect()
    assert told(events, START_FRAME) == []
    assert events.last_event_id == "1.2"


@pytest.mark.parametrize(
    "frame",
    [
        chunk("ab", 2),
        chunk("c", 4),
        chunk("bc", 3),
        chunk("c", 3, epoch=2),
        encode("complete", "1.3.end", END),
        encode("chunk", "1.3", "{}"),
        encode("chunk", "1.3", "not JSON"),
        encode("chunk", "three", CHUNK),
        encode("chunk", "0.3", CHUNK),
    ],
    ids=["repeat", "gap", "overlap", "other epoch", "end too soon", "no fields", "no JSON", "bad id", "no epoch"],
)
def test_what_does_not_follow_is_refused(frame: bytes) -> None:
    """And the reader stays where it was."""
    events = JobEvents()
    told(events, START_FRAME, chunk("ab", 2))
    with pytest.raises(StreamBroken):
        told(events, frame)
    assert events.last_event_id == "1.2"
    events.connect()
    assert texts(told(events, chunk("c", 3))) == ["c"]


def test_a_reader_goes_on_from_an_id_of_another_process() -> None:
    assert texts(told(JobEvents(last_event_id="1.2"), chunk("c", 3))) == ["c"]
    with pytest.raises(StreamBroken):
        told(JobEvents(last_event_id="1.2"), chunk("c", 4))
    with pytest.raises(StreamBroken):
        JobEvents(last_event_id="1.2\r\nX-Evil: 1")


def test_a_reopened_job_goes_on_after_its_end() -> None:
    assert texts(told(JobEvents(last_event_id="1.2.end"), chunk("c", 3))) == ["c"]


def test_what_a_newer_service_adds_is_skipped() -> None:
    """Events of other names, and fields of other names."""
    end = '{"status":"completed","sha256":"00","mood":"fine"}'
    events = JobEvents()
    found = told(events, START_FRAME, encode("mood", "1.0", "[]"), encode("complete", "1.0.end", end))
    assert [type(event) for event in found] == [StartEvent, CompleteEvent]


def test_an_unknown_event_does_not_hide_that_text_is_missing() -> None:
    """Found by fuzzing: its id moved the reader past text that was never told, or back to text that was."""
    for unknown in (encode("mood", "1.4", "[]"), encode("mood", "1.0", "[]")):
        events = JobEvents()
        assert texts(told(events, START_FRAME, chunk("ab", 2), unknown)) == ["ab"]
        assert events.last_event_id == "1.2"
        for missing in (chunk("e", 5), chunk("ab", 2), encode("complete", "1.4.end", END)):
            with pytest.raises(StreamBroken):
                told(events, missing)
        assert texts(told(events, chunk("cd", 4))) == ["cd"]


def test_an_event_without_an_id_is_skipped() -> None:
    assert told(JobEvents(), f"event: chunk\ndata: {CHUNK}\n\n".encode()) == []


def test_the_place_in_the_queue_has_no_id_and_changes_no_place() -> None:
    """Before there is an id, and between two pieces of the text."""
    queued = encode("queued", None, '{"position":3,"expectedStartAt":"2026-01-02T03:04:05.678901Z"}')
    assert b"id:" not in queued
    events = JobEvents()
    assert [type(event) for event in told(events, queued)] == [QueuedEvent]
    assert events.last_event_id == ""
    assert [type(event) for event in told(events, chunk("ab", 2), queued, chunk("c", 3))] == [
        ChunkEvent,
        QueuedEvent,
        ChunkEvent,
    ]
    assert events.last_event_id == "1.3"
    with pytest.raises(StreamBroken):
        told(events, encode("queued", None, "{}"))
