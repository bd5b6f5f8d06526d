"""A schema with some stock for the tests of the inventory, and its requests in short form."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from contracts.envelope import Envelope
from contracts.inventory import Hold, Money, Request
from contracts.topics import Topic
from infrastructure.process.settings import Settings as Shared
from infrastructure.storage import postgres
from infrastructure.storage.postgres import Connection
from inventory_service.catalogue import CatalogueItem, seed
from inventory_service.settings import Settings
from inventory_service.state import Command, HoldingLimits, Reply, StockLevel
from inventory_service.store import MIGRATIONS, STORE_OPTIONS, MemoryStore, PostgresStore, Store


@dataclass
class Schema:
    """A migrated schema; `connection` is for looking and for planting."""

    settings: Settings
    connection: Connection
    stores: list[PostgresStore] = field(default_factory=list)

    def store(self) -> PostgresStore:
        """Another worker's store."""
        store = PostgresStore(
            partial(postgres.connect, self.settings, "inventory", options=STORE_OPTIONS), self.settings.time_limits
        )
        self.stores.append(store)
        return store

    async def stock(self, **units: int) -> None:
        """New products with that many units."""
        await seed(
            self.connection, [CatalogueItem(code, f"name of {code}", 100, "GBP", each) for code, each in units.items()]
        )

    async def rows(self, query: str, values: Sequence[Any] | Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return await (await self.connection.execute(query, values)).fetchall()

    async def one(self, query: str) -> Any:
        """The one value that a query finds."""
        [(value,)] = await self.rows(query)
        return value

    async def pass_time(self, **time: int) -> None:
        """Move all carts that far into the past; Postgres' own clock stands for itself."""
        [(unit, count)] = time.items()
        await self.connection.execute(
            "WITH locked AS (SELECT user_id AS u FROM holder ORDER BY user_id FOR NO KEY UPDATE)"  # as the store does
            " UPDATE holder SET first_held_at = first_held_at - i, expires_at = expires_at - i"
            f" FROM locked, (SELECT interval '{count} {unit}') AS x(i) WHERE user_id = u"
        )


@asynccontextmanager
async def schema(shared: Shared, **times: float) -> AsyncIterator[Schema]:
    """A schema for one test, gone afterwards."""
    settings = Settings.model_validate({**shared.model_dump(), **times})
    await postgres.migrate(settings, "inventory", MIGRATIONS)
    async with await postgres.connect(settings, "inventory") as connection:
        here = Schema(settings, connection)
        try:
            yield here
        finally:
            for store in here.stores:
                await store.close()
            await connection.execute(f'DROP SCHEMA IF EXISTS "{settings.schema_name("inventory")}" CASCADE')


class InventoryStoreFixture:
    """A store under test, with stock in it and a clock that can be moved."""

    store: Store

    async def tell(self, *batch: Command) -> list[Reply]:
        return (await self.store.transact(batch)).replies

    async def ask(self, id_: str, request: Request) -> Any:
        [answer] = await self.tell(command(id_, request))
        return answer.outcome

    async def outcomes(self, *batch: Command) -> list[Any]:
        return [answer.outcome for answer in await self.tell(*batch)]

    def limit(self, limits: HoldingLimits) -> None:
        raise NotImplementedError

    async def pass_time(self, **time: int) -> None:
        raise NotImplementedError

    async def forget(self) -> None:
        """As the log does after nine days."""
        raise NotImplementedError

    async def stock(self, product: str) -> tuple[int, int, int]:
        """Received, held, sold."""
        raise NotImplementedError


class MemoryInventory(InventoryStoreFixture):
    def __init__(self, **stock: int) -> None:
        self.late = timedelta()
        price = Money(amount=100, currency="GBP")
        shelves = {code: StockLevel(units, 0, 0, price, 1) for code, units in stock.items()}
        self.store = self.memory = MemoryStore(shelves, lambda: datetime.now(UTC) + self.late)

    def limit(self, limits: HoldingLimits) -> None:
        self.memory.holding_limits = limits

    async def pass_time(self, **time: int) -> None:
        self.late += timedelta(**time)

    async def forget(self) -> None:
        self.memory.log.clear()

    async def stock(self, product: str) -> tuple[int, int, int]:
        shelf = self.memory.stock_levels[product]
        return shelf.received, shelf.held, shelf.sold


class PostgresInventory(InventoryStoreFixture):
    def __init__(self, here: Schema) -> None:
        self.here = here
        self.store = self.postgres = here.store()

    def limit(self, limits: HoldingLimits) -> None:
        self.postgres.holding_limits = limits

    async def pass_time(self, **time: int) -> None:
        await self.here.pass_time(**time)

    async def forget(self) -> None:
        await self.here.connection.execute("DELETE FROM request_log")

    async def stock(self, product: str) -> tuple[int, int, int]:
        query = "SELECT received, held, sold FROM inventory WHERE product_code = %s"
        [(received, held, sold)] = await self.here.rows(query, (product,))
        return received, held, sold


def command(id_: str, request: Request, accepted: datetime | None = None) -> Command:
    """Return a command that is accepted now, unless `accepted` is given."""
    return Command(id_, accepted or datetime.now(UTC), request)


def add(product: str, quantity: int = 1, user: str = "ann") -> Hold:
    """A request for more."""
    return Hold(user_id=user, mode="add", product=product, quantity=quantity)


@dataclass
class Topics:
    """A small broker: keeps what is published, in order."""

    events: list[tuple[Topic, Envelope]] = field(default_factory=list)

    async def publish(self, topic: Topic, events: Sequence[Envelope]) -> None:
        """Record the events; encode them as `Worker.publish` does, so that invalid ones fail here too."""
        self.events += [(topic, Envelope.decode(event.key, event.encode())) for event in events]

    def take(self, topic: Topic) -> list[Envelope]:
        """Return the events on `topic` since the last call."""
        taken = [event for where, event in self.events if where is topic]
        self.events = [(where, event) for where, event in self.events if where is not topic]
        return taken
