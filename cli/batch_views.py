"""A batch on a screen: its page, the list, and its progress while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatjobs.contracts import Batch, BatchStatus
from cli.output import COLOURS, Records, complain, console, local_time, one_line, safe, seconds, write
from cli.views import REFRESHES_PER_SECOND, Printer, money

PLAIN_SECONDS = 5.0
"""Between two lines of progress where there is no screen."""
EVENTS = {BatchStatus.COMPLETED: "complete", BatchStatus.CANCELLED: "cancelled", BatchStatus.FAILED: "error"}


class BatchView:
    """A display of a batch while it runs. This one shows its end alone."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._printer = Printer(as_json=as_json)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def notice(self, text: str) -> None:
        """Show a message that is no state."""
        self._printer.notice(text)

    def waits(self, reason: str) -> None:
        """Show why the batch makes no progress; called again while that lasts."""
        self._printer.waits(reason)

    def show(self, batch: Batch) -> None:
        """Show the state as it is now."""

    def ended(self, batch: Batch) -> None:
        """Show the outcome."""
        if self._as_json:
            write(f"{one_line(batch.model_dump(mode='json'))}\n")
            return
        for line in outcome(batch):
            self.notice(line)


def batch_view(*, as_json: bool) -> BatchView:
    """The view for standard output: JSON if requested, live on a screen, else plain text."""
    if as_json:
        return BatchJsonView(as_json=True)
    screen = console()
    return (
        BatchLiveView(screen) if sys.stdout.isatty() and not screen.is_dumb_terminal else BatchPlainView(as_json=False)
    )


class BatchJsonView(BatchView):
    """Prints the states as JSON lines, each once."""

    _last: Batch | None = None

    def show(self, batch: Batch) -> None:
        if batch != self._last:
            data = batch.model_dump(mode="json")
            write(f"{one_line({'event': EVENTS.get(batch.status, 'progress'), 'data': data})}\n")
        self._last = batch

    def ended(self, batch: Batch) -> None:
        """The last state is the outcome."""


class BatchPlainView(BatchView):
    """Prints a line whenever the counts have changed, every few seconds at the most."""

    _line = ""
    _at = 0.0

    def show(self, batch: Batch) -> None:
        line = progress_line(batch)
        if batch.status.terminal or line == self._line or time.monotonic() - self._at < PLAIN_SECONDS:
            return
        self._line, self._at = line, time.monotonic()
        write(f"{line}\n")

    def ended(self, batch: Batch) -> None:
        for line in outcome(batch):
            write(f"{line}\n")


class BatchLiveView(BatchView):
    """One line that is kept up to date."""

    def __init__(self, screen: Console) -> None:
        super().__init__(as_json=False)
        self._console = screen
        self._batch: Batch | None = None
        self._waits: str | None = None
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

    def __rich__(self) -> RenderableType:
        facts = [progress_line(self._batch) if self._batch else "", *([self._waits] if self._waits else [])]
        return Text(" · ".join([*facts, "Ctrl-C detaches"]), style="cyan", no_wrap=True, overflow="ellipsis")

    def show(self, batch: Batch) -> None:
        if self._batch is not None and batch.counts != self._batch.counts:
            self._waits = None
        self._batch = batch

    def notice(self, text: str) -> None:
        self._console.print(Text(safe(text), style="dim"), soft_wrap=True)

    def waits(self, reason: str) -> None:
        self._waits = safe(reason)
        if not sys.stderr.isatty():
            complain(f"starter: waiting: {safe(reason)}")

    def ended(self, batch: Batch) -> None:
        first, *others = outcome(batch)
        self._console.print(Text(first, style=colour(batch)), soft_wrap=True)
        for line in others:
            self._console.print(Text(line, style="dim"), soft_wrap=True)


