"""The pure model of the insights: events become facts, facts are counted in time windows, orders become baskets.

A fact has a unique key, so a repeated event is counted once. It is counted in the windows of its own time, however late
it arrives. Counters are only added to, so the order of arrival does not matter.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Final

from contracts import cart, orders, payments
from contracts.envelope import Envelope, MessageRegistry
from contracts.insights import WINDOW_LENGTHS, WindowUnit

OrderEvent = orders.Placed | orders.Committed | orders.Confirmed | orders.Cancelled
PaymentEvent = payments.Captured | payments.Declined | payments.Refunded
CartEvent = cart.Held | cart.Refused | cart.Expired
Event = OrderEvent | PaymentEvent | CartEvent

ORDER_EVENTS: Final[MessageRegistry[OrderEvent]] = MessageRegistry(
    (orders.Placed, orders.Committed, orders.Confirmed, orders.Cancelled), sources=("/orders",)
)
PAYMENT_EVENTS: Final[MessageRegistry[PaymentEvent]] = MessageRegistry(
    (payments.Captured, payments.Declined, payments.Refunded), sources=("/payments",)
)
CART_EVENTS: Final[MessageRegistry[CartEvent]] = MessageRegistry(
    (cart.Held, cart.Refused, cart.Expired), sources=("/cart",)
)

KEY_RETENTION_MARGIN: Final = timedelta(days=1)
"""The time for which a key outlives the retention of its topic: clocks differ, and Kafka deletes whole segments."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A countable fact from one event."""

    key: tuple[str, ...]
    """The unique key, under which the fact is counted once."""
    at: datetime
    """The time of the event."""
    retention: timedelta
    """The retention of the event's topic."""
    counts: Mapping[str, int]
    """The numbers to add, by figure."""
    money: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """The amounts to add in minor units, by figure and currency."""
    shopper: str | None = None
    """The shopper of a granted hold or a committed order."""
    is_purchase: bool = False
    """True for a committed order."""

    def is_too_late(self, now: datetime) -> bool:
        """Return True if the fact is older than the retention of its topic: its key may be deleted already."""
        return now - self.at > self.retention

    @property
    def stored_until(self) -> datetime:
        """The time from which the fact is too late by every clock, so that its key can be deleted."""
        return self.at + self.retention + KEY_RETENTION_MARGIN


def to_fact(event: Envelope, message: Event) -> Fact | None:
    """Return the fact of an event, `None` for a refusal of anything but a hold."""
    at = event.time
    match message:
        case orders.Placed() | orders.Committed() | orders.Confirmed() | orders.Cancelled():
            return _order_fact(at, message)
        case payments.Captured() | payments.Declined() | payments.Refunded():
            return _payment_fact(at, message)
        case cart.Held(user_id=user, id=id_):
            return _cart_fact(at, (user, id_), "holds_granted", shopper=user)
        case cart.Refused(user_id=user, id=id_, product=product):
            # A refused checkout names no product; it is counted as a cancelled order.
            return _cart_fact(at, (user, id_), "holds_refused") if product is not None else None
        case cart.Expired(user_id=user, version=version):
            return _cart_fact(at, (user, str(version), "expired"), "carts_expired")


def _order_fact(at: datetime, message: OrderEvent) -> Fact:
    key, kept = ("order", message.order_id, str(message.version)), _required_retention(orders.EVENTS.retention)
    match message:
        case orders.Committed(total=total, user_id=user):
            money = {("orders", total.currency): 1, ("ordered", total.currency): total.amount}
            return Fact(key, at, kept, {"orders_committed": 1}, money, shopper=user, is_purchase=True)
        case orders.Placed():
            return Fact(key, at, kept, {"orders_placed": 1})
        case orders.Confirmed():
            return Fact(key, at, kept, {"orders_confirmed": 1})
        case orders.Cancelled():
            return Fact(key, at, kept, {"orders_cancelled": 1})


def _payment_fact(at: datetime, message: PaymentEvent) -> Fact:
    kept = _required_retention(payments.EVENTS.retention)
    match message:
        case payments.Captured(payment_id=id_, amount=amount):
            money = {("captured", amount.currency): amount.amount, ("payments", amount.currency): 1}
            return Fact(("captured", id_), at, kept, {"payments_captured": 1}, money)
        case payments.Declined(payment_id=id_):
            return Fact(("declined", id_), at, kept, {"payments_declined": 1})
        case payments.Refunded(refund_id=id_, amount=amount):
            money = {("refunded", amount.currency): amount.amount}
            return Fact(("refunded", id_), at, kept, {"payments_refunded": 1}, money)


