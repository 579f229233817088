"""A replay with changes in any field, in a real browser before the real service."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from chatjobs.contracts import ChatRequest
from tests.browser.test_page import AWAY, ended, get, head, job_url, picture
from tests.browser.test_page_use import axe, fine
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, gateway
from tests.support.stack import Stack, free_port, stack

pytestmark = pytest.mark.long

__all__ = ("axe",)  # a fixture

IMAGE = {"type": "image_url", "image_url": "data:image/png;base64," + "A" * 2_000}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Of what colour?"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "CHATJOBS_CONCURRENCY": "20"}
    with stack(tmp_path_factory.mktemp("replay"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


@pytest.fixture(autouse=True)
def logs(place: Stack) -> Iterator[None]:
    yield
    sys.stdout.write(place.news())


def editor(tab: Watched, door: Gateway, job_id: str) -> tuple[Page, Any]:
    """The page of a job, and its open dialog."""
    page = tab.open(job_url(door, job_id))
    page.get_by_role("button", name="Replay…").click()
    dialog = page.get_by_role("dialog", name="Replay with changes")
    expect(dialog.get_by_role("button", name="Replay")).to_be_visible()
    return page, dialog


def replayed(page: Page, door: Gateway, dialog: Any, original: str) -> Any:
    """The request of the new job, once its replay was sent."""
    dialog.get_by_role("button", name="Replay").click()
    page.wait_for_url(lambda url: original not in url)
    return get(door, f"/api/jobs/{page.url.rpartition('/')[2]}/request")


def opened(dialog: Any) -> None:
    """Open all groups of fields."""
    for group in dialog.locator("details.group").all():
        group.locator("summary").first.click()


def test_every_field_of_a_request_has_its_input(door: Gateway, tab: Watched) -> None:
    """Also one that is added to the contract later: the form is made of the API's description."""
    _, dialog = editor(tab, door, ended(door))
    named = dialog.locator("[name]").evaluate_all("all => all.map(one => one.name.split('.')[0])")
    fields = {field.alias or name for name, field in ChatRequest.model_fields.items()}
    assert set(named) == fields - {"messages", "previousJobId"}
    inner = dialog.locator("[name^='limits.'], [name^='retry.']").evaluate_all("all => all.map(one => one.name)")
    assert {"limits.queueSeconds", "limits.maxTotalTokens", "retry.attempts", "retry.backoff.type"} <= set(inner)


def test_messages_can_be_changed(door: Gateway, tab: Watched) -> None:
    """Text, role, order, one more and one less; a part that is not text is shown and kept."""
    original = ended(door, fields={"messages": TALK, "metadata": {"kept": "yes"}})
    page, dialog = editor(tab, door, original)
    expect(dialog.get_by_text("image_url, kept as it is")).to_be_visible()
    dialog.get_by_label("Text of message 1").fill("Be long.")
    dialog.get_by_label("Text 1 of message 2").fill("What may this be?")
    dialog.get_by_role("button", name="Remove message 3").click()
    expect(dialog.get_by_label("Role of message 3")).to_be_focused()
    dialog.get_by_role("button", name="Add a message").click()
    expect(dialog.get_by_label("Text of message 4")).to_be_focused()
    page.keyboard.type("A red one")
    dialog.get_by_role("button", name="Move message 4 up").click()
    expect(dialog.get_by_label("Text of message 3")).to_have_value("A red one")
    expect(dialog.get_by_role("status").last).to_have_text("Changed: messages")
    asked = replayed(page, door, dialog, original)
    assert asked["messages"] == [
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": [{"type": "text", "text": "What may this be?"}, IMAGE]},
        {"role": "assistant", "content": "A red one"},
        {"role": "user", "content": "Of what colour?"},
    ]
    assert asked["metadata"] == {"kept": "yes"}


def test_only_what_was_changed_is_sent(door: Gateway, tab: Watched) -> None:
    """A field that is emptied is taken away; of an object the rest stays."""
    limits = {"totalSeconds": 600, "stallSeconds": 50}
    fields = {"temperature": 0.3, "limits": limits, "stop": ["END"], "metadata": {"a": "1"}, "priority": 2}
    original = ended(door, fields=fields)
    page, dialog = editor(tab, door, original)
    expect(dialog.get_by_text("Nothing is changed")).to_be_visible()
    opened(dialog)
    dialog.get_by_label("Temperature").fill("")
    dialog.get_by_label("Stall seconds").fill("")
    dialog.get_by_label("Queue seconds").fill("77.5")
    dialog.get_by_label("Metadata", exact=True).fill('{"a": "2"}')
    dialog.get_by_label("Safe prompt").select_option("true")
    dialog.get_by_label("On interrupt").select_option("restart")
    with page.expect_request(lambda request: request.url.endswith("/replay")) as sent:
        asked = replayed(page, door, dialog, original)
    assert sent.value.post_data_json == {
        "temperature": None,
        "limits": {"totalSeconds": 600, "queueSeconds": 77.5},
        "metadata": {"a": "2"},
        "safe_prompt": True,
        "onInterrupt": "restart",
    }
    assert "temperature" not in asked
    assert asked["limits"] == {"totalSeconds": 600.0, "queueSeconds": 77.5}
    assert (asked["stop"], asked["priority"]) == (["END"], 2)


