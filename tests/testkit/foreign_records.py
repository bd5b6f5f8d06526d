"""Events as engineers write them by hand, and records as other programs write them to the shop's topics."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer

from contracts.ids import uuid7

USER = "01a1fc22-7d1e-7c3e-9b1d-2f6c1a90e4d7"


def event(type_: str = "cart.add", **fields: Any) -> dict[str, Any]:
    request_id = uuid7()
    data = {"user_id": USER, "product": "85123A", "quantity": 1, **fields.pop("data", {})}
    return {
        "specversion": "1.0",
        "id": f"{USER}/{request_id}/add",
        "source": "/edge",
        "type": f"holdfast.{type_}",
        "subject": USER,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "requestid": request_id,
        "data": data,
        **fields,
    }


Place = tuple[str, int]
"""A topic and a partition."""
FIRST_MILLISECOND = -62_135_596_800_000
"""The beginning of the year 1, before which no `datetime` lies."""


def write(kafka: str, places: Iterable[Place], options: Mapping[str, str] | None = None, **record: Any) -> None:
    """Write one record to each place with librdkafka, and `options` of its own, as any client may."""
    producer = Producer({"bootstrap.servers": kafka, "message.max.bytes": 300_000_000, **(options or {})})
    _produce(producer, places, record)


def write_in_transaction(kafka: str, places: Iterable[Place], *, commit: bool, **record: Any) -> None:
    """Write one record to each place in one transaction, and commit or abort it: its marker is the last offset."""
    producer = begin_transaction(kafka, places, **record)
    (producer.commit_transaction if commit else producer.abort_transaction)(30)


def begin_transaction(kafka: str, places: Iterable[Place], *, timeout_ms: int = 60_000, **record: Any) -> Producer:
    """Write one record to each place in a transaction that stays open."""
    options = {"bootstrap.servers": kafka, "transactional.id": uuid7(), "transaction.timeout.ms": timeout_ms}
    producer = Producer(options)
    producer.init_transactions(30)
    producer.begin_transaction()
    _produce(producer, places, record)
    return producer


def _produce(producer: Producer, places: Iterable[Place], record: Mapping[str, Any]) -> None:
    for topic, partition in places:
        producer.produce(topic, partition=partition, **{"key": b"foreign", "value": b'{"x":1}', **record})
        if len(record.get("value") or b"") > 1_000_000:
            producer.flush(60)
        producer.poll(0)
    assert producer.flush(60) == 0


def write_at(kafka: str, places: Iterable[Place], timestamp: int) -> None:
    """Write one record with this timestamp, in milliseconds since 1970, to each place. Has an event loop of its own."""
    asyncio.run(_write_at(kafka, places, timestamp))


async def _write_at(kafka: str, places: Iterable[Place], timestamp: int) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for topic, partition in places:
            await producer.send_and_wait(topic, b'{"x":1}', b"foreign", partition=partition, timestamp_ms=timestamp)


ODD_HEADERS = [("a", None), ("a", b"\xff\x00"), ("a", b"1"), ("content-type", b"\xfe")]
WRITERS: dict[str, Callable[[str, list[Place]], None]] = {
    **{
        codec: partial(write, options={"compression.type": codec}, value=b'{"x":1}' * 500)
        for codec in ("gzip", "snappy", "lz4", "zstd")
    },
    "200 MB in some kilobytes": partial(write, options={"compression.type": "zstd"}, value=bytes(200_000_000)),
    "committed transaction": partial(write_in_transaction, commit=True),
    "aborted transaction": partial(write_in_transaction, commit=False),
    "headers": partial(write, headers=[*ODD_HEADERS, *((f"h{number}", b"x") for number in range(300))]),
    "empty key": partial(write, key=b""),
    "key that is not text": partial(write, key=b"\xff\xfe\x00"),
    "tombstone": partial(write, value=None),
    "megabyte": partial(write, value=b"\xff" * 1_040_000),
    "key of a megabyte": partial(write, key=b"\xff" * 1_040_000),
    **{
        f"timestamp {number}": partial(write_at, timestamp=number)
        for number in (FIRST_MILLISECOND - 1, -1, 0, -(2**62))
    },
}
"""Records of foreign clients that each topic accepts, by what is odd about them."""
KEYLESS_WRITERS: dict[str, Callable[[str, list[Place]], None]] = {
    "no key": partial(write, key=None),
    "neither key nor value": partial(write, key=None, value=None),
}
"""Records that a compacted topic refuses."""
