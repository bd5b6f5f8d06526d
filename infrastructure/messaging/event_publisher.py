"""Publisher of many events at once: it builds Kafka's record batches itself.

`AIOKafkaProducer.send` looks up the metadata, and creates a future, for each record. In a batch of hundreds that costs
more than building the events. Here both are done once for each partition.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, cast

import faust
from aiokafka import AIOKafkaProducer

from contracts.envelope import HEADERS, Envelope
from contracts.topics import Topic
from infrastructure.messaging.broker import partition_of
from infrastructure.process.settings import Settings

_HEADERS: Final = [*HEADERS.items()]


class EventPublisher:
    """Publisher that sends through the producer of a Faust app, which has started when the first event is published."""

    def __init__(self, app: faust.App, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def publish(self, topic: Topic, events: Sequence[Envelope]) -> None:
        """Send `events`, those of one partition in order; return when the broker has acknowledged all of them."""
        if not events:
            return
        name, partitions = self._settings.topic(topic), self._settings.partitions_of(topic)
        by_partition: dict[int, list[Envelope]] = {}
        for event in events:
            by_partition.setdefault(partition_of(event.subject.encode(), partitions), []).append(event)
        producer = cast("Any", self._app.producer)._ensure_producer()  # noqa: SLF001 - Faust has no public way
        acknowledged: list[Awaitable[Any]] = []
        try:
            for partition, part in by_partition.items():
                await send_batches(producer, name, partition, part, acknowledged.append)
        finally:
            outcomes = await asyncio.gather(*acknowledged, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome


async def send_batches(
    producer: AIOKafkaProducer,
    topic: str,
    partition: int,
    events: Iterable[Envelope],
    add: Callable[[Awaitable[Any]], None],
) -> None:
    """Send `events` to one partition in order, in as many batches as they need.

    `add` is called with a future for each batch, which is done when the broker has acknowledged the batch.
    """
    batch = producer.create_batch()
    for event in events:
        key, value = event.subject.encode(), event.encode()
        if batch.append(timestamp=None, key=key, value=value, headers=_HEADERS) is None:  # the batch is full
            add(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(timestamp=None, key=key, value=value, headers=_HEADERS)  # the first one always fits
    add(await producer.send_batch(batch, topic, partition=partition))
