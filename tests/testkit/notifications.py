"""The notification worker, the three processors and the mail catcher as processes, for the tests of notices."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from contracts import cart, inventory, orders
from contracts import notifications as notices
from contracts.envelope import Envelope, Message
from contracts.ids import uuid7
from contracts.inventory import Line, Money
from contracts.topics import Topic
from infrastructure.messaging.broker import ensure_topics
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.settings import Settings
from tests.testkit.processes import PATIENCE, Processes, Replica, clean_up, processes
from tests.testkit.servers import PARTITIONS, Servers, partition

_COME_TO = ("answered", "noted", "asked", "written", "stored", "told", "warned")
AT_WORK = tuple(f"notifications.{what}" for what in _COME_TO)
"""Failpoints that a preference, an order and a cart bring the worker to, in their order."""
HANDED_OVER = "notifications.handed_over"
PUT_ASIDE = "notifications.put_aside"

QUICK: Final = {
    "HOLDFAST_NOTICE_PAUSE_SECONDS": "0.1",
    "HOLDFAST_NOTICE_LONGEST_PAUSE_SECONDS": "0.4",
    "HOLDFAST_NOTICE_SECONDS": "4",
    "HOLDFAST_NOTICE_ATTEMPTS": "1000",
    "HOLDFAST_AUDIT_GRACE_SECONDS": "0",
}
HEARD: Final = (orders.REQUESTS, orders.EVENTS, cart.RESPONSES, notices.REQUESTS, inventory.PRODUCTS)
"""Topics that the worker reads."""
KEPT: Final = ("notice", "preference", "contact", "forgotten", "sms")
GBP: Final = "GBP"


@dataclass
class NoticeStack:
    """The processes, and hands on the topics and tables."""

    shop: Processes
    worker: Replica
    email: Replica
    sms: Replica
    push: Replica
    catcher: Replica
    front: Replica

    @property
    def edge(self) -> str:
        """Where the edge answers."""
        return f"http://127.0.0.1:{self.front.port}"

    @property
    def settings(self) -> Settings:
        return self.shop.settings

    # ---- what happens in the shop -----------------------------------------------------------------------------------

    async def say(self, *records: tuple[Topic, Envelope]) -> None:
        """Write records as their services would."""
        async with producer(self.settings) as out:
            for topic, event in records:
                await out.send(self.settings.topic(topic), event.encode(), event.key, partition=partition(event.key))
            await out.flush()

    async def replay(self) -> None:
        """Write all records of the topics that the worker reads to them once more."""
        records = [
            record async for record in read_topic(self.settings, [self.settings.topic(topic) for topic in HEARD])
        ]
        async with producer(self.settings) as out:
            for record in records:
                await out.send(record.topic, record.value, record.key, partition=partition(record.key))
            await out.flush()

    async def at_rest(self) -> None:
        """Return when the worker has read everything and has published all outcomes."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.kafka)
        reader = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka)
        await admin.start()
        await reader.start()
        try:
            async with asyncio.timeout(PATIENCE):
                # Records of three of the topics lead to records on the fourth before their offsets are committed, so
                # one look may miss that.
                while not (await self._all_read(admin, reader) and await self._all_read(admin, reader)):
                    await asyncio.sleep(0.1)
                while self.rows("SELECT 1 FROM notice WHERE due_at IS NOT NULL OR told_at IS NOT NULL LIMIT 1"):
                    await asyncio.sleep(0.1)
        finally:
            await reader.stop()
            await admin.close()

    async def _all_read(self, admin: AIOKafkaAdminClient, reader: AIOKafkaConsumer) -> bool:
        places = [TopicPartition(self.settings.topic(topic), n) for topic in HEARD for n in range(PARTITIONS)]
        committed = await admin.list_consumer_group_offsets(f"{self.settings.prefix}notifications")
        ends = await reader.end_offsets(places)
        return all(ends[p] == 0 or (p in committed and committed[p].offset >= ends[p]) for p in places)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query on the service's tables."""
        with psycopg.connect(self.settings.postgres_url, autocommit=True) as connection:
            connection.execute(f'SET search_path = "{self.settings.schema_name("notifications")}"'.encode())
            cursor = connection.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def notices(self, user: str) -> dict[tuple[str, str], str]:
        """Return the status of a user's notices, by template and channel."""
        found = self.rows("SELECT template, channel, status FROM notice WHERE user_id = %s", user)
        return {(template, channel): status for template, channel, status in found}

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows that no replay may change, by table."""
        tables = {table: self.rows(f"SELECT * FROM {table} ORDER BY 1") for table in KEPT}
        return {**tables, "cart": self.rows("SELECT user_id, version, expires_at, products FROM cart ORDER BY 1")}

    def mails(self, to: str) -> list[dict[str, Any]]:
        """Return the mails to an address in the dev mailbox."""
        answer = httpx.get(f"http://127.0.0.1:{self.catcher.port}/mails.json", trust_env=False, timeout=10)
        return [mail for mail in answer.json()["mails"] if mail["to"] == to]

    async def settled(self, user: str, count: int) -> None:
        """Return when `count` notices of a user are stored, processed and published."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = self.rows("SELECT status <> 'queued' AND told_at IS NULL FROM notice WHERE user_id = %s", user)
                if len(found) >= count and all(done for (done,) in found):
                    return
                await asyncio.sleep(0.1)

    async def stored(self, user: str, sends: int) -> None:
        """Return when so many send requests for a user are on their topic, and all of them are read."""
        async with asyncio.timeout(PATIENCE):
            while len([e for e in await self.heard(notices.REQUESTS, user) if e.type == notices.Send.TYPE]) < sends:
                await asyncio.sleep(0.1)
            wish = asked(user, notices.Prefer(user_id=user, email=True, sms=True, push=True))
            await self.say(wish)
            while wish[1].requestid not in {event.requestid for event in await self.heard(notices.EVENTS, user)}:
                await asyncio.sleep(0.1)

    async def heard(self, topic: Topic, user: str) -> list[Envelope]:
        """Return the events of a user on a topic."""
        return [event for event in await read(self.settings, topic) if event.subject == user]

    def audit(self) -> dict[str, Any]:
        """Return the report of the audit."""
        done = self.shop.run("notification_service", "audit", "--json")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@contextmanager
