"""A whole shop for a test: `holdfast up` in a directory of its own, driven as an operator would."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

READY_SECONDS: Final = 90.0


def product_code(name: str = "E2E") -> str:
    """Return a product code that no other test has."""
    return f"{name}-{secrets.token_hex(4).upper()}"


class Shop:
    """One running shop. `root` is its HOLDFAST_ROOT; every process of it is known by `status`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def environment(self) -> dict[str, str]:
        """For processes that shall find this shop."""
        return {**os.environ, "HOLDFAST_ROOT": str(self.root), "NO_COLOR": "1"}

    def holdfast(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `holdfast ARGUMENTS` on this shop."""
        done = subprocess.run(
            [sys.executable, "-m", "infrastructure.local", *arguments],
            env=self.environment,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # a topic may hold any bytes
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            message = f"holdfast {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            raise AssertionError(message)
        return done

    def up(self, *arguments: str) -> None:
        """Start it and return when everything is ready."""
        self.holdfast("up", "--detach", *arguments, timeout=READY_SECONDS * 2)

    def down(self) -> None:
        """Stop it."""
        self.holdfast("down", check=False)

    def status(self) -> dict[str, Any]:
        """Return the report of `holdfast status --json`."""
        told: dict[str, Any] = json.loads(self.holdfast("status", "--json", check=False).stdout)
        return told

    @property
    def http_url(self) -> str:
        """Where the edge listens."""
        return str(self.status()["http"])

    @property
    def postgres_url(self) -> str:
        """Where its database is."""
        lines = self.holdfast("env").stdout.splitlines()
        (url,) = [line.partition("=")[2].strip("'\"") for line in lines if "HOLDFAST_POSTGRES_URL=" in line]
        return url

    def kill(self, service: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one process, and to what it started; the supervisor restarts those that crash."""
        process = psutil.Process(self.status()["services"][service]["pid"])
        for each in (process, *process.children(recursive=True)):
            each.send_signal(number)

    def wait_ready(self, *services: str, patience: float = READY_SECONDS) -> None:
        """Return when `services` (all, when none is named) are ready."""
        end = time.monotonic() + patience
        while True:
            states = {name: each["state"] for name, each in self.status()["services"].items()}
            waiting = {name: states.get(name) for name in services or states if states.get(name) != "ready"}
            if not waiting:
                return
            if time.monotonic() > end:
                message = f"not ready after {patience:.0f} s: {waiting}"
                raise AssertionError(message)
            time.sleep(0.1)

    def client(self) -> httpx.Client:
        """A REST client of the edge."""
        return httpx.Client(base_url=self.http_url, timeout=30)

    def seed(self, rows: list[tuple[str, str, int, int]], folder: Path) -> None:
        """Put products (code, name, price in pence, units) into the catalogue, and return when the edge shows them."""
        file = folder / "products.csv"
        lines = ["product_code,name,price,currency,quantity"]
        lines += [f'{code},"{name}",{price / 100:.2f},GBP,{units}' for code, name, price, units in rows]
        file.write_text("\n".join(lines) + "\n")
        self.holdfast("seed", str(file))
        with self.client() as client:
            for code, *_ in rows:
                self.until(lambda code=code: client.get(f"/v1/products/{code}").json().get("available") is not None)

    @staticmethod
    def until(condition: Any, patience: float = 15.0) -> None:
        """Return when `condition()` holds."""
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                message = f"not within {patience:.0f} s"
                raise AssertionError(message)
            time.sleep(0.05)
