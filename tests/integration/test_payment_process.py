"""The payment process with real Kafka and Postgres, against a provider in this process that has bad days on call."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import aiohttp
import pytest

from contracts import payments
from contracts.envelope import Message
from contracts.inventory import Money
from contracts.payments import EVENTS, REQUESTS, STATE, Charge, Notified, Query, Refund, Void
from infrastructure.local.servers import port_reservations
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.failpoints import EXIT_KILLED, FAILPOINTS, VARIABLE
from infrastructure.storage import postgres
from order_service.payment.provider.server import ProviderServer
from tests.testkit.payments import KEY, ServiceClient, audited, provider, talk
from tests.testkit.processes import PATIENCE, Processes, Replica, clean_up, processes
from tests.testkit.servers import MANY_PARTITIONS, Servers

TEN = Money(amount=1000, currency="GBP")


@dataclass
class Payment:
    """A running payment process, its provider, and a conversation with it."""

    shop: Processes
    process: Replica
    server: ProviderServer
    talk: ServiceClient

    async def say(self, *requests: Message) -> None:
        await self.talk.say(REQUESTS, *requests)

    async def told(self, order: str, *words: str) -> None:
        await self.talk.until(lambda: self.talk.of(order) == [*words], self.process.log_tail)

    async def audit(self) -> dict[str, int]:
        done = await asyncio.to_thread(self.shop.run, "order_service.payment", "audit", "--json")
        report = audited(done)
        assert "provider_remembers" in report["figures"], done.stderr
        figures: dict[str, int] = report["figures"]
        return figures


@pytest.fixture(scope="module")
def shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    settings = servers.settings(partitions=MANY_PARTITIONS)
    more = {
        "HOLDFAST_PROVIDER_URL": f"http://127.0.0.1:{port_reservations.reserve_free_port()}",
        "HOLDFAST_PROVIDER_KEY": KEY,
        "HOLDFAST_PROVIDER_TIMEOUT_SECONDS": "0.3",
        "HOLDFAST_AUDIT_GRACE_SECONDS": "5",
    }
    with processes(servers, settings, tmp_path_factory.mktemp("payment"), **more) as here:
        [replica] = here.start("order_service.payment", "payment")
        replica.wait_ready()
        yield here
    asyncio.run(clean_up(settings))


@pytest.fixture
async def payment(shop: Processes, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Payment]:
    """The one process of this file; each test has orders of its own. The provider remembers from test to test."""
    port = int(shop.environment["HOLDFAST_PROVIDER_URL"].rpartition(":")[2])
    await ensure_topics(shop.settings, [REQUESTS, EVENTS, STATE])
    async with (
        provider(str(shop.folder / "books.sqlite"), late=1.2, port=port) as (server, _),
        talk(shop.settings, EVENTS, STATE) as conversation,
    ):
        replica = shop.replicas[0]
        here = Payment(shop, replica, server, conversation)
        await conversation.until(lambda: availability(conversation)[-1:] == [True], replica.log_tail)
        yield here


def availability(talk: ServiceClient) -> list[bool]:
    return [event.data["available"] for event in talk.heard if event.type == payments.Provider.TYPE]


def of(order: str) -> dict[str, str]:
    return {"order_id": order, "user_id": f"user-of-{order}", "payment_id": f"pay-{order}"}


def charge(order: str, token: str) -> Charge:
    return Charge(**of(order), amount=TEN, token=token)


def amounts(talk: ServiceClient, order: str) -> list[int]:
    return [event.data["amount"]["amount"] for event in talk.heard if event.subject == order and "amount" in event.data]


@pytest.fixture
def order() -> str:
    return f"o-{secrets.token_hex(4)}"


async def test_an_approved_payment_is_captured_once_and_answered_again(payment: Payment, order: str) -> None:
    await payment.say(charge(order, "tok_approve"))
    await payment.told(order, "captured")
    await payment.say(charge(order, "tok_approve"), Query(**of(order)))
    await payment.talk.until(lambda: len(payment.talk.of(order)) >= 2)
    assert len({event.id for event in payment.talk.heard if event.subject == order}) == 1, "the same event"
    captures = [entry for entry in payment.server.database.history(0, 1000) if entry["key"] == f"pay-{order}"]
    assert [entry["type"] for entry in captures] == ["captured"]
    refund = Refund(**of(order), refund_id=f"back-{order}", amount=TEN)
    await payment.say(refund, refund)
    await payment.talk.until(lambda: "refunded" in payment.talk.of(order))
    await payment.audit()


async def test_declined_and_one_whose_token_is_unknown(payment: Payment, order: str) -> None:
    await payment.say(charge(order, "tok_decline"), charge(f"{order}-2", "tok_unheard_of"))
    await payment.told(order, "declined")
    await payment.told(f"{order}-2", "declined")
    await payment.say(Void(**of(order)))
    await payment.told(order, "declined", "voided")


async def test_a_wrong_amount_is_published_as_it_was_captured(payment: Payment, order: str) -> None:
    await payment.say(charge(order, "tok_wrong_amount"), charge(f"{order}-2", "tok_twice"))
    await payment.told(order, "captured")
    await payment.told(f"{order}-2", "captured")
    assert (amounts(payment.talk, order), amounts(payment.talk, f"{order}-2")) == ([999], [1000])


async def test_a_timeout_is_queried_published_once_and_voided(payment: Payment, order: str) -> None:
    await payment.say(charge(order, "tok_timeout"))
    await payment.told(order, "unknown")
    await payment.say(Void(**of(order)))
    await payment.told(order, "unknown", "voided")
    await payment.say(charge(order, "tok_timeout"))
    await payment.told(order, "unknown", "voided", "voided")
    entries = [entry["type"] for entry in payment.server.database.history(0, 1000) if entry["key"] == f"pay-{order}"]
    assert entries == ["voided"], "charged under no key"


async def test_a_late_capture_is_found_without_a_second_charge(payment: Payment, order: str) -> None:
    await payment.say(charge(order, "tok_late"))
    await payment.told(order, "unknown", "captured")


async def test_a_void_that_comes_too_late_is_answered_captured_and_the_money_goes_back(
    payment: Payment, order: str
) -> None:
    payment.server.control = payment.server.control.model_copy(update={"down": True})
    await payment.say(charge(order, "tok_late"))
    await payment.talk.until(lambda: "unknown" in payment.talk.of(order), payment.process.log_tail)
    payment.server.control = payment.server.control.model_copy(update={"down": False})
    await payment.talk.until(lambda: payment.server.database.charge(f"pay-{order}"), payment.process.log_tail)
    payment.server.control = payment.server.control.model_copy(update={"down": True})
    await payment.say(Void(**of(order)))
    await payment.talk.until(lambda: captured(payment.server, order))  # while nobody can be asked
    payment.server.control = payment.server.control.model_copy(update={"down": False})
    await payment.talk.until(lambda: "captured" in payment.talk.of(order), payment.process.log_tail)
    await payment.say(Refund(**of(order), refund_id=f"back-{order}", amount=TEN))
    await payment.talk.until(lambda: payment.talk.of(order)[-1] == "refunded", payment.process.log_tail)
    assert (await payment.audit())["captured_too_late"] >= 1


def captured(server: ProviderServer, order: str) -> bool:
    charge = server.database.charge(f"pay-{order}")
    return charge is not None and charge["status"] == "captured"


async def test_a_void_without_a_charge_refuses_the_charge_that_comes_later(payment: Payment, order: str) -> None:
    await payment.say(Void(**of(order)))
    await payment.told(order, "voided")
    await payment.say(charge(order, "tok_approve"))
    await payment.told(order, "voided", "voided")
    assert not captured(payment.server, order)


async def test_a_question_about_nothing_is_answered_and_waits_for_its_charge(payment: Payment, order: str) -> None:
    await payment.say(Query(**of(order)))
    await payment.told(order, "unknown")
    payment.talk.source = "/edge"
    await payment.say(Notified(**of(f"{order}-nobody")))
    payment.talk.source = "/orders"
    await payment.say(charge(order, "tok_approve"))
    await payment.talk.until(lambda: payment.talk.of(order)[-1] == "captured")
    assert payment.talk.of(f"{order}-nobody") == []


async def test_an_absent_provider_loses_no_charge_and_blocks_no_other_order(payment: Payment, order: str) -> None:
    payment.server.control = payment.server.control.model_copy(update={"down": True})
    orders = [f"{order}-{number}" for number in range(30)]
    for each in orders:
        await payment.say(charge(each, "tok_approve"))
    await payment.talk.until(lambda: availability(payment.talk)[-1] is False, payment.process.log_tail)
    async with aiohttp.ClientSession() as session:
        assert 'holdfast_breaker_state{breaker="simulated"} 0.0' not in await metrics(session, payment.process)
        # Requests are taken off the topic all the while.
        await payment.say(Void(**of(f"{order}-0")))
        assert await stored(payment, f"{order}-0") == "void"
    payment.server.control = payment.server.control.model_copy(update={"down": False})
    for each in orders[1:]:
        await payment.talk.until(lambda each=each: "captured" in payment.talk.of(each), payment.process.log_tail)  # type: ignore[misc]
    await payment.talk.until(lambda: payment.talk.of(orders[0])[-1] in {"voided", "captured"}, payment.process.log_tail)
    await payment.talk.until(lambda: availability(payment.talk)[-1] is True, payment.process.log_tail)
    figures = await payment.audit()
    assert figures["captures"] >= 29


async def test_it_may_die_anywhere(payment: Payment, order: str) -> None:
    """One replica for each failpoint, beside a healthy one: each crashes at its point and is started again."""
    points = [point for point in FAILPOINTS if point.startswith("payment.")]
    victims = [payment.shop.add("order_service.payment", point.replace(".", "-")) for point in points]
    for victim, point in zip(victims, points, strict=True):
        victim.start(**{VARIABLE: f"{point}:1"})
        victim.kept = True
    for victim in victims:
        await asyncio.to_thread(victim.wait_ready)
    tokens = ("tok_approve", "tok_decline", "tok_twice", "tok_late")
    expected = {"tok_decline": "declined"}
    orders: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE):
        while not all(victim.exits for victim in victims):
            each, token = f"{order}-{len(orders)}", tokens[len(orders) % len(tokens)]
            orders[each] = token
            await payment.say(charge(each, token))
            await asyncio.sleep(0.05)
    assert [victim.exits for victim in victims] == [[EXIT_KILLED]] * len(victims)
    for each, token in orders.items():
        outcome = expected.get(token, "captured")
        await payment.talk.until(lambda e=each, o=outcome: o in payment.talk.of(e), payment.process.log_tail)  # type: ignore[misc]
        assert set(payment.talk.of(each)) <= {"unknown", outcome}
    keys = [entry["key"] for entry in payment.server.database.history(0, 10_000)]
    assert len(keys) == len(set(keys)), "each key was decided once"
    await payment.audit()


async def metrics(session: aiohttp.ClientSession, process: Replica) -> str:
    async with session.get(f"http://127.0.0.1:{process.port}/metrics") as response:
        return await response.text()


async def stored(payment: Payment, order: str) -> str:
    """Return the stored intent of an order's payment, once it is a void."""
    async with await postgres.connect(payment.shop.settings, "payment") as connection, asyncio.timeout(PATIENCE):
        while True:
            cursor = await connection.execute("SELECT wish FROM step WHERE order_id = %s", (order,))
            if (row := await cursor.fetchone()) and row[0] == "void":
                return str(row[0])
            await asyncio.sleep(0.05)
