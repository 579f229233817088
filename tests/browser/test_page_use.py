"""The page as people use it: places, filters, sign-in, headings, in a real browser before the real service."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import test_page
from tests.browser.test_page import AWAY, ended, get, head, job_url, keys, post, row
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, alone, gateway
from tests.support.npm import installed
from tests.support.stack import Stack, free_port, stack

pytestmark = pytest.mark.long

HTTP = test_page.HTTP
LONG = "\n\n".join(f"Paragraph {number}. " + "the harbour lies still " * 20 for number in range(30))
STEADY: dict[str, Any] = {"tokens_per_second": 100}
IN_SIGHT = "document.querySelector('.message.assistant').getBoundingClientRect().bottom <= innerHeight"
THERE = """([id, top]) =>
  Math.abs(document.querySelector(`tr[data-job='${id}']`)?.getBoundingClientRect().top - top) <= 2"""
HAS_WORDS = "n => document.querySelector('[data-testid=answer]')?.textContent.length > n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "CHATJOBS_CONCURRENCY": "20", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}
    with stack(tmp_path_factory.mktemp("page"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


# ------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("width", [1280, 390])
def test_a_finished_long_answer_opens_at_its_top(door: Gateway, browser: Browser, width: int) -> None:
    job_id = ended(door, text=LONG, tokens_per_second=100_000)
    with watched(browser, viewport={"width": width, "height": 800}) as tab:
        page = tab.open(job_url(door, job_id))
        page.wait_for_function(HAS_WORDS, arg=len(LONG) - 100)  # rendered, without the ends of paragraphs
        expect(page.get_by_role("textbox", name="Follow up")).to_be_attached()
        assert page.evaluate("scrollY") == 0
        assert page.evaluate("document.activeElement.tagName") == "BODY"  # the space bar turns pages, and no keyboard


@pytest.mark.parametrize("width", [1280, 390])
def test_a_running_answer_is_followed_until_the_reader_scrolls_up(door: Gateway, browser: Browser, width: int) -> None:
    """Then a control leads back to the end, and it is followed again. On a phone more follows below the answer."""
    job_id = post(door, text=LONG, **STEADY)
    with watched(browser, viewport={"width": width, "height": 700}) as tab:
        page = tab.open(job_url(door, job_id))
        page.wait_for_function(HAS_WORDS, arg=2500)
        page.wait_for_function(f"() => scrollY > 0 && {IN_SIGHT}")
        jump = page.get_by_role("button", name="Jump to the end")
        expect(jump).to_have_count(0)
        page.evaluate("scrollBy(0, -300)")
        expect(jump).to_be_visible()
        at, had = page.evaluate("scrollY"), len(test_page.answer_of(page))
        page.wait_for_function(HAS_WORDS, arg=had + 300)
        assert page.evaluate("scrollY") == at
        jump.click()
        expect(jump).to_have_count(0)
        had = len(test_page.answer_of(page))
        page.wait_for_function(HAS_WORDS, arg=had + 300)
        page.wait_for_function(f"() => {IN_SIGHT}")
    HTTP.post(f"{door.url}/api/jobs/{job_id}/cancel")


def test_a_limit_says_what_kept_the_job_from_ending(door: Gateway, tab: Watched) -> None:
    """The code of the limit, and under it what went wrong last."""
    faults = [{"kind": 503}] * 30
    fields = {"limits": {"totalSeconds": 3}, "retry": {"attempts": 20, "backoff": {"type": "fixed", "delay": 500}}}
    page = tab.open(job_url(door, post(door, fields=fields, faults=faults)))
    expect(head(page)).to_have_text("Failed")
    trouble = page.get_by_role("article", name="Answer").locator(".trouble")
    expect(trouble).to_contain_text("total_timeout")
    expect(trouble).to_contain_text("What kept it from ending in time: upstream")


# ------------------------------------------------------------------------------------------------------- places


def past_jobs(place: Stack, tag: str, count: int, *, among: str | None = None) -> None:
    """Finished jobs as rows, newest last; ``among`` is a job that becomes the 63rd of them from the newest on."""
    now = time.time_ns() // 1_000
    same: dict[str, Any] = {
        "tenant": "default",
        "request_id": "past",
        "body_hash": "",
        "model": "mistral-small-latest",
        "metadata": json.dumps({"tag": tag}),
        "status": "completed",
        "fence": 1,
        "attempt": 1,
        "epoch": 1,
        "position": 0,
        "tail": "",
        "tail_channel": 0,
        "token_count": 1,
        "revision": 1,
    }
    with closing(sqlite3.connect(place.data_dir / "chatjobs.db", timeout=10)) as database, database:
        for number in range(count):
            names = ("created_at", "started_at", "progressed_at", "completed_at", "workflow_started_at")
            times = dict.fromkeys(names, now - number * 1_000)
            test_page.insert_row(database, "jobs", {"id": f"job_{uuid.uuid4().hex}", **same, **times})
        moved = (now - 62 * 1_000 + 500, among)
        database.execute("UPDATE jobs SET created_at = ? WHERE id = ?", moved)


def opened_from_a_long_list(place: Stack, door: Gateway, tab: Watched) -> tuple[Page, str, float]:
    """A job that was opened far down in a filtered list of two pages: its id, and where its row was."""
    tag = uuid.uuid4().hex
    job_id = ended(door, fields={"metadata": {"tag": tag}})
    past_jobs(place, tag, 69, among=job_id)
    page = tab.open(f"{door.url}/?metadata=tag%3D{tag}")
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("button", name="Show older jobs").click()
    expect(page.locator("tbody tr")).to_have_count(70)
    link = row(page, job_id).get_by_role("link")
    link.scroll_into_view_if_needed()
    page.evaluate("scrollBy(0, 200)")
    top = place_of(page, job_id)
    link.click()
    page.wait_for_selector("main.job")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    assert page.evaluate("scrollY") == 0
    return page, job_id, top


def place_of(page: Page, job_id: str) -> float:
    return float(
        page.evaluate("id => document.querySelector(`tr[data-job='${id}']`).getBoundingClientRect().top", job_id)
    )


@pytest.mark.parametrize("reloaded", [False, True], ids=["at once", "after a reload"])
@pytest.mark.parametrize("way", ["the browser's back", "← Jobs", "Jobs"])
def test_back_from_a_job_is_the_same_place(place: Stack, door: Gateway, tab: Watched, way: str, reloaded: bool) -> None:
    """Filters, loaded pages, scroll position and focus."""
    page, job_id, top = opened_from_a_long_list(place, door, tab)
    if reloaded:
        page.reload()
        page.wait_for_selector("main.job")
    if way == "the browser's back":
        page.go_back()
    else:
        page.get_by_role("link", name=way, exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(70)
    expect(row(page, job_id).get_by_role("link")).to_be_focused()
    page.wait_for_function(THERE, arg=[job_id, top])
    assert "metadata=tag" in page.url


def test_back_from_the_second_job_is_the_list_as_it_was_left(place: Stack, door: Gateway, tab: Watched) -> None:
    """A job that was opened from another job, and newer jobs came meanwhile."""
    page, job_id, top = opened_from_a_long_list(place, door, tab)
    page.get_by_role("button", name="Replay…").click()
    page.get_by_role("dialog").get_by_role("button", name="Replay").click()
    page.wait_for_url(lambda url: job_id not in url)
    expect(head(page)).to_have_text("Completed")
    page.get_by_role("link", name="← Jobs").click()
    expect(page.locator("tbody tr")).to_have_count(70)  # the replay is in front, and the oldest is one page further
    page.wait_for_function(THERE, arg=[job_id, top])


def test_a_list_that_is_longer_than_the_page_says_so(place: Stack, door: Gateway, tab: Watched) -> None:
    """500 rows, and how to see the others."""
    tag = uuid.uuid4().hex
    past_jobs(place, tag, 505)
    page = tab.open(f"{door.url}/?metadata=tag%3D{tag}")
    for number in range(2, 11):
        page.get_by_role("button", name="Show older jobs").click()
        expect(page.locator("tbody tr")).to_have_count(50 * number)
    expect(page.get_by_text("the most that are shown at once")).to_be_visible()
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(500)


# ------------------------------------------------------------------------------------------------------ filters


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("status=faild", "There is no status “faild” (did you mean failed?)"),
        ("status=done", "The statuses are queued, in_progress, completed"),
        ("metadata=order", "Metadata is asked for as key=value"),
        ("metadata=%3D42", "Metadata is asked for as key=value"),
        ("since=yesterday", "“From” is no date: “yesterday”"),
        ("until=2026-02-31", "“Until” is no date"),
        ("until=2026-13-01", "“Until” is no date"),
        ("since=2026-11-26T10:00:00+02:00", "“From” is no date"),  # the plus is a blank
        ("since=2026-11-27&until=2026-11-26", "has to be later than"),
        ("model=%3Cb%3E", "cannot be a model’s name"),
        ("replayOf=%3Cb%3E", "cannot be the id of a job"),
        ("window=9h", "There is no time window “9h”"),
        ("stauts=failed", "There is no filter “stauts” (did you mean status?)"),
        ("status=failed&status=queued", "is there more than once"),
    ],
)
def test_a_filter_that_is_not_understood_says_so(door: Gateway, tab: Watched, query: str, words: str) -> None:
    """Neither everything is shown nor an empty list; one click shows all."""
    ended(door)
    page = tab.open(f"{door.url}/?{query}")
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.get_by_role("banner").get_by_text("Live")).to_be_visible()
    assert page.locator("tbody tr").count() == 0
    assert page.get_by_text("No job matches").count() == 0
    page.get_by_role("link", name="Show all jobs").click()
    expect(page.locator("tbody tr").first).to_be_visible()


def test_the_search_finds_words_as_they_are_typed(door: Gateway, tab: Watched) -> None:
    """In the address, with other filters beside it, and for a job that comes later; the prompts stand in the rows."""
    word = f"w{uuid.uuid4().hex[:12]}"
    first, other = ended(door, text=f"An answer with {word}"), ended(door)
    page = tab.open(door.url)
    expect(row(page, other)).to_be_visible()
    page.get_by_role("search").get_by_label("Search").fill(word[:-1])
    page.wait_for_url(lambda url: f"q={word[:-1]}" in url)
    expect(row(page, first)).to_be_visible()
    expect(row(page, first).locator(".preview")).not_to_be_empty()
    expect(page.locator("tbody tr")).to_have_count(1)
    second = ended(door, text=f"Another one with {word}")
    page.get_by_role("search").get_by_label("Search").fill(word)
    expect(row(page, second)).to_be_visible(timeout=15_000)
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_role("search").get_by_label("Error").fill("nothing")
    page.wait_for_url(lambda url: "errorCode=nothing" in url)
    expect(page.get_by_text("No job matches")).to_be_visible()
    page.get_by_role("search").get_by_role("link", name="Clear").click()
    expect(row(page, other)).to_be_visible()


def test_replays_of_a_job_are_a_filter(door: Gateway, tab: Watched) -> None:
    job_id = ended(door)
    again = HTTP.post(f"{door.url}/api/jobs/{job_id}/replay").json()["jobId"]
    page = tab.open(f"{door.url}/?replayOf={job_id}")
    expect(row(page, again)).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("search").get_by_label("Replays of")).to_have_value(job_id)


def test_dates_filter(door: Gateway, tab: Watched) -> None:
    job_id = ended(door)
    created = datetime.fromisoformat(get(door, f"/api/jobs/{job_id}")["createdAt"])
    page = tab.open(f"{door.url}/?since={(created - timedelta(seconds=1)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    expect(row(page, job_id)).to_be_visible()
    page.get_by_role("search").get_by_label("Until").fill(f"{created - timedelta(days=1):%Y-%m-%d}")
    expect(page.get_by_role("alert")).to_contain_text("has to be later")
    expect(page.get_by_role("search").get_by_label("Until")).to_have_attribute("aria-invalid", "true")
    page.get_by_role("search").get_by_label("From").fill("")
    expect(row(page, job_id)).to_have_count(0)
    page.wait_for_url(lambda url: "until=" in url and "since=" not in url)


# ------------------------------------------------------------------------------------------------------ sign-in


def refused(page: Page, key: str) -> str:
    """What the page says of a key; the field has the focus again."""
    field = page.get_by_label("API key")
    field.fill(key)
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_be_visible()
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    return alert.inner_text()


def test_sign_in_says_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """In a person's words: a wrong, an expired and a revoked key, none, too many, and a service that is away."""
    with alone(tmp_path) as guarded:
        keys(guarded, "add", "--json")
        revoked, expired = keys(guarded, "add", "--json"), keys(guarded, "add", "--expires", "1s", "--json")
        keys(guarded, "revoke", revoked["id"], "--json")
        closed = gateway(guarded)
        with watched(browser, tolerated=AWAY) as tab:
            page = tab.open(closed.url)
            expect(page.get_by_label("API key")).to_be_focused()
            assert "not known here" in refused(page, "cj_wrong")
            assert "revoked on" in refused(page, revoked["key"])
            assert "expired on" in refused(page, expired["key"])
            assert "Paste your API key" in refused(page, "  ")
            with httpx2.Client(base_url=closed.url, trust_env=False) as client:
                answers = [client.post("/api/session", json={"key": f"cj_{number}"}) for number in range(15)]
            assert answers[-1].status_code == 429
            assert int(answers[-1].headers["retry-after"]) > 0
            assert "Too many keys" in refused(page, "cj_another")
            closed.process.kill()
            assert "does not answer" in refused(page, "cj_wrong")


