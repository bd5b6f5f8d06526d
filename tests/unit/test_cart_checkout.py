"""A checkout in the cart service: its state, requests and responses, and its audit."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_service import audit as of_carts
from cart_service import model
from cart_service.agents import CartAgents
from cart_service.store import CartStore
from contracts import cart, inventory, orders
from contracts.envelope import Envelope, UndecodableError
from contracts.ids import derive_id
from contracts.topics import Topic
from infrastructure.audit.topic_auditor import AuditWindow
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.process.settings import Settings
from tests.testkit.cart_fixtures import LINE, NOW, TOTAL, MemoryTable

ITEMS = (inventory.Item(product="TEAPOT", quantity=2),)
ORDER = derive_id("ann", "r1", "order")
SOLD_OUT = inventory.Refused(reason="out_of_stock", order_id=ORDER)


def checkout(**more: Any) -> cart.Checkout:
    return cart.Checkout(
        user_id="ann",
        order_id=ORDER,
        address=orders.Address(name="Ann", line1="1 High Street", city="York", postal_code="YO1", country="GB"),
        contact=orders.Contact(email="ann@example.org"),
        payment=orders.Payment(token="tok_approve"),
        **(more or {"version": 3}),
    )


CHECKOUTS = [
    checkout(),
    checkout(version=3, expect=orders.Expect(total=TOTAL)),
    checkout(items=ITEMS, expect=orders.Expect(total=TOTAL)),
]


def committed(version: int = 4, purpose: inventory.Purpose = "order") -> inventory.Committed:
    return inventory.Committed(order_id=ORDER, purpose=purpose, lines=(LINE,), total=TOTAL, version=version)


def decided(outcome: inventory.Outcome, revision: int = 4, **more: Any) -> inventory.Decided:
    return inventory.Decided(user_id="ann", outcome=outcome, cart=inventory.Cart(revision=revision), **more)


def told(outcome: inventory.Outcome, request_id: str = "r1", **more: Any) -> cart.Response | None:
    return model.to_response(model.Cart(), request_id, decided(outcome, **more))


# ---- what is kept and asked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", CHECKOUTS)
def test_a_retry_equals_the_request_and_nothing_personal_is_stored(wanted: cart.Checkout) -> None:
    state = model.add_pending(model.Cart(), "r1", wanted, accepted=NOW)
    kept = state.model_dump_json()
    (pending,) = model.Cart.model_validate_json(kept).pending
    assert model.retry_request("ann", pending) == model.to_inventory_request(wanted)
    for personal in ("High Street", "example.org", "York", "tok_approve"):
        assert personal not in kept


def test_orders_get_the_whole_checkout_and_inventory_only_its_part() -> None:
    wanted = CHECKOUTS[1]
    place = model.to_order_request(wanted)
    assert {name: getattr(place, name) for name in orders.Place.model_fields} == {
        name: getattr(wanted, name) for name in orders.Place.model_fields
    }
    assert model.to_inventory_request(wanted) == inventory.Commit(
        user_id="ann", order_id=ORDER, version=3, expect=TOTAL
    )


def test_the_intended_command_is_not_part_of_the_cart_view() -> None:
    state = model.add_pending(model.Cart(), "r1", checkout(items=ITEMS), accepted=NOW)
    (pending,) = model.cart_view(state).pending
    assert (pending.id, pending.type, pending.commit) == ("r1", "checkout", None)


# ---- responses ------------------------------------------------------------------------------------------------------


def test_a_commit_is_an_order_and_a_refusal_a_refusal() -> None:
    assert told(committed(), replayed=True) == cart.Order(
        user_id="ann", id="r1", order_id=ORDER, status="committed", order_version=2, replayed=True
    )
    assert told(SOLD_OUT) == cart.Refused(user_id="ann", id="r1", reason="out_of_stock")


RESERVED: list[tuple[inventory.Outcome, str | None]] = [
    (committed(purpose="reservation"), "PENDING"),
    (inventory.Sold(order_id=ORDER), "COMMITTED"),
    (inventory.Released(order_id=ORDER, version=4), "CANCELLED"),
    (inventory.Restocked(order_id=ORDER), "CANCELLED"),
    (inventory.Reservation(order_id=ORDER, state="PENDING", lines=(LINE,)), "PENDING"),
    (inventory.Reservation(order_id=ORDER, state=None), None),
]


@pytest.mark.parametrize(("outcome", "state"), RESERVED)
def test_a_service_gets_the_state_of_its_reservation(outcome: inventory.Outcome, state: str | None) -> None:
    found = told(outcome, session="s")
    assert isinstance(found, cart.Reservation)
    assert (found.reservation_id, found.state, found.session) == (ORDER, state, "s")
    assert not model.needs_snapshot(model.Cart(revision=4), "r1", decided(outcome)), "the cart is as it was"


@pytest.mark.parametrize("outcome", [outcome for outcome, _ in RESERVED[1:]])
def test_steps_of_an_order_are_not_sent_to_the_shopper(outcome: inventory.Outcome) -> None:
    assert told(outcome, f"{ORDER}/sell") is None


@pytest.mark.parametrize(
    ("outcome", "request_id"),
    [(committed(), "r1"), (inventory.Released(order_id=ORDER, version=4), f"{ORDER}/release")],
)
def test_a_cart_that_a_checkout_or_release_changed_is_sent_in_full(outcome: inventory.Outcome, request_id: str) -> None:
    before = model.Cart(revision=3, lines=(LINE,))
    for replayed in (False, True):  # the worker that decided first may have crashed before it published
        news = decided(outcome, replayed=replayed)
        after = model.apply_decision(before, request_id, news)
        assert model.needs_snapshot(after, request_id, news)
        assert model.needs_snapshot(model.apply_decision(after, request_id, news), request_id, news), "told again"
    later = model.Cart(revision=5)
    assert not model.needs_snapshot(model.apply_decision(later, request_id, news), request_id, news), (
        "who missed it asks for the cart"
    )


@given(st.permutations([committed(4), inventory.Released(order_id=ORDER, version=5), inventory.Removed(version=6)]))
def test_in_whatever_order_they_come_the_last_cart_stays(outcomes: list[inventory.Outcome]) -> None:
    state = model.add_pending(model.Cart(revision=3, lines=(LINE,)), "r1", checkout(), accepted=NOW)
    ids = {"committed": "r1", "released": f"{ORDER}/release", "removed": "r2"}
    for outcome in outcomes:
        revision = getattr(outcome, "version", 0)
        state = model.apply_decision(state, ids[outcome.type], decided(outcome, revision))
    assert (state.revision, state.pending) == (6, ())


# ---- the shell ------------------------------------------------------------------------------------------------------


class AgentRun:
    """The cart agents, with the events that they published."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Envelope]] = []
        self.now = NOW
        self.agents = CartAgents(CartStore(MemoryTable()), self.publish, lambda: "g1", lambda: self.now)

    async def publish(self, topic: Topic, events: Any) -> None:
        self.sent += [(topic.name, event) for event in events]

    async def request(self, message: cart.Checkout) -> Envelope:
        event = Envelope(
            id="e",
            source="/edge",
            type=message.TYPE,
            subject="ann",
            time=NOW,
            requestid="r1",
            data=message.model_dump(),
        )
        await self.agents.on_requests([ReceivedMessage(event, message, 0, 0)])
        return event

    def take(self) -> list[tuple[str, Envelope]]:
        sent, self.sent = self.sent, []
        return sent


