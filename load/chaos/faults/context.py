"""Definition of a fault, and the context it acts on."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from load.chaos.checks.observed_state import PlantedRecord
from load.chaos.clients.recording_client import RecordingClient
from load.chaos.faults import records
from load.chaos.history import HistoryRecorder
from load.chaos.shop_under_test import ShopUnderTest

Effect = dict[str, Any]


@dataclass(slots=True)
class FaultContext:
    """Context of a fault: the shop, its clients and products, and the recorder."""

    shop: ShopUnderTest
    recorder: HistoryRecorder
    clients: Sequence[RecordingClient]
    products: Sequence[str]
    chance: random.Random
    since: records.Offsets
    planted: list[PlantedRecord] = field(default_factory=list)
    turns: int = 0
    """Number of processes that have had their turn."""

    def sample_clients(self, share: float) -> list[RecordingClient]:
        """Return a random sample of the shoppers, at least one."""
        number = max(1, round(len(self.clients) * share))
        return self.chance.sample(list(self.clients), number)

    def next_process(self) -> str:
        """Return the next process or server in round-robin order."""
        names = sorted(self.shop.services())
        self.turns += 1
        return names[self.turns % len(names)]


def _no_target(_: FaultContext) -> Effect:
    return {}


@dataclass(frozen=True, slots=True)
class Fault:
    """Definition of a fault. `required_events`: events required for a scenario with it to count."""

    description: str
    act: Callable[[FaultContext, Mapping[str, Any]], Awaitable[Effect]]
    choose_target: Callable[[FaultContext], Effect] = _no_target
    required_events: tuple[str, ...] = ()
    makes_zombies: bool = False
    """True if a process resumes after others took over its work."""
    mean_pause: float = 2.0
    """Mean seconds until it is injected again."""
