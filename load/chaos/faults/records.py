"""Faults made of records: duplicated, replayed, or invalid as an engineer might send them by mistake."""

import asyncio
import json
import random
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaProducer, TopicPartition

from contracts.envelope import rfc3339
from contracts.ids import uuid7
from infrastructure.local.commands import topic_reader
from infrastructure.messaging.broker import partition_of
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.clock import now
from infrastructure.process.settings import Settings
from load.chaos.checks.observed_state import PlantedRecord

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
        **client_options(settings), max_request_size=1_100_000, request_timeout_ms=10_000, acks="all"
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def end_offsets(settings: Settings, topics: Sequence[str] = TOPICS) -> Offsets:
    """Return the end offset of each partition."""
    return (await offset_range(settings, topics))[1]


async def offset_range(settings: Settings, topics: Sequence[str]) -> tuple[Offsets, Offsets]:
    """Return the beginning and end offsets of each partition."""
    found = await topic_reader.list_partitions(settings)
    every = [partition for topic in topics for partition in found.get(topic, ())]
    async with topic_reader.open_consumer(settings) as reader:
        reader.assign(every)
        return await reader.beginning_offsets(every), await reader.end_offsets(every)


async def read_records(settings: Settings, since: Offsets) -> list[topic_reader.Record]:
    """Return the records from the offsets `since` up to now."""
    async with topic_reader.open_consumer(settings) as reader:
        every = list(since)
        reader.assign(every)
        until = await reader.end_offsets(every)
        return [record async for record in topic_reader.read_range(reader, since, until)]


async def replay_records(settings: Settings, since: Offsets, topics: Collection[str] = TOPICS) -> int:
    """Append all records after `since` to their own partitions again, in order, and return how many."""
    # Each record once: those of an earlier replay are there twice, and would double with every replay.
    starts = {partition: offset for partition, offset in since.items() if partition.topic in topics}
    records = {
        (record.topic, record.key, record.value): record for record in reversed(await read_records(settings, starts))
    }
    async with _producer(settings) as producer:
        sent = [await _resend(producer, record) for record in reversed(records.values())]
        await asyncio.gather(*sent)
    return len(records)


async def duplicate_requests(settings: Settings, seconds: float) -> int:
    """Append each new record of the request topics once more, for `seconds`, and return how many."""
    first = await end_offsets(settings, (*REQUESTS, *ORDER_REQUESTS))
    duplicates: set[tuple[str, int, int]] = set()
    count, end = 0, time.monotonic() + seconds
    async with topic_reader.open_consumer(settings) as reader, _producer(settings) as producer:
        reader.assign(list(first))
        for partition, offset in first.items():
            reader.seek(partition, offset)
        while time.monotonic() < end:
            for records in (await reader.getmany(timeout_ms=100)).values():
                for record in records:
                    if (record.topic, record.partition, record.offset) not in duplicates:
                        position = await (await _resend(producer, record))
                        duplicates.add((record.topic, position.partition, position.offset))
                        count += 1
    return count


async def _resend(producer: AIOKafkaProducer, record: topic_reader.Record) -> Any:
    return await producer.send(record.topic, record.value, record.key, partition=record.partition)


def foreign_event(user: str, type_: str = "cart.add", **fields: Any) -> dict[str, Any]:
    """Return a hand-written request: the contract's event, with `fields` replacing its own."""
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


DEEPLY_NESTED: Final = b"[" * 10_000
"""The only invalid value that is written to response topics: any other invalid record there comes from the shop."""


def poison_records(user: str) -> list[tuple[str, str, bytes | None, bytes]]:
    """Return topic, description, key and value of invalid records, in the same partitions as records of `user`."""
    key = user.encode()

    def event(*arguments: str, **fields: Any) -> bytes:
        return json.dumps(foreign_event(user, *arguments, **fields)).encode()

    invalid = [
        ("not JSON", key, b"hello"),
        ("not UTF-8", key, b"\xff\xfe\x00"),
        ("empty", key, b""),
        ("no key", None, event()),
        ("another user's key", b"somebody-else", event()),
        ("another user's data", key, event(data={"user_id": "somebody-else"})),
        ("an unknown type", key, event("cart.steal")),
        ("a source that is not allowed", key, event(source="/payment")),
        ("not an event", key, b'{"hello":"world"}'),
        ("a negative quantity", key, event(data={"quantity": -1})),
        ("a quantity beyond 64 bits", key, event(data={"quantity": 2**63})),
        ("not a number", key, event().replace(b'"quantity": 1', b'"quantity": NaN')),
        ("900 KB", key, b'"' + b"x" * 900_000 + b'"'),
    ]
    return [
        *(("cart.requests.v1", *each) for each in invalid),
        ("inventory.requests.v1", "not JSON", key, b"hello"),
        ("inventory.requests.v1", "a source that is not allowed", key, event("inventory.remove", source="/payments")),
        ("inventory.responses.v1", "nested too deeply", key, DEEPLY_NESTED),
    ]


async def write_poison(settings: Settings, users: Sequence[str], chance: random.Random) -> list[PlantedRecord]:
    """Write one invalid record of each kind for each of `users`, and return their positions."""
    planted = []
    async with _producer(settings) as producer:
        for user in users:
            for topic, description, key, value in poison_records(user):
                partition = partition_of(key, settings.partitions) if key else chance.randrange(settings.partitions)
                position = await producer.send_and_wait(topic, value, key, partition=partition)
                planted.append(PlantedRecord(topic, position.partition, position.offset, description))
    return planted


async def write_to_wrong_partition(settings: Settings, users: Sequence[str], products: Sequence[str]) -> int:
    """Write a valid request for each of `users` to a wrong partition, as kcat's partitioner does; return how many."""
    async with _producer(settings) as producer:
        for user, product in zip(users, products, strict=False):
            event = foreign_event(user, data={"product": product})
            astray = (partition_of(user.encode(), settings.partitions) + 1) % settings.partitions
            await producer.send_and_wait(REQUESTS[0], json.dumps(event).encode(), user.encode(), partition=astray)
    return min(len(users), len(products))
