"""Debian's Chromium for tests: pages with everything that went wrong in them, and real tabs, which can be hidden."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, Playwright

from tests.support.needs import find, program
from tests.support.stack import wait_until

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
TIMEOUT_MS = 30_000


@contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Without windows where Debian's package of that is installed: its start takes a fifth of the processor's time."""
    path = find("chromium-headless-shell") or program("chromium")
    browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
    try:
        yield browser
    finally:
        browser.close()


class Watched:
    """A browser context, and what its pages complained of: errors, and violations of the policy.

    ``tolerated`` are words of complaints that a test brings about on purpose.
    """

    def __init__(self, context: BrowserContext, tolerated: tuple[str, ...] = ()) -> None:
        self.context = context
        self.tolerated = tolerated
        self.complaints: list[str] = []
        context.set_default_timeout(TIMEOUT_MS)
        context.on("page", self._watch)

    def open(self, url: str) -> Page:
        page = self.context.new_page()
        page.goto(url)
        return page

    def _watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(words in message.text for words in self.tolerated):
            self.complaints.append(f"{message.type}: {message.text}")


@contextmanager
def watched(browser: Browser, *, tolerated: tuple[str, ...] = (), **options: Any) -> Iterator[Watched]:
    """A context of its own. Fails if a page complained of anything that is not ``tolerated``."""
    context = browser.new_context(**options)
    try:
        found = Watched(context, tolerated)
        yield found
        assert found.complaints == []
    finally:
        context.close()


@contextmanager
def window(playwright: Playwright, directory: Path) -> Iterator[Watched]:
    """A window whose tabs are hidden while another one is in front. (Playwright's own browsers show all of them.)"""
    profile = directory / "profile"
    command = [program("chromium"), "--headless=new", *FLAGS, f"--user-data-dir={profile}"]
    log = (directory / "chromium.log").open("wb")
    process = subprocess.Popen([*command, "--remote-debugging-port=0", "about:blank"], stdout=log, stderr=log)
    try:
        port = wait_until(lambda: _port(profile), timeout=20, give_up=lambda: process.poll() is not None)
        assert port, f"Chromium does not answer; its log is {log.name}"
        browser = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}", no_defaults=True)
        found = Watched(browser.contexts[0])
        yield found
        assert found.complaints == []
        browser.close()
    finally:
        process.kill()
        process.wait()
        log.close()


def _port(profile: Path) -> str | None:
    """Chromium writes it there, in a file of two lines."""
    path = profile / "DevToolsActivePort"
    lines = path.read_text().split() if path.exists() else []
    return lines[0] if len(lines) > 1 else None
