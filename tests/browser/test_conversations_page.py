"""Conversations on the page: follow-ups, edited messages as branches, and the view of a thread."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import test_page, test_page_use
from tests.browser.test_page import AWAY, HTTP, answer_of, ask, ended, get, head, job_url, picture
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, free_port, stack

pytestmark = pytest.mark.long

axe = test_page_use.axe
logs = test_page.logs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "MISTRAL_REQUESTS_PER_SECOND": "1000"}
    with stack(tmp_path_factory.mktemp("conversations-page"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


def follow_up(page: Page, words: str) -> None:
    """Type under the answer, and send it with the keyboard; the next job is shown then."""
    before = page.url
    page.get_by_role("textbox", name="Follow up").fill(words)
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != before)


def said(page: Page) -> list[str]:
    """The texts of the user's messages on the page."""
    return page.locator(".message.user > .text").all_text_contents()


def job_of(page: Page) -> str:
    """The id of the job that the address names."""
    return re.split("[/=]", page.url)[-1]


def chain(door: Gateway, *prompts: str) -> list[str]:
    """The ids of jobs that go on from each other."""
    ids: list[str] = []
    for words in prompts:
        ids.append(ended(door, words, fields={"previousJobId": ids[-1]} if ids else {}, text=f"Answer to {words}"))
    return ids


def test_three_turns_are_one_thread(place: Stack, door: Gateway, tab: Watched) -> None:
    """Each follow-up is sent with the name of the job before alone, and a reload keeps the thread."""
    page = tab.open(door.url)
    words = [prompt(f"turn {number}", text=f"Answer {number}.") for number in range(3)]
    ask(page, words[0])
    ids = [job_of(page)]
    for text in words[1:]:
        expect(head(page)).to_have_text("Completed")
        follow_up(page, text)
        ids.append(job_of(page))
    expect(head(page)).to_have_text("Completed")
    assert said(page) == words
    assert answer_of(page) == "Answer 2."
    jobs = [get(door, f"/api/jobs/{job_id}") for job_id in ids]
    assert [(job["previousJobId"], job["thread"]) for job in jobs] == [
        (None, ids[0]),
        (ids[0], ids[0]),
        (ids[1], ids[0]),
    ]
    (request,) = place.simulator.requests(words[2])
    assert [one["content"] for one in request["messages"]] == [words[0], "Answer 0.", words[1], "Answer 1.", words[2]]
    page.get_by_role("link", name="Conversation").click()
    page.wait_for_url(f"**/threads/{ids[0]}?at={ids[2]}")
    for _ in range(2):
        expect(page.get_by_role("heading", name="Conversation", level=1)).to_be_visible()
        expect(page.locator(".message.assistant")).to_have_count(3)
        assert said(page) == words
        page.reload()
    follow_up(page, prompt("turn 3", text="Answer 3."))
    assert page.url.startswith(f"{door.url}/threads/{ids[0]}?at=")
    expect(page.get_by_test_id("answer")).to_have_text("Answer 3.")
    expect(page.locator(".message.user")).to_have_count(4)


def test_an_edited_message_is_a_branch(door: Gateway, tab: Watched) -> None:
    """The first version stays, with what followed it; the branches lead to each other, with the keyboard alone."""
    first, second, _ = chain(door, "one", "two", "three")
    page = tab.open(f"{door.url}/threads/{first}")
    expect(page.locator(".message.user")).to_have_count(3)
    expect(page.get_by_role("navigation", name="Branches")).to_have_count(0)
    page.get_by_role("button", name="Edit message 3").press("Enter")
    box = page.get_by_role("textbox", name="Edited message")
    expect(box).to_be_focused()
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    expect(page.get_by_role("button", name="Edit message 3")).to_be_focused()
    page.keyboard.press("Enter")
    other = prompt("another two", text="Another answer.")
    box.fill(other)
    page.keyboard.press("Enter")
    page.wait_for_url("**?at=*")
    expect(page.get_by_test_id("answer")).to_have_text("Another answer.")
    expect(page.locator(".message.user")).to_have_count(2)
    assert said(page)[1] == other
    branch = get(door, f"/api/jobs/{job_of(page)}")
    assert (branch["previousJobId"], branch["thread"], branch["replayOf"]) == (first, first, second)
    branches = page.get_by_role("navigation", name="Branches")
    expect(branches).to_contain_text("2 of 2")
    branches.get_by_role("link", name="Earlier branch").press("Enter")
    expect(page.locator(".message.user")).to_have_count(3)
    expect(branches).to_contain_text("1 of 2")
    assert "three" in said(page)[2]
    page.reload()
    expect(branches).to_contain_text("1 of 2")
    branches.get_by_role("link", name="Later branch").click()
    expect(page.get_by_test_id("answer")).to_have_text("Another answer.")


def test_the_first_message_is_edited_in_its_thread(door: Gateway, tab: Watched) -> None:
    """Also where the job is shown by itself."""
    (first,) = chain(door, "one")
    page = tab.open(job_url(door, first))
    page.get_by_role("button", name="Edit message 1").click()
    page.get_by_role("textbox", name="Edited message").fill(prompt("another one", text="Another answer."))
    page.get_by_label("Edit message", exact=True).get_by_role("button", name="Send").click()
    page.wait_for_url(lambda url: first not in url)
    expect(page.get_by_test_id("answer")).to_have_text("Another answer.")
    expect(page.get_by_role("navigation", name="Branches")).to_contain_text("2 of 2")
    assert get(door, f"/api/jobs/{job_of(page)}")["thread"] == first


