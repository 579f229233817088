"""The small model as a server that speaks Mistral's wire, until the end of a block."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.real_model.install import HERE, HOME, MADE, WEIGHTS
from tests.support.needs import lacking, program
from tests.support.stack import Process, free_port, wait_until

LOADING_SECONDS = 300.0
"""Far more than loading takes on any machine that is still of use."""


@contextmanager
def real_model(directory: Path) -> Iterator[int]:
    """The port of a running server. Skips where the model is not installed."""
    node = program("node")
    if not MADE.exists():
        lacking("a small language model (make .venv/real_model/made brings it)", "no real answer was cut")
    shutil.copy(HERE / "server.mjs", HOME)  # beside its packages, where Node.js looks for them
    port = free_port()
    command = [node, str(HOME / "server.mjs"), str(HOME / WEIGHTS), str(port)]
    process = Process("model", command, env={"PATH": "/usr/bin:/bin"}, log=directory / "model.log", ready="listening")
    process.start(wait=False)
    try:
        wait_until(
            lambda: "listening" in process.output(), timeout=LOADING_SECONDS, give_up=lambda: not process.running
        )
        assert "listening" in process.output(), process.output()
        yield port
    finally:
        process.kill()
        sys.stdout.write(process.output()[-2000:])
