"""The `holdfast` command under test: a root of its own, stub services, its own ports, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from infrastructure.local.servers import jars, probes
from infrastructure.local.servers.kafka import Kafka
from infrastructure.local.servers.postgres import Postgres
from infrastructure.local.state import Root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[2]
STUBS = ("rest_api", "account_service", "cart_service", "inventory_service", "order_service", "notification_service")
"""A stub has no part services: those are left out."""
INFRA = ("up", "--detach", "--infra-only")


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    code: int
    out: str
    err: str


@dataclass
class StubStack:
    """One root directory and the environment its commands run in."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """Put before every command: another user, a limit."""
    afterwards: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """Cleanup to run when the shop is gone."""

    def __post_init__(self) -> None:
        """Give it a root with ports of its own, and services with nothing inside."""
        self.root = self.folder / "root"
        self.ports = {name: probes.free_port() for name in ("http", "kafka", "postgres", "redis")}
        self.root.mkdir(mode=0o700, parents=True)
        (self.root / "stack.json").write_text(json.dumps({"ports": self.ports}))
        for module in STUBS:
            place = self.folder / "stubs" / module
            place.mkdir(parents=True)
            (place / "__init__.py").touch()
            shutil.copy(REPOSITORY / "tests/testkit/stub_service.py", place / "__main__.py")

    def use_kafka(self, address: str) -> None:
        """Use an external broker. A root that has a port for Kafka would take the address for its own."""
        self.env["HOLDFAST_KAFKA"] = address
        own = {name: port for name, port in self.ports.items() if name != "kafka"}
        (self.root / "stack.json").write_text(json.dumps({"ports": own}))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        environment = {
            **kept,
            "HOLDFAST_ROOT": str(self.root),
            "PYTHONPATH": f"{self.folder / 'stubs'}{os.pathsep}{REPOSITORY}",
            **self.env,
        }
        argv = [*self.prefix, sys.executable, "-m", "infrastructure.local", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            argv, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def __call__(self, *words: str) -> Result:
        """Run a command to its end."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=100)
        return Result(process.returncode, out, err)

    def status(self) -> dict[str, Any]:
        """Return the report of `status --json`."""
        content: dict[str, Any] = json.loads(self("status", "--json").out)
        return content

    def entry(self, name: str) -> dict[str, Any]:
        """The recorded state of one process; read without a command, so that a test may ask often."""
        content: dict[str, Any] = json.loads((self.root / "stack.json").read_text())["services"][name]
        return content

    def ours(self) -> list[psutil.Process]:
        """Every process that has our directory in its command line, environment or working directory."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                told = process.environ().get("HOLDFAST_ROOT") == str(self.root)
                inside = process.cwd().startswith(str(self.root)) or str(self.root) in " ".join(process.cmdline())
                if process.pid != os.getpid() and (told or inside) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def furnish(self, template: Path) -> None:
        """Take over prepared servers, which saves their first start."""
        for name in ("kafka", "postgres", "secrets.json"):
            (shutil.copytree if (template / name).is_dir() else shutil.copy)(template / name, self.root / name)


def prepare(root: Path) -> Path:
    """A root whose servers are prepared but were never started."""
    place = Root(root)
    place.create()
    secrets = place.secrets()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda kind: kind(place, probes.free_port(), secrets).prepare(), (Kafka, Postgres)))
    return root


def until(test: Callable[[], bool], seconds: float = 90.0) -> float:
    """Wait for it; returns how long it took."""
    began = time.monotonic()
    while not test():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def own_jars(shop: StubStack, *, without: str = "") -> Path:
    """A Maven repository of the shop's own, as links to the real one's files; returns the jar left out."""
    place, real = shop.folder / "m2", jars.maven_repository()
    left_out = place
    for path in jars.ensure_jars():
        target = place / path.relative_to(real)
        target.parent.mkdir(parents=True, exist_ok=True)
        if without and path.name.startswith(without):
            left_out = target
            continue
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
    shop.env["M2_REPO"] = str(place)
    return left_out


@dataclass
class Mirror:
    """A Maven registry on this machine: well, or cutting its answers short, or sending rubbish."""

    mood: str = "well"
    asked: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """Run it; yields its address."""
        mirror, files = self, jars.maven_repository()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                content = (files / self.path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if mirror.mood == "cut":
                    content = content[: len(content) // 2]
                elif mirror.mood == "spoil":
                    content = bytes(len(content))
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the parent's
                """Quiet."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