def test_a_right_key_opens_also_when_others_tried_many(tmp_path: Path) -> None:
    with alone(tmp_path) as guarded:
        key = keys(guarded, "add", "--json")["key"]
        with httpx2.Client(base_url=gateway(guarded).url, trust_env=False) as client:
            for number in range(15):
                client.post("/api/session", json={"key": f"cj_{number}"})
            assert client.post("/api/session", json={"key": key}).status_code == 200


# ----------------------------------------------------------------------------------------------------- not there


@pytest.mark.parametrize("path", ["/nowhere", "/jobs/a/b", "/docs/more", "/favicon.ico"])
@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html; charset=utf-8"),
        ("TEXT/HTML;q=0.5", "text/html; charset=utf-8"),
        ("text/html;q=0, */*", "application/problem+json"),
        ("application/json", "application/problem+json"),
        ("*/*", "application/problem+json"),
        (None, "application/problem+json"),
    ],
)
def test_nothing_is_there(door: Gateway, path: str, accept: str | None, kind: str) -> None:
    """People get a page, programs a problem; both 404."""
    request = HTTP.build_request("GET", f"{door.url}{path}")
    request.headers.pop("accept")
    if accept:
        request.headers["accept"] = accept
    answer = HTTP.send(request)
    assert (answer.status_code, answer.headers["content-type"]) == (404, kind)
    if "html" in kind:
        assert "content-security-policy" in answer.headers
        assert re.findall("<h1>(.*)</h1>", answer.text) == ["There is no such page"]


