"""All benchmarks: `make bench` prints a table and writes bench/results.json. A single one: `python -m bench.jobs`.

``--full`` takes some 12 minutes: it also measures the alternatives, cuts readers off 10,000 times, and fills a store
with 100,000 jobs.

Each module runs in a process of its own, one after the other, and measures its baseline in the same run: machines are
noisy, ratios less so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from bench.table import Row, table

MODULES = ("decoding", "transcript", "jobs", "batch", "cancel", "waste", "door", "lag", "readers")
LONG = ("growth", "continuation")
"""Only with ``--full``."""
RESULTS = Path(__file__).parent / "results.json"
MODULE_SECONDS = 300
MODULE_SECONDS_FULL = 900


def main() -> int:
    """Run all modules. The exit code is 0 if each ran, whether or not it met its targets."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="also the alternatives, and 10,000 cuts; some 12 minutes")
    began, full = time.monotonic(), parser.parse_args().full
    rows: list[Row] = []
    failed = []
    for module in (*MODULES, *(LONG if full else ())):
        print(f"… {module}", file=sys.stderr, flush=True)
        found = measured(module, full=full)
        failed += [] if found else [module]
        rows += found
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    print(f"{len(rows)} figures in {time.monotonic() - began:.0f} s, written to bench/results.json")
    for module in failed:
        print(f"bench.{module} gave no figures", file=sys.stderr)
    return 1 if failed else 0


def measured(module: str, *, full: bool) -> list[Row]:
    """The rows of a module, from a fresh interpreter."""
    name = "run_full" if full else "run"
    program = f"import json, bench.{module} as m; print(json.dumps((getattr(m, '{name}', None) or m.run)()))"
    most = MODULE_SECONDS_FULL if full else MODULE_SECONDS
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=most, check=True, text=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"bench.{module}: {error}", file=sys.stderr)
        return []
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows


if __name__ == "__main__":
    sys.exit(main())
