"""A topic with a dozen events, for the commands that read, replay and repair topics."""

from datetime import UTC, datetime, timedelta

from aiokafka import AIOKafkaProducer

from contracts.envelope import Envelope
from contracts.topics import Topic
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.settings import Settings

EVENTS = Topic("tools.events.v1", keyed_by="user", retention=timedelta(days=7))
SECRET = "a-secret-of-a-test-that-is-long-enough"


def event(number: int, user: str, type_: str = "held") -> Envelope:
    return Envelope(
        id=f"event-{number}",
        source="/cart",
        type=f"holdfast.cart.{type_}",
        subject=user,
        time=datetime(2026, 11, 21, tzinfo=UTC),
        requestid=f"r{number}",
        data={"user_id": user, "number": number},
    )


EVENTS_SENT = [event(number, f"user-{number % 5}", "held" if number % 2 else "refused") for number in range(12)]


async def send(settings: Settings, *records: tuple[bytes | None, bytes | None]) -> None:
    """Records of one topic, a millisecond after another."""
    await ensure_topics(settings, [EVENTS])
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka)
    await producer.start()
    try:
        for timestamp, (key, value) in enumerate(records, start=int(datetime.now(UTC).timestamp() * 1000)):
            await producer.send_and_wait(settings.topic(EVENTS), value, key=key, timestamp_ms=timestamp)
    finally:
        await producer.stop()
