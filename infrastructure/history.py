"""What topics have kept, read once from the first record to the last there is now: for a service that audits itself.

There is no consumer group, so nothing is committed and no worker is disturbed.
"""

from collections.abc import AsyncIterator, Collection
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infrastructure.broker import BrokerAwayError
from infrastructure.settings import Settings

PATIENCE_SECONDS: Final = 10.0
"""How long the broker may say nothing."""


async def kept(settings: Settings, names: Collection[str]) -> AsyncIterator[Any]:
    """The records of the topics with these names at the broker; one that is not there has none.

    Each partition comes in its order, partitions in any. The end is what it is at the start. A record has `topic`,
    `partition`, `offset`, `timestamp` (milliseconds), `key` and `value`. Raises `BrokerAwayError`.
    """
    reader = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka, enable_auto_commit=False, request_timeout_ms=int(PATIENCE_SECONDS * 1000)
    )
    try:
        places = await _places(settings, names)
        if not places:
            return
        await reader.start()
        reader.assign(places)
        starts, ends = await reader.beginning_offsets(places), await reader.end_offsets(places)
        for place in places:  # `seek_to_beginning` loses against the reset to the end that `assign` begins
            reader.seek(place, starts[place])
        unread = {place for place in places if starts[place] < ends[place]}
        silent = 0.0
        while unread:
            batch = await reader.getmany(timeout_ms=500)
            silent = 0.0 if batch else silent + 0.5
            if silent > PATIENCE_SECONDS:
                raise BrokerAwayError(f"Kafka at {settings.kafka} has stopped to answer")
            for place, records in batch.items():
                for record in records:
                    if record.offset < ends[place]:
                        yield record
            for place in [place for place in unread if await reader.position(place) >= ends[place]]:
                unread.remove(place)
                reader.pause(place)
    except (KafkaError, OSError) as error:
        raise BrokerAwayError(f"Kafka at {settings.kafka} does not answer: {error}") from error
    finally:
        await reader.stop()


async def _places(settings: Settings, names: Collection[str]) -> list[TopicPartition]:
    admin = AIOKafkaAdminClient(
        bootstrap_servers=settings.kafka, request_timeout_ms=int(PATIENCE_SECONDS * 1000), retry_backoff_ms=100
    )
    try:
        await admin.start()
        there = sorted(set(await admin.list_topics()) & set(names))
        described = await admin.describe_topics(there) if there else []
    finally:
        await admin.close()
    return [TopicPartition(topic["topic"], part["partition"]) for topic in described for part in topic["partitions"]]
