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

from infrastructure.local import processes
from infrastructure.local.servers import probes
from infrastructure.local.state import Root, Stack, find_running
from infrastructure.local.supervision import services
from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import conninfo
from load.chaos.clients.payment_provider import PaymentProviderClient
from load.http_client import ShopUnavailableError

WORKERS: Final = "cart=2,inventory=2"
SHORT_DEADLINES: Final = {
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
SERVICE_SETTINGS: Final = SHORT_DEADLINES
"""Settings of every process of the shop, including extra workers."""
INHERITED_VARIABLES: Final = frozenset({"HOLDFAST_SYSTEM_BINARIES", "HOLDFAST_KAFKA_JVM", "HOLDFAST_MAVEN_URL"})
"""Variables inherited from the environment: those about this machine, not about another shop."""
PORTS: Final = ("HTTP", "KAFKA", "POSTGRES", "REDIS")
REPLACE_TIMEOUT_SECONDS: Final = 60.0
"""Timeout for a killed process to return. It takes seconds, unless other faults interfere."""
JOIN_TIMEOUT_SECONDS: Final = 45.0
"""Timeout for an extra worker to become ready; it competes with the others for the machine."""
CSV_HEADER: Final = "product_code,name,price,currency,quantity"

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class ShopUnderTest:
    """One running shop."""

    def __init__(self, root: Path) -> None:
        self.root = Root(root)

    # ---- the shop ---------------------------------------------------------------------------------------------------

    async def start(self, progress: TextIO) -> None:
        """Start the shop on ports of its own; raise `ShopUnavailableError` if it does not become ready."""
        ports = {f"HOLDFAST_{name}_PORT": str(probes.free_port()) for name in PORTS}
        arguments = ["up", "--detach", "--workers", WORKERS, "--no-limits"]
        status, _ = await self.run_holdfast(
            *arguments, progress=progress, extra_environment={**ports, **SERVICE_SETTINGS}
        )
        if status:
            raise ShopUnavailableError(
                f"the shop under test did not start: `holdfast up` failed with exit status {status}"
            )

    async def stop(self) -> None:
        """Stop the shop and its extra workers."""
        supervisor = self.root.load().get("supervisor")
        if supervisor:
            with suppress(psutil.Error):
                psutil.Process(supervisor).send_signal(signal.SIGCONT)
        await self.run_holdfast("down")

    async def run_holdfast(
        self, *arguments: str, progress: TextIO | None = None, extra_environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run a command on this shop and return its exit status and standard output."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "infrastructure.local", *arguments),
            env={**self.environment(), **(extra_environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=progress or subprocess.DEVNULL,
        )
        answer, _ = await child.communicate()
        return child.returncode or 0, answer.decode()

    def environment(self) -> dict[str, str]:
        """Return the environment of commands on this shop, without any variable that refers to another shop."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_") or k in INHERITED_VARIABLES}
        return {**inherited, **services.python_path(), "HOLDFAST_ROOT": str(self.root.path), "NO_COLOR": "1"}

    async def seed(self, stock: Mapping[str, int]) -> None:
        """Add new products to the shop."""
        file = self.root.path / "chaos.csv"
        rows = [f"{product},For fault tests,1.00,GBP,{units}" for product, units in stock.items()]
        file.write_text("\n".join([CSV_HEADER, *rows]) + "\n", encoding="utf-8")
        status, _ = await self.run_holdfast("seed", str(file))
        if status:
            raise ShopUnavailableError(f"`holdfast seed` failed with exit status {status}")

    async def audit(self, grace: float | None = None) -> tuple[list[str], str]:
        """Return the violations that `holdfast audit` finds, and its digest; `grace` replaces the default of 30 s."""
        more = {} if grace is None else {"HOLDFAST_AUDIT_GRACE_SECONDS": f"{grace:g}"}
        status, answer = await self.run_holdfast("audit", "--json", extra_environment=more)
        try:
            report = json.loads(answer)
        except ValueError:
            return [f"`holdfast audit` failed with exit status {status} and printed no JSON"], ""
        return [each if isinstance(each, str) else json.dumps(each) for each in report["violations"]], report["digest"]

    @property
    def stack(self) -> Stack:
        """Addresses of the running shop; raises `ShopUnavailableError` if it does not run."""
        stack = find_running(self.root)
        if stack is None:
            raise ShopUnavailableError("the shop under test is gone: its supervisor is not running")
        return stack

    @property
    def webhook_url(self) -> str:
        """URL to which the provider sends webhooks."""
        return f"{self.stack.http}/v1/webhooks/payments"

    @property
    def provider(self) -> PaymentProviderClient:
        """Client of this shop's payment provider."""
        return PaymentProviderClient(self.stack.provider, self.stack.provider_key, self.stack.webhook_secret)

    async def count_open_work(self) -> int:
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

    def unready_services(self) -> list[str]:
        """Return the names of the services that are not ready."""
        return [name for name, each in self.services().items() if each["state"] != "ready"]

    async def describe_unready(self) -> str:
        """Return a sentence with the reasons of the unready services, or an empty string."""
        reasons, services = [], self.services()
        for name in self.unready_services():
            metrics = services[name].get("metrics")
            reason = "no reason given"
            if metrics:
                _, reason = await asyncio.to_thread(probes.http_get, metrics.replace("/metrics", "/readyz"))
            reasons.append(f"{name} not ready ({reason[:300]})")
        return ", ".join(reasons)

    def restarts(self) -> int:
        """Return the total number of restarts so far."""
        return sum(each["restarts"] for each in self.services().values())

    def workers_of(self, kind: str) -> list[str]:
        """Return the names of all workers of a kind, or of the one process with this name."""
        return [name for name in self.services() if name == kind or name.startswith(f"{kind}-")]

    # ---- operations -------------------------------------------------------------------------------------------------

    def signal(self, name: str, number: signal.Signals) -> psutil.Process | None:
        """Send a signal to a process and its children. Return the process, or `None` if it is not alive."""
        with suppress(psutil.Error, KeyError):
            process = psutil.Process(self.services()[name]["pid"])
            if not processes.is_alive(process):  # a zombie process accepts any signal
                return None
            family = processes.process_tree(process)
            process.send_signal(number)
            processes.send_signal(family[1:], number)
            return process
        return None

    async def wait_until_replaced(
        self, name: str, old: psutil.Process | None, patience: float = REPLACE_TIMEOUT_SECONDS
    ) -> bool:
        """Wait until `name` is ready as a process other than `old`; return False after a timeout."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            now = self.services().get(name, {})
            if now.get("state") == "ready" and (old is None or now.get("pid") != old.pid):
                return True
            await asyncio.sleep(0.1)
        return False

    @asynccontextmanager
    async def supervisor_frozen(self) -> AsyncIterator[None]:
        """Freeze the supervisor inside the context, so that it does not kill processes for being frozen."""
        supervisor = psutil.Process(self.root.load()["supervisor"])
        supervisor.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            supervisor.send_signal(signal.SIGCONT)

    def extra_worker(self, kind: str, *, number: int = 9, **environment: str) -> "ExtraWorker":
        """Return an extra worker of a kind, unknown to the supervisor; call `start` to run it."""
        return ExtraWorker(self, kind, f"{kind}-{number}", environment)

    @asynccontextmanager
    async def postgres(self) -> AsyncIterator[Connection]:
        """Open a connection to the shop's database."""
        async with await psycopg.AsyncConnection.connect(
            conninfo(self.stack.postgres_url), autocommit=True, connect_timeout=5, application_name="chaos"
        ) as connection:
            yield connection

    def redis(self) -> AbstractAsyncContextManager["Redis"]:
        """Return a client of the shop's Redis."""
        return Redis.from_url(self.stack.redis_url, socket_timeout=5)


class ExtraWorker:
    """Worker that is started and stopped outside the supervisor."""

    def __init__(self, shop: ShopUnderTest, kind: str, name: str, more: Mapping[str, str]) -> None:
        self.shop, self.name, self.more = shop, name, more
        self._kind = next(each for each in services.SERVICE_TYPES if each.name == kind)
        self._child: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self) -> None:
        """Start the process without waiting until it is ready."""
        folder = self.shop.root.service_dir(self.name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = probes.free_port()
        own = {
            **SERVICE_SETTINGS,
            "HOLDFAST_REPLICA": self.name,
            "HOLDFAST_STATE_DIR": str(folder),
            "HOLDFAST_HEALTH_PORT": str(self._port),
            "HOLDFAST_PREFIX": "",
            "HOLDFAST_PROFILE": "local",
            **self.more,
        }
        with self.shop.root.log_file(self.name).open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", self._kind.module, "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**self.shop.environment(), **self.shop.stack.environment(), **own},
                start_new_session=True,
            )

    async def wait_until_ready(self, patience: float = JOIN_TIMEOUT_SECONDS) -> bool:
        """Wait until the worker is ready; return False if it exits or takes too long."""
        end = time.monotonic() + patience
        while time.monotonic() < end and await self.wait_for_exit(0) is None:
            if await asyncio.to_thread(probes.service_health, self._port) is probes.Health.READY:
                return True
            await asyncio.sleep(0.2)
        return False

    async def wait_for_exit(self, patience: float) -> int | None:
        """Wait for the process to exit by itself; return its exit status, or `None` after a timeout."""
        if self._child is None:
            return None
        end = time.monotonic() + patience
        while self._child.poll() is None and time.monotonic() < end:  # noqa: ASYNC110 - a process has no event to wait for
            await asyncio.sleep(0.1)
        return self._child.returncode

    async def stop(self, number: signal.Signals) -> None:
        """Stop the process by a signal, or by SIGKILL if it does not exit in time."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
            try:
                await asyncio.to_thread(self._child.wait, 12)
            except subprocess.TimeoutExpired:
                self._child.kill()
                await asyncio.to_thread(self._child.wait)


def choose(names: Sequence[str], chance: Random) -> str:
    """Return one of `names` at random."""
    return chance.choice(sorted(names))
