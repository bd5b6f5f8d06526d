"""What a fault is, and what it may touch."""

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
    """What a fault may touch."""

    stage: Stage
    recorder: Recorder
    witnesses: Sequence[Witness]
    products: Sequence[str]
    chance: random.Random
    since: records.Offsets
    bad: list[Bad] = field(default_factory=list)
    turns: int = 0
    """How many processes have had their turn."""

    def some(self, share: float) -> list[Witness]:
        """Some of the shoppers, at least one."""
        number = max(1, round(len(self.witnesses) * share))
        return self.chance.sample(list(self.witnesses), number)

    def next_in_turn(self) -> str:
        """The name of the process, or server, whose turn it is."""
        names = sorted(self.stage.services())
        self.turns += 1
        return names[self.turns % len(names)]


def _nothing(_: Scene) -> Did:
    return {}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault. `needs`: what must have happened in a scenario with it for that to count."""

    about: str
    act: Callable[[Scene, Mapping[str, Any]], Awaitable[Did]]
    aim: Callable[[Scene], Did] = _nothing
    needs: tuple[str, ...] = ()
    zombies: bool = False
    """A process goes on after it was given up for dead."""
    pause: float = 2.0
    """Seconds until it comes again, on average."""
