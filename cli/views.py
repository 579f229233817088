"""The stream of a job as JSON lines, as plain text, or live on a screen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, Self, assert_never

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from chatjobs.contracts import (
    CancelledEvent,
    Channel,
    ChunkEvent,
    CompleteEvent,
    Cost,
    ErrorEvent,
    Job,
    JobStatus,
    QueuedEvent,
    ResetEvent,
    StartEvent,
)
from cli.output import COLOURS, complain, console, offset_in_file, one_line, safe, seconds, write
from cli.waiting import queue_position
from dispatch.stream_events import Frame

REFRESHES_PER_SECOND = 10
STARTS_OVER = "— the answer starts over —"


class View(Protocol):
    """A display of a job while it runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, frame: Frame) -> None:
        """Show the next frame of the stream."""
        ...

    def notice(self, text: str) -> None:
        """Show a message that is not part of the answer."""
        ...

    def waits(self, reason: str) -> None:
        """Show why the job makes no progress; called again while that lasts."""
        ...

    def ended(self, job: Job) -> None:
        """Show the job's outcome, after its last frame."""
        ...


def view_for(*, as_json: bool, job: Job, reasoning: bool) -> View:
    """The view for standard output: JSON if requested, live on a screen, else plain text."""
    if as_json:
        return JsonView(as_json=True)
    screen = console()
    if sys.stdout.isatty() and not screen.is_dumb_terminal:
        return LiveView(screen, job)
    return PlainView(reasoning=reasoning, begin=offset_in_file())


class Printer:
    """Prints notices and outcomes on standard error, and nothing of the stream."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, frame: Frame) -> None:
        pass

    def notice(self, text: str) -> None:
        complain(one_line({"notice": text}) if self._as_json else f"starter: {safe(text)}")

    def waits(self, reason: str) -> None:
        self.notice(f"waiting: {reason}")

    def ended(self, job: Job) -> None:
        if not self._as_json and (job.status is not JobStatus.COMPLETED or job.tool_calls):
            self.notice("; ".join(outcome(job)))


class JsonView(Printer):
    """Prints the events as JSON lines, with the wire's fields."""

    def show(self, frame: Frame) -> None:
        data = frame.event.model_dump(mode="json")
        write(f"{one_line({'event': frame.event.type, 'id': frame.id, 'data': data})}\n")


class PlainView(Printer):
    """Prints the answer on standard output and nothing else, so that ``> file`` holds exactly the answer."""

    def __init__(self, *, reasoning: bool, begin: int | None) -> None:
        """``begin``: the offset of our text if standard output is a file, which is truncated there at a reset."""
        super().__init__(as_json=False)
        self._channels = set(Channel) if reasoning else {Channel.CONTENT}
        self._begin = begin
        self._channel: Channel | None = None

    def __exit__(self, *_: object) -> None:
        if sys.stdout.isatty() and self._channel:
            write("\n")

    def show(self, frame: Frame) -> None:
        match frame.event:
            case ChunkEvent() as chunk if chunk.channel in self._channels:
                between = "\n\n" if self._channel not in (None, chunk.channel) else ""
                self._channel = chunk.channel
                write(between + (safe(chunk.content) if sys.stdout.isatty() else chunk.content))
            case ResetEvent():
                self._start_over()
            case _:
                pass  # ``ended`` shows the outcome

    def _start_over(self) -> None:
        if self._begin is not None:
            os.ftruncate(sys.stdout.fileno(), self._begin)
            os.lseek(sys.stdout.fileno(), self._begin, os.SEEK_SET)
        elif self._channel and sys.stdout.isatty():
            write("\n")
        self._channel = None
        self.notice(STARTS_OVER)


