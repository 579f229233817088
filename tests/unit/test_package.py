"""The package that other services install: ``pip install .`` into an empty environment, without the service."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, gateway
from tests.support.needs import lacking
from tests.support.snippets import CLIENT_EXAMPLES, output, snippets
from tests.support.stack import ROOT, stack

pytestmark = pytest.mark.long

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
RECEIVED = """
from datetime import UTC, datetime

from chatjobs.webhooks import sign, verify

body = (
    b'{"event":"chat.cancelled","timestamp":"2026-01-02T03:04:05.000000Z","data":{"jobId":"job_1","requestId":"r",'
    b'"status":"cancelled","model":"m","completedAt":"2026-01-02T03:04:05.000000Z","sha256":"","statusUrl":"/"}}'
)
for secret in ("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "a plain secret"):
    now = datetime.now(UTC)
    headers = sign(body, webhook_id="whe_1", timestamp=now, body_timestamp="", secrets=secret)
    print(receiver(secret).verify(body, headers)["event"], verify(body, headers, secrets=secret, now=now).data.job_id)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the package with its dependencies, and nothing else."""
    directory = tmp_path_factory.mktemp("package")
    venv.create(directory / "env")
    python = directory / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--no-input", "--quiet"]
    reachable = subprocess.run([*pip, "download", "--no-deps", "-d", directory, "hatchling"], capture_output=True)
    if reachable.returncode:
        lacking("a package registry", "the package is built with hatchling")
    done = subprocess.run([*pip, "install", ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture(scope="module")
def door(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A running service, after the installation: without a registry none is started."""
    with stack(tmp_path_factory.mktemp("service"), env={"CHATJOBS_PORT": "0"}) as started:
        yield gateway(started)


def test_it_is_complete_and_brings_nothing_of_the_service(installed: Path, tmp_path: Path) -> None:
    assert output(USED, python=installed, cwd=tmp_path) == "Hello\n"


@pytest.mark.parametrize(("number", "shown"), CLIENT_EXAMPLES.values(), ids=CLIENT_EXAMPLES.keys())
def test_the_examples_of_the_client_run_with_it(
    installed: Path, door: Gateway, tmp_path: Path, number: int, shown: str
) -> None:
    code = snippets("client.md", "python")[number]
    assert shown in output(code, python=installed, cwd=tmp_path, env={"CHATJOBS_URL": door.url})


def test_the_receiver_with_a_library_runs_with_it(installed: Path, tmp_path: Path) -> None:
    """The receiver's library is a dependency of the package; the other receiver needs FastAPI."""
    (library,) = snippets("receive-webhooks.md", "python library")
    assert output(library + RECEIVED, python=installed, cwd=tmp_path) == "chat.cancelled job_1\n" * 2