def progress_line(batch: Batch) -> str:
    """``in progress · 120 of 1000 (12 %) · 20 run · 3 failed (2 stall, 1 rate_limited) · 42.0/s · ends in 0:00:21``."""
    counts = batch.counts
    done = counts.completed + counts.failed + counts.cancelled
    facts = [batch.status.replace("_", " "), f"{done} of {counts.total} ({100 * done // counts.total} %)"]
    if counts.running:
        facts.append(f"{counts.running} run")
    if counts.failed:
        facts.append(f"{counts.failed} failed ({_errors(batch)})")
    if batch.rate_per_second:
        facts.append(f"{batch.rate_per_second:.1f}/s")
    if batch.expected_end_at:
        left = max(batch.expected_end_at - datetime.now(UTC), timedelta())
        facts.append(f"ends in {seconds(timedelta(seconds=round(left.total_seconds())))}")
    return safe(" · ".join(facts))


def outcome(batch: Batch) -> Sequence[str]:
    """Lines that say how a batch ended, and where its results are."""
    counts = batch.counts
    facts = [f"{batch.status}: {counts.completed} of {counts.total} completed"]
    facts += [f"{counts.failed} failed ({_errors(batch)})"] if counts.failed else []
    facts += [f"{counts.cancelled} cancelled"] if counts.cancelled else []
    facts += [f"{batch.usage.total_tokens} tokens"] if batch.usage else []
    facts += [money(batch.cost)] if batch.cost else []
    if batch.completed_at and batch.started_at:
        facts.append(f"in {seconds(batch.completed_at - batch.started_at)}")
    lines = [safe(" · ".join(facts))]
    if batch.error:
        lines.append(safe(f"{batch.error.message} ({batch.error.code})"))
    lines.append(f"its answers: starter.py batch output {batch.batch_id}")
    if counts.failed or counts.cancelled:
        lines.append(f"the others: starter.py batch errors {batch.batch_id}")
    return lines


def batch_page(batch: Batch) -> RenderableType:
    """All details of a batch."""
    head = Text(batch.batch_id, style="bold").append(f"  {batch.status}", colour(batch))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _facts(batch):
        if value:
            table.add_row(name, safe(value))
    return Group(head, table)


def _facts(batch: Batch) -> Iterator[tuple[str, str]]:
    counts = batch.counts
    yield "name", batch.name or ""
    yield "created", local_time(batch.created_at)
    yield "started", local_time(batch.started_at)
    yield "ended", local_time(batch.completed_at)
    yield "items", str(counts.total)
    for name in ("queued", "running", "completed", "failed", "cancelled"):
        number = getattr(counts, name)
        yield name, str(number) if number else ""
    yield "errors", _errors(batch)
    if batch.usage:
        usage = batch.usage
        yield "tokens", f"{usage.prompt_tokens} in, {usage.completion_tokens} out, {usage.total_tokens} in all"
    yield "cost", money(batch.cost)
    yield "pace", f"{batch.rate_per_second:.1f} items/s" if batch.rate_per_second else ""
    yield "expected end", local_time(batch.expected_end_at)
    yield "concurrency", str(batch.concurrency or "")
    yield "lane", batch.lane if batch.lane != "live" else ""
    yield "deadline", local_time(batch.deadline)
    if batch.error:
        yield "error", f"{batch.error.message} ({batch.error.code})"
    yield "run", batch.temporal_url or ""


def batch_list(batches: Sequence[Batch]) -> RenderableType:
    """One line per batch."""
    table = Records("batch", "status", "created", "done", "failed", "name", overflow="ellipsis", least=80)
    for batch in batches:
        counts = batch.counts
        done = f"{counts.completed + counts.failed + counts.cancelled} of {counts.total}"
        created = f"{batch.created_at.astimezone():%m-%d %H:%M:%S}"
        status = Text(batch.status.value, style=colour(batch))
        table.add_row(batch.batch_id, status, created, done, str(counts.failed or ""), safe(batch.name or ""))
    return table


def _errors(batch: Batch) -> str:
    """The number of failed jobs by the code of their error."""
    return ", ".join(f"{number} {code}" for code, number in batch.errors_by_code.items())


def colour(batch: Batch) -> str:
    if batch.status is BatchStatus.COMPLETED and batch.counts.failed:
        return COLOURS["incomplete"]
    return COLOURS.get(batch.status, "cyan")
