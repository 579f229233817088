"""Pages of other origins: those listed may call the API, also as a real browser sees it; the others may not."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import sync_playwright

from domain.settings import parse_origins
from tests.support.browser import chromium, watched
from tests.support.gateway import Gateway, alone, gateway
from tests.support.raw_client import exchange, request

LISTED = "https://app.example"
JOB = {"messages": [{"role": "user", "content": "hello"}]}


class Pages(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where an empty page is served from."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "index.html").write_text("<!doctype html><link rel=icon href=data:,><title>elsewhere</title>")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, origin: str) -> Iterator[Gateway]:
    place: Path = tmp_path_factory.mktemp("cors")
    with alone(place, {"CHATJOBS_CORS_ORIGINS": f"{LISTED}, {origin}"}) as built:
        yield gateway(built)


def cors(headers: httpx2.Headers) -> str | None:
    return headers.get("access-control-allow-origin")


@pytest.mark.parametrize(
    "origin_given", ["https://other.example", "http://app.example", "https://app.example:444", "null"]
)
def test_an_origin_that_is_not_listed_gets_nothing(door: Gateway, origin_given: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        headers = {"Origin": origin_given, "Access-Control-Request-Method": "GET"}
        answer = httpx2.request(method, f"{door.url}/api/jobs", headers=headers, trust_env=False)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["vary"] == "Origin"
        assert answer.status_code == (204 if method == "OPTIONS" else 403)


def test_a_preflight(door: Gateway) -> None:
    """Of a path that is there, and of one that is not: else a browser would not show its 404."""
    wanted = {"authorization", "last-event-id", "idempotency-key", "content-type", "prefer"}
    for path in ("/api/jobs/x/events", "/api/nothing"):
        headers = {"Origin": LISTED, "Access-Control-Request-Method": "GET"}
        answer = httpx2.options(f"{door.url}{path}", headers=headers, trust_env=False)
        assert (answer.status_code, cors(answer.headers), answer.headers["vary"]) == (204, LISTED, "Origin")
        assert wanted <= set(answer.headers["access-control-allow-headers"].lower().split(", "))
        assert "access-control-allow-credentials" not in answer.headers


def test_a_preflight_allows_what_client_libraries_add(door: Gateway) -> None:
    """By its name: a * does not include Authorization, and older browsers do not know it."""
    asked = "x-stainless-os, authorization, X-On-Disconnect, bad name, a:b"
    headers = {"Origin": LISTED, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    answer = httpx2.options(f"{door.url}/api/jobs", headers=headers, trust_env=False)
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"x-stainless-os", "X-On-Disconnect", "Authorization"} <= set(allowed)
    assert not {"authorization", "bad name", "a:b"} & set(allowed)


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        (200, "GET", "/api/jobs", {}),
        (401, "GET", "/api/jobs", {"Authorization": "Bearer x"}),
        (404, "GET", "/api/jobs/nobody", {}),
        (404, "GET", "/nothing", {}),
        (405, "DELETE", "/api/jobs", {}),
        (413, "POST", "/api/jobs", {"Content-Type": "application/json", "Content-Length": "99999999"}),
        (415, "POST", "/api/jobs", {"Content-Length": "0"}),
        (400, "GET", "/api/feed", {"Last-Event-ID": "x"}),
        (431, "GET", "/api/jobs", {"X": "y" * 20_000}),
        (422, "GET", "/api/jobs?limit=0", {}),
    ],
)
def test_every_answer_says_so(door: Gateway, status: int, method: str, path: str, headers: dict[str, str]) -> None:
    lines = [f"{name}: {value}" for name, value in {"Origin": LISTED, **headers}.items()]
    reply = exchange(door.url, request(method, path, *lines))
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, LISTED)
    exposed = reply.headers["access-control-expose-headers"].lower().split(", ")
    assert {"x-job-id", "location", "idempotency-replayed", "retry-after"} <= set(exposed)
    assert "access-control-allow-credentials" not in reply.headers


BROKEN = """
import sys
from gateway.routes import health
from gateway.__main__ import main

@health.router.get("/api/broken")
async def broken() -> None:
    raise RuntimeError("a defect of ours")

sys.exit(main())
"""


def test_a_page_elsewhere_can_read_a_500(tmp_path: Path) -> None:
    """Else its script would see a network error and no code. What went wrong is in the log alone."""
    with alone(tmp_path, {"CHATJOBS_CORS_ORIGINS": LISTED}) as built:
        process = built.run("broken", "-c", BROKEN, ready="gateway listening on")
        url = json.loads(process.wait_for_log("gateway listening on"))["url"]
        for origin, allowed in ((LISTED, LISTED), ("https://other.example", None)):
            answer = httpx2.get(f"{url}/api/broken", headers={"Origin": origin}, trust_env=False)
            assert (answer.status_code, answer.json()["code"], cors(answer.headers)) == (500, "internal", allowed)
            assert (answer.headers["vary"], answer.headers["cache-control"]) == ("Origin", "no-store")
            assert answer.headers["content-type"] == "application/problem+json"
            assert "defect" not in answer.text
        assert "a defect of ours" in process.output()
        assert httpx2.get(f"{url}/healthz", trust_env=False).status_code == 200


def test_the_login_of_our_page_is_not_for_others(door: Gateway) -> None:
    answer = httpx2.post(f"{door.url}/api/session", json={"key": "x"}, headers={"Origin": LISTED}, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    "wrong", ["*", "null", "https://a.example/", "a.example", "https://u@a.example", "https://a b"]
)
def test_what_is_no_origin(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"https://app\.example"):
        parse_origins(wrong)


def test_origins_are_written_as_browsers_write_them() -> None:
    assert parse_origins("https://A.example:443,http://localhost:3000") == (
        "https://a.example",
        "http://localhost:3000",
    )


SCRIPT = """
async ([url, body]) => {
  const json = {"Content-Type": "application/json", "Idempotency-Key": "k"};
  const posted = await fetch(`${url}/api/jobs`, {method: "POST", headers: json, body: JSON.stringify(body)});
  const job = await posted.json();
  const missing = await fetch(`${url}/api/jobs/nobody`, {headers: {Authorization: "Bearer x"}});
  const events = await fetch(`${url}/api/jobs/${job.jobId}/events`, {headers: {"Last-Event-ID": "abc"}});
  const token = await (await fetch(`${url}/api/jobs/${job.jobId}/stream-token`, {method: "POST"})).json();
  const opened = await new Promise((resolve) => {
    const source = new EventSource(`${url}/api/jobs/${job.jobId}/events?token=${token.token}`);
    source.onopen = () => (source.close(), resolve(true));
    source.onerror = () => (source.close(), resolve(false));
  });
  return [posted.status, posted.headers.get("Location"), missing.status, events.status, opened, job.jobId];
}
"""


def test_a_browser_on_a_page_elsewhere(door: Gateway, origin: str) -> None:
    """fetch with preflights, errors that can be read, and an EventSource with a token."""
    tolerated = ("Failed to load resource",)
    with sync_playwright() as playwright, chromium(playwright) as browser, watched(browser, tolerated=tolerated) as tab:
        page = tab.open(origin)
        posted, location, missing, events, opened, job_id = page.evaluate(SCRIPT, [door.url, JOB])
    assert (posted, missing, events, opened) == (202, 401, 400, True)
    assert location == f"/api/jobs/{job_id}"
