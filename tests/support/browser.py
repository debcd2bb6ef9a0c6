"""A headless Chromium that looks at the live page, and holds it to what a page has to keep."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, Request, TimeoutError, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 60_000


def chromium_path() -> str:
    """The browser that tests take: the one that CHROMIUM names, or the first on the path."""
    for name in (os.environ.get("CHROMIUM"), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    raise FileNotFoundError("there is no Chromium: run tools/install_chromium.sh, or let CHROMIUM name one")


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser with an empty profile."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def watched_page(browser: Browser, url: str, **options: Any) -> AsyncIterator[WatchedPage]:
    """A page in a profile of its own, and at the end: no error in it, and no request to anybody else.

    `options` are those of `Browser.new_context`.
    """
    context = await browser.new_context(**options)
    context.set_default_timeout(WAIT_MS)
    try:
        watched = WatchedPage(await context.new_page(), url)
        try:
            yield watched
        except TimeoutError as error:
            error.add_note(f"the page showed: {await watched.text('body')}")
            raise
        assert watched.errors == []
        assert watched.foreign == []
    finally:
        await context.close()


class WatchedPage:
    """A page, and what it has done that it must not."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        """Exceptions, refusals of the content security policy, and other errors on the console."""
        self.expected: tuple[str, ...] = ()
        """Parts of errors on the console that a test means to bring about."""
        self.foreign: list[str] = []
        """Requests to other origins than the page's own."""
        page.on("pageerror", lambda error: self.errors.append(f"{error}"))
        page.on("console", self._on_console)
        page.on("request", self._on_request)

    async def open(self) -> None:
        """Opens the page and waits until it shows the cluster."""
        await self.page.goto(f"{self.url}/ui")
        await self.page.wait_for_selector('#connection[data-phase="live"]')
        await self.page.wait_for_selector(".node")

    async def text(self, selector: str) -> str:
        """What an element shows."""
        return await self.page.inner_text(selector)

    async def until(self, condition: str) -> None:
        """Waits until an expression is true in the page."""
        # A function: the page's policy lets nothing evaluate an expression.
        await self.page.wait_for_function(f"() => {condition}")

    async def until_text(self, selector: str, part: str) -> None:
        """Waits until an element shows a text."""
        await self.page.wait_for_function(
            "([selector, part]) => document.querySelector(selector)?.textContent.includes(part)",
            arg=[selector, part],
        )

    def _on_console(self, message: Any) -> None:
        if message.type == "error" and not any(part in message.text for part in self.expected):
            self.errors.append(message.text)

    def _on_request(self, request: Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.foreign.append(request.url)
