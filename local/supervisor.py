"""A supervisor of child processes: starts them, restarts those that die, and stops them in order.

The caller describes the processes and their readiness (local/stack.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from chatjobs.errors import ConfigurationError, bounded

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
PORTS_TRIED = 100

PROBE_SECONDS = 0.05
READY_SECONDS = 60.0
TRIES = 3
"""Deaths of a child that was never ready, after which it is not started again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
STEADY_SECONDS = 30.0
"""A child that ran so long is restarted after the first pause, not after a longer one."""
GRACE_SECONDS = 10.0
LEFTOVER_SECONDS = 10.0

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork: after it, only calls are safe


class Console:
    """Standard output for a person: lines begin on a line of their own, also in the middle of an answer."""

    def __init__(self) -> None:
        self._midline = False

    def line(self, text: str = "") -> None:
        self.write(("\n" if self._midline else "") + text + "\n")

    def write(self, text: str) -> None:
        if not text:
            return
        self._midline = not text.endswith("\n")
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:  # the terminal is closed, or `| head` has ended: the service goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ------------------------------------------------------------------------------------------- the data directory


class DataDirectory:
    """The directory that keeps the state between runs, with two locks.

    ``lock`` is the supervisor's; it is free as soon as that process has ended, however it ended. ``children.lock`` is
    handed down to the children and free once the last of them is gone: two Temporal servers on one file would steal
    its shard from each other, even for the moment that a killed one takes to die.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[str]
        self._children: IO[str]

    def claim(self) -> None:
        """Lock the directory until this process ends. Raises ConfigurationError, which names the owner."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and answers are private
            (self.path / "logs").mkdir(exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
            self._children = (self.path / "children.lock").open("a")
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} cannot be written ({error.strerror}); choose another directory with CHATJOBS_DATA_DIR"
            ) from None
        self._lock_directory()
        self._wait_for_leftovers()

    def _lock_directory(self) -> None:
        if not _locked(self._lock):
            self._lock.seek(0)
            pid = self._lock.read().strip()
            raise ConfigurationError(
                f"{self.path} is in use by another supervisor, process {pid}; stop that one (kill {pid}), or choose "
                "another directory with CHATJOBS_DATA_DIR"
            )
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def _wait_for_leftovers(self) -> None:
        deadline = time.monotonic() + LEFTOVER_SECONDS
        while not _locked(self._children):
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"Processes of an earlier run do not end; see which with `lsof {self._children.name}`, kill them, "
                    "and start again"
                )
            time.sleep(PROBE_SECONDS)

    @property
    def inherited(self) -> int:
        """The file descriptor that every child keeps open."""
        return self._children.fileno()

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def new_log(self, name: str) -> None:
        """Begin a log. The previous one is kept: it shows how the last run ended."""
        with contextlib.suppress(FileNotFoundError):
            self.log(name).replace(self.log(f"{name}.before"))

    def last_line(self, name: str) -> str:
        """The last line of a log that is not blank."""
        with contextlib.suppress(OSError), self.log(name).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4_096))
            lines = log.read().decode(errors="replace").splitlines()
            return next((bounded(line, 250) for line in reversed(lines) if line.strip()), "")
        return ""


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a file atomically: a reader never sees half of it."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    unfinished.replace(path)


# ------------------------------------------------------------------------------------------------------- ports


def free_port(usual: int) -> int:
    """The usual port, or the first free one after it. Raises ConfigurationError.

    Not a port of the system's choice: the system could assign that to another process during a restart.
    """
    for port in range(usual, usual + PORTS_TRIED):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise ConfigurationError(f"No port from {usual} to {usual + PORTS_TRIED - 1} is free; end what holds them")


async def accepts(port: int, pid: int) -> bool:
    """Whether that process, and no other one that took the port first, accepts connections there."""
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return sys.platform != "linux" or listens(pid, port)