def _cart_fact(at: datetime, key: tuple[str, ...], figure: str, *, shopper: str | None = None) -> Fact:
    return Fact(("cart", *key), at, _required_retention(cart.RESPONSES.retention), {figure: 1}, shopper=shopper)


def _required_retention(retention: timedelta | None) -> timedelta:
    assert retention is not None, "only events of topics with a retention can be counted"
    return retention


# ---- windows --------------------------------------------------------------------------------------------------------

Window = tuple[WindowUnit, datetime]
WindowSums = Counter[tuple[WindowUnit, datetime, str, str]]
"""The numbers to add, by window, figure and currency (empty for counts)."""


def windows_containing(at: datetime) -> Iterator[Window]:
    """Yield the minute, the hour and the day (UTC) that contain an instant."""
    utc = at.astimezone(UTC)
    for by, length in WINDOW_LENGTHS.items():
        midnight = utc.replace(hour=0, minute=0, second=0, microsecond=0)
        yield by, midnight + (utc - midnight) // length * length


def sum_by_window(facts: Iterable[Fact]) -> WindowSums:
    """Return the sums that facts add to their windows. A fact that is given twice is added twice."""
    sums: WindowSums = Counter()
    for each in facts:
        for by, start in windows_containing(each.at):
            for figure, count in each.counts.items():
                sums[by, start, figure, ""] += count
            for (figure, currency), amount in each.money.items():
                sums[by, start, figure, currency] += amount
    return sums


@dataclass(frozen=True, slots=True)
class ShopperInWindow:
    """A shopper who is counted once in a window."""

    by: WindowUnit
    """The kind of the window."""
    start: datetime
    """The start of the window."""
    figure: str
    """The figure to count in: `shoppers` or `buyers`."""
    user: str
    """The id of the shopper."""
    stored_until: datetime
    """The time until which the key must be stored."""

    @property
    def key(self) -> tuple[str, ...]:
        """The unique key, under which the shopper is counted once."""
        return self.figure, self.by, self.start.isoformat(), self.user


def shoppers_in_windows(facts: Iterable[Fact]) -> Iterator[ShopperInWindow]:
    """Yield the shoppers of facts in each of their windows."""
    for each in facts:
        if each.shopper is not None:
            for by, start in windows_containing(each.at):
                yield ShopperInWindow(by, start, "shoppers", each.shopper, each.stored_until)
                if each.is_purchase:
                    yield ShopperInWindow(by, start, "buyers", each.shopper, each.stored_until)


# ---- orders as baskets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrderBasket:
    """The basket of one order."""

    products: tuple[str, ...] | None = None
    """The products in code order, `None` before the order is committed."""
    cancelled: bool = False
    """True if the order was cancelled."""

    @property
    def countable_products(self) -> tuple[str, ...]:
        """The products to count, empty unless the order is committed and not cancelled."""
        return self.products if self.products is not None and not self.cancelled else ()

    def apply(self, message: orders.Committed | orders.Cancelled) -> "OrderBasket":
        """Return the basket after an event. Events may arrive in any order and any number of times."""
        match message:
            case orders.Committed(lines=lines):
                return OrderBasket(tuple(sorted({line.product for line in lines})), self.cancelled)
            case orders.Cancelled():
                return OrderBasket(self.products, cancelled=True)


@dataclass(frozen=True, slots=True)
class CountChanges:
    """The changes to the basket counts."""

    orders: int
    """The change of the number of orders."""
    products: Counter[str]
    """The change of the number of orders with each product."""
    pairs: Counter[tuple[str, str]]
    """The change of the number of orders with each pair of products."""


def count_changes(changes: Iterable[tuple[OrderBasket, OrderBasket]]) -> CountChanges:
    """Return the changes to the counts that result from changed baskets, each given as (before, after)."""
    total, products, pairs = 0, Counter[str](), Counter[tuple[str, str]]()
    for before, after in changes:
        for sign, counted in ((-1, before.countable_products), (1, after.countable_products)):
            total += sign * bool(counted)
            for product in counted:
                products[product] += sign
            for pair in combinations(counted, 2):
                pairs[pair] += sign
    return CountChanges(
        total,
        Counter({product: change for product, change in products.items() if change}),
        Counter({pair: change for pair, change in pairs.items() if change}),
    )
