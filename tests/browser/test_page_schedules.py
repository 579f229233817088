"""The page of schedules, in a real browser before the real service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.test_page import AWAY, HTTP, get
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, gateway
from tests.support.stack import Stack, free_port, stack

pytestmark = pytest.mark.long

ASK = {"messages": [{"role": "user", "content": "Write the report"}]}
NEVER = "0 0 29 2 *"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("page"), env={"CHATJOBS_PORT": str(free_port())}) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


def made(door: Gateway, schedule_id: str, **fields: Any) -> None:
    body = {"id": schedule_id, "cron": NEVER, "request": ASK, **fields}
    assert HTTP.post(f"{door.url}/api/schedules", json=body).status_code == 201


def row(page: Page, schedule_id: str) -> Locator:
    return page.locator(f"tr[data-schedule={schedule_id}]")


def test_a_schedule_is_made_in_the_page(door: Gateway, tab: Watched) -> None:
    """By the keyboard's way through a form; what is wrong is said in it, and what was typed stays."""
    tab.tolerated = AWAY  # the browser logs each response of 422
    page = tab.open(f"{door.url}/")
    page.get_by_role("link", name="Schedules").click()
    expect(page.get_by_role("heading", name="Schedules")).to_be_focused()
    page.get_by_role("button", name="New schedule…").click()
    form = page.get_by_role("dialog", name="New schedule")
    form.get_by_label("What each run asks").fill("Write the report")
    form.get_by_label("Id optional").fill("made-here")
    form.get_by_label("Cron").fill("0 25 * * *")
    form.get_by_label("Time zone").fill("Europe/Berlin")
    form.get_by_role("button", name="Save").click()
    expect(form.get_by_role("alert")).to_contain_text("hour")
    form.get_by_label("Cron").fill("30 6 * * 1-5")
    form.get_by_label("While one still runs").select_option("buffer_one")
    form.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)
    expect(row(page, "made-here")).to_contain_text("30 6 * * 1-5")
    expect(row(page, "made-here").locator(".c-next time")).to_be_visible()
    found = get(door, "/api/schedules/made-here")
    assert (found["timezone"], found["overlap"]) == ("Europe/Berlin", "buffer_one")
    assert found["request"]["messages"] == ASK["messages"]


def test_an_interval_takes_the_place_of_the_clock(door: Gateway, tab: Watched) -> None:
    page = tab.open(f"{door.url}/schedules")
    page.get_by_role("button", name="New schedule…").click()
    form = page.get_by_role("dialog", name="New schedule")
    form.get_by_label("What each run asks").fill("Look")
    form.get_by_label("Id optional").fill("often")
    form.locator("select[name=kind]").select_option("every")
    form.get_by_label("Every").fill("90m")
    form.get_by_role("button", name="Save").click()
    expect(row(page, "often")).to_contain_text("every 1 h 30 min")
    assert get(door, "/api/schedules/often")["every"] == 5_400


def test_run_now_pause_resume_and_delete(door: Gateway, tab: Watched) -> None:
    made(door, "runs")
    page = tab.open(f"{door.url}/schedules")
    mine = row(page, "runs")
    mine.get_by_role("button", name="Run now").click()
    expect(mine.get_by_role("link", name="Completed")).to_have_count(1)
    mine.get_by_role("button", name="Pause").click()
    expect(mine.locator(".c-next")).to_have_text("paused")
    assert get(door, "/api/schedules/runs")["paused"]
    mine.get_by_role("button", name="Resume").click()
    expect(mine.locator(".c-next time")).to_be_visible()
    mine.get_by_role("link", name="Completed").click()
    expect(page.locator(".title .status")).to_have_text("Completed")
    page.get_by_role("link", name="runs", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_label("Schedule")).to_have_value("runs")
    page.get_by_role("link", name="Schedules").click()
    mine.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete runs").click()
    expect(mine).to_have_count(0)
    assert HTTP.get(f"{door.url}/api/schedules/runs").status_code == 404


def test_the_jobs_of_a_schedule_are_filtered_live(door: Gateway, tab: Watched) -> None:
    """One that begins while the list is open is there, one of another schedule is not."""
    made(door, "mine")
    made(door, "other")
    page = tab.open(f"{door.url}/?scheduleId=mine")
    expect(page.locator(".empty")).to_contain_text("No job matches")
    for name in ("other", "mine"):
        assert HTTP.post(f"{door.url}/api/schedules/{name}/trigger").status_code == 202
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr .tag")).to_have_text(["mine"])


def test_a_run_that_is_a_batch_leads_to_it(door: Gateway, tab: Watched) -> None:
    made(door, "many", request=None, batch={"items": [{"body": ASK}, {"body": ASK}], "name": "many at once"})
    page = tab.open(f"{door.url}/schedules")
    row(page, "many").get_by_role("button", name="Run now").click()
    row(page, "many").get_by_role("link", name="Completed").click()
    page.wait_for_url("**/batches/batch_many-*")
    expect(page.get_by_role("heading", level=1)).to_contain_text("many at once")


def test_on_a_phone_everything_is_in_reach(door: Gateway, browser: Browser) -> None:
    made(door, "a-schedule-with-a-long-name-that-has-sixty-four-characters-in-it", every=3600, cron=None)
    with watched(browser, viewport={"width": 360, "height": 740}, is_mobile=True) as tab:
        page = tab.open(f"{door.url}/schedules")
        page.wait_for_selector("tbody tr")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
        expect(page.get_by_role("button", name="Run now").first).to_be_in_viewport()
