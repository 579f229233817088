"""Both commands of the README, as they are written there, on a machine that has nothing but what the README asks for.

The tests are steps of one story and run in the order of the file: an ordinary user first, then root.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.containers.debian import Machine, debian
from tests.support.needs import PROGRAMS
from tests.support.stack import ROOT, wait_until

pytestmark = pytest.mark.timeout(1800)

PACKAGES = ("python3", "python3-venv", "make", "git", "ca-certificates")
"""What the README asks for, git for the clone, and the certificates of the registries."""
USER = "ada"
HOME = f"/home/{USER}"
PROJECT = f"{HOME}/chatjobs"
ONE_OF_EACH_KIND = (
    "test_nothing_is_held_back "
    "or test_a_chat_shows_its_answer_as_it_appears "
    "or test_the_npm_package_verifies_what_we_sign "
    "or (test_receive_webhooks and js and whsec_) "
    "or (test_a_wall_clock_that_jumps and -1)"
)
MAKE_TEST = ("make", "test", f"ARGS=-m 'long or not long' -k '{ONE_OF_EACH_KIND}'")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with debian(tmp_path_factory.mktemp("debian"), PACKAGES) as built:
        built.add_user(USER)
        _copy_project(built.view / PROJECT.lstrip("/"))
        done = built.run("chown", "--recursive", f"{USER}:{USER}", PROJECT, timeout=60)
        assert done.returncode == 0, done.stdout
        yield built


def _copy_project(target: Path) -> None:
    """The files of the project as they are now, committed or not, as a clone would have them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def test_the_readme_names_these_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert re.search(r"^make run  ", text, re.MULTILINE)
    assert re.search(r"^make test  ", text, re.MULTILINE)


def test_make_run_shows_an_answer_and_stops_with_ctrl_c(machine: Machine, tmp_path: Path) -> None:
    before = machine.packages()
    log = tmp_path / "output"
    command = machine.command("make", "run", user=USER, directory=PROJECT)
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        assert wait_until(
            lambda: re.search(r"^ready ", log.read_text(), re.MULTILINE),
            timeout=400,
            give_up=lambda: running.poll() is not None,
        ), log.read_text()
        output = log.read_text()
        assert "\nstatus   completed\n" in output
        url = re.search(r"^chatjobs (http://\S+)", output, re.MULTILINE)
        assert url, output
        assert httpx2.get(f"{url[1]}/readyz", trust_env=False, timeout=10).status_code == 200
        assert "<title>" in httpx2.get(url[1], trust_env=False, timeout=10).text
        # Ctrl-C reaches every process of the terminal's foreground group. nsenter itself is not part of the scene.
        for process in psutil.Process(running.pid).children(recursive=True):
            if process.name() == "make" or "-m local" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGINT)
        running.wait(30)
        assert "\nstopped\n" in log.read_text()
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()
    assert machine.packages() == before, "make run installed Debian packages"


def test_make_test_says_what_is_missing_and_what_brings_it(machine: Machine) -> None:
    """An ordinary user cannot install anything."""
    done = machine.run(*MAKE_TEST, timeout=900, user=USER, directory=PROJECT)
    assert done.returncode == 0, done.stdout
    assert "apt-get" not in done.stdout
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"(\d+) tests were skipped: (.+)\. This brings the programs: sudo tests/setup", last)
    assert found, done.stdout
    wants = re.findall(r"\d+ for want of (\w+)", found[2])
    assert {"chromium", "nginx", "node", "cc"} <= set(wants)
    assert re.search(r"\b(\d+) skipped in ", done.stdout) or f"{found[1]} skipped" in done.stdout


def test_make_test_as_root_brings_it_and_skips_nothing(machine: Machine) -> None:
    before = machine.packages()
    done = machine.run(*MAKE_TEST, timeout=900, directory=PROJECT)
    assert done.returncode == 0, done.stdout
    assert {"chromium", "nginx", "nodejs", "npm", "gcc"} <= machine.packages() - before
    assert re.fullmatch(r"\d+ passed in .+", done.stdout.splitlines()[-1]), done.stdout
    assert "skipped" not in done.stdout


def test_the_second_time_nothing_is_left_to_install(machine: Machine) -> None:
    done = machine.run("bash", "-c", "time -p tests/setup", timeout=60, directory=PROJECT)
    assert done.returncode == 0, done.stdout
    real = re.fullmatch(r"real (\S+)\nuser \S+\nsys \S+\n", done.stdout)
    assert real, f"it says something: {done.stdout}"
    assert float(real[1]) < 1
    for program in PROGRAMS:
        assert machine.run("sh", "-c", f"command -v {program}", timeout=10).returncode == 0
