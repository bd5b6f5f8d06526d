"""Publishes the rows of the outbox to Kafka, in order, and deletes those that Kafka has.

A row is deleted after Kafka has acknowledged it, so a crash in between publishes it twice, equal. One process at a time
publishes; the others wait for its lock, which ends with its session.
"""

import asyncio
import contextlib
from functools import partial
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from account_service.settings import Settings
from account_service.store import SERVICE, OutboxRow, Store
from contracts import notifications
from contracts.accounts import EVENTS
from contracts.envelope import HEADERS
from infrastructure.messaging.broker import ensure_topics
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.failpoints import failpoint
from infrastructure.storage import postgres

TOPICS: Final = (EVENTS, notifications.REQUESTS)
POLL_SECONDS: Final = 0.5
"""Seconds between two polls without a `wake`: how late rows of another process are published."""
BATCH: Final = 100
STOP_SECONDS: Final = 2.0
_HEADERS: Final = list(HEADERS.items())


class OutboxPublisher:
    """The background loop. Call `wake` after a commit to publish at once."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._woken = asyncio.Event()
        self._connect = partial(postgres.connect, settings, SERVICE)

    def wake(self) -> None:
        """Publish now, because rows were added."""
        self._woken.set()

    async def run(self) -> None:
        """Publish until cancelled. Raise when Kafka or Postgres is unavailable; run it again then."""
        async with await self._connect() as lock:
            while not await postgres.try_lock(lock, f"{self._settings.schema_name(SERVICE)} outbox"):  # noqa: ASYNC110 - Postgres' lock
                await asyncio.sleep(POLL_SECONDS)
            await ensure_topics(self._settings, TOPICS)
            producer = AIOKafkaProducer(
                **client_options(self._settings),
                client_id=f"{self._settings.prefix}{self._settings.replica}",
                acks="all",
                enable_idempotence=True,
                request_timeout_ms=5_000,
            )
            try:
                await producer.start()
                while True:
                    self._woken.clear()
                    while await self._publish_batch(producer):
                        pass
                    await lock.execute("SELECT 1")  # without this session another process may publish
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_SECONDS):
                            await self._woken.wait()
            finally:
                with contextlib.suppress(KafkaError, TimeoutError):
                    await asyncio.wait_for(producer.stop(), STOP_SECONDS)

    async def _publish_batch(self, producer: AIOKafkaProducer) -> bool:
        """Publish some rows; return whether there may be more."""
        async with self._store.transaction() as transaction:
            rows = await transaction.outbox(BATCH)
        if not rows:
            return False
        # Sent in this order; the producer keeps the order of each partition.
        sent = [await self._send(producer, row) for row in rows]
        await asyncio.gather(*sent)
        failpoint("accounts.published")
        async with self._store.transaction() as transaction:
            await transaction.delete_outbox([row.seq for row in rows])
        return len(rows) == BATCH

    async def _send(self, producer: AIOKafkaProducer, row: OutboxRow) -> "asyncio.Future[object]":
        topic = self._settings.prefix + row.topic
        sent: asyncio.Future[object] = await producer.send(
            topic, row.value.encode(), key=row.subject.encode(), headers=_HEADERS
        )
        return sent
