"""The list of models, with the clients that read it."""

from __future__ import annotations

import pytest

from tests.support.gateway import Gateway
from tests.v1.conftest import OfficialClient
from tests.v1.test_clients import WITH_MODELS, one

pytestmark = pytest.mark.long


@pytest.mark.parametrize("official", WITH_MODELS, indirect=True)
async def test_the_models_are_those_of_the_server(official: OfficialClient, door: Gateway) -> None:
    found = await one(official, door.url, "models", "")
    assert "mistral-small-latest" in found["models"], found
    assert found["one"] == found["models"][0]
