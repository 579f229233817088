"""Jobs selected in the list, and what is done with all of them; in a real browser before the real service."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.browser.test_page import AWAY, ended, get, post, row
from tests.browser.test_page_use import axe, fine
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, gateway
from tests.support.stack import Stack, free_port, stack, wait_until

pytestmark = pytest.mark.long

__all__ = ("axe",)  # a fixture

HELD: dict[str, Any] = {"text": "One two three four.", "hold": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "CHATJOBS_CONCURRENCY": "20"}
    with stack(tmp_path_factory.mktemp("page"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


@pytest.fixture(autouse=True)
def logs(place: Stack) -> Iterator[None]:
    yield
    sys.stdout.write(place.news())


def tagged(door: Gateway, count: int, **script: Any) -> tuple[str, list[str]]:
    """A new tag and the ids of the ended jobs that have it, newest first."""
    tag = uuid.uuid4().hex
    return tag, [ended(door, fields={"metadata": {"tag": tag}}, **script) for _ in range(count)][::-1]


def opened(tab: Watched, door: Gateway, tag: str, rows: int) -> Page:
    page = tab.open(f"{door.url}/?metadata=tag%3D{tag}")
    expect(page.locator("tbody tr")).to_have_count(rows)
    return page


def box(page: Page, job_id: str) -> Any:
    return row(page, job_id).get_by_role("checkbox")


def group(page: Page) -> Any:
    return page.get_by_role("group", name="Selection")


def selected(page: Page) -> list[str]:
    script = "all => all.filter(one => one.querySelector('input').checked).map(one => one.dataset.job)"
    return list(page.eval_on_selector_all("tr[data-job]", script))


# --------------------------------------------------------------------------------------------------- selecting


def test_shift_click_selects_a_range(door: Gateway, tab: Watched) -> None:
    """Also from below, and back; a plain click is for one row and does not open its job."""
    tag, ids = tagged(door, 5)
    page = opened(tab, door, tag, 5)
    box(page, ids[3]).click()
    box(page, ids[1]).click(modifiers=["Shift"])
    assert selected(page) == ids[1:4]
    expect(group(page).get_by_role("status")).to_have_text("Selected: 3 jobs")
    box(page, ids[2]).click(modifiers=["Shift"])
    assert selected(page) == [ids[3]]
    group(page).get_by_role("checkbox", name="Select the 5 shown").click()
    assert selected(page) == ids
    group(page).get_by_role("checkbox").click()
    assert selected(page) == []
    assert page.url.endswith(f"tag%3D{tag}")


def test_the_keyboard_selects(door: Gateway, tab: Watched) -> None:
    tag, ids = tagged(door, 3)
    page = opened(tab, door, tag, 3)
    box(page, ids[0]).focus()
    page.keyboard.press("Space")
    box(page, ids[2]).focus()
    page.keyboard.press("Shift+Space")
    assert selected(page) == ids
    group(page).get_by_role("button", name="Clear selection").focus()
    page.keyboard.press("Enter")
    assert selected(page) == []
    expect(group(page).get_by_role("checkbox")).to_be_focused()


def test_a_selection_is_of_one_list(door: Gateway, tab: Watched) -> None:
    """Another filter begins a new one; jobs that come are not selected."""
    tag, ids = tagged(door, 2)
    page = opened(tab, door, tag, 2)
    group(page).get_by_role("checkbox", name="Select the 2 shown").click()
    newer = ended(door, fields={"metadata": {"tag": tag}})
    expect(row(page, newer)).to_be_visible()
    assert selected(page) == ids
    page.locator('.tabs a[data-status="completed"]').click()
    expect(group(page).get_by_role("button")).to_have_count(0)
    assert selected(page) == []


# -------------------------------------------------------------------------------------------------- cancelling


def test_selected_jobs_are_cancelled(place: Stack, door: Gateway, tab: Watched) -> None:
    """Those that run; one that has ended stays as it is."""
    tag, ids = tagged(door, 1)
    words = uuid.uuid4().hex
    running = [post(door, words, fields={"metadata": {"tag": tag}}, **HELD) for _ in range(3)]
    page = opened(tab, door, tag, 4)
    box(page, ids[0]).click()
    expect(group(page).get_by_role("button", name="Cancel…")).to_be_disabled()
    for job_id in running[:2]:
        box(page, job_id).click()
    group(page).get_by_role("button", name="Cancel…").click()
    dialog = page.get_by_role("dialog", name="Cancel 2 jobs?")
    dialog.get_by_role("button", name="Cancel them").click()
    expect(page.get_by_text("2 jobs cancelled")).to_be_visible()
    expect(dialog).to_have_count(0)
    expect(group(page).get_by_role("checkbox")).to_be_focused()
    for job_id in running[:2]:
        expect(row(page, job_id)).to_contain_text("Cancelled")
    expect(row(page, running[2])).to_contain_text("In progress")
    place.simulator.release(words)
    expect(row(page, running[2])).to_contain_text("Completed")


def test_all_that_match_are_cancelled(door: Gateway, tab: Watched) -> None:
    """More than are shown, and no other job; the dialog stays while the list empties."""
    tag = uuid.uuid4().hex
    fields = {"metadata": {"tag": tag}, "limits": {"queueSeconds": 600}}
    matching = [post(door, fields=fields, **HELD) for _ in range(55)]
    other = post(door, **HELD)
    page = opened(tab, door, tag, 50)
    box(page, matching[-1]).click()
    group(page).get_by_role("button", name="Select all that match the filter").click()
    expect(group(page).get_by_role("status")).to_have_text("Selected: all that match the filter")
    assert len(selected(page)) == 50
    group(page).get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel them").click()
    expect(page.get_by_text("55 jobs cancelled")).to_be_visible()
    cancelled = f"/api/jobs?metadata.tag={tag}&status=cancelled&limit=100"
    assert wait_until(lambda: len(get(door, cancelled)["jobs"]) == 55, timeout=30)
    assert get(door, f"/api/jobs/{other}")["status"] in ("queued", "in_progress")


def test_what_fails_is_tried_again(place: Stack, door: Gateway, tab: Watched) -> None:
    """Only what failed: here because the service was away for one of two requests."""
    tab.tolerated = AWAY
    tag, words = uuid.uuid4().hex, uuid.uuid4().hex
    first, second = (post(door, words, fields={"metadata": {"tag": tag}}, **HELD) for _ in range(2))
    page = opened(tab, door, tag, 2)
    page.route(f"**/{second}/cancel", lambda route: route.abort(), times=1)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/cancel") else None)
    group(page).get_by_role("checkbox", name="Select the 2 shown").click()
    group(page).get_by_role("button", name="Cancel…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel them").click()
    expect(dialog.get_by_role("alert")).to_contain_text("1 request failed.")
    expect(dialog.get_by_role("alert")).to_contain_text(second)
    dialog.get_by_role("button", name="Try again").click()
    expect(dialog).to_have_count(0)
    assert [url.split("/")[-2] for url in sorted(asked)] == sorted([first, second, second])
    expect(row(page, second)).to_contain_text("Cancelled")


# --------------------------------------------------------------------------------------------------- replaying


def test_selected_jobs_are_replayed(door: Gateway, tab: Watched) -> None:
    tag, ids = tagged(door, 3, faults=[{"kind": 400}])
    page = opened(tab, door, tag, 3)
    box(page, ids[0]).click()
    box(page, ids[2]).click()
    group(page).get_by_role("button", name="Replay…").click()
    page.get_by_role("dialog", name="Replay 2 jobs?").get_by_role("button", name="Replay them").click()
    expect(page.get_by_text("2 jobs replayed")).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(5)
    replayed = {job["replayOf"] for job in get(door, f"/api/jobs?metadata.tag={tag}")["jobs"]}
    assert replayed == {None, ids[0], ids[2]}


def is_replay(request: Request) -> bool:
    return urlsplit(request.url).path == "/api/replays"


def everything_chosen(page: Page) -> Any:
    """The dialog for a replay of all jobs that match."""
    group(page).get_by_role("checkbox").click()
    group(page).get_by_role("button", name="Select all").click()
    group(page).get_by_role("button", name="Replay…").click()
    return page.get_by_role("dialog", name="Replay all that match")


def test_all_that_match_are_replayed_after_a_dry_run(door: Gateway, tab: Watched) -> None:
    """The dialog shows the service's count, and sends its bounds."""
    tag, ids = tagged(door, 3, tokens=20)
    page = tab.open(f"{door.url}/?metadata=tag%3D{tag}&status=completed&model=mistral-small-latest")
    expect(page.locator("tbody tr")).to_have_count(3)
    asked: list[Any] = []

    def note(request: Request) -> None:
        if is_replay(request):
            asked.append(request.post_data_json)

    page.on("request", note)
    dialog = everything_chosen(page)
    expect(dialog).to_contain_text("3 jobs, about")
    expect(dialog.get_by_role("link")).to_have_count(3)
    dialog.get_by_label("Try first").fill("1")
    dialog.get_by_label("Stop above").fill("2.5")
    dialog.get_by_label("Model").fill("mistral-large-latest")
    dialog.get_by_role("button", name="Replay 3 jobs").click()
    page.wait_for_url("**/batches/batch_*")
    counted, sent = asked
    bounds = {"canary": 1, "maxErrorRate": 0.025, "overrides": {"model": "mistral-large-latest"}}
    assert sent == {"filter": counted["filter"], **bounds}
    expect(page.locator(".head .pill")).to_have_text("Completed")
    replayed = [job for job in get(door, f"/api/jobs?metadata.tag={tag}")["jobs"] if job["replayOf"]]
    assert {job["replayOf"] for job in replayed} == set(ids)
    assert {job["model"] for job in replayed} == {"mistral-large-latest"}


