"""docs/browser.md: its page, on another origin, shows an answer as it is written; on one that is not listed, none.

The page's server is that of the document, too; the browser is a real one.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from storage.engine.database import Database
from storage.keys import KeyStore
from tests.support.browser import watched
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.snippets import snippets
from tests.support.stack import Stack, free_port, stack

pytestmark = pytest.mark.long

TOKENS = 60
QUESTION = prompt("from another origin", tokens=TOKENS, tokens_per_second=60)


@contextmanager
def site(page: str, ask: Callable[[str], Any]) -> Iterator[str]:
    """A server of the page, which asks at ``/ask``; its origin."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("text/html; charset=utf-8", page)

        def do_POST(self) -> None:
            self._answer("application/json", json.dumps(ask(QUESTION)))

        def _answer(self, kind: str, text: str) -> None:
            self.send_response(200 if self.path in ("/", "/ask") else 204)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, str]]:
    """A service that requires a key, and a key."""
    with stack(tmp_path_factory.mktemp("origins"), env={"CHATJOBS_PORT": str(free_port())}) as started:
        with ThreadPoolExecutor(1) as apart:  # this thread's event loop is playwright's
            key = apart.submit(asyncio.run, _key(started.database_url)).result()
        yield started, key


async def _key(url: str) -> str:
    database = await Database.open(url)
    _, key = await KeyStore(database).add(tenant="default")
    await database.close()
    return key


def asker(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The function ``ask`` of the document."""
    monkeypatch.setenv("CHATJOBS_URL", url)
    monkeypatch.setenv("CHATJOBS_API_KEY", key)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (code,) = snippets("browser.md", "python server")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the document's own code
    ask: Callable[[str], Any] = names["ask"]
    return ask


def test_the_page_of_the_document(
    browser: Browser, running: tuple[Stack, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started, key = running
    (page,) = snippets("browser.md", "html page")
    ask = asker(f"http://127.0.0.1:{started.env['CHATJOBS_PORT']}", key, monkeypatch)
    with site(page, ask) as origin, site(page, ask) as foreign:
        started.env["CHATJOBS_CORS_ORIGINS"] = origin
        door: Gateway = gateway(started)
        with watched(browser, tolerated=("Failed to load resource",)) as tab:
            shown = tab.open(origin).locator("#answer")
            expect(shown).not_to_be_empty()
            growing = len(shown.inner_text())
            door.process.restart()  # EventSource connects again, and goes on
            expect(shown).to_have_text(_whole(ask, door, key), timeout=20_000)
            assert growing < len(shown.inner_text())
        with watched(browser, tolerated=("Failed to load resource", "has been blocked by CORS policy")) as tab:
            page_there = tab.context.new_page()
            with page_there.expect_event("console", lambda message: "CORS policy" in message.text):
                page_there.goto(foreign)
            expect(page_there.locator("#answer")).to_be_empty()


def _whole(ask: Callable[[str], Any], door: Gateway, key: str) -> str:
    """The whole answer to the question: the simulator gives the same one each time."""
    headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=30"}
    body = {"messages": [{"role": "user", "content": QUESTION}]}
    answer = httpx2.post(f"{door.url}/api/jobs", json=body, headers=headers, trust_env=False, timeout=40)
    return str(answer.json()["content"])
