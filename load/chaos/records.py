"""Faults that are made of records: delivered twice, fed back, or such as engineers send by mistake."""

import asyncio
import json
import random
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaProducer, TopicPartition

from infrastructure.broker import partition_of
from infrastructure.clock import now
from infrastructure.envelope import rfc3339
from infrastructure.ids import uuid7
from infrastructure.local import topic_reader
from infrastructure.settings import Settings
from load.chaos.truth import Bad

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUESTS: Final = ("cart.requests.v1", "inventory.requests.v1")
RESPONSES: Final = ("inventory.responses.v1", "cart.responses.v1")
ORDER_REQUESTS: Final = ("orders.requests.v1", "payments.requests.v1", "deliveries.requests.v1")
ORDER_EVENTS: Final = ("orders.events.v1", "payments.events.v1", "deliveries.events.v1")
TOPICS: Final = (*REQUESTS, *RESPONSES, *ORDER_REQUESTS, *ORDER_EVENTS)

Offsets = Mapping[TopicPartition, int]


@asynccontextmanager
async def _producer(settings: Settings) -> "AsyncIterator[AIOKafkaProducer]":
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka, max_request_size=1_100_000, request_timeout_ms=10_000, acks="all"
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def ends(settings: Settings, topics: Sequence[str] = TOPICS) -> Offsets:
    """The offset that the next record of each partition gets."""
    return (await span(settings, topics))[1]


async def span(settings: Settings, topics: Sequence[str]) -> tuple[Offsets, Offsets]:
    """The offset of the first record that is kept of each partition, and the one that the next record gets."""
    found = await topic_reader.partitions(settings)
    every = [partition for topic in topics for partition in found.get(topic, ())]
    async with topic_reader.consumer(settings) as reader:
        reader.assign(every)
        return await reader.beginning_offsets(every), await reader.end_offsets(every)


async def kept(settings: Settings, since: Offsets) -> list[topic_reader.Record]:
    """The records that came after `since`, up to now."""
    async with topic_reader.consumer(settings) as reader:
        every = list(since)
        reader.assign(every)
        until = await reader.end_offsets(every)
        return [record async for record in topic_reader.kept(reader, since, until)]


async def replay(settings: Settings, since: Offsets, topics: Collection[str] = TOPICS) -> int:
    """Put everything after `since` on its own partition again, in its old order; how many records that were."""
    # Each once: what an earlier replay brought is there twice, and would double with every replay.
    places = {partition: offset for partition, offset in since.items() if partition.topic in topics}
    records = {(record.topic, record.key, record.value): record for record in reversed(await kept(settings, places))}
    async with _producer(settings) as producer:
        sent = [await _again(producer, record) for record in reversed(records.values())]
        await asyncio.gather(*sent)
    return len(records)


async def duplicate(settings: Settings, seconds: float) -> int:
    """For a time, put each record of the topics of requests there once more; how many those were."""
    first = await ends(settings, (*REQUESTS, *ORDER_REQUESTS))
    ours: set[tuple[str, int, int]] = set()
    count, end = 0, time.monotonic() + seconds
    async with topic_reader.consumer(settings) as reader, _producer(settings) as producer:
        reader.assign(list(first))
        for partition, offset in first.items():
            reader.seek(partition, offset)
        while time.monotonic() < end:
            for records in (await reader.getmany(timeout_ms=100)).values():
                for record in records:
                    if (record.topic, record.partition, record.offset) not in ours:
                        stands = await (await _again(producer, record))
                        ours.add((record.topic, stands.partition, stands.offset))
                        count += 1
    return count


async def _again(producer: AIOKafkaProducer, record: topic_reader.Record) -> Any:
    return await producer.send(record.topic, record.value, record.key, partition=record.partition)


def strangers_event(user: str, type_: str = "cart.add", **fields: Any) -> dict[str, Any]:
    """A request as an engineer writes it by hand: the contract's event, with `fields` in place of its own."""
    request_id = uuid7()
    data = {"user_id": user, "product": "85123A", "quantity": 1, **fields.pop("data", {})}
    return {
        "specversion": "1.0",
        "id": f"{user}/{request_id}/{type_.rpartition('.')[2]}",
        "source": "/edge",
        "type": f"holdfast.{type_}",
        "subject": user,
        "time": rfc3339(now()),
        "datacontenttype": "application/json",
        "requestid": request_id,
        "data": data,
        **fields,
    }


NESTED: Final = b"[" * 10_000
"""The one thing that is put on a topic of responses: whatever else cannot be read there, the shop has written."""


def poison(user: str) -> list[tuple[str, str, bytes | None, bytes]]:
    """Topic, what is wrong, key and value of records that nobody can act on; they lie in the way of `user`."""
    key = user.encode()

    def event(*arguments: str, **fields: Any) -> bytes:
        return json.dumps(strangers_event(user, *arguments, **fields)).encode()

    bad = [
        ("not JSON", key, b"hello"),
        ("not UTF-8", key, b"\xff\xfe\x00"),
        ("empty", key, b""),
        ("no key", None, event()),
        ("the key of another", b"somebody-else", event()),
        ("the data of another", key, event(data={"user_id": "somebody-else"})),
        ("a type that there is not", key, event("cart.steal")),
        ("a source that may not", key, event(source="/payment")),
        ("no event", key, b'{"hello":"world"}'),
        ("a quantity below zero", key, event(data={"quantity": -1})),
        ("a quantity past all numbers", key, event(data={"quantity": 2**63})),
        ("not a number", key, event().replace(b'"quantity": 1', b'"quantity": NaN')),
        ("900 KB", key, b'"' + b"x" * 900_000 + b'"'),
    ]
    return [
        *(("cart.requests.v1", *each) for each in bad),
        ("inventory.requests.v1", "not JSON", key, b"hello"),
        ("inventory.requests.v1", "a source that may not", key, event("inventory.remove", source="/payments")),
        ("inventory.responses.v1", "nested too deep", key, NESTED),
    ]


async def put_poison(settings: Settings, users: Sequence[str], chance: random.Random) -> list[Bad]:
    """Put one of each kind in the way of one of `users`; where they stand."""
    placed = []
    async with _producer(settings) as producer:
        for user in users:
            for topic, what, key, value in poison(user):
                partition = partition_of(key, settings.partitions) if key else chance.randrange(settings.partitions)
                stands = await producer.send_and_wait(topic, value, key, partition=partition)
                placed.append(Bad(topic, stands.partition, stands.offset, what))
    return placed


async def put_astray(settings: Settings, users: Sequence[str], products: Sequence[str]) -> int:
    """Put a good request for each of `users` on a wrong partition, as kcat's own partitioner does; how many."""
    async with _producer(settings) as producer:
        for user, product in zip(users, products, strict=False):
            event = strangers_event(user, data={"product": product})
            astray = (partition_of(user.encode(), settings.partitions) + 1) % settings.partitions
            await producer.send_and_wait(REQUESTS[0], json.dumps(event).encode(), user.encode(), partition=astray)
    return min(len(users), len(products))
