"""The publisher: sends the latest committed state of every product, four times per second. One replica publishes.

Changes carry the number of their transaction, and transactions do not commit in the order of their numbers. The
publisher therefore does not store the last change that it saw, but the transaction number below which all transactions
have ended. Each pass reads on from that position and skips states that were sent before. So a late commit is not
missed, and a transaction that stays open for an hour delays no other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from contracts.envelope import Envelope, first_error
from contracts.inventory import PRODUCTS, STOCK, Money, Product, Stock
from contracts.topics import Topic
from infrastructure.observability import metrics
from infrastructure.process.clock import now
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.postgres import Connection, try_lock
from inventory_service.store import QUERIES

log = logging.getLogger(__name__)

PUBLISH_SECONDS: Final = 0.25
"""Seconds between two passes, and so at most four states per second of one product."""
LOCK_RETRY_SECONDS: Final = 1.0
BATCH_SIZE: Final = 500
"""Events that are sent before their acknowledgements are awaited."""

PUBLISHER_OPTIONS: Final = "-c statement_timeout=10s -c idle_session_timeout=5s -c enable_seqscan=off -c jit=off"
"""Server settings of the publisher's connection.

A publisher that is stopped, or waits too long for Kafka, loses its session and with it the lock; another one takes
over."""


class ProductState(NamedTuple):
    """The stock or the catalogue entry of a product at a version, as the data of its event."""

    message: type[Stock | Product]
    product: str
    version: int
    data: dict[str, Any]

    @property
    def key(self) -> tuple[type[Stock | Product], str]:
        """Key that all versions of this state share."""
        return self.message, self.product


class Publisher:
    """Publisher of stock and products.

    `connect` returns a connection with `PUBLISHER_OPTIONS`, whose session holds the advisory lock `name`; `publish`
    returns after the acknowledgements.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        publish: Callable[[Topic, Sequence[Envelope]], Awaitable[None]],
        name: str,
    ) -> None:
        self.connect = connect
        self.publish = publish
        self.name = name
        self._stored = self._position = ""
        self._sent: dict[tuple[type[Stock | Product], str], int] = {}
        """The version of each state that was sent last."""

    async def run(self) -> None:
        """Wait for the lock, then publish as long as the session lasts; raises when the session is lost."""
        async with await self.connect() as connection:
            while True:
                if await try_lock(connection, self.name):
                    break
                await asyncio.sleep(LOCK_RETRY_SECONDS)
            self._stored = ""  # continue from the stored position, whichever replica stored it
            while True:
                await self.publish_changes(connection)
                await asyncio.sleep(PUBLISH_SECONDS)

    async def publish_changes(self, connection: Connection) -> int:
        """Publish the states that have changed since the last pass, and return their number."""
        [(stored, safe)] = await _fetch_all(connection, "positions")
        if stored != self._stored:
            self._stored = self._position = stored
            self._sent.clear()
        since = {"position": self._position}
        # From position 0, read the stock table itself, which is much shorter than the ledger.
        query = "all_stock" if self._position == "0" else "changed_stock"
        stock = [
            _stock(code, received, held, sold, version)
            for code, received, held, sold, version in await _fetch_all(connection, query, since)
        ]
        rows = await _fetch_all(connection, "changed_products", since)
        products = [product for row in rows if (product := _product(row))]
        # Products first, so that a consumer of a stock already knows its product.
        published = await self._publish_new(PRODUCTS, products)
        if products or stock:
            failpoint("inventory.described")
        published += await self._publish_new(STOCK, stock)
        self._position = safe
        if published:
            failpoint("inventory.published")
            result = await connection.execute(QUERIES["store_position"], {"position": safe, "stored": stored})
            self._stored = safe if result.rowcount else stored  # on a mismatch, `republish` has reset it
        return published

    async def _publish_new(self, topic: Topic, states: Iterable[ProductState]) -> int:
        unsent = [state for state in states if state.version > self._sent.get(state.key, 0)]
        for start in range(0, len(unsent), BATCH_SIZE):
            part, time = unsent[start : start + BATCH_SIZE], now()
            await self.publish(topic, [_event(state, time) for state in part])
            self._sent |= {state.key: state.version for state in part}
            metrics.PUBLISHED.labels(topic.name).inc(len(part))
        return len(unsent)


def _stock(product: str, received: int, held: int, sold: int, version: int) -> ProductState:
    """Return the state of a product's stock. A message is not built first: that would double the cost."""
    data = {
        "product": product,
        "available": received - held - sold,
        "received": received,
        "held": held,
        "sold": sold,
        "version": version,
    }
    return ProductState(Stock, product, version, data)


def _product(row: tuple[Any, ...]) -> ProductState | None:
    """Return the product of a row; `None`, with an entry in the log, if its consumers would not accept it."""
    code, name, category, images, deleted, version, amount, currency = row
    try:
        product = Product(
            code=code,
            name=name,
            category=category,
            images=tuple(images),
            deleted=deleted,
            version=version,
            price=Money(amount=amount, currency=currency),
        )
    except ValidationError as error:
        log.error("the product %s is not published: %s", code, first_error(error))  # noqa: TRY400
        return None
    return ProductState(Product, code, version, product.model_dump(mode="json"))


async def _fetch_all(connection: Connection, name: str, values: dict[str, str] | None = None) -> list[tuple[Any, ...]]:
    return await (await connection.execute(QUERIES[name], values)).fetchall()


def _event(state: ProductState, time: datetime) -> Envelope:
    role = "stock" if state.message is Stock else "product"
    return Envelope.of(
        state.message,
        source="/inventory",
        subject=state.product,
        event_id=f"{state.product}/{role}/{state.version}",
        time=time,
        data=state.data,
        validate=False,
    )
