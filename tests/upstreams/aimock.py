"""aimock (npm) as the model: it speaks OpenAI's routes, from fixtures that match a prompt and the number of a call."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.support.needs import program
from tests.support.npm import installed
from tests.support.stack import Process, free_port

HERE = Path(__file__).parent


@contextmanager
def aimock(directory: Path, fixtures: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The address of a running server, until the end of the block."""
    node = program("node")
    home = installed(directory / "aimock", "the worker was not tried against aimock", source=HERE)
    (home / "fixtures.json").write_text(json.dumps({"fixtures": list(fixtures)}))
    port = free_port()
    entry = home / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    command = [node, str(entry), "--port", str(port), "--fixtures", str(home / "fixtures.json"), "--strict"]
    command += ["--latency", "10", "--chunk-size", "6", "--validate-on-load"]
    process = Process("aimock", command, env={"PATH": "/usr/bin:/bin"}, log=directory / "aimock.log", ready="")
    process.start(wait=False)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        sys.stdout.write(process.output()[-2000:])


def _wait(url: str, process: Process, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            httpx2.get(url, trust_env=False, timeout=5).raise_for_status()
            return
        except httpx2.HTTPError:
            assert process.running, process.output()
            assert time.monotonic() < deadline, "aimock does not answer"
            time.sleep(0.05)
