"""A real browser for the tests of pages: the machine's Chromium, driven by playwright.

HOLDFAST_CHROMIUM names another one. Nothing is installed without being asked for: HOLDFAST_TEST_INSTALL=yes allows
`apt-get install chromium`, as CI does. Without a browser these tests fail, and say how to get one.
"""

import contextlib
import os
import shutil
import subprocess
import sys
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
MISSING: Final = (
    "The tests of the pages need a Chromium, and there is none on this machine: install it (Debian and Ubuntu:"
    " apt-get install chromium), or set HOLDFAST_CHROMIUM to its path, or set HOLDFAST_TEST_INSTALL=yes to let the"
    " tests install it with apt-get."
)


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
    """Return the path of a Chromium; fail the test with what to do when there is none."""
    try:
        return chromium_path()
    except LookupError as error:
        pytest.fail(str(error), pytrace=False)


def chromium_path() -> str:
    """Return the path of a Chromium, installed first if HOLDFAST_TEST_INSTALL=yes. Raises LookupError."""
    given = os.environ.get("HOLDFAST_CHROMIUM")
    if given is not None:
        if not Path(given).is_file():
            raise LookupError(f"HOLDFAST_CHROMIUM names {given}, which is not a file: set it to the path of a Chromium")
        return given
    found = _on_path()
    if found is None and os.environ.get("HOLDFAST_TEST_INSTALL") == "yes":
        _install()
        found = _on_path()
    if found is None:
        raise LookupError(MISSING)
    return found


def _on_path() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _install() -> None:
    print("installing Chromium (HOLDFAST_TEST_INSTALL=yes)", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (("update",), ("install", "-y", "--no-install-recommends", "chromium")):
        done = subprocess.run(
            ["apt-get", "-qq", *arguments],
            env=environment,
            timeout=INSTALL_SECONDS,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-500:]}", file=sys.stderr)


def main() -> int:
    """Look for the browser before the tests that need it start: `python -m tests.testkit.browser`."""
    try:
        chromium_path()
    except LookupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
