"""The end of processes that have used the Temporal SDK."""

from __future__ import annotations

import subprocess
import sys

import pytest

from drill.processes import ROOT

LEFT = """
import asyncio, sys
from domain.process_exit import exit_now
print("said", end="")
print("told", end="", file=sys.stderr)
{before}
exit_now({code})
"""


def left(code: int, before: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LEFT.format(code=code, before=before)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("code", [0, 1, 130])
def test_what_was_written_goes_out_before_the_end(code: int) -> None:
    done = left(code)
    assert (done.returncode, done.stdout, done.stderr) == (code, "said", "told")


def test_closed_streams_do_not_change_the_code() -> None:
    assert left(3, "sys.stdout.close(); sys.stderr.close()").returncode == 3
    program = LEFT.format(code=3, before="")
    script = f"unset PYTHONUNBUFFERED; {sys.executable} -c '{program}' | true; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", script], cwd=ROOT, timeout=60, check=False).returncode == 3
