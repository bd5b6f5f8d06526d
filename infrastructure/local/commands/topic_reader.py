"""Reader of topics for tools: joins no consumer group, commits no offset and leaves nothing on the broker."""

import asyncio
import base64
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, cast

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from contracts.envelope import UnreadableBatch, rfc3339
from infrastructure.local.errors import StackError, UsageError
from infrastructure.messaging import record_batches
from infrastructure.messaging.consumers import create_consumer, has_reached, position
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.settings import Settings

TIMEOUT_SECONDS: Final = 10.0
"""Seconds to wait for the broker."""
NO_TIMESTAMP: Final = -1
BUFFERED_RECORDS: Final = 500
"""Buffered records from which a partition is paused until the other partitions have caught up."""


class Record(Protocol):
    """Record of a topic; the timestamp is in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class TopicState:
    """State of a topic on the broker."""

    name: str
    cleanup_policy: str
    """Value of `cleanup.policy`."""
    retention_ms: int | None
    """Milliseconds that records are kept; `None` if records are not removed by age."""
    offsets: Mapping[int, tuple[int, int]]
    """Partition → first available offset, and offset of the next record."""

    @property
    def records(self) -> int:
        """Number of records by offsets; records that compaction has removed are counted too."""
        return sum(end - first for first, end in self.offsets.values())

    def as_json(self) -> dict[str, Any]:
        """Return the object that `holdfast topics --json` prints."""
        return {
            "topic": self.name,
            "partitions": len(self.offsets),
            "cleanup": self.cleanup_policy,
            "retention_ms": self.retention_ms,
            "records": self.records,
            "offsets": [
                {"partition": number, "first": first, "end": end} for number, (first, end) in self.offsets.items()
            ],
        }


def format_timestamp(milliseconds: int) -> str:
    """Return a record's timestamp as `rfc3339` does, or `timestamp -62135596800001` if no year from 1 to 9999 has it.

    The timestamp is the sender's and can be any number; -1 says that the record has none.
    """
    if milliseconds == NO_TIMESTAMP:
        return "no timestamp"
    try:
        return rfc3339(datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds))
    except OverflowError:
        return f"timestamp {milliseconds}"


def decode_value(value: bytes | None) -> dict[str, Any]:
    """Return a record's value as JSON, else as text, both named `value`; else in base64, named `value_base64`.

    `unreadable` says which records could not be decoded, and why.
    """
    if value is None:
        return {"value": None}
    if isinstance(value, UnreadableBatch):
        return {"value": None, "unreadable": value.explanation}
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}
    try:
        return {"value": json.loads(text)}
    except (ValueError, RecursionError):
        return {"value": text}


@contextmanager
def convert_broker_errors(settings: Settings) -> Iterator[None]:
    """Convert the client libraries' errors for an unreachable broker into a `StackError`."""
    # The `StackError` reports what the library would log, and the command what cannot be read.
    for name in ("aiokafka", record_batches.__name__):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    except BrokenPipeError:  # the reader of standard output is gone; a lost broker connection raises KafkaError
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        reason = f" ({error})" if str(error) else ""
        raise StackError(f"Kafka at {settings.kafka} does not answer{reason}") from error


@asynccontextmanager
async def open_consumer(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer without a group. Raises `StackError` if the broker does not answer, at the start or later."""
    with convert_broker_errors(settings):
        reader = create_consumer(settings, auto_offset_reset="earliest")
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await reader.start()
            yield reader
        finally:
            await reader.stop()


@asynccontextmanager
async def open_admin_client(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Open an admin client. Raises `StackError` if the broker does not answer, at the start or later."""
    with convert_broker_errors(settings):
        admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=int(TIMEOUT_SECONDS * 1000))
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await admin.start()
            yield admin
        finally:
            await admin.close()


async def list_partitions(settings: Settings) -> dict[str, list[TopicPartition]]:
    """Return the partitions of each of this shop's topics, by name. Raise `StackError` if the broker is unavailable."""
    async with open_admin_client(settings) as admin:
        names = [
            name
            for name in sorted(await admin.list_topics())
            if name.startswith(settings.prefix) and not name.startswith("__")  # internal topics
        ]
        described = await admin.describe_topics(names) if names else []
    found = {topic["topic"]: sorted(part["partition"] for part in topic["partitions"]) for topic in described}
    return {name: [TopicPartition(name, number) for number in found[name]] for name in names}


