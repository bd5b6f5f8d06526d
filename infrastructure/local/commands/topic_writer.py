"""Writer of records to topics for tools: unchanged, acknowledged, to the partition that Java's clients would choose."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaProducer

from contracts.topics import MAX_DEAD_LETTER_BYTES
from infrastructure.local.commands.topic_reader import TIMEOUT_SECONDS, convert_broker_errors
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.settings import Settings

MAX_UNACKNOWLEDGED: Final = 500
"""Records that may be sent without an acknowledgement before `send` waits for them."""


class TopicWriter:
    """Producer that sends records in order; `acknowledged` counts the records that the broker has stored."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self.acknowledged = 0
        self._producer = producer
        self._unacknowledged: list[asyncio.Future[object]] = []

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int,
    ) -> None:
        """Send one record; a record without a key goes to `partition`. Call `flush` to wait for acknowledgements."""
        # The library's partitioner is murmur2. It would scatter records without a key; these stay in their partition.
        fixed = partition if key is None else None
        self._unacknowledged.append(await self._producer.send(topic, value, key, partition=fixed, headers=[*headers]))
        if len(self._unacknowledged) >= MAX_UNACKNOWLEDGED:
            await self.flush()

    async def flush(self) -> None:
        """Wait until all records sent so far are acknowledged."""
        sent, self._unacknowledged = self._unacknowledged, []
        for each in sent:
            await each
            self.acknowledged += 1


@asynccontextmanager
async def open_writer(settings: Settings) -> AsyncIterator[TopicWriter]:
    """Open a writer and flush it at the end. Raises `StackError` if the broker does not answer."""
    with convert_broker_errors(settings):
        producer = AIOKafkaProducer(
            **client_options(settings),
            acks="all",
            enable_idempotence=True,  # a retry neither doubles nor reorders
            linger_ms=5,
            max_request_size=MAX_DEAD_LETTER_BYTES + 64 * 1024,
            request_timeout_ms=int(TIMEOUT_SECONDS * 1000),
        )
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await producer.start()
            opened = TopicWriter(producer)
            yield opened
            await opened.flush()
        finally:
            await producer.stop()
