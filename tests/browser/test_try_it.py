"""The forms of the API reference, in a real browser before the real service."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from playwright.sync_api import Browser, Locator, Page, Request, expect

from domain.roles import Role
from gateway.openapi import DOCUMENT
from storage.engine.database import Database
from storage.keys import KeyStore
from tests.browser.test_page import AWAY, HTTP, SLOW
from tests.browser.test_page_use import axe, fine
from tests.browser.test_settings_page import called, signed_in
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, gateway
from tests.support.needs import program
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, free_port, stack

__all__ = ("axe",)  # a fixture
pytestmark = pytest.mark.long
DOCUMENTED: dict[str, Any] = json.loads(DOCUMENT.read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("try"), env={"CHATJOBS_PORT": str(free_port())}) as running:
        yield running


@pytest.fixture(scope="module")
def keys(place: Stack) -> dict[str, str]:
    async def made() -> dict[str, str]:
        database = await Database.open(place.database_url)
        try:
            store = KeyStore(database)
            return {role.value: (await store.add(tenant="acme", role=role))[1] for role in Role}
        finally:
            await database.close()

    return asyncio.run(made())


@pytest.fixture(scope="module")
def door(place: Stack, keys: dict[str, str]) -> Gateway:
    assert keys
    return gateway(place)


def reference(door: Gateway, tab: Watched, key: str | None = None) -> Page:
    """The reference, after a sign-in if a key is given."""
    tab.tolerated = AWAY  # the browser logs each response of 4xx
    page = tab.open(f"{door.url}/" if key else f"{door.url}/docs")
    if key:
        signed_in(page, key)
        page.goto(f"{door.url}/docs")
    page.wait_for_selector(".operation")
    return page


def form_of(page: Page, method: str, path: str) -> Locator:
    """The opened form of an operation."""
    page.get_by_role("article", name=f"{method} {path}", exact=True).get_by_text("Try it", exact=True).click()
    return page.get_by_role("form", name=f"Try {method} {path}", exact=True)


def sent(form: Locator) -> str:
    """The words of the status, after a click on Send."""
    form.get_by_role("button", name="Send", exact=True).click()
    expect(form.get_by_role("button", name="Send", exact=True)).to_be_enabled()
    return form.locator(".outcome-line").text_content() or ""


def answer_in(form: Locator) -> Any:
    return json.loads(form.get_by_test_id("response").text_content() or "")


def test_a_job_is_started_and_its_stream_followed(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    """With the session of the page: the example is sent as it stands, the stream grows, and Stop ends it."""
    page = reference(door, tab, keys["write"])
    expect(page.get_by_text("makes real calls as acme, with the role write")).to_be_visible()
    starts = form_of(page, "POST", "/api/jobs")
    starts.get_by_label("idempotency-key").fill("from-the-form")
    assert sent(starts).startswith("202")
    accepted = answer_in(starts)
    assert called(door, "GET", accepted["statusUrl"], keys["read"]).json()["jobId"] == accepted["jobId"]
    sent(starts)
    assert answer_in(starts)["jobId"] == accepted["jobId"]
    starts.get_by_text("headers").click()
    expect(starts.locator("pre", has_text="idempotency-replayed: true")).to_be_visible()

    follows = form_of(page, "GET", "/api/jobs/{job_id}/events")
    follows.get_by_label("job_id").fill(accepted["jobId"])
    assert sent(follows).startswith("200")
    text = follows.get_by_test_id("response").text_content() or ""
    assert "event: start" in text
    assert "event: complete" in text

    streams = form_of(page, "POST", "/api/chat/stream")
    words = prompt("Slowly", text="word " * 2_000, **SLOW)
    streams.get_by_label("Body").fill(json.dumps({"messages": [{"role": "user", "content": words}]}))
    streams.get_by_role("button", name="Send", exact=True).click()
    expect(streams.get_by_test_id("response")).to_contain_text("event: chunk")
    expect(streams.locator(".outcome-line")).to_contain_text("streaming")
    streams.get_by_role("button", name="Stop").click()
    expect(streams.locator(".outcome-line")).to_contain_text("Stopped")
    assert "event: complete" not in (streams.get_by_test_id("response").text_content() or "")


def test_what_is_wrong_is_said_where_it_is(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    """A parameter's problem at its field; a body's with its line, which a button selects; for all three APIs."""
    page = reference(door, tab, keys["write"])
    lists = form_of(page, "GET", "/api/jobs")
    lists.get_by_label("limit").fill("0")
    assert sent(lists).startswith("422")
    expect(lists.get_by_label("limit")).to_have_attribute("aria-invalid", "true")
    expect(lists.locator("label", has_text="limit")).to_contain_text("must be at least 1")
    starts = form_of(page, "POST", "/api/jobs")
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 7}], "mdoel": 1}
    starts.get_by_label("Body").fill(json.dumps(body, indent=2))
    assert sent(starts).startswith("422")
    alert = starts.get_by_role("alert")
    expect(alert).to_contain_text("/mdoel")
    alert.get_by_role("button", name="Line 13").click()
    selected = (
        "(({value, selectionStart, selectionEnd}) => value.slice(selectionStart, selectionEnd))(document.activeElement)"
    )
    assert page.evaluate(selected) == '"mdoel": 1'
    alert.locator("li", has_text="/messages/1/content").first.get_by_role("button").click()
    assert page.evaluate(selected) == '"content": 7'
    for path, name in (("/v1/chat/completions", "messages"), ("/v1/responses", "input")):
        other = form_of(page, "POST", path)
        other.get_by_label("Body").fill(json.dumps({"model": "m", name: 3}))
        sent(other)
        expect(other.get_by_role("alert")).to_contain_text(f"/{name}")


def test_a_typed_key_stays_in_the_tab(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    """It is used in place of a session; a key that may only look is refused with what is needed."""
    page = reference(door, tab)
    urls: list[str] = []

    def seen(request: Request) -> None:
        urls.append(request.url)

    page.on("request", seen)
    page.get_by_label("API key").fill(keys["read"])
    starts = form_of(page, "POST", "/api/jobs")
    assert sent(starts).startswith("403")
    problem = answer_in(starts)
    assert problem["code"] == "role_required"
    assert "the role write" in problem["detail"]
    expect(page.get_by_role("article", name="POST /api/jobs", exact=True)).to_contain_text("role write")
    assert sent(form_of(page, "GET", "/api/jobs")).startswith("200")
    starts.get_by_text("As code").click()
    for language in ("curl", "Python", "JavaScript"):
        starts.get_by_role("button", name=language, exact=True).click()
        snippet = starts.get_by_test_id("snippet").text_content() or ""
        assert "CHATJOBS_API_KEY" in snippet
        assert keys["read"] not in snippet
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert keys["read"][3:] not in kept + "".join(urls)
    page.reload()
    expect(page.get_by_label("API key")).to_have_value("")
    page.wait_for_selector(".operation")
    assert sent(form_of(page, "GET", "/api/jobs")).startswith("401")


def test_what_deletes_or_makes_keys_asks_first(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    page = reference(door, tab, keys["admin"])
    makes = form_of(page, "POST", "/api/keys")
    makes.get_by_role("button", name="Send", exact=True).click()
    asks = page.get_by_role("dialog", name="Send POST /api/keys?")
    asks.get_by_role("button", name="Close").click()
    expect(makes.locator(".outcome-line")).to_be_empty()
    makes.get_by_role("button", name="Send", exact=True).click()
    asks.get_by_role("button", name="Send it").click()
    expect(makes.locator(".outcome-line")).to_contain_text("201")
    made = answer_in(makes)
    assert called(door, "GET", "/api/jobs", made["key"]).status_code == 200
    ends = form_of(page, "DELETE", "/api/keys/{key_id}")
    ends.get_by_label("key_id").fill(made["id"])
    ends.get_by_role("button", name="Send", exact=True).click()
    page.get_by_role("dialog", name="Send DELETE /api/keys/{key_id}?").get_by_role("button", name="Send it").click()
    expect(ends.locator(".outcome-line")).to_contain_text("204")
    assert called(door, "GET", "/api/jobs", made["key"]).status_code == 401


def test_the_snippets_run(door: Gateway, tab: Watched, keys: dict[str, str], tmp_path: Path) -> None:
    """What is copied makes the same call: with quotes, line breaks and other scripts in the body; also a stream."""
    page = reference(door, tab, keys["write"])
    env = {**os.environ, "CHATJOBS_API_KEY": keys["write"]}
    runs = {
        "curl": ["bash", "-c"],
        "Python": [sys.executable, "-c"],
        "JavaScript": [program("node"), "--input-type=module", "-e"],
    }
    for path, expected in (("/api/jobs", "jobId"), ("/api/chat/stream", "event: complete")):
        form = form_of(page, "POST", path)
        body = {"messages": [{"role": "user", "content": 'It\'s "quoted"\n\\n $HOME 🌊'}]}
        form.get_by_label("Body").fill(json.dumps(body, indent=2, ensure_ascii=False))
        form.get_by_text("As code").click()
        for language, command in runs.items():
            form.get_by_role("button", name=language, exact=True).click()
            snippet = form.get_by_test_id("snippet").text_content() or ""
            done = subprocess.run(
                [*command, snippet], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (language, done.stderr)
            assert expected in done.stdout, (language, done.stdout, done.stderr)
    newest = called(door, "GET", "/api/jobs?limit=6", keys["read"]).json()["jobs"]
    for job in newest:
        asked = called(door, "GET", f"/api/jobs/{job['jobId']}/request", keys["read"]).json()
        assert asked["messages"] == body["messages"]


def test_every_example_is_valid(door: Gateway, tab: Watched) -> None:
    """Each JSON body that a form begins with has the shape that the document asks for."""
    page = reference(door, tab)
    examples = page.evaluate(
        """async () => {
          const { exampleOf } = await import("/assets/examples.js");
          const api = await (await fetch("/openapi.json")).json();
          const of = (path, method, content) => Object.entries(content ?? {}).map(
            ([type, { schema }]) => [method, path, type, exampleOf(api, method, path, type, schema)]);
          return Object.entries(api.paths).flatMap(([path, operations]) =>
            Object.entries(operations).flatMap(([method, one]) => of(path, method, one.requestBody?.content)));
        }"""
    )
    assert len(examples) > 20
    for method, path, media, text in examples:
        if media == "application/json":
            schema = DOCUMENTED["paths"][path][method]["requestBody"]["content"][media]["schema"]
            whole = {**schema, "components": DOCUMENTED["components"]}
            jsonschema.validate(json.loads(text), whole, format_checker=jsonschema.FormatChecker())
        elif media == "application/x-ndjson":
            assert all(json.loads(line) for line in text.splitlines())


@pytest.mark.parametrize("screen", ["a desk in the light", "a phone in the dark"])
def test_the_forms_can_be_used_by_everybody(
    door: Gateway, browser: Browser, keys: dict[str, str], axe: str, screen: str
) -> None:
    """Before a call, after a good and a bad one, with its code; nothing is wider than the screen."""
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "color_scheme": "dark"}
    with watched(browser, tolerated=AWAY, **(phone if "phone" in screen else {})) as tab:
        page = reference(door, tab, keys["write"])
        for method, path in (("GET", "/api/jobs"), ("POST", "/api/batches"), ("POST", "/v1/files")):
            form_of(page, method, path)
        form = form_of(page, "POST", "/api/jobs")
        sent(form)
        form.get_by_label("Body").fill('{"messages": []}')
        sent(form)
        form.get_by_text("As code").click()
        fine(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")


def test_without_keys_no_key_is_asked_for(tmp_path: Path, tab: Watched) -> None:
    """And a file is uploaded by its form."""
    with stack(tmp_path) as running:
        door = gateway(running)
        page = reference(door, tab)
        expect(page.get_by_text("No key is needed here")).to_be_visible()
        expect(page.get_by_label("API key")).to_have_count(0)
        lines = tmp_path / "batch.jsonl"
        lines.write_text('{"custom_id": "1", "body": {"messages": [{"role": "user", "content": "Hello"}]}}\n')
        form = form_of(page, "POST", "/v1/files")
        form.get_by_label("file").set_input_files(lines)
        assert sent(form).startswith("200")
        assert HTTP.get(f"{door.url}/v1/files/{answer_in(form)['id']}").status_code == 200
