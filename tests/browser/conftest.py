"""A real browser in front of a server with a fake engine. `make browser-test` installs what this needs."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.harness import Running, serving

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

collect_ignore_glob = ["test_*.py"] if find_spec("playwright") is None else []
"""The default run leaves these tests out anyway."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000
"""For whatever is awaited: a machine may be ten times slower than ours."""
EXPECTED = ("Failed to load resource",)
"""What a browser itself says of an answer that is no success."""


@dataclass(slots=True)
class Opened:
    """A page, and what happened in it. other_hosts: addresses that it asked of any but the server."""

    page: "Page"
    base: str
    problems: list[str] = field(default_factory=list)
    other_hosts: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Take notes from now on."""

        def said(message: Any) -> None:
            if message.type in ("error", "warning") and not message.text.startswith(EXPECTED):
                self.problems.append(message.text)

        def asked(request: Any) -> None:
            if not request.url.startswith(self.base):
                self.other_hosts.append(request.url)

        self.page.on("console", said)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", asked)
        self.page.on("dialog", lambda dialog: self.problems.append(f"a dialog: {dialog.message}"))


Open = Callable[..., Awaitable[Opened]]


@pytest.fixture
async def browser() -> "AsyncIterator[Browser]":
    from playwright.async_api import async_playwright, expect  # noqa: PLC0415 (an extra of its own)

    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail(f"there is no browser: none of {', '.join(BROWSERS)} is installed (Debian's package is chromium)")
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def open_page(browser: "Browser") -> AsyncIterator[Open]:
    """Opens an address of a server in a context of its own; at the end nothing may have gone wrong in any."""
    opened: list[Opened] = []

    async def open_(base: str, path: str = "/", **context: Any) -> Opened:
        page = await (await browser.new_context(**context)).new_page()
        page.set_default_timeout(PATIENCE_MS)
        one = Opened(page, base)
        one.watch()
        opened.append(one)
        await page.goto(base + path)
        return one

    yield open_
    for one in opened:
        assert not one.problems and not one.other_hosts


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving(console_users=("ann", "bob")) as server:
        yield server
