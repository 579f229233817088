"""llama.cpp's own server (xllamacpp on PyPI: its C++ code, as a module of Python) with the small model of the tests.

It is installed into the environment of the other upstreams, ``make .venv/upstreams/made``; the model is that of
tests/real_model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.real_model.install import HOME, MADE, WEIGHTS
from tests.support.needs import lacking
from tests.support.stack import ROOT, Process, free_port, wait_until

ENVIRONMENT = ROOT / ".venv" / "upstreams"
CONTEXT_TOKENS = 512
"""Of each of the two answers that the server gives at once."""
LOADING_SECONDS = 300.0
SERVER = """
import sys, time
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.port, parameters.hostnames = int(sys.argv[2]), ["127.0.0.1"]
parameters.n_parallel, parameters.n_ctx = 2, 2 * int(sys.argv[3])
parameters.cpuparams.n_threads = 1
server = xllamacpp.Server(parameters)
print("serving", server.listening_address, flush=True)
while True:
    time.sleep(3600)
"""


@contextmanager
def llamacpp(directory: Path) -> Iterator[str]:
    """The address of a running server, until the end of the block. Skips where it or the model is not installed."""
    if not MADE.exists():
        lacking("a small language model (make .venv/real_model/made brings it)", "llama.cpp has nothing to say")
    if not list(ENVIRONMENT.glob("lib/python*/site-packages/xllamacpp")):
        lacking("xllamacpp", "make .venv/upstreams/made installs it")
    port = free_port()
    command = [str(ENVIRONMENT / "bin" / "python"), "-c", SERVER, str(HOME / WEIGHTS), str(port), str(CONTEXT_TOKENS)]
    process = Process("llamacpp", command, env={"PATH": "/usr/bin:/bin"}, log=directory / "llamacpp.log", ready="")
    process.start(wait=False)
    try:
        wait_until(lambda: "serving" in process.output(), timeout=LOADING_SECONDS, give_up=lambda: not process.running)
        assert "serving" in process.output(), process.output()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        sys.stdout.write(process.output()[-2000:])
