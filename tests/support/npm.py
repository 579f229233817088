"""npm packages that tests use, in the versions of a lock file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.needs import lacking, program

NODE = Path(__file__).parent / "node"
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ERR_SOCKET_TIMEOUT")


def installed(home: Path, lost: str, *, source: Path = NODE) -> Path:
    """A copy of ``source`` with its packages. Skips, saying what is ``lost``, where npm or its registry is missing."""
    program("node")
    errors = install(program("npm"), source, home)
    if any(code in errors for code in OFFLINE):
        lacking("the npm registry", lost)
    assert not errors, errors
    return home


def install(npm: str, source: Path, home: Path) -> str:
    """Copy ``source`` to ``home`` and install the packages of its lock file. Returns npm's errors, empty if it worked.

    Raises subprocess.TimeoutExpired.
    """
    shutil.copytree(source, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=60, check=False)
    return done.stderr if done.returncode else ""
