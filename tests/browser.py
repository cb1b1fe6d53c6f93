"""A headless Chromium for tests of pages, driven by playwright; tests skip where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 300_000  # milliseconds in which a busy machine must have done what a page is asked
PICTURES = Path(__file__).parent.parent / "out" / "report"  # kept after the run, to be looked at


def chromium() -> str:
    """Path of a Chromium; skips the test where none is installed."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(NAMES)}); 'make browser' installs it as root")
    return found


@dataclass
class Watched:
    """A page, and what it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def picture(self, name: str, whole: bool = False) -> Path:
        """Saves a screenshot under ``out/report``."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        file = PICTURES / f"{name}.png"
        self.page.screenshot(path=str(file), full_page=whole)
        return file


@contextmanager
def started() -> Iterator[Any]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as driver:
        # Root has no sandbox; the shared memory of a container may be too small.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=path, args=options, timeout=PATIENCE)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, width: int = 1280, height: int = 900) -> Iterator[Watched]:
    """A page from disk, with every console message, error and request written down."""
    page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    watched = Watched(page)
    page.on("console", lambda message: watched.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.said.append(f"error: {error}"))
    page.on("request", lambda request: watched.asked.append(request.url))
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("html[data-ready]")
    yield watched
    page.close()
