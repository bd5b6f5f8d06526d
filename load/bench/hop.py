"""The inventory hop alone: a topic is filled with requests first, then a worker is started and drains it.

A shop of its own under a prefix, on the servers of the shop that is measured: requests as the cart sends them, by the
contract, on `inventory.requests.v1`; responses are counted by what the broker has stored, with the times that the
worker's own records carry. So nothing but the worker, Kafka and Postgres runs while the clock does.
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
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from psycopg import AsyncConnection, sql

from infrastructure.broker import ensure_topics, partition_of
from infrastructure.envelope import Envelope
from infrastructure.local.probes import free_port
from infrastructure.local.services import search_path
from infrastructure.settings import Settings
from infrastructure.topics import Topic
from load.bench.stack import command, stop
from load.commands import HEADER

# The contract's names and retention.
REQUESTS: Final = Topic("inventory.requests.v1", keyed_by="user", retention=timedelta(days=7))
RESPONSES: Final = Topic("inventory.responses.v1", keyed_by="user", retention=timedelta(days=7))
TOLD: Final = Topic("cart.responses.v1", keyed_by="user", retention=timedelta(days=7))
STOCK: Final = Topic("inventory.stock.v1", keyed_by="product")
PRODUCTS: Final = Topic("catalogue.products.v1", keyed_by="product")
UNITS: Final = 1_000_000_000
PATIENCE: Final = 300.0
POLL_SECONDS: Final = 0.1


class HopError(RuntimeError):
    """The hop did not do what it was measured for; the message says what."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What draining a full topic came to."""

    outcomes: Mapping[str, int]
    """Of all requests."""
    counted: int
    """Grants that fell into `seconds`."""
    seconds: float
    """From the first response to the last; of several workers, from when all of them were ready."""
    ready_seconds: float
    """From the start of the process until it said that it was ready."""
    first_seconds: float
    """From the start of the process to its first response."""

    @property
    def holds_a_second(self) -> float:
        """Grants a second."""
        return self.counted / max(1e-3, self.seconds)


class Answer(NamedTuple):
    """One response: what became of a request, and when by its worker's clock, in seconds."""

    outcome: str
    at: float


def _drained(
    answers: Collection[Answer], outcomes: Mapping[str, int], *, begun: float, ready: float, workers: int
) -> Drained:
    times = sorted(answer.at for answer in answers)
    # The first of several workers begins before the last has come, and a rebalance stands between.
    since = begun + ready if workers > 1 and times[-1] > begun + ready else times[0]
    counted = sum(answer.outcome == "held" and answer.at >= since for answer in answers)
    return Drained(outcomes, counted, times[-1] - since, ready, times[0] - begun)


