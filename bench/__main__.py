"""All benchmarks: a table, and bench/results.json. `make bench`; a single one: `python -m bench.jobs`.

Each module runs in a process of its own, one after the other, and measures its baseline in the same run: machines are
noisy, ratios less so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from bench.table import Row, table

MODULES = ("decoding", "transcript", "jobs", "waste")
RESULTS = Path(__file__).parent / "results.json"
MODULE_SECONDS = 150


def main() -> int:
    """The exit code: 0 if every module ran, whether or not it met its targets."""
    began = time.monotonic()
    rows: list[Row] = []
    failed = []
    for module in MODULES:
        print(f"… {module}", file=sys.stderr, flush=True)
        found = measured(module)
        failed += [] if found else [module]
        rows += found
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    print(f"{len(rows)} figures in {time.monotonic() - began:.0f} s, written to bench/results.json")
    for module in failed:
        print(f"bench.{module} gave no figures", file=sys.stderr)
    return 1 if failed else 0


def measured(module: str) -> list[Row]:
    """The rows of a module, from a fresh interpreter."""
    program = f"import json, bench.{module} as m; print(json.dumps(m.run()))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=MODULE_SECONDS, check=True, text=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"bench.{module}: {error}", file=sys.stderr)
        return []
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows


if __name__ == "__main__":
    sys.exit(main())
