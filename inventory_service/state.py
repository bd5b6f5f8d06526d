"""The nouns of the rules: shelves, carts, what is reserved for orders, and what a batch has changed of them.

`model` decides about carts and `orders` about orders; both say what they decided in the same few words, a `Decision`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from inventory_service.content import Content
from inventory_service.messages import (
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

EXPIRY_MARK: Final = "⏳"
"""Stands before an expiry's id in the log. No client's id can hold it, so nobody can take the id of a coming expiry
beforehand and so keep a cart alive for ever."""
STEP_MARK: Final = "⚑"
"""The same for what is done with an order's holds: the ids of these steps can be guessed from the order's."""
MARKS: Final[Mapping[type, str]] = {
    Expire: EXPIRY_MARK,
    Sell: STEP_MARK,
    ReleaseOrder: STEP_MARK,
    Restock: STEP_MARK,
}


@dataclass(frozen=True, slots=True)
class Rules:
    """How long things last."""

    idle: timedelta = timedelta(minutes=15)
    """A cart lives this long after each granted add or set,"""
    longest: timedelta = timedelta(minutes=60)
    """and at most this long after its first."""
    remembered: timedelta = timedelta(days=7)
    """A request that the log doesn't know and that was accepted longer ago is no longer done."""
    ahead: timedelta = timedelta(minutes=5)
    """A request that was accepted further in the future than this can't be right."""


# ---- state ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Shelf:
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
class Holder:
    """One shopper's cart. `revision` grows by one with each request that changes it."""

    revision: int = 0
    first_held_at: datetime | None = None
    expires_at: datetime | None = None
    expired: bool = False
    """Whether its last change was that it came to its end."""
    lines: dict[str, Line] = field(default_factory=dict)
    _view: Cart | None = None

    def cart(self) -> Cart:
        """The cart as it is; made once a revision, however many answers carry it."""
        if self._view is None or self._view.revision != self.revision:
            lines = tuple(line for _, line in sorted(self.lines.items()))
            self._view = Cart(revision=self.revision, expires_at=self.expires_at, lines=lines)
        return self._view

    def extended(self, now: datetime, rules: Rules) -> datetime:
        """When the cart expires if it is granted something now."""
        return to_milliseconds(min(now + rules.idle, (self.first_held_at or now) + rules.longest))


class Reserved(NamedTuple):
    """What is held for an order, or was; kept for ever, so that nothing is done for an order twice.

    Without lines it was given up before its commit came, which then comes too late.
    """

    order_id: str
    user: str
    lines: tuple[Line, ...] = ()
    state: HoldState = "CANCELLED"
    purpose: Purpose | None = None
    revision: int = 0
    """The cart's, after the commit."""


class Entry(NamedTuple):
    """What the log keeps of one request."""

    content: Content
    outcome: StoredOutcome


Key = tuple[str, str]
"""The place of a request in the log: shopper and id, marked if it is none that a client may choose."""


class Due(NamedTuple):
    """A cart that came to its end at `due`, when it was at `revision`."""

    user: str
    due: datetime
    revision: int


class LedgerRow(NamedTuple):
    """A change of the stock of a product: differences, and the product's `version` after it."""

    product: str
    version: int
    key: Key
    cause: str
    received: int
    held: int
    sold: int
    order_id: str | None


@dataclass(slots=True)
class State:
    """What the locks cover, and what the fold has changed in it; each key is written once, however often it changed."""

    now: datetime
    holders: dict[str, Holder]
    shelves: dict[str, Shelf]
    log: dict[Key, Entry]
    expiry_ids: Mapping[str, str] = field(default_factory=dict)
    """The id of the expiry of each cart that is due, by shopper."""
    rules: Rules = field(default_factory=Rules)
    reserved: dict[str, Reserved] = field(default_factory=dict)
    """By order."""
    changed_holders: set[str] = field(default_factory=set)
    changed_lines: set[tuple[str, str]] = field(default_factory=set)
    new_orders: set[str] = field(default_factory=set)
    changed_orders: set[str] = field(default_factory=set)
    ledger: list[LedgerRow] = field(default_factory=list)
    decided: list[tuple[Key, Entry, int]] = field(default_factory=list)
    untold: list[Due] = field(default_factory=list)
    """Carts that a request found due. It tells of that, once; only a knock is asked until it has been told."""


def is_due(holder: Holder, now: datetime) -> bool:
    """Whether the cart has come to its end."""
    return holder.expires_at is not None and holder.expires_at <= now


def to_milliseconds(moment: datetime) -> datetime:
    """Times are told in milliseconds, so they are kept in milliseconds: what a shopper sees is what is stored."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


# ---- commands, and what they come to --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """A request with its id and the time of its first acceptance."""

    id: str
    accepted: datetime
    request: Request

    @property
    def key(self) -> Key:
        """Where the log keeps this request, if it keeps it."""
        return self.request.user_id, MARKS.get(type(self.request), "") + self.id


class LineSet(NamedTuple):
    """From now on, a product has this line in the cart; none: it has no more."""

    product: str
    line: Line | None


class Moved(NamedTuple):
    """Units of a product change what they are; differences."""

    product: str
    received: int = 0
    held: int = 0
    sold: int = 0


class Decision(NamedTuple):
    """What a request comes to: its outcome, and what that changes. Lines are the cart's, and change its revision."""

    outcome: StoredOutcome
    lines: tuple[LineSet, ...] = ()
    stock: tuple[Moved, ...] = ()
    until: datetime | None = None
    """When the cart then expires; none: as before."""
    reserved: Reserved | None = None
    """What is held for the order then, if that changes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to request `id`, which is not `command.id` when a request met a cart that was due."""

    command: Command
    id: str
    outcome: Outcome
    cart: Cart
    replayed: bool = False
