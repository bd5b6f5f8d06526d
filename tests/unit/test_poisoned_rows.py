"""Background loops with one row, key or message that always fails: it is logged, and the others go on."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from psycopg.errors import NumericValueOutOfRange

from cart_service.agents import CartAgents
from cart_service.model import Cart
from cart_service.store import CartStore
from contracts import cart
from contracts.envelope import Envelope
from contracts.inventory import STOCK, STOCK_REGISTRY, Stock
from contracts.topics import Topic
from infrastructure.messaging.worker import Worker
from infrastructure.process.settings import Settings
from infrastructure.storage.job_queue import Done, JobResult, JobWorker, Row
from inventory_service.expiry_scanner import ExpiryScanner
from inventory_service.publisher import Publisher
from order_service.agents import OrderAgents
from order_service.model import Deadline, Incoming
from rest_api.read_models.projector import Event, Projector
from rest_api.read_models.store import ReadPosition
from tests.testkit.memory_rows import MemoryRows

NOW = datetime(2026, 11, 21, 3, 24, tzinfo=UTC)
IMPOSSIBLE = datetime.fromisoformat("0001-01-01T00:00:00+14:00")


class Carts(dict[bytes, bytes]):
    """A table in memory."""

    def put(self, key: bytes, value: bytes) -> None:
        self[key] = value


def pending(id_: str, since: datetime) -> cart.PendingRequest:
    return cart.PendingRequest.model_construct(id=id_, type="add", since=since, product="MUG", quantity=1, commit=None)


async def test_a_cart_that_cannot_be_written_or_retried_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Envelope] = []

    async def publish(_: Topic, events: Sequence[Envelope]) -> None:
        sent.extend(events)
        for event in events:
            event.encode()

    table: Any = Carts()
    carts = CartStore(table)
    clock = [NOW]
    agents = CartAgents(carts, publish, lambda: "one", lambda: clock[0])
    agents._known_generation = "one"
    for user, since in (("bad", IMPOSSIBLE), ("good", NOW)):
        carts.put(
            user, Cart(), Cart.model_construct(revision=0, expires_at=None, lines=(), pending=(pending("r", since),))
        )
        agents.retries.add(user, "r", now=NOW)
    clock[0] = NOW + timedelta(seconds=6)
    await agents.retry_due()
    assert [event.subject for event in sent] == ["good"]
    carts.flush()
    assert set(table) == {b"good"}
    assert "the cart of user bad cannot be written" in caplog.text
    assert "cannot retry the request that user bad" in caplog.text


def test_a_table_that_cannot_be_written_is_reported_and_stops_no_other() -> None:
    written: list[str] = []

    def fail() -> None:
        raise OverflowError("date value out of range")

    with pytest.raises(OverflowError, match="date value out of range"):
        Worker._write(SimpleNamespace(_writers=[fail, lambda: written.append("second")]))  # type: ignore[arg-type]
    assert written == ["second"]


class Rows:
    """A connection whose queries have fixed results."""

    def __init__(self, *results: list[tuple[Any, ...]]) -> None:
        self.results = list(results)

    async def execute(self, *_: Any) -> Any:
        rows = self.results.pop(0) if self.results else []

        async def fetchall() -> list[tuple[Any, ...]]:
            return rows

        return SimpleNamespace(fetchall=fetchall, rowcount=len(rows))


async def test_a_cart_that_cannot_expire_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Envelope] = []

    async def publish(_: Topic, events: Sequence[Envelope]) -> None:
        sent.extend(events)

    unused: Any = None
    connection: Any = Rows([("bad", IMPOSSIBLE, 1), ("good", NOW, 1)], [])
    await ExpiryScanner(unused, publish).scan(connection)
    assert [event.subject for event in sent] == ["good"]
    assert "the cart of user bad cannot expire" in caplog.text


async def test_a_product_that_cannot_be_published_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Envelope] = []

    async def publish(_: Topic, events: Sequence[Envelope]) -> None:
        sent.extend(events)

    unused: Any = None
    product: tuple[Any, ...] = ("A mug", None, [], False, 1, 255, "GBP")
    products = [("LONG", "x" * 201, *product[1:]), ("MUG", *product)]
    connection: Any = Rows([("0", "5")], [], products)
    await Publisher(unused, publish, "lock").publish_changes(connection)
    assert [event.subject for event in sent] == ["MUG"]
    assert "the product LONG is not published" in caplog.text


async def test_an_order_whose_deadline_cannot_be_handled_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    handled: list[str] = []

    class Store:
        async def claim_due(self, _: int) -> list[Incoming]:
            return [Incoming(order_id, "user", "", Deadline()) for order_id in ("a", "bad", "c")]

        async def transact(self, batch: Sequence[Incoming]) -> list[Any]:
            if any(incoming.order_id == "bad" for incoming in batch):
                raise ValueError("a stored event cannot be read")
            handled.extend(incoming.order_id for incoming in batch)
            return []

        async def mark_published(self, _: Any) -> None:
            pass

    async def publish(*_: Any) -> None:
        pass

    store: Any = Store()
    assert await OrderAgents(store, publish).handle_due_orders() == 3
    assert handled == ["a", "c"]
    assert "the deadline of order bad cannot be handled" in caplog.text


async def test_a_message_that_postgres_refuses_stops_no_read_model(caplog: pytest.LogCaptureFixture) -> None:
    applied: list[str] = []
    stored: list[ReadPosition] = []

    async def apply(events: Sequence[Event], positions: Sequence[ReadPosition]) -> None:
        if any(event.message.version > 2**63 for event in events):
            raise NumericValueOutOfRange("bigint out of range")
        applied.extend(event.message.product for event in events)
        stored.extend(positions)

    settings, no_store = Settings(prefix="p."), None
    projector = Projector(settings, no_store, "a test", {STOCK: STOCK_REGISTRY}, apply)  # type: ignore[arg-type]
    records: list[Any] = []
    for offset, (product, version) in enumerate((("A", 1), ("B", 2**64 - 1), ("C", 1))):
        message = Stock(product=product, available=1, received=1, held=0, sold=0, version=version)
        value = Envelope.of(message, source="/inventory", subject=product, event_id="e", time=NOW).encode()
        records.append(
            SimpleNamespace(topic="p.inventory.stock.v1", partition=0, offset=offset, key=product.encode(), value=value)
        )
    await projector._project({TopicPartition("p.inventory.stock.v1", 0): records})
    assert applied == ["A", "C"]
    assert stored == [("p.inventory.stock.v1", 0, 3)]
    assert "cannot be stored" in caplog.text


async def test_a_result_that_cannot_be_written_is_a_failed_attempt() -> None:
    """Otherwise the row would be repeated at the end of each lease, without a pause and without an end."""

    class Refusing(MemoryRows):
        async def finish(self, leased: Any, after: Any, *, attempts: int, columns: Row) -> bool:
            if columns:
                raise NumericValueOutOfRange("bigint out of range")
            return await super().finish(leased, after, attempts=attempts, columns=columns)

    rows = Refusing()
    rows.add("a")

    async def handle(_: Row, __: int) -> JobResult:
        return Done({"state": 2**70})

    worker = JobWorker(rows, handle, pauses=(60.0, 60.0))
    await worker._lease_due_rows()
    await worker.close()
    row = rows.rows["a"]
    assert row.lease is None
    assert row.at is not None
    assert row.at > rows.now(), "it is tried again after a pause"