def test_what_nobody_changed_is_unchanged(door: Gateway, tab: Watched) -> None:
    """Also what an input cannot show: numbers that are longer than a browser's, and messages without content."""
    called = {"id": "call-0001", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Look"},
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "content": "a wall", "tool_call_id": "call-0001"},
        {"role": "user", "content": "And?"},
    ]
    fields = {"messages": messages, "random_seed": 2**53 + 1, "temperature": None, "limits": {"queueSeconds": None}}
    original = ended(door, fields=fields)
    page, dialog = editor(tab, door, original)
    expect(dialog.get_by_text("Nothing is changed")).to_be_visible()
    dialog.get_by_label("Temperature").fill("0.5")
    with page.expect_request(lambda request: request.url.endswith("/replay")) as sent:
        asked = replayed(page, door, dialog, original)
    assert sent.value.post_data_json == {"temperature": 0.5}
    assert (asked["random_seed"], asked["messages"]) == (2**53 + 1, messages)


def test_what_is_no_json_or_number_is_said_before_it_is_sent(door: Gateway, tab: Watched) -> None:
    """At its field, whose group opens and which gets the focus."""
    page, dialog = editor(tab, door, ended(door))
    opened(dialog)
    dialog.get_by_label("Tools", exact=True).fill('[{"type": "function",}]')
    dialog.get_by_label("Max tokens").fill("many")
    opened(dialog)  # closes them again
    with_requests: list[str] = []
    page.on("request", lambda request: with_requests.append(request.url) if "/replay" in request.url else None)
    dialog.get_by_role("button", name="Replay").click()
    expect(dialog.get_by_text("must be a number")).to_be_visible()
    expect(dialog.get_by_label("Max tokens")).to_be_focused()
    expect(dialog.get_by_text("is not JSON yet (line 1)")).to_be_attached()
    expect(dialog.get_by_role("alert")).to_contain_text("2 fields have to be corrected first")
    assert with_requests == []


def test_a_refusal_stands_at_its_fields_and_loses_nothing(door: Gateway, tab: Watched) -> None:
    """A pointer into the messages, one into limits, one to a field; also after the dialog was closed by mistake."""
    tab.tolerated = AWAY
    original = ended(door)
    page, dialog = editor(tab, door, original)
    opened(dialog)
    dialog.get_by_label("Temperature").fill("3")
    dialog.get_by_label("Total seconds").fill("0")
    dialog.get_by_role("button", name="Add a message").click()
    dialog.get_by_label("Role of message 2").select_option("tool")
    dialog.get_by_label("Text of message 2").fill("An answer of nobody's")
    dialog.get_by_role("button", name="Replay").click()
    expect(dialog.get_by_role("alert")).to_contain_text("/temperature")
    for label in ("Temperature", "Total seconds"):
        expect(dialog.get_by_label(label)).to_have_attribute("aria-invalid", "true")
        described = dialog.get_by_label(label).get_attribute("aria-describedby")
        expect(page.locator(f'[id="{described}"]')).not_to_be_empty()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Replay…").click()
    expect(dialog.get_by_label("Text of message 2")).to_have_value("An answer of nobody's")
    dialog.get_by_role("button", name="Remove message 2").click()
    dialog.get_by_label("Temperature").fill("1")
    opened(dialog)
    dialog.get_by_label("Total seconds").fill("60")
    asked = replayed(page, door, dialog, original)
    assert (asked["temperature"], asked["limits"]["totalSeconds"]) == (1, 60)
    expect(head(page)).to_have_text("Completed")


def test_changes_survive_a_service_that_is_away(place: Stack, door: Gateway, tab: Watched) -> None:
    """And the same request again starts one job, though the first answer was lost."""
    tab.tolerated = AWAY
    original = ended(door)
    page, dialog = editor(tab, door, original)
    dialog.get_by_label("Random seed").fill("7")

    def lose(route: Any) -> None:
        route.fetch()
        route.abort()

    page.route("**/replay", lose, times=1)
    dialog.get_by_role("button", name="Replay").click()
    expect(dialog.get_by_role("alert")).to_contain_text("not reachable")
    expect(dialog.get_by_label("Random seed")).to_have_value("7")
    assert replayed(page, door, dialog, original)["random_seed"] == 7
    assert len(get(door, f"/api/jobs?replayOf={original}")["jobs"]) == 1


def test_changes_can_be_undone(door: Gateway, tab: Watched) -> None:
    original = ended(door, fields={"temperature": 0.3})
    _, dialog = editor(tab, door, original)
    before = dialog.get_by_label("Text of message 1").input_value()
    dialog.get_by_label("Temperature").fill("1")
    dialog.get_by_label("Text of message 1").fill("Another")
    expect(dialog.get_by_text("Changed: temperature, messages")).to_be_visible()
    dialog.get_by_role("button", name="Undo changes").click()
    expect(dialog.get_by_label("Temperature")).to_have_value("0.3")
    expect(dialog.get_by_label("Text of message 1")).to_have_value(before)
    expect(dialog.get_by_text("Nothing is changed")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_editor_can_be_used_by_everybody(
    door: Gateway, browser: Browser, axe: str, tmp_path: Path, width: int
) -> None:
    """Labels, contrasts, a size for phones; with groups open, and with an error."""
    original = ended(door, fields={"messages": TALK, "temperature": 0.3})
    with watched(browser, tolerated=AWAY, viewport={"width": width, "height": 900}) as tab:
        page, dialog = editor(tab, door, original)
        if width > 1000:
            picture(page, tmp_path, "replay.png")
        opened(dialog)
        fine(page, axe)
        dialog.get_by_label("Temperature").fill("hot")
        dialog.get_by_role("button", name="Replay").click()
        expect(dialog.get_by_role("alert")).to_be_visible()
        fine(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
        assert dialog.evaluate("one => one.scrollWidth <= one.clientWidth")
