"""Scenarios: which faults are combined, for how long, and the events required for a run to count."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from load.chaos.faults.nemesis import FAULTS

SECONDS: Final = 12.0
SHOPPERS: Final = 24
REQUIRED_EVENTS: Final = ("held", "refused", "answered again", "delivered")
"""Events required of every scenario; without them it has tested nothing."""

DEAD_LETTER_FAULTS: Final = frozenset({"poison", "duplicate", "replay", "replay-orders", "webhooks"})
"""Faults after which dead letters other than the planted records are legitimate."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Some faults during `seconds` of load; with `replays_records`, all records are replayed afterwards."""

    name: str
    faults: tuple[str, ...]
    seconds: float = SECONDS
    replays_records: bool = False
    shoppers: int = SHOPPERS
    checkouts: int = 0
    """Number of checkouts, at `rate` per second, instead of a load for `seconds`."""
    rate: float = 0.0

    @property
    def required_events(self) -> tuple[str, ...]:
        """Events required for the run to count."""
        own = dict.fromkeys(need for fault in self.faults for need in FAULTS[fault].required_events)
        return (*REQUIRED_EVENTS, *(() if self.checkouts else ("removed",)), *self.faults, *own)

    @property
    def has_zombies(self) -> bool:
        """True if a process resumes after others took over its work."""
        return any(FAULTS[fault].makes_zombies for fault in self.faults)

    @property
    def is_clean(self) -> bool:
        """True if topics contain only records sent once by the shop and its shoppers."""
        return not self.replays_records and DEAD_LETTER_FAULTS.isdisjoint(self.faults)


QUICK: Final = (
    Scenario(
        "workers and lines",
        ("kill-cart", "kill-inventory", "kill-redis", "kill-edge", "cut-clients", "cut-postgres"),
        16,
    ),
    Scenario("broker", ("kill-kafka", "duplicate")),
    Scenario("records", ("replay", "poison"), 10, replays_records=True),
    Scenario("orders", ("kill-orders", "kill-payment", "provider-down", "webhooks", "expire"), 14),
)
"""Most revealing scenarios, within three minutes."""

FULL_SET: Final = (
    Scenario("edge and lines", ("kill-edge", "term-edge", "cut-clients", "slow-readers"), 18),
    Scenario("carts and stock", ("kill-cart", "term-cart", "kill-inventory", "term-inventory"), 16),
    Scenario("orders and payment", ("kill-orders", "term-orders", "kill-payment", "term-payment"), 16),
    Scenario("delivery and provider", ("kill-delivery", "kill-provider"), 14),
    Scenario("zombies of carts", ("freeze-cart", "freeze-inventory"), 24),
    Scenario("zombies of orders", ("freeze-orders", "freeze-payment"), 24),
    Scenario("each in turn", ("kill-each", "freeze-each"), 40),
    Scenario("crash and skew", ("crash", "clock-skew"), 16),
    Scenario("rolling restart", ("rolling-restart",), 24),
    Scenario("rebalances", ("rebalance-storm",), 30),
    Scenario("redis and ends", ("kill-redis", "flush-redis", "pause-redis", "expire"), 16),
    Scenario("postgres", ("kill-postgres", "cut-postgres", "freeze-postgres"), 18),
    Scenario("kafka", ("kill-kafka", "freeze-kafka"), 18),
    Scenario("provider", ("provider-down", "provider-slow", "provider-broken"), 18),
    Scenario("records", ("replay", "poison", "duplicate"), 14, replays_records=True),
    Scenario("orders again", ("replay-orders", "webhooks"), 12, replays_records=True),
)
"""Every fault once, combined with those that occur with it in practice: the same process ending in two ways, one server
in three.

Each scenario takes some fifteen seconds in addition, to become quiescent and to collect everything.
"""

_LONG: Final = {
    **{name: 16.0 for name in FAULTS if name.startswith("freeze-") and FAULTS[name].makes_zombies},
    "rolling-restart": 40.0,
    "rebalance-storm": 30.0,
    "kill-each": 40.0,
    "freeze-each": 40.0,
}
ROUND_ROBIN_FAULTS: Final = frozenset({"kill-each", "freeze-each"})
_MIXED: Final = 4
REPLAYED_FAULTS: Final = frozenset({"replay", "poison", "replay-orders", "webhooks"})


def full_set(seed: int) -> list[Scenario]:
    """Return every fault, then a random mix drawn from `seed`."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    some = sorted(chance.sample(sorted(FAULTS), _MIXED))
    return [*FULL_SET, Scenario("mixed", tuple(some), 30)]


def scenario_of(faults: Sequence[str], seconds: float | None) -> Scenario:
    """Return one scenario of only these faults."""
    longest = max(_LONG.get(name, SECONDS) for name in faults)
    return Scenario(
        "+".join(faults), tuple(faults), seconds or longest, replays_records=not REPLAYED_FAULTS.isdisjoint(faults)
    )
