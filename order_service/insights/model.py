"""What counts, once and where: events as facts, facts as numbers in windows of time, orders as baskets.

Pure. A fact has a key of its own, so that it counts once however often it is told, and it falls into the windows of its
own time, however late it comes. Numbers are only ever added up, so the order of arrival does not matter.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Final

from cart_service import messages as cart
from infrastructure.envelope import Envelope, Vocabulary
from order_service import messages as orders
from order_service.insights.messages import LENGTHS, By
from order_service.payment import messages as payments

OrderEvent = orders.Placed | orders.Committed | orders.Confirmed | orders.Cancelled
PaymentEvent = payments.Captured | payments.Declined | payments.Refunded
CartEvent = cart.Held | cart.Refused | cart.Expired
Event = OrderEvent | PaymentEvent | CartEvent

ORDER_EVENTS: Final[Vocabulary[OrderEvent]] = Vocabulary(
    (orders.Placed, orders.Committed, orders.Confirmed, orders.Cancelled), sources=("/orders",)
)
PAYMENT_EVENTS: Final[Vocabulary[PaymentEvent]] = Vocabulary(
    (payments.Captured, payments.Declined, payments.Refunded), sources=("/payments",)
)
CART_EVENTS: Final[Vocabulary[CartEvent]] = Vocabulary((cart.Held, cart.Refused, cart.Expired), sources=("/cart",))

MARGIN: Final = timedelta(days=1)
"""How much longer than an event can come again its key is remembered: clocks differ, topics are trimmed by segments."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that happened. `counts` are its numbers by figure, money by figure and currency.

    `kept` is how long its topic keeps it. `shopper` had something held at that time, and if `bought` ordered it.
    """

    key: tuple[str, ...]
    at: datetime
    kept: timedelta
    counts: Mapping[str, int]
    money: Mapping[tuple[str, str], int] = field(default_factory=dict)
    shopper: str | None = None
    bought: bool = False

    def too_late(self, now: datetime) -> bool:
        """Whether it is older than its topic keeps anything: its key may be forgotten, and whether it was counted."""
        return now - self.at > self.kept

    @property
    def remembered_until(self) -> datetime:
        """From then on it is too late, on every clock."""
        return self.at + self.kept + MARGIN


def fact(event: Envelope, message: Event) -> Fact | None:
    """What an event adds to the figures; none for a refusal that is not of a hold."""
    at = event.time
    match message:
        case orders.Placed() | orders.Committed() | orders.Confirmed() | orders.Cancelled():
            return _of_order(at, message)
        case payments.Captured() | payments.Declined() | payments.Refunded():
            return _of_payment(at, message)
        case cart.Held(user_id=user, id=id_):
            return _of_cart(at, (user, id_), "holds_granted", shopper=user)
        case cart.Refused(user_id=user, id=id_, product=product):
            # The checkout of a cart is refused as a whole and names no product; it shows in the cancelled orders.
            return _of_cart(at, (user, id_), "holds_refused") if product is not None else None
        case cart.Expired(user_id=user, version=version):
            return _of_cart(at, (user, str(version), "expired"), "carts_expired")


def _of_order(at: datetime, message: OrderEvent) -> Fact:
    key, kept = ("order", message.order_id, str(message.version)), _kept(orders.EVENTS.retention)
    match message:
        case orders.Committed(total=total, user_id=user):
            money = {("orders", total.currency): 1, ("ordered", total.currency): total.amount}
            return Fact(key, at, kept, {"orders_committed": 1}, money, shopper=user, bought=True)
        case orders.Placed():
            return Fact(key, at, kept, {"orders_placed": 1})
        case orders.Confirmed():
            return Fact(key, at, kept, {"orders_confirmed": 1})
        case orders.Cancelled():
            return Fact(key, at, kept, {"orders_cancelled": 1})


def _of_payment(at: datetime, message: PaymentEvent) -> Fact:
    kept = _kept(payments.EVENTS.retention)
    match message:
        case payments.Captured(payment_id=id_, amount=amount):
            money = {("captured", amount.currency): amount.amount}
            return Fact(("captured", id_), at, kept, {"payments_captured": 1}, money)
        case payments.Declined(payment_id=id_):
            return Fact(("declined", id_), at, kept, {"payments_declined": 1})
        case payments.Refunded(refund_id=id_, amount=amount):
            money = {("refunded", amount.currency): amount.amount}
            return Fact(("refunded", id_), at, kept, {"payments_refunded": 1}, money)


def _of_cart(at: datetime, key: tuple[str, ...], figure: str, *, shopper: str | None = None) -> Fact:
    return Fact(("cart", *key), at, _kept(cart.RESPONSES.retention), {figure: 1}, shopper=shopper)


def _kept(retention: timedelta | None) -> timedelta:
    assert retention is not None, "only topics that are trimmed by age are counted"
    return retention


# ---- windows --------------------------------------------------------------------------------------------------------

Window = tuple[By, datetime]
Tallies = Counter[tuple[By, datetime, str, str]]
"""What to add: by window, figure and currency (empty for what is no money)."""


def windows(at: datetime) -> Iterator[Window]:
    """The minute, the hour and the day of UTC that an instant falls into."""
    utc = at.astimezone(UTC)
    for by, length in LENGTHS.items():
        midnight = utc.replace(hour=0, minute=0, second=0, microsecond=0)
        yield by, midnight + (utc - midnight) // length * length


def tallies(facts: Iterable[Fact]) -> Tallies:
    """What facts add to their windows, each counted once for each time that it is given."""
    sums: Tallies = Counter()
    for each in facts:
        for by, start in windows(each.at):
            for figure, count in each.counts.items():
                sums[by, start, figure, ""] += count
            for (figure, currency), amount in each.money.items():
                sums[by, start, figure, currency] += amount
    return sums


@dataclass(frozen=True, slots=True)
class Presence:
    """A shopper in a window, counted once there: as one for whom something was held, or as one who bought."""

    by: By
    start: datetime
    figure: str
    user: str
    until: datetime

    @property
    def key(self) -> tuple[str, ...]:
        """What it is remembered by."""
        return self.figure, self.by, self.start.isoformat(), self.user


def presences(facts: Iterable[Fact]) -> Iterator[Presence]:
    """The shoppers that facts tell of, in each of their windows."""
    for each in facts:
        if each.shopper is not None:
            for by, start in windows(each.at):
                yield Presence(by, start, "shoppers", each.shopper, each.remembered_until)
                if each.bought:
                    yield Presence(by, start, "buyers", each.shopper, each.remembered_until)


# ---- orders as baskets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Basket:
    """What is known of an order: its products, none as long as it is not committed, and whether it was cancelled."""

    products: tuple[str, ...] | None = None
    cancelled: bool = False

    @property
    def counted(self) -> tuple[str, ...]:
        """The products that count: those of an order that is committed and not cancelled."""
        return self.products if self.products is not None and not self.cancelled else ()

    def after(self, message: orders.Committed | orders.Cancelled) -> "Basket":
        """The basket once this is known, too; events may come in any order and any number of times."""
        match message:
            case orders.Committed(lines=lines):
                return Basket(tuple(sorted({line.product for line in lines})), self.cancelled)
            case orders.Cancelled():
                return Basket(self.products, cancelled=True)


@dataclass(frozen=True, slots=True)
class Learnt:
    """What to add to the counts of orders, of products in orders, and of pairs of products in orders."""

    orders: int
    products: Counter[str]
    pairs: Counter[tuple[str, str]]


def learnt(changes: Iterable[tuple[Basket, Basket]]) -> Learnt:
    """What baskets that changed (before, after) add to the counts, or take from them."""
    total, products, pairs = 0, Counter[str](), Counter[tuple[str, str]]()
    for before, after in changes:
        for sign, counted in ((-1, before.counted), (1, after.counted)):
            total += sign * bool(counted)
            for product in counted:
                products[product] += sign
            for pair in combinations(counted, 2):
                pairs[pair] += sign
    return Learnt(
        total,
        Counter({product: change for product, change in products.items() if change}),
        Counter({pair: change for pair, change in pairs.items() if change}),
    )
