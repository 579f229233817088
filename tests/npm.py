"""The npm packages of tests/node, in the versions of its lock file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = Path(__file__).parent / "node"
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ERR_SOCKET_TIMEOUT")


def installed(home: Path, lost: str) -> Path:
    """A copy of tests/node with its packages. Skips, saying what is ``lost``, where npm or its registry is missing."""
    npm = shutil.which("npm")
    if not shutil.which("node") or not npm:
        pytest.skip(f"node and npm are not on this machine: {lost}")
    shutil.copytree(NODE, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=home, capture_output=True, text=True, timeout=60, check=False)
    if any(code in done.stderr for code in OFFLINE):
        pytest.skip(f"the npm registry is not reachable: {lost}")
    assert done.returncode == 0, done.stderr
    return home
