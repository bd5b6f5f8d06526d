"""Consumers of every process, and their positions: the one place that says how topics are read.

A consumer reads committed records only. Transactions are for other programs that write to the shop's topics: a record
of an aborted one has no effect, and one of an open transaction waits, with all behind it in its partition, until the
transaction ends. A broker ends each one after `transaction.max.timeout.ms` at the latest.

The last offset of a partition need not hold a record: it may be the marker of a transaction's end, a record of an
aborted one, or one that was compacted or deleted. So nothing waits for the record with a certain offset, but for the
consumer's position: `has_reached`.
"""

from collections.abc import Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from contracts.envelope import UnreadableBatch
from infrastructure.messaging import record_batches  # noqa: F401 - patches aiokafka, for each consumer
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.settings import Settings

ISOLATION_LEVEL: Final = "read_committed"
IDLE_FETCH_MAX_WAIT_MS: Final = 2_500
"""Time that a broker holds a fetch that finds nothing, for a reader whose partitions stay the same. Other requests on
the connection wait for it."""
Offsets = Mapping[TopicPartition, int]


def create_consumer(settings: Settings, **options: Any) -> AIOKafkaConsumer:
    """Return a consumer without a group, which is not started yet."""
    return AIOKafkaConsumer(
        **client_options(settings),
        group_id=None,
        enable_auto_commit=False,
        isolation_level=ISOLATION_LEVEL,
        **options,
    )


def position(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the offset up to which a consumer has read; `None` if the partition is not assigned or has none yet.

    It is known at once, while `consumer.position` may wait for the broker.
    """
    state = _state(consumer, partition)
    return state.position if state is not None and state.has_valid_position else None


def readable_end(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the offset up to which records could be read at the last fetch: the first one of an open transaction."""
    state = _state(consumer, partition)
    if state is None or state.highwater is None:
        return None
    stable = state.lso
    return int(state.highwater if stable is None or stable < 0 else min(stable, state.highwater))


def offset_behind(record: ConsumerRecord) -> int:
    """Return the offset behind a record, or behind all those that an unreadable one stands for."""
    return int(record.value.last_offset if isinstance(record.value, UnreadableBatch) else record.offset) + 1


def has_reached(consumer: AIOKafkaConsumer, partition: TopicPartition, end: int) -> bool:
    """Return whether a consumer has read a partition up to `end` (exclusive), whatever lies before."""
    offset = position(consumer, partition)
    return offset is not None and offset >= end


def unreached(consumer: AIOKafkaConsumer, ends: Offsets) -> set[TopicPartition]:
    """Return the partitions that a consumer has not read up to their ends."""
    return {partition for partition, end in ends.items() if not has_reached(consumer, partition, end)}


def _state(consumer: AIOKafkaConsumer, partition: TopicPartition) -> Any:
    subscription = consumer._subscription.subscription  # noqa: SLF001 - there is no public way that does not wait
    assignment = None if subscription is None else subscription.assignment
    if assignment is None or partition not in assignment.tps:
        return None
    return assignment.state_value(partition)
