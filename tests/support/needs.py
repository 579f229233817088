"""What a machine may lack: tests that need it are skipped, and the last line of a run says for want of what.

``tests/setup`` installs the programs. The other things (root, a registry that answers) are for people to provide.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

import pytest

from tests.support.stack import ROOT

SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian keeps servers such as nginx; not in every user's PATH."""
PROGRAMS = ("chromium", "nginx", "node", "npm", "cc")
"""What ``tests/setup`` installs."""
PREFIX = "needs "


def find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=SYSTEM_PATH)


def program(name: str) -> str:
    """The path of a program that ``tests/setup`` installs. Skips the test where it is missing."""
    assert name in PROGRAMS, f"tests/setup does not install {name}"
    return find(name) or lacking(name)


def lacking(what: str, why: str = "") -> NoReturn:
    """Skip the test for want of ``what``, which the last line of the run names."""
    pytest.skip(reason(what, why))


def reason(what: str, why: str = "") -> str:
    return f"{PREFIX}{what}: {why}" if why else f"{PREFIX}{what}"


def last_line(reasons: Iterable[str]) -> str | None:
    """The last line of a run, from the reasons of its skipped tests. None when nothing was skipped."""
    wants = Counter(_want(text) for text in reasons)
    if not (total := wants.total()):
        return None
    parts = [f"{count} for want of {want}" for want, count in sorted(wants.items()) if want]
    if other := wants[""]:
        parts.append(f"{other} for reasons that ARGS=-rs shows")
    line = f"{total} {'test was' if total == 1 else 'tests were'} skipped: {', '.join(parts)}."
    if any(want in PROGRAMS for want in wants) and (command := install_command()):
        line += f" This brings the programs: {command}"
    return line


def install_command() -> str:
    """What a person types here to have the missing programs. Empty where none is missing."""
    asked = subprocess.run([ROOT / "tests" / "setup", "--command"], capture_output=True, text=True, timeout=20)
    return asked.stdout.strip()


def _want(text: str) -> str:
    found = re.match(rf"(?:Skipped: )?{PREFIX}([^:]+)", text)
    return found[1].strip() if found else ""
