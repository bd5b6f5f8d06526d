"""Shoppers on the topics: they send requests, collect the outcomes, and in the end everything is counted again.

Invariants after any fault: each request has exactly one outcome, the same on the topic and in the log; the stock
adds up; each cart that is read equals the holds in Postgres.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError
from pydantic import TypeAdapter

from contracts import cart
from contracts.envelope import Envelope
from contracts.ids import uuid7
from contracts.inventory import Committed, StoredOutcome
from contracts.topics import Topic
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from inventory_service.audit import audit
from tests.testkit.servers import PARTITIONS, partition

PATIENCE: Final = 60.0
_STORED: Final[TypeAdapter[StoredOutcome]] = TypeAdapter(StoredOutcome)
_OUTCOMES: Final = (cart.Held, cart.Refused, cart.Removed, cart.Order)
Key = tuple[str, str]


class Shoppers:
    """Clients of `cart.requests` and `cart.responses`, without an edge between."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self.settings = settings
        self.producer = producer
        self.ids: set[str] = set()
        """Time of each request of this client, by user and request id; those of other clients are ignored."""
        self.sent: dict[Key, float] = {}
        """When each change was acknowledged by Kafka, on the monotonic clock."""
        self.told: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        """Each published outcome of a change, with repetitions."""
        self.first_told: dict[Key, float] = {}
        self.views: dict[Key, cart.CartView] = {}

    async def send(self, topic: Topic, key: str, value: bytes, *, astray: bool = False) -> None:
        """Put any record on a topic; `astray` on another partition than its key's."""
        place = (partition(key.encode()) + astray) % PARTITIONS
        await self.producer.send_and_wait(self.settings.topic(topic), value, key.encode(), partition=place)

    async def ask(self, user: str, verb: str, id_: str = "", *, astray: bool = False, **data: Any) -> str:
        """Ask for a change, as the edge would; its id."""
        id_ = id_ or uuid7()
        self.ids.add(id_)
        event = _request(user, id_, verb, data)
        await self.send(cart.REQUESTS, user, event.encode(), astray=astray)
        self.sent[user, id_] = time.monotonic()
        return id_

    async def shop(self, number: int, products: tuple[str, ...] = ("MUG", "HOT"), users: int = 12) -> None:
        """The `number`-th request of an ordinary mixture."""
        user, product = f"user-{number % users}", products[number // users % len(products)]
        match number % 7:
            case 3:
                await self.ask(user, "set", product=product, quantity=number % 3)
            case 5:
                await self.ask(user, "remove", product=product)
            case _:
                await self.ask(user, "add", product=product, quantity=1)

    async def keep_shopping(self, rate: float, stop: Callable[[], bool], **more: Any) -> int:
        """Ask at `rate` a second until `stop()`; how many requests that were."""
        number, began = len(self.sent), time.monotonic()
        first = number
        while not stop():
            await self.shop(number, **more)
            number += 1
            await asyncio.sleep(max(0.0, began + (number - first) / rate - time.monotonic()))
        return number - first

    async def settled(self, patience: float = PATIENCE) -> None:
        """Return when every change has an outcome."""
        end = time.monotonic() + patience
        while missing := self.sent.keys() - self.told.keys():
            assert time.monotonic() < end, (
                f"{len(missing)} of {len(self.sent)} without an outcome: {sorted(missing)[:3]}"
            )
            await asyncio.sleep(0.05)

    def silence(self, since: float, until: float | None = None, *, of: Callable[[str], bool] = bool) -> float:
        """The longest time without a first outcome between two moments, for the users that `of` chooses."""
        until = until or time.monotonic()
        moments = sorted(at for (user, _), at in self.first_told.items() if of(user) and since <= at <= until)
        return max(after - before for before, after in zip([since, *moments], [*moments, until], strict=True))

    def longest_wait(self, since: float, *, of: Callable[[str], bool] = bool) -> float:
        """The longest that a change of these users waited for its outcome, from `since` on."""
        waits = [
            told - max(since, self.sent[key])
            for key, told in self.first_told.items()
            if of(key[0]) and told >= since and key in self.sent
        ]
        assert waits, "none of them asked for anything"
        return max(waits)

    async def check(self) -> None:
        """Count everything again; call it when all is settled and nothing is asked."""
        for key, outcomes in self.told.items():
            assert all(outcome == outcomes[0] for outcome in outcomes), (
                f"{key} was told more than one outcome: {outcomes}"
            )
        async with await postgres.connect(self.settings, "inventory") as connection:
            rows = await (await connection.execute("SELECT user_id, requestid, outcome FROM request_log")).fetchall()
            log = {
                (user, id_): _comparable(_STORED.validate_python(outcome, strict=False)) for user, id_, outcome in rows
            }
            for key in self.sent:
                assert self.told[key][0] == log[key], f"{key}: told {self.told[key][0]}, but the log says {log[key]}"
            report = await audit(connection)
            assert (report["ok"], report["violations"]) == (True, [])
        await self._until_views_agree()

    async def _until_views_agree(self) -> None:
        """Each cart as it is read equals Postgres; the last outcome may still be on its way into the table."""
        end = time.monotonic() + PATIENCE
        users = {user for user, _ in self.sent}
        while True:
            truth = await self._carts(users)
            views = await asyncio.gather(*(self.read(user) for user in users))
            shown = {
                user: (view.version, sorted((line.product, line.quantity) for line in view.lines), len(view.pending))
                for user, view in zip(users, views, strict=True)
            }
            if shown == truth:
                return
            assert time.monotonic() < end, {
                user: (shown[user], truth[user]) for user in users if shown[user] != truth[user]
            }
            await asyncio.sleep(0.5)

    async def _carts(self, users: set[str]) -> dict[str, tuple[int, list[tuple[str, int]], int]]:
        async with await postgres.connect(self.settings, "inventory") as connection:
            lines: dict[str, list[tuple[str, int]]] = defaultdict(list)
            cursor = await connection.execute(
                "SELECT user_id, product_code, hold_quantity FROM hold WHERE order_id IS NULL"
            )
            for user, product, quantity in await cursor.fetchall():
                lines[user].append((product, quantity))
            rows = await (await connection.execute("SELECT user_id, revision FROM holder")).fetchall()
            revisions: dict[str, int] = dict(rows)
        return {user: (revisions.get(user, 0), sorted(lines[user]), 0) for user in users}

    async def read(self, user: str, patience: float = PATIENCE) -> cart.CartView:
        """The cart as the cart service shows it."""
        end = time.monotonic() + patience
        while True:
            id_ = uuid7()
            await self.send(cart.REQUESTS, user, _request(user, id_, "read", {"session": id_}).encode())
            asked = time.monotonic()
            while time.monotonic() < asked + 5:  # a read may stay without an answer: retry
                if (user, id_) in self.views:
                    return self.views[user, id_]
                await asyncio.sleep(0.02)
            assert time.monotonic() < end, f"the cart of {user} can't be read"

    async def gather(self, consumer: AIOKafkaConsumer) -> None:
        """Receive outcomes without end."""
        while True:
            try:
                polled = await consumer.getmany(timeout_ms=200)
            except KafkaError:
                await asyncio.sleep(0.1)
                continue
            for records in polled.values():
                for record in records:
                    self._take(Envelope.decode(record.key, record.value))

    def _take(self, event: Envelope) -> None:
        message = cart.RESPONSE_REGISTRY.parse(event)
        if isinstance(message, _OUTCOMES) and message.id in self.ids and event.source == "/cart":
            key = (message.user_id, message.id)
            self.first_told.setdefault(key, time.monotonic())
            self.told[key].append(_comparable(message))
        elif isinstance(message, cart.Snapshot) and message.id:
            self.views[message.user_id, message.id] = message.cart


def _request(user: str, id_: str, verb: str, data: dict[str, Any]) -> Envelope:
    return Envelope(
        id=f"{user}/{id_}/{verb}",
        source="/edge",
        type=f"holdfast.cart.{verb}",
        subject=user,
        time=datetime.now(UTC),
        requestid=id_,
        data={"user_id": user, **data},
    )


def _comparable(outcome: Any) -> dict[str, Any]:
    """Return the identifying part of an outcome, in the form common to the topic and the log."""
    if isinstance(outcome, Committed):  # a checkout's: its shopper gets the order
        return {"type": "order", "order_id": outcome.order_id, "status": "committed", "order_version": 2}
    fields = outcome.model_dump(exclude={"user_id", "id", "replayed", "type"}, exclude_none=True)
    kind = outcome.type if hasattr(outcome, "type") else outcome.TYPE.rpartition(".")[2]
    return {"type": kind, **fields}


async def refused(settings: Settings) -> int:
    """How many changes were refused so far because there was not enough."""
    query = "SELECT count(*) FROM request_log WHERE outcome->>'reason' = 'out_of_stock'"
    async with await postgres.connect(settings, "inventory") as connection:
        [(count,)] = await (await connection.execute(query)).fetchall()
    return int(count)


@asynccontextmanager
async def shoppers(settings: Settings) -> AsyncIterator[Shoppers]:
    """Shoppers who see every response from the first on."""
    await ensure_topics(settings, (cart.REQUESTS, cart.RESPONSES))
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, enable_idempotence=True, request_timeout_ms=5_000)
    consumer = AIOKafkaConsumer(
        settings.topic(cart.RESPONSES),
        bootstrap_servers=settings.kafka,
        auto_offset_reset="earliest",
        request_timeout_ms=5_000,
    )
    await producer.start()
    await consumer.start()
    here = Shoppers(settings, producer)
    gathering = asyncio.create_task(here.gather(consumer))
    try:
        yield here
    finally:
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)
        await consumer.stop()
        await producer.stop()
