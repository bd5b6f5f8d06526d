"""What every process needs of Kafka before it works: the topics, and to know where a key belongs."""

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

from infrastructure.settings import Settings
from infrastructure.topics import Topic

log = logging.getLogger(__name__)

WAIT_SECONDS: Final = 60.0
STOP_SECONDS: Final = 2.0


class BrokerAwayError(RuntimeError):
    """Kafka did not answer in time."""


class PartitionCountError(BrokerAwayError):
    """A topic has another number of partitions than `HOLDFAST_PARTITIONS` says."""


class ConsumerDiedError(RuntimeError):
    """A consumer reads nothing any more, and would not have said so."""


def check_reading(consumer: AIOKafkaConsumer) -> None:
    """Raise `ConsumerDiedError` when the fetcher of a consumer has ended: it looks like a quiet topic, for ever."""
    reading = consumer._fetcher._fetch_task  # noqa: SLF001 - there is no public way
    if reading.done():
        error = None if reading.cancelled() else reading.exception()
        raise ConsumerDiedError("the fetcher has ended") from error


async def hang_up(consumer: AIOKafkaConsumer) -> None:
    """Disconnect a consumer without a group; one that has died raises what it died of, and would keep its lines."""
    try:
        await asyncio.wait_for(consumer.stop(), STOP_SECONDS)
    except Exception as error:  # noqa: BLE001 - whatever it was: there is nothing more to lose
        log.info("a consumer did not end well: %r", error)
        await consumer._client.close()  # noqa: SLF001 - there is no public way


_send = AIOKafkaConnection.send


def _send_or_break(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:  # noqa: FBT001, FBT002 - as aiokafka has it
    """Send; a line that has been reset is broken, and another is made.

    uvloop says `RuntimeError` where asyncio says `OSError`, and aiokafka knows the second only: of the first its
    fetcher and its sender die, and every batch at hand fails for good.
    """
    try:
        return _send(self, request, expect_response)
    except KafkaError:
        raise
    except RuntimeError as error:
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"the line to {self.host}:{self.port} is broken: {error}") from error


setattr(AIOKafkaConnection, "send", _send_or_break)  # noqa: B010 - a patch, and seen as one


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of `key` on a topic with `partitions`: murmur2, the default of Kafka's Java clients."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


async def ensure_topics(settings: Settings, topics: Sequence[Topic], *, wait: float = WAIT_SECONDS) -> None:
    """Make those of `topics` that do not exist, and return when every partition of all of them has a leader.

    Waits up to `wait` seconds for the broker. Raises `BrokerAwayError` when it does not come, and
    `PartitionCountError` when a topic exists with another number of partitions than the settings say.
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
        message = f"Kafka at {settings.kafka} did not answer within {wait:.0f} s; is it running?"
        raise BrokerAwayError(message) from None


async def _ensure(settings: Settings, topics: Sequence[Topic]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka, request_timeout_ms=5_000)
    await admin.start()
    try:
        wanted = {settings.topic(topic): topic for topic in topics}
        known = set(await admin.list_topics())
        missing = [
            NewTopic(name, settings.partitions_of(topic), settings.replication, topic_configs=topic.config())
            for name, topic in wanted.items()
            if name not in known
        ]
        if missing:
            answer = await admin.create_topics(missing)
            for name, code, *rest in answer.topic_errors:
                error = for_code(code)
                if code and error is not TopicAlreadyExistsError:  # another process may have been quicker
                    raise error(f"{name}: {rest}")
        while not await _led(admin, settings, wanted):  # noqa: ASYNC110 - Kafka has no event for it
            await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def _led(admin: AIOKafkaAdminClient, settings: Settings, topics: Mapping[str, Topic]) -> bool:
    """Return whether every partition has a leader; raise `PartitionCountError` when there are too many or too few."""
    for found in await admin.describe_topics(list(topics)):
        if found["error_code"] or not found["partitions"] or any(each["leader"] < 0 for each in found["partitions"]):
            return False
        name, count = found["topic"], settings.partitions_of(topics[found["topic"]])
        if len(found["partitions"]) != count:
            raise PartitionCountError(
                f"the topic {name} has {len(found['partitions'])} partitions, and this process expects {count}:"
                " set HOLDFAST_PARTITIONS to the number that the shop's topics were made with"
            )
    return True
