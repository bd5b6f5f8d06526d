"""Which faults come together, for how long, and what must have come to pass for a run of them to count."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from load.chaos.nemesis import FAULTS

SECONDS: Final = 12.0
SHOPPERS: Final = 24
ALWAYS: Final = ("held", "refused", "answered again", "delivered")
"""A scenario in which nobody was granted, refused or answered twice, and no parcel came, has tested nothing."""

SOILING: Final = frozenset({"poison", "duplicate", "replay", "replay-orders", "webhooks"})
"""Faults after which the dead letters may lawfully hold more than what was put there to get there."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Some faults over `seconds` of shopping; afterwards, with `replayed`, all of it is fed back once more."""

    name: str
    faults: tuple[str, ...]
    seconds: float = SECONDS
    replayed: bool = False
    shoppers: int = SHOPPERS
    checkouts: int = 0
    """So many, at `rate` a second, instead of shopping for `seconds`."""
    rate: float = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        """What must have happened."""
        own = dict.fromkeys(need for fault in self.faults for need in FAULTS[fault].needs)
        return (*ALWAYS, *(() if self.checkouts else ("removed",)), *self.faults, *own)

    @property
    def zombies(self) -> bool:
        """Whether a process goes on after it was given up for dead."""
        return any(FAULTS[fault].zombies for fault in self.faults)

    @property
    def clean(self) -> bool:
        """Whether nothing comes to a topic but what the shop and its shoppers send, and that once."""
        return not self.replayed and SOILING.isdisjoint(self.faults)


QUICK: Final = (
    Scenario(
        "workers and lines",
        ("kill-cart", "kill-inventory", "kill-redis", "kill-edge", "cut-clients", "cut-postgres"),
        16,
    ),
    Scenario("broker", ("kill-kafka", "duplicate")),
    Scenario("records", ("replay", "poison"), 10, replayed=True),
    Scenario("orders", ("kill-orders", "kill-payment", "provider-down", "webhooks", "expire"), 14),
)
"""The most telling ones, within three minutes."""

TOGETHER: Final = (
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
    Scenario("records", ("replay", "poison", "duplicate"), 14, replayed=True),
    Scenario("orders again", ("replay-orders", "webhooks"), 12, replayed=True),
)
"""Every fault once, beside those that meet it in life: the same process ends in two ways, one server in three.

Each scenario costs some fifteen seconds beside its own, to come to rest and to read everything."""

_LONG: Final = {
    **{name: 16.0 for name in FAULTS if name.startswith("freeze-") and FAULTS[name].zombies},
    "rolling-restart": 40.0,
    "rebalance-storm": 30.0,
    "kill-each": 40.0,
    "freeze-each": 40.0,
}
IN_TURN: Final = frozenset({"kill-each", "freeze-each"})
_MIXED: Final = 4
REPLAYED: Final = frozenset({"replay", "poison", "replay-orders", "webhooks"})


def full(seed: int) -> list[Scenario]:
    """Every fault, then some at once as `seed` has it."""
    chance = random.Random(seed)  # noqa: S311 - a choice to repeat, not a secret
    some = sorted(chance.sample(sorted(FAULTS), _MIXED))
    return [*TOGETHER, Scenario("mixed", tuple(some), 30)]


def of(faults: Sequence[str], seconds: float | None) -> Scenario:
    """One scenario of just these."""
    longest = max(_LONG.get(name, SECONDS) for name in faults)
    return Scenario("+".join(faults), tuple(faults), seconds or longest, replayed=not REPLAYED.isdisjoint(faults))
