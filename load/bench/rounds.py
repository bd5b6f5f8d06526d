"""Interleaved rounds: A B, then B A, so that whatever the machine does in the meantime falls on both."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from load.bench import machine
from load.bench.stack import OwnShop
from load.bench.trust import Distrust, Pair, Ratio, Spread, compare, spread

EXTRA_ROUNDS: Final = 2
"""How many rounds more than planned there may be, when those planned make no ratio that matters."""

OTHERS: Final = 0.1
"""Of the machine: what other programs may use of it."""

Record = dict[str, Any]
"""One experiment as it is kept: machine, options, and each round's figures and faults by side; plain JSON."""


@dataclass(slots=True)
class Figures:
    """What one side came to in one round."""

    values: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    """Why a value can't be believed."""

    def note(self, name: str, value: float, fault: str | None = None) -> None:
        """Keep a value, to five digits."""
        self.values[name] = float(f"{value:.5g}")
        if fault is not None:
            self.faults[name] = fault


Side = Callable[[], Awaitable[Figures]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a figure of each side, and ours divided by the base's. `key`: the experiment is about it."""

    figure: str
    label: str
    unit: str
    base: str | None = None
    key: bool = False


@dataclass(frozen=True, slots=True)
class Lines:
    """A chart: figures `name@x` of each side over x."""

    file: str
    title: str
    names: tuple[str, ...]
    x: str
    y: str
    sides: tuple[str, ...] = ()
    """None: all."""


@dataclass(frozen=True, slots=True)
class Bars:
    """A chart: some figures of each side, beside each other."""

    file: str
    title: str
    figures: tuple[tuple[str, str], ...]
    """Figure and label."""
    unit: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What an experiment gets: a shop, how long to measure, whether only to see that it works, and who is told."""

    shop: OwnShop
    seconds: float
    quick: bool
    tell: Callable[[str], None]


OURS: Final = "holdfast"


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question. `sides` prepares what is measured and gives a measurement by the name of its side."""

    name: str
    title: str
    text: str
    sides: Callable[[Bench], AbstractAsyncContextManager[Mapping[str, Side]]]
    rows: tuple[Row, ...]
    charts: tuple[Lines | Bars, ...] = ()
    once: bool = False
    """Whether rounds add nothing, since it compares sizes and not sides."""


async def conduct(experiment: Experiment, bench: Bench, rounds: int) -> AsyncIterator[Record]:
    """Run an experiment; its record after each round, so that nothing is lost when it is broken off."""
    record: Record = {
        "experiment": experiment.name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.description(),
        "options": {"rounds": rounds, "seconds": bench.seconds, "quick": bench.quick},
        "rounds": [],
    }
    planned = 1 if experiment.once else rounds
    async with experiment.sides(bench) as sides:
        number = 0
        while number < planned or (
            number < planned + EXTRA_ROUNDS and not bench.quick and _unsettled(experiment, record)
        ):
            record["rounds"].append(await _round(experiment.name, number, sides, bench))
            number += 1
            yield record


async def _round(name: str, number: int, sides: Mapping[str, Side], bench: Bench) -> Record:
    order = [*sides] if number % 2 == 0 else [*sides][::-1]
    before, begun = machine.load_average(), time.perf_counter()
    told: dict[str, Record] = {}
    for side in order:
        bench.tell(f"{name}: round {number + 1}, {side}")
        watch = _Others(bench.shop)
        figures = await sides[side]()
        others = watch.cores()
        if fault := others_fault(others):
            figures.faults = dict.fromkeys(figures.values, fault) | figures.faults
        told[side] = {"figures": figures.values, "faults": figures.faults, "others": round(others, 3)}
    return {
        "order": order,
        "load": [before, machine.load_average()],
        "seconds": round(time.perf_counter() - begun, 1),
        "sides": told,
    }


class _Others:
    """What programs that are not ours use of the machine, from now on."""

    def __init__(self, shop: OwnShop) -> None:
        self._shop = shop
        self._begun = time.perf_counter()
        self._busy, self._ours = self._read()

    def cores(self) -> float:
        """Cores, in the mean."""
        busy, ours = self._read()
        return max(0.0, (busy - self._busy) - (ours - self._ours)) / max(1e-9, time.perf_counter() - self._begun)

    def _read(self) -> tuple[float, float]:
        return machine.busy_seconds(), machine.cpu_seconds([os.getpid(), *self._shop.pids.values()])


def others_fault(cores: float) -> str | None:
    """Why a measurement beside which other programs used this many cores can't be believed; None when it can."""
    most = OTHERS * (os.cpu_count() or 1)
    return f"other programs used {cores:.2f} cores (more than {most:g})" if cores > most else None


def _unsettled(experiment: Experiment, record: Record) -> bool:
    """Whether a ratio that the experiment is about can't be given yet."""
    return any(row.key and isinstance(ratio(record, row), Distrust) for row in experiment.rows)


def figures(record: Record, side: str, figure: str) -> Spread | None:
    """Median and range of a figure over the rounds; None when that side has no such figure."""
    return spread([each["sides"][side]["figures"][figure] for each in _having(record, figure, side)])


def ratio(record: Record, row: Row) -> Ratio | Distrust | None:
    """Ours divided by the base over the rounds; None when there is nothing to divide."""
    if row.base is None:
        return None
    having = _having(record, row.figure, OURS, row.base)
    if not having:
        return None
    pairs = []
    for each in having:
        ours, base = each["sides"][OURS], each["sides"][row.base]
        fault = ours["faults"].get(row.figure) or base["faults"].get(row.figure)
        pairs.append(Pair(ours["figures"][row.figure], base["figures"][row.figure], fault))
    return compare(pairs)


def _having(record: Record, figure: str, *sides: str) -> Sequence[Record]:
    return [
        each
        for each in record["rounds"]
        if all(side in each["sides"] and figure in each["sides"][side]["figures"] for side in sides)
    ]
