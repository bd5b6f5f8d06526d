"""The gateway recovers whatever the broker does while the producer is replaced."""

import asyncio
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from infrastructure.process.settings import Settings
from rest_api.kafka import gateway as module
from rest_api.kafka.gateway import KafkaGateway


class Producer:
    """A fake producer: once closed it never gets metadata again, like aiokafka's."""

    def __init__(self, gateway: KafkaGateway, *, broker: bool) -> None:
        self.gateway, self.broker = gateway, broker
        self.client = self
        self.open = True
        self.seen: str | None = None

    async def start(self) -> None:
        if not self.broker:
            raise KafkaConnectionError

    async def stop(self) -> None:
        if self.open:
            sent: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            sent.set_result(None)
            self.gateway._acknowledge(0, sent)  # the last of what it had comes to the broker yet
            self.seen = self.gateway.fault
        self.open = False

    async def force_metadata_update(self) -> bool:
        if not self.open:
            await asyncio.Future()
        return True


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> KafkaGateway:
    monkeypatch.setattr(module, "PROBE_INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr(module, "ACK_TIMEOUT_SECONDS", 0.05)
    found = KafkaGateway(Settings())
    found._has_positions = found._broker_answers = found._producer_failed = True
    return found


@pytest.mark.parametrize("away", [0, 1, 3])
async def test_the_producer_is_replaced_although_the_broker_disappears_meanwhile(
    gateway: KafkaGateway, monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    made: list[Producer] = []

    def new() -> Any:
        made.append(Producer(gateway, broker=len(made) >= away))
        return made[-1]

    monkeypatch.setattr(gateway, "_new_producer", new)
    first: Any = Producer(gateway, broker=True)
    gateway._producer = first
    probe = asyncio.create_task(gateway._probe())
    async with asyncio.timeout(5):
        while gateway._producer is first or gateway.fault:
            await asyncio.sleep(0)
    probe.cancel()
    assert len(made) == away + 1
    assert gateway._producer is made[-1]
    assert [each.open for each in made] == [False] * away + [True]
    assert first.seen == "Kafka does not answer"  # nothing new goes to one that is being closed
