"""The edge's two connections to Kafka: requests out with acknowledgement, and all responses in.

While the broker is unavailable no request is accepted; a probe per second finds out when it is back. Records that were
handed to the producer before are still sent then (the producer is idempotent), so "unavailable" means "perhaps", never
"no".
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from contracts import trace_context
from contracts.cart import REQUEST_REGISTRY, REQUESTS, RESPONSES
from contracts.envelope import HEADERS, Envelope, Message, MessageRegistry, UndecodableError
from contracts.topics import Topic
from infrastructure.messaging.broker import (
    STOP_SECONDS,
    ConsumerCrashedError,
    ensure_fetcher_alive,
    partition_of,
    stop_consumer,
)
from infrastructure.messaging.consumers import IDLE_FETCH_MAX_WAIT_MS, create_consumer, offset_behind
from infrastructure.messaging.kafka_security import client_options
from infrastructure.observability import metrics
from infrastructure.process import clock
from infrastructure.process.failpoints import failpoint
from infrastructure.process.settings import Settings
from rest_api.protocol.effects import Publish

log = logging.getLogger(__name__)

SOURCE: Final = "/edge"
ACK_TIMEOUT_SECONDS: Final = 3.0
PROBE_INTERVAL_SECONDS: Final = 1.0
RETRY_AFTER: Final = 2
"""Seconds after which clients should retry while the broker is unavailable."""

AckCallback = Callable[[bool], None]
"""Called exactly once: with True if Kafka acknowledged the record, with False if it did not in time."""
Records = list[ConsumerRecord]
RecordHandler = Callable[[Records], Awaitable[None]]
M = TypeVar("M", bound=Message)
Check = Callable[[Envelope, Message], None]
"""Raises `UndecodableError` for a message that the reader cannot store."""


def cart_request_envelope(user_id: str, request: Publish) -> Envelope:
    """Return the envelope of a request to the carts.

    The event id is derived from the request, so the same request sent again is the same event.
    """
    return Envelope.of(
        REQUEST_REGISTRY.types[f"holdfast.cart.{request.verb}"],
        source=SOURCE,
        subject=user_id,
        request_id=request.request_id,
        time=clock.now(),
        traceparent=trace_context.child_traceparent(request.traceparent),
        data=request.data,
    )


def request_envelope(message: Message, request_id: str) -> Envelope:
    """Return the envelope of a message to another service, with the key that the message names."""
    return Envelope.of(
        message,
        source=SOURCE,
        request_id=request_id,
        time=clock.now(),
        traceparent=trace_context.child_traceparent(None),
    )


def decode_record(
    record: ConsumerRecord, registry: MessageRegistry[M], check: Check | None = None
) -> tuple[Envelope, M] | None:
    """Return the event of a record and its message.

    A record that holds no acceptable message is counted and logged, and the result is `None`.
    """
    try:
        event = Envelope.decode(record.key, record.value)
        message = registry.parse(event)
        if check is not None:
            check(event, message)
    except UndecodableError as error:
        metrics.IGNORED.labels(record.topic).inc()
        log.warning("%s %s/%s: %s", record.topic, record.partition, record.offset, error)
        return None
    return event, message


class KafkaGateway:
    """The producer of all requests of the edge, and the consumer (without a group) of `cart.responses`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._headers = list(HEADERS.items())
        self._destinations: dict[Topic, tuple[str, int]] = {}
        """The broker's name and the number of partitions of each topic that was published to."""
        self._unacknowledged: OrderedDict[int, tuple[float, AckCallback]] = OrderedDict()
        self._sent = 0
        self._broker_answers = False
        """The broker answered the last probe, or acknowledged a record since."""
        self._producer_failed = False
        """A send failed or timed out, so the producer is to be replaced."""
        self._producer_closed = False
        """The producer is closed, and no other has connected yet."""
        self._has_positions = False
        """The consumer knows where it reads from, so no later response is missed."""
        self._next_offsets: dict[TopicPartition, int] = {}
        """The offset of the next record to read, by partition of `cart.responses`."""
        self._tasks: list[asyncio.Task[None]] = []
        self._handle: RecordHandler
        self._producer: AIOKafkaProducer
        self._consumer: AIOKafkaConsumer

    @property
    def fault(self) -> str | None:
        """The reason for which no request is accepted; `None` while requests are accepted."""
        if not self._has_positions:
            return "the positions in cart.responses are not known yet"
        return None if self._broker_answers and not self._producer_closed else "Kafka does not answer"

    async def start(self, handle: RecordHandler) -> None:
        """Connect; on return `handle` will be called with every later response. The topics must exist.

        A second call does nothing. A failed call leaves nothing behind, and may be repeated. Call `stop` in the end.
        """
        if self._has_positions:
            return
        self._handle = handle
        try:
            await self._connect()
        except BaseException:
            await self._disconnect()
            raise
        self._has_positions = self._broker_answers = True
        self._tasks = [
            asyncio.create_task(_run_forever(loop)) for loop in (self._read, self._time_out_sends, self._probe)
        ]

    async def _connect(self) -> None:
        self._producer, self._consumer = self._new_producer(), self._new_consumer()
        await self._producer.start()
        await self._consumer.start()
        places = all_partitions(self._settings, RESPONSES)
        self._consumer.assign(places)
        self._next_offsets = await self._consumer.end_offsets(places)
        self._seek()  # not `seek_to_end`: the reset to the beginning, which `assign` has begun, may override it

    def _new_consumer(self) -> AIOKafkaConsumer:
        # Only `start` begins at the end: a position that is gone is one before records that were not read yet.
        return create_consumer(
            self._settings,
            client_id=f"{self._settings.prefix}edge-{self._settings.replica}",
            auto_offset_reset="earliest",
            request_timeout_ms=5_000,
            fetch_max_wait_ms=IDLE_FETCH_MAX_WAIT_MS,
            retry_backoff_ms=100,
        )

    def _new_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **client_options(self._settings),
            client_id=f"{self._settings.prefix}edge-{self._settings.replica}",
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            request_timeout_ms=int(ACK_TIMEOUT_SECONDS * 1000),
            retry_backoff_ms=100,
        )

    async def stop(self) -> None:
        """Flush the producer, then disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disconnect()

    async def _disconnect(self) -> None:
        if hasattr(self, "_producer"):
            await _close_producer(self._producer)
            await stop_consumer(self._consumer)

    async def publish(self, event: Envelope, done: AckCallback, topic: Topic = REQUESTS) -> None:
        """Send a request, by default to the carts.

        `done` is called with the result within three seconds, or at once if the broker is unavailable.
        """
        if self.fault:
            done(False)  # noqa: FBT003 - the broker's no
            return
        self._sent += 1
        number = self._sent
        self._unacknowledged[number] = (time.monotonic() + ACK_TIMEOUT_SECONDS, done)
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                destination = self._destinations.get(topic)
                if destination is None:
                    destination = self._settings.topic(topic), self._settings.partitions_of(topic)
                    self._destinations[topic] = destination
                name, partitions = destination
                key = event.subject.encode()
                place = partition_of(key, partitions)  # cached; aiokafka would compute it each time
                future = await self._producer.send(
                    name, event.encode(), key=key, partition=place, headers=self._headers
                )
        except (KafkaError, TimeoutError) as error:
            log.warning("a request could not be sent: %r", error, extra={"requestid": event.requestid})
            self._producer_failed = True
            self._complete(number, acknowledged=False)
            return
        future.add_done_callback(lambda sent: self._acknowledge(number, sent))

    def _acknowledge(self, number: int, sent: "asyncio.Future[object]") -> None:
        if sent.cancelled() or sent.exception() is not None:
            self._producer_failed = True
            self._complete(number, acknowledged=False)
        else:
            failpoint("edge.sent")
            self._broker_answers = True
            self._complete(number, acknowledged=True)

    def _complete(self, number: int, *, acknowledged: bool) -> None:
        waiting = self._unacknowledged.pop(number, None)
        if waiting is None:
            return  # it timed out before
        if not acknowledged:
            metrics.EDGE_UNACKNOWLEDGED.inc()
        waiting[1](acknowledged)

    # ---- loops ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Pass records to the handler; after a failure continue behind the last record that was passed."""
        self._seek()
        while True:
            polled = await self._consumer.getmany(timeout_ms=1_000)
            if not polled:
                await self._ensure_consumer_alive()
            for place, records in polled.items():
                # Before the handler: a record that cannot be handled must not come again.
                self._next_offsets[place] = offset_behind(records[-1])
                await self._handle(records)

    def _seek(self) -> None:
        for place, offset in self._next_offsets.items():
            self._consumer.seek(place, offset)

    async def _ensure_consumer_alive(self) -> None:
        """Replace the consumer if its fetcher crashed, since no response would arrive; continue at its offsets."""
        try:
            ensure_fetcher_alive(self._consumer)
        except ConsumerCrashedError:
            log.exception("the consumer of cart.responses crashed and is replaced")
            consumer = self._new_consumer()
            try:
                await consumer.start()
            except BaseException:
                await stop_consumer(consumer)
                raise
            consumer.assign(list(self._next_offsets))
            dead, self._consumer = self._consumer, consumer
            self._seek()
            await stop_consumer(dead)

    async def _time_out_sends(self) -> None:
        """Time out records without an acknowledgement; the order of sending is the order of the deadlines."""
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            while self._unacknowledged:
                number, (until, _) = next(iter(self._unacknowledged.items()))
                if until > now:
                    break
                self._broker_answers = False
                self._producer_failed = True
                self._complete(number, acknowledged=False)

    async def _probe(self) -> None:
        """Request the broker's metadata once per second, because sends alone show neither a failure nor a recovery.

        Without traffic there are no sends, and while the broker is unavailable none is allowed.
        """
        while True:
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)
            found = await self._recreate_producer() if self._producer_closed else await self._broker_reachable()
            if found and self._producer_failed:
                found = await self._recreate_producer()
            if found and not self._broker_answers:
                log.info("Kafka answers again")
            elif self._broker_answers and not found:
                log.warning("Kafka does not answer")
            self._broker_answers = found

    async def _broker_reachable(self) -> bool:
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                return bool(await self._producer.client.force_metadata_update())
        except (KafkaError, TimeoutError):
            return False

    async def _recreate_producer(self) -> bool:
        """Replace the producer: the broker answers, but records of the old producer did not reach it.

        A producer whose sender task crashed, or whose sequence numbers the broker rejects, never recovers by itself.
        The old one gets time to flush before the new one sends, so that the order of records is kept. Return False if
        the broker is unavailable again: the old producer is closed by then and gets no metadata, so the next probe
        creates another new one.
        """
        self._producer_closed = True
        await _close_producer(self._producer)
        producer = self._new_producer()
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                await producer.start()
        except (KafkaError, TimeoutError):
            await _close_producer(producer)
            return False
        except BaseException:
            await _close_producer(producer)
            raise
        self._producer = producer
        self._producer_closed = self._producer_failed = False
        log.info("the producer was replaced")
        return True


async def _run_forever(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop indefinitely, whatever it raises."""
    while True:
        try:
            await loop()
        except KafkaError as error:
            log.warning("Kafka: %r", error)
        except Exception:
            log.exception("a loop of the gateway failed and is restarted")
        await asyncio.sleep(0.5)


async def _close_producer(producer: AIOKafkaProducer) -> None:
    """Flush a producer for two seconds at most, and disconnect it."""
    try:
        await asyncio.wait_for(producer.stop(), STOP_SECONDS)
    except (KafkaError, TimeoutError):
        # Otherwise it would go on sending while its successor sends.
        await producer._sender.close()  # noqa: SLF001 - `stop` is the public way, and it did not end
        await producer.client.close()


def all_partitions(settings: Settings, topic: Topic) -> list[TopicPartition]:
    """Return all partitions of `topic`. Their number never changes."""
    name = settings.topic(topic)
    return [TopicPartition(name, number) for number in range(settings.partitions_of(topic))]
