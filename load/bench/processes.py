"""Temporary shop for measuring, and baselines as processes next to it."""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from infrastructure.local.state import Root, find_running
from infrastructure.local.supervision.services import python_path
from load.bench import machine
from load.http_client import ShopUnavailableError

PREFIX: Final = "HOLDFAST_"
READY_SECONDS: Final = 300.0
STOP_SECONDS: Final = 15.0
SERVERS: Final = ("kafka", "postgres", "redis")
SUPERVISOR: Final = "supervisor"


@dataclass(frozen=True, slots=True)
class MeasuredShop:
    """Running shop without rate limits; `environment` has its `HOLDFAST_…` variables."""

    root: Root
    environment: Mapping[str, str]
    pids: dict[str, int]
    """Process ids by the names of `holdfast status`, and that of the `supervisor`."""

    async def restart(self, name: str) -> int:
        """Stop a service, wait until the supervisor has restarted it, and return its new process id.

        Memory is measured after a restart, since a process keeps and reuses memory that it once allocated.
        """
        before = self.pids[name]
        os.kill(before, signal.SIGTERM)
        async with asyncio.timeout(READY_SECONDS):
            while True:
                _, stdout, _ = await run_holdfast("status", "--json")
                service = json.loads(stdout)["services"][name] if stdout else {}
                if service.get("state") == "ready" and service["pid"] != before:
                    break
                await asyncio.sleep(0.1)
        self.pids[name] = service["pid"]
        return self.pids[name]

    @property
    def url(self) -> str:
        """HTTP address of the shop."""
        return self.environment["HOLDFAST_HTTP_URL"]

    @staticmethod
    def is_server(name: str) -> bool:
        """Return True if the process of this name is Kafka, Postgres or Redis."""
        return name in SERVERS

    def families(self) -> dict[str, list[psutil.Process]]:
        """Return the processes of each name with their children; `supervisor` has those of no other name."""
        families = {name: machine.process_tree([pid]) for name, pid in self.pids.items() if name != SUPERVISOR}
        others = {process.pid for family in families.values() for process in family}
        supervisor = machine.process_tree([self.pids[SUPERVISOR]])
        return {**families, SUPERVISOR: [process for process in supervisor if process.pid not in others]}

    def services(self) -> list[int]:
        """Return the process ids of the shop's own services, without Kafka, Postgres and Redis."""
        return [pid for name, pid in self.pids.items() if name not in SERVERS and name != SUPERVISOR]

    def groups(self) -> dict[str, list[int]]:
        """Return the process ids of the shop's services, of Kafka and of Postgres."""
        return {"service": self.services(), **{name: [self.pids[name]] for name in ("kafka", "postgres")}}


@asynccontextmanager
async def measured_shop(services: str) -> AsyncIterator[MeasuredShop]:
    """Run `holdfast up --no-limits --only SERVICES` in a temporary directory; stop and remove it on exit.

    Inside the context this process's environment is that of the shop. Raise `ShopUnavailableError` if the shop does not
    start.
    """
    async with temporary_root() as root:
        yield await start_shop(root, "--no-limits", "--only", services)


@asynccontextmanager
async def temporary_root() -> AsyncIterator[Root]:
    """Yield a temporary root directory; on exit its shop is stopped, the directory removed, the environment restored.

    Inside the context this process's environment names no other shop.
    """
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]  # neither measure nor disturb a shop that the user is running
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    os.environ["HOLDFAST_ROOT"] = str(folder / "root")
    try:
        yield Root(folder / "root")
    finally:
        await asyncio.shield(stop_shop())
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


async def start_shop(root: Root, *options: str) -> MeasuredShop:
    """Run `holdfast up --detach OPTIONS` and return the shop when it is ready, with its addresses in the environment.

    Raise `ShopUnavailableError` if it does not start.
    """
    status, _, stderr = await run_holdfast("up", "--detach", *options)
    stack = find_running(root)
    if status or stack is None:
        raise ShopUnavailableError(
            f"no shop to measure: `holdfast up` failed with exit status {status}: {stderr.strip()[-500:]}"
        )
    os.environ.update(stack.environment())
    _, stdout, _ = await run_holdfast("status", "--json")
    found = json.loads(stdout)
    pids = {name: service["pid"] for name, service in found["services"].items()}
    return MeasuredShop(root, stack.environment(), {**pids, SUPERVISOR: found["supervisor"]})


async def stop_shop() -> None:
    """Run `holdfast down`, which does nothing if no shop runs."""
    await run_holdfast("down")


async def run_holdfast(*arguments: str) -> tuple[int, str, str]:
    """Run a `holdfast` command and return its exit status, standard output and standard error."""
    return await run_command([sys.executable, "-m", "infrastructure.local", *arguments], {})


async def run_command(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a program with more environment variables; return its exit status, standard output and standard error."""
    child = await asyncio.create_subprocess_exec(
        *argv,
        env={**os.environ, **python_path(), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    return child.returncode or 0, stdout.decode(errors="replace"), stderr.decode(errors="replace")


@asynccontextmanager
async def baseline_process(
    module: str, *arguments: str, python: str = sys.executable
) -> AsyncIterator[tuple[str, int]]:
    """Run `python -m MODULE …` as a process and yield the address that it prints, and its process id."""
    child = await asyncio.create_subprocess_exec(
        python,
        "-m",
        module,
        *arguments,
        env={**os.environ, **python_path()},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None  # stdout is a pipe
        async with asyncio.timeout(READY_SECONDS):
            line = await child.stdout.readline()
        if not line:
            raise ShopUnavailableError(f"{module} exited with status {await child.wait()} before it was ready")
        ready: dict[str, Any] = json.loads(line)
        yield ready["url"], child.pid
    finally:
        await stop_process(child)


async def stop_process(child: asyncio.subprocess.Process, number: signal.Signals = signal.SIGTERM) -> None:
    """Stop a child process by a signal, or by SIGKILL if it does not exit in time."""
    with suppress(ProcessLookupError):
        child.send_signal(number)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
