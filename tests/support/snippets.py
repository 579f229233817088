"""The code in the pages of docs/, and a run of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.stack import ROOT

CLIENT_EXAMPLES = {
    "stream": (0, "mistral-small-latest begins"),
    "asynchronous": (1, "completed"),
    "map": (2, "\n4 "),
    "batch": (3, "5 completed, 0 failed\nnumber-0 status_code=200"),
}
"""The number of each Python example in docs/client.md, and a part of what it prints."""


def snippets(page: str, language: str) -> list[str]:
    """The blocks of code in a page whose first line names exactly this language."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def output(
    code: str, *, python: Path | str = sys.executable, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> str:
    """What a program prints, run by an interpreter with this environment alone; it has 20 s and must exit with 0."""
    given = {"NO_PROXY": "127.0.0.1", **(env or {})}
    done = subprocess.run([python, "-c", code], cwd=cwd, env=given, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout
