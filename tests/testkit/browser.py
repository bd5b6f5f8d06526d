"""A real browser for tests of pages: Debian's Chromium, driven by playwright.

HOLDFAST_CHROMIUM names another one. A machine without a browser gets one when we may install it; else the test fails
and says what to install: a page that was looked at by nobody proves nothing.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Browser, async_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
INSTALL_SECONDS: Final = 300


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A running headless Chromium; closed on leaving."""
    path = find_chromium()
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield running
        finally:
            await running.close()


def find_chromium() -> str:
    """The path of a Chromium, installed first when there is none and we may."""
    given = os.environ.get("HOLDFAST_CHROMIUM")
    if given is not None:
        if not Path(given).is_file():
            pytest.fail(f"HOLDFAST_CHROMIUM names {given}, which is no file", pytrace=False)
        return given
    found = _on_path()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = _on_path()
    if found is None:
        pytest.fail(
            "no browser: install Chromium (Debian: apt-get install chromium), or set HOLDFAST_CHROMIUM to its path",
            pytrace=False,
        )
    return found


def _on_path() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (("update",), ("install", "-y", "--no-install-recommends", "chromium")):
        # What goes wrong here is told by the browser that is then missing.
        subprocess.run(
            ["apt-get", "-qq", *arguments], env=environment, timeout=INSTALL_SECONDS, check=False, capture_output=True
        )
