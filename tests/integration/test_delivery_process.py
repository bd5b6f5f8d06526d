"""The delivery process with real Kafka and Postgres: parcels move, are called off or fail, under crashes anywhere."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from contracts.deliveries import EVENTS, REQUESTS, Book, CallOff
from contracts.inventory import Line, Money
from contracts.orders import Address
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.failpoints import EXIT_KILLED, FAILPOINTS, VARIABLE
from order_service.delivery.carrier import FAIL_MARKER
from tests.testkit.payments import ServiceClient, audited, talk
from tests.testkit.processes import PATIENCE, Processes, Replica, clean_up, processes
from tests.testkit.servers import MANY_PARTITIONS, Servers

ADDRESS = Address(name="Ann", line1="1 High St", city="Leeds", postal_code="LS1 1AA", country="GB")
LINES = (Line(product="MUG", quantity=1, price=Money(amount=100, currency="GBP")),)
SHIP, DELIVER = 0.8, 0.4


@dataclass
class Delivery:
    """A running delivery process, and a conversation with it."""

    shop: Processes
    process: Replica
    talk: ServiceClient

    async def told(self, order: str, *words: str) -> None:
        await self.talk.until(lambda: self.talk.of(order) == [*words], self.process.log_tail)

    async def has_told(self, order: str, *words: str) -> None:
        """Return when the order's events are `words`, in order and without repetitions, which are allowed."""
        await self.talk.until(lambda: [*dict.fromkeys(self.talk.of(order))] == [*words], self.process.log_tail)


@pytest.fixture(scope="module")
def shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    settings = servers.settings(partitions=MANY_PARTITIONS)
    more = {
        "HOLDFAST_DELIVERY_SHIP_SECONDS": str(SHIP),
        "HOLDFAST_DELIVERY_DELIVER_SECONDS": str(DELIVER),
        "HOLDFAST_AUDIT_GRACE_SECONDS": "5",
    }
    with processes(servers, settings, tmp_path_factory.mktemp("delivery"), **more) as here:
        [replica] = here.start("order_service.delivery", "delivery")
        replica.wait_ready()
        yield here
    asyncio.run(clean_up(settings))


@pytest.fixture
async def delivery(shop: Processes) -> AsyncIterator[Delivery]:
    await ensure_topics(shop.settings, [REQUESTS, EVENTS])
    async with talk(shop.settings, EVENTS) as conversation:
        replica = shop.replicas[0]
        yield Delivery(shop, replica, conversation)


@pytest.fixture
def order() -> str:
    return f"o-{secrets.token_hex(4)}"


def of(order: str) -> dict[str, str]:
    return {"order_id": order, "user_id": f"user-of-{order}", "shipment_id": f"ship-{order}"}


def book(order: str, address: Address = ADDRESS) -> Book:
    return Book(**of(order), address=address, lines=LINES)


async def test_a_parcel_is_booked_shipped_and_delivered_once_and_answered_again(delivery: Delivery, order: str) -> None:
    await delivery.talk.say(REQUESTS, book(order))
    await delivery.told(order, "booked", "shipped", "delivered")
    first = list(delivery.talk.heard)
    await delivery.talk.say(REQUESTS, book(order))
    await delivery.told(order, *(["booked", "shipped", "delivered"] * 2))
    told = [event for event in delivery.talk.heard if event.subject == order]
    assert [event.id for event in told[:3]] == [event.id for event in told[3:]]
    assert {event.data["tracking"] for event in told if "tracking" in event.data} == {first[-3].data["tracking"]}


async def test_an_undeliverable_parcel_is_returned(delivery: Delivery, order: str) -> None:
    await delivery.talk.say(REQUESTS, book(order, ADDRESS.model_copy(update={"line2": FAIL_MARKER})))
    await delivery.told(order, "booked", "shipped", "failed")


async def test_before_it_is_shipped_it_may_be_called_off_and_after_it_may_not(delivery: Delivery, order: str) -> None:
    other = f"{order}-2"
    await delivery.talk.say(REQUESTS, book(order), book(other))
    await delivery.told(order, "booked")
    await delivery.talk.say(REQUESTS, CallOff(**of(order)))
    await delivery.told(order, "booked", "called-off")
    await delivery.talk.until(lambda: "shipped" in delivery.talk.of(other))
    heard = len(delivery.talk.of(other))
    await delivery.talk.say(REQUESTS, CallOff(**of(other)))
    await delivery.talk.until(lambda: "shipped" in delivery.talk.of(other)[heard:], delivery.process.log_tail)
    await delivery.has_told(other, "booked", "shipped", "delivered")
    assert delivery.talk.of(order) == ["booked", "called-off"]


async def test_one_that_was_called_off_before_it_was_booked_never_is(delivery: Delivery, order: str) -> None:
    await delivery.talk.say(REQUESTS, CallOff(**of(order)), book(order))
    await delivery.has_told(order, "called-off")


async def test_it_may_die_anywhere(delivery: Delivery, order: str) -> None:
    """One replica for each failpoint, beside a healthy one: each crashes at its point and is started again."""
    points = [point for point in FAILPOINTS if point.startswith("delivery.")]
    victims = [delivery.shop.add("order_service.delivery", point.replace(".", "-")) for point in points]
    for victim, point in zip(victims, points, strict=True):
        victim.start(**{VARIABLE: f"{point}:1"})
        victim.kept = True
    for victim in victims:
        await asyncio.to_thread(victim.wait_ready)
    orders: list[str] = []
    async with asyncio.timeout(PATIENCE):
        while not all(victim.exits for victim in victims):
            orders.append(f"{order}-{len(orders)}")
            await delivery.talk.say(REQUESTS, book(orders[-1]))
            await asyncio.sleep(0.05)
    assert [victim.exits for victim in victims] == [[EXIT_KILLED]] * len(victims)
    for each in orders:
        await delivery.has_told(each, "booked", "shipped", "delivered")
    report = audited(await asyncio.to_thread(delivery.shop.run, "order_service.delivery", "audit", "--json"))
    assert report["figures"]["delivered"] >= len(orders)
