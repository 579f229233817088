"""Roles of keys: the table of routes against a real gateway, and what changes a role."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from domain.roles import Role
from gateway.app import create_app
from gateway.auth.roles import NEEDED
from storage.engine.database import Database
from storage.keys import KeyStore
from tests.support.gateway import Gateway, alone, gateway
from tests.support.stack import ROOT, Stack, wait_until

WITHIN_SECONDS = 2.0
"""All gateways apply a role that was changed."""
STREAMING = ("/api/feed", "/api/events")
"""What goes on for ever once it is allowed; only its head is read."""


def routes() -> set[tuple[str, str]]:
    """The methods and paths of the application; HEAD is GET to it."""
    found = iter_route_contexts(create_app(None).routes)
    return {(method, str(route.path)) for route in found for method in route.methods or () if method != "HEAD"}


ROUTES = sorted(routes())


def test_every_route_has_a_role() -> None:
    """A new route needs its line in gateway/auth/roles.py, and one that is gone loses it."""
    assert set(NEEDED) == set(ROUTES)


def test_reading_needs_read_and_changing_needs_more() -> None:
    """No route that changes something is open to keys that may look only, but for tokens to look with."""
    lax = [path for (method, path), role in NEEDED.items() if method != "GET" and role is Role.READ]
    assert lax == ["/api/jobs/{job_id}/stream-token"]
    assert [path for (method, path), role in NEEDED.items() if method != "GET" and role is None] == ["/api/session"] * 2
    unseen = {path for (method, path), role in NEEDED.items() if method == "GET" and role is Role.ADMIN}
    assert unseen == {"/api/keys", "/api/secrets", "/api/settings"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with alone(tmp_path_factory.mktemp("roles")) as stack:
        yield stack
        sys.stdout.write(stack.news())


@pytest.fixture(scope="module")
def keys(built: Stack) -> dict[str, tuple[str, str]]:
    """By role: the id and the text of a key of the tenant acme."""

    async def made() -> dict[str, tuple[str, str]]:
        database = await Database.open(built.database_url)
        try:
            store, found = KeyStore(database), {}
            for role in Role:
                key, plain = await store.add(tenant="acme", role=role)
                found[role.value] = (key.id, plain)
            return found
        finally:
            await database.close()

    return asyncio.run(made())


@pytest.fixture(scope="module")
def door(built: Stack, keys: dict[str, tuple[str, str]]) -> Iterator[Gateway]:
    assert keys
    started = gateway(built)
    yield started
    assert "Traceback" not in started.process.output()


@pytest.fixture(scope="module")
def http(door: Gateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=door.url, timeout=30, trust_env=False) as client:
        yield client


def bearer(keys: dict[str, tuple[str, str]], role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys[role][1]}"}


def filled(path: str) -> str:
    """A path with ids of nothing, so that what is allowed does nothing."""
    for name in ("job_id", "delivery_id", "batch_id", "pause_id", "schedule_id", "file_id", "batch_job_id", "key_id"):
        path = path.replace(f"{{{name}}}", "nothing")
    path = path.replace("{response_id}", "resp_nothing").replace("{model_id:path}", "m").replace("{thread}", "t")
    return path.replace("{lane:path}", "l").replace("{path:path}", "app.js")


def status_of(http: httpx2.Client, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """The status, and the code of a problem. A body that is no JSON: what is allowed to change something is refused."""
    body = {} if method == "GET" else {"content": b"{", "headers": headers | {"Content-Type": "application/json"}}
    with http.stream(method, filled(path), **{"headers": headers} | body) as answer:  # type: ignore[arg-type]
        if path in STREAMING and answer.status_code == 200:
            return 200, ""
        answer.read()
        if answer.status_code < 400:
            return answer.status_code, ""
        problem = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        return answer.status_code, str(problem.get("code") or problem.get("error", {}).get("code"))


@pytest.mark.parametrize("role", list(Role))
def test_the_table_holds_over_http(http: httpx2.Client, keys: dict[str, tuple[str, str]], role: Role) -> None:
    """Each route with each role: 403 with ``role_required`` exactly where the role does not cover what is needed."""
    wrong = []
    for method, path in ROUTES:
        if (method, path) == ("POST", "/api/secrets"):
            continue  # without a body it would do it: test_administration.py
        needed = NEEDED[method, path]
        status, code = status_of(http, method, path, bearer(keys, role))
        refused = (status, code) == (403, "role_required")
        if refused != (needed is not None and not role.covers(needed)) or status in (401, 500):
            wrong.append((method, path, status, code))
    assert wrong == []


def test_without_a_key_only_open_routes_answer(http: httpx2.Client) -> None:
    wrong = []
    for method, path in ROUTES:
        status, _ = status_of(http, method, path, {})
        if (status == 401) != (NEEDED[method, path] is not None):
            wrong.append((method, path, status))
    assert wrong == []


def test_the_refusal_says_what_is_needed_and_how_to_get_it(
    http: httpx2.Client, keys: dict[str, tuple[str, str]]
) -> None:
    """In the form of the API that was called."""
    headers = bearer(keys, "read")
    ours = http.post("/api/jobs", json={}, headers=headers)
    assert ours.headers["content-type"] == "application/problem+json"
    words = ours.json()["detail"]
    assert "the role write" in words
    assert "has the role read" in words
    assert f"starter.py keys role {keys['read'][0]} write" in words
    mistral = http.post("/v1/chat/completions", json={}, headers=headers)
    assert mistral.status_code == 403
    assert {name: mistral.json()[name] for name in ("object", "type", "code", "message")} == {
        "object": "error",
        "type": "forbidden",
        "code": "role_required",
        "message": words,
    }
    openai = http.post("/v1/responses", json={}, headers=headers)
    assert (openai.status_code, openai.json()["error"]["code"]) == (403, "role_required")
    assert set(openai.json()) == {"error"}


def test_a_session_has_the_role_of_its_key(http: httpx2.Client, keys: dict[str, tuple[str, str]]) -> None:
    for role in Role:
        answer = http.post("/api/session", json={"key": keys[role][1]})
        assert answer.json()["role"] == role
        cookie = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
        assert http.get("/api/session", headers=cookie).json()["role"] == role
        started = http.post("/api/jobs", json={}, headers=cookie).status_code
        assert started == (403 if role is Role.READ else 422)


def test_a_role_changes_everywhere_within_two_seconds(
    built: Stack, http: httpx2.Client, keys: dict[str, tuple[str, str]]
) -> None:
    """By the command line, which runs in another process; sessions follow, and it goes both ways."""
    key_id, plain = keys["write"]
    session = http.post("/api/session", json={"key": plain})
    cookie = {"Cookie": session.headers["set-cookie"].partition(";")[0]}
    for role, expected in (("read", 403), ("write", 422)):
        said = command(built, "keys", "role", key_id, role)
        assert (said.returncode, said.stdout) == (0, f"{key_id} has the role {role}\n"), said.stderr

        def applied(expected: int = expected) -> bool:
            by_key = http.post("/api/jobs", json={}, headers=bearer(keys, "write")).status_code
            by_cookie = http.post("/api/jobs", json={}, headers=cookie).status_code
            return (by_key, by_cookie) == (expected, expected)

        assert wait_until(applied, timeout=WITHIN_SECONDS)


def test_the_command_line_makes_and_shows_roles(built: Stack) -> None:
    made = json.loads(command(built, "keys", "add", "--role", "read", "--tenant", "tools", "--json").stdout)
    assert made["role"] == "read"
    usual = json.loads(command(built, "keys", "add", "--tenant", "tools", "--json").stdout)
    assert usual["role"] == "write"
    listed = json.loads(command(built, "keys", "list", "--tenant", "tools", "--json").stdout)["keys"]
    assert {one["id"]: one["role"] for one in listed} == {made["id"]: "read", usual["id"]: "write"}
    assert "read" in command(built, "keys", "list", "--tenant", "tools").stdout
    assert command(built, "keys", "role", made["id"], "root").returncode == 2
    assert "no key with this id" in command(built, "keys", "role", "key_nobody", "admin").stderr


def command(built: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "starter.py", *arguments], cwd=ROOT, env=built.env, capture_output=True, text=True, timeout=60
    )
