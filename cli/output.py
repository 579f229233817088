"""Standard output and standard error, and what may be written there."""

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
"""Columns where nobody looks at a screen: a program that reads a table wants whole values."""
NARROW = 60
"""Columns below which a table would break its words."""
CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def safe(text: str) -> str:
    """Text from outside for a terminal: an answer must not move the cursor or retitle the window."""
    return text.translate(CONTROLS)


class Screen(Console):
    """A console that leaves it to the program what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Standard output as it is, without rich's own ideas about what words mean.

    Nor about how wide it is: rich takes a terminal without a name (TERM unset, or dumb) for one of 80 columns.
    """
    columns, lines = get_terminal_size()
    width = columns if sys.stdout.isatty() else PLAIN_WIDTH
    return Screen(highlight=False, markup=False, emoji=False, width=width, height=lines)


class Records:
    """Rows with names for their columns: a table, and on a narrow screen a block of lines for each row.

    ``least``: columns that the table takes at least; on a screen with fewer it is blocks.
    """

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
    """To standard output, at once: somebody may be reading along."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def place_in_file() -> int | None:
    """Where the next text will stand, if standard output is a file."""
    descriptor = sys.stdout.fileno()
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    appending = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    return status.st_size if appending else os.lseek(descriptor, 0, os.SEEK_CUR)


def local_time(moment: datetime | None) -> str:
    """In the time zone of whoever looks."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else ""


def seconds(span: timedelta) -> str:
    total = span.total_seconds()
    return f"{total:.2f} s" if total < 60 else str(timedelta(seconds=round(total)))
