"""Webhooks in OpenAI's form, unwrapped by the official clients at a real receiver."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.support.gateway import Gateway
from tests.support.receiver import Receiver, receiver
from tests.support.simulator_process import prompt
from tests.support.stack import Stack
from tests.v1.conftest import SECRET
from tests.v1.openai_clients import ClientError, OpenAIClient
from tests.v1.test_responses import MODEL, TEXT, ended

pytestmark = pytest.mark.long


def unwrapped(openai: OpenAIClient, hooks: Receiver, path: str, *, secret: str = SECRET) -> dict[str, Any]:
    """What the client makes of the one webhook that arrived at a path."""
    (received,) = hooks.wait_for(1, path=path)
    payload, headers = received.body.decode(), dict(received.headers)
    event: dict[str, Any] = openai.call("webhooks.unwrap", payload=payload, received=headers, secret=secret)
    return event


@pytest.mark.parametrize(
    ("script", "more", "status"),
    [
        ({"text": TEXT}, {}, "completed"),
        ({"faults": [{"kind": 400}]}, {}, "failed"),
        ({"tokens": 40}, {"max_output_tokens": 16}, "incomplete"),
        ({"text": TEXT, "hold": 2}, {}, "cancelled"),
    ],
)
def test_the_client_unwraps_the_end_of_a_response(
    openai: OpenAIClient, script: dict[str, Any], more: dict[str, Any], status: str
) -> None:
    """`X-Chatjobs-Callback` asks for it; the body names the response, which `retrieve` then shows."""
    with receiver() as hooks:
        headers = {"X-Chatjobs-Callback": hooks.url("/hook")}
        created = openai.call(
            "responses.create", model=MODEL, input=prompt(**script), background=True, headers=headers, **more
        )
        if status == "cancelled":
            openai.call("responses.cancel", created["id"])
        event = unwrapped(openai, hooks, "/hook")
        (received,) = hooks.wait_for(1, path="/hook")
    assert event["type"] == f"response.{status}"
    assert event["object"] == "event"
    assert event["id"].startswith("evt_")
    assert event["data"] == {"id": created["id"]}
    response = openai.call("responses.retrieve", event["data"]["id"])
    assert response["status"] == status
    assert event["created_at"] >= created["created_at"]
    assert received.headers["webhook-id"].startswith("whe_")


def test_another_secret_is_refused(openai: OpenAIClient) -> None:
    with receiver() as hooks:
        headers = {"X-Chatjobs-Callback": hooks.url("/hook")}
        openai.call("responses.create", model=MODEL, input=prompt(text=TEXT), headers=headers)
        with pytest.raises(ClientError):
            unwrapped(openai, hooks, "/hook", secret="whsec_" + "A" * 32)


def test_any_job_may_ask_for_openais_form(strict: OpenAIClient, door: Gateway) -> None:
    """`webhook.format` of a job; without it the body is this service's own, also for a response that says so."""
    with receiver() as hooks:
        body = {"messages": [{"role": "user", "content": prompt(text=TEXT)}]}
        webhook = {"url": hooks.url("/openai"), "format": "openai"}
        job = httpx2.post(f"{door.url}/api/jobs", json=body | {"webhook": webhook}).json()
        event = unwrapped(strict, hooks, "/openai")
        assert (event["type"], event["data"]) == ("response.completed", {"id": f"resp_{job['jobId']}"})
        more = {"webhook": {"url": hooks.url("/own"), "format": "chatjobs"}}
        created = strict.call(
            "responses.create", model=MODEL, input=prompt(text=TEXT), background=True, extra_body=more
        )
        (own,) = hooks.wait_for(1, path="/own")
    assert own.json()["event"] == "chat.completed"
    assert own.json()["data"]["jobId"] == created["id"].removeprefix("resp_")
    assert ended(strict, created["id"])["status"] == "completed"


def test_metadata_comes_by_header_too(strict: OpenAIClient, service: Stack) -> None:
    headers = {"X-Chatjobs-Metadata": '{"order": "42"}'}
    response = strict.call("responses.create", model=MODEL, input=prompt(text=TEXT), headers=headers)
    assert response["metadata"] == {"order": "42"}
