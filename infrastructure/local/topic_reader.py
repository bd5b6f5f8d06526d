"""Reading topics from the outside: no consumer group, nothing committed, nothing left behind on the broker."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from infrastructure.local.errors import Fault, WrongUse
from infrastructure.settings import Settings

PATIENCE_SECONDS: Final = 10.0
"""How long the broker may say nothing."""
BUFFERED_RECORDS: Final = 500
"""A partition that is this far ahead of the others waits for them."""


class Record(Protocol):
    """A record as a topic has it; the timestamp is in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic of the shop as the broker has it now."""

    name: str
    cleanup: str
    retention_ms: int | None
    """None where age removes nothing: compacted topics."""
    offsets: Mapping[int, tuple[int, int]]
    """Partition → the first offset that is kept, and the one that the next record gets."""

    @property
    def records(self) -> int:
        """Next less first offset, summed; what compaction has removed in between is counted too."""
        return sum(end - first for first, end in self.offsets.values())

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "topic": self.name,
            "partitions": len(self.offsets),
            "cleanup": self.cleanup,
            "retention_ms": self.retention_ms,
            "records": self.records,
            "offsets": [
                {"partition": number, "first": first, "end": end} for number, (first, end) in self.offsets.items()
            ],
        }


@contextmanager
def patience(settings: Settings) -> Iterator[None]:
    """What the client libraries raise when the broker is away, as one sentence."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it would log is told by the fault
    try:
        yield
    except BrokenPipeError:  # whoever reads our output has seen enough; the broker's lines end as KafkaError
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        why = f" ({error})" if str(error) else ""
        raise Fault(f"Kafka at {settings.kafka} does not answer{why}") from error


@asynccontextmanager
async def consumer(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group. Raises Fault when the broker does not answer, at the start or later."""
    with patience(settings):
        reader = AIOKafkaConsumer(bootstrap_servers=settings.kafka, enable_auto_commit=False)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await reader.start()
            yield reader
        finally:
            await reader.stop()


@asynccontextmanager
async def admin_of(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """The broker's administration. Raises Fault when the broker does not answer, at the start or later."""
    with patience(settings):
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka, request_timeout_ms=int(PATIENCE_SECONDS * 1000))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await admin.start()
            yield admin
        finally:
            await admin.close()


async def partitions(settings: Settings) -> dict[str, list[TopicPartition]]:
    """The partitions of each of this shop's topics, by name. Raises Fault when the broker does not answer."""
    async with admin_of(settings) as admin:
        names = [
            name
            for name in sorted(await admin.list_topics())
            if name.startswith(settings.prefix) and not name.startswith("__")  # the broker's own
        ]
        described = await admin.describe_topics(names) if names else []
    found = {topic["topic"]: sorted(part["partition"] for part in topic["partitions"]) for topic in described}
    return {name: [TopicPartition(name, number) for number in found[name]] for name in names}


async def partitions_of(settings: Settings, topic: str) -> list[TopicPartition]:
    """The partitions of the topic that is given with or without the shop's prefix. Raises WrongUse or Fault."""
    there = await partitions(settings)
    return there[_found(settings, topic, there)]


def _found(settings: Settings, topic: str, there: Mapping[str, object]) -> str:
    for name in (settings.prefix + topic, topic):
        if name in there:
            return name
    raise WrongUse(f"there is no topic {topic!r} here; the shop's topics: {', '.join(there) or 'none yet'}")


async def states(settings: Settings, only: str | None = None) -> list[TopicState]:
    """Every topic of this shop, or the one that is given with or without the prefix. Raises WrongUse or Fault."""
    found = await partitions(settings)
    if only is not None:
        name = _found(settings, only, found)
        found = {name: found[name]}
    if not found:
        return []
    configs = await _configs(settings, list(found))
    async with consumer(settings) as reader:
        every = [partition for those in found.values() for partition in those]
        reader.assign(every)
        first = await reader.beginning_offsets(every)
        end = await reader.end_offsets(every)
    return [
        TopicState(
            name,
            configs[name]["cleanup.policy"],
            _age(configs[name]),
            {p.partition: (first[p], end[p]) for p in those},
        )
        for name, those in found.items()
    ]


def _age(config: Mapping[str, str]) -> int | None:
    retention = int(config["retention.ms"])
    return retention if "delete" in config["cleanup.policy"] and retention >= 0 else None


async def _configs(settings: Settings, names: Sequence[str]) -> dict[str, dict[str, str]]:
    wanted = {"cleanup.policy": None, "retention.ms": None}
    async with admin_of(settings) as admin:
        answers = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in names]
        )
    return {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for answer in answers
        for resource in answer.resources
    }


async def kept(
    reader: AIOKafkaConsumer, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> AsyncIterator[Record]:
    """The records from `starts` up to, not including, `ends`, across partitions in the order of their timestamps.

    Each partition keeps its own order, also where its timestamps do not. Raises TimeoutError when nothing comes in
    for `PATIENCE_SECONDS`.
    """
    for partition, offset in starts.items():
        reader.seek(partition, offset)
    waiting: dict[TopicPartition, deque[Record]] = {p: deque() for p in starts if starts[p] < ends[p]}
    unread = set(waiting)
    reader.pause(*(p for p in starts if p not in unread))
    while True:
        while all(waiting[partition] for partition in unread):
            heads = [partition for partition, records in waiting.items() if records]
            if not heads:
                return
            yield waiting[min(heads, key=lambda p: (waiting[p][0].timestamp, p))].popleft()
        reader.resume(*(p for p in unread if len(waiting[p]) < BUFFERED_RECORDS))
        reader.pause(*(p for p in unread if len(waiting[p]) >= BUFFERED_RECORDS))
        for partition, records in (await _some(reader)).items():
            waiting[partition].extend(record for record in records if record.offset < ends[partition])
        for partition in [p for p in unread if await reader.position(p) >= ends[p]]:
            unread.remove(partition)
            reader.pause(partition)


async def _some(reader: AIOKafkaConsumer) -> Mapping[TopicPartition, Sequence[Record]]:
    """What comes in next, at least one record."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (batch := await reader.getmany(timeout_ms=500)):
            pass
    return cast("Mapping[TopicPartition, Sequence[Record]]", batch)


async def coming(reader: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> AsyncIterator[Record]:
    """The records from `ends` on, as they come in; never ends by itself."""
    for partition, offset in ends.items():
        reader.seek(partition, offset)
    reader.resume(*ends)
    while True:
        batch = await reader.getmany(timeout_ms=500)
        for record in sorted((r for records in batch.values() for r in records), key=lambda r: r.timestamp):
            yield record
