"""Count the ends of orders and their rare outcomes: a run without one has not tested it. No I/O."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from load.chaos.checks.observed_state import ObservedState, OrderEvent
from load.chaos.checks.order_streams import streams_by_order
from load.chaos.history import NEMESIS, HistoryEntry

LATE_CAPTURE: Final = "late capture refunded"
DUPLICATE: Final = "duplicate capture refused"
AFTER_EXPIRY: Final = "compensation after expiry"
VOID_TOO_LATE: Final = "void that came too late"
VOIDED: Final = "void in time"
TO_CART: Final = "declined, released to the cart"
CANCELLED: Final = "cancelled before shipment"
CANCELLED_LATE: Final = "cancelled too late"
TWO_TABS: Final = "two tabs, one order"
WRONG_AMOUNT: Final = "wrong amount refunded"
RETURNED: Final = "parcel that came back"
CART_CHANGED: Final = "checkout of a changed cart refused"
CART_EXPIRED: Final = "checkout of an expired cart refused"

RARE_OUTCOMES: Final[Mapping[str, str]] = {
    LATE_CAPTURE: "a payment was captured while the order was being cancelled, and was refunded",
    DUPLICATE: "payment published a capture more than once; the order applied it once",
    AFTER_EXPIRY: "no answer about a payment within its deadline; the order was compensated",
    VOID_TOO_LATE: "a charge to be voided had already been captured",
    VOIDED: "a charge was voided and never captured",
    TO_CART: "a card was declined and the cart restored completely",
    CANCELLED: "a shopper cancelled in time",
    CANCELLED_LATE: "a shopper cancelled after shipment and was refused",
    TWO_TABS: "one cart was checked out twice at once and became one order",
    WRONG_AMOUNT: "the provider captured a wrong amount, which was refunded",
    RETURNED: "a parcel was undeliverable; money was refunded and stock restored",
    CART_CHANGED: "the cart had changed since the shopper saw it",
    CART_EXPIRED: "the cart had expired, or was empty",
}
"""Descriptions of all rare outcomes."""


def count_outcomes(history: Sequence[HistoryEntry], state: ObservedState) -> Counter[str]:
    """Count orders, their ends, and each rare outcome."""
    totals: Counter[str] = Counter()
    payments: Counter[tuple[str, str]] = Counter((event.order, event.type) for event in state.payments)
    carts: Counter[tuple[str, int]] = Counter()
    committed: set[tuple[str, int]] = set()
    kept = _restored_to_cart(state)
    for order, stream in streams_by_order(state).items():
        types = [event.type for event in stream.values()]
        first, end = stream[min(stream)], _end(stream)
        cart = (first.user, first.data.get("cart_version") or 0)
        if first.data.get("cart_version") is not None:
            carts[cart] += 1
            committed |= {cart} if "committed" in types else set()
        totals["orders"] += 1
        totals[end] += 1
        captured = types.index("captured") if "captured" in types else None
        cancelling = types.index("cancelling") if "cancelling" in types else len(types)
        late = captured is not None and captured > cancelling and end != "cancelled: wrong_amount"
        totals[LATE_CAPTURE] += late and "refunded" in types
        totals[DUPLICATE] += payments[order, "captured"] > 1 and types.count("captured") == 1
        totals[AFTER_EXPIRY] += end == "cancelled: payment_unavailable" and "committed" in types
        totals[VOID_TOO_LATE] += payments[order, "void"] > 0 and payments[order, "captured"] > 0
        totals[VOIDED] += payments[order, "voided"] > 0 and not payments[order, "captured"]
        totals[TO_CART] += end == "cancelled: declined" and order in kept
        totals[CANCELLED] += end == "cancelled: cancelled"
        totals[WRONG_AMOUNT] += end == "cancelled: wrong_amount" and "refunded" in types
        totals[RETURNED] += end == "cancelled: delivery_failed" and "refunded" in types
        totals[CART_CHANGED] += end == "cancelled: cart_changed"
        totals[CART_EXPIRED] += end in {"cancelled: expired", "cancelled: cart_empty"}
    totals[TWO_TABS] = sum(number > 1 and cart in committed for cart, number in carts.items())
    totals[CANCELLED_LATE] = sum(
        entry.f == "cancel" and entry.type == "fail" and entry.value.get("problem") == "order-not-cancellable"
        for entry in history
        if entry.proc != NEMESIS
    )
    return totals


def _end(stream: Mapping[int, OrderEvent]) -> str:
    """Return `delivered`, `cancelled: REASON` or `open`."""
    for event in stream.values():
        if event.type == "delivered":
            return "delivered"
        if event.type == "cancelled":
            return f"cancelled: {event.data.get('reason')}"
    return "open"


def _restored_to_cart(state: ObservedState) -> set[str]:
    """Return the orders whose release returned no unit to available stock: all of them went into the cart."""
    released_stock = {(row.user, row.id) for row in state.ledger if row.held < 0}
    return {
        outcome["order_id"]
        for key, outcome in state.log.items()
        if outcome["type"] == "released" and key not in released_stock
    }
