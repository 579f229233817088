"""The service as processes that the drill breaks: Temporal, simulator, workers, gateways."""

from __future__ import annotations

import base64
import json
import os
import resource
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from drill.processes import ROOT, Process, free_port
from local.temporal_server import binary, command

HOST = "127.0.0.1"
OURS = ("CHATJOBS_", "TEMPORAL_", "MISTRAL_", "WEBHOOK_", "OTEL_")
HEARTBEAT_SECONDS = 3
TENANTS = ("red", "blue")


@dataclass
class Event:
    """An action of the drill, at a unix time. ``cuts``: it may have ended a call of the model."""

    at: float
    what: str
    kills: int = 0
    cuts: bool = True


@dataclass
class DrillStack:
    """``api_key`` of the model and ``secret`` of the webhooks must appear nowhere: the auditor searches for them."""

    directory: Path
    workers: int
    gateways: int
    database_url: str | None
    api_key: str = field(default_factory=lambda: f"key-{secrets.token_hex(16)}")
    secret: str = field(default_factory=lambda: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    keys: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = self.directory / "data"
        self.temporal_port, self.simulator_port = free_port(), free_port()
        self.gateway_ports = [free_port() for _ in range(self.gateways)]
        self.simulator_url = f"http://{HOST}:{self.simulator_port}"
        self.gateway_urls = [f"http://{HOST}:{port}" for port in self.gateway_ports]
        self.database = self.database_url or f"sqlite:///{self.data / 'chatjobs.db'}"
        self.environment = self._environment()
        self.temporal = self._process(
            "temporal",
            command(self.directory / "temporal.db", port=self.temporal_port, durable=False),
            "Temporal Server:",
        )
        simulator = f"-m simulator --port {self.simulator_port} --first-token 0.05:0.3 --rate 40:90"
        self.simulator = self._python("simulator", simulator.split(), "listening on")
        self.worker_processes = [
            self._python(f"worker-{n + 1}", ["worker.py"], "worker ready") for n in range(self.workers)
        ]
        self.gateway_processes = [
            self._python(f"gateway-{n + 1}", ["-m", "gateway"], "gateway listening on", CHATJOBS_PORT=str(port))
            for n, port in enumerate(self.gateway_ports)
        ]

    def _environment(self) -> dict[str, str]:
        """The environment without inherited settings of the service."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        environment = kept | {
            "HOME": str(self.directory),
            "XDG_CONFIG_HOME": str(self.directory),
            "CHATJOBS_DATA_DIR": str(self.data),
            "CHATJOBS_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
            "CHATJOBS_CONCURRENCY": "20",
            "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1",
            "TEMPORAL_ADDRESS": f"{HOST}:{self.temporal_port}",
            "MISTRAL_API_KEY": self.api_key,
            "MISTRAL_SERVER_URL": self.simulator_url,
            "MISTRAL_REQUESTS_PER_SECOND": "200",
            "CHATJOBS_CONTINUATION": "prefix",
            "WEBHOOK_SECRET": self.secret,
            "PYTHONUNBUFFERED": "1",
        }
        if self.database_url:
            environment["CHATJOBS_DATABASE_URL"] = self.database_url
        return environment

    @property
    def service(self) -> list[Process]:
        """The service's processes, without the simulator."""
        return [self.temporal, *self.worker_processes, *self.gateway_processes]

    @property
    def processes(self) -> list[Process]:
        return [self.simulator, *self.service]

    @property
    def kills(self) -> int:
        return sum(event.kills for event in self.events)

    def start(self) -> None:
        """Start everything, with a key and a secret for each tenant."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.temporal.start(wait=False)
        self.simulator.start()
        self.temporal.wait_until_ready()
        for tenant in TENANTS:
            self.keys[tenant] = json.loads(self.command("keys", "add", "--tenant", tenant, "--json"))["key"]
            self.secrets[tenant] = json.loads(self.command("secrets", "rotate", "--tenant", tenant, "--json"))["secret"]
        self.start_all(self.service[1:])

    def command(self, *arguments: str) -> str:
        """Run `starter.py` and return its output. Raises CalledProcessError."""
        started = [sys.executable, "starter.py", *arguments]
        return subprocess.run(
            started, cwd=ROOT, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def temporal_command(self, *arguments: str) -> None:
        """Run a command of `temporal`. Raises CalledProcessError."""
        started = [binary(), *arguments, "--address", f"{HOST}:{self.temporal_port}"]
        subprocess.run(started, env=self.environment, check=True, capture_output=True, timeout=60)

    def record(self, what: str, kills: int = 0, *, cuts: bool = True) -> None:
        self.events.append(Event(time.time(), what, kills, cuts))

    def kill(self, *processes: Process) -> None:
        """kill -9 of all given processes at once."""
        running = [process for process in processes if process.running]
        cuts = any(process not in self.gateway_processes for process in running)
        self.record("killed " + ", ".join(process.name for process in running), len(running), cuts=cuts)
        for process in running:
            process.popen.kill()
        for process in running:
            process.popen.wait(10)

    def start_all(self, processes: Sequence[Process]) -> None:
        stopped = [process for process in processes if not process.running]
        for process in stopped:
            process.start(wait=False)
        for process in stopped:
            process.wait_until_ready()

    def limit_files(self, size: int | None) -> None:
        """Limit the size of files that workers and gateways write, in bytes; None lifts the limit."""
        for process in [*self.worker_processes, *self.gateway_processes]:
            soft = resource.RLIM_INFINITY if size is None else size
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    def lose_temporal(self, backup: Path | None = None) -> None:
        """Remove Temporal's database, or replace it by a backup. The old one is kept for the auditor."""
        number = len(list(self.directory.glob("temporal.db.lost-*")))
        for suffix in ("", "-wal", "-shm"):
            file = self.directory / f"temporal.db{suffix}"
            if file.exists():
                file.rename(self.directory / f"temporal.db.lost-{number}{suffix}")
        if backup is not None:
            backup.rename(self.directory / "temporal.db")

    def back_up_temporal(self) -> Path:
        """A consistent copy of Temporal's database as it is now."""
        copy = self.directory / "temporal.backup"
        with (
            closing(sqlite3.connect(self.directory / "temporal.db")) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        return copy

    def heal(self) -> None:
        """Thaw, restart and lift limits after a fault."""
        for process in self.processes:
            if process.running:
                process.thaw()
        self.start_all(self.processes)
        self.limit_files(None)

    def stop(self) -> None:
        for process in self.processes:
            if process.running:
                process.thaw()
                process.kill()

    def _process(self, name: str, started: list[str], ready: str, **environment: str) -> Process:
        log = self.directory / f"{name}.log"
        return Process(name, started, env=self.environment | environment, log=log, ready=ready)

    def _python(self, name: str, arguments: list[str], ready: str, **environment: str) -> Process:
        return self._process(name, [sys.executable, *arguments], ready, **environment)


@contextmanager
def running(stack: DrillStack) -> Iterator[DrillStack]:
    stack.directory.mkdir(parents=True, exist_ok=True)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
