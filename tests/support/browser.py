from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.async_api import ConsoleMessage, Error, Page, Route, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass
class WatchedPage:
    """A page, with every error of its console and every host it asked for but loopback."""

    page: Page
    errors: list[str] = field(default_factory=list[str])
    foreign: list[str] = field(default_factory=list[str])

    async def let_through(self, route: Route) -> None:
        """Blocks and records every request that would leave this machine."""
        url = urlsplit(route.request.url)
        if url.scheme in {"http", "https"} and url.hostname not in LOOPBACK:
            self.foreign.append(route.request.url)
            await route.abort()
        else:
            await route.continue_()

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(f"{message.type}: {message.text} ({message.location})")

    def crash(self, error: Error) -> None:
        self.errors.append(f"uncaught: {error}")


def find_executable() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.asynccontextmanager
async def watched_page(executable: str) -> AsyncGenerator[WatchedPage]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            page = await browser.new_page(viewport={"width": 1400, "height": 900})
            watched = WatchedPage(page)
            page.on("console", watched.hear)
            page.on("pageerror", watched.crash)
            await page.route("**/*", watched.let_through)
            yield watched
        finally:
            await browser.close()
