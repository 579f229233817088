"""The view of settings, and what pages leave out for keys that may less; in a real browser before the real service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from domain.roles import Role
from storage.engine.database import Database
from storage.keys import KeyStore
from storage.rate_limits.limiter import Limiter
from tests.browser.test_page import AWAY, HTTP, picture
from tests.browser.test_page_use import axe, fine
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, alone, gateway
from tests.support.receiver import receiver
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, free_port, stack

__all__ = ("axe",)  # a fixture
pytestmark = pytest.mark.long
LANE = "0a1b2c3d:mistral-small"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}
    with stack(tmp_path_factory.mktemp("settings"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def keys(place: Stack) -> dict[str, str]:
    """The texts of keys: of each role for acme, and of an admin of the operator's tenant."""

    async def made() -> dict[str, str]:
        database = await Database.open(place.database_url)
        try:
            store = KeyStore(database)
            found = {role.value: (await store.add(tenant="acme", role=role, name=f"my {role}"))[1] for role in Role}
            found["operator"] = (await store.add(tenant="default", role=Role.ADMIN, name="operator"))[1]
            await store.add(tenant="default", role=Role.READ, name="dashboard")
            await store.add(tenant="default", name="ci", expires_at=datetime.now(UTC) + timedelta(days=90))
            await Limiter(database, per_second=10).set_limits(LANE, {"per_second": 4.0})
            return found
        finally:
            await database.close()

    return asyncio.run(made())


@pytest.fixture(scope="module")
def door(place: Stack, keys: dict[str, str]) -> Gateway:
    assert keys
    return gateway(place)


def signed_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def opened(door: Gateway, tab: Watched, key: str, path: str = "/settings") -> Page:
    tab.tolerated = AWAY  # the browser logs each response of 4xx
    page = tab.open(f"{door.url}{path}")
    signed_in(page, key)
    return page


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name, exact=True)


def called(door: Gateway, method: str, path: str, key: str, **options: Any) -> Any:
    return HTTP.request(method, f"{door.url}{path}", headers={"Authorization": f"Bearer {key}"}, **options)


def test_a_key_is_made_shown_once_and_revoked(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    """By the keyboard; what a key is shows nowhere after its dialog is closed."""
    page = opened(door, tab, keys["admin"])
    page.get_by_role("button", name="New key…").press("Enter")
    form = page.get_by_role("dialog", name="New key")
    form.get_by_label("Name").fill("from the page")
    form.get_by_label("Role").select_option("read")
    form.get_by_label("Valid").select_option("90")
    form.get_by_label("Name").press("Enter")
    shown = page.get_by_role("dialog", name="The new key")
    plain = shown.get_by_label("Key").input_value()
    assert plain.startswith("cj_")
    page.keyboard.press("Escape")
    expect(shown).to_have_count(0)
    assert plain not in page.content()
    row = page.locator("tr", has_text="from the page")
    expect(row).to_contain_text("valid")
    assert called(door, "GET", "/api/jobs", plain).status_code == 200
    assert called(door, "POST", "/api/jobs", plain, json={}).status_code == 403
    row.get_by_label("Role of from the page").select_option("write")
    expect(page.get_by_text("from the page has the role write")).to_be_visible()
    assert called(door, "POST", "/api/jobs", plain, json={}).status_code == 422
    row.get_by_role("button", name="Revoke from the page").click()
    page.get_by_role("dialog", name="Revoke from the page").get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("1 key that ended")).to_be_visible()
    assert called(door, "GET", "/api/jobs", plain).status_code == 401
    page.reload()
    expect(page.get_by_text("1 key that ended")).to_be_visible()
    assert plain not in page.content()


