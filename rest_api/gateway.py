"""The edge's two lines to Kafka: requests out with the broker's acknowledgement, and every response in.

While the broker is away nothing new is accepted; a look at it each second tells when it is back. What it took without
saying so is still sent when it is (the producer is idempotent), so "unavailable" means "perhaps", never "no".
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from cart_service.messages import REQUESTS, RESPONSES
from infrastructure import metrics
from infrastructure.broker import STOP_SECONDS, ConsumerDiedError, check_reading, hang_up, partition_of
from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import HEADERS, Envelope
from infrastructure.settings import Settings
from infrastructure.topics import Topic

log = logging.getLogger(__name__)

ACK_SECONDS: Final = 3.0
PROBE_SECONDS: Final = 1.0
RETRY_AFTER: Final = 2
"""Seconds that a client is asked to wait while the broker is away."""

Done = Callable[[bool], None]
"""Called exactly once: True when Kafka has the record, False when it did not say so in time."""
Records = list[ConsumerRecord]
Handle = Callable[[Records], Awaitable[None]]


class Gateway:
    """The producer of every request of the edge, and the groupless consumer of `cart.responses`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._headers = list(HEADERS.items())
        self._unacknowledged: OrderedDict[int, tuple[float, Done]] = OrderedDict()
        self._sent = 0
        self._answers = False
        self._stuck = False
        self._closed = False
        """The producer is gone, and no other has come to Kafka yet."""
        self._positioned = False
        self._next: dict[TopicPartition, int] = {}
        """Where to read on in cart.responses."""
        self._tasks: list[asyncio.Task[None]] = []
        self._handle: Handle
        self._producer: AIOKafkaProducer
        self._consumer: AIOKafkaConsumer

    @property
    def fault(self) -> str | None:
        """Why nothing new is accepted; None when all is well."""
        if not self._positioned:
            return "the positions in cart.responses are not known yet"
        return None if self._answers and not self._closed else "Kafka does not answer"

    async def start(self, handle: Handle) -> None:
        """Connect, and return when `handle` will be given every later response. The topics exist.

        Once it has begun, to begin again changes nothing; when it fails, nothing of it is left.
        """
        if self._positioned:
            return
        self._handle = handle
        try:
            await self._connect()
        except BaseException:
            await self._disconnect()
            raise
        self._positioned = self._answers = True
        self._tasks = [asyncio.create_task(_keep(loop)) for loop in (self._read, self._expire, self._probe)]

    async def _connect(self) -> None:
        self._producer, self._consumer = self._new_producer(), self._new_consumer()
        await self._producer.start()
        await self._consumer.start()
        self._consumer.assign(partitions(self._settings, RESPONSES))
        await self._consumer.seek_to_end()
        self._next = {place: await self._consumer.position(place) for place in self._consumer.assignment()}

    def _new_consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._settings.kafka,
            client_id=f"{self._settings.prefix}edge-{self._settings.replica}",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            request_timeout_ms=5_000,
            retry_backoff_ms=100,
        )

    def _new_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka,
            client_id=f"{self._settings.prefix}edge-{self._settings.replica}",
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            request_timeout_ms=int(ACK_SECONDS * 1000),
            retry_backoff_ms=100,
        )

    async def stop(self) -> None:
        """Send what is under way, then disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disconnect()

    async def _disconnect(self) -> None:
        if hasattr(self, "_producer"):
            await _stop(self._producer)
            await hang_up(self._consumer)

    async def publish(self, event: Envelope, done: Done, topic: Topic = REQUESTS) -> None:
        """Send a request, to the carts or elsewhere.

        `done` is told what became of it within three seconds, or at once when the broker is away.
        """
        if self.fault:
            done(False)  # noqa: FBT003 - the broker's no
            return
        self._sent += 1
        number = self._sent
        self._unacknowledged[number] = (time.monotonic() + ACK_SECONDS, done)
        try:
            async with asyncio.timeout(ACK_SECONDS):
                name = self._settings.topic(topic)
                # It is cached; aiokafka would compute it each time.
                place = partition_of(event.key, self._settings.partitions_of(topic))
                future = await self._producer.send(
                    name, event.encode(), key=event.key, partition=place, headers=self._headers
                )
        except (KafkaError, TimeoutError) as error:
            log.warning("a request could not be sent: %r", error, extra={"requestid": event.requestid})
            self._stuck = True
            self._finish(number, acknowledged=False)
            return
        future.add_done_callback(lambda sent: self._acknowledge(number, sent))

    def _acknowledge(self, number: int, sent: "asyncio.Future[object]") -> None:
        if sent.cancelled() or sent.exception() is not None:
            self._stuck = True
            self._finish(number, acknowledged=False)
        else:
            crashpoint("edge.sent")
            self._answers = True
            self._finish(number, acknowledged=True)

    def _finish(self, number: int, *, acknowledged: bool) -> None:
        waiting = self._unacknowledged.pop(number, None)
        if waiting is None:
            return  # the three seconds were over before
        if not acknowledged:
            metrics.EDGE_UNACKNOWLEDGED.inc()
        waiting[1](acknowledged)

    # ---- loops ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Hand on what comes; begun again, from behind what was handed on last."""
        self._seek()
        while True:
            polled = await self._consumer.getmany(timeout_ms=1_000)
            if not polled:
                await self._hearing()
            for place, records in polled.items():
                self._next[place] = records[-1].offset + 1  # before: what cannot be handled must not come for ever
                await self._handle(records)

    def _seek(self) -> None:
        for place, offset in self._next.items():
            self._consumer.seek(place, offset)

    async def _hearing(self) -> None:
        """Begin with a new consumer where the old one was, if that hears nothing any more: all would wait in vain."""
        try:
            check_reading(self._consumer)
        except ConsumerDiedError:
            log.exception("the consumer of cart.responses has died, and another takes its place")
            consumer = self._new_consumer()
            try:
                await consumer.start()
            except BaseException:
                await hang_up(consumer)
                raise
            consumer.assign(list(self._next))
            dead, self._consumer = self._consumer, consumer
            self._seek()
            await hang_up(dead)

    async def _expire(self) -> None:
        """Give up what has waited three seconds; the order of sending is the order of the deadlines."""
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            while self._unacknowledged:
                number, (until, _) = next(iter(self._unacknowledged.items()))
                if until > now:
                    break
                self._answers = False
                self._stuck = True
                self._finish(number, acknowledged=False)

    async def _probe(self) -> None:
        """Ask the broker for its metadata each second: it may be away while nobody sends, and back while nobody may."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            found = await self._renewed() if self._closed else await self._found()
            if found and self._stuck:
                found = await self._renewed()
            if found and not self._answers:
                log.info("Kafka answers again")
            elif self._answers and not found:
                log.warning("Kafka does not answer")
            self._answers = found

    async def _found(self) -> bool:
        try:
            async with asyncio.timeout(ACK_SECONDS):
                return bool(await self._producer.client.force_metadata_update())
        except (KafkaError, TimeoutError):
            return False

    async def _renewed(self) -> bool:
        """Begin with a new producer: the broker is there, and yet the old one did not bring its records to it.

        A producer whose sender has died, or whose numbers the broker does not take, never recovers by itself. The old
        one gets time to send what it has, and only then does anything new go out, so that no order is turned around.
        False when the broker is gone again: the old one is closed by then and learns nothing any more, so the next look
        is another new one.
        """
        self._closed = True
        await _stop(self._producer)
        producer = self._new_producer()
        try:
            async with asyncio.timeout(ACK_SECONDS):
                await producer.start()
        except (KafkaError, TimeoutError):
            await _stop(producer)
            return False
        except BaseException:
            await _stop(producer)
            raise
        self._producer = producer
        self._closed = self._stuck = False
        log.info("a new producer sends")
        return True


async def _keep(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever, whatever it raises."""
    while True:
        try:
            await loop()
        except KafkaError as error:
            log.warning("Kafka: %r", error)
        except Exception:
            log.exception("a loop of the gateway failed and begins again")
        await asyncio.sleep(0.5)


async def _stop(producer: AIOKafkaProducer) -> None:
    """Send what it has, as far as that can be done in two seconds, and disconnect."""
    try:
        await asyncio.wait_for(producer.stop(), STOP_SECONDS)
    except (KafkaError, TimeoutError):
        # It would go on sending behind its successor's back.
        await producer._sender.close()  # noqa: SLF001 - `stop` is the public way, and it did not end
        await producer.client.close()


def partitions(settings: Settings, topic: Topic) -> list[TopicPartition]:
    """Return every partition of `topic`; their number never changes."""
    name = settings.topic(topic)
    return [TopicPartition(name, number) for number in range(settings.partitions_of(topic))]
