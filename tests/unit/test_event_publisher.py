"""The publisher of many events: their order in each partition, their batches, and what a failed batch does."""

import asyncio
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import NotLeaderForPartitionError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from contracts.envelope import HEADERS, Envelope
from contracts.topics import Topic
from infrastructure.messaging.broker import partition_of
from infrastructure.messaging.event_publisher import EventPublisher
from infrastructure.process.settings import Settings
from tests.testkit.envelopes import EVENT

TOPIC = Topic("inventory.responses.v1", keyed_by="user")


class FakeProducer:
    """A producer whose batches are acknowledged or fail when the test says so."""

    def __init__(self, batch_size: int = 16_384) -> None:
        self.batch_size = batch_size
        self.sent: dict[int, list[bytes]] = defaultdict(list)
        self.headers: set[Any] = set()
        self.batches: list[asyncio.Future[None]] = []

    def create_batch(self) -> BatchBuilder:
        """Return a real builder of a batch."""
        return BatchBuilder(self.batch_size, 0)

    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[None]:
        """Keep the records of a batch."""
        assert topic == "mine.inventory.responses.v1"
        records = MemoryRecords(bytes(batch._build()))
        while (records_of_batch := records.next_batch()) is not None:
            for record in records_of_batch:
                self.sent[partition].append(record.value)
                self.headers.add(tuple(record.headers))
        self.batches.append(asyncio.get_running_loop().create_future())
        return self.batches[-1]


def _events(number: int) -> list[Envelope]:
    return [EVENT.model_copy(update={"subject": f"user-{each % 50}", "id": f"e{each}"}) for each in range(number)]


def _publisher(producer: FakeProducer, settings: Settings) -> EventPublisher:
    app = SimpleNamespace(producer=SimpleNamespace(_ensure_producer=lambda: producer))
    return EventPublisher(cast("Any", app), settings)


@pytest.mark.parametrize("batch_size", [100, 2_000, 1_000_000], ids=["one record each", "several", "one batch"])
async def test_events_arrive_in_order_on_the_partition_of_their_key(batch_size: int) -> None:
    settings, producer, events = Settings(prefix="mine.", partitions=4), FakeProducer(batch_size), _events(200)
    publishing = asyncio.create_task(_publisher(producer, settings).publish(TOPIC, events))
    await asyncio.sleep(0)
    while not publishing.done():
        for batch in producer.batches:
            if not batch.done():
                batch.set_result(None)
        await asyncio.sleep(0)
    await publishing
    assert producer.sent == {
        partition: [event.encode() for event in events if partition_of(event.key, 4) == partition]
        for partition in {partition_of(event.key, 4) for event in events}
    }
    assert producer.headers == {tuple(HEADERS.items())}


async def test_publishing_lasts_until_every_batch_is_acknowledged_and_raises_an_error() -> None:
    settings, producer = Settings(prefix="mine.", partitions=4), FakeProducer()
    publishing = asyncio.create_task(_publisher(producer, settings).publish(TOPIC, _events(200)))
    while len(producer.batches) < 4:
        await asyncio.sleep(0)
    producer.batches[0].set_exception(NotLeaderForPartitionError())
    for batch in producer.batches[1:-1]:
        batch.set_result(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not publishing.done()
    producer.batches[-1].set_result(None)
    with pytest.raises(NotLeaderForPartitionError):
        await publishing


async def test_nothing_is_sent_for_no_events() -> None:
    await _publisher(FakeProducer(), Settings(prefix="mine.", partitions=4)).publish(TOPIC, [])
