"""The shop under test, made for this and thrown away afterwards, and the hands that break it.

It is a whole shop as `holdfast up` makes it, in a directory of its own. Processes are known by what its supervisor
writes down; faults are signals to them, and commands to the servers they use.
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
from load.chaos.history import Recorder
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
"""Orders that end within seconds, a card that answers late about when the shop's patience ends, and carts that end only
when a fault has it so: those of a scenario that is over would change what is counted in a later one."""
RULES: Final = {**IMPATIENT, "HOLDFAST_PROVIDER_KEY": PROVIDER_KEY}
"""What every process of the shop is told, also one that is started beside the others."""
KEPT: Final = frozenset({"HOLDFAST_SYSTEM_BINARIES", "HOLDFAST_KAFKA_JVM", "HOLDFAST_MAVEN_URL"})
"""What of the environment is about this machine, and not about another shop."""
PORTS: Final = ("HTTP", "KAFKA", "POSTGRES", "REDIS")
REPLACED_SECONDS: Final = 60.0
"""Who was killed is back within seconds, unless others are broken meanwhile; after this long they are missing."""
JOIN_SECONDS: Final = 45.0
"""A worker that is started beside the others competes with them for the machine; on a busy one that takes its time."""
HEADER: Final = "product_code,name,price,currency,quantity"

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class Stage:
    """One running shop. Faults and their ends are written down by `recorder`, which each scenario sets."""

    def __init__(self, root: Path) -> None:
        self.root = Root(root)
        self.recorder: Recorder | None = None

    # ---- the shop ---------------------------------------------------------------------------------------------------

    async def up(self, progress: TextIO) -> None:
        """Start it on ports of its own; raises ShopAwayError when it does not get ready."""
        ports = {f"HOLDFAST_{name}_PORT": str(probes.free_port()) for name in PORTS}
        arguments = ["up", "--detach", "--workers", WORKERS, "--no-limits"]
        status, _ = await self.holdfast(*arguments, progress=progress, more={**ports, **RULES})
        if status:
            raise ShopAwayError(f"the shop for this did not start: `holdfast up` ended with {status}")

    async def down(self) -> None:
        """Stop it and everything that was started beside it."""
        supervisor = self.root.load().get("supervisor")
        if supervisor:
            with suppress(psutil.Error):
                psutil.Process(supervisor).send_signal(signal.SIGCONT)
        await self.holdfast("down")

    async def holdfast(
        self, *arguments: str, progress: TextIO | None = None, more: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Exit status and standard output of a command on this shop."""
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
        """What commands on this shop get of ours: nothing that could lead them to another."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_") or k in KEPT}
        return {**ours, **services.search_path(), "HOLDFAST_ROOT": str(self.root.path), "NO_COLOR": "1"}

    async def seed(self, stock: Mapping[str, int]) -> None:
        """Bring new products into the shop."""
        file = self.root.path / "chaos.csv"
        rows = [f"{product},For a test of faults,1.00,GBP,{units}" for product, units in stock.items()]
        file.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
        status, _ = await self.holdfast("seed", str(file))
        if status:
            raise ShopAwayError(f"`holdfast seed` ended with {status}")

    async def audit(self, grace: float | None = None) -> tuple[list[str], str]:
        """The violations that `holdfast audit` finds, and its digest. `grace`: seconds, instead of its own thirty."""
        more = {} if grace is None else {"HOLDFAST_AUDIT_GRACE_SECONDS": f"{grace:g}"}
        status, answer = await self.holdfast("audit", "--json", more=more)
        try:
            told = json.loads(answer)
        except ValueError:
            return [f"`holdfast audit` ended with {status} and no answer"], ""
        return [each if isinstance(each, str) else json.dumps(each) for each in told["violations"]], told["digest"]

    @property
    def stack(self) -> Stack:
        """Its addresses."""
        stack = find_running(self.root)
        if stack is None:
            raise ShopAwayError("the shop under test is gone: its supervisor does not live")
        return stack

    @property
    def webhook_url(self) -> str:
        """Where the provider tells what has happened."""
        return f"{self.stack.http}/v1/webhooks/payments"

    @property
    def provider(self) -> Provider:
        """The payment provider of this shop."""
        return Provider(self.stack.provider, PROVIDER_KEY, self.root.secrets().signing)

    async def under_way(self) -> int:
        """How much goes on by itself: orders that have not ended, what is due now, and what somebody is to be told."""
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
        """As a service of it reads them."""
        stack = self.stack
        return Settings(kafka=stack.kafka, postgres_url=stack.postgres_url, redis_url=stack.redis_url, prefix="")

    def services(self) -> dict[str, dict[str, Any]]:
        """Name → `state`, `pid`, `restarts`, as `holdfast status` tells them."""
        found: dict[str, dict[str, Any]] = self.root.load().get("services", {})
        return found

    def unready(self) -> list[str]:
        """Those that are not ready now."""
        return [name for name, each in self.services().items() if each["state"] != "ready"]

    async def why_unready(self) -> str:
        """The same, each with what it says of itself; empty when all are ready."""
        said, services = [], self.services()
        for name in self.unready():
            metrics = services[name].get("metrics")
            why = "it does not say why"
            if metrics:
                _, why = await asyncio.to_thread(probes.ask, metrics.replace("/metrics", "/readyz"))
            said.append(f"{name} not ready ({why[:300]})")
        return ", ".join(said)

    def restarts(self) -> int:
        """How often anything was started again so far."""
        return sum(each["restarts"] for each in self.services().values())

    def many(self, kind: str) -> list[str]:
        """The names of the workers of a kind, or of the one process that has this name."""
        return [name for name in self.services() if name == kind or name.startswith(f"{kind}-")]

    # ---- the hands --------------------------------------------------------------------------------------------------

    def signal(self, name: str, number: signal.Signals) -> psutil.Process | None:
        """Send a signal to a process and to what it started; returns it, none when it is dead already."""
        with suppress(psutil.Error, KeyError):
            process = psutil.Process(self.services()[name]["pid"])
            if not processes.alive(process):  # a dead one that nobody has buried yet takes any signal
                return None
            family = processes.tree(process)
            process.send_signal(number)
            processes.tell(family[1:], number)
            return process
        return None

    async def until_replaced(self, name: str, old: psutil.Process | None, patience: float = REPLACED_SECONDS) -> bool:
        """Whether `name` gets ready again in time, as another process than `old`."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            now = self.services().get(name, {})
            if now.get("state") == "ready" and (old is None or now.get("pid") != old.pid):
                return True
            await asyncio.sleep(0.1)
        return False

    @asynccontextmanager
    async def unsupervised(self) -> AsyncIterator[None]:
        """Nobody is killed for being frozen meanwhile: the supervisor is frozen too."""
        supervisor = psutil.Process(self.root.load()["supervisor"])
        supervisor.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            supervisor.send_signal(signal.SIGCONT)

    def more(self, kind: str, *, number: int = 9, **environment: str) -> "Extra":
        """One more worker of a kind, which the supervisor does not know."""
        return Extra(self, kind, f"{kind}-{number}", environment)

    @asynccontextmanager
    async def postgres(self) -> AsyncIterator[Connection]:
        """A connection to the shop's database."""
        async with await psycopg.AsyncConnection.connect(
            self.stack.postgres_url, autocommit=True, connect_timeout=5, application_name="chaos"
        ) as connection:
            yield connection

    def redis(self) -> AbstractAsyncContextManager["Redis"]:
        """A client of the shop's Redis."""
        return Redis.from_url(self.stack.redis_url, socket_timeout=5)


