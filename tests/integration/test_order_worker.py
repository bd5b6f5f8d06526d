"""The running process on the real Kafka, among fakes that are played: killed at every point, fed twice, audited."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from contracts import cart, deliveries, inventory, orders, payments
from contracts.envelope import Envelope, MessageRegistry
from contracts.topics import Topic
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.failpoints import EXIT_KILLED, FAILPOINTS
from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from order_service.__main__ import TOPICS
from tests.testkit.order_store import TOTAL, Buying, received
from tests.testkit.processes import Processes, clean_up, processes
from tests.testkit.servers import MANY_PARTITIONS, Servers

PATIENCE = 60
MINE = [point for point in FAILPOINTS if point.startswith("orders.")]
"""Failpoints; one worker crashes at each, the second time it gets there."""
REQUESTS: dict[Topic, MessageRegistry[Any]] = {
    inventory.REQUESTS: inventory.REQUEST_REGISTRY,
    payments.REQUESTS: payments.REQUEST_REGISTRY,
    deliveries.REQUESTS: deliveries.REQUEST_REGISTRY,
}
ENDS = {"delivered", "cancelled"}


@dataclass
class FakeServices:
    """Inventory, payment and delivery, played: each step is done once, and answered twice."""

    settings: Settings
    producer: AIOKafkaProducer
    consumer: AIOKafkaConsumer
    topics: dict[str, Topic]
    done: set[tuple[str, str]] = field(default_factory=set)
    effects: Counter[str] = field(default_factory=Counter)
    ended: dict[str, str] = field(default_factory=dict)
    told: list[Envelope] = field(default_factory=list)

    async def send(self, topic: Topic, message: Any, request: str = "r", times: int = 1) -> None:
        event = message.event if hasattr(message, "event") else received(message, request).event
        for _ in range(times):
            await self.producer.send_and_wait(self.settings.topic(topic), event.encode(), event.key)

    async def buy(self, buying: Buying, token: str = "tok_approve") -> None:
        """Publish the messages of the cart, and the answers of inventory."""
        await self.send(inventory.RESPONSES, buying.committed(), times=2)
        await self.send(orders.REQUESTS, buying.place(token), times=2)

    async def play(self) -> None:
        async for record in self.consumer:
            event = Envelope.decode(record.key, record.value)
            topic = self.topics[record.topic]
            if topic is orders.EVENTS:
                happened = orders.EVENT_REGISTRY.parse(event)
                if happened.status in ENDS:
                    self.ended[happened.order_id] = happened.status
            elif topic is cart.RESPONSES:
                self.told.append(event)
            else:
                await self._answer(REQUESTS[topic].parse(event), event.requestid or "")

    async def _answer(self, asked: Any, request: str) -> None:
        step = type(asked).__name__
        known = (asked.order_id, getattr(asked, "refund_id", step)) in self.done
        self.done.add((asked.order_id, getattr(asked, "refund_id", step)))
        ids = {"order_id": asked.order_id, "user_id": asked.user_id}
        if not known:
            self.effects[step] += 1
        buying = Buying(asked.user_id, request)
        match asked:
            case inventory.Sell():
                await self.send(inventory.RESPONSES, buying.decided(inventory.Sold(order_id=asked.order_id)), times=2)
            case inventory.Restock():
                await self.send(inventory.RESPONSES, buying.decided(inventory.Restocked(order_id=asked.order_id)))
            case inventory.ReleaseOrder():
                outcome = inventory.Released(order_id=asked.order_id, version=6)
                await self.send(inventory.RESPONSES, buying.decided(outcome), times=2)
            case payments.Charge(token="tok_decline"):
                await self.send(payments.EVENTS, payments.Declined(**ids, payment_id=asked.payment_id, reason="no"))
            case payments.Charge():
                captured = payments.Captured(**ids, payment_id=asked.payment_id, amount=TOTAL)
                await self.send(payments.EVENTS, captured, times=2)
            case payments.Refund(refund_id=refund_id, amount=amount):
                given = payments.Refunded(**ids, payment_id=asked.payment_id, refund_id=refund_id, amount=amount)
                await self.send(payments.EVENTS, given, times=2)
            case deliveries.Book():
                carried = {**ids, "shipment_id": asked.shipment_id}
                told = {"carrier": "Swift", "tracking": "T1"}
                await self.send(deliveries.EVENTS, deliveries.Booked(**carried, **told))
                await self.send(deliveries.EVENTS, deliveries.Shipped(**carried, **told), times=2)
                failed = asked.address.city == "Nowhere"
                end = deliveries.Failed(**carried, reason="x") if failed else deliveries.Delivered(**carried)
                await self.send(deliveries.EVENTS, end)


@pytest.fixture(scope="module")
def shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    settings = servers.settings(partitions=MANY_PARTITIONS)
    folder = tmp_path_factory.mktemp("orders")
    with processes(servers, settings, folder, HOLDFAST_ORDER_ASK_AGAIN_SECONDS="1") as here:
        asyncio.run(ensure_topics(settings, TOPICS))
        for number, point in enumerate(MINE, 1):
            here.start("order_service", f"orders-{number}", HOLDFAST_CRASHPOINT=f"{point}:2")
        for replica in here.replicas:
            replica.wait_ready()
        yield here
    asyncio.run(clean_up(settings))


@pytest.fixture
async def fakes(shop: Processes) -> AsyncIterator[FakeServices]:
    settings = shop.settings
    topics = {settings.topic(topic): topic for topic in (*REQUESTS, orders.EVENTS, cart.RESPONSES)}
    async with (
        AIOKafkaProducer(bootstrap_servers=settings.kafka, linger_ms=0) as producer,
        AIOKafkaConsumer(*topics, bootstrap_servers=settings.kafka, auto_offset_reset="latest") as consumer,
    ):
        for place in consumer.assignment():
            await consumer.position(place)
        here = FakeServices(settings, producer, consumer, topics)
        playing = asyncio.create_task(here.play())
        yield here
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing


async def _end(fakes: FakeServices, shop: Processes, buyings: list[Buying]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not {each.id for each in buyings} <= fakes.ended.keys():
            assert all(replica.process for replica in shop.replicas)
            await asyncio.sleep(0.05)


def audited(shop: Processes, **more: str) -> dict[str, Any]:
    done = shop.run("order_service", "audit", "--json", **more)
    return dict(json.loads(done.stdout))


async def test_every_worker_crashes_at_its_failpoint_and_all_orders_end(shop: Processes, fakes: FakeServices) -> None:
    buyings: list[Buying] = []
    async with asyncio.timeout(PATIENCE):
        while not all(replica.exits for replica in shop.replicas):
            each = Buying(f"shopper-{len(buyings)}")
            buyings.append(each)
            await fakes.buy(each, "tok_decline" if len(buyings) % 4 == 3 else "tok_approve")
            if len(buyings) % 10 == 0:
                await _make_due(shop.settings)
            await asyncio.sleep(0.02)
    assert [replica.exits for replica in shop.replicas] == [[EXIT_KILLED]] * len(MINE)
    await _end(fakes, shop, buyings)
    report = await asyncio.to_thread(audited, shop, HOLDFAST_AUDIT_GRACE_SECONDS="60")
    assert report["violations"] == []
    assert report["figures"]["money_in_flight"] == 0
    paid = sum(status == "delivered" for status in fakes.ended.values())
    assert report["figures"]["money_confirmed"] == paid * TOTAL.amount


async def test_orders_end_and_each_step_is_asked_for(shop: Processes, fakes: FakeServices) -> None:
    good = [Buying(f"good-{n}") for n in range(20)]
    poor = [Buying(f"poor-{n}") for n in range(5)]
    for each in good:
        await fakes.buy(each)
    for each in poor:
        await fakes.buy(each, "tok_decline")
    await _end(fakes, shop, good + poor)
    assert Counter(fakes.ended[each.id] for each in good + poor) == {"delivered": 20, "cancelled": 5}
    assert fakes.effects["Charge"] == 25
    assert fakes.effects["Sell"] == fakes.effects["Book"] == 20
    assert fakes.effects["ReleaseOrder"] == 5
    refund = orders.Refund(**good[0].ids)
    await fakes.send(orders.REQUESTS, refund, "give-it-back", times=2)
    async with asyncio.timeout(PATIENCE):
        while [event.requestid for event in fakes.told].count("give-it-back") < 2:
            await asyncio.sleep(0.05)
    async with asyncio.timeout(PATIENCE):
        while not (report := await asyncio.to_thread(audited, shop))["figures"]["money_refunded"]:
            await asyncio.sleep(0.1)
    assert report["violations"] == []
    assert fakes.effects["Refund"] == 1
    figures = report["figures"]
    assert (figures["orders_under_way"], figures["money_in_flight"]) == (0, 0)
    assert figures["money_captured"] == figures["money_confirmed"] + figures["money_refunded"]


async def test_adds_are_skipped_and_unexpected_messages_are_dead_lettered(shop: Processes, fakes: FakeServices) -> None:
    held = inventory.Refused(reason="out_of_stock", product="MUG")
    for number in range(50):
        await fakes.send(inventory.RESPONSES, Buying(f"adds-{number}").decided(held))
    stray = Buying("stray")
    await fakes.send(payments.EVENTS, stray.captured())
    forged = received(stray.place().message, "another request")
    await fakes.send(orders.REQUESTS, forged)
    after = Buying("after")
    await fakes.buy(after)
    await _end(fakes, shop, [after])
    found: list[dict[str, Any]] = []
    letters = [shop.settings.topic(topic.dead_letter_topic) for topic in (payments.EVENTS, orders.REQUESTS)]
    async with (
        AIOKafkaConsumer(*letters, bootstrap_servers=shop.settings.kafka, auto_offset_reset="earliest") as consumer,
        asyncio.timeout(PATIENCE),
    ):
        async for record in consumer:
            found.append(json.loads(record.value)["data"])
            if len(found) == 2:
                break
    assert {letter["reason"] for letter in found} == {"failed"}
    assert all("UnexpectedMessage" in letter["detail"] for letter in found)


async def _make_due(settings: Settings) -> None:
    async with await postgres.connect(settings, "orders") as connection:
        await connection.execute("UPDATE orders SET due_at = now() WHERE due_at IS NOT NULL")


def test_the_sub_commands_say_what_they_did(shop: Processes, tmp_path: Path) -> None:
    again = shop.run("order_service", "republish")
    assert (again.returncode, "events were published again" in again.stdout) == (0, True), again.stderr
    assert audited(shop)["ok"]
    rebuilt = shop.run("order_service", "rebuild")
    assert (rebuilt.returncode, rebuilt.stdout) == (0, "the read side matches the events\n"), rebuilt.stderr
    assert shop.run("order_service", "forget", "good-1").stdout == "erased the personal data of 1 orders\n"
    assert shop.run("order_service", "fly").returncode == 2
    away = shop.run("order_service", "audit", HOLDFAST_KAFKA="127.0.0.1:1")
    assert (away.returncode, "Traceback" in away.stderr) == (1, False)
