"""Reads topics into a read model: from where the store is, in order, for ever.

The positions in the topics are stored with the rows in one transaction, and every row is guarded, so a record that is
read twice, or by two edges, changes nothing.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from infrastructure import metrics
from infrastructure.broker import check_reading, hang_up
from infrastructure.settings import Settings
from infrastructure.topics import Topic
from rest_api.gateway import partitions
from rest_api.store import Position, Store

log = logging.getLogger(__name__)

MAX_RECORDS: Final = 500
Polled = Mapping[TopicPartition, Sequence[ConsumerRecord]]
Take = Callable[[Polled, list[Position]], Awaitable[None]]
"""Stores some records, and with them the positions after them."""


class Follower:
    """One consumer without a group, of a few topics."""

    def __init__(self, settings: Settings, store: Store, name: str, topics: Sequence[Topic]) -> None:
        """`name` is what the read model is of, as its fault says it."""
        self._settings = settings
        self._store = store
        self._name = name
        self._topics = topics
        self._behind: dict[TopicPartition, int] | None = None

    @property
    def names(self) -> list[str]:
        """The broker's names of the topics."""
        return [self._settings.topic(topic) for topic in self._topics]

    @property
    def fault(self) -> str | None:
        """Why the read model is not whole yet; None once it has everything that was there when the edge started."""
        if self._behind is None:
            return f"the read model of {self._name} has not begun"
        behind = len(self._behind)
        return f"the read model of {self._name} is behind in {behind} partitions" if behind else None

    async def run(self, positions: Sequence[Position], take: Take) -> None:
        """Read on from `positions`, from the beginning where there is none. Raises when Kafka or Postgres is away."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._settings.kafka,
            client_id=f"{self._settings.prefix}edge-{self._settings.replica}-{self._name.replace(' ', '-')}",
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
                    await self._take(polled, take)
                else:
                    check_reading(consumer)
        finally:
            await hang_up(consumer)

    async def _seek(self, consumer: AIOKafkaConsumer, positions: Sequence[Position]) -> None:
        assigned = [found for topic in self._topics for found in partitions(self._settings, topic)]
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

    async def _take(self, polled: Polled, take: Take) -> None:
        positions = [(topic, number, records[-1].offset + 1) for (topic, number), records in polled.items()]
        for topic, number, _ in positions:
            metrics.EDGE_PROJECTED.labels(topic).inc(len(polled[TopicPartition(topic, number)]))
        await take(polled, positions)
        if self._behind:
            for topic, number, offset in positions:
                partition = TopicPartition(topic, number)
                if offset >= self._behind.get(partition, 0):
                    self._behind.pop(partition, None)
