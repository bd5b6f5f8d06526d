"""Temporary shop under test, and operations on its processes and servers.

It is a complete shop as `holdfast up` starts it, in a directory of its own. Processes are those that its supervisor
lists; faults are signals to them, and commands to the servers they use.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final, TextIO

import psutil
import psycopg
from redis.asyncio import Redis

from infrastructure.local import probes, processes, services
from infrastructure.local.state import Root, Stack, find_running
from infrastructure.settings import Settings
from load.chaos.provider import Provider
from load.shop import ShopAwayError

WORKERS: Final = "cart=2,inventory=2"
PROVIDER_KEY: Final = "the-key-of-a-shop-under-test"
IMPATIENT: Final = {
    "HOLDFAST_PAYMENT_PATIENCE_SECONDS": "4",
    "HOLDFAST_ORDER_ASK_AGAIN_SECONDS": "2",
    "HOLDFAST_PROVIDER_TIMEOUT_SECONDS": "1",
    "HOLDFAST_PROVIDER_LATE_SECONDS": "4",
    "HOLDFAST_DELIVERY_SHIP_SECONDS": "1",
    "HOLDFAST_DELIVERY_DELIVER_SECONDS": "1",
    "HOLDFAST_HOLD_MINUTES": "600",
    "HOLDFAST_HOLD_LONGEST_MINUTES": "600",
}
"""Short deadlines: orders end within seconds, the late test card answers at about the payment deadline, and carts
expire only by a fault. Carts of an earlier scenario that expired would change the counts of a later one."""
RULES: Final = {**IMPATIENT, "HOLDFAST_PROVIDER_KEY": PROVIDER_KEY}
"""Settings of every process of the shop, including extra workers."""
KEPT: Final = frozenset({"HOLDFAST_SYSTEM_BINARIES", "HOLDFAST_KAFKA_JVM", "HOLDFAST_MAVEN_URL"})
"""Variables inherited from the environment: those about this machine, not about another shop."""
PORTS: Final = ("HTTP", "KAFKA", "POSTGRES", "REDIS")
REPLACED_SECONDS: Final = 60.0
"""Timeout for a killed process to return. It takes seconds, unless other faults interfere."""
JOIN_SECONDS: Final = 45.0
"""Timeout for an extra worker to become ready; it competes with the others for the machine."""
HEADER: Final = "product_code,name,price,currency,quantity"

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class Stage:
    """One running shop."""

    def __init__(self, root: Path) -> None:
        self.root = Root(root)

    # ---- the shop ---------------------------------------------------------------------------------------------------

    async def up(self, progress: TextIO) -> None:
        """Start the shop on ports of its own; raise `ShopAwayError` if it does not become ready."""
        ports = {f"HOLDFAST_{name}_PORT": str(probes.free_port()) for name in PORTS}
        arguments = ["up", "--detach", "--workers", WORKERS, "--no-limits"]
        status, _ = await self.holdfast(*arguments, progress=progress, more={**ports, **RULES})
        if status:
            raise ShopAwayError(f"the shop under test did not start: `holdfast up` failed with exit status {status}")

    async def down(self) -> None:
        """Stop the shop and its extra workers."""
        supervisor = self.root.load().get("supervisor")
        if supervisor:
            with suppress(psutil.Error):
                psutil.Process(supervisor).send_signal(signal.SIGCONT)
        await self.holdfast("down")

    async def holdfast(
        self, *arguments: str, progress: TextIO | None = None, more: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run a command on this shop and return its exit status and standard output."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "infrastructure.local", *arguments),
            env={**self.environment(), **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=progress or subprocess.DEVNULL,
        )
        answer, _ = await child.communicate()
        return child.returncode or 0, answer.decode()

    def environment(self) -> dict[str, str]:
        """Return the environment of commands on this shop, without any variable that refers to another shop."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_") or k in KEPT}
        return {**ours, **services.search_path(), "HOLDFAST_ROOT": str(self.root.path), "NO_COLOR": "1"}

    async def seed(self, stock: Mapping[str, int]) -> None:
        """Add new products to the shop."""
        file = self.root.path / "chaos.csv"
        rows = [f"{product},For fault tests,1.00,GBP,{units}" for product, units in stock.items()]
        file.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
        status, _ = await self.holdfast("seed", str(file))
        if status:
            raise ShopAwayError(f"`holdfast seed` failed with exit status {status}")

    async def audit(self, grace: float | None = None) -> tuple[list[str], str]:
        """Return the violations that `holdfast audit` finds, and its digest; `grace` replaces the default of 30 s."""
        more = {} if grace is None else {"HOLDFAST_AUDIT_GRACE_SECONDS": f"{grace:g}"}
        status, answer = await self.holdfast("audit", "--json", more=more)
        try:
            report = json.loads(answer)
        except ValueError:
            return [f"`holdfast audit` failed with exit status {status} and printed no JSON"], ""
        return [each if isinstance(each, str) else json.dumps(each) for each in report["violations"]], report["digest"]

    @property
    def stack(self) -> Stack:
        """Addresses of the running shop; raises `ShopAwayError` if it does not run."""
        stack = find_running(self.root)
        if stack is None:
            raise ShopAwayError("the shop under test is gone: its supervisor is not running")
        return stack

    @property
    def webhook_url(self) -> str:
        """URL to which the provider sends webhooks."""
        return f"{self.stack.http}/v1/webhooks/payments"

    @property
    def provider(self) -> Provider:
        """Client of this shop's payment provider."""
        return Provider(self.stack.provider, PROVIDER_KEY, self.root.secrets().signing)

    async def under_way(self) -> int:
        """Return how many rows are still to be processed: open orders, due rows, and unpublished events."""
        async with self.postgres() as connection:
            found = await connection.execute(
                "SELECT (SELECT count(*) FROM orders.orders WHERE due_at IS NOT NULL OR published < version)"
                " + (SELECT count(*) FROM inventory.holder WHERE expires_at <= now())"
                " + (SELECT count(*) FROM inventory.untold_expiry)"
                " + (SELECT count(*) FROM payment.step WHERE tell_at IS NOT NULL)"
                " + (SELECT count(*) FROM delivery.parcel WHERE tell_at IS NOT NULL)"
                " + (SELECT count(*) FROM notifications.notice WHERE due_at <= now() OR told_at IS NOT NULL)"
            )
            return sum(row[0] for row in await found.fetchall())

    @property
    def settings(self) -> Settings:
        """Settings as a service of this shop reads them."""
        stack = self.stack
        return Settings(kafka=stack.kafka, postgres_url=stack.postgres_url, redis_url=stack.redis_url, prefix="")

    def services(self) -> dict[str, dict[str, Any]]:
        """Return `state`, `pid` and `restarts` by name, as in `holdfast status`."""
        found: dict[str, dict[str, Any]] = self.root.load().get("services", {})
        return found

    def unready(self) -> list[str]:
        """Return the names of the services that are not ready."""
        return [name for name, each in self.services().items() if each["state"] != "ready"]

    async def why_unready(self) -> str:
        """Return a sentence with the reasons of the unready services, or an empty string."""
        reasons, services = [], self.services()
        for name in self.unready():
            metrics = services[name].get("metrics")
            why = "no reason given"
            if metrics:
                _, why = await asyncio.to_thread(probes.ask, metrics.replace("/metrics", "/readyz"))
            reasons.append(f"{name} not ready ({why[:300]})")
        return ", ".join(reasons)

    def restarts(self) -> int:
        """Return the total number of restarts so far."""
        return sum(each["restarts"] for each in self.services().values())

    def many(self, kind: str) -> list[str]:
        """Return the names of all workers of a kind, or of the one process with this name."""
        return [name for name in self.services() if name == kind or name.startswith(f"{kind}-")]

    # ---- operations -------------------------------------------------------------------------------------------------

    def signal(self, name: str, number: signal.Signals) -> psutil.Process | None:
        """Send a signal to a process and its children. Return the process, or `None` if it is not alive."""
        with suppress(psutil.Error, KeyError):
            process = psutil.Process(self.services()[name]["pid"])
            if not processes.alive(process):  # a zombie process accepts any signal
                return None
            family = processes.tree(process)
            process.send_signal(number)
            processes.tell(family[1:], number)
            return process
        return None

    async def until_replaced(self, name: str, old: psutil.Process | None, patience: float = REPLACED_SECONDS) -> bool:
        """Wait until `name` is ready as a process other than `old`; return False after a timeout."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            now = self.services().get(name, {})
            if now.get("state") == "ready" and (old is None or now.get("pid") != old.pid):
                return True
            await asyncio.sleep(0.1)
        return False

    @asynccontextmanager
    async def unsupervised(self) -> AsyncIterator[None]:
        """Freeze the supervisor inside the context, so that it does not kill processes for being frozen."""
        supervisor = psutil.Process(self.root.load()["supervisor"])
        supervisor.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            supervisor.send_signal(signal.SIGCONT)

    def more(self, kind: str, *, number: int = 9, **environment: str) -> "Extra":
        """Return an extra worker of a kind, unknown to the supervisor; call `start` to run it."""
        return Extra(self, kind, f"{kind}-{number}", environment)

    @asynccontextmanager
    async def postgres(self) -> AsyncIterator[Connection]:
        """Open a connection to the shop's database."""
        async with await psycopg.AsyncConnection.connect(
            self.stack.postgres_url, autocommit=True, connect_timeout=5, application_name="chaos"
        ) as connection:
            yield connection

    def redis(self) -> AbstractAsyncContextManager["Redis"]:
        """Return a client of the shop's Redis."""
        return Redis.from_url(self.stack.redis_url, socket_timeout=5)