def test_the_last_admin_is_told_why_not(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    page = opened(door, tab, keys["admin"])
    role = page.get_by_label("Role of my admin")
    role.select_option("read")
    expect(page.locator("tr", has_text="my admin").get_by_role("alert")).to_contain_text("last valid key")
    expect(role).to_have_value("admin")
    page.get_by_role("button", name="Revoke my admin").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Revoke").click()
    expect(dialog.get_by_role("alert")).to_contain_text("last valid key")


def test_a_secret_is_rotated_and_shown_once(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    page = opened(door, tab, keys["admin"])
    secrets = card(page, "Webhook secrets")
    expect(secrets.get_by_text("without one no webhook is sent")).to_be_visible()
    secrets.get_by_role("button", name="Rotate…").click()
    page.get_by_role("dialog", name="Rotate the webhook secret").get_by_role("button", name="Rotate").click()
    shown = page.get_by_role("dialog", name="The new secret")
    assert shown.get_by_label("Secret").input_value().startswith("whsec_")
    shown.get_by_role("button", name="Close").click()
    expect(secrets.locator("li")).to_have_count(1)
    assert "whsec_" not in page.content()


def test_endpoints_are_added_tested_and_removed(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    assert called(door, "POST", "/api/secrets", keys["admin"]).status_code == 201
    page = opened(door, tab, keys["admin"])
    with receiver() as receives:
        form = page.get_by_role("form", name="Add an endpoint")
        form.get_by_label("URL").fill(receives.url("/hooks"))
        form.get_by_role("button", name="Add").press("Enter")
        row = page.locator("[data-endpoint]")
        expect(row).to_contain_text("all jobs")
        row.get_by_role("button", name="Test").click()
        expect(row.get_by_role("status")).to_contain_text("Delivered: answered 200")
        row.get_by_role("button", name="Remove").click()
        page.get_by_role("dialog", name="Remove the endpoint").get_by_role("button", name="Remove").click()
        expect(row).to_contain_text("single jobs")
    form.get_by_label("URL").fill("http://10.0.0.1/")
    form.get_by_role("button", name="Add").click()
    expect(form.get_by_role("alert")).to_be_visible()


def test_limits_are_set_by_the_operator_only(
    door: Gateway, tab: Watched, browser: Browser, keys: dict[str, str]
) -> None:
    page = opened(door, tab, keys["operator"])
    form = page.get_by_role("form", name=f"Limits of {LANE}")
    expect(form.get_by_label("Calls per second")).to_have_value("4")
    form.get_by_label("Calls at once").fill("3")
    form.get_by_label("Calls per second").fill("")
    form.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Limits set")).to_be_visible()
    lanes = called(door, "GET", "/api/settings", keys["operator"]).json()["lanes"]
    assert [(one["atOnce"], one["perSecondSet"]) for one in lanes if one["lane"] == LANE] == [(3, None)]
    with watched(browser, tolerated=AWAY) as other:
        theirs = opened(door, other, keys["admin"])
        expect(card(theirs, "Limits")).to_contain_text("Only admins of the operator’s tenant change them")
        expect(card(theirs, "What runs")).to_contain_text("CHATJOBS_RETENTION_DAYS")
        expect(card(theirs, "What runs")).to_contain_text("30 days")
        assert LANE not in theirs.content()


def test_a_tenant_is_paused_and_resumed(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    page = opened(door, tab, keys["admin"])
    page.get_by_role("form", name="Pause").get_by_label("Reason").fill("The budget is spent")
    page.get_by_role("button", name="Pause acme").click()
    banner = page.get_by_role("status", name="Paused")
    expect(banner).to_contain_text("The budget is spent")
    banner.get_by_role("button", name="Resume").click()
    expect(banner).to_have_count(0)


def test_who_may_not_is_told_what_it_takes(door: Gateway, tab: Watched, keys: dict[str, str]) -> None:
    page = opened(door, tab, keys["write"])
    expect(page.get_by_role("heading", name="Settings")).to_be_visible()
    expect(page.get_by_text("needs a key with the role admin; yours has the role write")).to_be_visible()
    expect(page.get_by_role("navigation", name="Main").get_by_role("link", name="Settings")).to_have_count(0)


def test_a_key_that_may_only_look_sees_no_buttons_that_change(
    door: Gateway, tab: Watched, keys: dict[str, str]
) -> None:
    """In every view; what it may look at is there."""
    body = {"messages": [{"role": "user", "content": prompt("Look", text="An answer to look at")}]}
    headers = {"Authorization": f"Bearer {keys['write']}", "Prefer": "wait=20"}
    job = HTTP.post(f"{door.url}/api/jobs", json=body, headers=headers).json()
    schedule = {"id": "seen", "cron": "0 0 29 2 *", "request": body}
    assert called(door, "POST", "/api/schedules", keys["write"], json=schedule).status_code == 201
    page = opened(door, tab, keys["read"], "/")
    page.wait_for_selector("tbody tr")
    page.get_by_label("Select the").check()
    expect(page.get_by_role("button", name="Clear selection")).to_be_visible()
    changing = page.get_by_role("button", name="Cancel").or_(page.get_by_role("button", name="Replay"))
    expect(changing).to_have_count(0)
    expect(page.get_by_label("New chat")).to_have_count(0)
    page.goto(f"{door.url}/jobs/{job['jobId']}")
    expect(page.get_by_test_id("answer")).to_have_text("An answer to look at")
    expect(changing).to_have_count(0)
    expect(page.get_by_role("button", name="Edit")).to_have_count(0)
    expect(page.get_by_role("button", name="Copy as curl")).to_be_visible()
    page.goto(f"{door.url}/schedules")
    expect(page.get_by_role("row", name="seen")).to_be_visible()
    for name in ("New schedule…", "Run now", "Pause", "Delete…"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    page.goto(f"{door.url}/batches")
    expect(page.get_by_text("No batches yet")).to_be_visible()
    expect(page.get_by_text("New batch")).to_have_count(0)


@pytest.mark.parametrize("screen", ["a desk in the light", "a phone in the dark"])
def test_settings_can_be_used_by_everybody(
    door: Gateway, browser: Browser, keys: dict[str, str], tmp_path: Path, axe: str, screen: str
) -> None:
    """Headings, landmarks, labels, contrasts; nothing is wider than the screen."""
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "color_scheme": "dark"}
    desk: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
    with watched(browser, tolerated=AWAY, **(phone if "phone" in screen else desk)) as tab:
        page = opened(door, tab, keys["operator"])
        expect(card(page, "What runs")).to_be_visible()
        page.wait_for_selector("tr[data-key]")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
        fine(page, axe)
        if "desk" in screen:
            picture(page, tmp_path, "settings.png")
        page.get_by_role("button", name="New key…").click()
        fine(page, axe)


def test_the_first_key_is_made_on_the_page_and_signs_it_in(tmp_path: Path, tab: Watched) -> None:
    """The service closes to callers without a key at once, and the page keeps showing the new one."""
    tab.tolerated = AWAY
    with alone(tmp_path) as built:
        door = gateway(built)
        page = tab.open(f"{door.url}/settings")
        expect(page.get_by_text("There are no keys")).to_be_visible()
        page.get_by_role("button", name="New key…").click()
        form = page.get_by_role("dialog", name="New key")
        expect(form.get_by_label("Role")).to_have_count(0)
        form.get_by_role("button", name="Make the key").click()
        plain = page.get_by_role("dialog", name="The new key").get_by_label("Key").input_value()
        assert HTTP.get(f"{door.url}/api/jobs").status_code == 401
        assert called(door, "GET", "/api/keys", plain).status_code == 200
        page.get_by_role("button", name="Close").click()
        expect(page.get_by_role("button", name="Sign out")).to_be_visible()
        expect(page.locator("tr[data-key]")).to_contain_text("yours")
