"""At-least-once batch processor between a topic and its handler: decode, retry, dead-letter.

Faust acknowledges an event as soon as the agent's body is done with it, whatever happened there. So a batch leaves the
batch processor only after its effects are stored and sent, or its records are dead letters. Until then it is retried.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, NamedTuple, NoReturn, TypeVar

from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from contracts.envelope import DeadLetterReason, Envelope, Message, MessageRegistry, UndecodableError, UnreadableBatch
from contracts.topics import Topic
from infrastructure.messaging.broker import partition_of
from infrastructure.messaging.dead_letter_limit import DeadLetterLimit
from infrastructure.messaging.dead_letters import Record, dead_letter_event, dead_letter_key
from infrastructure.observability import metrics
from infrastructure.process.clock import now
from infrastructure.process.failpoints import failpoint
from infrastructure.process.settings import Settings

log = logging.getLogger(__name__)

ATTEMPT_SECONDS: Final = 5.0
"""Deadline of one attempt. A record has none: it is retried until it is done."""
FIRST_PAUSE: Final = 0.05
"""Seconds before the first retry. The pause doubles with each attempt, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE: Final = 2.0
HOLD_SECONDS: Final = 0.5
"""While a batch is held at the dead-letter limit, seconds between two checks whether the process must end."""

M = TypeVar("M", bound=Message)
SendRecord = Callable[[str, bytes | None, bytes], Awaitable[None]]
"""Sends a key and a value to a topic, by the broker's name of it; returns when the broker has acknowledged them."""


class Transient(Exception):
    """A failure that may pass: the same attempt is made again."""


TRANSIENT_ERRORS: Final[tuple[type[BaseException], ...]] = (Transient, TimeoutError, KafkaError, OSError)
"""Errors of Kafka and the network that pass."""


class ReceivedMessage(NamedTuple, Generic[M]):
    """A decoded record: its event, the message in it, and its position."""

    event: Envelope
    message: M
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Handler(Generic[M]):
    """Handling of one topic by a service.

    `handle` gets batches in order. `on_permanent_failure` gets a record that failed permanently, after it was
    dead-lettered, together with the error. Errors of the types in `transient_errors` are retried, in addition to those
    of Kafka and the network.

    `prefilter` is for a service that needs few records of a busy topic: a cheap check of a record's bytes, before it is
    decoded. Records for which it is false are skipped. It may be true for too many records, never for too few.
    """

    topic: Topic
    registry: MessageRegistry[M]
    handle: Callable[[Sequence[ReceivedMessage[M]]], Awaitable[None]]
    on_permanent_failure: Callable[[ReceivedMessage[M], Exception], Awaitable[None]]
    transient_errors: tuple[type[BaseException], ...] = ()
    max_batch_size: int = 100
    prefilter: Callable[[bytes], bool] | None = None


