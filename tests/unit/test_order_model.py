"""The rules of the saga, each as a sentence; and streams that were recorded once and must stay readable."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from contracts import deliveries, inventory, orders, payments
from contracts.ids import derive_id
from contracts.inventory import Money
from order_service.agents import may_concern_order, order_outcome
from order_service.commands import next_commands, next_deadline
from order_service.model import Deadline, HandleResult, Incoming, SagaTimeouts, handle
from order_service.state import BrokenStream, Order, UnexpectedMessage, evolve, fold, payment_id, shipment_id
from order_service.store import folded_row, read_event
from tests.testkit.order_model import (
    AFTER_PAYMENT_TIMEOUT,
    CHECKOUT,
    IDS,
    LINES,
    NOON,
    ORDER,
    PLACE,
    PRIVATE,
    RULES,
    TOTAL,
    USER,
)

STREAMS = Path(__file__).with_name("order_streams")
PAYMENT: dict[str, Any] = {**IDS, "payment_id": payment_id(ORDER)}
PARCEL: dict[str, Any] = {**IDS, "shipment_id": shipment_id(ORDER)}
CARRIED: dict[str, Any] = {**PARCEL, "carrier": "Swift", "tracking": "T1"}
COMMITTED = inventory.Committed(order_id=ORDER, purpose="order", lines=LINES, total=TOTAL, version=5)
CAPTURED = payments.Captured(**PAYMENT, amount=TOTAL)
SOLD = inventory.Sold(order_id=ORDER)
SHIPPED = deliveries.Shipped(**CARRIED)
DELIVERED = deliveries.Delivered(**PARCEL)
CANCEL = orders.Cancel(**IDS)
TO_PAID: list[Any] = [PLACE, COMMITTED, CAPTURED]
TO_CONFIRMED: list[Any] = [*TO_PAID, SOLD]
TO_DELIVERED: list[Any] = [*TO_CONFIRMED, deliveries.Booked(**CARRIED), SHIPPED, DELIVERED]


class OrderScenario:
    """An order to which these messages have come, each under a request id of its own."""

    def __init__(self, *messages: Any) -> None:
        self.state: Order | None = None
        self.waiting: tuple[Incoming, ...] = ()
        self.last = HandleResult(None)
        self.events: list[Any] = []
        for message in messages:
            self.when(message)

    def when(self, message: Any, request: str = "", *, user: str = USER, now: datetime = NOON) -> "OrderScenario":
        """One more comes."""
        request = request or (CHECKOUT if isinstance(message, orders.Place) or message is COMMITTED else "r")
        self.last = handle(self.state, self.waiting, Incoming(ORDER, user, request, message), now=now, timeouts=RULES)
        self.state, self.waiting = self.last.state, self.last.waiting
        self.events += self.last.events
        return self

    @property
    def order(self) -> Order:
        assert self.state is not None
        return self.state

    def told(self) -> list[str]:
        """The last words of the events that the last message brought."""
        return [event.TYPE.rpartition(".")[2] for event in self.last.events]

    def asks(self, *, late: bool = False) -> list[Any]:
        """Return the messages to send now."""
        return [step.message for step in next_commands(self.order, PRIVATE, overdue=late)]

    def answer(self) -> str | None:
        [answer] = self.last.replies
        return answer.refusal


def test_every_step_of_a_good_order_asks_for_the_next() -> None:
    here = OrderScenario(PLACE)
    assert here.asks() == [], "the cart has asked inventory"
    assert here.asks(late=True) == [inventory.Commit(order_id=ORDER, user_id=USER, version=4)]
    assert here.when(COMMITTED).asks() == [payments.Charge(**PAYMENT, amount=TOTAL, token="tok_approve")]
    assert here.asks(late=True)[1:] == [payments.Query(**PAYMENT)]
    assert here.when(CAPTURED).asks() == [inventory.Sell(**IDS)]
    assert here.when(SOLD).asks() == [deliveries.Book(**PARCEL, address=PRIVATE.address, lines=LINES)]
    assert here.when(deliveries.Booked(**CARRIED)).asks() == []
    assert len(here.asks(late=True)) == 1
    assert (here.when(SHIPPED).when(DELIVERED).asks(late=True), here.order.is_complete) == ([], True)


def test_the_steps_are_asked_under_the_same_ids_whenever_they_are_asked() -> None:
    ids = {step.request_id for step in next_commands(OrderScenario(*TO_PAID).order, PRIVATE)}
    assert ids == {f"{ORDER}/sell"}
    assert all(len(id_) <= 64 for id_ in ids)
    [again] = next_commands(OrderScenario(PLACE).order, PRIVATE, overdue=True)
    assert (again.request_id, again.at) == (CHECKOUT, NOON), "as the cart asks, so that it is decided once"


def test_without_an_address_nothing_is_booked_and_without_a_token_nothing_charged() -> None:
    assert next_commands(OrderScenario(PLACE, COMMITTED).order, None) == ()
    assert next_commands(OrderScenario(*TO_CONFIRMED).order, None) == ()


def test_a_free_order_is_paid() -> None:
    free = COMMITTED.model_copy(update={"total": Money(amount=0, currency="GBP")})
    here = OrderScenario(PLACE).when(free, CHECKOUT)
    assert here.told() == ["committed", "captured"]
    assert here.asks() == [inventory.Sell(**IDS)]
    here.when(CANCEL).when(SOLD).when(inventory.Restocked(order_id=ORDER))
    assert (here.order.status, here.told()) == ("cancelled", ["undone", "undone", "cancelled"])


def test_stock_gets_a_cancelled_order_and_the_cart_a_declined_one() -> None:
    declined = OrderScenario(PLACE, COMMITTED, payments.Declined(**PAYMENT, reason="no"))
    assert declined.asks() == [inventory.ReleaseOrder(**IDS, to="cart")]
    cancelled = OrderScenario(PLACE, COMMITTED, CANCEL, payments.Voided(**PAYMENT))
    assert cancelled.asks() == [inventory.ReleaseOrder(**IDS, to="shelf")]


@pytest.mark.parametrize(("before", "shipped"), [([CANCEL, deliveries.CalledOff(**PARCEL)], False), ([], True)])
def test_only_shipped_units_are_restocked_as_shipped(before: Sequence[Any], shipped: bool) -> None:
    here = OrderScenario(*TO_CONFIRMED, *(before or [SHIPPED, deliveries.Failed(**PARCEL, reason="nobody there")]))
    assert here.asks() == [inventory.Restock(**IDS, shipped=shipped)]


def test_a_parcel_that_had_left_is_delivered_although_it_was_cancelled() -> None:
    here = OrderScenario(*TO_CONFIRMED, CANCEL)
    assert (here.answer(), here.asks()) == (None, [deliveries.CallOff(**PARCEL)])
    here.when(SHIPPED)
    assert (here.order.reason, here.order.status) == (None, "shipped")
    assert here.when(DELIVERED).order.is_complete


def test_a_shipped_order_cannot_be_cancelled() -> None:
    for there in (TO_DELIVERED[:-1], TO_DELIVERED):
        here = OrderScenario(*there, CANCEL)
        assert (here.answer(), here.told()) == ("not_cancellable", [])


def test_a_cancelled_order_may_be_cancelled_again() -> None:
    here = OrderScenario(PLACE, COMMITTED, CANCEL, CANCEL)
    assert (here.answer(), here.told()) == (None, [])


def test_a_cancellation_waits_for_the_decision_and_is_answered_then() -> None:
    here = OrderScenario(PLACE, CANCEL)
    assert (here.last.replies, len(here.waiting)) == ((), 1)
    assert here.when(inventory.Refused(reason="cart_changed", order_id=ORDER), CHECKOUT).told() == ["cancelled"]
    assert (here.order.reason, here.answer(), here.waiting) == ("cart_changed", None, ())


def test_an_id_that_was_used_for_something_else_ends_the_order_in_either_order_of_arrival() -> None:
    reused = inventory.IdReused(order_id=ORDER)
    for story in (OrderScenario(PLACE).when(reused, CHECKOUT), OrderScenario().when(reused, CHECKOUT).when(PLACE)):
        assert (story.order.status, story.order.reason, story.waiting) == ("cancelled", "failed", ())


def test_money_is_given_back_once_and_never_more_than_there_was() -> None:
    def refund(amount: int | None, currency: str = "GBP") -> orders.Refund:
        return orders.Refund(**IDS, amount=None if amount is None else Money(amount=amount, currency=currency))

    here = OrderScenario(*TO_DELIVERED).when(refund(100), "a")
    assert here.told() == ["refund-asked"]
    assert here.when(refund(100), "a").told() == [], "the same request again"
    assert here.answer() is None
    assert here.when(refund(201), "b").answer() == "refund_too_large"
    assert here.when(refund(1, "EUR"), "c").answer() == "refund_too_large"
    assert here.when(refund(None), "d").last.events[0].amount.amount == 200  # type: ignore[union-attr]
    assert here.when(refund(1), "e").answer() == "already_refunded"
    first, second = (step.message for step in next_commands(here.order, PRIVATE))
    for message in (first, second, first):
        given = payments.Refunded(**PAYMENT, refund_id=message.refund_id, amount=message.amount)  # type: ignore[attr-defined]
        here.when(given)
    assert (here.order.refunded, here.order.status, here.order.is_complete) == (300, "delivered", True)
    assert OrderScenario(PLACE, COMMITTED).when(refund(1)).answer() == "not_paid"
    with pytest.raises(ValidationError):
        refund(0)


def test_paying_twice_is_refused_and_paying_again_asks_again() -> None:
    here = OrderScenario(PLACE, COMMITTED, orders.Pay(**IDS))
    assert (here.answer(), here.told(), len(here.asks())) == (None, [], 1)
    assert OrderScenario(*TO_PAID, orders.Pay(**IDS)).answer() == "already_paid"


def test_another_shoppers_order_is_unknown() -> None:
    for message in (CANCEL, orders.Refund(**IDS), orders.Pay(**IDS)):
        assert OrderScenario(*TO_PAID).when(message, user="mallory").answer() == "unknown_order"
    for message in (orders.Refund(**IDS), orders.Pay(**IDS)):
        assert OrderScenario().when(message).answer() == "unknown_order"
    assert OrderScenario().when(CANCEL, user="mallory").when(PLACE).answer() == "unknown_order"


def test_a_cancellation_that_overtakes_its_order_waits_for_a_limited_time() -> None:
    here = OrderScenario().when(CANCEL)
    assert (here.last.replies, len(here.waiting)) == ((), 1)
    assert OrderScenario().when(CANCEL).when(PLACE).when(COMMITTED).answer() is None
    assert here.when(Deadline()).answer() == "unknown_order"
    assert here.waiting == ()
    overtaken = OrderScenario().when(COMMITTED).when(CANCEL).when(Deadline())
    assert [type(each.message) for each in overtaken.waiting] == [inventory.Committed]


@pytest.mark.parametrize(
    ("there", "message", "user"),
    [
        ([], CAPTURED, USER),
        ([], SHIPPED, USER),
        ([PLACE], CAPTURED, USER),
        ([PLACE, COMMITTED], CAPTURED, "mallory"),
        ([PLACE, COMMITTED], CAPTURED.model_copy(update={"payment_id": "another"}), USER),
        ([PLACE, COMMITTED], SHIPPED, USER),
        (TO_PAID, payments.Refunded(**PAYMENT, refund_id="never-asked", amount=TOTAL), USER),
        (TO_CONFIRMED, SHIPPED.model_copy(update={"shipment_id": "another"}), USER),
    ],
)
def test_an_impossible_message_is_unexpected(there: Sequence[Any], message: Any, user: str) -> None:
    with pytest.raises(UnexpectedMessage):
        OrderScenario(*there).when(message, user=user)


def test_an_order_is_of_its_shoppers_own_request() -> None:
    for came in (Incoming(ORDER, USER, "another", PLACE), Incoming(ORDER, "mallory", CHECKOUT, PLACE)):
        with pytest.raises(UnexpectedMessage):
            handle(None, (), came, now=NOON, timeouts=RULES)
    assert derive_id(USER, CHECKOUT, "order") == ORDER


def test_a_wrong_amount_is_given_back_as_it_was_taken() -> None:
    here = OrderScenario(PLACE, COMMITTED, CAPTURED.model_copy(update={"amount": Money(amount=299, currency="GBP")}))
    assert here.told() == ["cancelling", "captured", "refund-asked"]
    [refund] = here.asks()
    assert (here.order.reason, here.order.status, refund.amount.amount) == ("wrong_amount", "committed", 299)


def test_a_capture_after_the_end_is_refunded() -> None:
    here = OrderScenario(PLACE, COMMITTED, payments.Declined(**PAYMENT, reason="no"))
    here.when(inventory.Released(order_id=ORDER, version=6))
    assert here.order.is_complete
    here.when(CAPTURED)
    assert (here.told(), here.order.status, here.order.is_complete) == (
        ["captured", "refund-asked"],
        "cancelled",
        False,
    )
    [refund] = here.asks()
    here.when(payments.Refunded(**PAYMENT, refund_id=refund.refund_id, amount=refund.amount))
    assert (here.order.is_complete, here.order.refundable) == (True, 0)


def test_holds_that_somebody_gave_back_by_hand_cannot_be_sold() -> None:
    here = OrderScenario(*TO_PAID, inventory.Reservation(order_id=ORDER, state="CANCELLED"))
    assert here.told() == ["cancelling", "undone", "refund-asked"]
    assert here.order.reason == "failed"


def test_patience_ends_with_a_void() -> None:
    here = OrderScenario(PLACE, COMMITTED)
    assert here.when(Deadline(), now=AFTER_PAYMENT_TIMEOUT - timedelta(seconds=2)).told() == []
    assert here.when(Deadline(), now=AFTER_PAYMENT_TIMEOUT).told() == ["cancelling"]
    assert here.asks() == [payments.Void(**PAYMENT)]
    assert here.when(Deadline(), now=AFTER_PAYMENT_TIMEOUT + timedelta(days=1)).asks() == [payments.Void(**PAYMENT)]


def test_deadlines_come_later_and_later_and_end_at_rest() -> None:
    rules = SagaTimeouts(payment_timeout=timedelta(minutes=10))
    placed = OrderScenario(PLACE).order
    pauses = [next_deadline(placed, NOON, attempts, rules) for attempts in range(30)]
    assert [(at - NOON).total_seconds() for at in pauses if at][:6] == [30, 60, 120, 240, 480, 600]
    assert pauses[-1] == NOON + rules.max_retry_pause
    unpaid = OrderScenario(PLACE, COMMITTED).order
    assert next_deadline(unpaid, NOON + timedelta(minutes=9), 9, rules) == NOON + timedelta(minutes=10)
    assert next_deadline(unpaid, NOON + timedelta(minutes=11), 9, rules) == NOON + timedelta(minutes=11)
    assert next_deadline(OrderScenario(*TO_DELIVERED).order, NOON, 0, rules) is None


def test_most_decisions_are_about_carts() -> None:
    cart = inventory.Cart(revision=1)
    refused = inventory.Decided(user_id=USER, outcome=inventory.Refused(reason="out_of_stock", product="P"), cart=cart)
    assert order_outcome(refused) is None
    assert not may_concern_order(refused.model_dump_json().encode())
    sold = inventory.Decided(user_id=USER, outcome=SOLD, cart=cart)
    assert order_outcome(sold) == SOLD
    assert may_concern_order(sold.model_dump_json().encode())
    for by_hand in (json.dumps(sold.model_dump(mode="json")), sold.model_dump_json(indent=1)):
        assert may_concern_order(by_hand.encode()), "an engineer's console producer"
        assert may_concern_order(by_hand.replace("order_id", "order\\u005fid").encode())
    reserved = COMMITTED.model_copy(update={"purpose": "reservation"})
    assert order_outcome(inventory.Decided(user_id=USER, outcome=reserved, cart=cart)) is None


# ---- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_with_a_gap_is_broken() -> None:
    events = [(event, NOON) for event in OrderScenario(*TO_DELIVERED).events]
    assert fold(events) == OrderScenario(*TO_DELIVERED).order
    for broken in (events[1:], events[:2] + events[3:], [*events[:2], events[1]], [events[0], events[0]]):
        with pytest.raises(BrokenStream):
            fold(broken)
    with pytest.raises(BrokenStream):
        evolve(replace(OrderScenario(PLACE).order, order_id="another"), events[1][0], NOON)


@pytest.mark.parametrize("file", sorted(STREAMS.glob("*.json")), ids=lambda file: file.stem)
def test_a_recorded_stream_is_read_as_ever(file: Path) -> None:
    recorded = json.loads(file.read_text())
    events = [
        (read_event(e["type"], json.dumps(e["data"])), datetime.fromisoformat(e["at"])) for e in recorded["events"]
    ]
    order = fold(events)
    assert order is not None
    said = [str(value) if isinstance(value, datetime) else value for value in folded_row(order)]
    assert said == recorded["read_side"]
    assert (order.is_complete, list(order.undone_steps)) == (recorded["at_rest"], recorded["undone"])
