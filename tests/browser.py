"""A real browser without a screen, that tells what a page does: Debian's Chromium, driven by Playwright."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.pictures import browser as find_browser


@dataclass
class Seen:
    """page: Playwright's. told: errors and lines of its console; requests: URLs that it asked for; dialogs: texts."""

    page: Any
    told: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    path = find_browser()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(chromium: Any, file: Path, width: int = 1280, scheme: str = "light") -> Iterator[Seen]:
    """The page of a file, once it has drawn its figures."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    seen = Seen(page)
    page.on("console", lambda message: seen.told.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.told.append(f"error: {error}"))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(file.as_uri())
    until(page, "document.querySelectorAll('.plot:not(.js-plotly-plot)').length == 0")
    try:
        yield seen
    finally:
        context.close()


def until(page: Any, expression: str, seconds: float = 20) -> None:
    """Wait for what becomes true; Playwright's own way of waiting evaluates texts, which the page's policy forbids."""
    ends = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < ends, f"not within {seconds:.0f} s: {expression}"
        time.sleep(0.05)