class LiveView:
    """A live display: whole lines scroll, and the unfinished line and the progress stay below them."""

    def __init__(self, screen: Console, job: Job) -> None:
        self._console = screen
        self._job = job
        self._pace = Pace(job)
        self._status = job.status
        self._attempt = 0
        self._place: QueuedEvent | None = None
        self._waits: str | None = None
        self._line = Text()
        self._channel: Channel | None = None
        self._live = Live(
            self,
            console=screen,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._finish_line()

    def show(self, frame: Frame) -> None:
        self._place = self._waits = None  # any other frame ends the wait
        match frame.event:
            case QueuedEvent() as place:
                self._place = place
            case StartEvent(attempt=attempt):
                self._status, self._attempt = JobStatus.IN_PROGRESS, attempt
            case ChunkEvent() as chunk:
                self._pace.record(chunk.token_count)
                self._write(chunk)
            case ResetEvent(attempt=attempt):
                self._finish_line()
                self._attempt, self._channel = attempt, None
                self._pace = Pace(self._job)
                self._console.print(Text(STARTS_OVER, style="bold yellow"))
            case CompleteEvent() | ErrorEvent() | CancelledEvent():
                pass  # ``ended`` shows it
            case never:
                assert_never(never)

    def _write(self, chunk: ChunkEvent) -> None:
        if self._channel not in (None, chunk.channel):
            self._finish_line()
            self._console.print()
        self._channel = chunk.channel
        style = "dim" if chunk.channel is Channel.REASONING else ""
        text = self._line.copy().append(safe(chunk.content), style)  # a copy: another thread may draw the original
        *whole, last = text.split("\n", allow_blank=True) or [Text()]
        *wrapped, self._line = last.wrap(self._console, self._console.width) or [Text()]
        for line in (*whole, *wrapped):
            self._console.print(line)

    def _finish_line(self) -> None:
        line, self._line = self._line, Text()
        if line:
            self._console.print(line)

    def __rich__(self) -> RenderableType:
        """The unfinished line and the line of progress, as they are when drawn."""
        place = self._place
        waits = queue_position(place) if place else self._waits
        facts = [self._status.replace("_", " "), *([waits] if waits else self._pace.facts())]
        if self._attempt > 1:
            facts.append(f"attempt {self._attempt}")
        status = Text(" · ".join([*facts, "Ctrl-C detaches"]), style="cyan", no_wrap=True, overflow="ellipsis")
        return Group(self._line, status) if self._line else status

    def notice(self, text: str) -> None:
        self._finish_line()
        self._console.print(Text(safe(text), style="dim"), soft_wrap=True)

    def waits(self, reason: str) -> None:
        self._waits = safe(reason)
        if not sys.stderr.isatty():
            complain(f"starter: waiting: {safe(reason)}")

    def ended(self, job: Job) -> None:
        first, *others = outcome(job, self._pace)
        self._console.print(Text(safe(first), style=COLOURS.get(job.status, "")), soft_wrap=True)
        for line in others:
            self._console.print(Text(safe(line), style="dim"), soft_wrap=True)


class Pace:
    """The measured rate of an answer's tokens. The time to the first token begins when the job was accepted."""

    def __init__(self, job: Job, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._job = job
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)
        self._first_token = _first_token(job)

    def record(self, tokens: int) -> None:
        self._last = self._clock(), tokens
        if self._first is None:
            self._first = self._last
            if not self._job.position and self._first_token is None:
                self._first_token = datetime.now(UTC) - self._job.created_at

    @property
    def tokens(self) -> int:
        return self._last[1]

    @property
    def per_second(self) -> float | None:
        """Tokens per second; None before two moments can be compared."""
        if self._first is None or self._last[0] <= self._first[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    def facts(self, tokens: int | None = None, per_second: float | None = None) -> Iterable[str]:
        """Parts of a line of progress. Given figures take precedence over the measured ones."""
        rate = per_second or self.per_second
        yield f"{self.tokens if tokens is None else tokens} tokens"
        yield f"{rate:.1f} tokens/s" if rate else "– tokens/s"
        yield f"first token {seconds(self._first_token)}" if self._first_token else "first token –"


def outcome(job: Job, pace: Pace | None = None) -> Sequence[str]:
    """Lines that say how a job ended, and what to do about it."""
    if job.error:
        return [f"{job.status}: {job.error.message} ({job.error.code})", advice(job)]
    facts = [job.status.value, *(_figures(job, pace) if pace else ())]
    if job.finish_reason and job.status is not JobStatus.COMPLETED:
        facts.append(f"the model stopped: {job.finish_reason}")
    if job.tool_calls:
        facts.append(f"{len(job.tool_calls)} tool calls")
    return [" · ".join(facts), f"everything about it: starter.py show {job.job_id}"]


def _figures(job: Job, pace: Pace) -> Iterable[str]:
    rates = [attempt.tokens_per_second for attempt in job.attempts if attempt.tokens_per_second]
    known = Pace(job) if _first_token(job) else pace
    tokens = job.usage.completion_tokens if job.usage else pace.tokens
    return known.facts(tokens, rates[-1] if rates else pace.per_second)


def money(cost: Cost | None) -> str:
    """``0.000123 EUR``, with ``~`` before an estimate; nothing without a cost."""
    return f"{'~' if cost.estimated else ''}{cost.amount} {cost.currency}" if cost else ""


def advice(job: Job) -> str:
    """What to do about a failed job."""
    if job.error and job.error.retryable:
        return f"try again: starter.py replay {job.job_id}"
    return f"correct it and try again: starter.py replay {job.job_id} --set FIELD=JSON"


def _first_token(job: Job) -> timedelta | None:
    """The time from acceptance to the first token, by the ledger of attempts."""
    for attempt in job.attempts:
        if attempt.first_token_ms is not None:
            return attempt.started_at + timedelta(milliseconds=attempt.first_token_ms) - job.created_at
    return None