async def test_a_checkout_goes_to_orders_first_then_to_inventory_under_one_id() -> None:
    shop = AgentRun()
    await shop.request(checkout())
    (place, commit) = shop.take()
    assert (place[0], place[1].subject, place[1].source) == (orders.REQUESTS.name, ORDER, "/cart")
    assert (commit[0], commit[1].subject) == (inventory.REQUESTS.name, "ann")
    assert place[1].requestid == commit[1].requestid == "r1"
    orders.REQUEST_REGISTRY.parse(Envelope.decode(place[1].key, place[1].encode()))
    inventory.REQUEST_REGISTRY.parse(Envelope.decode(commit[1].key, commit[1].encode()))


async def test_only_the_request_to_inventory_is_retried() -> None:
    shop = AgentRun()
    await shop.request(checkout(items=ITEMS))
    first = shop.take()[1][1]
    shop.now += timedelta(seconds=6)
    await shop.agents.retry_due()
    ((topic, again),) = shop.take()
    assert (topic, again.data, again.requestid) == (inventory.REQUESTS.name, first.data, "r1")


async def test_a_senseless_pending_request_does_not_block_other_retries() -> None:
    shop = AgentRun()
    senseless = model.Cart(pending=(cart.PendingRequest(id="odd", type="checkout", since=NOW),))
    shop.agents.carts.put("abe", model.Cart(), senseless)  # by another's hand: a checkout knows what it asks for
    await shop.request(checkout(items=ITEMS))
    assert len(shop.agents.retries) == 2
    shop.take()
    shop.now += timedelta(seconds=6)
    await shop.agents.retry_due()
    assert [(event.subject, event.requestid) for _, event in shop.take()] == [("ann", "r1")]
    assert len(shop.agents.retries) == 1