def listens(pid: int, port: int) -> bool:
    """Whether the process listens on the port (proc(5), /proc/net/tcp)."""
    listening = "0A"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == listening and row[1].endswith(f":{port:04X}")}
    try:
        return any(_target(file) in sockets for file in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended
        return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed since it was listed
        return ""


# ---------------------------------------------------------------------------------------------------- children


@dataclass(frozen=True)
class Spec:
    """How to start a child. ``ready`` says whether the process with a given id does its work."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[int], Awaitable[bool]]
    grace_seconds: float = GRACE_SECONDS


class Child:
    """One process, restarted whenever it dies, until ``stop``."""

    def __init__(self, spec: Spec, data: DataDirectory, console: Console) -> None:
        self.spec = spec
        self._data = data
        self._console = console
        self._process: asyncio.subprocess.Process | None = None
        self._was_ready = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {spec.name}")

    async def ready(self) -> None:
        """Wait until the child does its work. Raises ConfigurationError if it never does."""
        waiting = asyncio.create_task(self._was_ready.wait())
        await asyncio.wait({waiting, self._keeper}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not self._was_ready.is_set():
            name, log = self.spec.name, self._data.log(self.spec.name)
            raise ConfigurationError(f"{name} does not start: {self._data.last_line(name)} (its log is {log})")

    async def stop(self, hurry: asyncio.Event) -> None:
        """End the child by SIGTERM, or by SIGKILL after the grace time or as soon as ``hurry`` is set."""
        self._keeper.cancel()
        await asyncio.wait({self._keeper})
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal(process, signal.SIGTERM)
        ended, hurried = asyncio.create_task(process.wait()), asyncio.create_task(hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=self.spec.grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not ended.done():
            self._console.line(f"{self.spec.name} does not stop by itself and is killed")
            _signal(process, signal.SIGKILL)
        await ended

    async def _keep(self) -> None:
        """Restart the child whenever it dies. Returns if it died TRIES times without ever being ready."""
        self._data.new_log(self.spec.name)
        pause, deaths = FIRST_PAUSE, 0
        while True:
            began = time.monotonic()
            end = await self._run_once()
            deaths += 1
            if deaths >= TRIES and not self._was_ready.is_set():
                return
            if time.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE
            self._console.line(f"{self.spec.name} {end}; it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _run_once(self) -> str:
        """Start the child and wait for its end, which is returned in words."""
        try:
            self._process = await self._spawn()
        except OSError as error:
            return f"cannot be started ({error.strerror})"
        announcing = asyncio.create_task(self._announce(self._process.pid))
        try:
            code = await self._process.wait()
        finally:
            announcing.cancel()
        return f"was killed (signal {-code})" if code < 0 else f"ended (exit code {code})"

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self._data.log(self.spec.name).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self.spec.command,
                cwd=ROOT,
                env=self.spec.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal reaches only the supervisor, which stops them in order
                pass_fds=(self._data.inherited,),
                preexec_fn=_dies_with_parent(),
            )

    async def _announce(self, pid: int) -> None:
        while not await self.spec.ready(pid):  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(PROBE_SECONDS)
        again = " again" if self._was_ready.is_set() else ""
        self._console.line(f"{self.spec.name} is up{again} (process {pid})")
        self._was_ready.set()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _dies_with_parent() -> Callable[[], None]:
    """A function for ``preexec_fn``: the kernel kills the child when its parent dies, also by kill -9 (Linux).

    It watches the parent's *thread*: children are started from the main one (prctl(2), PR_SET_PDEATHSIG).
    """
    parent = os.getpid()

    def request_signal() -> None:
        if LIBC is not None:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the call
                os._exit(1)

    return request_signal


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends (Linux)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """The child processes. They are stopped in the reverse order of their start."""

    def __init__(self, data: DataDirectory, console: Console) -> None:
        self._data = data
        self._console = console
        self._children: list[Child] = []
        self._hurry = asyncio.Event()
        self._stopping = False

    def start(self, spec: Spec) -> Child:
        child = Child(spec, self._data, self._console)
        self._children.append(child)
        return child

    @asynccontextmanager
    async def until_signal(self) -> AsyncIterator[None]:
        """Cancel the block at Ctrl-C, SIGTERM or SIGHUP, and stop the children at its end.

        A second signal, while they stop, kills them.
        """
        loop, block = asyncio.get_running_loop(), cast(asyncio.Task[Any], asyncio.current_task())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(number, self._on_signal, block)
        try:
            yield
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self._stopping = True
            for child in reversed(self._children):
                await child.stop(self._hurry)

    def _on_signal(self, block: asyncio.Task[Any]) -> None:
        if self._stopping:
            self._hurry.set()
        else:
            self._stopping = True
            self._console.line("stopping; Ctrl-C once more stops at once")
            block.cancel()
