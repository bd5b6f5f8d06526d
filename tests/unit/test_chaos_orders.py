"""The checks of orders and money pass right books, and fail each book in which one thing is wrong.

Four orders of one evening: one is delivered, one declined, one cancelled after its card answered too late, and one that
a second tab asked for. Every invariant has its violation here; a checker that cannot fail proves nothing.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import pytest

from load.chaos.checks import money, order_streams, rare_outcomes
from load.chaos.checks.checker import check, check_webhooks
from load.chaos.checks.observed_state import LedgerRow, ObservedState, OrderEvent, PaymentEvent, ProviderCharge
from load.chaos.checks.violation import Violation
from load.chaos.clients import checkouts
from load.chaos.clients.payment_provider import charges_by_payment
from load.chaos.command import missing_rare_outcomes
from load.chaos.history import NEMESIS, HistoryEntry
from load.protocol import ClientState, Frame

POUND = {"amount": 100, "currency": "GBP"}
Books = tuple[Sequence[HistoryEntry], ObservedState]


def stream(order: str, user: str, *steps: tuple[str, str] | tuple[str, str, dict[str, Any]]) -> list[OrderEvent]:
    return [
        OrderEvent(order, user, version, type_, status, *more)
        for version, (type_, status, *more) in enumerate(steps, 1)
    ]


def placed(cart_version: int) -> tuple[str, str, dict[str, Any]]:
    return "placed", "placed", {"request_id": "r", "cart_version": cart_version}


def captured(order: str, status: str, amount: int = 100) -> tuple[str, str, dict[str, Any]]:
    return "captured", status, {"payment_id": f"pay-{order}", "amount": {"amount": amount, "currency": "GBP"}}


COMMITTED = ("committed", "committed", {"total": POUND, "lines": []})
DELIVERED = stream(
    "o1",
    "ann",
    placed(1),
    COMMITTED,
    captured("o1", "paid"),
    ("confirmed", "confirmed"),
    ("booked", "confirmed"),
    ("shipped", "shipped"),
    ("delivered", "delivered"),
)
DECLINED = stream(
    "o2",
    "bob",
    placed(4),
    COMMITTED,
    ("cancelling", "committed", {"reason": "declined"}),
    ("undone", "committed", {"step": "payment"}),
    ("undone", "committed", {"step": "holds"}),
    ("cancelled", "cancelled", {"reason": "declined"}),
)
TOO_LATE = stream(
    "o3",
    "cat",
    placed(2),
    COMMITTED,
    ("cancelling", "committed", {"reason": "payment_unavailable"}),
    captured("o3", "committed"),
    ("refund-asked", "committed", {"refund_id": "back-o3", "amount": POUND}),
    ("refunded", "committed", {"refund_id": "back-o3", "amount": POUND, "refunded": POUND}),
    ("undone", "committed", {"step": "holds"}),
    ("cancelled", "cancelled", {"reason": "payment_unavailable", "refunded": POUND}),
)
SECOND_TAB = stream("o4", "ann", placed(1), ("cancelled", "cancelled", {"reason": "cart_changed"}))
EVENTS = (*DELIVERED, *DECLINED, *TOO_LATE, *SECOND_TAB)


def read(events: Sequence[OrderEvent]) -> dict[str, Any]:
    last = events[-1]
    told = {"order_id": last.order, "status": last.status, "order_version": last.version}
    return told | ({"reason": last.data["reason"]} if "reason" in last.data else {})


def committed(order: str) -> dict[str, Any]:
    return {"type": "committed", "order_id": order, "purpose": "order", "total": POUND, "lines": [], "version": 2}


CHARGES = {"pay-o1": ProviderCharge("o1", (100,)), "pay-o3": ProviderCharge("o3", (100,), {"back-o3": 100})}
TRUTH = ObservedState(
    ledger=(
        LedgerRow("MUG", 1, None, None, "seed", 9, 0, 0),
        LedgerRow("MUG", 2, "ann", "a1", "add", 0, 1, 0),
        LedgerRow("MUG", 3, "ann", "o1/sell", "sell", 0, -1, 1),
    ),
    log={
        ("ann", "a1"): {"type": "held", "product": "MUG", "quantity": 1, "line_quantity": 1, "version": 1},
        ("ann", "c1"): committed("o1"),
        ("ann", "c4"): {"type": "refused", "reason": "cart_changed", "order_id": "o4"},
        ("ann", "o1/sell"): {"type": "sold", "order_id": "o1"},
        ("bob", "c2"): committed("o2"),
        ("bob", "o2/release"): {"type": "released", "order_id": "o2", "version": 5},
        ("cat", "c3"): committed("o3"),
        ("cat", "o3/release"): {"type": "released", "order_id": "o3", "version": 3},
    },
    events=EVENTS,
    payments=(
        PaymentEvent("o1", "charge", "pay-o1", 100),
        PaymentEvent("o1", "captured", "pay-o1", 100),
        PaymentEvent("o1", "captured", "pay-o1", 100),
        PaymentEvent("o2", "charge", "pay-o2", 100),
        PaymentEvent("o2", "declined", "pay-o2"),
        PaymentEvent("o3", "charge", "pay-o3", 100),
        PaymentEvent("o3", "void", "pay-o3"),
        PaymentEvent("o3", "captured", "pay-o3", 100),
        PaymentEvent("o3", "refund", "back-o3", 100),
        PaymentEvent("o3", "refunded", "back-o3", 100),
    ),
    orders={events[0].order: read(events) for events in (DELIVERED, DECLINED, TOO_LATE, SECOND_TAB)},
    charges=CHARGES,
    rest_seconds=1.0,
)


def frame(second: int, order: str, version: int, status: str, user: str = "ann", **more: Any) -> HistoryEntry:
    value = {"type": "order", "id": "c", "order_id": order, "order_version": version, "status": status, **more}
    return HistoryEntry(second, "shopper-1", "heard", "order", id="c", user=user, session="s1", value=value)


HISTORY = [frame(1, "o1", 2, "committed"), frame(2, "o1", 3, "paid"), frame(3, "o1", 7, "delivered")]


def findings(history: Sequence[HistoryEntry], truth: ObservedState) -> list[Violation]:
    return [
        *money.check_money(truth),
        *order_streams.check_order_streams(history, truth),
        *order_streams.check_order_versions(history),
    ]


def test_a_correct_ledger_has_no_findings() -> None:
    assert findings(HISTORY, TRUTH) == []
    assert money.sum_balance(TRUTH) == money.Balance(captured=200, confirmed=100, refunded=100, in_flight=0)


def test_events_and_payments_that_lie_there_twice_are_the_same_ones() -> None:
    doubled = dataclasses.replace(TRUTH, events=(*EVENTS, *EVENTS), payments=(*TRUTH.payments, *TRUTH.payments))
    assert findings([*HISTORY, *HISTORY[2:]], doubled) == []


def but(**changes: Any) -> Books:
    return HISTORY, dataclasses.replace(TRUTH, **changes)


def without(order: str, *types: str, change: Callable[[OrderEvent], OrderEvent] | None = None) -> Books:
    """Return the history with some events of an order left out, and the others moved up; or changed."""
    kept = [event for event in EVENTS if event.order == order and event.type not in types]
    moved = [dataclasses.replace(event, version=number) for number, event in enumerate(kept, 1)]
    own = [change(event) for event in moved] if change else moved
    others = [event for event in EVENTS if event.order != order]
    orders = {**TRUTH.orders, order: read(own)}
    return [], dataclasses.replace(TRUTH, events=(*others, *own), orders=orders)


def log_without(*keys: tuple[str, str], **more: Any) -> Books:
    log = {key: outcome for key, outcome in TRUTH.log.items() if key not in keys}
    return but(log=log, **more)


def two_captures() -> Books:
    """Even when all of it was given back."""
    other = {"payment_id": "other", "amount": POUND}
    back = {"refund_id": "back-other", "amount": POUND}
    steps = [(event.type, event.status, dict(event.data)) for event in TOO_LATE]
    events = stream(
        "o3", "cat", *steps[:6], ("captured", "committed", other), ("refunded", "committed", back), *steps[6:]
    )
    payments = (PaymentEvent("o3", "captured", "other", 100), PaymentEvent("o3", "refunded", "back-other", 100))
    return but(
        events=(*events, *(event for event in EVENTS if event.order != "o3")),
        payments=(*TRUTH.payments, *payments),
        orders={**TRUTH.orders, "o3": read(events)},
        charges={**CHARGES, "other": ProviderCharge("o3", (100,), {"back-other": 100})},
    )


def two_orders_of_one_cart() -> Books:
    other = [
        dataclasses.replace(event, order="o5", data={**event.data, "payment_id": "pay-o5"})
        if event.type == "captured"
        else dataclasses.replace(event, order="o5")
        for event in DELIVERED
    ]
    return but(
        events=(*EVENTS, *other),
        log={**TRUTH.log, ("ann", "c5"): committed("o5"), ("ann", "s5"): {"type": "sold", "order_id": "o5"}},
        payments=(*TRUTH.payments, PaymentEvent("o5", "captured", "pay-o5", 100)),
        charges={**CHARGES, "pay-o5": ProviderCharge("o5", (100,))},
        orders={**TRUTH.orders, "o5": {**read(other)}},
    )


def lost_refund() -> Books:
    payments = tuple(event for event in TRUTH.payments if event.type != "refunded")
    history, truth = without("o3", "refund-asked", "refunded")
    return history, dataclasses.replace(
        truth, payments=payments, charges={**CHARGES, "pay-o3": ProviderCharge("o3", (100,))}
    )


BROKEN: dict[str, tuple[str, Callable[[], Books]]] = {
    "two captures of one order": ("I6", two_captures),
    "a refund that was lost": ("I6", lost_refund),
    "a refund that only the order knows": (
        "I6",
        lambda: but(payments=tuple(event for event in TRUTH.payments if event.type != "refunded")),
    ),
    "a capture that only payment knows": (
        "I6",
        lambda: but(payments=(*TRUTH.payments, PaymentEvent("o2", "captured", "pay-o2", 100))),
    ),
    "a capture for no order": (
        "I6",
        lambda: but(payments=(*TRUTH.payments, PaymentEvent("nobody", "captured", "pay-x", 5)), charges=None),
    ),
    "a capture that only the provider knows": (
        "I6",
        lambda: but(charges={**CHARGES, "pay-o2": ProviderCharge("o2", (100,))}),
    ),
    "a provider that captured twice under one key": (
        "I6",
        lambda: but(charges={**CHARGES, "pay-o1": ProviderCharge("o1", (100, 100))}),
    ),
    "a sale without a capture": (
        "I6",
        lambda: but(log={**TRUTH.log, ("bob", "s"): {"type": "sold", "order_id": "o2"}}),
    ),
    "a capture without a sale": ("I6", lambda: log_without(("ann", "o1/sell"))),
    "a cancelled order whose stock was never released": ("I6", lambda: log_without(("bob", "o2/release"))),
    "a cancelled order whose stock is still sold": (
        "I6",
        lambda: but(log={**TRUTH.log, ("cat", "s"): {"type": "sold", "order_id": "o3"}}),
    ),
    "a delivered order whose stock was restocked": (
        "I6",
        lambda: but(log={**TRUTH.log, ("ann", "b"): {"type": "restocked", "order_id": "o1"}}),
    ),
    "another amount than the total, delivered all the same": (
        "I6",
        lambda: but(
            events=tuple(
                dataclasses.replace(event, data={**event.data, "amount": {"amount": 99, "currency": "GBP"}})
                if event.order == "o1" and event.type == "captured"
                else event
                for event in EVENTS
            ),
            payments=tuple(
                dataclasses.replace(event, amount=99) if event.order == "o1" else event for event in TRUTH.payments
            ),
            charges={**CHARGES, "pay-o1": ProviderCharge("o1", (99,))},
        ),
    ),
    "stock that is kept for an order at rest": ("I6", lambda: but(order_holds={"bob": {"MUG": 1}})),
    "a gap in a stream": ("I7", lambda: but(events=tuple(event for event in EVENTS if event.type != "booked"))),
    "two events at one version": (
        "I7",
        lambda: but(events=(*EVENTS, dataclasses.replace(DELIVERED[4], type="cancelling"))),
    ),
    "a stream that begins in the middle": ("I7", lambda: without("o4", "placed")),
    "an order that goes on before it is committed": ("I7", lambda: without("o2", "committed")),
    "a status that its events do not make": (
        "I7",
        lambda: without(
            "o1", change=lambda event: dataclasses.replace(event, status="paid") if event.type == "booked" else event
        ),
    ),
    "delivered, and then cancelled": (
        "I7",
        lambda: but(
            events=(*EVENTS, OrderEvent("o1", "ann", 8, "cancelled", "cancelled", {"reason": "cancelled"})),
            orders={
                **TRUTH.orders,
                "o1": {**TRUTH.orders["o1"], "status": "cancelled", "order_version": 8, "reason": "cancelled"},
            },
        ),
    ),
    "an order that never ends": ("ends", lambda: without("o1", "delivered")),
    "one cart in two tabs that becomes two orders": ("I7", two_orders_of_one_cart),
    "a commit that no order knows": (
        "I7",
        lambda: but(log={**TRUTH.log, ("dan", "c9"): committed("o9")}),
    ),
    "a commit that inventory does not know": ("I7", lambda: log_without(("bob", "c2"))),
    "an order at another total than its holds": (
        "I7",
        lambda: but(log={**TRUTH.log, ("bob", "c2"): {**committed("o2"), "total": {"amount": 1, "currency": "GBP"}}}),
    ),
    "an order that its shopper cannot read": (
        "I7",
        lambda: but(orders={order: body for order, body in TRUTH.orders.items() if order != "o2"}),
    ),
    "an order that is read as it was before": (
        "I7",
        lambda: but(orders={**TRUTH.orders, "o1": {**TRUTH.orders["o1"], "status": "shipped", "order_version": 6}}),
    ),
    "a reason that is read and was not": (
        "I7",
        lambda: but(orders={**TRUTH.orders, "o2": {**TRUTH.orders["o2"], "reason": "expired"}}),
    ),
    "an order that is read and never was": ("I7", lambda: but(orders={**TRUTH.orders, "o9": {"status": "placed"}})),
    "a shopper who was told of an order that never was": (
        "I7",
        lambda: ([*HISTORY, frame(4, "o9", 2, "committed")], TRUTH),
    ),
    "a shopper who was told of a version that never was": (
        "I7",
        lambda: ([*HISTORY, frame(4, "o1", 9, "delivered")], TRUTH),
    ),
    "a shopper who was told another status": ("I7", lambda: ([*HISTORY, frame(4, "o2", 6, "paid", "bob")], TRUTH)),
    "an order that went back before the shopper's eyes": (
        "I7",
        lambda: ([*HISTORY, frame(4, "o1", 6, "shipped")], TRUTH),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_faults_are_found_and_nothing_else(what: str) -> None:
    invariant, broken = BROKEN[what]
    found = {finding.invariant for finding in findings(*broken())}
    # An order that does not end, or loses an event, has its money and its stock in the wrong place as well.
    assert invariant in found
    assert found <= ({"I6", "I7", "ends"} if invariant == "ends" or "before it is committed" in what else {invariant})


def test_the_checker_of_chaos_asks_all_of_this() -> None:
    for invariant, broken in (BROKEN["a refund that was lost"], BROKEN["an order that never ends"]):
        assert invariant in {finding.invariant for finding in check(*broken())}


def test_a_republished_order_may_be_old() -> None:
    for again in (frame(4, "o1", 6, "shipped", replayed=True), frame(4, "o1", 3, "paid")):
        assert findings([*HISTORY, again], TRUTH) == []
    late = [*HISTORY, frame(4, "o1", 6, "shipped")]
    assert "I7" not in {finding.invariant for finding in check(late, TRUTH, zombies=True)}
    assert findings([*HISTORY, frame(4, "o1", 6, "shipped", id="of a cancellation")], TRUTH) == []  # as it stood then
    by_hand = HistoryEntry(4, NEMESIS, "invoke", "replay")
    assert findings([*HISTORY, by_hand, *late[-1:]], TRUTH) == []
    assert findings([*HISTORY[1:], HISTORY[0]], TRUTH) == []  # the cart, which was dead meanwhile


def test_a_webhook_that_a_stranger_signed_must_not_be_taken() -> None:
    told = HistoryEntry(1, NEMESIS, "ok", "webhooks", value={"good 202": 3, "forged 401": 1, "stale 401": 1})
    assert not list(check_webhooks([told]))
    assert list(check_webhooks([dataclasses.replace(told, value={"forged 202": 1})]))


# ---- rare ways ------------------------------------------------------------------------------------------------------


def test_rare_ways_are_counted() -> None:
    too_late = HistoryEntry(9, "shopper-1", "fail", "cancel", user="ann", value={"problem": "order-not-cancellable"})
    counts = +rare_outcomes.count_outcomes([too_late], TRUTH)
    assert counts == {
        "orders": 4,
        "delivered": 1,
        "cancelled: declined": 1,
        "cancelled: payment_unavailable": 1,
        "cancelled: cart_changed": 1,
        rare_outcomes.LATE_CAPTURE: 1,
        rare_outcomes.DUPLICATE: 1,
        rare_outcomes.AFTER_EXPIRY: 1,
        rare_outcomes.VOID_TOO_LATE: 1,
        rare_outcomes.TO_CART: 1,
        rare_outcomes.TWO_TABS: 1,
        rare_outcomes.CART_CHANGED: 1,
        rare_outcomes.CANCELLED_LATE: 1,
    }


def test_a_declined_order_whose_cart_others_took_is_not_back_in_the_cart() -> None:
    taken = (*TRUTH.ledger, LedgerRow("MUG", 4, "bob", "o2/release", "release", 0, -1, 0))
    assert not rare_outcomes.count_outcomes([], dataclasses.replace(TRUTH, ledger=taken))[rare_outcomes.TO_CART]


def test_a_set_of_scenarios_without_a_rare_way_says_which() -> None:
    assert missing_rare_outcomes([]) == [*rare_outcomes.RARE_OUTCOMES]


def test_the_providers_history_becomes_its_ledger() -> None:
    history = [
        {"seq": 1, "charge": "pay-o1", "key": "pay-o1", "type": "captured", "amount": 100, "order_id": "o1"},
        {"seq": 2, "charge": "pay-o3", "key": "pay-o3", "type": "captured", "amount": 100, "order_id": "o3"},
        {"seq": 3, "charge": "pay-o3", "key": "back-o3", "type": "refunded", "amount": 100, "order_id": "o3"},
        {
            "seq": 4,
            "charge": "pay-x",
            "key": "pay-x",
            "type": "captured",
            "amount": 7,
            "order_id": "another scenario's",
        },
    ]
    assert charges_by_payment(history, {"o1", "o3"}) == TRUTH.charges


# ---- how shoppers check out -----------------------------------------------------------------------------------------


def test_one_card_in_five_is_faulty_and_each_kind_comes_soon() -> None:
    cards = [*islice(checkouts.assign_cards(random.Random(1)), 2000)]
    assert sum(card.token != "tok_approve" for card in cards) == 400
    for first in range(0, 2000, len(checkouts.CARD_BATCH)):
        hand = cards[first : first + len(checkouts.CARD_BATCH)]
        assert {card.token for card in hand} >= {card.token for card in checkouts.FAILING_CARDS}
        assert sum(card.undeliverable for card in hand) == 1


def test_a_checkout_is_of_the_cart_as_its_client_shows_it() -> None:
    chance = random.Random(2)
    conversation = ClientState(lambda: "id")
    conversation.apply({"type": "cart", "version": 7, "lines": []})

    def made(way: checkouts.CheckoutKind, card: checkouts.Card = checkouts.VALID_CARD) -> Frame:
        return checkouts.checkout_frame(way, conversation, "MUG", card, chance)

    assert made("socket")["version"] == 7
    assert made("old version")["version"] == 6
    assert "version" not in made("items")
    assert made("wrong total")["expect"]["total"]["amount"] == 1
    body = checkouts.http_body(made("http", checkouts.Card("tok_late", undeliverable=True)))
    assert (body["payment"], body["address"]["name"]) == ({"token": "tok_late"}, "FAIL")
    assert not body.keys() & {"id", "type"}
