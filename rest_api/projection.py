"""The read model of the catalogue: what two compacted topics tell, kept in Postgres, with names in memory.

The positions in the topics are stored with the rows in one transaction, and every row is guarded by its version, so a
record read twice, or by two edges, changes nothing.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from infrastructure import metrics
from infrastructure.envelope import Envelope, Undecodable
from infrastructure.settings import Settings
from infrastructure.topics import Topic
from inventory_service.messages import PRODUCT_VOCABULARY, PRODUCTS, STOCK, STOCK_VOCABULARY, Product, Stock
from rest_api.gateway import partitions
from rest_api.store import AWAY, Position, Store
from rest_api.ticker import Ticker

log = logging.getLogger(__name__)

MAX_NAMES: Final = 50_000
MAX_RECORDS: Final = 500
NAMES_SECONDS: Final = 1.0
_TOPICS: Final[tuple[Topic, Topic]] = (PRODUCTS, STOCK)


class Projection:
    """Feeds the store and the ticker; knows the names of products."""

    def __init__(self, settings: Settings, store: Store, ticker: Ticker) -> None:
        self._settings = settings
        self._store = store
        self._ticker = ticker
        self._products = settings.topic(PRODUCTS)
        self._names: OrderedDict[str, str] = OrderedDict()
        self._behind: dict[TopicPartition, int] | None = None

    @property
    def fault(self) -> str | None:
        """Why the catalogue is not whole yet; None once it has everything that was there when the edge started."""
        if self._behind is None:
            return "the read model of the catalogue has not begun"
        return f"the read model is behind in {len(self._behind)} partitions" if self._behind else None

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
        topics = [self._settings.topic(topic) for topic in _TOPICS]
        positions, levels = await self._store.resume(topics)
        self._ticker.learn(levels)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._settings.kafka,
            client_id=f"{self._settings.prefix}edge-{self._settings.replica}-catalogue",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=MAX_RECORDS,
            retry_backoff_ms=200,
        )
        await consumer.start()
        try:
            await self._seek(consumer, positions)
            while True:
                polled = await consumer.getmany(timeout_ms=1_000, max_records=MAX_RECORDS)
                if polled:
                    await self._take(polled)
        finally:
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(consumer.stop(), 2)

    async def _seek(self, consumer: AIOKafkaConsumer, positions: Sequence[Position]) -> None:
        assigned = [found for topic in _TOPICS for found in partitions(self._settings.topic(topic), topic)]
        consumer.assign(assigned)
        ends = await consumer.end_offsets(assigned)
        stored = {TopicPartition(topic, number): offset for topic, number, offset in positions}
        behind = dict(ends)
        for partition in assigned:
            offset = stored.get(partition, 0)
            if offset > ends[partition]:
                log.warning("%s/%s is shorter than what was read of it: read anew", *partition)
                await self._store.forget_position(partition.topic, partition.partition)
                offset = 0
            consumer.seek(partition, offset)
            if offset >= ends[partition]:
                del behind[partition]
        self._behind = behind

    async def _take(self, polled: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        products: dict[str, Product] = {}
        stock: dict[str, Stock] = {}
        positions: list[Position] = []
        for partition, records in polled.items():
            positions.append((partition.topic, partition.partition, records[-1].offset + 1))
            metrics.EDGE_PROJECTED.labels(partition.topic).inc(len(records))
            for record in records:
                self._read(record, products, stock)
        await self._store.project(list(products.values()), list(stock.values()), positions)
        self._remember({code: told.name for code, told in products.items() if code in self._names})
        self._ticker.learn((level.product, level.available, level.version) for level in stock.values())
        if self._behind:
            for topic, number, offset in positions:
                partition = TopicPartition(topic, number)
                if offset >= self._behind.get(partition, 0):
                    self._behind.pop(partition, None)

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