@pytest.mark.parametrize("path", ["/api/jobs/job_nobody", "/api/nothing", "/assets/nothing.js"])
def test_the_api_answers_a_problem_to_browsers_too(door: Gateway, path: str) -> None:
    answer = HTTP.get(f"{door.url}{path}", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("path", ["/jobs", "/jobs/", "/jobs/?status=failed"])
def test_the_list_is_found_under_jobs_too(door: Gateway, path: str) -> None:
    answer = HTTP.get(f"{door.url}{path}", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (307, path.replace("/jobs/", "/").replace("/jobs", "/"))


@pytest.mark.parametrize("job_id", ["job_nobody", "x" * 200, "a b"])
def test_a_job_that_is_not_there(door: Gateway, tab: Watched, job_id: str) -> None:
    tab.tolerated = AWAY
    page = tab.open(job_url(door, job_id))
    expect(page.get_by_role("heading", level=1)).to_have_text("No such job")
    expect(page.get_by_text("There is no job with this id here")).to_be_visible()
    page.get_by_role("link", name="All jobs").click()
    expect(page.get_by_role("form", name="New chat")).to_be_visible()


def test_a_job_that_is_deleted_while_it_is_open(door: Gateway, tab: Watched) -> None:
    """Its content leaves the screen."""
    tab.tolerated = AWAY
    job_id = ended(door, "A question", text="A secret answer")
    page = tab.open(job_url(door, job_id))
    expect(page.get_by_test_id("answer")).to_have_text("A secret answer")
    assert HTTP.delete(f"{door.url}/api/jobs/{job_id}").status_code == 204
    expect(page.get_by_text("The content was deleted on")).to_be_visible()
    expect(page.get_by_text("A secret answer")).to_have_count(0)
    expect(page.get_by_text("A question")).to_have_count(0)
    expect(page.get_by_role("button", name="Replay…")).to_have_count(0)


# ------------------------------------------------------------------------------------------- headings and labels

HEADINGS = "[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(one => Number(one.tagName[1]))"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program that finds what people with a screen reader cannot use."""
    home = installed(tmp_path_factory.mktemp("axe"), "the page was not judged by axe-core")
    return (home / "node_modules" / "axe-core" / "axe.min.js").read_text()


def fine(page: Page, axe: str) -> None:
    levels = page.evaluate(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    page.evaluate(f"{axe};0")
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []


@pytest.mark.parametrize("screen", ["a desk in the light", "a phone in the dark"])
def test_every_view_can_be_used_by_everybody(
    door: Gateway, browser: Browser, tmp_path: Path, axe: str, screen: str
) -> None:
    """One first heading, no level left out, landmarks, labels, contrasts: list, job, dialog, reference, errors."""
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "color_scheme": "dark"}
    job_id = ended(door, "W" * 300, fields={"metadata": {"k" * 60: "v" * 400}}, text="x" * 500, reasoning="Hm.")
    with watched(browser, tolerated=AWAY, **(phone if "phone" in screen else {})) as tab:
        page = tab.open(f"{door.url}/")
        page.wait_for_selector("tbody tr")
        fine(page, axe)
        page.get_by_text("Options").click()
        fine(page, axe)
        page.goto(job_url(door, job_id))
        expect(head(page)).to_have_text("Completed")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
        fine(page, axe)
        page.get_by_role("button", name="Replay…").click()
        fine(page, axe)
        schedule = {
            "id": "s" * 64,
            "cron": "0 2 * * *",
            "request": {"messages": [{"role": "user", "content": "Hello"}]},
        }
        assert HTTP.post(f"{door.url}/api/schedules", json=schedule).status_code < 300
        page.goto(f"{door.url}/schedules")
        page.wait_for_selector("tbody tr")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
        fine(page, axe)
        page.get_by_role("button", name="New schedule…").click()
        fine(page, axe)
        for path, ready in {
            "/?status=unknown&since=x": "[role=alert]",
            "/jobs/job_nobody": ".note",
            "/nowhere": ".note",
            "/docs": "article.operation",
        }.items():
            page.goto(f"{door.url}{path}")
            page.wait_for_selector(ready)
            fine(page, axe)


def test_the_sign_in_can_be_used_by_everybody(browser: Browser, tmp_path: Path, axe: str) -> None:
    with alone(tmp_path) as guarded:
        keys(guarded, "add", "--json")
        with watched(browser, tolerated=AWAY) as tab:
            page = tab.open(gateway(guarded).url)
            expect(page.get_by_label("API key")).to_be_focused()
            fine(page, axe)
            refused(page, "cj_wrong")
            fine(page, axe)
