"""Services as processes that a test starts, kills and freezes, with a thread that restarts them like a supervisor.

`shop.py` runs the `holdfast` command instead. Each process has an environment of its own; a prefix keeps shops apart
on servers that several tests share.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import psycopg
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families

from infrastructure.local.servers import port_reservations
from infrastructure.process.failpoints import VARIABLE
from infrastructure.process.settings import Settings
from tests.testkit.servers import Servers

PATIENCE: Final = 60.0
RESTART_AFTER: Final = 0.3
"""Seconds before a process that ended is started again."""


class Replica:
    """A process of a service under its stable name, with a state directory and a log of its own."""

    def __init__(self, module: str, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.module = module
        self.name = name
        self.folder = folder
        self.environment = environment
        self.log = folder / "log"
        self.port = port_reservations.reserve_free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.kept = False
        """True if the process is started again when it ends."""
        self.exits: list[int] = []
        self.arguments = ["run"]
        self.max_descriptors: int | None = None
        """The process's limit of open files; `None`: that of the tests."""
        self.begun = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, **more: str) -> None:
        """Start the process; `more` stays in its environment, also over the replica's own name and ports."""
        self.environment |= more
        own = {
            "HOLDFAST_REPLICA": self.name,
            "HOLDFAST_STATE_DIR": str(self.folder),
            "HOLDFAST_HEALTH_PORT": str(self.port),
            "HOLDFAST_HTTP_PORT": str(self.port),
        }
        self.begun = time.monotonic()
        command = [sys.executable, "-m", self.module, *self.arguments]
        if self.max_descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {self.max_descriptors} && exec "$@"', "sh", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env={**own, **self.environment}, stderr=log)

    def stop(self, number: signal.Signals = signal.SIGTERM, patience: float = 15.0) -> int:
        """End the process and keep it ended; return its exit status."""
        self.kept = False
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(patience)

    def again(self, **more: str) -> None:
        """Start a new process under the same name, kept from now on, and return when it is ready."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self.start(**more)
        self.kept = True
        self.wait_ready()

    def arm(self, point: str) -> None:
        """Start a new process that crashes, or freezes, at a failpoint: `name:count` or `name:count:pause`."""
        (self.folder / f"crashed-at-{point.partition(':')[0]}").unlink(missing_ok=True)
        self.again(**{VARIABLE: point})

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the process a signal; a kept replica is started again if that ends it."""
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def frozen(self) -> bool:
        """True if the process is stopped, as by SIGSTOP."""
        assert self.process is not None
        return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED

    def health(self, path: str = "/readyz") -> str:
        """Return `ok`, the error that the health server reports, or `silent` if it does not answer."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=2)
        except httpx.TransportError:
            return "silent"
        return "ok" if answer.status_code == 200 else str(answer.json().get("detail"))

    def wait_for_url(self, patience: float = PATIENCE) -> str:
        """Return the address that the process logs first, and take its port: for a process that chose its port."""

        def first_line() -> re.Match[str] | None:
            assert self.process is not None
            assert self.process.poll() is None, self.log_tail()
            return re.match(r".*?(http://[^\"]+:(\d+))[^\n]*\n", self.log.read_text(errors="replace"))

        until(first_line, patience, self.log_tail)
        match = first_line()
        assert match is not None
        self.port = int(match[2])
        return match[1]

    def wait_ready(self, patience: float = PATIENCE) -> None:
        """Return when the process is ready for work."""
        until(lambda: self.health() == "ok", patience, lambda: f"{self.name}: {self.health()}\n{self.log_tail()}")

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric on `/metrics`, summed over the samples with `labels`; 0 if there is none."""
        page = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False, timeout=10).text
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    def log_tail(self, lines: int = 12) -> str:
        """Return the end of the log."""
        return "\n".join(line[:400] for line in self.log.read_text(errors="replace").splitlines()[-lines:])

    def messages(self) -> list[str]:
        """Return the logged messages."""
        return [str(each.get("message")) for line in self.log.read_text().splitlines() if (each := _parsed(line))]


class Processes:
    """The processes of one shop, and the thread that starts kept ones again."""

    def __init__(self, servers: Servers, settings: Settings, folder: Path, **environment: str) -> None:
        self.settings = settings
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
            **servers.environment(),
            "HOLDFAST_PREFIX": settings.prefix,
            "HOLDFAST_PARTITIONS": str(settings.partitions),
            "HOLDFAST_LIMITS": "off",
            **environment,
        }
        self.replicas: list[Replica] = []
        self._closed = threading.Event()
        self._restarter = threading.Thread(target=self._restart_ended)
        self._restarter.start()

    def add(self, module: str, name: str, folder: str = "", **more: str) -> Replica:
        """Return a replica that is not started yet; `folder` is another machine's state directory."""
        replica = Replica(module, name, self.folder / (folder or name), {**self.environment, **more})
        self.replicas.append(replica)
        return replica

    def start(self, module: str, *names: str, **more: str) -> list[Replica]:
        """Start replicas that are kept; the caller waits until they are ready."""
        started = [self.add(module, name, **more) for name in names]
        for replica in started:
            replica.start()
            replica.kept = True
        return started

    def run(self, module: str, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a sub-command to its end."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**self.environment, "HOLDFAST_STATE_DIR": str(self.folder / "command"), **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def seed(self, **units: int) -> None:
        """Put products with that many units into the catalogue."""
        file = self.folder / "products.csv"
        lines = [f"{code},name of {code},1.00,GBP,{each}\n" for code, each in units.items()]
        file.write_text("product_code,name,price,currency,quantity\n" + "".join(lines))
        done = self.run("inventory_service", "seed", str(file))
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        """End everything."""
        self._closed.set()
        self._restarter.join()
        for replica in self.replicas:
            if replica.process is not None and replica.process.poll() is None:
                replica.process.kill()
                replica.process.send_signal(signal.SIGCONT)
        for replica in self.replicas:
            if replica.process is not None:
                replica.process.wait(15)

    def _restart_ended(self) -> None:
        while not self._closed.wait(0.05):
            for replica in list(self.replicas):
                process = replica.process
                if replica.kept and process is not None and (status := process.poll()) is not None:
                    replica.exits.append(status)
                    if self._closed.wait(RESTART_AFTER) or not replica.kept or replica.process is not process:
                        continue  # a test has stopped or started this one itself
                    replica.start()


@contextmanager
def processes(servers: Servers, settings: Settings, folder: Path, **environment: str) -> Iterator[Processes]:
    """A shop without a process yet; all its processes are killed afterwards."""
    shop = Processes(servers, settings, folder, **environment)
    try:
        yield shop
    finally:
        shop.close()


async def clean_up(settings: Settings) -> None:
    """Delete the topics and schemas of a prefix."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
    await admin.start()
    try:
        ours = [name for name in await admin.list_topics() if name.startswith(settings.prefix)]
        if ours:
            await admin.delete_topics(ours)
    finally:
        await admin.close()
    with contextlib.suppress(psycopg.Error), psycopg.connect(settings.postgres_url, autocommit=True) as connection:
        begin = settings.schema_name("")
        schemas = connection.execute("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)", (begin,))
        for (name,) in schemas.fetchall():
            connection.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE'.encode())


def until(condition: Callable[[], object], patience: float = PATIENCE, why: Callable[[], str] = str) -> None:
    """Return when `condition` holds; raise `AssertionError` with `why()` if it does not in time."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            message = f"not within {patience:.0f} s: {why()}"
            raise AssertionError(message)
        time.sleep(0.05)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
