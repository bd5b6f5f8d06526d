"""Hands a notice to the edges: a record on `cart.responses`, which each brings to the sockets it has of that shopper.

Whoever has no socket open finds it in the list of `GET /v1/notifications`.
"""

import asyncio
import contextlib
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from cart_service import messages as cart
from infrastructure import trace
from infrastructure.broker import ensure_topics
from infrastructure.envelope import HEADERS, Envelope
from infrastructure.settings import Settings
from notification_service.teller import Notice

MAX_CAUSE: Final = 64
STOP_SECONDS: Final = 2.0


def frame_event(notice: Notice) -> Envelope:
    """The event: the same for the same notice."""
    told = cart.Notice(
        user_id=notice.user_id,
        notice_id=notice.notice_id,
        template=notice.template,
        title=notice.words.title,
        body=notice.words.body,
        cause=notice.cause if len(notice.cause) <= MAX_CAUSE else None,
    )
    return Envelope(
        id=f"{notice.user_id}/{notice.notice_id}/notice",
        source="/notifications",
        type=told.TYPE,
        subject=notice.user_id,
        time=notice.accepted_at,
        traceparent=trace.child(notice.traceparent),
        data=told.model_dump(mode="json", exclude_none=True),
    )


class PushPort:
    """Publishes to the sockets' topic; connects when the first notice comes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topic = settings.topic(cart.RESPONSES)
        self._headers = list(HEADERS.items())
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def hand_over(self, notice: Notice) -> None:
        """Return when Kafka has stored it; raises what Kafka raises."""
        event = frame_event(notice)
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
                    bootstrap_servers=self.settings.kafka,
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
