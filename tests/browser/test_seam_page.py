"""A continued answer on the page: how it came about, where it was continued, and which attempt wrote what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import test_page, test_page_use
from tests.browser.test_page import answer_of, contrast, ended, get, head, job_url, picture
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, gateway
from tests.support.stack import Stack, free_port, stack

pytestmark = pytest.mark.long

axe = test_page_use.axe
logs = test_page.logs
SHOW = "Show where it was continued"
TEXT = """Tides are the rise of the sea 🌊 that the **moon** causes.

| Port | Range |
|:-----|------:|
| Saint-Malo | 12.0 m |
| Brest | 7.2 m |
| Toulon | 0.4 m |

```python
def range_of(high, low):
    # metres
    return high - low
```

So much for the range; the *time* moves on by fifty minutes a day.
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "MISTRAL_REQUESTS_PER_SECOND": "1000"}
    with stack(tmp_path_factory.mktemp("seam-page"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


def continued(door: Gateway, *faults: dict[str, Any], **script: Any) -> tuple[str, Any]:
    """A job whose answer took several attempts, and what the API says of it."""
    fields = {"fallbackModels": ["mistral-medium-latest"], "limits": {"fallbackSeconds": 1}} | script.pop("fields", {})
    job_id = ended(door, "Why do tides change?", text=TEXT, faults=list(faults), fields=fields, **script)
    job = get(door, f"/api/jobs/{job_id}")
    assert (job["status"], job["content"]) == ("completed", TEXT)
    return job_id, job


def shown(page: Page) -> Locator:
    """The answer with its seams shown."""
    page.get_by_role("button", name=SHOW).click()
    return page.get_by_test_id("answer")


@pytest.mark.parametrize(("echo", "seam"), [("whole", "confirmed"), ("none", "unconfirmed")])
def test_the_raw_text_has_a_bar_at_the_character(door: Gateway, tab: Watched, echo: str, seam: str) -> None:
    job_id, job = continued(door, {"kind": "cut", "after": 16}, echo=echo)
    first, second = job["provenance"]
    assert (first["seam"], second["seam"]) == (None, seam)
    page = tab.open(job_url(door, job_id))
    page.get_by_role("button", name="Raw").click()
    answer = shown(page)
    assert answer_of(page) == TEXT
    bars = answer.locator(".seam")
    expect(bars).to_have_count(1)
    expect(bars).to_have_attribute("data-seam", seam)
    stretches = answer.locator(".stretch")
    assert stretches.all_text_contents() == [TEXT[: first["end"]], TEXT[first["end"] :]]
    page.get_by_role("button", name=SHOW).click()
    expect(bars).to_have_count(0)
    assert answer_of(page) == TEXT


def test_the_legend_is_always_there(door: Gateway, tab: Watched) -> None:
    """And nothing of it where there was one attempt."""
    job_id, job = continued(door, {"kind": "cut", "after": 16})
    page = tab.open(job_url(door, job_id))
    legend = page.locator(".legend-line > span")
    wasted = job["wastedTokens"]
    assert wasted > 0
    expect(legend).to_have_text(f"2 attempts; 1 seam confirmed; {wasted} tokens wasted")
    attempts = page.get_by_role("region", name="Attempts")
    expect(attempts.locator("li")).to_have_count(2)
    expect(attempts.locator("li").first).to_contain_text("mistral-small-latest")
    expect(attempts).to_contain_text(f"{wasted} tokens wasted")
    page.goto(job_url(door, ended(door)))
    expect(head(page)).to_have_text("Completed")
    expect(page.locator(".seams")).to_have_count(0)


def test_who_wrote_a_stretch_is_told(door: Gateway, browser: Browser) -> None:
    """To the pointer, the keyboard and the finger; Escape takes it away."""
    job_id, job = continued(door, {"kind": "cut", "after": 16}, {"kind": 503}, {"kind": 503})
    second = job["provenance"][-1]
    assert second["model"] == "mistral-medium-latest"
    told = re.compile(
        rf"Attempt {second['attempt']} · {second['model']} · {second['end'] - second['start']} characters · "
        r"continued; confirmed: .* · at \d\d:\d\d:\d\d"
    )
    with watched(browser, viewport={"width": 1280, "height": 900}, has_touch=True) as tab:
        page = tab.open(job_url(door, job_id))
        page.get_by_role("button", name="Raw").click()
        stretches = shown(page).locator(".stretch")
        tip = page.get_by_role("tooltip")
        stretches.first.focus()
        expect(tip).to_contain_text(re.compile("Attempt 1 · mistral-small-latest · .* began the answer"))
        page.keyboard.press("Escape")
        expect(tip).to_have_count(0)
        stretches.last.hover()
        expect(tip).to_have_text(told)
        page.get_by_role("heading", level=1).hover()
        expect(tip).to_have_count(0)
        stretches.last.tap()
        expect(tip).to_have_text(told)
        expect(page.locator(".stretches li").last).to_have_text(told)


def test_the_rendered_block_with_the_seam_is_marked(door: Gateway, tab: Watched) -> None:
    """Also a table and a code block, and the page says that the character shows in the raw view."""
    for after in (4, 24, 50):
        job_id, job = continued(door, {"kind": "cut", "after": after})
        end = job["provenance"][0]["end"]
        page = tab.open(job_url(door, job_id))
        answer = shown(page)
        marked = answer.locator("[data-seam]")
        expect(marked).to_have_count(1)
        expect(marked).to_have_attribute("data-seam", re.compile("Attempt 2, mistral-small-latest, confirmed"))
        kind = "P" if end < TEXT.index("|") else "DIV" if end < TEXT.index("```") else "FIGURE"
        assert marked.evaluate("one => one.nodeName") == kind
        expect(page.get_by_text("the raw view shows the character")).to_be_visible()
        marked.hover(position={"x": 30, "y": 6})
        expect(page.get_by_role("tooltip")).to_contain_text("Attempt 1")
        expect(page.get_by_role("tooltip")).to_contain_text("Attempt 2")
        page.close()


def test_a_seam_in_the_reasoning_is_no_seam_of_the_answer(door: Gateway, tab: Watched) -> None:
    """Positions count both channels; how they follow each other is asked of the stream."""
    job_id = ended(door, text=TEXT, reasoning="First the moon 🌕, then the sun.", faults=[{"kind": "cut", "after": 30}])
    job = get(door, f"/api/jobs/{job_id}")
    page = tab.open(job_url(door, job_id))
    page.get_by_role("button", name="Raw").click()
    answer = shown(page)
    thoughts = len(job["reasoning"])
    ends = [one["end"] - thoughts for one in job["provenance"]]
    expect(answer.locator(".stretch")).to_have_count(len(ends))
    assert answer.locator(".stretch").all_text_contents() == [
        TEXT[max(start, 0) : end] for start, end in zip([0, *ends], ends, strict=False)
    ]
    assert answer_of(page) == TEXT


@pytest.mark.parametrize("screen", ["a desk in the light", "a phone in the dark"])
def test_everybody_can_see_it(door: Gateway, browser: Browser, axe: str, screen: str) -> None:
    """The bar has a sign and a label besides its colour; contrasts suffice; nothing is wider than the screen."""
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "color_scheme": "dark"}
    job_id, _ = continued(door, {"kind": "cut", "after": 16}, echo="none")
    with watched(browser, **(phone if "phone" in screen else {})) as tab:
        page = tab.open(job_url(door, job_id))
        answer = shown(page)
        test_page_use.fine(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]
        page.get_by_role("button", name="Raw").click()
        expect(answer.get_by_role("img", name="Continued here")).to_be_attached()
        test_page_use.fine(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]
        names = ["ink", "bg", "surface", "completed", "incomplete"]
        script = "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
        ink, back, surface, confirmed, unconfirmed = page.evaluate(script, names)
        assert contrast(ink, back) >= 4.5  # the hint is the other way round
        assert min(contrast(one, surface) for one in (confirmed, unconfirmed)) >= 3  # WCAG 2.2, 1.4.11


def test_picture(place: Stack, door: Gateway, browser: Browser, tmp_path: Path) -> None:
    """What the documentation shows: a rendered answer with a table and code, two blocks of which were continued."""
    question = "How large is the tide in France?"
    cut, away = {"kind": "cut", "after": 40}, {"kind": 503}
    place.simulator.script(match=question, text=TEXT.replace(" 🌊", ""), faults=[cut, away, away])
    fields = {"fallbackModels": ["mistral-medium-latest"], "limits": {"fallbackSeconds": 1}}
    body = {"messages": [{"role": "user", "content": question}], **fields}
    answer = test_page.HTTP.post(f"{door.url}/api/jobs", json=body, headers={"Prefer": "wait=20"})
    with watched(browser, viewport={"width": 1280, "height": 960}) as tab:
        page = tab.open(job_url(door, answer.json()["jobId"]))
        shown(page)
        page.get_by_text("moves on by fifty minutes").hover(position={"x": 120, "y": 8})
        expect(page.get_by_role("tooltip")).to_contain_text("mistral-medium-latest")
        picture(page, tmp_path, "answer.png")
