"""Definition of a fault, and the context it acts on."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from load.chaos import records
from load.chaos.history import Recorder
from load.chaos.shoppers import Witness
from load.chaos.stage import Stage
from load.chaos.truth import Bad

Did = dict[str, Any]


@dataclass(slots=True)
class Scene:
    """Context of a fault: the shop, its clients and products, and the recorder."""

    stage: Stage
    recorder: Recorder
    witnesses: Sequence[Witness]
    products: Sequence[str]
    chance: random.Random
    since: records.Offsets
    bad: list[Bad] = field(default_factory=list)
    turns: int = 0
    """Number of processes that have had their turn."""

    def some(self, share: float) -> list[Witness]:
        """Return a random sample of the shoppers, at least one."""
        number = max(1, round(len(self.witnesses) * share))
        return self.chance.sample(list(self.witnesses), number)

    def next_in_turn(self) -> str:
        """Return the next process or server in round-robin order."""
        names = sorted(self.stage.services())
        self.turns += 1
        return names[self.turns % len(names)]


def _no_target(_: Scene) -> Did:
    return {}


@dataclass(frozen=True, slots=True)
class Fault:
    """Definition of a fault. `needs`: events required for a scenario with it to count."""

    about: str
    act: Callable[[Scene, Mapping[str, Any]], Awaitable[Did]]
    aim: Callable[[Scene], Did] = _no_target
    needs: tuple[str, ...] = ()
    zombies: bool = False
    """True if a process resumes after others took over its work."""
    pause: float = 2.0
    """Mean seconds until it is injected again."""
