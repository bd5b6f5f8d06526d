"""Inventory worker alone: fill a topic with requests, then start a worker and measure how it drains the topic.

It runs under a prefix of its own, on the servers of the measured shop. Requests are those that the cart service sends
by the contract, on `inventory.requests.v1`. Responses are counted by the broker's end offsets, and timed by the
timestamps of the worker's own records. So only the worker, Kafka and Postgres run while the time is taken. Afterwards
the result is compared with the private schema of the inventory service.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple, Self

import aiohttp
import orjson
from aiokafka import AIOKafkaProducer, TopicPartition
from psycopg import AsyncConnection, sql

from contracts.envelope import Envelope
from contracts.topics import Topic
from infrastructure.local.servers.probes import free_port
from infrastructure.local.supervision.services import python_path
from infrastructure.messaging.broker import ensure_topics, partition_of
from infrastructure.messaging.consumers import create_consumer, unreached
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import conninfo
from load.bench.processes import run_command, stop_process
from load.holdfast_commands import CSV_HEADER

# Names and retention are those of the contract.
REQUESTS: Final = Topic("inventory.requests.v1", keyed_by="user", retention=timedelta(days=7))
RESPONSES: Final = Topic("inventory.responses.v1", keyed_by="user", retention=timedelta(days=7))
CART_RESPONSES: Final = Topic("cart.responses.v1", keyed_by="user", retention=timedelta(days=7))
STOCK: Final = Topic("inventory.stock.v1", keyed_by="product")
PRODUCTS: Final = Topic("catalogue.products.v1", keyed_by="product")
UNITS: Final = 1_000_000_000
TIMEOUT_SECONDS: Final = 300.0
POLL_SECONDS: Final = 0.1


class InventoryDrainError(RuntimeError):
    """The worker did not do what is being measured; the message has the details."""


@dataclass(frozen=True, slots=True)
class DrainResult:
    """Result of draining a full topic."""

    outcomes: Mapping[str, int]
    """Outcomes of all requests, by type."""
    granted: int
    """Grants within `seconds`."""
    seconds: float
    """Time from the first response to the last; with several workers, from the time when all were ready."""
    ready_seconds: float
    """Time from the start of the process until it was ready."""
    first_seconds: float
    """Time from the start of the process to its first response."""

    @property
    def holds_per_second(self) -> float:
        """Grants per second."""
        return self.granted / max(1e-3, self.seconds)


class TimedOutcome(NamedTuple):
    """One response: the outcome of a request, and its time by the worker's clock in seconds."""

    outcome: str
    at: float


def _summarize_drain(
    answers: Collection[TimedOutcome], outcomes: Mapping[str, int], *, begun: float, ready: float, workers: int
) -> DrainResult:
    times = sorted(answer.at for answer in answers)
    # The first of several workers starts before the last one has joined, and a rebalance follows.
    since = begun + ready if workers > 1 and times[-1] > begun + ready else times[0]
    counted = sum(answer.outcome == "held" and answer.at >= since for answer in answers)
    return DrainResult(outcomes, counted, times[-1] - since, ready, times[0] - begun)