async def find_partitions(settings: Settings, topic: str) -> list[TopicPartition]:
    """Return the partitions of a topic, named with or without the shop's prefix. Raise `UsageError` or `StackError`."""
    existing = await list_partitions(settings)
    return existing[_full_name(settings, topic, existing)]


def _full_name(settings: Settings, topic: str, existing: Mapping[str, object]) -> str:
    for name in (settings.prefix + topic, topic):
        if name in existing:
            return name
    raise UsageError(f"there is no topic {topic!r}; the shop's topics: {', '.join(existing) or 'none yet'}")


async def read_topic_states(settings: Settings, only: str | None = None) -> list[TopicState]:
    """Return the state of every topic of this shop, or only of one, named with or without the shop's prefix.

    Raises `UsageError` if there is no such topic, `StackError` if the broker does not answer.
    """
    found = await list_partitions(settings)
    if only is not None:
        name = _full_name(settings, only, found)
        found = {name: found[name]}
    if not found:
        return []
    configs = await _configs(settings, list(found))
    async with open_consumer(settings) as reader:
        every = [partition for of_topic in found.values() for partition in of_topic]
        reader.assign(every)
        first = await reader.beginning_offsets(every)
        end = await reader.end_offsets(every)
    return [
        TopicState(
            name,
            configs[name]["cleanup.policy"],
            _retention_ms(configs[name]),
            {p.partition: (first[p], end[p]) for p in of_topic},
        )
        for name, of_topic in found.items()
    ]


def _retention_ms(config: Mapping[str, str]) -> int | None:
    retention = int(config["retention.ms"])
    return retention if "delete" in config["cleanup.policy"] and retention >= 0 else None


async def _configs(settings: Settings, names: Sequence[str]) -> dict[str, dict[str, str]]:
    settings_to_read = {"cleanup.policy": None, "retention.ms": None}
    async with open_admin_client(settings) as admin:
        answers = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name, settings_to_read) for name in names]
        )
    return {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for answer in answers
        for resource in answer.resources
    }


async def read_range(
    reader: AIOKafkaConsumer, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> AsyncIterator[Record]:
    """Yield the records from `starts` to `ends` (exclusive), merged across partitions by timestamp.

    Each partition keeps its own order, even where its timestamps are out of order. Raises `TimeoutError` if no record
    arrives for `TIMEOUT_SECONDS`.
    """
    for partition, offset in starts.items():
        reader.seek(partition, offset)
    waiting: dict[TopicPartition, deque[Record]] = {p: deque() for p in starts if starts[p] < ends[p]}
    unread = set(waiting)  # partitions whose end the position has not reached yet, whatever lies before it
    reader.pause(*(p for p in starts if p not in unread))
    while True:
        while all(waiting[partition] for partition in unread):
            heads = [partition for partition, records in waiting.items() if records]
            if not heads:
                return
            yield waiting[min(heads, key=lambda p: (waiting[p][0].timestamp, p))].popleft()
        reader.resume(*(p for p in unread if len(waiting[p]) < BUFFERED_RECORDS))
        reader.pause(*(p for p in unread if len(waiting[p]) >= BUFFERED_RECORDS))
        for partition, records in (await _next_batch(reader, unread)).items():
            waiting[partition].extend(record for record in records if record.offset < ends[partition])
        for partition in [p for p in unread if has_reached(reader, p, ends[p])]:
            unread.remove(partition)
            reader.pause(partition)


async def _next_batch(
    reader: AIOKafkaConsumer, partitions: Collection[TopicPartition]
) -> Mapping[TopicPartition, Sequence[Record]]:
    """Return the next records; none if only the position in one of `partitions` has moved, as at an empty batch.

    Raises `TimeoutError` if nothing happens for `TIMEOUT_SECONDS`.
    """
    before = {each: position(reader, each) for each in partitions}
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            batch = await reader.getmany(timeout_ms=100)
            if batch or any(position(reader, each) != offset for each, offset in before.items()):
                return cast("Mapping[TopicPartition, Sequence[Record]]", batch)


async def read_new(reader: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> AsyncIterator[Record]:
    """Yield the records from `ends` on as they arrive; never ends by itself."""
    for partition, offset in ends.items():
        reader.seek(partition, offset)
    reader.resume(*ends)
    while True:
        batch = await reader.getmany(timeout_ms=500)
        for record in sorted((r for records in batch.values() for r in records), key=lambda r: r.timestamp):
            yield record
