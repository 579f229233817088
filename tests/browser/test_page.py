"""The page in a real browser, before the real service."""

from __future__ import annotations

import atexit
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Playwright, Request, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from local.temporal_server import binary
from tests.support.browser import TIMEOUT_MS, Watched, watched, window
from tests.support.gateway import Gateway, alone, gateway
from tests.support.needs import program
from tests.support.receiver import Answer, receiver
from tests.support.simulator_process import prompt
from tests.support.stack import ROOT, Process, Stack, free_port, stack

IMAGES = ROOT / "docs" / "images"
TEXT = " ".join(f"word{number}" for number in range(120)) + " 🌊 end"
SLOW: dict[str, Any] = {"tokens_per_second": 60}
HELD: dict[str, Any] = {"text": TEXT, "tokens_per_second": 200, "hold": 100}
"""An answer that stops in the middle, until ``place.simulator.release(words)``."""
AWAY = ("Failed to load resource", "net::ERR")
"""What a browser says when the server is away, which no page can prevent."""

HTTP = httpx2.Client(trust_env=False, timeout=30)
atexit.register(HTTP.close)  # two modules of tests use it
expect.set_options(timeout=TIMEOUT_MS)


# --------------------------------------------------------------------------------------------------- the place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {
        "CHATJOBS_PORT": str(free_port()),  # the gateway comes back there after it was killed
        "CHATJOBS_CONCURRENCY": "20",
        "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1",
    }
    with stack(tmp_path_factory.mktemp("page"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


@pytest.fixture(autouse=True)
def logs(place: Stack) -> Iterator[None]:
    yield
    sys.stdout.write(place.news())


def post(door: Gateway, words: str = "", *, fields: dict[str, Any] | None = None, **script: Any) -> str:
    """The id of a new job; ``fields`` are the request's, the others its script's."""
    body = {"messages": [{"role": "user", "content": prompt(words, **script)}], **(fields or {})}
    answer = HTTP.post(f"{door.url}/api/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


def ended(door: Gateway, words: str = "", *, fields: dict[str, Any] | None = None, **script: Any) -> str:
    """The id of a job that has ended."""
    body = {"messages": [{"role": "user", "content": prompt(words, **script)}], **(fields or {})}
    headers = {"Prefer": "wait=20"}
    answer = HTTP.post(f"{door.url}/api/jobs", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["jobId"])


def get(door: Gateway, path: str) -> Any:
    answer = HTTP.get(f"{door.url}{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def job_url(door: Gateway, job_id: str) -> str:
    return f"{door.url}/jobs/{job_id}"


def answer_of(page: Page) -> str:
    return page.get_by_test_id("answer").text_content() or ""


def assert_answer(page: Page, text: str) -> None:
    """The page shows this answer, once it is rendered to its end."""
    with suppress(PlaywrightTimeout):
        page.wait_for_function("t => document.querySelector('[data-testid=answer]')?.textContent === t", arg=text)
    assert answer_of(page) == text


def wait_for_words(page: Page, more_than: int = 0) -> str:
    """The answer, once it has more characters than that and is not yet whole."""
    page.wait_for_function("n => document.querySelector('[data-testid=answer]')?.textContent.length > n", arg=more_than)
    found = answer_of(page)
    assert len(found) < len(TEXT), "the answer is whole already"
    return found


def head(page: Page) -> Any:
    return page.locator(".title .status")


def row(page: Page, job_id: str) -> Any:
    return page.locator("tbody tr", has=page.locator(f'a[title="{job_id}"]'))


def ask(page: Page, words: str) -> None:
    """Type into the chat box, and send it with the keyboard."""
    page.get_by_label("New chat").get_by_role("textbox", name="New chat").fill(words)
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/*")


def picture(page: Page, tmp_path: Path, name: str) -> None:
    """A screenshot; into the documentation where CHATJOBS_SCREENSHOTS=1 asks for it."""
    folder = IMAGES if os.environ.get("CHATJOBS_SCREENSHOTS") == "1" else tmp_path
    path = folder / name
    page.screenshot(path=path, animations="disabled")
    assert path.stat().st_size <= 200_000


# -------------------------------------------------------------------------------------------------------- chat


def test_a_chat_shows_its_answer_as_it_appears(place: Stack, door: Gateway, tab: Watched) -> None:
    page = tab.open(door.url)
    words = prompt("Tell me", **HELD)
    ask(page, words)
    wait_for_words(page)
    expect(head(page)).to_have_text("In progress")
    expect(page.locator(".timeline")).to_contain_text("characters")
    place.simulator.release(words)
    expect(page.get_by_text("characters ·")).to_be_visible()
    expect(head(page)).to_have_text("Completed")
    assert_answer(page, TEXT)
    steps = page.locator(".timeline li")
    expect(steps).to_have_count(4)
    assert [step.get_attribute("data-state") for step in steps.all()] == ["done"] * 4
    expect(page.get_by_role("region", name="Attempts")).to_contain_text("tok/s")


def test_a_conversation_goes_on(door: Gateway, tab: Watched) -> None:
    """The follow-up is a job of its own, which knows what was said before."""
    page = tab.open(door.url)
    ask(page, prompt("First", text="The first answer."))
    expect(head(page)).to_have_text("Completed")
    before = page.url
    page.get_by_role("textbox", name="Follow up").fill("And then?")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != before)
    expect(page.locator(".message.user")).to_have_count(2)
    expect(page.locator(".message.assistant").first).to_contain_text("The first answer.")
    expect(head(page)).to_have_text("Completed")


def test_a_refused_request_says_why(door: Gateway, tab: Watched) -> None:
    """The prompt stays where it was typed."""
    tab.tolerated = AWAY
    page = tab.open(door.url)
    page.get_by_text("Options").click()
    page.get_by_label("Metadata key=value, …").fill(f"key={'x' * 600}")
    page.get_by_role("textbox", name="New chat").fill("Keep me")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("/metadata")
    expect(page.get_by_role("textbox", name="New chat")).to_have_value("Keep me")


def test_what_is_typed_stays_while_jobs_come_and_go(door: Gateway, tab: Watched) -> None:
    """The list changes every second; the fields above it do not."""
    page = tab.open(door.url)
    chat = page.get_by_label("New chat")
    chat.get_by_text("Options").click()
    typed = {"Model": "mistral-large-latest", "Temperature": "0.4", "System message": "Be brief"}
    for name, value in typed.items():
        chat.get_by_label(name).fill(value)
    expect(row(page, ended(door))).to_contain_text("Completed")
    for name, value in typed.items():
        expect(chat.get_by_label(name)).to_have_value(value)


def test_a_reload_in_mid_stream_goes_on(place: Stack, door: Gateway, tab: Watched) -> None:
    """Nothing is missing and nothing is there twice."""
    words = uuid.uuid4().hex
    page = tab.open(job_url(door, post(door, words, **HELD)))
    had = wait_for_words(page, 100)
    page.reload()
    assert wait_for_words(page, len(had) - 1).startswith(had)
    place.simulator.release(words)
    expect(head(page)).to_have_text("Completed")
    assert_answer(page, TEXT)


def test_an_answer_that_starts_over_is_shown_once(place: Stack, door: Gateway, tab: Watched) -> None:
    """A reset drops the text so far, and says so."""
    words, faults = uuid.uuid4().hex, [{"kind": "cut", "after": 120}]
    page = tab.open(job_url(door, post(door, words, fields={"onInterrupt": "restart"}, faults=faults, **HELD)))
    wait_for_words(page)
    place.simulator.release(words)
    expect(page.get_by_text("The answer started over")).to_be_visible()
    expect(head(page)).to_have_text("Completed")
    assert_answer(page, TEXT)
    expect(page.get_by_role("region", name="Attempts").locator("li")).to_have_count(2)


NGINX = """
daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {url}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
    }}
  }}
}}
"""


@contextmanager
def nginx(directory: Path, door: Gateway) -> Iterator[str]:
    """The URL of Debian's nginx before the gateway, with nothing set for event streams."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port, url=door.url))
    command = [program("nginx"), "-c", str(config), "-p", str(directory), "-g", "error_log stderr notice;"]
    process = Process("nginx", command, env=os.environ, log=directory / "nginx.log", ready="start worker")
    process.start(wait=False)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(transport=httpx2.HTTPTransport(retries=50), trust_env=False) as client:
            client.get(f"{url}/healthz")
        yield url
    finally:
        process.kill()


def test_the_gateway_is_killed_behind_nginx_and_the_text_goes_on(
    place: Stack, door: Gateway, browser: Browser, tmp_path: Path
) -> None:
    words = prompt(**HELD)
    with nginx(tmp_path, door) as url, watched(browser, tolerated=AWAY) as tab:
        page = tab.open(url)
        ask(page, words)
        wait_for_words(page)  # in pieces: nginx does not collect the stream
        door.process.kill()
        expect(page.get_by_text("Reconnecting")).to_be_visible()
        place.simulator.release(words)
        door.process.start()
        expect(head(page)).to_have_text("Completed")
        assert_answer(page, TEXT)


# ------------------------------------------------------------------------------------------------- what can be done


def test_cancel(door: Gateway, tab: Watched) -> None:
    """The text so far stays."""
    page = tab.open(job_url(door, post(door, faults=[{"kind": "endless"}], **SLOW)))
    wait_for_words(page, 20)
    page.get_by_role("button", name="Cancel").click()
    expect(head(page)).to_have_text("Cancelled")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert len(answer_of(page)) > 20


def test_a_failed_job_is_resumed(door: Gateway, tab: Watched) -> None:
    """The same job goes on from its text, and the page follows it."""
    text, cut = "It was the best of times.", {"kind": "cut", "after": 3}
    failed = ended(door, text=text, faults=[cut], fields={"retry": {"attempts": 1}})
    before = get(door, f"/api/jobs/{failed}")
    assert (before["status"], text.startswith(before["content"])) == ("failed", True)
    page = tab.open(job_url(door, failed))
    expect(head(page)).to_have_text("Failed")
    page.get_by_role("button", name="Resume").click()
    expect(head(page)).to_have_text("Completed")
    assert_answer(page, text)
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)
    assert get(door, f"/api/jobs/{failed}")["content"] == text


def test_replay_with_changes(door: Gateway, tab: Watched) -> None:
    """Only what was changed is another; both jobs know of each other."""
    original = ended(door, "Again", fields={"temperature": 0.3, "max_tokens": 500, "metadata": {"order": "42"}})
    page = tab.open(job_url(door, original))
    page.get_by_role("button", name="Replay…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Model", exact=True).fill("mistral-large-latest")
    dialog.get_by_label("Temperature").fill("")
    dialog.get_by_label("Random seed").fill("7")
    dialog.get_by_role("button", name="Replay").click()
    page.wait_for_url(lambda url: original not in url)
    expect(head(page)).to_have_text("Completed")
    expect(page.get_by_role("region", name="Details")).to_contain_text("Replay of")
    replayed = page.url.rpartition("/")[2]
    asked, before = (get(door, f"/api/jobs/{one}/request") for one in (replayed, original))
    assert asked.pop("model") == "mistral-large-latest"
    assert asked.pop("random_seed") == 7
    before.pop("temperature")
    assert asked == before
    page.get_by_role("region", name="Details").locator(f'a[title="{original}"]').click()
    expect(page.get_by_role("region", name="Details").locator(f'a[title="{replayed}"]')).to_be_visible()


def test_a_refused_replay_can_be_corrected(door: Gateway, tab: Watched) -> None:
    tab.tolerated = AWAY
    page = tab.open(job_url(door, ended(door)))
    page.get_by_role("button", name="Replay…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Model", exact=True).fill("x" * 65)
    dialog.get_by_role("button", name="Replay").click()
    expect(dialog.get_by_role("alert")).to_contain_text("/model")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_the_curl_command_starts_the_same_job(door: Gateway, browser: Browser) -> None:
    """Run by a real shell, whatever quotes are in the prompt."""
    words = 'It\'s "quoted" $HOME `ls` \\ 🌊\nnext line'
    job_id = ended(door, words)
    with watched(browser, permissions=["clipboard-read", "clipboard-write"]) as tab:
        page = tab.open(job_url(door, job_id))
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.get_by_text("curl command copied")).to_be_visible()
        command = page.evaluate("navigator.clipboard.readText()")
    made = subprocess.run(["sh", "-c", f"{command} --silent --noproxy '*'"], capture_output=True, check=True, text=True)
    asked = get(door, f"/api/jobs/{json.loads(made.stdout)['jobId']}/request")
    assert asked == get(door, f"/api/jobs/{job_id}/request")
    assert words in asked["messages"][0]["content"]


def test_webhook_tries_are_shown(door: Gateway, tab: Watched) -> None:
    """Status and answer of each; the page looks again by itself."""
    with receiver() as hooks:
        hooks.answer("/hook", [Answer(503, body=b"<b>later</b>"), Answer(200)])
        job_id = post(door, fields={"callback": hooks.url("/hook")})
        page = tab.open(job_url(door, job_id))
        webhook = page.get_by_role("region", name="Webhook")
        expect(webhook).to_contain_text("HTTP 503")
        webhook.get_by_text("Its answer").click()
        expect(webhook.locator("pre")).to_have_text("<b>later</b>")
        expect(page.locator(".timeline li").last).to_contain_text("1 try, next")
        expect(webhook).to_contain_text("HTTP 200")
        expect(page.locator(".timeline li").last).to_contain_text("delivered, 2 tries")


def test_a_delivery_is_made_again(door: Gateway, tab: Watched) -> None:
    """One click, and the new try shows by itself."""
    with receiver() as hooks:
        job_id = ended(door, fields={"callback": hooks.url("/again")})
        page = tab.open(job_url(door, job_id))
        webhook = page.get_by_role("region", name="Webhook")
        expect(webhook.get_by_text("HTTP 200")).to_have_count(1)
        webhook.get_by_role("button", name="Retry now").click()
        expect(page.get_by_text("It will be delivered again")).to_be_visible()
        expect(webhook.get_by_text("HTTP 200")).to_have_count(2)
        expect(webhook.get_by_role("button", name="Retry now")).to_be_enabled()


def test_a_delivery_that_waits_is_tried_now(door: Gateway, tab: Watched) -> None:
    """It would wait an hour for its next try."""
    with receiver() as hooks:
        hooks.answer("/later", [Answer(503, headers={"retry-after": "3600"}), Answer(200)])
        page = tab.open(job_url(door, ended(door, fields={"callback": hooks.url("/later")})))
        webhook = page.get_by_role("region", name="Webhook")
        expect(webhook).to_contain_text("pending, next try")
        webhook.get_by_role("button", name="Retry now").click()
        expect(page.get_by_text("The next try is made now")).to_be_visible()
        expect(webhook).to_contain_text("HTTP 200")
        expect(page.locator(".timeline li").last).to_contain_text("delivered, 2 tries")


def test_a_waiting_job_shows_its_place(door: Gateway, tab: Watched) -> None:
    """The lane is paused by a 429; afterwards there is no more word of it."""
    faults = [{"kind": 429, "retry_after": "4"}]
    page = tab.open(job_url(door, post(door, text="At last.", faults=faults)))
    expect(page.get_by_text(re.compile(r"number 1 in the queue, expected in \d"))).to_be_visible()
    expect(head(page)).to_have_text("Completed")
    expect(page.get_by_text("in the queue")).to_have_count(0)
    assert_answer(page, "At last.")


def test_a_pause_is_shown_everywhere_until_it_is_resumed(door: Gateway, tab: Watched) -> None:
    """Since when and why, on the list and on a job; a delayed job says when it starts."""
    begun = HTTP.post(f"{door.url}/api/pauses", json={"reason": "The budget is spent"})
    page = tab.open(door.url)
    banner = page.get_by_role("status", name="Paused")
    expect(banner).to_contain_text("Everything is paused since")
    expect(banner).to_contain_text("The budget is spent")
    expect(page.get_by_role("region", name="Lanes")).to_have_count(0)
    page.goto(job_url(door, post(door, text="At last.")))
    expect(page.get_by_text("Paused: number 1 in the queue")).to_be_visible()
    page.goto(door.url)
    lanes = page.get_by_role("region", name="Lanes")
    expect(lanes).to_contain_text(re.compile("mistral-small paused0 running · .* · 1 waiting \\(1 default\\)"))
    page.go_back()
    banner.get_by_role("button", name="Resume").click()
    expect(banner).to_have_count(0)
    expect(head(page)).to_have_text("Completed")
    assert HTTP.delete(f"{door.url}/api/pauses/{begun.json()['pauseId']}").status_code == 404


def test_a_delayed_job_says_when_it_starts(door: Gateway, tab: Watched) -> None:
    start_at = datetime.now(UTC) + timedelta(hours=2)
    job_id = post(door, fields={"startAt": start_at.isoformat()})
    page = tab.open(door.url)
    expect(row(page, job_id)).to_contain_text("starts ")
    page.goto(job_url(door, job_id))
    expect(page.get_by_text(re.compile("Starts .*, in 1 h 59 min"))).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(head(page)).to_have_text("Cancelled")


def test_a_job_that_was_reopened_goes_on_without_a_reload(place: Stack, door: Gateway, tab: Watched) -> None:
    """An operator resets its failed run; the page is told by the feed."""
    words = "Half of it. And the rest, which takes its time to come."
    job_id = ended(door, text=words, faults=[{"kind": 400}], **SLOW)
    page = tab.open(job_url(door, job_id))
    expect(head(page)).to_have_text("Failed")
    expect(page.locator(".connection")).to_have_attribute("data-state", "ended")
    which = ("--workflow-id", job_id, "--type", "FirstWorkflowTask", "--reason", "a test")
    command = [str(binary("temporal")), "workflow", "reset", *which, "--address", place.temporal_address]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    expect(head(page)).to_have_text("Completed")
    assert_answer(page, words)
    expect(page.get_by_role("region", name="Attempts").locator("li")).to_have_count(2)


def test_who_is_in_a_hurry_says_so(door: Gateway, tab: Watched) -> None:
    """The usual priority is not sent; a follow-up keeps another one."""
    page = tab.open(door.url)
    chat = page.get_by_label("New chat")
    chat.get_by_text("Options").click()
    expect(chat.get_by_label("Priority")).to_have_value("3")
    chat.get_by_label("Priority").select_option("1")
    ask(page, prompt("Hurry"))
    expect(head(page)).to_have_text("Completed")
    expect(page.get_by_role("region", name="Details")).to_contain_text("Priority")
    assert get(door, f"/api/jobs/{page.url.rpartition('/')[2]}/request")["priority"] == 1
    expect(page.get_by_label("Follow up", exact=True).get_by_label("Priority")).to_have_value("1")


# --------------------------------------------------------------------------------------------------- reference


def test_the_reference_shows_every_operation(door: Gateway, tab: Watched, tmp_path: Path) -> None:
    """From our own files only; links lead to what they name."""
    asked: list[str] = []
    tab.context.on("request", lambda request: asked.append(request.url))
    page = tab.open(f"{door.url}/docs")
    expect(page.get_by_role("heading", name="chatjobs API")).to_be_visible()
    document = get(door, "/openapi.json")
    operations = [(path, method) for path, found in document["paths"].items() for method in found]
    expect(page.locator("article.operation")).to_have_count(len(operations))
    for path, method in operations:
        expect(page.get_by_role("article", name=f"{method.upper()} {path}", exact=True)).to_have_count(1)
    assert page.get_by_text("Other", exact=True).count() == 0, "every operation has a group"
    ids = set(page.eval_on_selector_all("[id]", "all => all.map(one => '#' + one.id)"))
    assert set(page.eval_on_selector_all("a[href^='#']", "all => all.map(one => one.getAttribute('href'))")) <= ids
    picture(page, tmp_path, "api.png")
    page.get_by_role("article", name="POST /api/jobs", exact=True).get_by_role("link", name="JobAccepted").click()
    expect(page.locator("#schema-JobAccepted")).to_contain_text("eventsUrl")
    expect(page.locator("#schema-JobAccepted .params")).to_be_visible()
    page.reload()
    expect(page.locator("#schema-JobAccepted .params")).to_be_in_viewport()
    assert {url for url in asked if not url.startswith(f"{door.url}/")} == set()


def test_the_reference_on_a_phone(door: Gateway, browser: Browser) -> None:
    """Nothing is wider than the screen, with all that can be opened."""
    with watched(browser, viewport={"width": 390, "height": 844}, is_mobile=True, color_scheme="dark") as tab:
        page = tab.open(f"{door.url}/docs")
        expect(page.get_by_role("heading", name="chatjobs API")).to_be_visible()
        page.eval_on_selector_all("details", "all => all.forEach(one => (one.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


# -------------------------------------------------------------------------------------------------------- list


def test_the_list_is_live(place: Stack, door: Gateway, tab: Watched) -> None:
    """Jobs that others start appear, and change, without a reload."""
    page = tab.open(door.url)
    expect(page.get_by_role("banner").get_by_text("Live")).to_be_visible()
    completed = page.locator('.tabs a[data-status="completed"] .number')
    expect(completed).to_have_text(re.compile(r"\d"))
    before = int((completed.text_content() or "").replace(",", ""))
    words = uuid.uuid4().hex
    job_id = post(door, words, **HELD)
    expect(row(page, job_id)).to_contain_text("In progress")
    place.simulator.release(words)
    expect(row(page, job_id)).to_contain_text("Completed")
    expect(completed).to_have_text(f"{before + 1:,}")


def test_what_is_chosen_stands_in_the_address(door: Gateway, tab: Watched) -> None:
    """It survives a reload and the back button, and holds for what comes in."""
    order = uuid.uuid4().hex
    failed = ended(door, fields={"metadata": {"order": order}}, faults=[{"kind": 400}])
    other = ended(door, fields={"metadata": {"order": "another"}}, faults=[{"kind": 400}])
    page = tab.open(door.url)
    page.locator('.tabs a[data-status="failed"]').click()
    expect(row(page, other)).to_be_visible()
    page.get_by_role("search").get_by_label("Metadata").fill(f"order={order}")
    page.get_by_role("link", name="15 min").click()
    page.wait_for_url(lambda url: "window=15m" in url and f"metadata=order%3D{order}" in url and "status=failed" in url)
    expect(row(page, other)).to_have_count(0)
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(row(page, failed)).to_contain_text("upstream_rejected")
    expect(page.get_by_role("search").get_by_label("Metadata")).to_have_value(f"order={order}")
    expect(page.locator('.tabs a[aria-current="page"]')).to_contain_text("Failed")
    ended(door, fields={"metadata": {"order": order}})  # completed: it does not match
    newer = ended(door, fields={"metadata": {"order": order}}, faults=[{"kind": 400}])
    expect(row(page, newer)).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(2)
    page.go_back()
    expect(page.get_by_role("link", name="1 hour")).to_have_attribute("aria-current", "true")


def test_older_jobs_come_on_demand(door: Gateway, tab: Watched) -> None:
    tag = uuid.uuid4().hex
    for _ in range(55):
        post(door, fields={"metadata": {"tag": tag}})
    page = tab.open(f"{door.url}/?metadata=tag%3D{tag}")
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("button", name="Show older jobs").click()
    expect(page.locator("tbody tr")).to_have_count(55)
    assert len({a.get_attribute("title") for a in page.locator("tbody a").all()}) == 55


def test_the_keyboard_is_enough(door: Gateway, tab: Watched) -> None:
    job_id = ended(door)
    page = tab.open(door.url)
    link = row(page, job_id).get_by_role("link")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs/{job_id}")
    page.get_by_role("button", name="Replay…").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Replay…")).to_be_focused()


# ---------------------------------------------------------------------------------------------------- strangers

EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>[click](javascript:window.hacked=3)'


def test_what_a_model_says_is_text(door: Gateway, tab: Watched) -> None:
    """Never markup: neither answers nor reasoning, prompts, metadata, nor what stands in the address."""
    fields = {"metadata": {"<i>k</i>": EVIL, "url": "javascript:window.hacked=4"}}
    job_id = ended(door, EVIL, fields=fields, text=EVIL, reasoning=EVIL)
    page = tab.open(job_url(door, job_id))
    expect(head(page)).to_have_text("Completed")
    assert_answer(page, EVIL)
    expect(page.locator(".message.user .text")).to_contain_text(EVIL)
    expect(page.get_by_role("region", name="Details")).to_contain_text(EVIL)
    page.goto(f"{door.url}/?{urlencode({'metadata': EVIL})}")
    expect(page.get_by_text("No job matches")).to_be_visible()
    tab.tolerated = AWAY
    page.goto(f"{door.url}/?{urlencode({'model': EVIL})}")
    expect(page.get_by_role("alert")).to_contain_text("cannot be a model’s name")
    page.goto(door.url)
    expect(row(page, job_id)).to_contain_text("url=javascript:")
    assert page.evaluate("window.hacked") is None
    assert page.locator('[href^="javascript" i], [onerror], [onclick], main img').count() == 0


def test_text_that_streams_is_text(door: Gateway, tab: Watched) -> None:
    pieces = [EVIL[start : start + 5] for start in range(0, len(EVIL), 5)]
    page = tab.open(job_url(door, post(door, pieces=pieces, tokens_per_second=60)))
    expect(head(page)).to_have_text("Completed")
    assert_answer(page, EVIL)
    assert page.evaluate("window.hacked") is None


def test_an_unknown_job_says_so(door: Gateway, tab: Watched) -> None:
    tab.tolerated = AWAY
    page = tab.open(job_url(door, "job_nobody"))
    expect(page.get_by_text("There is no job with this id here")).to_be_visible()


# ------------------------------------------------------------------------------------------------------- keys


def test_sign_in_and_out(browser: Browser, tmp_path: Path) -> None:
    """The key is exchanged for a cookie that scripts cannot read, and streams use it; a revoked key signs out."""
    with alone(tmp_path) as guarded:
        added = keys(guarded, "add", "--json")
        key = added["key"]
        closed = gateway(guarded)
        with watched(browser, tolerated=AWAY) as tab:
            page = tab.open(closed.url)
            page.get_by_label("API key").fill("cj_wrong")
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("alert")).to_be_visible()
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("banner").get_by_text("Live")).to_be_visible()
            assert key not in page.evaluate("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})")
            page.reload()
            expect(page.get_by_role("banner").get_by_text("Live")).to_be_visible()
            page.get_by_role("button", name="Sign out").click()
            expect(page.get_by_label("API key")).to_be_visible()
            page.reload()
            expect(page.get_by_label("API key")).to_have_value("")
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("banner").get_by_text("Live")).to_be_visible()
            keys(guarded, "revoke", added["id"], "--json")
            expect(page.get_by_label("API key")).to_be_visible()


def test_the_page_authenticates_by_its_cookie_alone(browser: Browser, tmp_path: Path) -> None:
    """Calls and streams of the client have no Authorization header, and go to the page's own origin only."""
    with alone(tmp_path) as guarded:
        key = keys(guarded, "add", "--json")["key"]
        closed = gateway(guarded)
        with watched(browser, tolerated=AWAY) as tab:
            page = tab.open(closed.url)
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("banner").get_by_text("Live")).to_be_visible()
            requests: list[Request] = []
            page.on("request", lambda one: requests.append(one))
            page.reload()
            expect(page.get_by_role("banner").get_by_text("Live")).to_be_visible()
            calls = {urlsplit(one.url).path: one.all_headers() for one in requests if "/api/" in one.url}
            assert {"/api/session", "/api/feed", "/api/jobs", "/api/stats"} <= set(calls)
            assert all("cookie" in headers and "authorization" not in headers for headers in calls.values())
            assert all(one.url.startswith(f"{closed.url}/") for one in requests)


def keys(place: Stack, *arguments: str) -> Any:
    """What `starter.py keys` prints."""
    command = [sys.executable, "starter.py", "keys", *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, env=place.env, capture_output=True, check=True).stdout)


# ------------------------------------------------------------------------------------------------------- tabs


def test_a_hidden_tab_closes_its_stream(place: Stack, door: Gateway, playwright: Playwright, tmp_path: Path) -> None:
    """And goes on where it was when it is shown."""
    words = uuid.uuid4().hex
    with window(playwright, tmp_path) as tabs:
        page = tabs.open(job_url(door, post(door, words, **HELD)))
        wait_for_words(page)
        other = tabs.open(door.url)
        expect(page.locator(".connection")).to_have_attribute("data-state", "paused")
        had = answer_of(page)
        place.simulator.release(words)
        expect(row(other, page.url.rpartition("/")[2])).to_contain_text("Completed")
        assert answer_of(page) == had
        assert len(had) < len(TEXT)
        page.bring_to_front()
        expect(head(page)).to_have_text("Completed")
        assert_answer(page, TEXT)


def test_seven_tabs(door: Gateway, playwright: Playwright, tmp_path: Path) -> None:
    """A browser opens six connections to a host; only the tab in front has a stream."""
    with window(playwright, tmp_path) as tabs:
        pages = [tabs.open(door.url) for _ in range(6)]
        pages.append(tabs.open(job_url(door, post(door, text=TEXT, **SLOW))))
        expect(head(pages[-1])).to_have_text("Completed")
        assert_answer(pages[-1], TEXT)
        for page in pages[:-1]:
            expect(page.locator(".connection")).to_have_attribute("data-state", "paused")
        pages[0].bring_to_front()
        expect(pages[0].locator(".connection")).to_have_attribute("data-state", "live")
        job_id = post(door)
        expect(row(pages[0], job_id)).to_contain_text("Completed")


# ------------------------------------------------------------------------------------------------------- looks


def history(place: Stack) -> None:
    """Jobs of the last quarter of an hour, as a service has them that is used."""
    dice = random.Random(7)  # noqa: S311 - the same picture each time
    now = time.time_ns() // 1_000
    with closing(sqlite3.connect(place.data_dir / "chatjobs.db", timeout=10)) as database, database:
        for second in range(15, 900, 5):
            for number in range(dice.choice((0, 1, 1, 2, 3) if second > 300 else (1, 2, 3, 4))):
                took = dice.lognormvariate(1.6, 0.45)
                ended_at = now - second * 1_000_000
                status = "failed" if dice.random() < (0.2 if 380 < second < 460 else 0.02) else "completed"
                job_id = f"job_{uuid.UUID(int=dice.getrandbits(128)).hex}"
                values = {
                    "id": job_id,
                    "tenant": "default",
                    "request_id": f"past-{second}-{number}",
                    "body_hash": "",
                    "model": "mistral-small-latest",
                    "metadata": "{}",
                    "status": status,
                    "created_at": ended_at - int(took * 1e6),
                    "started_at": ended_at - int(took * 1e6),
                    "progressed_at": ended_at,
                    "completed_at": ended_at,
                    "workflow_started_at": ended_at,
                    "fence": 1,
                    "attempt": 1,
                    "epoch": 1,
                    "position": 0,
                    "tail": "",
                    "tail_channel": 0,
                    "token_count": int(took * 50),
                    "revision": 1,
                }
                insert_row(database, "jobs", values)
                first: dict[str, Any] = {"started_at": ended_at, "estimated": False, "tokens_before": 0}
                insert_row(
                    database,
                    "attempts",
                    {"job_id": job_id, "number": 1, **first, "first_token_ms": int(300 + took * 40)},
                )


def insert_row(database: sqlite3.Connection, table: str, values: dict[str, Any]) -> None:
    names = ", ".join(values)
    places = ", ".join(f":{name}" for name in values)
    database.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", values)  # noqa: S608 - names from above


def test_pictures(place: Stack, door: Gateway, tab: Watched, tmp_path: Path) -> None:
    """What the documentation shows, in a list and a job that are at work."""
    history(place)
    page = tab.open(f"{door.url}/?window=15m")

    def question(words: str, fields: dict[str, Any], **script: Any) -> dict[str, Any]:
        """A request as people write it; its script is in the simulator."""
        place.simulator.script(match=words, times=1, **script)
        return {"messages": [{"role": "user", "content": words}], **fields}

    for words, fields, script in (
        (
            "Why do tides change?",
            {"metadata": {"order": "1042", "team": "support"}, "model": "mistral-medium-latest"},
            {},
        ),
        ("List the ports of Brittany, with their depths.", {"max_tokens": 9, "metadata": {"team": "docs"}}, {}),
        ("Translate the attached notice into Dutch.", {"metadata": {"order": "1043", "team": "support"}}, {}),
        ("Which of these routes is open in winter?", {"metadata": {"team": "search"}}, {"faults": [{"kind": 422}]}),
        ("Summarise last night's log.", {"metadata": {"nightly": "yes"}, "model": "mistral-large-latest"}, {}),
    ):
        ended(door, fields=question(words, fields, **script))
    for words, team in (("Write a page about harbour fees.", "docs"), ("Explain the delay of order 1044.", "support")):
        post(door, fields=question(words, {"metadata": {"team": team}}, tokens=400, **SLOW))
    page.reload()
    expect(page.locator(".chart strong").first).to_have_text(re.compile(r"\d{3}"))
    expect(page.locator("tbody tr").first).to_contain_text("chars")
    expect(page.locator("tbody tr").nth(1)).to_contain_text("chars")
    picture(page, tmp_path, "list.png")
    dawn = "What does the harbour look like at dawn?"
    place.simulator.script(match=dawn, times=1, tokens=300, tokens_per_second=90, hold=160)
    ask(page, dawn)
    wait_for_words(page, 520)
    picture(page, tmp_path, "job.png")
    place.simulator.release(dawn)


def test_on_a_phone_in_the_dark(door: Gateway, browser: Browser, tmp_path: Path) -> None:
    """Nothing is wider than the screen."""
    screen: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    metadata = {"customer": "a rather long value that has to go somewhere", "order": "42"}
    job_id = ended(door, "Why do tides change? " * 8, fields={"metadata": metadata}, text=TEXT + "x" * 300)
    with watched(browser, color_scheme="dark", **screen) as tab:
        page = tab.open(job_url(door, job_id))
        expect(head(page)).to_have_text("Completed")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.goto(f"{door.url}/?window=15m")
        expect(row(page, job_id)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        expect(page.locator(".chart strong").first).to_have_text(re.compile(r"[1-9]"))
        picture(page, tmp_path, "phone-dark.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(door: Gateway, browser: Browser, scheme: str) -> None:
    """WCAG 2.2 AA: text has a contrast of 4.5 to what is behind it."""
    with watched(browser, color_scheme=scheme) as tab:
        page = tab.open(door.url)
        names = ["bg", "surface", "sunken", "ink", "muted", "accent", "on-accent", "in_progress", "completed"]
        names += ["incomplete", "failed"]
        script = "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
        colour = dict(zip(names, page.evaluate(script, names), strict=True))
    behind = [("ink", "bg"), ("ink", "sunken"), ("muted", "bg"), ("muted", "surface"), ("muted", "sunken")]
    behind += [("on-accent", "accent"), *((name, "surface") for name in names[7:])]
    assert {
        pair: contrast(colour[pair[0]], colour[pair[1]])
        for pair in behind
        if contrast(*(colour[p] for p in pair)) < 4.5
    } == {}


def contrast(one: str, other: str) -> float:
    """Of two colours as #rrggbb (WCAG 2.2, relative luminance)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