class Extra:
    """A worker started and ended by hand."""

    def __init__(self, stage: Stage, kind: str, name: str, more: Mapping[str, str]) -> None:
        self.stage, self.name, self.more = stage, name, more
        self._kind = next(each for each in services.KINDS if each.name == kind)
        self._child: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self) -> None:
        """Start it; it gets ready by itself."""
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
        """Whether it gets ready in time; no as soon as it has ended."""
        end = time.monotonic() + patience
        while time.monotonic() < end and await self.ended(0) is None:
            if await asyncio.to_thread(probes.service, self._port) is probes.Health.READY:
                return True
            await asyncio.sleep(0.2)
        return False

    async def ended(self, patience: float) -> int | None:
        """The status with which it ends by itself in time; none when it does not."""
        if self._child is None:
            return None
        end = time.monotonic() + patience
        while self._child.poll() is None and time.monotonic() < end:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(0.1)
        return self._child.returncode

    async def end(self, number: signal.Signals) -> None:
        """End it, at last by force."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
            try:
                await asyncio.to_thread(self._child.wait, 12)
            except subprocess.TimeoutExpired:
                self._child.kill()
                await asyncio.to_thread(self._child.wait)


def pick(names: Sequence[str], chance: Random) -> str:
    """One of them by chance."""
    return chance.choice(sorted(names))