def notice_stack(
    servers: Servers, folder: Path, *, edge: bool = False, more: Mapping[str, str] | None = None
) -> Iterator[NoticeStack]:
    """All but the edge, ready; or with `edge` that, the worker and push alone. Gone afterwards."""
    settings = servers.settings()
    smtp = str(free_port())
    told = {
        **QUICK,
        **(more or {}),
        "HOLDFAST_CATCHER_SMTP_PORT": smtp,
        "HOLDFAST_SMTP_URL": f"smtp://127.0.0.1:{smtp}",
    }
    with processes(servers, settings, folder, **told) as shop:
        rooms = {name: f"notification_service.{name}" for name in ("email", "sms", "push", "catcher")}
        modules = {"worker": "notification_service", **rooms, "front": "rest_api"}
        replicas = {name: shop.add(module, name) for name, module in modules.items()}
        wanted = {"worker", "push", "front"} if edge else {"worker", *rooms}
        for name in wanted:
            replicas[name].start()
            replicas[name].kept = True
        for name in wanted:
            replicas[name].wait_ready()
        yield NoticeStack(shop, **replicas)
    asyncio.run(clean_up(settings))


@asynccontextmanager
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    await ensure_topics(settings, (*HEARD, notices.EVENTS))
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka) as out:
        yield out


async def read(settings: Settings, topic: Topic) -> list[Envelope]:
    """Return all events of a topic."""
    async with AIOKafkaConsumer(
        settings.topic(topic), bootstrap_servers=settings.kafka, auto_offset_reset="earliest"
    ) as consumer:
        places = list(consumer.assignment())
        ends = await consumer.end_offsets(places)
        found: list[Envelope] = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [Envelope.decode(record.key, record.value) for record in records]
        return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# ---- events of orders and carts -------------------------------------------------------------------------------------


