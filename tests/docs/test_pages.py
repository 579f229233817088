"""Every snippet in docs/ is executed: those that stand alone here, against a running service, the others in a test of
their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, RUN, Block, blocks, matches, pages
from tests.support.gateway import Gateway, gateway
from tests.support.needs import program
from tests.support.npm import installed
from tests.support.stack import OURS, ROOT, Stack, stack
from tests.v1.openai_clients import PYTHON

pytestmark = pytest.mark.long

SECONDS = 60
ELSEWHERE = {
    "batches.md": "tests/system/test_batch_client.py",
    "browser.md": "tests/browser/test_another_origin.py",
    "client.md": "tests/system/test_client.py",
    "conversations.md": "tests/gateway/test_conversations.py",
    "debug.md": "tests/cli/test_history.py",
    "events.md": "tests/system/test_events_page.py",
    "nexus.md": "tests/workflows/test_nexus.py",
    "receive-webhooks.md": "tests/system/test_receive_webhooks.py",
    "replay.md": "tests/gateway/test_replays.py",
    "schedules.md": "tests/gateway/test_schedules.py",
}
"""Pages whose snippets need more than a running service, and the tests that execute them."""
SECRET = "whsec_" + "c" * 32
USUAL = "usual"
OF_THEIR_OWN: dict[str, dict[str, dict[str, str]]] = {
    "costs.md": {"env": {"CHATJOBS_PRICES": "mistral-small-latest=0.1/0.3; EUR"}},
    "operations.md": {},
    "self-hosted-models.md": {
        "simulator": {"continues": "continue_final_message"},
        "env": {"CHATJOBS_CONTINUATION": "continue_final_message"},
    },
}
"""Pages whose snippets have a service of their own, and how its stack is started."""
NEEDS_KEY = "operations.md"
"""The page whose service has an API key, as one that others use."""
HERE = sorted(
    (block for path in pages() if path.name not in ELSEWHERE for block in blocks(path)),
    key=lambda block: (block.page in OF_THEIR_OWN, block.page, block.number),
)
"""The snippets of one service after the other; those of a page in their order, since later ones use earlier jobs."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the PATH: ``starter.py`` runs from everywhere, as in a checkout."""
    directory = tmp_path_factory.mktemp("docs-bin")
    program_file = directory / "starter.py"
    program_file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "starter.py"}" "$@"\n')
    program_file.chmod(0o755)
    return directory


class Services:
    """The services of the pages, one at a time: the next one ends the one before."""

    def __init__(self, programs: Path, directories: pytest.TempPathFactory) -> None:
        self._programs = programs
        self._directories = directories
        self._running: tuple[str, dict[str, str]] = ("", {})
        self._closing = ExitStack()

    def of(self, page: str) -> dict[str, str]:
        """The environment of somebody who uses and operates the page's service."""
        name = page if page in OF_THEIR_OWN else USUAL
        if self._running[0] != name:
            self.close()
            self._running = (name, self._start(name))
        return self._running[1]

    def close(self) -> None:
        self._closing.close()

    def _start(self, name: str) -> dict[str, str]:
        options = OF_THEIR_OWN.get(name, {})
        env = {"CHATJOBS_PORT": "0", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1", "WEBHOOK_SECRET": SECRET}
        env |= options.get("env", {})
        directory = self._directories.mktemp("docs")
        built = self._closing.enter_context(stack(directory, env=env, simulator=options.get("simulator")))
        door = gateway(built)
        keys = {"CHATJOBS_API_KEY": _key(built)} if name == NEEDS_KEY else {}
        return {**_environment(built, door), **keys, "PATH": f"{self._programs}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def services(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    opened = Services(programs, tmp_path_factory)
    yield opened
    opened.close()


def _environment(built: Stack, door: Gateway) -> dict[str, str]:
    """The settings of the service, and the project's programs as in a checkout."""
    return {
        **{name: value for name, value in built.env.items() if name.startswith(OURS) and name != "CHATJOBS_PORT"},
        "CHATJOBS_URL": door.url,
        "CHATJOBS_DATABASE_URL": built.database_url,
        "PYTHONPATH": str(ROOT),
        "CHATJOBS_PROJECT": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }


def _key(built: Stack) -> str:
    command = [sys.executable, "starter.py", "keys", "add", "--json"]
    made = subprocess.run(command, cwd=ROOT, env=built.env, capture_output=True, text=True, timeout=SECONDS, check=True)
    return str(json.loads(made.stdout)["key"])


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("docs-node")
    source = ROOT / "tests" / "v1" / "node"
    modules = installed(home, "the snippets in JavaScript were not run", source=source) / "node_modules"
    (modules / "chatjobs").symlink_to(ROOT / "clients" / "typescript")
    return modules


@pytest.mark.parametrize("block", HERE, ids=lambda block: block.name)
def test_a_snippet(services: Services, block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
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
    (tmp_path / ".curlrc").write_text("fail-with-body\nmax-time 50\n")  # an error of the service fails the snippet
    environment = {**services.of(block.page), "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr or done.stdout
    assert done.stdout.strip(), "a snippet shows something"
    if block.printed is not None:
        assert matches(done.stdout, block.printed), done.stdout


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
