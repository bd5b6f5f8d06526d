"""Count events and measure waiting times: a run without a rare event has not tested it. No I/O.

`count_events` counts the events that a scenario may require; `measure_waits` measures how long shoppers waited for
answers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from load.chaos.checks import rare_outcomes
from load.chaos.checks.observed_state import OUTCOME_TYPES, Key, ObservedState
from load.chaos.history import NEMESIS, HistoryEntry

CHANGES: Final = frozenset({"add", "set", "remove", "clear"})
CLOSING: Final = "closing"
"""Entry that the nemesis records when shoppers stop."""


@dataclass(frozen=True, slots=True)
class WaitTimes:
    """Waiting times in seconds.

    `silence` is the longest time in which no shopper at all got an answer. `longest` and `median` are from a change to
    its outcome.
    """

    silence: float
    longest: float
    median: float


def count_events(history: Sequence[HistoryEntry], state: ObservedState) -> Counter[str]:
    """Count the events that a scenario may require."""
    counts: Counter[str] = Counter()
    unknown: set[Key] = set()
    for entry in history:
        type_ = entry.value.get("type")
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
        if entry.type in {"ok", "heard"} and type_:
            counts[str(type_)] += 1
            counts["answered again"] += bool(entry.value.get("replayed"))
            if type_ == "resumed":
                counts["resumed: pending"] += len(entry.value["pending"])
                counts["resumed: unknown"] += len(entry.value["unknown"])
    counts["dead letters"] = sum((bad.topic, bad.partition, bad.offset) in state.dead_letters for bad in state.planted)
    counts["duplicates"] = state.duplicates_counted
    return +(counts + rare_outcomes.count_outcomes(history, state))


def measure_waits(history: Sequence[HistoryEntry]) -> WaitTimes:
    """Measure how long shoppers waited for the outcomes of their changes."""
    started: dict[Key, int] = {}
    answers: list[int] = []
    waited: list[int] = []
    for entry in history:
        key = (entry.user or "", entry.id or "")
        if entry.type == "invoke" and entry.f in CHANGES:
            started.setdefault(key, entry.t_ns)
        elif entry.type == "ok" and entry.value.get("type") in OUTCOME_TYPES:
            answers.append(entry.t_ns)
            if key in started:
                waited.append(entry.t_ns - started.pop(key))
    end = next((entry.t_ns for entry in history if entry.f == CLOSING), history[-1].t_ns if history else 0)
    shopping = [at for at in answers if at < end]
    gaps = [after - before for before, after in pairwise([*shopping, end] if shopping else [])]
    middle = sorted(waited)[len(waited) // 2] if waited else 0
    return WaitTimes(max(gaps, default=0) / 1e9, max(waited, default=0) / 1e9, middle / 1e9)
