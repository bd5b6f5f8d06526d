"""The running process on the real Kafka: killed in the middle, fed twice, stopped politely."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from contracts.envelope import Envelope
from contracts.inventory import REQUESTS, RESPONSE_REGISTRY, RESPONSES, STOCK, STOCK_REGISTRY, Expired, Removed
from contracts.topics import Topic
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from tests.testkit.processes import Processes, processes
from tests.testkit.servers import Servers, partition

PATIENCE = 60


@pytest.fixture
def services(servers: Servers, settings: Settings, tmp_path: Path) -> Iterator[Processes]:
    """Processes of the inventory, with holds that expire after six seconds."""
    with processes(servers, settings, tmp_path / "services", HOLDFAST_HOLD_MINUTES="0.1") as running:
        yield running


class TopicClient:
    """A client of the topics: sends requests, gathers answers."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer) -> None:
        self.settings = settings
        self.producer = producer
        self.consumer = consumer
        self.sent: list[Envelope] = []
        self.outcomes: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self.stock: dict[str, Any] = {}

    async def ask(self, user: str, id_: str, type_: str, **data: Any) -> None:
        """Send one request, as the cart would."""
        await self.send(
            Envelope(
                id=f"{user}/{id_}",
                source="/cart",
                type=f"holdfast.inventory.{type_}",
                subject=user,
                time=datetime.now(UTC),
                requestid=id_,
                data={"user_id": user, **data},
            )
        )

    async def send(self, event: Envelope) -> None:
        """Send an event to the requests."""
        self.sent.append(event)
        topic = self.settings.topic(REQUESTS)
        await self.producer.send_and_wait(topic, event.encode(), event.key, partition=partition(event.key))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Gather what comes until `condition` holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                for records in (await self.consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        self._take(Envelope.decode(record.key, record.value))

    def _take(self, event: Envelope) -> None:
        if event.type == "holdfast.inventory.stock":
            stock = STOCK_REGISTRY.parse(event)
            known = self.stock.get(stock.product)
            if known is None or stock.version > known.version:  # the next publisher may repeat it
                self.stock[stock.product] = stock
        else:
            answer = RESPONSE_REGISTRY.parse(event)
            self.outcomes[event.subject, event.requestid or ""].append(answer.outcome)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[TopicClient]:
    topics: list[Topic] = [REQUESTS, RESPONSES, STOCK]
    await ensure_topics(settings, topics)
    names = [settings.topic(topic) for topic in (RESPONSES, STOCK)]
    async with (
        AIOKafkaProducer(bootstrap_servers=settings.kafka) as producer,
        AIOKafkaConsumer(*names, bootstrap_servers=settings.kafka, auto_offset_reset="earliest") as consumer,
    ):
        yield TopicClient(settings, producer, consumer)


async def test_every_request_has_one_outcome_under_any_crash(
    services: Processes, settings: Settings, client: TopicClient, tmp_path: Path
) -> None:
    catalogue = tmp_path / "c.csv"
    catalogue.write_text("product_code,name,price,currency,quantity\nHOT,hot,1.00,GBP,25\nMUG,mug,2.00,GBP,100\n")
    done = services.run("inventory_service", "seed", str(catalogue))
    assert (done.returncode, done.stdout[:17]) == (0, "2 products: 2 new"), done.stderr

    one, two = (services.add("inventory_service", name) for name in ("one", "two"))
    one.start()
    two.start()
    await client.until(lambda: set(client.stock) == {"HOT", "MUG"})
    for number in range(120):
        user = f"user {number % 12}"
        await client.ask(user, f"h{number}", "hold", mode="add", product="HOT" if number % 2 else "MUG", quantity=1)
        if number % 10 == 0:
            order, mug = f"o{number}", {"product": "MUG", "quantity": 1}
            await client.ask(user, f"c{number}", "commit", order_id=order, lines=[mug])
            await client.ask(user, f"{order}/sell", "sell", order_id=order)
        if number == 60:
            one.kill()
    assert one.process is not None
    one.process.wait(10)
    one.start()
    asked = {(event.subject, event.requestid or "") for event in client.sent}
    await client.until(lambda: asked <= set(client.outcomes))

    for event in list(client.sent):  # everything once more
        await client.send(event)
    await client.ask("user 0", "last", "clear")
    await client.until(lambda: ("user 0", "last") in client.outcomes)
    for outcomes in client.outcomes.values():
        assert len({repr(outcome) for outcome in outcomes}) == 1, "one outcome, however often it is told"

    # Left alone, every cart expires and that is reported.
    def given_back() -> bool:
        return all(stock.held == 0 for stock in client.stock.values())

    await client.until(given_back)
    expired = [each[0] for each in client.outcomes.values() if isinstance(each[0], Expired)]
    assert {line.product for each in expired for line in each.lines} == {"HOT", "MUG"}
    assert isinstance(client.outcomes["user 0", "last"][0], Removed)

    audited = json.loads(services.run("inventory_service", "audit", "--json").stdout)
    assert (audited["ok"], audited["violations"]) == (True, [])
    assert (audited["figures"]["available"], audited["figures"]["sold"]) == (125 - 12, 12)
    async with await postgres.connect(settings, "inventory") as connection:
        versions = await (await connection.execute("SELECT product_code, version FROM inventory")).fetchall()
    assert {code: stock.version for code, stock in client.stock.items()} == dict(versions)

    assert [two.stop(patience=10), one.stop(patience=10)] == [0, 0], one.log_tail() + two.log_tail()


async def test_a_request_that_cannot_be_handled_is_dead_lettered_and_the_next_answered(
    services: Processes, settings: Settings, client: TopicClient
) -> None:
    services.add("inventory_service", "one").start()
    nameless = Envelope(
        id="x",
        source="/cart",
        type="holdfast.inventory.clear",
        subject="ann",
        time=datetime.now(UTC),
        data={"user_id": "ann"},
    )
    await client.send(nameless)
    await client.ask("ann", "r1", "hold", mode="add", product="NOPE", quantity=1)
    await client.until(lambda: ("ann", "r1") in client.outcomes)
    assert client.outcomes["ann", "r1"][0].reason == "unknown_product"
    letters = settings.topic(REQUESTS.dead_letter_topic)
    async with AIOKafkaConsumer(letters, bootstrap_servers=settings.kafka, auto_offset_reset="earliest") as consumer:
        async with asyncio.timeout(PATIENCE):
            record = await consumer.getone()
    assert json.loads(record.value)["data"]["reason"] == "failed"


def test_a_process_is_ready_when_it_has_its_partitions(services: Processes) -> None:
    inventory = services.add("inventory_service", "one")
    inventory.start()
    inventory.wait_ready()
    assert "holdfast_outcomes_total" in httpx.get(f"http://127.0.0.1:{inventory.port}/metrics", trust_env=False).text
    assert inventory.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "required"),
        (["seed", "/no/such/file"], 1, "No such file"),
        (["--help"], 0, ""),
    ],
)
def test_wrong_use_is_reported(arguments: list[str], code: int, expected: str, services: Processes) -> None:
    done = services.run("inventory_service", *arguments)
    assert done.returncode == code
    assert expected in done.stderr
