"""Push notices: records on `cart.responses`, which every edge forwards to its sockets of that shopper.

Shoppers without an open socket find the notice in `GET /v1/notifications`.
"""

import asyncio
import contextlib
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from contracts import cart, trace_context
from contracts.envelope import HEADERS, Envelope
from infrastructure.messaging.broker import ensure_topics
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.settings import Settings
from notification_service.sender import Notice

MAX_CAUSE: Final = 64
STOP_SECONDS: Final = 2.0


def notice_event(notice: Notice) -> Envelope:
    """Build the event of a notice. The same notice always gives the same event."""
    message = cart.Notice(
        user_id=notice.user_id,
        notice_id=notice.notice_id,
        template=notice.template,
        title=notice.text.title,
        body=notice.text.body,
        cause=notice.cause if len(notice.cause) <= MAX_CAUSE else None,
    )
    return Envelope.of(
        message,
        source="/notifications",
        subject=notice.user_id,
        event_id=f"{notice.user_id}/{notice.notice_id}/notice",
        time=notice.accepted_at,
        traceparent=trace_context.child_traceparent(notice.traceparent),
    )


class PushPort:
    """Port to the sockets' topic. It connects on the first notice."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topic = settings.topic(cart.RESPONSES)
        self._headers = list(HEADERS.items())
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def send(self, notice: Notice) -> None:
        """Publish a notice; returns after Kafka has stored it, and raises Kafka's errors."""
        event = notice_event(notice)
        producer = await self._connected()
        await producer.send_and_wait(self.topic, event.encode(), key=event.key, headers=self._headers)

    async def close(self) -> None:
        """Disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(producer.stop(), STOP_SECONDS)

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                await ensure_topics(self.settings, (cart.RESPONSES,))
                producer = AIOKafkaProducer(
                    **client_options(self.settings),
                    client_id=f"{self.settings.prefix}{self.settings.replica}",
                    acks="all",
                    enable_idempotence=True,
                    request_timeout_ms=5_000,
                )
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer
