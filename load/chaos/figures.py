"""What happened at all: a run in which the rare thing never came to pass has not tested it.

`sometimes` counts what a scenario must have met; `waits` says how long anybody waited and how long all were silent.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from load.chaos import rare
from load.chaos.history import NEMESIS, Entry
from load.chaos.truth import DECIDED, Key, Truth

CHANGES: Final = frozenset({"add", "set", "remove", "clear"})
CLOSING: Final = "closing"
"""What the nemesis writes down when shoppers stop shopping."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds.

    `silence`: the longest time, while shoppers shopped, in which nobody at all was answered; `longest`: from a change
    to its outcome.
    """

    silence: float
    longest: float
    median: float


def sometimes(history: Sequence[Entry], truth: Truth) -> Counter[str]:
    """How often each of the things happened that a scenario may ask for."""
    counts: Counter[str] = Counter()
    unknown: set[Key] = set()
    for entry in history:
        told = entry.value.get("type")
        if entry.proc == NEMESIS:
            counts[entry.f] += entry.type == "ok"
            counts["restarts"] += int(entry.value.get("restarts", 0))
            if entry.type == "ok" and "victim" in entry.value:
                counts[f"{entry.f}: {entry.value['victim']}"] += 1
            continue
        key = (entry.user or "", entry.id or "")
        if entry.type == "info":
            counts["unknown for a while"] += 1
            unknown.add(key)
        elif entry.type == "ok" and key in unknown:
            counts["known later"] += 1
            unknown.discard(key)
        if entry.type in {"ok", "heard"} and told:
            counts[str(told)] += 1
            counts["answered again"] += bool(entry.value.get("replayed"))
            if told == "resumed":
                counts["resumed: pending"] += len(entry.value["pending"])
                counts["resumed: unknown"] += len(entry.value["unknown"])
    counts["dead letters"] = sum((bad.topic, bad.partition, bad.offset) in truth.dead for bad in truth.bad)
    counts["duplicates"] = truth.duplicates_counted
    return +(counts + rare.counts(history, truth))


def waits(history: Sequence[Entry]) -> Waits:
    """How long shoppers waited for the outcomes of their changes."""
    begun: dict[Key, int] = {}
    answers: list[int] = []
    waited: list[int] = []
    for entry in history:
        key = (entry.user or "", entry.id or "")
        if entry.type == "invoke" and entry.f in CHANGES:
            begun.setdefault(key, entry.t_ns)
        elif entry.type == "ok" and entry.value.get("type") in DECIDED:
            answers.append(entry.t_ns)
            if key in begun:
                waited.append(entry.t_ns - begun.pop(key))
    end = next((entry.t_ns for entry in history if entry.f == CLOSING), history[-1].t_ns if history else 0)
    shopping = [at for at in answers if at < end]
    gaps = [after - before for before, after in pairwise([*shopping, end] if shopping else [])]
    middle = sorted(waited)[len(waited) // 2] if waited else 0
    return Waits(max(gaps, default=0) / 1e9, max(waited, default=0) / 1e9, middle / 1e9)