class Hop:
    """One prefix with its schema and topics; `more` are settings of its services, as `HOLDFAST_…` variables."""

    def __init__(self, prefix: str, more: Mapping[str, str] | None = None) -> None:
        self.environment = {"HOLDFAST_PREFIX": prefix, **(more or {})}
        self.settings = Settings.model_validate({**Settings().model_dump(), "prefix": prefix})
        self.total = 0
        """Requests that were sent so far, and answered: a drain is always to the end."""

    async def prepare(self, products: Sequence[str]) -> None:
        """Tables with plenty of each product, and topics."""
        with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8") as file:
            file.write("\n".join([HEADER, *(f"{product},Bench,1.00,GBP,{UNITS}" for product in products), ""]))
            file.flush()
            await self._run("inventory_service", "seed", file.name)
        await ensure_topics(self.settings, (REQUESTS, RESPONSES, TOLD, STOCK, PRODUCTS))

    async def fill(self, users: Sequence[str], products: Sequence[str], quantity: int = 1) -> None:
        """One hold request for each pair of a user and a product, in this order."""
        producer = AIOKafkaProducer(bootstrap_servers=self.settings.kafka, linger_ms=20, max_batch_size=1 << 18)
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
            await producer.stop()  # which sends what is left

    async def drain(self, requests: int, *, workers: int = 1) -> Drained:
        """Start workers and stop them when this many more requests are answered."""
        async with _Reader(self.settings) as reader:
            before = await reader.ends(RESPONSES)
            begun = time.time()
            async with AsyncExitStack() as stack:
                replicas = [await self.start(stack, "inventory_service", f"inventory-{n + 1}") for n in range(workers)]
                for replica in replicas:
                    await replica.ready()
                ready = time.time() - begun
                end = time.monotonic() + PATIENCE
                answers: dict[str, Answer] = {}
                while len(answers) < requests:  # a rebalance redelivers, so more records may be fewer answers
                    missing = requests - len(answers)
                    while sum((ends := await reader.ends(RESPONSES)).values()) - sum(before.values()) < missing:
                        if time.monotonic() > end or any(replica.ended for replica in replicas):
                            said = " / ".join(replica.said() for replica in replicas)
                            raise HopError(f"the inventory worker did not drain its topic: {said}")
                        await asyncio.sleep(POLL_SECONDS)
                    for id_, answer in await reader.answers(before, ends):
                        answers.setdefault(id_, answer)
                    before = ends
        outcomes = Counter(answer.outcome for answer in answers.values())
        await self._books(outcomes)
        return _drained(answers.values(), outcomes, begun=begun, ready=ready, workers=workers)

    async def start(self, stack: AsyncExitStack, module: str, replica: str) -> "Replica":
        """A worker of this prefix, stopped with the stack."""
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
        port, log = free_port(), Path(folder) / "log"
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            "run",
            env={
                **os.environ,
                **search_path(),
                **self.environment,
                "HOLDFAST_REPLICA": replica,
                "HOLDFAST_HEALTH_PORT": str(port),
                "HOLDFAST_STATE_DIR": folder,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stderr=stack.enter_context(log.open("wb")),
        )
        stack.push_async_callback(stop, child)
        return Replica(child, f"http://127.0.0.1:{port}/readyz", log)

    async def published(self, products: int) -> None:
        """Return when this many products and their stock have been published: the worker is at rest then."""
        await self._stored(PRODUCTS, products)
        await self._stored(STOCK, products)

    async def learnt(self, outcomes: int) -> None:
        """Return when the cart worker has passed this many outcomes on, and so has the carts in its table."""
        await self._stored(TOLD, outcomes)

    async def _stored(self, topic: Topic, records: int) -> None:
        async with _Reader(self.settings) as reader, asyncio.timeout(PATIENCE):
            while sum((await reader.ends(topic)).values()) < records:  # noqa: ASYNC110 - Kafka has no event for it
                await asyncio.sleep(POLL_SECONDS)

    async def _books(self, outcomes: Mapping[str, int]) -> None:
        """Postgres must hold what was told: every grant a row of the log, and stock equal to holds."""
        schema = sql.Identifier(self.settings.schema_name("inventory"))
        asked = sql.SQL(
            "SELECT (SELECT count(*) FROM {0}.request_log), (SELECT sum(held) FROM {0}.inventory)"
            " = (SELECT coalesce(sum(hold_quantity), 0) FROM {0}.hold WHERE state = 'PENDING')"
        ).format(schema)
        async with await AsyncConnection.connect(self.settings.postgres_url, autocommit=True) as connection:
            ((logged, equal),) = await (await connection.execute(asked)).fetchall()
        if logged != self.total or not equal:
            raise HopError(
                f"{self.total} requests, {logged} in the log, stock equal to holds: {equal} ({dict(outcomes)})"
            )

    async def _run(self, module: str, *arguments: str) -> None:
        status, _, complaint = await command([sys.executable, "-m", module, *arguments], self.environment)
        if status:
            raise HopError(f"{module} {arguments[0]} ended with {status}: {complaint.strip()[-300:]}")


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker's process."""

    child: asyncio.subprocess.Process
    ready_url: str
    log: Path

    def said(self) -> str:
        """The end of what it logged."""
        return self.log.read_text(encoding="utf-8", errors="replace").strip()[-500:]

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self.child.returncode is not None

    async def ready(self) -> None:
        """Return when it says that it is ready."""
        end = time.monotonic() + PATIENCE
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while time.monotonic() < end and not self.ended:
                try:
                    async with http.get(self.ready_url) as answer:
                        if answer.ok:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.02)
        raise HopError(f"a worker did not get ready: {self.said()}")


class _Reader:
    """Reads what the broker has stored, by partition."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, max_poll_records=5000)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._consumer.stop()

    async def ends(self, topic: Topic) -> dict[TopicPartition, int]:
        """The end offset of each partition."""
        name = self._settings.topic(topic)
        found: dict[TopicPartition, int] = await self._consumer.end_offsets(
            [TopicPartition(name, number) for number in range(self._settings.partitions_of(topic))]
        )
        return found

    async def answers(
        self, begin: Mapping[TopicPartition, int], end: Mapping[TopicPartition, int]
    ) -> list[tuple[str, Answer]]:
        """The responses between two sets of offsets, by request id; one may come twice."""
        wanted = {partition for partition, offset in end.items() if offset > begin[partition]}
        self._consumer.assign(sorted(wanted))
        for partition in wanted:
            self._consumer.seek(partition, begin[partition])
        found: list[tuple[str, Answer]] = []
        missing = sum(end[partition] - begin[partition] for partition in wanted)
        async with asyncio.timeout(PATIENCE):
            while missing > 0:
                for records in (await self._consumer.getmany(timeout_ms=1000)).values():
                    missing -= len(records)
                    for record in records:
                        event = orjson.loads(record.value)
                        answer = Answer(event["data"]["outcome"]["type"], record.timestamp / 1000)
                        found.append((event["requestid"], answer))
        return found
