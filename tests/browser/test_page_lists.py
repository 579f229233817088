"""The lists of the page: times, error codes, keys, prompts, costs; in a real browser before the real service."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.test_page import HTTP, ended, get, job_url, row
from tests.browser.test_page_use import axe, fine
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.stack import ROOT, Stack, free_port, stack, wait_until

pytestmark = pytest.mark.long

__all__ = ("axe",)  # a fixture

PRICES = "mistral-small-latest=0.1/0.3, mistral-medium-*=400/2000; EUR"
FIXED = {"retry": {"attempts": 1}, "limits": {"totalSeconds": 20}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "CHATJOBS_CONCURRENCY": "20", "CHATJOBS_PRICES": PRICES}
    with stack(tmp_path_factory.mktemp("lists"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


@pytest.fixture(autouse=True)
def logs(place: Stack) -> Iterator[None]:
    yield
    sys.stdout.write(place.news())


def tagged(door: Gateway, count: int, **fields: Any) -> tuple[str, list[str]]:
    """A new tag and the ids of the ended jobs that have it, newest first."""
    tag = uuid.uuid4().hex
    return tag, [ended(door, fields={"metadata": {"tag": tag}, **fields}) for _ in range(count)][::-1]


def opened(tab: Watched, door: Gateway, tag: str, rows: int) -> Page:
    page = tab.open(f"{door.url}/?metadata=tag%3D{tag}")
    expect(page.locator("tbody tr")).to_have_count(rows)
    return page


def search(page: Page) -> Any:
    return page.get_by_role("search")


def focused(page: Page) -> Any:
    """The id of the job or batch whose row has the focus."""
    row = "document.activeElement.closest('tr')"
    return page.evaluate(f"{row}?.dataset.job ?? {row}?.dataset.batch")


# --------------------------------------------------------------------------------------------------------- time


def test_a_preset_time_is_in_the_address_and_in_the_history(place: Stack, door: Gateway, tab: Watched) -> None:
    """It is so long before now, whenever the list is read; back and forward go through the choices."""
    tag, (new, old) = tagged(door, 2)
    moved = "UPDATE jobs SET created_at = created_at - 7200000000 WHERE id = ?"
    database = place.data_dir / "chatjobs.db"
    sql(database, moved, old)
    page = opened(tab, door, tag, 2)
    times = search(page).get_by_label("Time")
    times.select_option(label="last hour")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(row(page, new)).to_be_visible()
    page.wait_for_url("**since=1h*")
    times.select_option(label="last 24 hours")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.go_back()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(times).to_have_value("1h")
    page.go_forward()
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(times).to_have_value("24h")
    page.reload()
    expect(times).to_have_value("24h")
    times.select_option(label="any")
    page.wait_for_url(lambda url: "since" not in url)


def sql(database: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(database, timeout=10)) as connection, connection:
        connection.execute(statement, values)


def test_own_times_are_local_and_name_the_zone(door: Gateway, browser: Browser) -> None:
    tag, (job_id,) = tagged(door, 1)
    with watched(browser, timezone_id="Asia/Kolkata", viewport={"width": 1280, "height": 900}) as tab:
        page = opened(tab, door, tag, 1)
        expect(search(page).get_by_label("From")).to_have_count(0)
        search(page).get_by_label("Time").select_option(label="custom…")
        expect(search(page)).to_contain_text("Local time (Asia/Calcutta, UTC+5:30)")
        search(page).get_by_label("From").fill("2020-01-01T00:00")
        page.wait_for_url("**since=2020-01-01T00*")
        expect(row(page, job_id)).to_be_visible()
        search(page).get_by_label("Until").fill("2h")  # so long ago
        expect(page.get_by_text("Try a longer time.")).to_be_visible()
        expect(search(page).get_by_label("From")).to_be_visible()


def test_a_job_leaves_the_last_hour_while_the_page_is_open(place: Stack, door: Gateway, browser: Browser) -> None:
    """Without another request: the page has the times of its jobs."""
    tag, (job_id,) = tagged(door, 1)
    with watched(browser) as tab:
        page = tab.context.new_page()
        page.clock.install()
        page.goto(f"{door.url}/?metadata=tag%3D{tag}&since=1h")
        expect(row(page, job_id)).to_be_visible()
        page.clock.fast_forward("01:00:30")
        expect(row(page, job_id)).to_have_count(0)


# --------------------------------------------------------------------------------------------------- error codes


def test_error_codes_that_there_are_are_offered(door: Gateway, tab: Watched) -> None:
    """With their numbers; the choice stands in the address. A code may be typed, too."""
    faults = [{"kind": 422}]
    tag = uuid.uuid4().hex
    body = {"metadata": {"tag": tag}, **FIXED}
    failed = [ended(door, fields=body, faults=faults) for _ in range(2)]
    code = get(door, f"/api/jobs/{failed[0]}")["error"]["code"]
    page = opened(tab, door, tag, 2)
    field = search(page).get_by_label("Error")
    field.focus()
    expect(page.locator(f'#error-codes option[value="{code}"]')).to_have_text("2 jobs")
    field.fill(code)
    page.wait_for_url(f"**errorCode={code}*")
    expect(page.locator("tbody tr")).to_have_count(2)
    field.fill("no_such_code")
    expect(page.get_by_text("offers the codes that there are")).to_be_visible()
    page.get_by_role("link", name="Show all", exact=True).click()
    expect(page.locator("tbody tr").first).to_be_visible()


# --------------------------------------------------------------------------------------------------------- keys


def test_keys_move_through_the_list_and_open_a_job(door: Gateway, tab: Watched) -> None:
    """j and k move a visible focus, x selects, Escape clears, Enter opens."""
    tag, ids = tagged(door, 3)
    page = opened(tab, door, tag, 3)
    page.keyboard.press("j")
    assert focused(page) == ids[0]
    assert page.evaluate("document.activeElement.matches(':focus-visible')")
    page.keyboard.press("k")
    assert focused(page) == ids[0]
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert focused(page) == ids[2]
    page.keyboard.press("k")
    assert focused(page) == ids[1]
    page.keyboard.press("x")
    selection = page.get_by_role("group", name="Selection")
    expect(selection).to_contain_text("Selected: 1 job")
    page.keyboard.press("Escape")
    expect(selection).not_to_contain_text("Selected:")
    assert focused(page) == ids[1]
    page.keyboard.press("Enter")
    page.wait_for_url(job_url(door, ids[1]))


def test_slash_focuses_the_search_and_fields_keep_their_letters(door: Gateway, tab: Watched) -> None:
    """No key acts in a field, with a modifier, or in a dialog."""
    tag, ids = tagged(door, 2)
    page = opened(tab, door, tag, 2)
    page.keyboard.press("/")
    expect(search(page).get_by_label("Search")).to_be_focused()
    page.keyboard.type("j/k?x")
    expect(search(page).get_by_label("Search")).to_have_value("j/k?x")
    expect(page.get_by_role("dialog")).to_have_count(0)
    search(page).get_by_label("Search").fill("")
    expect(page.locator("tbody tr")).to_have_count(2)
    row(page, ids[0]).get_by_role("link").focus()
    for pressed in ("Control+j", "Alt+j", "Meta+j", "Shift+j"):
        page.keyboard.press(pressed)
        assert focused(page) == ids[0]
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_contain_text("search, in the list of jobs")
    page.keyboard.press("j")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert focused(page) == ids[0]


def test_keys_can_be_switched_off(door: Gateway, tab: Watched, axe: str) -> None:
    """For speech input, which presses them by chance; the button in the bar still shows them."""
    tag, _ = tagged(door, 1)
    page = opened(tab, door, tag, 1)
    page.keyboard.press("?")
    fine(page, axe)
    page.get_by_role("dialog").get_by_label("Use these keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    assert focused(page) is None
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Keys").click()
    page.get_by_role("dialog").get_by_label("Use these keys").check()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    assert focused(page) is not None


# -------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("width", [1280, 390])
def test_prompts_stand_in_a_column_of_their_own(door: Gateway, browser: Browser, width: int) -> None:
    """On a phone below the status, over the whole width; nothing scrolls sideways."""
    tag = uuid.uuid4().hex
    words = "Please summarise what the harbour master told the three captains about the tides of next week, briefly."
    fields = {"metadata": {"tag": tag}}
    job_id = ended(door, words, fields=fields)
    ended(door, "Short", fields={**fields, "model": "mistral-medium-latest"})
    with watched(browser, viewport={"width": width, "height": 900}) as tab:
        page = opened(tab, door, tag, 2)
        found = row(page, job_id).locator(".c-prompt .preview")
        expect(found).to_contain_text(words[:60])
        assert found.bounding_box()["width"] >= (260 if width == 390 else 240)
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")


# ---------------------------------------------------------------------------------------------------------- money


def test_costs_stand_beside_tokens(door: Gateway, tab: Watched) -> None:
    """In the list, in the job, and from the feed; not for a model without a price."""
    tag, (job_id,) = tagged(door, 1)
    job = get(door, f"/api/jobs/{job_id}")
    usage = job["usage"]
    exact = (Decimal("0.1") * usage["prompt_tokens"] + Decimal("0.3") * usage["completion_tokens"]) / 1_000_000
    assert Decimal(job["cost"]["amount"]) == exact
    assert (job["cost"]["currency"], job["cost"]["estimated"]) == ("EUR", False)
    page = opened(tab, door, tag, 1)
    cost = row(page, job_id).locator(".cost")
    expect(cost).to_have_attribute("title", f"{job['cost']['amount']} EUR")
    dear = ended(door, fields={"metadata": {"tag": tag}, "model": "mistral-medium-latest"})
    expect(row(page, dear).locator(".cost")).to_contain_text("€")  # by the feed
    free = ended(door, fields={"metadata": {"tag": tag}, "model": "mistral-large-latest"})
    expect(row(page, free)).to_contain_text("Completed")
    expect(row(page, free).locator(".cost")).to_have_count(0)
    assert "cost" not in get(door, f"/api/jobs/{free}")
    page.goto(job_url(door, job_id))
    expect(page.get_by_role("region", name="Details").locator(".cost")).to_have_attribute("title", cost_of(job))


def cost_of(job: Any) -> str:
    return f"{job['cost']['amount']} {job['cost']['currency']}"


def test_a_batch_has_the_cost_of_its_jobs(door: Gateway, tab: Watched) -> None:
    items = [
        {"custom_id": str(number), "body": {"model": model, "messages": [{"role": "user", "content": prompt()}]}}
        for number, model in enumerate(["mistral-small-latest", "mistral-medium-latest"])
    ]
    made = HTTP.post(f"{door.url}/api/batches", json={"items": items}).json()
    page = tab.open(f"{door.url}/batches/{made['batchId']}")
    expect(page.locator(".title .status")).to_have_text("Completed")
    expect(page.get_by_test_id("cost")).to_contain_text("€")
    batch = get(door, f"/api/batches/{made['batchId']}")
    jobs = get(door, f"/api/jobs?batchId={made['batchId']}")["jobs"]
    assert Decimal(batch["cost"]["amount"]) == sum(Decimal(job["cost"]["amount"]) for job in jobs)
    page.goto(f"{door.url}/batches")
    expect(page.locator("tbody tr").first).to_be_visible()
    page.keyboard.press("j")
    assert focused(page) == made["batchId"]


def test_the_cost_of_a_batch_is_estimated_where_a_jobs_is(door: Gateway) -> None:
    """A call that was cut has no usage of its server's."""
    said = prompt(text="word " * 40, faults=[{"kind": "cut", "after": 20}])
    items = [{"custom_id": "cut", "body": {"messages": [{"role": "user", "content": said}]}}]
    made = HTTP.post(f"{door.url}/api/batches", json={"items": items}).json()
    path = f"/api/batches/{made['batchId']}"
    wait_until(lambda: get(door, path)["status"] == "completed")
    [job] = get(door, f"/api/jobs?batchId={made['batchId']}")["jobs"]
    assert job["usageEstimated"]
    assert get(door, path)["cost"] == job["cost"] == {**job["cost"], "estimated": True}


def test_the_command_line_shows_costs(place: Stack, door: Gateway) -> None:
    tag, (job_id,) = tagged(door, 1)
    cost = get(door, f"/api/jobs/{job_id}")["cost"]
    show, listed = (starter(place, *words) for words in (("show", job_id), ("list", "--metadata", f"tag={tag}")))
    assert f"{cost['amount']} EUR" in show
    assert f"{cost['amount']} EUR" in listed
    assert json.loads(starter(place, "show", job_id, "--json"))["cost"] == cost


def starter(place: Stack, *words: str) -> str:
    """What the command line prints."""
    command = [sys.executable, "starter.py", *words]
    return subprocess.run(command, cwd=ROOT, env=place.env, capture_output=True, check=True, text=True).stdout
