"""Writer of records to topics for tools: unchanged, acknowledged, to the partition that Java's clients would choose."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaProducer

from infrastructure.local.topic_reader import PATIENCE_SECONDS, patience
from infrastructure.settings import Settings
from infrastructure.topics import DEAD_LETTER_MAX_BYTES

AT_ONCE: Final = 500
"""Records that may be sent without an acknowledgement before `send` waits for them."""


class Writer:
    """Producer that sends records in order; `acknowledged` counts the records that the broker has stored."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self.acknowledged = 0
        self._producer = producer
        self._sent: list[asyncio.Future[object]] = []

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
        self._sent.append(await self._producer.send(topic, value, key, partition=fixed, headers=[*headers]))
        if len(self._sent) >= AT_ONCE:
            await self.flush()

    async def flush(self) -> None:
        """Wait until all records sent so far are acknowledged."""
        sent, self._sent = self._sent, []
        for each in sent:
            await each
            self.acknowledged += 1


@asynccontextmanager
async def writer(settings: Settings) -> AsyncIterator[Writer]:
    """Open a writer and flush it at the end. Raises `Fault` if the broker does not answer."""
    with patience(settings):
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka,
            acks="all",
            enable_idempotence=True,  # a retry neither doubles nor reorders
            linger_ms=5,
            max_request_size=DEAD_LETTER_MAX_BYTES + 64 * 1024,
            request_timeout_ms=int(PATIENCE_SECONDS * 1000),
        )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await producer.start()
            opened = Writer(producer)
            yield opened
            await opened.flush()
        finally:
            await producer.stop()