class BatchProcessor(Generic[M]):
    """At-least-once batch processor of one topic: no record is lost, and no bad record blocks its partition.

    `on_shutdown` is called after each failed attempt, and while a batch is held: it must end the process if the app
    stops and the attempt takes too long, so that another process reads the records. Without `limit`, the dead-letter
    limit is that of the settings.
    """

    def __init__(
        self,
        handler: Handler[M],
        settings: Settings,
        *,
        service: str,
        send: SendRecord,
        on_shutdown: Callable[[], None],
        limit: DeadLetterLimit | None = None,
    ) -> None:
        self.handler = handler
        self.service = service
        self.name = settings.topic(handler.topic)
        """The broker's name of the topic."""
        self.partitions = settings.partitions_of(handler.topic)
        self.send = send
        self.on_shutdown = on_shutdown
        self.limit = limit or DeadLetterLimit(settings.dead_letter_limit_per_minute, settings.dead_letter_limit_share)
        self.retried = (*TRANSIENT_ERRORS, *handler.transient_errors)
        self.attempts = 0
        """Number of attempts so far, by which the liveness probe distinguishes a retry from a stall."""
        self._held: str | None = None
        """Why the batch in hand is held at the dead-letter limit; `None` if it is not."""
        metrics.DEAD_LETTER_PAUSED.labels(self.name).set(0)

    def readiness_problem(self) -> str | None:
        """Return a sentence if records are held at the dead-letter limit, else `None`."""
        return self._held

    async def __call__(self, records: Sequence[Record]) -> None:
        """Process `records`, and return when all of them may be acknowledged. Raises only if cancelled."""
        relevant = records
        if self.handler.prefilter is not None:
            relevant = [record for record in records if self._passes_prefilter(record)]
        self.limit.count_seen(len(relevant))
        batch = [received for record in relevant if (received := await self._read(record))]
        if not batch:
            return
        metrics.BATCH_SIZE.labels(self.name).observe(len(batch))
        with metrics.BATCH_SECONDS.labels(self.name).time():
            if await self._attempt(partial(self.handler.handle, batch)) is not None:
                originals = {(record.partition, record.offset): record for record in relevant}
                for received in batch:  # at least one record fails permanently: find it
                    await self._process_one(received, originals[received.partition, received.offset])
        for type_, number in Counter(received.event.type for received in batch).items():
            metrics.RECORDS.labels(self.name, type_).inc(number)

    async def _process_one(self, received: ReceivedMessage[M], original: Record) -> None:
        error = await self._attempt(lambda: self.handler.handle([received]))
        if error is None:
            return
        # The dead letter comes first. In the other order, a crash in between would leave a decided request without one:
        # on redelivery the handler finds the decision, and nothing fails any more.
        await self._dead_letter(original, "failed", f"{type(error).__name__}: {error}", attempts=2)
        await self._attempt(lambda: self.handler.on_permanent_failure(received, error))

    def _passes_prefilter(self, record: Record) -> bool:
        prefilter = self.handler.prefilter
        if prefilter is None or record.value is None or isinstance(record.value, UnreadableBatch):
            return True
        if prefilter(record.value):
            return True
        self.attempts += 1  # for the liveness probe: skipping a record is progress too
        return False

    async def _read(self, record: Record) -> ReceivedMessage[M] | None:
        """Return the decoded record; `None` if it was dead-lettered, ignored or sent to its own partition here."""
        try:
            event = Envelope.decode(record.key, record.value)
            message = self.handler.registry.parse(event)
        except UndecodableError as error:
            if error.reason == "unknown_type" and ".requests." not in self.handler.topic.name:
                metrics.IGNORED.labels(self.name).inc()
            else:
                await self._dead_letter(record, error.reason, error.detail)
            return None
        if partition_of(record.key or b"", self.partitions) != record.partition:
            metrics.REPARTITIONED.labels(self.name).inc()  # e.g. from kcat: its default partitioner is not Java's
            await self._until_done(lambda: self.send(self.name, record.key, record.value or b""))
            failpoint("guard.sent_on")
            return None
        return ReceivedMessage(event, message, record.partition, record.offset)

    async def _dead_letter(self, record: Record, reason: DeadLetterReason, detail: str, attempts: int = 1) -> None:
        if self.limit.reached:
            await self._hold(reason, detail)
        build = partial(
            dead_letter_event, record, reason=reason, detail=detail, service=self.service, attempts=attempts, now=now()
        )

        async def send() -> None:
            event = build()
            key = dead_letter_key(record, event)
            try:
                await self.send(f"{self.name}.dlq", key, event.encode())
            except MessageSizeTooLargeError:  # the topic's limit was changed: without a dead letter nothing goes on
                await self.send(f"{self.name}.dlq", key, build(with_content=False).encode())

        await self._until_done(send)
        failpoint("guard.put_aside")
        self.limit.count_dead_letter()
        metrics.DEAD_LETTERS.labels(self.name, reason).inc()
        log.warning(
            "dead-lettered: %s",
            detail,
            extra={"topic": record.topic, "partition": record.partition, "offset": record.offset, "reason": reason},
        )

    async def _hold(self, reason: DeadLetterReason, detail: str) -> NoReturn:
        """Hold the batch unacknowledged until the process ends: see docs/adr/0015-dead-letter-limit.md."""
        self._held = (
            f"{self.name}: stopped at the dead-letter limit, since {self.limit.dead_lettered} of {self.limit.seen}"
            f" records within a minute were dead-lettered and the next one fails as {reason} ({detail[:200]}): check"
            f" the last deploy and `holdfast dlq list --topic {self.name}`, then restart this worker with the fix, or"
            " with a higher HOLDFAST_DEAD_LETTER_LIMIT_PER_MINUTE"
        )
        metrics.DEAD_LETTER_PAUSED.labels(self.name).set(1)
        log.error("%s", self._held, extra={"topic": self.name, "reason": reason})
        while True:
            self.attempts += 1  # for the liveness probe: holding a batch is not a stall, and a restart would not help
            self.on_shutdown()
            await asyncio.sleep(HOLD_SECONDS)

    async def _until_done(self, act: Callable[[], Awaitable[None]]) -> None:
        error = await self._attempt(act)
        while error is not None:  # nothing helps against a permanent failure of a send but further attempts
            await asyncio.sleep(LONGEST_PAUSE)
            error = await self._attempt(act)

    async def _attempt(self, act: Callable[[], Awaitable[None]]) -> Exception | None:
        """Call `act` until it succeeds and return `None`, or return the error if it fails permanently."""
        pause = FIRST_PAUSE
        while True:
            self.attempts += 1
            try:
                async with asyncio.timeout(ATTEMPT_SECONDS):
                    await act()
            except self.retried as error:
                metrics.RETRIES.labels(self.name, type(error).__name__).inc()
                log.warning("an attempt failed and is retried: %s: %s", type(error).__name__, error)
                self.on_shutdown()
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
                pause = min(pause * 2, LONGEST_PAUSE)
            except Exception as error:  # if it left the agent's body, the record would be acknowledged
                log.exception("an attempt failed permanently")
                return error
            else:
                return None
