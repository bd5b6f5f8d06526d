"""The types of the rules: stock, carts, holds of orders, and the changes that a batch makes to them.

`model` decides about carts and `order_rules` about orders; both return a `Decision`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import floor
from typing import Final, NamedTuple

from contracts.inventory import (
    MAX_QUANTITY,
    Cart,
    Expire,
    HoldState,
    Line,
    Money,
    Outcome,
    Purpose,
    ReleaseOrder,
    Request,
    Restock,
    Sell,
    StoredOutcome,
)
from inventory_service.fingerprint import Fingerprint

EXPIRY_PREFIX: Final = "⏳"
"""Prefix of expiry ids in `request_log`. Client ids are ASCII, so no client can pre-register one to keep its cart
alive."""
STEP_PREFIX: Final = "⚑"
"""Prefix of the ids of order steps, which a client could guess from the order's id."""
ID_PREFIXES: Final[Mapping[type, str]] = {
    Expire: EXPIRY_PREFIX,
    Sell: STEP_PREFIX,
    ReleaseOrder: STEP_PREFIX,
    Restock: STEP_PREFIX,
}


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Time limits of carts and requests."""

    idle_timeout: timedelta = timedelta(minutes=15)
    """Lifetime of a cart after each granted add or set."""
    max_lifetime: timedelta = timedelta(minutes=60)
    """Maximum lifetime of a cart after its first hold."""
    max_age: timedelta = timedelta(days=7)
    """Maximum age of a request that is not in the log; an older one is refused as `expired`."""
    max_skew: timedelta = timedelta(minutes=5)
    """Maximum distance of a request's time into the future; a greater one is refused as `bad_field`."""


@dataclass(frozen=True, slots=True)
class HoldingLimits:
    """The most units of one product that one shopper may hold, in the cart and in orders that are not sold yet.

    Holding costs nothing, so without a limit one guest could take the whole stock from all others.
    """

    units: int = MAX_QUANTITY
    """The most units of a product, however many there are."""
    share: float = 1.0
    """The greatest share of a product's stock, rounded down; 1 lifts the limit."""
    free_units: int = 0
    """Units that a shopper may hold whatever share of the stock they are."""

    def most(self, stock: "StockLevel") -> int:
        """Return the most units of a product that one shopper may hold."""
        return min(self.units, max(self.free_units, floor(self.share * (stock.received - stock.sold))))


# ---- state ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class StockLevel:
    """The stock row of one product."""

    received: int
    held: int
    sold: int
    price: Money
    version: int
    for_sale: bool = True

    @property
    def available(self) -> int:
        """Units that are neither held nor sold."""
        return self.received - self.held - self.sold


@dataclass(slots=True)
class CartState:
    """One shopper's cart. `revision` grows by one with each request that changes the cart."""

    revision: int = 0
    first_held_at: datetime | None = None
    expires_at: datetime | None = None
    just_expired: bool = False
    """True if the last change of the cart was its expiry."""
    lines: dict[str, Line] = field(default_factory=dict)
    _view: Cart | None = None

    def to_message(self) -> Cart:
        """Return the cart as a message. It is built once per revision, and shared by all replies."""
        if self._view is None or self._view.revision != self.revision:
            lines = tuple(line for _, line in sorted(self.lines.items()))
            self._view = Cart(revision=self.revision, expires_at=self.expires_at, lines=lines)
        return self._view

    def can_hold(self, currency: str) -> bool:
        """Return whether a new line may have a price in `currency`: all lines of a cart have the same one."""
        return all(line.price.currency == currency for line in self.lines.values())

    def extended_expiry(self, now: datetime, rules: TimeLimits) -> datetime:
        """Return when the cart expires if a hold is granted now."""
        return truncate_to_milliseconds(min(now + rules.idle_timeout, (self.first_held_at or now) + rules.max_lifetime))


class OrderHolds(NamedTuple):
    """The holds of an order, kept indefinitely so that no step takes effect twice.

    An order without lines was released before its commit arrived; that commit is refused.
    """

    order_id: str
    user: str
    lines: tuple[Line, ...] = ()
    state: HoldState = "CANCELLED"
    purpose: Purpose | None = None
    revision: int = 0
    """Revision of the cart after the commit."""