class Extra:
    """Worker that is started and stopped outside the supervisor."""

    def __init__(self, stage: Stage, kind: str, name: str, more: Mapping[str, str]) -> None:
        self.stage, self.name, self.more = stage, name, more
        self._kind = next(each for each in services.KINDS if each.name == kind)
        self._child: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self) -> None:
        """Start the process without waiting until it is ready."""
        folder = self.stage.root.run(self.name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = probes.free_port()
        own = {
            **RULES,
            "HOLDFAST_REPLICA": self.name,
            "HOLDFAST_STATE_DIR": str(folder),
            "HOLDFAST_HEALTH_PORT": str(self._port),
            "HOLDFAST_PREFIX": "",
            "HOLDFAST_PROFILE": "local",
            **self.more,
        }
        with self.stage.root.log(self.name).open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", self._kind.module, "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**self.stage.environment(), **self.stage.stack.environment(), **own},
                start_new_session=True,
            )

    async def ready(self, patience: float = JOIN_SECONDS) -> bool:
        """Wait until the worker is ready; return False if it exits or takes too long."""
        end = time.monotonic() + patience
        while time.monotonic() < end and await self.ended(0) is None:
            if await asyncio.to_thread(probes.service, self._port) is probes.Health.READY:
                return True
            await asyncio.sleep(0.2)
        return False

    async def ended(self, patience: float) -> int | None:
        """Wait for the process to exit by itself; return its exit status, or `None` after a timeout."""
        if self._child is None:
            return None
        end = time.monotonic() + patience
        while self._child.poll() is None and time.monotonic() < end:  # noqa: ASYNC110 - a process has no event to wait for
            await asyncio.sleep(0.1)
        return self._child.returncode

    async def end(self, number: signal.Signals) -> None:
        """Stop the process by a signal, or by SIGKILL if it does not exit in time."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
            try:
                await asyncio.to_thread(self._child.wait, 12)
            except subprocess.TimeoutExpired:
                self._child.kill()
                await asyncio.to_thread(self._child.wait)


def pick(names: Sequence[str], chance: Random) -> str:
    """Return one of `names` at random."""
    return chance.choice(sorted(names))
