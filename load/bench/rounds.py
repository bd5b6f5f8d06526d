"""Interleaved rounds: A B, then B A, so that any disturbance of the machine affects both sides."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from load.bench import machine
from load.bench.processes import MeasuredShop
from load.bench.significance import Inconclusive, Pair, Ratio, Spread, compare, spread
from load.bench.steadiness import DEFAULT_STEADINESS, Steadiness, Window, describe_windows, has_settled
from load.driver_client import Driver

EXTRA_ROUNDS: Final = 2
"""Maximum number of extra rounds, used when the planned ones do not yield a trustworthy headline ratio."""

MAX_OTHERS_SHARE: Final = 0.1
"""Share of the machine that other programs may use."""

Record = dict[str, Any]
"""One experiment as saved: machine, options, and each round's figures and faults by side; plain JSON."""


@dataclass(slots=True)
class SideResult:
    """Result of one side in one round."""

    values: dict[str, float] = field(default_factory=dict)
    invalid_reasons: dict[str, str] = field(default_factory=dict)
    """Reasons why a value is not valid, by its name."""

    def add(self, name: str, value: float, invalid_reason: str | None = None) -> None:
        """Add a value, rounded to five digits; `invalid_reason` is the reason if it is not valid."""
        self.values[name] = float(f"{value:.5g}")
        if invalid_reason is not None:
            self.invalid_reasons[name] = invalid_reason


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: how to measure it, and how to warm it up."""

    measure: Callable[[], Awaitable[SideResult]]
    warm: Callable[[], Awaitable[Window]] | None = None
    """Load of one window, and its figures; `None` for a side that starts its own processes for each measurement."""


@dataclass(frozen=True, slots=True)
class Row:
    """Row of a table: a figure of each side, and the shop's divided by the base's. `is_main_result`: a main result."""

    figure: str
    label: str
    unit: str
    base: str | None = None
    is_main_result: bool = False


@dataclass(frozen=True, slots=True)
class LineChart:
    """Line chart of the figures `name@x` of each side over x."""

    file: str
    title: str
    names: tuple[str, ...]
    x: str
    y: str
    sides: tuple[str, ...] = ()
    """Sides to show; empty means all."""


@dataclass(frozen=True, slots=True)
class BarChart:
    """Bar chart of some figures, with the sides next to each other."""

    file: str
    title: str
    figures: tuple[tuple[str, str], ...]
    """Pairs of a figure and its label."""
    unit: str


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Table with a row per process: each column shows the figures `name.PROCESS` of the shop."""

    columns: tuple[tuple[str, str, str], ...]
    """Name, heading and unit of each column; the rows are sorted by the first one."""


@dataclass(frozen=True, slots=True)
class BenchContext:
    """Context of an experiment: the shop, the driver, the duration of a measurement, whether it is a smoke test."""

    shop: MeasuredShop
    driver: Driver
    seconds: float
    quick: bool
    report_progress: Callable[[str], None]
    skipped: list[str] = field(default_factory=list)
    """Sentences about opponents that are not installed."""


OURS: Final = "holdfast"


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question. `sides` prepares the targets and yields a measurement function by name of the side."""

    name: str
    title: str
    text: str
    sides: Callable[[BenchContext], AbstractAsyncContextManager[Mapping[str, Side]]]
    rows: tuple[Row, ...]
    charts: tuple[LineChart | BarChart, ...] = ()
    breakdown: Breakdown | None = None
    steadiness: Steadiness = DEFAULT_STEADINESS
    own_shop: bool = False
    """True if the experiment starts and stops a whole shop, so that no other one may run."""
    once: bool = False
    """True if further rounds add nothing, since the experiment compares sizes instead of sides."""


async def run_experiment(experiment: Experiment, bench: BenchContext, rounds: int) -> AsyncIterator[Record]:
    """Run an experiment and yield its record after each round, so that an interrupted run loses nothing."""
    record: Record = {
        "experiment": experiment.name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe_machine(),
        "options": {"rounds": rounds, "seconds": bench.seconds, "quick": bench.quick},
        "rounds": [],
    }
    planned = 1 if experiment.once else rounds
    async with experiment.sides(bench) as sides:
        record["warm_up"] = await warm_up(experiment.name, sides, bench, experiment.steadiness)
        record["skipped"] = list(bench.skipped)
        number = 0
        while number < planned or (
            number < planned + EXTRA_ROUNDS and not bench.quick and _unsettled(experiment, record)
        ):
            record["rounds"].append(await _round(experiment, number, sides, bench))
            record["driver"] = bench.driver.priority
            number += 1
            yield record


async def warm_up(name: str, sides: Mapping[str, Side], bench: BenchContext, rule: Steadiness) -> Record:
    """Load all sides in turn, one window each, until two consecutive windows of each side agree, or to the bound.

    All sides share the broker and the database, so these get the same load before any side is measured.
    """
    windows: dict[str, list[Window]] = {side: [] for side, each in sides.items() if each.warm is not None}
    most = 1 if bench.quick else rule.most_windows
    while windows and not all(has_settled(each, rule) for each in windows.values()):
        number = min(map(len, windows.values()))
        if number >= most:
            break
        for side in [*windows] if number % 2 == 0 else [*windows][::-1]:
            bench.report_progress(f"{name}: warming up, window {number + 1}, {side}")
            warm = sides[side].warm
            assert warm is not None  # only such sides have windows
            windows[side].append(await warm())
    return {side: describe_windows(each, rule) for side, each in windows.items()}


async def _round(experiment: Experiment, number: int, sides: Mapping[str, Side], bench: BenchContext) -> Record:
    name, order = experiment.name, [*sides] if number % 2 == 0 else [*sides][::-1]
    before, started = machine.load_average(), time.perf_counter()
    results: dict[str, Record] = {}
    for side in order:
        bench.report_progress(f"{name}: round {number + 1}, {side}")
        meter = OthersMeter(bench.shop.pids)
        figures = await sides[side].measure()
        others = meter.cores()
        # An experiment that starts its own processes meters them itself.
        if not experiment.own_shop and (invalid_reason := interference_reason(others)):
            figures.invalid_reasons = dict.fromkeys(figures.values, invalid_reason) | figures.invalid_reasons
        results[side] = {"figures": figures.values, "faults": figures.invalid_reasons, "others": round(others, 3)}
    return {
        "order": order,
        "load": [before, machine.load_average()],
        "seconds": round(time.perf_counter() - started, 1),
        "sides": results,
    }


class OthersMeter:
    """Meter of the CPU that other programs use, counted from construction; `pids` are the shop's processes."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._started = time.perf_counter()
        self._busy, self._ours = self._read()

    def cores(self) -> float:
        """Return the mean number of cores used."""
        busy, ours = self._read()
        return max(0.0, (busy - self._busy) - (ours - self._ours)) / max(1e-9, time.perf_counter() - self._started)

    def _read(self) -> tuple[float, float]:
        return machine.busy_seconds(), machine.cpu_seconds([os.getpid(), *self._pids.values()])


def interference_reason(cores: float) -> str | None:
    """Return why a measurement is not valid while other programs use this many cores, or `None`."""
    most = MAX_OTHERS_SHARE * (os.cpu_count() or 1)
    return f"other programs used {cores:.2f} cores (more than {most:g})" if cores > most else None


def _unsettled(experiment: Experiment, record: Record) -> bool:
    """Return True if a ratio that is a main result is not trustworthy yet."""
    return any(row.is_main_result and isinstance(compute_ratio(record, row), Inconclusive) for row in experiment.rows)


def summarize_figure(record: Record, side: str, figure: str) -> Spread | None:
    """Return median and range of a figure over the rounds, or `None` if the side has no such figure."""
    return spread([each["sides"][side]["figures"][figure] for each in _rounds_with(record, figure, side)])


def compute_ratio(record: Record, row: Row) -> Ratio | Inconclusive | None:
    """Return the shop's figure divided by the base's over the rounds, or `None` if there is nothing to divide."""
    if row.base is None:
        return None
    complete = _rounds_with(record, row.figure, OURS, row.base)
    if not complete:
        return None
    pairs = []
    for each in complete:
        ours, base = each["sides"][OURS], each["sides"][row.base]
        invalid_reason = ours["faults"].get(row.figure) or base["faults"].get(row.figure)
        pairs.append(Pair(ours["figures"][row.figure], base["figures"][row.figure], invalid_reason))
    return compare(pairs)


def _rounds_with(record: Record, figure: str, *sides: str) -> Sequence[Record]:
    return [
        each
        for each in record["rounds"]
        if all(side in each["sides"] and figure in each["sides"][side]["figures"] for side in sides)
    ]
