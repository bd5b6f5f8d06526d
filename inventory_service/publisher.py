"""Makes the last state of every product known: one publisher a shop, from what is committed, four times a second.

Changes carry the number of the transaction that made them, and transactions end in another order than they begin. So
the publisher remembers not "the last change that I saw" but "the transaction before which all have ended", reads on
from there each time, and leaves out what it has sent: a late commit is not missed, and one transaction that stays open
for an hour holds nothing else back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from infrastructure import metrics
from infrastructure.clock import now
from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import Envelope
from infrastructure.postgres import Connection, try_lock
from infrastructure.topics import Topic
from inventory_service.messages import PRODUCTS, STOCK, Money, Product, Stock
from inventory_service.store import QUERIES

EVERY: Final = 0.25
"""Seconds between two looks, and so at most four states a second of one product."""
COMPETE_EVERY: Final = 1.0
AT_ONCE: Final = 500
"""Events sent before their acknowledgements are awaited."""

OPTIONS: Final = "-c statement_timeout=10s -c idle_session_timeout=5s -c enable_seqscan=off -c jit=off"
"""A publisher that is stopped, or waits for Kafka too long, loses its session and with it the lock: another goes on."""


class Publisher:
    """`connect` gives a connection with `OPTIONS`, whose session holds the lock `name`; `publish` awaits the acks."""

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
        self._sent: dict[str, int] = {}

    async def run(self) -> None:
        """Compete for the lock, then publish for as long as the session lasts; raises when it is lost."""
        async with await self.connect() as connection:
            while True:
                if await try_lock(connection, self.name):
                    break
                await asyncio.sleep(COMPETE_EVERY)
            self._stored = ""  # go on from what is stored, whoever stored it
            while True:
                await self.look(connection)
                await asyncio.sleep(EVERY)

    async def look(self, connection: Connection) -> int:
        """Publish what has changed since the last look; how many states that were."""
        [(stored, safe)] = await _all(connection, "positions")
        if stored != self._stored:
            self._stored = self._position = stored
            self._sent.clear()
        since = {"position": self._position}
        query = "all_stock" if self._position == "0" else "changed_stock"  # the ledger is long; the stock is not
        stock = [
            Stock.model_construct(
                product=code, available=received - held - sold, received=received, held=held, sold=sold, version=v
            )
            for code, received, held, sold, v in await _all(connection, query, since)
        ]
        products = [
            Product(
                code=code,
                name=name,
                category=category,
                images=tuple(images),
                deleted=deleted,
                version=version,
                price=Money(amount=amount, currency=currency),
            )
            for code, name, category, images, deleted, version, amount, currency in await _all(
                connection, "changed_products", since
            )
        ]
        # Products first: who learns of a stock then knows what it is a stock of.
        told = await self._tell(PRODUCTS, products)
        if products or stock:
            crashpoint("inventory.described")
        told += await self._tell(STOCK, stock)
        self._position = safe
        if told:
            crashpoint("inventory.published")
            done = await connection.execute(QUERIES["store_position"], {"position": safe, "stored": stored})
            self._stored = safe if done.rowcount else stored  # if somebody asked for all again, the next look sees it
        return told

    async def _tell(self, topic: Topic, states: Iterable[Stock | Product]) -> int:
        fresh = [state for state in states if state.version > self._sent.get(_identity(state), 0)]
        for start in range(0, len(fresh), AT_ONCE):
            part = fresh[start : start + AT_ONCE]
            await self.publish(topic, [_event(state) for state in part])
            self._sent |= {_identity(state): state.version for state in part}
            metrics.PUBLISHED.labels(topic.name).inc(len(part))
        return len(fresh)


async def _all(connection: Connection, name: str, values: dict[str, str] | None = None) -> list[tuple[Any, ...]]:
    return await (await connection.execute(QUERIES[name], values)).fetchall()


def _identity(state: Stock | Product) -> str:
    """The same for every version of one state."""
    return f"stock {state.product}" if isinstance(state, Stock) else f"product {state.code}"


def _event(state: Stock | Product) -> Envelope:
    key, role = (state.product, "stock") if isinstance(state, Stock) else (state.code, "product")
    return Envelope.model_construct(
        id=f"{key}/{role}/{state.version}",
        source="/inventory",
        type=state.TYPE,
        subject=key,
        time=now(),
        data=state.model_dump(mode="json"),
    )
