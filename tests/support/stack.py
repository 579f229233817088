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

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from drill import processes
from drill.processes import LOG_TAIL
from drill.processes import ROOT as ROOT
from drill.processes import free_port as free_port
from drill.processes import wait_until as wait_until
from local.temporal_server import command
from tests.support import fork_server, migrated
from tests.support.simulator_process import SimulatorProcess

OURS = ("CHATJOBS_", "TEMPORAL_", "MISTRAL_", "WEBHOOK_", "OTEL_")
WEBHOOK_SECRET = "a secret for tests"


class Process(processes.Process):
    """The same; what the fork server is able to start comes from there, in a third of the time."""

    def _spawn(self, out: IO[bytes]) -> processes.Running:
        if fork_server.able(self._command, self._env):
            return fork_server.Program(self._command[1:], env=self._env, log=self.log)
        return super()._spawn(out)


class Stack:
    """See the module. ``env`` is the environment of all its processes, and of those that a test starts."""

    def __init__(self, directory: Path, env: Mapping[str, str], temporal: Mapping[str, Any] | None = None) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.temporal_address = f"127.0.0.1:{free_port()}"
        self.simulator_port = free_port()
        self.env = {**_environment(self), **env}
        if not self.env.get("CHATJOBS_DATABASE_URL"):
            migrated.sqlite_file(self.data_dir / "chatjobs.db")
        self.processes: list[Process] = []
        self.temporal = self._temporal(temporal or {})
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

    def _temporal(self, options: Mapping[str, Any]) -> Process:
        port = int(self.temporal_address.split(":")[1])
        # What survives a kill -9 needs no fsync; only a power loss would tell.
        started = command(**{"database": self.directory / "temporal.db", "port": port, "durable": False, **options})
        return self._process("temporal", started, "Temporal Server:")

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
    temporal: Mapping[str, Any] | None = None,
) -> Iterator[Stack]:
    """A stack until the end of the block.

    ``simulator`` has the options of its command line; by default it answers at once and as fast as it can.
    ``temporal``: other options of its command line (devserver.command).
    ``env`` is added to the environment of all processes; without ``database_url`` the database is a SQLite file.
    """
    database = {"CHATJOBS_DATABASE_URL": database_url} if database_url else {}
    directory.mkdir(parents=True, exist_ok=True)
    built = Stack(directory, database | dict(env or {}), temporal)
    try:
        built.start(simulator or {}, workers)
        yield built
    except BaseException:
        built._shown.clear()
        sys.stdout.write(built.news())
        raise
    finally:
        built.kill_all()


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
        "CHATJOBS_CONTINUATION": "prefix",
        "WEBHOOK_SECRET": WEBHOOK_SECRET,
        "MISTRAL_REQUESTS_PER_SECOND": "1000",  # the limiter has tests of its own
        "PYTHONUNBUFFERED": "1",
    }
