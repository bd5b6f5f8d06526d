"""One-off reads of topics up to their current end, for audits.

They use no consumer group, so nothing is committed and no worker is disturbed.
"""

from collections.abc import AsyncGenerator, Collection
from datetime import datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infrastructure.messaging.broker import BrokerUnavailableError
from infrastructure.messaging.consumers import create_consumer, position, unreached
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.settings import Settings

PATIENCE_SECONDS: Final = 10.0
"""Time that the broker may take to respond."""
MAX_POLL_RECORDS: Final = 200
"""Records that are decoded at once: about a millisecond of work."""


async def read_topic(
    settings: Settings, names: Collection[str], *, partition: int | None = None, since: datetime | None = None
) -> AsyncGenerator[Any, None]:
    """Yield the records of the topics with these broker names. Topics that do not exist are skipped.

    Reads all partitions, or only `partition` (of a topic with a single partition always that one), from the beginning
    or from `since`, up to the end offsets at the time of the call. Records are ordered within a partition only. Each
    has `topic`, `partition`, `offset`, `timestamp` (milliseconds), `key` and `value`. Raises `BrokerUnavailableError`.
    """
    reader = create_consumer(settings, auto_offset_reset="earliest", request_timeout_ms=int(PATIENCE_SECONDS * 1000))
    try:
        partitions = await _partitions(settings, names, partition)
        if not partitions:
            return
        await reader.start()
        reader.assign(partitions)
        ends = await reader.end_offsets(partitions)
        starts = await _starts(reader, partitions, since)
        # `seek_to_beginning` would be overridden by the reset to the end after `assign`.
        for tp, start in starts.items():
            reader.seek(tp, start)
        # Partitions without a record from `since` on are assigned too, but not read.
        unread = {tp: ends[tp] for tp, start in starts.items() if start < ends[tp]}
        reader.pause(*(tp for tp in partitions if tp not in unread))
        silent = 0.0
        while unread:
            before = {tp: position(reader, tp) for tp in unread}
            batch = await reader.getmany(timeout_ms=500, max_records=MAX_POLL_RECORDS)
            has_moved = any(position(reader, tp) != offset for tp, offset in before.items())
            silent = 0.0 if batch or has_moved else silent + 0.5
            if silent > PATIENCE_SECONDS:
                raise BrokerUnavailableError(f"Kafka at {settings.kafka} no longer responds")
            for tp, records in batch.items():
                for record in records:
                    if record.offset < ends[tp]:
                        yield record
            for tp in unread.keys() - unreached(reader, unread):
                del unread[tp]
                reader.pause(tp)
    except (KafkaError, OSError) as error:
        raise BrokerUnavailableError(f"Kafka at {settings.kafka} does not respond: {error}") from error
    finally:
        await reader.stop()


async def _starts(
    reader: AIOKafkaConsumer, partitions: Collection[TopicPartition], since: datetime | None
) -> dict[TopicPartition, int]:
    """Return the first offset of each partition from `since` on; partitions without such a record are left out."""
    if since is None or since.timestamp() <= 0:  # Kafka has no search for times before 1970
        return dict(await reader.beginning_offsets(partitions))
    found = await reader.offsets_for_times(dict.fromkeys(partitions, int(since.timestamp() * 1000)))
    return {partition: at.offset for partition, at in found.items() if at}


async def _partitions(settings: Settings, names: Collection[str], partition: int | None) -> list[TopicPartition]:
    admin = AIOKafkaAdminClient(
        **client_options(settings), request_timeout_ms=int(PATIENCE_SECONDS * 1000), retry_backoff_ms=100
    )
    try:
        await admin.start()
        there = sorted(set(await admin.list_topics()) & set(names))
        described = await admin.describe_topics(there) if there else []
    finally:
        await admin.close()
    return [
        TopicPartition(topic["topic"], part["partition"])
        for topic in described
        for part in topic["partitions"]
        if partition is None or part["partition"] == partition % len(topic["partitions"])
    ]
