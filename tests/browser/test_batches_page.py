"""Batches on the page: the list, a batch while it runs, the form for a new one; in a real browser before the real
service."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Playwright, Route, expect

from tests.browser.test_page import AWAY, HTTP, get, head, picture
from tests.browser.test_page_use import axe, fine
from tests.support.browser import Watched, watched, window
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, free_port, stack, wait_until

pytestmark = pytest.mark.long

__all__ = ("axe",)  # a fixture

HELD: dict[str, Any] = {"text": "One two three four.", "hold": 1}
"""An answer that stops after its first token, until ``place.simulator.release(words)``."""
ONCE = json.dumps({"retry": {"attempts": 1}})
"""Defaults of a batch whose jobs fail at once."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "CHATJOBS_BATCH_CONCURRENCY": "8"}
    with stack(tmp_path_factory.mktemp("page"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


@pytest.fixture(autouse=True)
def logs(place: Stack) -> Iterator[None]:
    yield
    sys.stdout.write(place.news())


def line(custom_id: str, words: str = "", **script: Any) -> str:
    body = {"messages": [{"role": "user", "content": prompt(words, **script)}]}
    return json.dumps({"custom_id": custom_id, "body": body})


def lines(count: int, words: str = "", **script: Any) -> list[str]:
    return [line(f"item-{number}", words, **script) for number in range(count)]


def submit(door: Gateway, items: Sequence[str], **settings: Any) -> str:
    """The id of a new batch."""
    headers = {"Content-Type": "application/x-ndjson"}
    body = "\n".join(items).encode()
    answer = HTTP.post(f"{door.url}/api/batches", params=settings, content=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["batchId"])


def ended(door: Gateway, items: Sequence[str], **settings: Any) -> str:
    """The id of a batch that has ended."""
    batch_id = submit(door, items, **settings)
    assert wait_until(lambda: get(door, f"/api/batches/{batch_id}")["completedAt"], timeout=30)
    return batch_id


def batch_url(door: Gateway, batch_id: str) -> str:
    return f"{door.url}/batches/{batch_id}"


def row(page: Page, batch_id: str) -> Any:
    return page.locator(f'tr[data-batch="{batch_id}"]')


def counted(page: Page, name: str) -> Any:
    return page.locator(f'[data-count="{name}"] b')


# -------------------------------------------------------------------------------------------------------- list


def test_the_list_of_batches_is_live(place: Stack, door: Gateway, tab: Watched) -> None:
    """A batch that others submit appears, and its progress changes, without a reload."""
    words = uuid.uuid4().hex
    page = tab.open(f"{door.url}/")
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Batches").click()
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect(page.get_by_role("banner").get_by_text("Live")).to_be_visible()
    batch_id = submit(door, [*lines(3), *[line("held", words, **HELD)]], name="Four jobs")
    bar = row(page, batch_id).get_by_role("progressbar", name="Progress of Four jobs")
    expect(bar).to_have_attribute("aria-valuenow", "3")
    expect(bar).to_have_attribute("aria-valuemax", "4")
    expect(row(page, batch_id)).to_contain_text("75 % of 4")
    expect(row(page, batch_id)).to_contain_text("In progress")
    place.simulator.release(words)
    expect(row(page, batch_id)).to_contain_text("Completed")
    expect(row(page, batch_id)).to_contain_text("100 % of 4")
    row(page, batch_id).get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Four jobs")
    expect(page).to_have_title("Completed · Four jobs")


def test_older_batches_come_on_demand(door: Gateway, tab: Watched) -> None:
    for number in range(51):
        submit(door, lines(1), name=f"small {number}")
    page = tab.open(f"{door.url}/batches")
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("button", name="Show older batches").click()
    expect(page.locator("tbody tr").nth(50)).to_be_visible()


# ------------------------------------------------------------------------------------------------------- batch


def test_a_running_batch_shows_its_progress(place: Stack, door: Gateway, tab: Watched) -> None:
    """Counts, pace and end come by events; the last event is the end."""
    words = uuid.uuid4().hex
    items = [*lines(4, tokens=7), line("bad", faults=[{"kind": 400}]), *lines(3, words, **HELD)]
    items = [json.dumps({**json.loads(one), "custom_id": str(number)}) for number, one in enumerate(items)]
    batch_id = submit(door, items, name="Nightly")
    page = tab.open(batch_url(door, batch_id))
    expect(head(page)).to_have_text("In progress")
    for name, number in {"completed": "4", "failed": "1", "cancelled": "0", "running": "3", "queued": "0"}.items():
        expect(counted(page, name)).to_have_text(number)
    expect(page.get_by_role("progressbar")).to_have_attribute(
        "aria-valuetext", "5 of 8 ended: 4 completed, 1 failed, 3 running"
    )
    expect(page.get_by_role("status").get_by_text("60 percent done")).to_have_count(1)
    expect(page).to_have_title("62 % · Nightly")
    expect(page.get_by_test_id("rate")).to_have_text(re.compile(r"^[\d.]+ jobs/(s|min)$"))
    expect(page.get_by_test_id("end")).to_have_text(re.compile(r"^in .*\(\d\d:\d\d:\d\d\)$|^any moment"))
    expect(page.get_by_role("region", name="Errors").get_by_role("link")).to_have_text("upstream_rejected 1")
    expect(page.get_by_role("region", name="Progress")).to_contain_text("out")
    place.simulator.release(words)
    expect(head(page)).to_have_text("Completed")
    expect(page.get_by_role("region", name="Progress")).to_contain_text("Took")
    expect(page.get_by_role("status").get_by_text("The batch is completed: 8 of 8 ended")).to_have_count(1)
    expect(page.locator(".connection")).to_have_attribute("data-state", "ended")
    expect(page.get_by_role("button", name="Cancel…")).to_have_count(0)


def test_pause_resume_and_cancel(place: Stack, door: Gateway, tab: Watched) -> None:
    """A cancel is asked for twice."""
    words = [uuid.uuid4().hex for _ in range(6)]
    batch_id = submit(door, [line(one, one, **HELD) for one in words], concurrency=1)
    page = tab.open(batch_url(door, batch_id))
    expect(counted(page, "running")).to_have_text("1")
    page.get_by_role("button", name="Pause").click()
    expect(head(page)).to_have_text("Paused")
    expect(page.get_by_text("no further job begins")).to_be_visible()
    expect(page.get_by_test_id("end")).to_have_text("not known yet")
    page.get_by_role("button", name="Resume").click()
    expect(head(page)).to_have_text("In progress")
    place.simulator.release(words[0])
    expect(counted(page, "completed")).to_have_text("1")
    page.get_by_role("button", name="Cancel…").click()
    dialog = page.get_by_role("dialog", name="Cancel the batch?")
    expect(dialog).to_contain_text("5 jobs that have not ended")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel…")).to_be_focused()
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Cancel the batch").click()
    expect(head(page)).to_have_text("Cancelled")
    expect(counted(page, "cancelled")).to_have_text("5")
    assert get(door, f"/api/batches/{batch_id}")["counts"]["completed"] == 1


def test_a_batch_that_has_ended_goes_on(place: Stack, door: Gateway, tab: Watched) -> None:
    """Its jobs without an answer are tried once more, and the page follows them."""
    words = uuid.uuid4().hex
    refused = {"kind": 400}
    items = [line("good"), line("bad", faults=[refused] * 2), line("late", words, **HELD, faults=[refused])]
    batch_id = ended(door, items, defaults=ONCE)
    page = tab.open(batch_url(door, batch_id))
    expect(head(page)).to_have_text("Completed")
    page.get_by_role("button", name="Resume 2 jobs").click()
    expect(head(page)).to_have_text("In progress")
    expect(counted(page, "running")).to_have_text("1")
    place.simulator.release(words)
    expect(head(page)).to_have_text("Completed")
    expect(counted(page, "completed")).to_have_text("2")
    expect(page.get_by_role("button", name="Resume 1 job", exact=True)).to_be_visible()


def test_an_action_that_is_refused_says_why(place: Stack, door: Gateway, tab: Watched) -> None:
    """The batch ends between the click on Cancel and its confirmation."""
    tab.tolerated = AWAY
    words = uuid.uuid4().hex
    batch_id = submit(door, lines(1, words, **HELD))
    page = tab.open(batch_url(door, batch_id))

    def after_its_end(route: Route) -> None:
        place.simulator.release(words)
        assert wait_until(lambda: get(door, f"/api/batches/{batch_id}")["completedAt"], timeout=30)
        route.continue_()

    page.route("**/cancel", after_its_end)
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the batch").click()
    expect(page.get_by_role("alert")).to_contain_text("has ended")


def test_a_replay_shows_its_phase_and_why_it_was_stopped(place: Stack, door: Gateway, tab: Watched) -> None:
    words = uuid.uuid4().hex
    refused = {"kind": 400}
    items = [
        line("tried", words, **HELD, faults=[refused, {"kind": "cut", "after": 2}]),
        *[line(f"bad-{number}", faults=[refused]) for number in range(3)],
    ]
    failed = ended(door, items, defaults=ONCE, concurrency=1)
    body = {"filter": {"batchId": failed, "status": "failed"}, "canary": 1, "maxErrorRate": 0.1}
    replay = HTTP.post(f"{door.url}/api/replays", json=body)
    assert replay.status_code == 202, replay.text
    page = tab.open(batch_url(door, replay.json()["batchId"]))
    expect(page.get_by_text("The first job is tried")).to_be_visible()
    expect(page.get_by_role("region", name="Details")).to_contain_text("10 % of errors")
    place.simulator.release(words)
    expect(page.get_by_text(re.compile("The replay was stopped: 1 of"))).to_be_visible()
    expect(page.get_by_text("is tried")).to_have_count(0)


def test_output_and_errors_are_downloaded(door: Gateway, tab: Watched) -> None:
    batch_id = ended(door, [line("good", text="Yes."), line("bad", faults=[{"kind": 400}])])
    page = tab.open(batch_url(door, batch_id))
    found = {}
    for name in ("output", "errors"):
        with page.expect_download() as started:
            page.get_by_role("link", name=f"Download {name}").click()
        assert started.value.suggested_filename == f"{batch_id}-{name}.jsonl"
        found[name] = [json.loads(text) for text in Path(started.value.path()).read_text().splitlines()]
    assert [one["custom_id"] for one in found["output"]] == ["good"]
    assert [(one["custom_id"], one["error"]["code"]) for one in found["errors"]] == [("bad", "upstream_rejected")]


def test_a_batch_leads_to_its_jobs_and_back(door: Gateway, tab: Watched) -> None:
    """The chip of an error code leads to the jobs that failed with it, each job back to its batch."""
    bad = [line(f"bad-{number}", faults=[{"kind": 400}]) for number in range(2)]
    batch_id = ended(door, [line("good"), line("other", faults=[{"kind": 503}]), *bad], name="Drilled", defaults=ONCE)
    page = tab.open(batch_url(door, batch_id))
    page.get_by_role("region", name="Errors").get_by_role("link", name="upstream_rejected").click()
    page.wait_for_url(lambda url: "errorCode" in url)
    chosen = parse_qs(urlsplit(page.url).query)
    assert chosen == {"batchId": [batch_id], "errorCode": ["upstream_rejected"], "status": ["failed"]}
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.get_by_text("Jobs of the batch").get_by_role("link")).to_have_attribute("title", batch_id)
    page.locator("tbody tr").first.get_by_role("link").click()
    page.get_by_role("region", name="Details").locator(f'a[title="{batch_id}"]').click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Drilled")
    page.locator('[data-count="completed"]').click()
    expect(page.locator("tbody tr")).to_have_count(1)


def test_a_batch_that_is_not_there(door: Gateway, tab: Watched) -> None:
    tab.tolerated = AWAY
    page = tab.open(batch_url(door, "batch_nobody"))
    expect(page.get_by_role("heading", level=1)).to_have_text("No such batch")
    page.get_by_role("link", name="All batches").click()
    expect(page.get_by_role("region", name="Batches")).to_be_visible()


def test_a_hidden_tab_asks_for_nothing(place: Stack, door: Gateway, playwright: Playwright, tmp_path: Path) -> None:
    """Neither the list nor a batch; both go on when they are shown."""
    words = uuid.uuid4().hex
    batch_id = submit(door, lines(2, words, **HELD))
    with window(playwright, tmp_path) as tabs:
        batches, batch = tabs.open(f"{door.url}/batches"), tabs.open(batch_url(door, batch_id))
        expect(counted(batch, "running")).to_have_text("2")
        expect(batches.locator(".connection")).to_have_attribute("data-state", "paused")
        asked: list[str] = []
        batches.on("request", lambda request: asked.append(request.url))
        other = tabs.open(f"{door.url}/docs")
        expect(batch.locator(".connection")).to_have_attribute("data-state", "paused")
        batch.on("request", lambda request: asked.append(request.url))
        place.simulator.release(words)
        assert wait_until(lambda: get(door, f"/api/batches/{batch_id}")["completedAt"], timeout=30)
        other.wait_for_timeout(2500)  # the list would have asked in this time
        assert asked == []
        batch.bring_to_front()
        expect(head(batch)).to_have_text("Completed")
        batches.bring_to_front()
        expect(row(batches, batch_id)).to_contain_text("Completed")


# -------------------------------------------------------------------------------------------------------- form


def opened(page: Page) -> Any:
    """The form for a new batch."""
    page.get_by_role("heading", name="New batch").click()
    return page.get_by_role("form", name="New batch")


def test_pasted_lines_become_a_batch(door: Gateway, tab: Watched) -> None:
    page = tab.open(f"{door.url}/batches")
    form = opened(page)
    form.get_by_label("Or lines").fill("\n".join(lines(3)))
    form.get_by_label("Name").fill("Pasted")
    form.get_by_label("Model").fill("mistral-large-latest")
    form.get_by_label("At once").fill("2")
    form.get_by_label("At once").press("Enter")
    page.wait_for_url("**/batches/batch_*")
    expect(page.get_by_role("heading", level=1)).to_have_text("Pasted")
    expect(head(page)).to_have_text("Completed")
    batch = get(door, f"/api/batches/{page.url.rpartition('/')[2]}")
    assert (batch["counts"]["completed"], batch["concurrency"]) == (3, 2)
    assert {job["model"] for job in get(door, "/api/jobs?limit=3")["jobs"]} == {"mistral-large-latest"}


def test_a_file_is_sent_as_it_is(door: Gateway, tab: Watched, tmp_path: Path) -> None:
    """Larger than a body of JSON may be; its lines are counted by the service."""
    file = tmp_path / "prompts.jsonl"
    padding = "x" * 100_000
    file.write_text("\n".join(line(str(number), padding) for number in range(100)))
    assert file.stat().st_size > 8 * 1024 * 1024
    page = tab.open(f"{door.url}/batches")
    form = opened(page)
    form.get_by_label("File").set_input_files(file)
    expect(form.get_by_label("Or lines")).to_be_hidden()
    form.get_by_role("button", name="Submit batch").click()
    page.wait_for_url("**/batches/batch_*")
    assert get(door, f"/api/batches/{page.url.rpartition('/')[2]}")["counts"]["total"] == 100


def test_problems_are_shown_by_their_lines(door: Gateway, tab: Watched) -> None:
    """And lead to them in what was pasted, which stays."""
    tab.tolerated = AWAY
    page = tab.open(f"{door.url}/batches")
    form = opened(page)
    pasted = [line("one"), "{no json", line("two"), line("one")]
    form.get_by_label("Or lines").fill("\n".join(pasted))
    form.get_by_role("button", name="Submit batch").click()
    problems = form.get_by_role("alert").get_by_role("listitem")
    expect(problems).to_have_count(2)
    expect(problems.first).to_contain_text("Line 2")
    expect(problems.last).to_contain_text("Line 4 /custom_id is that of line 1, too")
    problems.last.get_by_role("button", name="Line 4").click()
    box = form.get_by_label("Or lines")
    expect(box).to_be_focused()
    chosen = box.evaluate("box => box.value.slice(box.selectionStart, box.selectionEnd)")
    assert chosen == pasted[3]
    box.fill("\n".join(pasted[0:3:2]))
    form.get_by_role("button", name="Submit batch").click()
    page.wait_for_url("**/batches/batch_*")


def test_a_long_file_that_is_refused_at_its_beginning(door: Gateway, tab: Watched, tmp_path: Path) -> None:
    """The answer comes while the browser is still sending."""
    tab.tolerated = AWAY
    file = tmp_path / "broken.jsonl"
    file.write_text(f"{'{' * 50_000}\n" * 800)
    page = tab.open(f"{door.url}/batches")
    form = opened(page)
    form.get_by_label("File").set_input_files(file)
    form.get_by_role("button", name="Submit batch").click()
    problems = form.get_by_role("alert").get_by_role("listitem")
    expect(problems).to_have_count(20)
    expect(problems.first).to_contain_text("Line 1")
    form.get_by_role("button", name="Remove broken.jsonl").click()
    expect(form.get_by_label("Or lines")).to_be_visible()
    expect(form.get_by_label("File")).to_be_focused()


def test_a_file_that_has_changed_says_so(door: Gateway, tab: Watched, tmp_path: Path) -> None:
    tab.tolerated = AWAY
    file = tmp_path / "moved.jsonl"
    file.write_text(line("one"))
    page = tab.open(f"{door.url}/batches")
    form = opened(page)
    form.get_by_label("File").set_input_files(file)
    file.unlink()
    form.get_by_role("button", name="Submit batch").click()
    expect(form.get_by_role("alert")).to_contain_text("moved.jsonl has changed since it was chosen, or is gone")


# ------------------------------------------------------------------------------------------------------- looks


@pytest.mark.parametrize("screen", ["a desk in the light", "a phone in the dark"])
def test_batches_can_be_used_by_everybody(place: Stack, door: Gateway, browser: Browser, axe: str, screen: str) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "color_scheme": "dark"}
    words = uuid.uuid4().hex
    items = [line("good"), line("bad", faults=[{"kind": 400}]), line("held", words, **HELD)]
    batch_id = submit(door, items, name="W" * 200)
    with watched(browser, tolerated=AWAY, **(phone if "phone" in screen else {})) as tab:
        page = tab.open(f"{door.url}/batches")
        opened(page)
        for path in ("/batches", f"/batches/{batch_id}"):
            page.goto(f"{door.url}{path}")
            expect(page.get_by_role("progressbar").first).to_be_visible()
            if path == "/batches":
                opened(page)
            else:
                expect(page.get_by_role("region", name="Errors")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
            fine(page, axe)
        page.get_by_role("button", name="Cancel…").click()
        fine(page, axe)
    place.simulator.release(words)


def test_pictures_of_a_batch(place: Stack, door: Gateway, tab: Watched, tmp_path: Path) -> None:
    """What the documentation shows: a batch at work, some of whose jobs have failed."""
    words = uuid.uuid4().hex
    bad = {7: 400, 40: 503, 77: 400, 131: 422, 160: 503}
    items = [
        line(f"product-{number}", tokens=60, faults=[{"kind": bad[number]}] if number in bad else [])
        for number in range(240)
    ]
    held = [line(f"product-{number}", words, tokens=60, hold=20) for number in range(240, 400)]
    batch_id = submit(door, [*items, *held], name="Product descriptions, November", concurrency=8, defaults=ONCE)
    page = tab.open(batch_url(door, batch_id))
    page.set_viewport_size({"width": 1280, "height": 660})
    expect(counted(page, "completed")).to_have_text("235")
    expect(counted(page, "running")).to_have_text(re.compile("[1-8]"))
    expect(page.get_by_role("region", name="Errors").locator(".number")).to_have_text("5")
    expect(page.get_by_test_id("end")).to_have_text(re.compile("^in"))
    picture(page, tmp_path, "batch.png")
    place.simulator.release(words)
    expect(head(page)).to_have_text("Completed")
