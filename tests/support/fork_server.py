"""Starts the project's Python programs by forking a process that has imported their modules already.

    process = Program(("worker.py",), env=env, log=log)       # as subprocess.Popen(["python3", "worker.py"], …)

The tests start the service's programs hundreds of times, and most of each start is the same imports. The fork server is
the one of the standard library's multiprocessing. A program begins there as ``__main__`` of a process and a session of
its own, with its own environment. What belongs to the start of the interpreter (``LD_PRELOAD``, the variables of
Python itself, the command line that other processes see) is the server's: ``able`` says which starts it can take.

All processes end with the process that asked for them, also when that is killed.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from drill.processes import ROOT, die_with_parent

OF_THE_INTERPRETER = ("LD_PRELOAD", "PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONTRACEMALLOC", "PYTHONIOENCODING")
IMPORTED = (
    "gateway.__main__",
    "mistralai.client.chat",
    "simulator.__main__",
    "tests.support.storage_process",
    "worker",
)

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.support.fork_server", *IMPORTED])
_starting = threading.Lock()


def able(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether it is one of our programs (``python program.py …``, ``python -m module …``), and no more than that."""
    if sys.platform != "linux" or command[0] != sys.executable or any(name in env for name in OF_THE_INTERPRETER):
        return False
    return command[1].endswith(".py") or command[1] == "-m"


class Program:
    """What the tests use of a subprocess.Popen. Its output, errors too, is added to the file ``log``."""

    def __init__(self, arguments: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        self._arguments = arguments
        values = (list(arguments), dict(env), str(log))
        self._process = processes.Process(target=_run, args=values, daemon=True)
        with _starting:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout or 0)
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], env: dict[str, str], log: str) -> None:
    """Become a process as subprocess.Popen makes it, and run the program."""
    os.setsid()
    die_with_parent()
    with Path(log).open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(write_through="PYTHONUNBUFFERED" in env)
    sys.path[0:1] = [str(ROOT)]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.modules.pop(f"{arguments[1]}.__main__", None)  # runpy would warn that it was imported
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
