"""The rival of bench/batch.py: BullMQ on Redis, whose worker calls the model by Mistral's own client for Node.

Its packages are installed once, into .venv/rival. Redis writes every change to the disk before it answers, as the
service does. The process adds the jobs, works on them and counts those completed, so nothing is spent on a second one.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drill.processes import ROOT, Process, free_port
from tests.support import needs, npm

SOURCE = Path(__file__).parent / "rival"
HOME = ROOT / ".venv" / "rival"
LOCK, WORKER = "package-lock.json", "worker.mjs"
PROGRAMS = ("node", "npm", "redis-server")
RUN_SECONDS = 300
"""For one file of jobs, far more than any takes."""


class RivalMissing(Exception):
    """BullMQ cannot run here."""


def install() -> None:
    """Install the packages of the lock file, unless they are there. Raises RivalMissing, which says what to do."""
    missing = [program for program in PROGRAMS if needs.find(program) is None]
    if missing:
        raise RivalMissing(f"{', '.join(missing)} missing; on Debian: apt-get install redis-server nodejs npm")
    installed = HOME / "node_modules" / ".package-lock.json"  # npm writes it last
    if installed.exists() and (HOME / LOCK).read_bytes() == (SOURCE / LOCK).read_bytes():
        shutil.copy(SOURCE / WORKER, HOME)
        return
    try:
        errors = npm.install(needs.find("npm") or "", SOURCE, HOME)
    except subprocess.TimeoutExpired as error:
        raise RivalMissing("npm does not reach its registry; try again where it does") from error
    if errors:
        raise RivalMissing(f"npm did not install its packages: {errors.strip().splitlines()[0]}")


@dataclass(frozen=True)
class JobsDone:
    """``bytes``: of all answers, in UTF-8, where they are counted."""

    jobs: int
    seconds: float
    bytes: int = 0


class Rival:
    """A running one. ``pids`` has its processes by name."""

    def __init__(self, redis: Process, node: asyncio.subprocess.Process) -> None:
        self._node = node
        self.pids = {"redis": redis.pid, "node": node.pid}

    async def run(self, items: Path) -> JobsDone:
        """Add the jobs of a file of batch lines, and wait until all are completed. Raises AssertionError."""
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(f"{items}\n".encode())
        async with asyncio.timeout(RUN_SECONDS):
            line = await self._node.stdout.readline()
        assert line, "the rival ended; stderr has its error"
        found: dict[str, Any] = json.loads(line)
        return JobsDone(**found)


@asynccontextmanager
async def rival(directory: Path, *, model_url: str, concurrency: int) -> AsyncIterator[Rival]:
    """Redis and Node until the end of the block. Raises RivalMissing."""
    await asyncio.to_thread(install)
    redis = _redis(directory, port := free_port())
    redis.start()
    node = await asyncio.create_subprocess_exec(
        needs.find("node") or "",
        str(HOME / WORKER),
        str(port),
        str(concurrency),
        env=os.environ | {"MISTRAL_API_KEY": "a key for benchmarks", "MISTRAL_SERVER_URL": model_url},
        stdin=asyncio.subprocess.PIPE,  # it ends when this closes
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Rival(redis, node)
    finally:
        node.kill()
        await node.wait()
        redis.kill()


def _redis(directory: Path, port: int) -> Process:
    options = {"port": str(port), "bind": "127.0.0.1", "dir": str(directory), "appendonly": "yes", "save": ""}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [needs.find("redis-server") or "", *arguments, "--appendfsync", "always"]
    log = directory / "redis.log"
    return Process("redis", command, env=os.environ, log=log, ready="Ready to accept connections")
