"""Every snippet in docs/ is executed: those that stand alone here, against a running service, the others in a test of
their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, RUN, Block, blocks, matches, pages
from tests.support.gateway import Gateway, gateway
from tests.support.needs import program
from tests.support.npm import installed
from tests.support.stack import ROOT, Stack, stack
from tests.v1.conftest import PYTHON

pytestmark = pytest.mark.long

SECONDS = 60
ELSEWHERE = {
    "batches.md": "tests/system/test_batch_client.py",
    "client.md": "tests/system/test_client.py",
    "debug.md": "tests/cli/test_history.py",
    "receive-webhooks.md": "tests/system/test_receive_webhooks.py",
    "replay.md": "tests/gateway/test_replays.py",
    "schedules.md": "tests/gateway/test_schedules.py",
}
"""Pages whose snippets need more than a running service, and the tests that execute them."""
HERE = [block for path in pages() if path.name not in ELSEWHERE for block in blocks(path)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}
    with stack(tmp_path_factory.mktemp("docs"), env=env) as started:
        yield started


@pytest.fixture(scope="module")
def door(built: Stack) -> Gateway:
    return gateway(built)


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("docs-node")
    source = ROOT / "tests" / "v1" / "node"
    return installed(home, "the snippets in JavaScript were not run", source=source) / "node_modules"


@pytest.mark.parametrize("block", HERE, ids=lambda block: block.name)
def test_a_snippet(block: Block, built: Stack, door: Gateway, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """It ends well, and prints what the page says."""
    path = tmp_path / f"snippet.{RUN[block.language]}"
    path.write_text(block.code)
    match block.language:
        case "python":
            command = [str(PYTHON if "clients" in block.environment else sys.executable), str(path)]
        case "js":
            command = [program("node"), str(path)]
            (tmp_path / "node_modules").symlink_to(request.getfixturevalue("node_modules"))
        case _:
            command = ["bash", "-euo", "pipefail", str(path)]
    home = {name: os.environ[name] for name in ("PATH",)}
    environment = {**home, "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", **_service(built, door)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "a snippet shows something"
    if block.printed is not None:
        assert matches(done.stdout, block.printed), done.stdout


def _service(built: Stack, door: Gateway) -> dict[str, str]:
    """The environment of somebody who uses the service, with the project's programs in the PATH of a checkout."""
    return {
        "CHATJOBS_URL": door.url,
        "PYTHONPATH": str(ROOT),
        "TEMPORAL_ADDRESS": built.temporal_address,
        "CHATJOBS_PROJECT": str(ROOT),
    }


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items(), ids=ELSEWHERE)
def test_the_snippets_of_a_page_are_executed_by_its_test(page: str, test: str) -> None:
    """The test takes them from the page, by number or by mark."""
    assert re.search(rf'snippets\(\s*"{re.escape(page)}"', (ROOT / test).read_text())


def test_an_output_that_differs_is_noticed() -> None:
    assert matches("job_1 is done\n", "job_… is done\n")
    assert not matches("job_1 is done, nearly\n", "job_… is done\n")


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    assert [path.name for path in pages() if path.name != "README.md" and f"({path.name})" not in index] == []


def test_bash_is_there() -> None:
    assert shutil.which("bash")
    assert shutil.which("curl")