def pending_units(orders: Iterable[OrderHolds]) -> Counter[tuple[str, str]]:
    """Return the units that orders hold and that are not sold yet, by user and product."""
    units: Counter[tuple[str, str]] = Counter()
    for order in orders:
        for line in order.lines if order.state == "PENDING" else ():
            units[order.user, line.product] += line.quantity
    return units


class LogEntry(NamedTuple):
    """A request in the log, with its outcome."""

    fingerprint: Fingerprint
    outcome: StoredOutcome


LogKey = tuple[str, str]
"""Primary key of the log: user id and request id, with a prefix for ids that clients may not choose."""


class DueCart(NamedTuple):
    """A cart that was due at `due`, at `revision`."""

    user: str
    due: datetime
    revision: int


class LedgerRow(NamedTuple):
    """A change of a product's stock, as differences, and the product's `version` after the change."""

    product: str
    version: int
    key: LogKey
    cause: str
    received: int
    held: int
    sold: int
    order_id: str | None


@dataclass(slots=True)
class State:
    """The locked rows, and the keys of those that the fold has changed. Each key is written once per batch."""

    now: datetime
    carts: dict[str, CartState]
    stock_levels: dict[str, StockLevel]
    log: dict[LogKey, LogEntry]
    expiry_ids: Mapping[str, str] = field(default_factory=dict)
    """Id of the expiry of each due cart, by user."""
    time_limits: TimeLimits = field(default_factory=TimeLimits)
    order_holds: dict[str, OrderHolds] = field(default_factory=dict)
    """Holds by order id."""
    holding_limits: HoldingLimits = field(default_factory=HoldingLimits)
    pending_units: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Units that the orders of a user hold and that are not sold yet, by user and product."""
    changed_carts: set[str] = field(default_factory=set)
    changed_lines: set[tuple[str, str]] = field(default_factory=set)
    new_orders: set[str] = field(default_factory=set)
    changed_orders: set[str] = field(default_factory=set)
    ledger_rows: list[LedgerRow] = field(default_factory=list)
    new_log_entries: list[tuple[LogKey, LogEntry, int]] = field(default_factory=list)
    undelivered: list[DueCart] = field(default_factory=list)
    """Expiries found by requests that are not expiry requests.

    Such a request publishes the expiry only once, so the store keeps it until an expiry request has been sent for it.
    """


def is_due(cart: CartState, now: datetime) -> bool:
    """Return whether the cart has reached its expiry time."""
    return cart.expires_at is not None and cart.expires_at <= now


def truncate_to_milliseconds(time: datetime) -> datetime:
    """Truncate a time to milliseconds. Messages carry milliseconds, so the stored time equals the published one."""
    return time - timedelta(microseconds=time.microsecond % 1000)


# ---- commands, decisions and replies --------------------------------------------------------------------------------


class Command(NamedTuple):
    """A request with its id and the time of its first acceptance."""

    id: str
    accepted_at: datetime
    request: Request

    @property
    def key(self) -> LogKey:
        """Key of this request in the log."""
        return self.request.user_id, ID_PREFIXES.get(type(self.request), "") + self.id


class LineChange(NamedTuple):
    """The new line of a product in the cart; `None` removes the line."""

    product: str
    line: Line | None


class StockDelta(NamedTuple):
    """Changes of a product's stock counters, as differences."""

    product: str
    received: int = 0
    held: int = 0
    sold: int = 0


class Decision(NamedTuple):
    """Outcome of a request and its effects. Each change in `line_changes` raises the cart's revision."""

    outcome: StoredOutcome
    line_changes: tuple[LineChange, ...] = ()
    stock_deltas: tuple[StockDelta, ...] = ()
    expires_at: datetime | None = None
    """New expiry time of the cart; `None` keeps the current one."""
    order_holds: OrderHolds | None = None
    """New holds of the order; `None` if they do not change."""


class Reply(NamedTuple):
    """The reply to request `id`, which differs from `command.id` if the request found its cart due."""

    command: Command
    id: str
    outcome: Outcome
    cart: Cart
    replayed: bool = False
