"""The pages of docs/, their blocks of code, and how each language is run.

The first word after the fence is the language; the second one the environment: without one, that of ``chatjobs``;
``clients`` has the official clients of /v1. A block of ``text`` that follows a block of code is what it prints, with
``…`` for what varies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.stack import ROOT

DOCS = ROOT / "docs"
RUN = {"python": "py", "js": "mjs", "sh": "sh"}
"""The languages that are run, and the ends of their files' names. All others only show something."""
_BLOCK = re.compile(r"^```([a-z]*)(?: ([a-z ]+))?\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code: number ``number`` of its page, from 0."""

    page: str
    number: int
    language: str
    environment: str
    code: str
    printed: str | None

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"


def blocks(path: Path) -> list[Block]:
    """All blocks of a page that are run."""
    found = _BLOCK.findall(path.read_text())
    return [
        Block(path.name, number, language, environment, code, printed or None)
        for number, (language, environment, code, printed) in enumerate(found)
        if language in RUN
    ]


def pages() -> list[Path]:
    return sorted(path for path in DOCS.glob("*.md"))


def matches(printed: str, expected: str) -> bool:
    """Whether an output is as a page shows it."""
    pattern = ".*".join(map(re.escape, expected.strip().split("…")))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None
