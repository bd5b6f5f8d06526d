"""A shop for measuring, in a temporary directory, and opponents as processes beside it."""

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

from infrastructure.local.services import search_path
from infrastructure.local.state import Root, find_running
from load.shop import ShopAwayError

PREFIX: Final = "HOLDFAST_"
READY_SECONDS: Final = 300.0
STOP_SECONDS: Final = 15.0
SERVERS: Final = ("kafka", "postgres", "redis")


@dataclass(frozen=True, slots=True)
class OwnShop:
    """A running shop without limits; `environment` has its `HOLDFAST_…` variables."""

    root: Path
    environment: Mapping[str, str]
    pids: dict[str, int]
    """By the names of `holdfast status`."""

    async def restart(self, name: str) -> int:
        """End a service; the supervisor starts it again. Return its new process id when it is ready.

        For measurements of memory: what a process once had it keeps, and gives out again.
        """
        before = self.pids[name]
        os.kill(before, signal.SIGTERM)
        async with asyncio.timeout(READY_SECONDS):
            while True:
                _, answer, _ = await holdfast("status", "--json")
                service = json.loads(answer)["services"][name] if answer else {}
                if service.get("state") == "ready" and service["pid"] != before:
                    break
                await asyncio.sleep(0.1)
        self.pids[name] = service["pid"]
        return self.pids[name]

    @property
    def url(self) -> str:
        """Its HTTP address."""
        return self.environment["HOLDFAST_HTTP_URL"]

    def services(self) -> list[int]:
        """The processes of the shop itself, without Kafka, Postgres and Redis."""
        return [pid for name, pid in self.pids.items() if name not in SERVERS]

    def groups(self) -> dict[str, list[int]]:
        """Process ids of the shop's services, of Kafka and of Postgres."""
        return {"service": self.services(), **{name: [self.pids[name]] for name in ("kafka", "postgres")}}


@asynccontextmanager
async def own_shop(services: str) -> AsyncIterator[OwnShop]:
    """`holdfast up --no-limits --only SERVICES` in a directory of its own, stopped and removed afterwards.

    Until then this process's environment is the shop's. Raises `ShopAwayError` when it does not start.
    """
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]  # a shop that somebody runs here must not be measured, nor its servers
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    os.environ["HOLDFAST_ROOT"] = str(folder / "root")
    try:
        status, _, complaint = await holdfast("up", "--detach", "--no-limits", "--only", services)
        stack = find_running(Root(folder / "root"))
        if status or stack is None:
            raise ShopAwayError(f"no shop to measure: `holdfast up` ended with {status}: {complaint.strip()[-500:]}")
        os.environ.update(stack.environment())
        _, answer, _ = await holdfast("status", "--json")
        pids = {name: service["pid"] for name, service in json.loads(answer)["services"].items()}
        yield OwnShop(stack.root, stack.environment(), pids)
    finally:
        await asyncio.shield(holdfast("down"))
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


async def holdfast(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a `holdfast` command."""
    return await command([sys.executable, "-m", "infrastructure.local", *arguments], {})


async def command(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a program, run with more environment."""
    child = await asyncio.create_subprocess_exec(
        *argv,
        env={**os.environ, **search_path(), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, complaint = await child.communicate()
    return child.returncode or 0, answer.decode(errors="replace"), complaint.decode(errors="replace")


@asynccontextmanager
async def opponent(module: str, *arguments: str) -> AsyncIterator[tuple[str, int]]:
    """`python -m MODULE …` as a process: its address, which it prints, and its process id."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        env={**os.environ, **search_path()},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None  # it was asked for
        async with asyncio.timeout(READY_SECONDS):
            line = await child.stdout.readline()
        if not line:
            raise ShopAwayError(f"{module} ended with {await child.wait()} before it was ready")
        told: dict[str, Any] = json.loads(line)
        yield told["url"], child.pid
    finally:
        await stop(child)


async def stop(child: asyncio.subprocess.Process, number: signal.Signals = signal.SIGTERM) -> None:
    """End a process of ours: asked first, killed when it doesn't."""
    with suppress(ProcessLookupError):
        child.send_signal(number)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
