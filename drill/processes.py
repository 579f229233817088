"""Processes that the drill and the tests start, kill, freeze and restart."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
READY_SECONDS = 30.0
LOG_TAIL = 4_000
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork: after it, only calls are safe


class Running(Protocol):
    """The methods of subprocess.Popen that are used."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Process:
    """A process that can be killed and restarted. ``ready`` is a text in its log that says that it works."""

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, ready: str) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._env = env
        self._ready = ready
        self._begin = 0
        self._popen: Running | None = None

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def popen(self) -> Running:
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start, and wait until it is ready."""
        assert not self.running, f"{self.name} runs already"
        self._begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self._popen = self._spawn(out)
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.wait_for_log(self._ready)

    def wait_for_log(self, text: str, *, timeout: float = READY_SECONDS) -> str:
        """The first line with the text since the last start; waits for it. Raises AssertionError."""

        def found() -> str | None:
            lines = self.output().splitlines()
            return next((line for line in lines if text in line), None)

        line = wait_until(found, timeout=timeout, give_up=lambda: not self.running)
        assert line is not None, f"{self.name} did not say {text!r}; it said:\n{self.output()[-LOG_TAIL:]}"
        return line

    def output(self) -> str:
        """The log since the last start."""
        with self.log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self._end(signal.SIGKILL, timeout=10)

    def stop(self, *, timeout: float = 30) -> int:
        """SIGTERM, and wait for the end. Returns the exit code."""
        return self._end(signal.SIGTERM, timeout=timeout)

    def freeze(self) -> None:
        """SIGSTOP: the process exists, and does nothing."""
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """kill -9, and start again."""
        self.kill()
        self.start()

    def _spawn(self, out: IO[bytes]) -> Running:
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches only pytest or the drill
            preexec_fn=die_with_parent,
        )

    def _end(self, number: signal.Signals, *, timeout: float) -> int:
        if self.running:
            self.popen.send_signal(number)
        return self.popen.wait(timeout)


def wait_until(
    look: Callable[[], T], *, timeout: float = 10, give_up: Callable[[], bool] = lambda: False, pause: float = 0.02
) -> T:
    """The first true result of ``look``; its last one after ``timeout`` seconds or once ``give_up`` returns true."""
    deadline = time.monotonic() + timeout
    while True:
        gave_up = give_up()  # called first, so that ``look`` sees what was written before the end
        if (answer := look()) or gave_up or time.monotonic() > deadline:
            return answer
        time.sleep(pause)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends (Linux)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
