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
    npm = program("npm")
    shutil.copytree(source, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=home, capture_output=True, text=True, timeout=60, check=False)
    if any(code in done.stderr for code in OFFLINE):
        lacking("the npm registry", lost)
    assert done.returncode == 0, done.stderr
    return home
