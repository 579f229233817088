"""A running service, and the official clients of OpenAI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import npm
from tests.support.gateway import Gateway, gateway
from tests.support.stack import Stack, stack
from tests.v1.openai_clients import HERE, OpenAIClient, node_client, python_client

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the specification's example


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {
        "CHATJOBS_PORT": "0",
        "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1",
        "CHATJOBS_HEARTBEAT_SECONDS": "1",
        "WEBHOOK_SECRET": SECRET,
    }
    with stack(tmp_path_factory.mktemp("v1"), env=env) as built:
        yield built


@pytest.fixture(scope="module")
def door(machine: Stack) -> Gateway:
    return gateway(machine)


@pytest.fixture(scope="session")
def node_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npm.installed(tmp_path_factory.mktemp("clients"), "the Node client of OpenAI", source=HERE / "node")


@pytest.fixture(scope="module", params=["python", "node"])
def openai(request: pytest.FixtureRequest, door: Gateway) -> Iterator[OpenAIClient]:
    """The official client, once that for Python and once that for Node."""
    if request.param == "python":
        with python_client(door.url) as client:
            yield client
        return
    with node_client(door.url, request.getfixturevalue("node_home")) as client:
        yield client


@pytest.fixture(scope="module")
def strict(door: Gateway) -> Iterator[OpenAIClient]:
    """The official client for Python, where one client is enough."""
    with python_client(door.url) as client:
        yield client