def test_a_replay_that_is_refused_can_be_corrected(door: Gateway, tab: Watched) -> None:
    """The corrected request has another idempotency key."""
    tag, _ = tagged(door, 1)
    page = opened(tab, door, tag, 1)
    keys: list[str | None] = []
    page.on("request", lambda one: keys.append(one.headers.get("idempotency-key")) if is_replay(one) else None)
    tab.tolerated = AWAY
    dialog = everything_chosen(page)
    dialog.get_by_label("Model").fill("m" * 65)
    dialog.get_by_role("button", name="Replay 1 job").click()
    expect(dialog.get_by_role("alert")).to_contain_text("/overrides/model")
    dialog.get_by_label("Model").fill("mistral-large-latest")
    dialog.get_by_role("button", name="Replay 1 job").click()
    page.wait_for_url("**/batches/batch_*")
    assert len(set(keys)) == len(keys) == 3


def test_a_replay_that_the_service_refuses_says_why(door: Gateway, tab: Watched) -> None:
    tab.tolerated = AWAY
    tag, _ = tagged(door, 1)
    page = opened(tab, door, tag, 1)
    answer = {"status": 503, "detail": "Storage does not answer"}
    page.route("**/api/replays", lambda route: route.fulfill(status=503, json=answer))
    dialog = everything_chosen(page)
    expect(dialog.get_by_role("alert")).to_contain_text("Storage does not answer")
    expect(dialog.get_by_role("button", name="Replay", exact=True)).to_be_disabled()


# ------------------------------------------------------------------------------------------------------- looks


@pytest.mark.parametrize("screen", ["a desk in the light", "a phone in the dark"])
def test_a_selection_can_be_used_by_everybody(door: Gateway, browser: Browser, axe: str, screen: str) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "color_scheme": "dark"}
    tag, ids = tagged(door, 2)
    with watched(browser, **(phone if "phone" in screen else {})) as tab:
        page = opened(tab, door, tag, 2)
        box(page, ids[0]).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
        fine(page, axe)
        group(page).get_by_role("button", name="Replay…").click()
        fine(page, axe)