def test_messages_of_the_callers_own_belong_to_their_turn(door: Gateway, tab: Watched) -> None:
    """An assistant's message in a request is no answer of a job: the second turn is edited, not the first."""
    given = [{"role": "user", "content": "2"}, {"role": "assistant", "content": "4"}]
    last = {"role": "user", "content": prompt("3")}
    answer = HTTP.post(f"{door.url}/api/jobs", json={"messages": [*given, last]}, headers={"Prefer": "wait=20"})
    first = answer.json()["jobId"]
    second = ended(door, "5", fields={"previousJobId": first})
    page = tab.open(f"{door.url}/threads/{first}")
    page.get_by_role("button", name="Edit message 5").click()
    page.get_by_role("textbox", name="Edited message").fill(prompt("6"))
    page.keyboard.press("Enter")
    page.wait_for_url("**?at=*")
    expect(head(page)).to_have_text("Completed")
    branch = get(door, f"/api/jobs/{job_of(page)}")
    assert (branch["replayOf"], branch["previousJobId"]) == (second, first)
    messages = get(door, f"/api/jobs/{job_of(page)}/request")["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant", "user", "assistant", "user"]


def test_a_job_in_the_middle_leads_on(door: Gateway, tab: Watched) -> None:
    """To what followed it; the list shows the jobs of the thread."""
    first, second, _ = chain(door, "one", "two", "three")
    page = tab.open(job_url(door, first))
    page.get_by_role("region", name="The conversation goes on").get_by_role("link", name="two").click()
    page.wait_for_url(f"**/{second}")
    page.get_by_role("region", name="Details").locator(f'dd a[href^="/threads/{first}"]').click()
    expect(page.locator(".message.user")).to_have_count(3)
    page.goto(f"{door.url}/?thread={first}")
    expect(page.locator("tbody tr")).to_have_count(3)


def test_a_thread_whose_first_job_was_deleted(door: Gateway, tab: Watched) -> None:
    """The conversation is still there; what cannot go on says why."""
    tab.tolerated = AWAY
    first, second = chain(door, "one", "two")
    assert HTTP.delete(f"{door.url}/api/jobs/{first}").status_code == 204
    page = tab.open(f"{door.url}/threads/{first}")
    expect(page.locator(".message.user")).to_have_count(2)
    follow_up(page, prompt("three", text="Answer 3."))
    expect(page.get_by_test_id("answer")).to_have_text("Answer 3.")
    page.get_by_role("button", name="Edit message 1").click()
    page.get_by_role("textbox", name="Edited message").fill("Other")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("deleted")
    expect(page.get_by_role("textbox", name="Edited message")).to_have_value("Other")
    page.goto(f"{door.url}/threads/{second}")
    page.wait_for_url(f"**/threads/{first}?at=*")
    page.goto(f"{door.url}/threads/{uuid.uuid4().hex}")
    expect(page.get_by_role("heading", name="No such job")).to_be_visible()


@pytest.mark.parametrize("screen", ["a desk in the light", "a phone in the dark"])
def test_a_conversation_can_be_used_by_everybody(door: Gateway, browser: Browser, axe: str, screen: str) -> None:
    """With long words, a thought, and an open form; nothing is wider than a phone."""
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "color_scheme": "dark"}
    first = ended(door, "W" * 300, text="x" * 500, reasoning="Hm.")
    ended(door, "two", fields={"previousJobId": first})
    HTTP.post(f"{door.url}/api/jobs/{first}/replay", headers={"Prefer": "wait=20"})
    with watched(browser, **(phone if "phone" in screen else {})) as tab:
        page = tab.open(f"{door.url}/threads/{first}?at={first}")
        expect(page.get_by_role("navigation", name="Branches")).to_be_visible()
        expect(page.get_by_role("textbox", name="Follow up")).to_be_attached()
        test_page_use.fine(page, axe)
        page.get_by_role("button", name="Edit message 1").click()
        test_page_use.fine(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")


def test_a_picture_of_a_conversation(place: Stack, door: Gateway, tab: Watched, tmp_path: Path) -> None:
    """Questions and answers as people write them, and an edited question."""
    turns = {
        "Why is the sky blue?": "Air scatters the short waves of sunlight more than the long ones, so blue light comes"
        " from everywhere, and red light mostly from where the sun is.",
        "And why is it red in the evening?": "The light then comes through much more air. Most of the blue has been"
        " scattered out of its way before it reaches you, and the red is left.",
        "Is that so on Mars, too?": "It is the other way round there: fine dust makes the day butterscotch, and the"
        " sunset blue.",
    }
    first, *others = turns
    for asked, answered in turns.items():
        place.simulator.script(match=asked, text=answered)
    page = tab.open(door.url)
    ask(page, first)
    for asked in others:
        expect(head(page)).to_have_text("Completed")
        follow_up(page, asked)
    expect(head(page)).to_have_text("Completed")
    page.get_by_role("link", name="Conversation").click()
    page.get_by_role("button", name="Edit message 5").click()
    page.get_by_role("textbox", name="Edited message").fill("Is that so on the Moon, too?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("navigation", name="Branches")).to_contain_text("2 of 2")
    page.get_by_role("link", name="Earlier branch").click()
    expect(page.locator(".message.assistant")).to_have_count(3)
    picture(page, tmp_path, "conversation.png")
    place.simulator.drop_scripts()
