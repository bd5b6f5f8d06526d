"""What stands between a topic and the code that acts on it: decode, retry, dead letter.

To Faust, leaving an agent's body is acknowledging, whatever happened in it. So a batch leaves the guard only when its
effects are stored and sent, or its records lie in the dead letters; until then it stays here and is tried again.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from aiokafka.errors import KafkaError

from infrastructure import metrics
from infrastructure.broker import partition_of
from infrastructure.clock import now
from infrastructure.crashpoints import crashpoint
from infrastructure.dead_letters import Record, dead_letter
from infrastructure.envelope import Envelope, Message, Reason, Undecodable, Vocabulary
from infrastructure.topics import Topic

log = logging.getLogger(__name__)

ATTEMPT_SECONDS: Final = 5.0
"""The deadline of one attempt, not of the record: a record stays until it is done."""
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0

M = TypeVar("M", bound=Message)
Send = Callable[[str, bytes | None, bytes], Awaitable[None]]
"""Sends one record to a topic by the broker's name and returns when it is acknowledged."""


class Transient(Exception):
    """What failed may succeed when it is tried again as it is."""


@dataclass(frozen=True, slots=True)
class Received(Generic[M]):
    """A record that could be read: its event, the message in it, and where it stood."""

    event: Envelope
    message: M
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Handler(Generic[M]):
    """How one topic is acted on. `handle` gets batches in order; `fail` one record that fails for good.

    `wanted`, for a reader to whom most of a busy topic says nothing, is a cheap look at a record's bytes: what it does
    not want is passed over unread. It may let more through than is needed, never less.
    """

    topic: Topic
    vocabulary: Vocabulary[M]
    handle: Callable[[Sequence[Received[M]]], Awaitable[None]]
    fail: Callable[[Received[M], Exception], Awaitable[None]]
    transient: tuple[type[BaseException], ...] = ()
    max_batch: int = 100
    wanted: Callable[[bytes], bool] | None = None


class Guard(Generic[M]):
    """Runs a handler over records so that none is lost and none stops the partition for good.

    `leaving` is called after each failed attempt: it ends the process when the app is on its way out, since then the
    records must be read again by another.
    """

    def __init__(
        self,
        handler: Handler[M],
        *,
        service: str,
        name: str,
        partitions: int,
        send: Send,
        leaving: Callable[[], None],
    ) -> None:
        self.handler = handler
        self.service = service
        self.name = name
        self.partitions = partitions
        self.send = send
        self.leaving = leaving
        self.retried = (Transient, TimeoutError, KafkaError, OSError, *handler.transient)
        self.attempts = 0
        """Attempts begun so far: a liveness probe sees by it that a stalled dependency is not a stalled process."""

    async def __call__(self, records: Sequence[Record]) -> None:
        """Returns when all of `records` may be acknowledged; raises only when cancelled."""
        batch = [received for record in records if (received := await self._read(record))]
        if not batch:
            return
        originals = {(record.partition, record.offset): record for record in records}
        metrics.BATCH_SIZE.labels(self.name).observe(len(batch))
        with metrics.BATCH_SECONDS.labels(self.name).time():
            if await self._attempt(lambda: self.handler.handle(batch)) is not None:
                for received in batch:  # something in it fails for good: find out what, one by one
                    await self._alone(received, originals[received.partition, received.offset])
        for received in batch:
            metrics.RECORDS.labels(self.name, received.event.type).inc()

    async def _alone(self, received: Received[M], original: Record) -> None:
        error = await self._attempt(lambda: self.handler.handle([received]))
        if error is None:
            return
        # The letter first: what is decided is not tried again, and who died before its letter would leave none.
        await self._put_aside(original, "failed", f"{type(error).__name__}: {error}", attempts=2)
        await self._attempt(lambda: self.handler.fail(received, error))

    async def _read(self, record: Record) -> Received[M] | None:
        """The message in a record; none when it was dealt with here."""
        wanted = self.handler.wanted
        if wanted is not None and record.value is not None and not wanted(record.value):
            self.attempts += 1  # for the liveness probe: to pass something over is progress too
            return None
        try:
            event = Envelope.decode(record.key, record.value)
            message = self.handler.vocabulary.parse(event)
        except Undecodable as error:
            if error.reason == "unknown_type" and ".requests." not in self.handler.topic.name:
                metrics.IGNORED.labels(self.name).inc()
            else:
                await self._put_aside(record, error.reason, error.detail)
            return None
        if partition_of(event.key, self.partitions) != record.partition:
            metrics.REPARTITIONED.labels(self.name).inc()  # e.g. kcat, whose default partitioner is not Java's
            await self._until_done(lambda: self.send(self.name, record.key, record.value or b""))
            crashpoint("guard.sent_on")
            return None
        return Received(event, message, record.partition, record.offset)

    async def _put_aside(self, record: Record, reason: Reason, detail: str, attempts: int = 1) -> None:
        letter = dead_letter(
            record, reason=reason, detail=detail, service=self.service, attempts=attempts, now=now()
        ).encode()
        await self._until_done(lambda: self.send(f"{self.name}.dlq", record.key, letter))
        crashpoint("guard.put_aside")
        metrics.DEAD_LETTERS.labels(self.name, reason).inc()
        log.warning(
            "put aside: %s",
            detail,
            extra={"topic": record.topic, "partition": record.partition, "offset": record.offset, "reason": reason},
        )

    async def _until_done(self, act: Callable[[], Awaitable[None]]) -> None:
        error = await self._attempt(act)
        while error is not None:  # a send has no permanent failure that we could act on but to go on trying
            await asyncio.sleep(LONGEST_PAUSE)
            error = await self._attempt(act)

    async def _attempt(self, act: Callable[[], Awaitable[None]]) -> Exception | None:
        """None when `act` succeeded, however often it took; the error when it fails for good."""
        pause = FIRST_PAUSE
        while True:
            self.attempts += 1
            try:
                async with asyncio.timeout(ATTEMPT_SECONDS):
                    await act()
            except self.retried as error:
                metrics.RETRIES.labels(self.name, type(error).__name__).inc()
                log.warning("an attempt failed and is made again: %s: %s", type(error).__name__, error)
                self.leaving()
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
                pause = min(pause * 2, LONGEST_PAUSE)
            except Exception as error:  # what left here would acknowledge the record
                log.exception("an attempt failed for good")
                return error
            else:
                return None
