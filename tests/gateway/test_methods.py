"""HEAD, OPTIONS and methods that a path does not have, on every route that the application has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from gateway.app import create_app
from tests.support.gateway import Gateway, alone, gateway
from tests.support.raw_client import Reply, connected, exchange, received, request
from tests.support.stack import Stack

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE")
CHANGING = {"content-length", "date"}
"""Of figures that grow, such as /metrics."""
FRAMING = {"transfer-encoding", "connection"}


def routes() -> dict[str, set[str]]:
    """Paths and their methods, from the application itself."""
    found: dict[str, set[str]] = {}
    for route in iter_route_contexts(create_app(None).routes):
        found.setdefault(str(route.path), set()).update(route.methods or ())
    return found


ROUTES = routes()
GETS = sorted(path for path, methods in ROUTES.items() if "GET" in methods)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with alone(tmp_path_factory.mktemp("methods")) as stack:
        yield stack


@pytest.fixture(scope="module")
def door(built: Stack) -> Iterator[Gateway]:
    started = gateway(built)
    yield started
    assert "Traceback" not in started.process.output()


@pytest.fixture(scope="module")
def job_id(door: Gateway) -> str:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    return str(httpx2.post(f"{door.url}/api/jobs", json=body, trust_env=False).json()["jobId"])


def filled(path: str, job_id: str) -> str:
    named = path.replace("{job_id}", job_id).replace("{path:path}", "app.js").replace("{delivery_id}", "whe_x")
    return named.replace("{model_id:path}", "m")


def head_of(door: Gateway, method: str, target: str) -> Reply:
    """An answer, of which the body may go on for ever."""
    with connected(door.url) as connection:
        connection.settimeout(30)
        connection.sendall(request(method, target, "Connection: close"))
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            assert piece, data
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        if method == "HEAD":
            with suppress(ConnectionResetError):
                while piece := connection.recv(65536):
                    body += piece
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return Reply(int(lines[0].split(" ")[1]), headers, body, 0, closed=True)


def test_there_is_something_to_test() -> None:
    assert {"/api/jobs", "/api/jobs/{job_id}/events", "/", "/openapi.json", "/docs", "/assets/{path:path}"} <= set(GETS)


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_its_body(door: Gateway, job_id: str, path: str) -> None:
    target = filled(path, job_id)
    got, headed = head_of(door, "GET", target), head_of(door, "HEAD", target)
    assert (headed.status, headed.body) == (got.status, b"")
    assert set(headed.headers) | FRAMING == set(got.headers) | FRAMING
    same = set(got.headers) - CHANGING - FRAMING
    assert {name: headed.headers[name] for name in same} == {name: got.headers[name] for name in same}


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_options_say_what_a_path_takes(door: Gateway, job_id: str, path: str) -> None:
    reply = exchange(door.url, request("OPTIONS", filled(path, job_id)))
    assert (reply.status, reply.body) == (204, b"")
    allowed = set(reply.headers["allow"].split(", "))
    assert ROUTES[path] | {"OPTIONS"} <= allowed
    assert ("HEAD" in allowed) == ("GET" in allowed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", sorted(ROUTES))
def test_a_method_that_a_path_does_not_have_is_named(door: Gateway, job_id: str, path: str, method: str) -> None:
    """With what it has instead, in the words and in ``Allow``."""
    target = filled(path, job_id)
    allowed = exchange(door.url, request("OPTIONS", target)).headers["allow"]
    if method in allowed.split(", "):
        return
    with connected(door.url) as connection:
        connection.sendall(request(method, target, "Content-Length: 0"))
        reply = received(connection, time.monotonic()) if method != "HEAD" else head_of(door, method, target)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    as_mistral = path.startswith("/v1/")
    assert reply.headers["content-type"] == ("application/json" if as_mistral else "application/problem+json")
    if method != "HEAD":
        problem: dict[str, Any] = httpx2.Response(405, content=reply.body).json()
        problem = problem.get("error", problem) if path.startswith("/v1/responses") else problem
        assert problem["code"] == "method_not_allowed"
        assert problem["message" if as_mistral else "detail"] == f"This path does not take {method}; it takes {allowed}"


def test_head_of_a_path_that_takes_no_get_is_named_head(door: Gateway) -> None:
    got = exchange(door.url, request("GET", "/api/chat/stream"))
    assert b"does not take GET" in got.body
    headed = head_of(door, "HEAD", "/api/chat/stream")
    assert (headed.status, headed.body) == (405, b"")
    # The length is that of the same words with another method in them.
    assert int(headed.headers["content-length"]) == len(got.body) + len("HEAD") - len("GET")


@pytest.mark.parametrize("method", METHODS)
def test_paths_that_are_not_there_have_no_methods(door: Gateway, method: str) -> None:
    reply = head_of(door, method, "/api/nothing")
    assert (reply.status, "allow" in reply.headers) == (404, False)
