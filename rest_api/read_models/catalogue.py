"""The read model of the catalogue: products and stock from two compacted topics, in Postgres, with names in memory."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from contracts.inventory import PRODUCT_REGISTRY, PRODUCTS, STOCK, STOCK_REGISTRY, Product, Stock
from infrastructure.process.settings import Settings
from rest_api.read_models.projector import Event, Projector, Topics, newest
from rest_api.read_models.store import UNAVAILABLE_ERRORS, ReadPosition, Store
from rest_api.websocket.stock_broadcaster import StockBroadcaster

log = logging.getLogger(__name__)

MAX_NAMES: Final = 50_000
NAMES_TIMEOUT_SECONDS: Final = 1.0


class CatalogueReadModel:
    """Projector of the catalogue into the store and the stock broadcaster, with a cache of product names."""

    def __init__(self, settings: Settings, store: Store, ticker: StockBroadcaster) -> None:
        self._store = store
        self._ticker = ticker
        self._names: OrderedDict[str, str] = OrderedDict()
        topics: Topics = {PRODUCTS: PRODUCT_REGISTRY, STOCK: STOCK_REGISTRY}
        # A tombstone needs no reaction: the product was marked `deleted` before.
        self._projector = Projector(settings, store, "the catalogue", topics, self._apply, skips_tombstones=True)

    @property
    def fault(self) -> str | None:
        """The reason for which the catalogue is incomplete; `None` once it has caught up with the start."""
        return self._projector.fault

    async def product_names(self, codes: Iterable[str]) -> Mapping[str, str]:
        """Return the names of products, from memory or else from Postgres; names not found in time are left out."""
        requested = set(codes)
        found = {code: self._names[code] for code in requested if code in self._names}
        for code in found:
            self._names.move_to_end(code)
        if len(found) < len(requested):
            try:
                async with asyncio.timeout(NAMES_TIMEOUT_SECONDS):
                    fresh = await self._store.product_names(requested - found.keys())
            except UNAVAILABLE_ERRORS as error:
                log.warning("the names of products could not be read: %r", error)
            else:
                self._cache_names(fresh)
                found |= fresh
        return found

    async def run(self) -> None:
        """Read from the stored positions, indefinitely. Raises when Kafka or Postgres is unavailable; run it again."""
        indexed = await self._store.index_products()
        if indexed:
            log.info("indexed the words of %d products", indexed)
        positions, levels = await self._store.load_stock_and_positions(self._projector.topic_names)
        self._ticker.update(levels)
        await self._projector.run(positions)

    async def _apply(self, events: Sequence[Event], positions: Sequence[ReadPosition]) -> None:
        messages = [event.message for event in events]
        products = newest((each for each in messages if isinstance(each, Product)), lambda each: each.code)
        stock = newest((each for each in messages if isinstance(each, Stock)), lambda each: each.product)
        await self._store.project(list(products.values()), list(stock.values()), positions)
        self._cache_names({code: product.name for code, product in products.items() if code in self._names})
        self._ticker.update((level.product, level.available, level.version) for level in stock.values())

    def _cache_names(self, names: Mapping[str, str]) -> None:
        self._names.update(names)
        while len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)
