"""What became of the orders, counted, with the rare ways by their names: a run without one has not tested it. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from load.chaos.history import NEMESIS, Entry
from load.chaos.streams import streams_of
from load.chaos.truth import OrderEvent, Truth

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

EVERY: Final[Mapping[str, str]] = {
    LATE_CAPTURE: "the money came when the order was being cancelled, and went back",
    DUPLICATE: "payment told of a capture more than once, the order took it once",
    AFTER_EXPIRY: "nothing was heard of a payment for as long as the shop is patient, and all was undone",
    VOID_TOO_LATE: "a charge was to be voided, and had been captured",
    VOIDED: "a charge was voided, and nothing was ever captured",
    TO_CART: "a card was declined, and the shopper has the cart again, nothing of it lost to others",
    CANCELLED: "a shopper changed their mind in time",
    CANCELLED_LATE: "a shopper changed their mind when the parcel was gone, and was told so",
    TWO_TABS: "one cart was checked out twice at once, and became one order",
    WRONG_AMOUNT: "the provider took another amount than it was asked for, and it went back",
    RETURNED: "nobody was there to take it: the money went back, and the stock",
    CART_CHANGED: "the cart was not the one that the shopper saw",
    CART_EXPIRED: "the cart's time was over, or it was empty by then",
}
"""Each rare way, and what it is."""


def counts(history: Sequence[Entry], truth: Truth) -> Counter[str]:
    """How many orders there were, how they ended, and how often each rare way was taken."""
    found: Counter[str] = Counter()
    payments: Counter[tuple[str, str]] = Counter((event.order, event.type) for event in truth.payments)
    carts: Counter[tuple[str, int]] = Counter()
    committed: set[tuple[str, int]] = set()
    kept = _kept_from_others(truth)
    for order, stream in streams_of(truth).items():
        types = [event.type for event in stream.values()]
        first, end = stream[min(stream)], _end(stream)
        cart = (first.user, first.data.get("cart_version") or 0)
        if first.data.get("cart_version") is not None:
            carts[cart] += 1
            committed |= {cart} if "committed" in types else set()
        found["orders"] += 1
        found[end] += 1
        captured = types.index("captured") if "captured" in types else None
        cancelling = types.index("cancelling") if "cancelling" in types else len(types)
        late = captured is not None and captured > cancelling and end != "cancelled: wrong_amount"
        found[LATE_CAPTURE] += late and "refunded" in types
        found[DUPLICATE] += payments[order, "captured"] > 1 and types.count("captured") == 1
        found[AFTER_EXPIRY] += end == "cancelled: payment_unavailable" and "committed" in types
        found[VOID_TOO_LATE] += payments[order, "void"] > 0 and payments[order, "captured"] > 0
        found[VOIDED] += payments[order, "voided"] > 0 and not payments[order, "captured"]
        found[TO_CART] += end == "cancelled: declined" and order in kept
        found[CANCELLED] += end == "cancelled: cancelled"
        found[WRONG_AMOUNT] += end == "cancelled: wrong_amount" and "refunded" in types
        found[RETURNED] += end == "cancelled: delivery_failed" and "refunded" in types
        found[CART_CHANGED] += end == "cancelled: cart_changed"
        found[CART_EXPIRED] += end in {"cancelled: expired", "cancelled: cart_empty"}
    found[TWO_TABS] = sum(number > 1 and cart in committed for cart, number in carts.items())
    found[CANCELLED_LATE] = sum(
        entry.f == "cancel" and entry.type == "fail" and entry.value.get("problem") == "order-not-cancellable"
        for entry in history
        if entry.proc != NEMESIS
    )
    return found


def _end(stream: Mapping[int, OrderEvent]) -> str:
    """`delivered`, or `cancelled` with its reason, or `open`."""
    for event in stream.values():
        if event.type == "delivered":
            return "delivered"
        if event.type == "cancelled":
            return f"cancelled: {event.data.get('reason')}"
    return "open"


def _kept_from_others(truth: Truth) -> set[str]:
    """Orders whose release gave no unit back to the shelves: all of it went into the cart."""
    gave_back = {(row.user, row.id) for row in truth.ledger if row.held < 0}
    return {
        outcome["order_id"]
        for key, outcome in truth.log.items()
        if outcome["type"] == "released" and key not in gave_back
    }
