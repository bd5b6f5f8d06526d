"""A schema and a small broker for the tests of orders, and all messages in short form."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from contracts import deliveries, inventory, orders, payments
from contracts.envelope import Envelope, Message
from contracts.ids import derive_id
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.process.settings import Settings as Shared
from infrastructure.storage import postgres
from infrastructure.storage.postgres import Connection
from order_service.agents import OrderAgents
from order_service.settings import Settings
from order_service.state import payment_id, shipment_id
from order_service.store import MIGRATIONS, STORE_OPTIONS, OrderStore

ADDRESS = orders.Address(name="Ann", line1="1 High St", city="Leeds", postal_code="LS1 1AA", country="GB")
CONTACT = orders.Contact(email="ann@example.org")
POUND = inventory.Money(amount=100, currency="GBP")
LINES = (inventory.Line(product="MUG", quantity=3, price=POUND),)
TOTAL = inventory.Money(amount=300, currency="GBP")


@dataclass
class Broker:
    """A broker that keeps events in order, as they can be read again, and that can refuse them."""

    events: list[tuple[Topic, Envelope]] = field(default_factory=list)
    away: bool = False

    async def publish(self, topic: Topic, events: Sequence[Envelope]) -> None:
        if self.away:
            raise TimeoutError("no broker")
        self.events += [(topic, Envelope.decode(event.key, event.encode())) for event in events]

    def take(self, topic: Topic) -> list[Envelope]:
        """Return the events on `topic` since the last call."""
        taken = [event for where, event in self.events if where is topic]
        self.events = [(where, event) for where, event in self.events if where is not topic]
        return taken

    def kinds(self, topic: Topic) -> list[str]:
        """The last words of their types."""
        return [event.type.rpartition(".")[2] for event in self.take(topic)]


@dataclass
class Schema:
    """A migrated schema; `connection` is for looking and for planting."""

    settings: Settings
    connection: Connection
    broker: Broker = field(default_factory=Broker)
    stores: list[OrderStore] = field(default_factory=list)

    def saga(self) -> OrderAgents:
        """One more agent."""
        store = OrderStore(
            partial(postgres.connect, self.settings, "orders", options=STORE_OPTIONS), timeouts=self.settings.timeouts
        )
        self.stores.append(store)
        return OrderAgents(store, self.broker.publish)

    async def rows(self, query: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return await (await self.connection.execute(query, values)).fetchall()

    async def types(self, order_id: str) -> list[str]:
        """The stream of an order."""
        query = "SELECT split_part(type, '.', 3) FROM order_event WHERE order_id = %s ORDER BY version"
        return [row[0] for row in await self.rows(query, [order_id])]


@asynccontextmanager
async def schema(shared: Shared, **times: float) -> AsyncIterator[Schema]:
    """A schema for one test, gone afterwards."""
    settings = Settings.model_validate({**shared.model_dump(), **times})
    await postgres.migrate(settings, "orders", MIGRATIONS)
    async with await postgres.connect(settings, "orders") as connection:
        here = Schema(settings, connection)
        try:
            yield here
        finally:
            for store in here.stores:
                await store.close()
            await connection.execute(f'DROP SCHEMA IF EXISTS "{settings.schema_name("orders")}" CASCADE')


@dataclass(frozen=True)
class Buying:
    """One shopper's order, and everything that can be said of it."""

    user: str = "ann"
    request: str = "c1"

    @property
    def id(self) -> str:
        return derive_id(self.user, self.request, "order")

    @property
    def ids(self) -> dict[str, Any]:
        return {"order_id": self.id, "user_id": self.user}

    @property
    def payment(self) -> dict[str, Any]:
        return {**self.ids, "payment_id": payment_id(self.id)}

    @property
    def carried(self) -> dict[str, Any]:
        return {**self.ids, "shipment_id": shipment_id(self.id), "carrier": "Swift", "tracking": "T1"}

    def place(self, token: str = "tok_approve") -> ReceivedMessage[Any]:
        return received(
            orders.Place(**self.ids, version=4, address=ADDRESS, contact=CONTACT, payment=orders.Payment(token=token)),
            self.request,
        )

    def committed(self) -> ReceivedMessage[Any]:
        outcome = inventory.Committed(order_id=self.id, purpose="order", lines=LINES, total=TOTAL, version=5)
        return self.decided(outcome)

    def decided(self, outcome: Any, request: str | None = None) -> ReceivedMessage[Any]:
        return received(
            inventory.Decided(user_id=self.user, outcome=outcome, cart=inventory.Cart(revision=5)),
            request or self.request,
        )

    def captured(self) -> ReceivedMessage[Any]:
        return received(payments.Captured(**self.payment, amount=TOTAL))

    def sold(self) -> ReceivedMessage[Any]:
        return self.decided(inventory.Sold(order_id=self.id), f"{self.id}/sell")

    def booked(self) -> ReceivedMessage[Any]:
        return received(deliveries.Booked(**self.carried))

    def shipped(self) -> ReceivedMessage[Any]:
        return received(deliveries.Shipped(**self.carried))

    def delivered(self) -> ReceivedMessage[Any]:
        return received(deliveries.Delivered(**self.ids, shipment_id=shipment_id(self.id)))


SOURCES = {"inventory": "/inventory", "payments": "/payments", "deliveries": "/deliveries", "orders": "/edge"}


def received(message: Message, request: str = "r") -> ReceivedMessage[Any]:
    """A message as an agent gets it."""
    subject = getattr(message, message.KEY)
    event = Envelope(
        id=f"{subject}/{request}",
        source=SOURCES[message.TYPE.split(".")[1]],
        type=message.TYPE,
        subject=subject,
        time=datetime.now(UTC),
        requestid=request,
        data=message.model_dump(mode="json"),
    )
    return ReceivedMessage(event, message, 0, 0)


async def deliver(saga: OrderAgents, buying: Buying) -> None:
    """All the way to the shopper's door."""
    await saga.on_order_requests([buying.place()])
    await saga.on_inventory_responses([buying.committed()])
    await saga.on_payment_events([buying.captured()])
    await saga.on_inventory_responses([buying.sold()])
    await saga.on_delivery_events([buying.booked(), buying.shipped(), buying.delivered()])
