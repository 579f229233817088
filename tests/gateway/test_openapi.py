"""The OpenAPI document: it is the one of the code, and the service does what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.openapi import DOCUMENT, text
from tests.support.gateway import Gateway, alone, gateway
from tests.support.stack import Stack

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENTED: dict[str, Any] = json.loads(DOCUMENT.read_text())
JOB = {"messages": [{"role": "user", "content": "hello"}]}
HOOK = "http://127.0.0.1:65000/"
STREAMS = ("/api/chat/stream", "/api/feed", "/api/jobs/{job_id}/events")
NEED_MORE = ("/readyz", "/v1/chat/completions", "/v1/models", "/v1/models/{model_id}", "/v1/responses")
"""What needs Temporal, a worker or the model's server, none of which is here (tests/v1)."""
FIRST_KEY = ("/api/keys", "post")
"""It closes the service to callers without a key, as the others here are (test_administration.py)."""
OPERATIONS = [
    (path, method)
    for path, operations in DOCUMENTED["paths"].items()
    for method in operations
    if path not in STREAMS + NEED_MORE and (path, method) != FIRST_KEY
]


def test_the_document_is_that_of_the_code() -> None:
    """`python -m gateway.openapi` writes it anew."""
    assert DOCUMENT.read_text() == text()


def test_every_reference_leads_somewhere() -> None:
    schemas = DOCUMENTED["components"]["schemas"]
    missing = [ref for ref in references(DOCUMENTED) if ref.removeprefix("#/components/schemas/") not in schemas]
    assert missing == []


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_operation_says_how_it_fails_and_what_it_needs() -> None:
    for path, operations in DOCUMENTED["paths"].items():
        form = "application/json" if path.startswith("/v1/") else "application/problem+json"
        for operation in operations.values():
            assert form in operation["responses"]["default"]["content"]
            assert operation["security"]
            assert operation["description"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with alone(tmp_path_factory.mktemp("openapi")) as stack:
        yield stack
        sys.stdout.write(stack.news())


@pytest.fixture(scope="module")
def door(built: Stack) -> Iterator[Gateway]:
    started = gateway(built)
    yield started
    assert "Traceback" not in started.process.output()


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[f"{m} {p}" for p, m in OPERATIONS])
def test_the_service_does_what_the_document_says(door: Gateway, path: str, method: str) -> None:
    """Whatever is sent, valid or not: no 5xx, and the answer is one of those that are described."""
    operation = schemathesis.openapi.from_dict(DOCUMENTED)[path][method.upper()]
    cases = strategies.one_of(
        operation.as_strategy(), operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    )

    @settings(
        max_examples=25,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(cases)
    def run(case: Any) -> None:
        case.call_and_validate(base_url=door.url, checks=CHECKS, timeout=30)

    run()


OF_A_JOB = [(path, method) for path, method in OPERATIONS if "{job_id}" in path and not path.endswith("/resume")]
"""But for what only a job that has failed after some text can do, as no worker is here (test_resume.py)."""


@pytest.mark.parametrize(("path", "method"), OF_A_JOB, ids=[f"{m} {p}" for p, m in OF_A_JOB])
def test_what_is_done_to_a_job_is_as_described(door: Gateway, path: str, method: str) -> None:
    """The same for one that is there, so that there is more to see than that nobody knows it."""
    with httpx2.Client(base_url=door.url, trust_env=False) as http:
        job_id = http.post("/api/jobs", json=JOB | {"callback": HOOK}).json()["jobId"]
        known = {"job_id": job_id}
        if method == "delete" or "{delivery_id}" in path:
            assert http.post(f"/api/jobs/{job_id}/cancel").status_code == 202
            known["delivery_id"] = http.get(f"/api/jobs/{job_id}").json()["deliveries"][0]["id"]
    case = schemathesis.openapi.from_dict(DOCUMENTED)[path][method.upper()].Case(path_parameters=known)
    answer = case.call_and_validate(base_url=door.url, checks=CHECKS, timeout=30)
    assert 200 <= answer.status_code < 300
