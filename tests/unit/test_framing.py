"""Slices to frames, and frames to what is seen. No process, no database."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from itertools import accumulate, count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chatjobs.contracts import Attempt, Channel, ChunkEvent, Job, JobError, JobStatus, ResetEvent
from cli.output import safe
from cli.views import LiveView, Pace, PlainView
from dispatch.stream_events import Frame, Framing, encoded, last_frame
from domain.values import Slice, TextRun

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def make_job(**fields: Any) -> Job:
    known: dict[str, Any] = {"job_id": "job_1", "request_id": "r", "model": "m", "created_at": NOW}
    return Job(**({"status": JobStatus.QUEUED} | known | fields))


def make_slice(*texts: str, position: int | None = None, **fields: Any) -> Slice:
    """Text of the channel ``content``; one that begins with ``?`` is reasoning."""
    begin = 0 if position is None else position - sum(map(len, texts))
    ends = [begin + end for end in accumulate(map(len, texts))]
    runs = tuple(
        TextRun(end, Channel.REASONING if text.startswith("?") else Channel.CONTENT, text, tokens)
        for tokens, (end, text) in enumerate(zip(ends, texts, strict=True), 1)
    )
    known: dict[str, Any] = {
        "job_id": "job_1",
        "epoch": 1,
        "position": sum(map(len, texts)) if position is None else position,
        "runs": runs,
        "reset": False,
        "status": JobStatus.IN_PROGRESS,
        "attempt": 1,
        "reset_reason": None,
        "started": True,
    }
    return Slice(**(known | fields))


def ids(frames: list[Frame]) -> list[tuple[str, str | None]]:
    return [(frame.event.type, frame.id) for frame in frames]


def chunk(text: str, channel: Channel = Channel.CONTENT, tokens: int = 1) -> Frame:
    return Frame("1.1", ChunkEvent(content=text, channel=channel, index=0, token_count=tokens))


def reset() -> Frame:
    return Frame("2.0", ResetEvent(attempt=2, reason="cut"))


def test_ids_are_positions_after_the_frame() -> None:
    framing = Framing(make_job(), resumed=False)
    first = list(framing.frames(make_slice("?why", "because")))
    assert ids(first) == [("start", "1.0"), ("chunk", "1.4"), ("chunk", "1.11")]
    second = list(framing.frames(make_slice(" so", position=14)))
    assert ids(second) == [("chunk", "1.14")]
    assert isinstance(second[0].event, ChunkEvent)
    assert second[0].event.index == 2


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(texts, max_size=4), st.booleans(), st.booleans())
def test_a_chunk_on_the_wire_is_its_event(texts: list[str], resumed: bool, reset: bool) -> None:
    """Gateways write the bytes of a chunk without making the event; they are the same for any text."""
    odd = make_slice('?\x00\x1f\x7f\u2028\u2029\ufeff \r\n\t"\\/\b\f é 😀', epoch=2)
    by_frames, by_bytes = (Framing(make_job(started_at=NOW), resumed=resumed) for _ in range(2))
    for piece in (make_slice(*texts, reset=reset), odd):
        assert by_bytes.encoded(piece) == b"".join(map(encoded, by_frames.frames(piece)))


def test_a_job_that_never_started_has_no_start() -> None:
    framing = Framing(make_job(), resumed=False)
    assert list(framing.frames(make_slice(started=False, status=JobStatus.CANCELLED))) == []


def test_a_resumed_reader_hears_no_second_start_but_of_a_reset() -> None:
    framing = Framing(make_job(), resumed=True)
    frames = list(framing.frames(make_slice("anew", epoch=3, attempt=2, reset=True, reset_reason="tools")))
    assert ids(frames) == [("reset", "3.0"), ("chunk", "3.4")]
    assert frames[0].event == ResetEvent(attempt=2, reason="tools")


@pytest.mark.parametrize(
    ("status", "name"),
    [("completed", "complete"), ("incomplete", "complete"), ("failed", "error"), ("cancelled", "cancelled")],
)
def test_every_outcome_has_its_terminal_frame(status: str, name: str) -> None:
    error = JobError(code="upstream_cut", message="cut", retryable=True) if status == "failed" else None
    frame = last_frame(make_job(status=JobStatus(status), epoch=2, position=7, sha256="0", error=error))
    assert (frame.event.type, frame.id) == (name, "2.7.end")


def test_plain_text_in_a_pipe_tells_of_a_new_beginning_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    plain = PlainView(reasoning=False, begin=None)
    for frame in (chunk("old"), chunk("hidden", Channel.REASONING), reset(), chunk("new")):
        plain.show(frame)
    shown = capsys.readouterr()
    assert (shown.out, "starts over" in shown.err) == ("oldnew", True)


def test_live_text_is_wrapped_at_words_and_nothing_is_lost() -> None:
    screen = Console(file=io.StringIO(), width=32, force_terminal=True, color_system=None, highlight=False)
    words = [f"word{number} " for number in range(12)]
    with LiveView(screen, make_job()) as live:
        for word in [*words, "\n\nend"]:
            live.show(chunk(word))
        live.show(reset())
        live.show(chunk("another"))
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    lines = [line.strip() for line in shown.split("\x1b[2K")[-1].splitlines()]
    assert lines[-1] == "another"
    assert "starts over" in shown
    assert all(word.strip() in shown for word in words)


def test_pace_is_measured_from_what_is_seen_and_from_the_ledger() -> None:
    ticks = count(100.0, 0.5)
    pace = Pace(make_job(), clock=lambda: next(ticks))
    assert list(pace.facts())[:2] == ["0 tokens", "– tokens/s"]
    for tokens in (10, 20, 40):
        pace.record(tokens)
    assert pace.per_second == 30
    ended = make_job(attempts=(Attempt(number=1, started_at=NOW, first_token_ms=250),))
    assert list(Pace(ended).facts())[-1] == "first token 0.25 s"


def test_control_characters_do_not_reach_a_screen() -> None:
    assert safe("a\tb\nc\x1b[2Jd\x9be\x7f") == "a\tb\nc\ufffd[2Jd\ufffde\ufffd"


def test_the_beginning_of_an_older_epoch_is_void() -> None:
    """Who has seen no text of it lacks nothing, but holds ids of that epoch."""
    framing = Framing(make_job(), resumed=True, epoch=1)
    assert ids(list(framing.frames(make_slice(epoch=2))))[0] == ("reset", "2.0")
