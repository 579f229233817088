"""The browser of the page's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from tests.support.browser import Watched, chromium, watched
from tests.support.needs import program


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    program("chromium")  # or the test is skipped, before the driver asks for libraries that come with the browser
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with chromium(playwright) as running:
        yield running


@pytest.fixture
def tab(browser: Browser) -> Iterator[Watched]:
    with watched(browser, viewport={"width": 1280, "height": 900}) as found:
        yield found
