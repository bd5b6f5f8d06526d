"""Projector of topics into a read model: decode records, skip foreign ones, apply them, store the position.

The positions in the topics are stored with the rows in one transaction, and every row is guarded by a version, so a
record that is read twice, or by two edges, changes nothing.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from contracts.envelope import Envelope, MessageRegistry
from contracts.topics import Topic
from infrastructure.messaging.broker import ensure_fetcher_alive, stop_consumer
from infrastructure.messaging.consumers import IDLE_FETCH_MAX_WAIT_MS, create_consumer, offset_behind, unreached
from infrastructure.observability import metrics
from infrastructure.process.settings import Settings
from rest_api.kafka.gateway import Check, all_partitions, decode_record
from rest_api.read_models.store import UNAVAILABLE_ERRORS, ReadPosition, Store

log = logging.getLogger(__name__)

MAX_RECORDS: Final = 500


@dataclass(frozen=True, slots=True)
class Event:
    """A record that was understood."""

    topic: Topic
    envelope: Envelope
    message: Any
    """The message, of one of the types in the topic's registry."""


Topics = Mapping[Topic, MessageRegistry[Any]]
"""The topics to read, each with the messages that it may contain."""
Apply = Callable[[Sequence[Event], Sequence[ReadPosition]], Awaitable[None]]
"""Stores some events in order, and with them the positions after them; there may be positions without events."""


class Projector:
    """One consumer without a group, of a few topics, and the read model that it feeds."""

    def __init__(  # noqa: PLR0913 - the ways in which the read models differ
        self,
        settings: Settings,
        store: Store,
        name: str,
        topics: Topics,
        apply: Apply,
        *,
        check: Check | None = None,
        skips_tombstones: bool = False,
    ) -> None:
        """`name` is the subject of the read model, for its faults; `check` rejects messages that cannot be stored.

        With `skips_tombstones` a record without a value is skipped in silence; else it is reported as malformed.
        """
        self._settings = settings
        self._store = store
        self._name = name
        self._topics = {settings.topic(topic): (topic, vocabulary) for topic, vocabulary in topics.items()}
        self._apply = apply
        self._check = check
        self._skips_tombstones = skips_tombstones
        self._lag: dict[TopicPartition, int] | None = None
        """The ends of the partitions at the start, as long as they have not been reached; `None` before the start."""

    @property
    def topic_names(self) -> list[str]:
        """The broker's names of the topics."""
        return list(self._topics)

    @property
    def fault(self) -> str | None:
        """The reason for which the read model is incomplete; `None` once it has caught up with the start."""
        if self._lag is None:
            return f"the read model of {self._name} has not begun"
        lag = len(self._lag)
        return f"the read model of {self._name} is behind in {lag} partitions" if lag else None

    async def run(self, positions: Sequence[ReadPosition] | None = None) -> None:
        """Read from `positions`, by default the stored ones, and from the beginning where there is none.

        Raises when Kafka or Postgres is unavailable; run it again then.
        """
        if positions is None:
            positions = await self._store.positions(self.topic_names)
        consumer = create_consumer(
            self._settings,
            client_id=f"{self._settings.prefix}edge-{self._settings.replica}-{self._name.replace(' ', '-')}",
            auto_offset_reset="earliest",
            max_poll_records=MAX_RECORDS,
            fetch_max_wait_ms=IDLE_FETCH_MAX_WAIT_MS,
            retry_backoff_ms=200,
        )
        await consumer.start()
        try:
            await self._seek(consumer, positions)
            while True:
                polled = await consumer.getmany(timeout_ms=1_000, max_records=MAX_RECORDS)
                if polled:
                    await self._project(polled)
                else:
                    ensure_fetcher_alive(consumer)
                self._update_lag(consumer)
        finally:
            await stop_consumer(consumer)

    async def _seek(self, consumer: AIOKafkaConsumer, positions: Sequence[ReadPosition]) -> None:
        assigned = [found for topic, _ in self._topics.values() for found in all_partitions(self._settings, topic)]
        consumer.assign(assigned)
        ends = await consumer.end_offsets(assigned)
        stored = {TopicPartition(topic, number): offset for topic, number, offset in positions}
        lag = dict(ends)
        for partition in assigned:
            offset = stored.get(partition, 0)
            if offset > ends[partition]:
                log.warning("%s/%s is shorter than the stored position: read again from the beginning", *partition)
                await self._store.delete_position(partition.topic, partition.partition)
                offset = 0
            consumer.seek(partition, offset)
            if offset >= ends[partition]:
                del lag[partition]
        self._lag = lag

    def _update_lag(self, consumer: AIOKafkaConsumer) -> None:
        """Remove the partitions that have been read up to their ends, even if no record was before the end."""
        if self._lag:
            behind = unreached(consumer, self._lag)
            self._lag = {partition: end for partition, end in self._lag.items() if partition in behind}

    async def _project(self, polled: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        positions = [(topic, number, offset_behind(records[-1])) for (topic, number), records in polled.items()]
        for (topic, _), records in polled.items():
            metrics.EDGE_PROJECTED.labels(topic).inc(len(records))
        events = [event for records in polled.values() for event in self._decode(records)]
        try:
            await self._apply(events, positions)
        except UNAVAILABLE_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001 - one message that cannot be stored must not stop the others
            log.warning("the read model of %s: storing events one by one, since %r", self._name, error)
            await self._apply_one_by_one(events, positions)

    async def _apply_one_by_one(self, events: Sequence[Event], positions: Sequence[ReadPosition]) -> None:
        """Store each event by itself, without those that fail permanently, then the positions behind them."""
        for event in events:
            try:
                await self._apply([event], positions[:0])
            except UNAVAILABLE_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                metrics.IGNORED.labels(self._settings.topic(event.topic)).inc()
                log.error("%s %s cannot be stored: %s", event.topic.name, event.envelope.id, error)  # noqa: TRY400
        await self._apply([], positions)

    def _decode(self, records: Iterable[ConsumerRecord]) -> Iterable[Event]:
        for record in records:
            if self._skips_tombstones and record.value is None:
                continue
            topic, vocabulary = self._topics[record.topic]
            decoded = decode_record(record, vocabulary, self._check)
            if decoded is not None:
                yield Event(topic, *decoded)


class Versioned(Protocol):
    """A message that replaces those with the same key and a lower version."""

    @property
    def version(self) -> int:
        """Version of the message."""


V = TypeVar("V", bound=Versioned)
K = TypeVar("K", bound=Hashable)


def newest(messages: Iterable[V], key: Callable[[V], K]) -> dict[K, V]:
    """Return the message with the highest version for each key; of equal versions the first."""
    found: dict[K, V] = {}
    for message in messages:
        known = found.get(key(message))
        if known is None or known.version < message.version:
            found[key(message)] = message
    return found
