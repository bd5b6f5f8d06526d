"""What the shop says after a scenario, as plain values: the other half of what the checker compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Key = tuple[str, str]
"""A request: (user, id). An id alone names nothing."""

NOT_CONTENT: Final = frozenset({"id", "user_id", "replayed", "traceparent"})
"""What may differ between two tellings of one outcome, or is said elsewhere."""
DECIDED: Final = frozenset({"held", "refused", "removed", "committed"})
"""Outcomes of what shoppers ask for."""


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the stock ledger: differences, in the order of a product's versions."""

    product: str
    version: int
    user: str | None
    id: str | None
    cause: str
    received: int
    held: int
    sold: int


@dataclass(frozen=True, slots=True)
class Told:
    """An outcome on a topic."""

    topic: str
    user: str
    id: str
    content: Mapping[str, Any]
    replayed: bool = False

    @property
    def key(self) -> Key:
        """The request it answers."""
        return self.user, self.id


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that was put on a topic to be refused: it must come to lie among the dead letters."""

    topic: str
    partition: int
    offset: int
    what: str


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """A record of `orders.events`; what was sent again lies there again. `data` is what its type adds."""

    order: str
    user: str
    version: int
    type: str
    status: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """A record of `payments.requests` or `payments.events`; `key` is the provider's for it (of a refund: its own)."""

    order: str
    type: str
    key: str
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Charge:
    """What the provider did under one key: minor units of every capture, and of every refund by its key."""

    order: str
    captured: tuple[int, ...] = ()
    refunded: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Basket:
    """A cart by its version and its lines: product → units."""

    version: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replay:
    """What it came to that everything was fed back once more, when all had ended."""

    records: int
    """How many that were."""
    before: str
    """The digest of the audit."""
    after: str
    rest_seconds: float | None
    """From the last record to no lag; none when that never came."""
    restless: str = ""
    """What it was waiting for then."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Everything that is read once a scenario has come to rest; of its own shoppers and products only."""

    ledger: Sequence[Change] = ()
    holds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Shopper → product → units, from the table of holds."""
    revisions: Mapping[str, int] = field(default_factory=dict)
    log: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    """Request → its one outcome, from the request log."""
    accepted: frozenset[Key] = frozenset()
    """Changes that stand on the topic of requests."""
    told: Sequence[Told] = ()
    """Outcomes on the topics of responses."""
    garbled: Sequence[str] = ()
    """Records of the topics of responses that nobody can read, other than those that were put there on purpose."""
    bad: Sequence[Bad] = ()
    dead: frozenset[tuple[str, int, int]] = frozenset()
    """Where the records of all dead letters stood."""
    carts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Shopper → the `cart` frame they get now."""
    shown: Mapping[str, Basket] = field(default_factory=dict)
    """Shopper → what their client shows, from the frames it was sent, before it asks once more."""
    audit: Sequence[str] = ()
    locks: Sequence[str] = ()
    """Locks in Redis that have no end, or lie there for longer than they may."""
    replay: Replay | None = None
    """None when nothing was fed back."""
    reserved: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Shopper → product → units that their orders keep, not sold yet."""
    events: Sequence[OrderEvent] = ()
    payments: Sequence[PaymentEvent] = ()
    orders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Order → what its shopper reads of it."""
    charges: Mapping[str, Charge] | None = None
    """Payment → what the provider's own books say; none when they were not read."""
    rest_seconds: float | None = None
    """From the last fault to no lag, no open request and everything ready; none when that never came."""
    restless: str = ""
    """What it was waiting for then."""
    duplicates_counted: int = 0


def content(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome without what may differ between two tellings of it.

    Inventory's `committed` is told to shoppers as the `order` that it makes; a refused checkout as any refusal.
    """
    if outcome["type"] in {"committed", "order"}:
        return {"type": "order", "order_id": outcome["order_id"], "status": "committed"}
    without = NOT_CONTENT | {"order_id"}
    return {name: value for name, value in outcome.items() if name not in without and value is not None}
