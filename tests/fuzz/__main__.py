"""Fuzz one parser after the other: ``python -m tests.fuzz [--seconds 300] [TARGET …]``.

Each runs in a process of its own, under libFuzzer with coverage (atheris), from the inputs in corpus/. An input that a
target does not stand is written to ``.fuzz/`` and named; it belongs into corpus/ once it is mended.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOUND = HERE.parent.parent / ".fuzz"
LIMITS = ("-max_len=4096", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1")
"""An input takes 10 s and 1 GB at most; more of either is a finding."""


def main() -> int:
    names = sorted(path.name for path in (HERE / "corpus").iterdir())
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(names)}; all by default")
    arguments.add_argument("--seconds", type=int, default=300, help="for each target")
    arguments.add_argument(
        "--seed", type=int, default=0, help="makes a run repeatable; 0, the default, takes another each time"
    )
    arguments.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if unknown := set(given.targets) - set(names):
        arguments.error(f"no such target: {', '.join(sorted(unknown))}")
    if given.child:
        fuzz(given.targets[0], given.seconds, given.seed)
    failed = [name for name in given.targets or names if not stands(name, given.seconds, given.seed)]
    for name in failed:
        print(f"{name}: an input was found that it does not stand; see {FOUND / name}")
    return bool(failed)


def stands(name: str, seconds: int, seed: int) -> bool:
    print(f"{name}: {seconds} s", flush=True)
    (FOUND / name / "corpus").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", "--child", "--seconds", str(seconds), "--seed", str(seed), name]
    log = FOUND / name / "log"
    with log.open("wb") as out:
        done = subprocess.run(command, stdout=out, stderr=out, timeout=seconds + 300)
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-60:] if done.returncode else [line for line in lines if "number_of_executed" in line]))
    return done.returncode == 0


def fuzz(name: str, seconds: int, seed: int) -> None:
    """Does not return: libFuzzer ends the process."""
    # Only here: `make fuzz` installs it, and `make test` runs without.
    atheris = importlib.import_module("atheris")

    with atheris.instrument_imports(include=["chatjobs", "providers", "httpx_sse"]):
        from tests.fuzz.targets import TARGETS
    home = FOUND / name
    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={home}/", *LIMITS]
    atheris.Setup([sys.argv[0], *options, str(home / "corpus"), str(HERE / "corpus" / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
