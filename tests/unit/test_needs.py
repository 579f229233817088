"""A machine that lacks something: tests/setup, and the last line of a run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.needs import PROGRAMS, last_line, reason
from tests.support.stack import ROOT

SETUP = ROOT / "tests" / "setup"
NEEDED_BY_IT = ("bash", "env", "dirname", "id", "uname", "paste", "cat", "python3")
SKIPPING = f"""
import pytest


@pytest.mark.parametrize("number", range(3))
def test_it(number):
    pytest.skip({reason("root")!r})


def test_fine():
    pass
"""


def bare(directory: Path, *programs: str) -> dict[str, str]:
    """An environment that has nothing but these programs and what the script itself needs."""
    directory.mkdir(exist_ok=True)
    for name in (*NEEDED_BY_IT, *programs):
        path = shutil.which(name)
        (directory / name).symlink_to(path or sys.executable)
    return {"PATH": str(directory)}


def test_the_script_installs_what_the_tests_ask_for() -> None:
    listed = re.search(r"PROGRAMS='\n(.*?)'", SETUP.read_text(), re.DOTALL)
    assert listed
    assert {line.split()[0] for line in listed[1].splitlines()} == {*PROGRAMS, "make"}


@pytest.mark.parametrize(
    ("manager", "command"), [("dnf", "dnf install"), ("pacman", "pacman -S"), ("", "install with")]
)
def test_elsewhere_it_changes_nothing_and_says_what_to_type(tmp_path: Path, manager: str, command: str) -> None:
    """/usr/sbin is searched in any case, so that only what is nowhere counts as missing."""
    tool = tmp_path / "bin"
    env = bare(tool, *([] if not manager else [manager]))
    done = subprocess.run([SETUP, "--command"], env=env, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert command in done.stdout
    assert "chromium" in done.stdout
    assert "nodejs" in done.stdout
    done = subprocess.run([SETUP], env=env, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "")
    assert "the tests that need them are skipped: chromium" in done.stderr
    assert subprocess.run([SETUP, "--strict"], env=env, capture_output=True, timeout=20).returncode == 1


def test_it_is_quick_where_nothing_is_missing() -> None:
    if subprocess.run([SETUP, "--command"], capture_output=True, text=True, timeout=20).stdout:
        pytest.skip(reason("programs", "this machine lacks some"))
    times = []
    for _ in range(3):
        begin = time.monotonic()
        done = subprocess.run([SETUP], capture_output=True, text=True, timeout=20)
        times.append(time.monotonic() - begin)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert min(times) < 1


def test_no_line_where_nothing_was_skipped() -> None:
    assert last_line([]) is None


def test_the_last_line_counts_by_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", bare(tmp_path / "bin", "dnf")["PATH"])
    wanting = [reason("nginx")] * 2 + [f"Skipped: {reason('node')}", reason("root", "it mounts a disk"), "a whim"]
    line = last_line(wanting)
    assert line
    assert line.startswith(
        "5 tests were skipped: 2 for want of nginx, 1 for want of node, 1 for want of root, "
        "1 for reasons that ARGS=-rs shows. This brings the programs: "
    )
    assert "dnf install" in line
    assert last_line([reason("root")]) == "1 test was skipped: 1 for want of root."


@pytest.mark.parametrize("processes", ["0", "2"])
def test_it_is_the_last_line_that_is_printed(tmp_path: Path, processes: str) -> None:
    """Of a real run, with and without worker processes."""
    (tmp_path / "test_some.py").write_text(SKIPPING)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "tests.conftest",
        "-n",
        processes,
    ]
    done = subprocess.run(
        [*command, "-n", processes, str(tmp_path)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed, 3 skipped" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 tests were skipped: 3 for want of root."
