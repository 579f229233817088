"""Writing to standard output and standard error: safe text, tables, formats."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from shutil import get_terminal_size
from typing import Any

from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

COLOURS = {"completed": "green", "incomplete": "yellow", "failed": "red", "cancelled": "magenta", "delivered": "green"}
PLAIN_WIDTH = 1_000
"""Columns if standard output is not a screen: a program that reads a table needs whole values."""
NARROW = 60
"""Columns below which a table would break its words."""
CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def safe(text: str) -> str:
    """Text from outside without control characters, which could move the cursor or retitle the window."""
    return text.translate(CONTROLS)


class Screen(Console):
    """A console that raises for a closed pipe, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Standard output without rich's highlighting, and with the terminal's real width.

    rich assumes 80 columns for a terminal without a name (TERM unset, or dumb).
    """
    columns, lines = get_terminal_size()
    width = columns if sys.stdout.isatty() else PLAIN_WIDTH
    return Screen(highlight=False, markup=False, emoji=False, width=width, height=lines)


class Records:
    """Rows with named columns: a table, or on a screen narrower than ``least`` columns a block of lines per row."""

    def __init__(self, *names: str, overflow: OverflowMethod = "fold", least: int = NARROW) -> None:
        self.table = Table(box=None, pad_edge=False, header_style="dim")
        for name in names:
            self.table.add_column(name, overflow=overflow)
        self._names = names
        self._least = least
        self._rows: list[tuple[str | Text, ...]] = []

    def add_row(self, *values: str | Text) -> None:
        self._rows.append(values)
        self.table.add_row(*values)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if options.max_width >= self._least:
            yield self.table
            return
        for number, row in enumerate(self._rows):
            if number:
                yield ""
            block = Table.grid(padding=(0, 1))
            block.add_column(style="dim")
            block.add_column(overflow="fold")
            for name, value in zip(self._names[1:], row[1:], strict=False):
                if value:
                    block.add_row(name, value)
            yield row[0]  # alone, so that an id fits on a line and can be copied
            yield block


def one_line(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


def write(text: str) -> None:
    """Write to standard output and flush, so that a reader sees it at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def offset_in_file() -> int | None:
    """The offset of the next write, if standard output is a file."""
    descriptor = sys.stdout.fileno()
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    appending = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    return status.st_size if appending else os.lseek(descriptor, 0, os.SEEK_CUR)


def local_time(moment: datetime | None) -> str:
    """A time in the local time zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else ""


def seconds(span: timedelta) -> str:
    total = span.total_seconds()
    return f"{total:.2f} s" if total < 60 else str(timedelta(seconds=round(total)))
