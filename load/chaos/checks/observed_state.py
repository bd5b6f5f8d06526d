"""Observed state of the shop after a scenario as plain values: the second input of the checker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Key = tuple[str, str]
"""A request as (user, id). An id alone is not unique."""

NON_CONTENT_FIELDS: Final = frozenset({"id", "user_id", "replayed", "traceparent"})
"""Fields that may differ between two messages of one outcome, or are stored elsewhere."""
OUTCOME_TYPES: Final = frozenset({"held", "refused", "removed", "committed"})
"""Types of outcomes of shoppers' requests."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """Row of the stock ledger with deltas, ordered by the product's version."""

    product: str
    version: int
    user: str | None
    id: str | None
    cause: str
    received: int
    held: int
    sold: int


@dataclass(frozen=True, slots=True)
class PublishedOutcome:
    """Outcome published on a topic."""

    topic: str
    user: str
    id: str
    content: Mapping[str, Any]
    replayed: bool = False

    @property
    def key(self) -> Key:
        """Request that it answers."""
        return self.user, self.id


@dataclass(frozen=True, slots=True)
class PlantedRecord:
    """Position of an invalid record written on purpose: it must be dead-lettered."""

    topic: str
    partition: int
    offset: int
    description: str


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """Record of `orders.events`, possibly a repeated one. `data` has the fields specific to its type."""

    order: str
    user: str
    version: int
    type: str
    status: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """Record of `payments.requests` or `payments.events`; `key` is the provider's (for a refund: its own)."""

    order: str
    type: str
    key: str
    amount: int = 0


@dataclass(frozen=True, slots=True)
class ProviderCharge:
    """Operations of the provider with one key: minor units of every capture, and of every refund by its key."""

    order: str
    captured: tuple[int, ...] = ()
    refunded: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CartView:
    """A cart: its version and units by product."""

    version: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplayCheck:
    """Result of replaying all records after all requests had ended."""

    records: int
    """Number of records replayed."""
    digest_before: str
    """Digest of the audit before the replay."""
    digest_after: str
    """Digest of the audit after the replay."""
    rest_seconds: float | None
    """Seconds from the last record until there was no lag; `None` if that never happened."""
    unrest_reason: str = ""
    """Last reason why the shop was not quiescent."""


@dataclass(frozen=True, slots=True)
class ObservedState:
    """State collected once a scenario is quiescent, of its own shoppers and products only."""

    ledger: Sequence[LedgerRow] = ()
    holds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Units in carts by shopper and product, from the table of holds."""
    revisions: Mapping[str, int] = field(default_factory=dict)
    log: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    """Outcome of each request, from the request log."""
    accepted: frozenset[Key] = frozenset()
    """Changes on the request topic."""
    outcomes: Sequence[PublishedOutcome] = ()
    """Outcomes on the response topics."""
    undecodable: Sequence[str] = ()
    """Positions of undecodable records on response topics, other than those written on purpose."""
    planted: Sequence[PlantedRecord] = ()
    dead_letters: frozenset[tuple[str, int, int]] = frozenset()
    """Original positions of all dead letters."""
    carts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`cart` frame that each shopper gets now."""
    client_carts: Mapping[str, CartView] = field(default_factory=dict)
    """Cart that each client shows from the frames received, before it requests the cart once more."""
    audit: Sequence[str] = ()
    locks: Sequence[str] = ()
    """Redis locks without expiry, or held for longer than a lock lives."""
    replay: ReplayCheck | None = None
    """Result of the replay, or `None` if there was none."""
    order_holds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Units held for orders and not sold yet, by shopper and product."""
    events: Sequence[OrderEvent] = ()
    payments: Sequence[PaymentEvent] = ()
    orders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Orders as their shoppers read them."""
    charges: Mapping[str, ProviderCharge] | None = None
    """Operations in the provider's records by payment, or `None` if they were not read."""
    rest_seconds: float | None = None
    """Seconds from the last fault until the shop was ready, had no lag and no open request; `None` if that never
    happened."""
    unrest_reason: str = ""
    """Last reason why the shop was not quiescent."""
    duplicates_counted: int = 0


def comparable_content(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return an outcome without the fields that may differ between two messages of it.

    Inventory's `committed` reaches shoppers as an `order`; a refused checkout is sent like any other refusal.
    """
    if outcome["type"] in {"committed", "order"}:
        return {"type": "order", "order_id": outcome["order_id"], "status": "committed"}
    without = NON_CONTENT_FIELDS | {"order_id"}
    return {name: value for name, value in outcome.items() if name not in without and value is not None}
