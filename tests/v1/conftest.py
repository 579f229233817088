"""A service with worker, gateway and simulator, and the official clients that call its ``/v1``."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.gateway import Gateway, gateway
from tests.support.needs import program
from tests.support.npm import installed
from tests.support.simulator_process import SimulatorProcess
from tests.support.stack import Stack, free_port, stack
from tests.v1.openai_clients import HERE, OpenAIClient, node_client, python_client
from tests.v1.openai_clients import PYTHON as PYTHON

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""For webhooks: that of the specification's examples."""
PLAN_SECONDS = 90


@dataclass(frozen=True)
class OfficialClient:
    """A client as a program that runs a plan of cases (clients/runner.py, node/runner.mjs)."""

    name: str
    command: tuple[str, ...]
    cwd: Path

    async def run(self, plan: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The outcome of each case."""
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.cwd,
            env=environment | {"NO_PROXY": "*"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PLAN_SECONDS):
                out, errors = await process.communicate(json.dumps(plan).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, errors.decode()
        return dict(json.loads(out))


@pytest.fixture(scope="session")
def node_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(
        tmp_path_factory.mktemp("v1-node"), "clients from npm were not tried with /v1", source=HERE / "node"
    )


@pytest.fixture(scope="session")
def official(request: pytest.FixtureRequest) -> OfficialClient:
    """The client that the parameter names: ``python openai``, ``node vercel`` …"""
    language, _, name = request.param.partition(" ")
    if language == "python":
        return OfficialClient(request.param, (str(PYTHON), f"{name}_client.py"), HERE / "clients")
    home: Path = request.getfixturevalue("node_home")
    return OfficialClient(request.param, (program("node"), f"{name}_client.mjs"), home)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "CHATJOBS_CONCURRENCY": "20", "CHATJOBS_HEARTBEAT_SECONDS": "1"}
    env |= {"CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1", "WEBHOOK_SECRET": SECRET}
    with stack(tmp_path_factory.mktemp("v1"), env=env) as started:
        yield started


@pytest.fixture(scope="module")
def door(service: Stack) -> Iterator[Gateway]:
    started = gateway(service)
    yield started
    assert "Traceback" not in started.process.output()


@pytest.fixture
def sim(service: Stack) -> Iterator[SimulatorProcess]:
    yield service.simulator
    sys.stdout.write(service.news())


@pytest.fixture
def http(door: Gateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=door.url, timeout=30, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="module", params=["python", "node"])
def openai(request: pytest.FixtureRequest, door: Gateway) -> Iterator[OpenAIClient]:
    """The official client of OpenAI, once that for Python and once that for Node."""
    if request.param == "python":
        with python_client(door.url) as client:
            yield client
        return
    with node_client(door.url, request.getfixturevalue("node_home")) as client:
        yield client


@pytest.fixture(scope="module")
def strict(door: Gateway) -> Iterator[OpenAIClient]:
    """That for Python, which checks what it gets, where one client is enough."""
    with python_client(door.url) as client:
        yield client
