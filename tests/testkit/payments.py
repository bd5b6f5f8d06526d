"""A payment provider over real HTTP, and a client of the topics of payment and delivery, for their tests."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from contracts.envelope import Envelope, Message
from contracts.topics import Topic
from infrastructure.process.settings import Settings
from order_service.payment.provider.database import ProviderDatabase
from order_service.payment.provider.server import ProviderServer
from order_service.payment.provider.webhooks import WebhookSender
from order_service.payment.provider_client import ProviderClient
from tests.testkit.processes import PATIENCE

KEY: Final = "a key for tests, long enough"
SECRET: Final = "a secret for webhooks, and long enough for them"


@asynccontextmanager
async def provider(
    file: str = ":memory:", *, late: float = 0.3, webhook_url: str = "", patience: float = 0.3, port: int = 0
) -> AsyncIterator[tuple[ProviderServer, ProviderClient]]:
    """A provider in this process, `port` 0 being a free one, and a client of it."""
    server = ProviderServer(ProviderDatabase(file), WebhookSender(SECRET), KEY, late=late)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with ProviderClient(url, KEY, timeout=patience, webhook_url=webhook_url) as client:
            yield server, client
    finally:
        await runner.cleanup()


class ServiceClient:
    """Sends requests to a service, and hears all that it says on its topics."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer, source: str = "/orders") -> None:
        self.settings = settings
        self.producer = producer
        self.source = source
        self.heard: list[Envelope] = []

    async def say(self, topic: Topic, *messages: Message) -> None:
        """Send each, as orders would."""
        for message in messages:
            event = Envelope(
                id=f"{getattr(message, 'order_id', '')}/{message.TYPE}",
                source=self.source,
                type=message.TYPE,
                subject=getattr(message, message.KEY),
                time=datetime.now(UTC),
                data=message.model_dump(mode="json"),
            )
            await self.producer.send_and_wait(self.settings.topic(topic), event.encode(), key=event.key)

    def of(self, order: str) -> list[str]:
        """Return the kinds of an order's events, in order."""
        return [event.type.rpartition(".")[2] for event in self.heard if event.subject == order]

    async def until(self, condition: Callable[[], object], why: Callable[[], str] | None = None) -> None:
        """Return when `condition` holds of what was heard."""
        try:
            async with asyncio.timeout(PATIENCE / 2):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            heard = "\n".join(f"{event.subject} {event.type} {event.data}" for event in self.heard[-20:])
            raise AssertionError(f"not in time; heard:\n{heard}\n{why() if why else ''}") from None

    async def listen(self, consumer: AIOKafkaConsumer) -> None:
        """Receive events without end."""
        async for record in consumer:
            self.heard.append(Envelope.decode(record.key, record.value))


@asynccontextmanager
async def talk(settings: Settings, *topics: Topic) -> AsyncIterator[ServiceClient]:
    """A conversation from the topics' beginning on; they must exist."""
    names = [settings.topic(topic) for topic in topics]
    async with (
        AIOKafkaProducer(bootstrap_servers=settings.kafka, acks="all") as producer,
        AIOKafkaConsumer(*names, bootstrap_servers=settings.kafka, auto_offset_reset="earliest") as consumer,
    ):
        here = ServiceClient(settings, producer)
        listening = asyncio.create_task(here.listen(consumer))
        try:
            yield here
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening


def audited(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return the report of an audit, which must have found nothing wrong."""
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["violations"], report["ok"], done.returncode) == ([], True, 0)
    return report


def file_in(folder: Path) -> str:
    """Where a provider keeps its memory."""
    return str(folder / "provider.sqlite")