@dataclass
class Order:
    """One order's records, in their order."""

    user: str
    phone: str | None = None
    address: str = ""
    order_id: str = field(default_factory=uuid7)
    version: int = 0

    @property
    def email(self) -> str:
        return self.address or f"{self.user}@mail.example"

    def place(self) -> tuple[Topic, Envelope]:
        address = orders.Address(name="Ann", line1="1 High St", city="Leeds", postal_code="LS1", country="GB")
        place = orders.Place(
            order_id=self.order_id,
            user_id=self.user,
            version=1,
            address=address,
            contact=orders.Contact(email=self.email, phone=self.phone),
            payment=orders.Payment(token="tok_approve"),
        )
        return orders.REQUESTS, event(place, "/cart", self.order_id, f"{self.order_id}/place")

    def tell(self, kind: type[Message], status: str, **data: Any) -> tuple[Topic, Envelope]:
        self.version += 1
        whole = {"order_id": self.order_id, "user_id": self.user, "version": self.version, "status": status, **data}
        return orders.EVENTS, event(kind(**whole), "/orders", self.order_id, f"{self.order_id}/{self.version}")

    def begin(self) -> list[tuple[Topic, Envelope]]:
        """Placed, committed and paid."""
        lines = (Line(product="MUG", quantity=2, price=Money(amount=425, currency=GBP)),)
        total = Money(amount=850, currency=GBP)
        return [
            self.place(),
            self.tell(orders.Placed, "placed", request_id="r1"),
            self.tell(orders.Committed, "committed", lines=lines, total=total),
            self.tell(orders.Captured, "paid", payment_id="p1", amount=total),
        ]

    def whole(self) -> list[tuple[Topic, Envelope]]:
        """From the checkout to the door, and a refund."""
        parcel = {"shipment_id": "s1", "carrier": "Owl Post", "tracking": "OP123"}
        money = Money(amount=850, currency=GBP)
        return [
            *self.begin(),
            self.tell(orders.Confirmed, "confirmed"),
            self.tell(orders.Booked, "confirmed", **parcel),
            self.tell(orders.Shipped, "shipped", **parcel),
            self.tell(orders.Delivered, "delivered"),
            self.tell(orders.RefundAsked, "delivered", refund_id="f1", amount=money),
            self.tell(orders.Refunded, "delivered", refund_id="f1", amount=money, refunded=money),
        ]

    def confirmed(self) -> list[tuple[Topic, Envelope]]:
        return [*self.begin(), self.tell(orders.Confirmed, "confirmed")]

    def refused(self, reason: str = "unknown_product") -> list[tuple[Topic, Envelope]]:
        """Cancelled before its stock was held."""
        return [
            self.place(),
            self.tell(orders.Placed, "placed", request_id="r1"),
            self.tell(orders.Cancelling, "placed", reason=reason),
            self.tell(orders.Cancelled, "cancelled", reason=reason),
        ]

    def paid_back(self, reason: str = "cancelled") -> list[tuple[Topic, Envelope]]:
        """Paid, then cancelled, with the money given back."""
        money = Money(amount=850, currency=GBP)
        return [
            *self.begin(),
            self.tell(orders.Cancelling, "paid", reason=reason),
            self.tell(orders.Cancelled, "cancelled", reason=reason, refunded=money),
        ]

    def declined(self) -> list[tuple[Topic, Envelope]]:
        return [
            *self.begin()[:3],
            self.tell(orders.Cancelling, "committed", reason="declined"),
            self.tell(orders.Cancelled, "cancelled", reason="declined"),
        ]


def event(message: Message, source: str, key: str, name: str, time: datetime | None = None) -> Envelope:
    return Envelope(
        id=name,
        source=source,
        type=message.TYPE,
        subject=key,
        time=time or datetime.now(UTC),
        requestid=name[-64:],
        data=message.model_dump(mode="json", exclude_none=True),
    )


def responses(user: str, *told: Message) -> list[tuple[Topic, Envelope]]:
    """Return responses of a shopper's cart."""
    return [(cart.RESPONSES, event(each, "/cart", user, f"{user}/{number}")) for number, each in enumerate(told)]


def product(code: str, name: str, version: int = 1) -> tuple[Topic, Envelope]:
    """A product of the catalogue."""
    record = inventory.Product(code=code, name=name, price=Money(amount=425, currency=GBP), version=version)
    return inventory.PRODUCTS, event(record, "/inventory", code, f"{code}/{version}")


def asked(user: str, request: Message, time: datetime | None = None, source: str = "/edge") -> tuple[Topic, Envelope]:
    """A request to the notification service."""
    return notices.REQUESTS, event(request, source, user, f"{user}/{uuid7()}", time)


def held(user: str, version: int, ends: datetime) -> cart.Held:
    return cart.Held(
        user_id=user, id=f"h{version}", product="MUG", quantity=1, line_quantity=1, expires_at=ends, version=version
    )


async def until_sent(here: NoticeStack, user: str, expected: dict[tuple[str, str], str]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not expected.items() <= here.notices(user).items():
            await asyncio.sleep(0.05)
