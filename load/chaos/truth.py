"""What the shop says after a scenario, as plain values: the other half of what the checker compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Key = tuple[str, str]
"""A request: (user, id). An id alone names nothing."""

NOT_CONTENT: Final = frozenset({"id", "user_id", "replayed", "traceparent"})
"""What may differ between two tellings of one outcome, or is said elsewhere."""
DECIDED: Final = frozenset({"held", "refused", "removed"})


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
    bad: Sequence[Bad] = ()
    dead: frozenset[tuple[str, int, int]] = frozenset()
    """Where the records of all dead letters stood."""
    carts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Shopper → the `cart` frame they get now."""
    shown: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Shopper → the lines that their client shows, from the frames it was sent."""
    audit: Sequence[str] = ()
    locks: Sequence[str] = ()
    """Locks that are still in Redis."""
    digests: tuple[str, str] | None = None
    """Of the audit, before and after everything was replayed; none when nothing was."""
    rest_seconds: float | None = None
    """From the last fault to no lag, no open request and everything ready; none when that never came."""
    restless: str = ""
    """What it was waiting for then."""
    duplicates_counted: int = 0


def content(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome without what may differ between two tellings of it."""
    return {name: value for name, value in outcome.items() if name not in NOT_CONTENT and value is not None}
