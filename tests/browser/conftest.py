"""Debian's Chromium, driven by Playwright; where there is none, these tests are skipped by name (in CI: they fail)."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import Served, invite, join, rated_run
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser takes seconds to start: `make check` leaves these tests out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser a module: Playwright's loop must not run while other tests use theirs."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "browser tests: no chromium found (on Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def person(chromium: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Makes a person's browser: its own cookies and storage; what goes wrong on a page fails the test."""
    contexts: list[BrowserContext] = []
    trouble: list[str] = []

    def open_browser(*, calm: bool = False, **options: object) -> BrowserContext:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        context.set_default_timeout(20_000)
        context.on("weberror", lambda e: trouble.append(str(e.error)))
        context.on("console", lambda m: trouble.append(m.text) if _is_trouble(m, calm) else None)
        contexts.append(context)
        return context

    yield open_browser
    for context in contexts:
        context.close()
    assert trouble == []


def _is_trouble(said: ConsoleMessage, calm: bool) -> bool:
    """A script's error, a refused request, or a breach of the page's policy; `calm` overlooks refused requests.

    A server that is gone is no trouble, and the style of maps, which Plotly tries to add, is rightly refused.
    """
    refused = "Failed to load resource" in said.text
    overlooked = "net::ERR_" in said.text or said.location["url"].endswith("/static/plotly.js") or (calm and refused)
    return said.type == "error" and not overlooked


@pytest.fixture
def served(tiny_model: Path, tmp_path: Path) -> Iterator[Served]:
    """A served run that waits for people: 16 pairs."""
    with Served(rated_run(tmp_path / "run", tiny_model)) as server:
        yield server


@pytest.fixture
def owner(person: Callable[..., BrowserContext], served: Served) -> BrowserContext:
    """The owner's browser."""
    context = person()
    join(context, served.owner_link()).close()
    return context


@pytest.fixture
def rater(person: Callable[..., BrowserContext], served: Served, owner: BrowserContext) -> Page:
    """A rater's page, joined by link."""
    return join(person(), invite(owner, served, "Ada"))
