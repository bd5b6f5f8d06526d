"""Kafka basics of every process: create topics, compute partitions, check and stop consumers."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from contracts.topics import Topic
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.settings import Settings

log = logging.getLogger(__name__)

WAIT_SECONDS: Final = 60.0
"""Time that `ensure_topics` waits for the broker."""
STOP_SECONDS: Final = 2.0
"""Time that a client has to stop."""


class BrokerUnavailableError(RuntimeError):
    """Kafka did not respond in time."""


class PartitionCountError(BrokerUnavailableError):
    """A topic has another number of partitions than `HOLDFAST_PARTITIONS` says."""


class ConsumerCrashedError(RuntimeError):
    """The fetcher of a consumer has ended. Without this error the consumer would be silent indefinitely."""


def ensure_fetcher_alive(consumer: AIOKafkaConsumer) -> None:
    """Raise `ConsumerCrashedError` if the fetcher of a consumer has ended, which looks like a quiet topic."""
    reading = consumer._fetcher._fetch_task  # noqa: SLF001 - there is no public way
    if reading.done():
        error = None if reading.cancelled() else reading.exception()
        raise ConsumerCrashedError("the fetcher has ended") from error


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer that has no group. Never raises.

    If its fetcher crashed, `stop()` re-raises and leaves sockets open, so the client is closed explicitly.
    """
    try:
        await asyncio.wait_for(consumer.stop(), STOP_SECONDS)
    except Exception as error:  # noqa: BLE001 - the consumer is of no use any more
        log.info("a consumer could not be stopped: %r", error)
        await consumer._client.close()  # noqa: SLF001 - there is no public way


_send = AIOKafkaConnection.send


def _send_or_break(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:  # noqa: FBT001, FBT002 - as aiokafka has it
    """Send a request; treat a connection that was reset as broken, so that aiokafka opens another.

    uvloop raises `RuntimeError` where asyncio raises `OSError`, and aiokafka handles only the latter. The former ends
    its fetcher and its sender, and every batch in hand fails permanently.
    """
    try:
        return _send(self, request, expect_response)
    except KafkaError:
        raise
    except RuntimeError as error:
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"the connection to {self.host}:{self.port} is broken: {error}") from error


setattr(AIOKafkaConnection, "send", _send_or_break)  # noqa: B010 - a patch, and seen as one


MAX_CACHED_KEY_BYTES: Final = 128


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of `key` on a topic with `partitions`: murmur2, the default of Kafka's Java clients."""
    # Keys of foreign records may have a megabyte each, and are not worth a place in memory.
    return _cached_partition(key, partitions) if len(key) <= MAX_CACHED_KEY_BYTES else _partition(key, partitions)


def _partition(key: bytes, partitions: int) -> int:
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


_cached_partition = lru_cache(maxsize=65_536)(_partition)


async def ensure_topics(settings: Settings, topics: Sequence[Topic], *, wait: float = WAIT_SECONDS) -> None:
    """Create those of `topics` that do not exist; return when every partition of all of them has a leader.

    Raises `BrokerUnavailableError` if the broker does not respond within `wait` seconds, and `PartitionCountError` if a
    topic exists with another number of partitions than the settings say.
    """
    try:
        async with asyncio.timeout(wait):
            while True:
                try:
                    await _ensure(settings, topics)
                except (KafkaError, OSError) as error:
                    log.info("waiting for Kafka at %s: %s", settings.kafka, error)
                    await asyncio.sleep(0.2)
                else:
                    return
    except TimeoutError:
        message = f"Kafka at {settings.kafka} did not respond within {wait:.0f} s; is it running?"
        raise BrokerUnavailableError(message) from None


async def _ensure(settings: Settings, topics: Sequence[Topic]) -> None:
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=5_000)
    await admin.start()
    try:
        by_name = {settings.topic(topic): topic for topic in topics}
        existing = set(await admin.list_topics())
        missing = [
            NewTopic(name, settings.partitions_of(topic), settings.replication, topic_configs=topic.config())
            for name, topic in by_name.items()
            if name not in existing
        ]
        if missing:
            answer = await admin.create_topics(missing)
            for name, code, *rest in answer.topic_errors:
                error = for_code(code)
                if code and error is not TopicAlreadyExistsError:  # another process may have been faster
                    raise error(f"{name}: {rest}")
        while not await _have_leaders(admin, settings, by_name):  # noqa: ASYNC110 - Kafka has no notification of it
            await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def _have_leaders(admin: AIOKafkaAdminClient, settings: Settings, topics: Mapping[str, Topic]) -> bool:
    """Return True if every partition has a leader. Raises `PartitionCountError` if there are too many or too few."""
    for found in await admin.describe_topics(list(topics)):
        if found["error_code"] or not found["partitions"] or any(each["leader"] < 0 for each in found["partitions"]):
            return False
        name, count = found["topic"], settings.partitions_of(topics[found["topic"]])
        if len(found["partitions"]) != count:
            raise PartitionCountError(
                f"the topic {name} has {len(found['partitions'])} partitions, and this process expects {count}:"
                " set HOLDFAST_PARTITIONS to the number that the shop's topics were created with"
            )
    return True
