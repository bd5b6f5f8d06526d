"""Which faults come together, for how long, and what must have come to pass for a run of them to count."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from load.chaos.nemesis import FAULTS

SECONDS: Final = 12.0
ALWAYS: Final = ("held", "refused", "removed", "answered again")
"""A scenario in which nobody was granted, refused or answered twice has tested nothing."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Some faults over `seconds` of shopping; afterwards, with `replayed`, all of it is fed back once more."""

    name: str
    faults: tuple[str, ...]
    seconds: float = SECONDS
    replayed: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What must have happened."""
        own = dict.fromkeys(need for fault in self.faults for need in FAULTS[fault].needs)
        return (*ALWAYS, *self.faults, *own)

    @property
    def zombies(self) -> bool:
        """Whether a process goes on after it was given up for dead."""
        return any(FAULTS[fault].zombies for fault in self.faults)


QUICK: Final = (
    Scenario("workers", ("kill-cart", "kill-inventory"), 13),
    Scenario("edge and lines", ("kill-edge", "cut-clients", "kill-redis")),
    Scenario("books", ("cut-postgres", "expire")),
    Scenario("broker", ("kill-kafka", "duplicate")),
    Scenario("records", ("replay", "poison"), 10, replayed=True),
)
"""The most telling ones, within three minutes."""

_LONG: Final = {"freeze-cart": 16.0, "freeze-inventory": 16.0, "rolling-restart": 26.0, "rebalance-storm": 16.0}
_MIXED: Final = 4


def full(seed: int) -> list[Scenario]:
    """Every fault alone, then some at once as `seed` has it."""
    alone = [
        Scenario(name, (name,), _LONG.get(name, SECONDS), replayed=name in {"replay", "poison"}) for name in FAULTS
    ]
    chance = random.Random(seed)  # noqa: S311 - a choice to repeat, not a secret
    some = sorted(chance.sample(sorted(FAULTS), _MIXED))
    return [*alone, Scenario("mixed", tuple(some), 30)]


def of(faults: Sequence[str], seconds: float | None) -> Scenario:
    """One scenario of just these."""
    longest = max(_LONG.get(name, SECONDS) for name in faults)
    return Scenario("+".join(faults), tuple(faults), seconds or longest, replayed="replay" in faults)
