"""The read model of the catalogue: what two compacted topics tell, kept in Postgres, with names in memory."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from aiokafka import ConsumerRecord

from infrastructure import metrics
from infrastructure.envelope import Envelope, Undecodable
from infrastructure.settings import Settings
from inventory_service.messages import PRODUCT_VOCABULARY, PRODUCTS, STOCK, STOCK_VOCABULARY, Product, Stock
from rest_api.follower import Follower, Polled
from rest_api.store import AWAY, Position, Store
from rest_api.ticker import Ticker

log = logging.getLogger(__name__)

MAX_NAMES: Final = 50_000
NAMES_SECONDS: Final = 1.0


class Projection:
    """Feeds the store and the ticker; knows the names of products."""

    def __init__(self, settings: Settings, store: Store, ticker: Ticker) -> None:
        self._store = store
        self._ticker = ticker
        self._products = settings.topic(PRODUCTS)
        self._names: OrderedDict[str, str] = OrderedDict()
        self._follower = Follower(settings, store, "the catalogue", (PRODUCTS, STOCK))

    @property
    def fault(self) -> str | None:
        """Why the catalogue is not whole yet; None once it has everything that was there when the edge started."""
        return self._follower.fault

    async def names(self, codes: Iterable[str]) -> Mapping[str, str]:
        """The names of some products, from memory, else from Postgres; none for those that are not known in time."""
        wanted = set(codes)
        found = {code: self._names[code] for code in wanted if code in self._names}
        for code in found:
            self._names.move_to_end(code)
        if len(found) < len(wanted):
            try:
                async with asyncio.timeout(NAMES_SECONDS):
                    fresh = await self._store.names(wanted - found.keys())
            except AWAY as error:
                log.warning("the names of products are away: %r", error)
            else:
                self._remember(fresh)
                found |= fresh
        return found

    async def run(self) -> None:
        """Read on from where the store is, for ever. Raises when Kafka or Postgres is away: run it again."""
        positions, levels = await self._store.resume(self._follower.names)
        self._ticker.learn(levels)
        await self._follower.run(positions, self._take)

    async def _take(self, polled: Polled, positions: list[Position]) -> None:
        products: dict[str, Product] = {}
        stock: dict[str, Stock] = {}
        for records in polled.values():
            for record in records:
                self._read(record, products, stock)
        await self._store.project(list(products.values()), list(stock.values()), positions)
        self._remember({code: told.name for code, told in products.items() if code in self._names})
        self._ticker.learn((level.product, level.available, level.version) for level in stock.values())

    def _read(self, record: ConsumerRecord, products: dict[str, Product], stock: dict[str, Stock]) -> None:
        if record.value is None:
            return  # a tombstone: what is gone was told by `deleted` before
        try:
            event = Envelope.decode(record.key, record.value)
            if record.topic == self._products:
                product = PRODUCT_VOCABULARY.parse(event)
                if product.code not in products or products[product.code].version < product.version:
                    products[product.code] = product
            else:
                level = STOCK_VOCABULARY.parse(event)
                if level.product not in stock or stock[level.product].version < level.version:
                    stock[level.product] = level
        except Undecodable as error:
            metrics.IGNORED.labels(record.topic).inc()
            log.warning("%s %s/%s: %s", record.topic, record.partition, record.offset, error)

    def _remember(self, names: Mapping[str, str]) -> None:
        self._names.update(names)
        while len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)