class InventoryDrain:
    """One prefix with its schema and topics. `more` are settings of its services, as `HOLDFAST_…` variables."""

    def __init__(self, prefix: str, more: Mapping[str, str] | None = None) -> None:
        self.environment = {"HOLDFAST_PREFIX": prefix, **(more or {})}
        self.settings = Settings.model_validate({**Settings().model_dump(), "prefix": prefix})
        self.total = 0
        """Number of requests sent so far, all of them answered: each drain runs to the end."""

    async def prepare(self, products: Sequence[str]) -> None:
        """Create topics, and tables with ample stock of each product."""
        with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8") as file:
            file.write("\n".join([CSV_HEADER, *(f"{product},Bench,1.00,GBP,{UNITS}" for product in products), ""]))
            file.flush()
            await self._run("inventory_service", "seed", file.name)
        await ensure_topics(self.settings, (REQUESTS, RESPONSES, CART_RESPONSES, STOCK, PRODUCTS))

    async def fill(self, users: Sequence[str], products: Sequence[str], quantity: int = 1) -> None:
        """Send one hold request for each pair of a user and a product, in this order."""
        producer = AIOKafkaProducer(**client_options(self.settings), linger_ms=20, max_batch_size=1 << 18)
        await producer.start()
        name = self.settings.topic(REQUESTS)
        try:
            now = datetime.now(UTC)
            for user, product in zip(users, products, strict=True):
                self.total += 1
                id_ = f"bench-{self.total}"
                event = Envelope.model_construct(
                    id=f"{user}/{id_}/hold",
                    source="/cart",
                    type="holdfast.inventory.hold",
                    subject=user,
                    time=now,
                    requestid=id_,
                    data={"user_id": user, "mode": "add", "product": product, "quantity": quantity},
                )
                await producer.send(
                    name, event.encode(), event.key, partition=partition_of(event.key, self.settings.partitions)
                )
        finally:
            await producer.stop()  # flushes the remaining records

    async def drain(self, requests: int, *, workers: int = 1) -> DrainResult:
        """Start workers, wait until `requests` more requests are answered, and stop them."""
        async with _Reader(self.settings) as reader:
            before = await reader.ends(RESPONSES)
            started = time.time()
            async with AsyncExitStack() as stack:
                replicas = [await self.start(stack, "inventory_service", f"inventory-{n + 1}") for n in range(workers)]
                for replica in replicas:
                    await replica.wait_until_ready()
                ready = time.time() - started
                end = time.monotonic() + TIMEOUT_SECONDS
                answers: dict[str, TimedOutcome] = {}
                while len(answers) < requests:  # a rebalance redelivers, so there may be more records than answers
                    missing = requests - len(answers)
                    while sum((ends := await reader.ends(RESPONSES)).values()) - sum(before.values()) < missing:
                        if time.monotonic() > end or any(replica.has_exited for replica in replicas):
                            logs = " / ".join(replica.log_tail() for replica in replicas)
                            raise InventoryDrainError(
                                f"the inventory worker did not drain its topic; its log ends: {logs}"
                            )
                        await asyncio.sleep(POLL_SECONDS)
                    for id_, answer in await reader.answers(before, ends):
                        answers.setdefault(id_, answer)
                    before = ends
        outcomes = Counter(answer.outcome for answer in answers.values())
        await self._verify_tables(outcomes)
        return _summarize_drain(answers.values(), outcomes, begun=started, ready=ready, workers=workers)

    async def start(self, stack: AsyncExitStack, module: str, replica: str) -> "WorkerProcess":
        """Start a worker under this prefix; `stack` stops it."""
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
        port, log = free_port(), Path(folder) / "log"
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            "run",
            env={
                **os.environ,
                **python_path(),
                **self.environment,
                "HOLDFAST_REPLICA": replica,
                "HOLDFAST_HEALTH_PORT": str(port),
                "HOLDFAST_STATE_DIR": folder,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stderr=stack.enter_context(log.open("wb")),
        )
        stack.push_async_callback(stop_process, child)
        return WorkerProcess(child, f"http://127.0.0.1:{port}/readyz", log)

    async def wait_until_published(self, products: int) -> None:
        """Wait until this many products and their stock have been published; the worker is idle then."""
        await self._wait_for_records(PRODUCTS, products)
        await self._wait_for_records(STOCK, products)

    async def wait_until_carts_current(self, outcomes: int) -> None:
        """Wait until the cart worker has forwarded this many outcomes; its table contains the carts then."""
        await self._wait_for_records(CART_RESPONSES, outcomes)

    async def _wait_for_records(self, topic: Topic, records: int) -> None:
        async with _Reader(self.settings) as reader, asyncio.timeout(TIMEOUT_SECONDS):
            while sum((await reader.ends(topic)).values()) < records:  # noqa: ASYNC110 - Kafka has no event for that
                await asyncio.sleep(POLL_SECONDS)

    async def _verify_tables(self, outcomes: Mapping[str, int]) -> None:
        """Raise `InventoryDrainError` unless every request is in the log and the held units equal the holds."""
        schema = sql.Identifier(self.settings.schema_name("inventory"))
        query = sql.SQL(
            "SELECT (SELECT count(*) FROM {0}.request_log), (SELECT sum(held) FROM {0}.inventory)"
            " = (SELECT coalesce(sum(hold_quantity), 0) FROM {0}.hold WHERE state = 'PENDING')"
        ).format(schema)
        async with await AsyncConnection.connect(conninfo(self.settings.postgres_url), autocommit=True) as connection:
            ((logged, equal),) = await (await connection.execute(query)).fetchall()
        if logged != self.total or not equal:
            raise InventoryDrainError(
                f"{self.total} requests sent, {logged} in the log; stock equal to holds: {equal} ({dict(outcomes)})"
            )

    async def _run(self, module: str, *arguments: str) -> None:
        status, _, stderr = await run_command([sys.executable, "-m", module, *arguments], self.environment)
        if status:
            raise InventoryDrainError(
                f"{module} {arguments[0]} failed with exit status {status}: {stderr.strip()[-300:]}"
            )


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """Process of one worker."""

    child: asyncio.subprocess.Process
    ready_url: str
    log: Path

    def log_tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace").strip()[-500:]

    @property
    def has_exited(self) -> bool:
        """True if the process has exited."""
        return self.child.returncode is not None

    async def wait_until_ready(self) -> None:
        """Wait until the worker reports ready; raise `InventoryDrainError` if it exits or takes too long."""
        end = time.monotonic() + TIMEOUT_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while time.monotonic() < end and not self.has_exited:
                try:
                    async with http.get(self.ready_url) as answer:
                        if answer.ok:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.02)
        raise InventoryDrainError(f"a worker did not become ready; its log ends: {self.log_tail()}")


class _Reader:
    """Reader of end offsets and stored records."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer = create_consumer(settings, max_poll_records=5000)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._consumer.stop()

    async def ends(self, topic: Topic) -> dict[TopicPartition, int]:
        """Return the end offset of each partition."""
        name = self._settings.topic(topic)
        offsets: dict[TopicPartition, int] = await self._consumer.end_offsets(
            [TopicPartition(name, number) for number in range(self._settings.partitions_of(topic))]
        )
        return offsets

    async def answers(
        self, begin: Mapping[TopicPartition, int], end: Mapping[TopicPartition, int]
    ) -> list[tuple[str, TimedOutcome]]:
        """Return the responses between two sets of offsets as (request id, answer); a request may occur twice."""
        partitions = {partition for partition, offset in end.items() if offset > begin[partition]}
        self._consumer.assign(sorted(partitions))
        for partition in partitions:
            self._consumer.seek(partition, begin[partition])
        responses: list[tuple[str, TimedOutcome]] = []
        ends = {partition: end[partition] for partition in partitions}
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while unreached(self._consumer, ends):
                for records in (await self._consumer.getmany(timeout_ms=1000)).values():
                    for record in records:
                        event = orjson.loads(record.value)
                        answer = TimedOutcome(event["data"]["outcome"]["type"], record.timestamp / 1000)
                        responses.append((event["requestid"], answer))
        return responses
