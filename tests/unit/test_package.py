"""The package that other services install: ``pip install .`` into an empty environment, without the service."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

from tests.support.needs import lacking
from tests.support.stack import ROOT

USED = """
import importlib.util, sys
import chatjobs.client, chatjobs.contracts, chatjobs.errors, chatjobs.sse, chatjobs.webhooks
from pathlib import Path
assert "site-packages" in chatjobs.__file__, chatjobs.__file__
assert (Path(chatjobs.__file__).parent / "py.typed").exists()
for room in ("domain", "storage", "gateway", "worker", "starter"):
    assert importlib.util.find_spec(room) is None, room
for library in ("temporalio", "sqlalchemy", "fastapi", "mistralai", "structlog", "typer"):
    assert importlib.util.find_spec(library) is None, library
from importlib.metadata import metadata
assert metadata("chatjobs")["License-Expression"] == "MIT"
print(chatjobs.contracts.ChatRequest(messages=[{"role": "user", "content": "Hello"}]).messages[0].content)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the package, and nothing else that was asked for."""
    directory = tmp_path_factory.mktemp("package")
    venv.create(directory / "env", with_pip=True)
    python = directory / "env" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    reachable = subprocess.run([*pip, "download", "--no-deps", "-d", directory, "hatchling"], capture_output=True)
    if reachable.returncode:
        lacking("a package registry", "the package is built with hatchling")
    done = subprocess.run([*pip, "install", ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


def test_it_is_complete_and_brings_nothing_of_the_service(installed: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([installed, "-c", USED], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Hello\n"), done.stderr