async def test_one_that_fails_for_good_is_decided_and_its_order_begins_so_that_it_can_end() -> None:
    shop = AgentRun()
    message = checkout()
    event = await shop.request(message)
    shop.take()
    received: ReceivedMessage[cart.Request] = ReceivedMessage(event, message, 0, 0)
    await shop.agents.on_permanent_failure(received, ValueError())
    place, fail = shop.take()
    assert (place[1].type, fail[1].type) == (orders.Place.TYPE, inventory.Fail.TYPE)
    assert fail[1].data["command"]["order_id"] == ORDER
    assert "High Street" not in fail[1].encode().decode()


# ---- the audit ------------------------------------------------------------------------------------------------------


def books() -> of_carts.CartTopicAudit:
    window = AuditWindow(NOW, timedelta(seconds=30), timedelta(days=7))
    return of_carts.start_audit(Settings(), window)[0]


def record(message: Any, source: str, request_id: str = "r1") -> Any:
    """A record of an hour ago."""
    at = NOW - timedelta(hours=1)
    event = Envelope(
        id="e",
        source=source,
        type=message.TYPE,
        subject="ann",
        time=at,
        requestid=request_id,
        data=message.model_dump(mode="json", exclude_none=True),
    )
    where = {"topic": "t", "partition": 0, "offset": 0, "timestamp": int(at.timestamp() * 1000)}
    return SimpleNamespace(key=event.key, value=event.encode(), **where)


def order(**more: Any) -> cart.Order:
    return cart.Order(user_id="ann", id="r1", order_id=ORDER, **{"status": "committed", "order_version": 2, **more})


def faults(kept: of_carts.CartTopicAudit) -> list[str]:
    return [sentence for kind in kept.violations_by_kind() for sentence in kind]


def test_a_checkout_is_a_request_with_one_outcome() -> None:
    kept = books()
    kept.add_request(record(checkout(), "/edge"))
    assert len(faults(kept)) == 1
    kept.add_decision(record(decided(committed()), "/inventory"))
    assert "no response was published" in faults(kept)[0]
    kept.add_response(record(order(status="paid", order_version=3), "/orders"))
    assert "no response was published" in faults(kept)[0], "what the order service tells is no answer of the cart's"
    kept.add_response(record(order(), "/cart"))
    kept.add_response(record(order(replayed=True), "/cart"))
    kept.add_decision(record(decided(committed(), replayed=True), "/inventory"))
    kept.add_decision(record(decided(inventory.Sold(order_id=ORDER)), "/inventory", f"{ORDER}/sell"))
    assert faults(kept) == []


def test_an_order_that_was_decided_and_published_differently_is_found() -> None:
    kept = books()
    kept.add_request(record(checkout(), "/edge"))
    kept.add_decision(record(decided(SOLD_OUT), "/inventory"))
    kept.add_response(record(order(), "/cart"))
    assert "answered differently from its decision" in faults(kept)[0]


def test_a_checkout_with_a_foreign_order_id_is_undecodable() -> None:
    fields = {"id": "e1", "source": "/edge", "type": cart.Checkout.TYPE, "subject": "ann", "time": NOW}
    event = Envelope(**fields, requestid="r1", data=checkout().model_dump(mode="json"))
    assert cart.REQUEST_REGISTRY.parse(event) == checkout()
    with pytest.raises(UndecodableError, match="bad_data: order_id"):
        cart.REQUEST_REGISTRY.parse(event.model_copy(update={"requestid": "r2"}))
