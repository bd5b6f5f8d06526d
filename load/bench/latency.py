"""Add to cart over WebSocket: latency at steady rates, the knee, saturation, and what happens beyond the knee."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from load.bench.rounds import Bench, Figures, Side
from load.bench.targets import Target, all_three
from load.bench.trust import KNEE_MS, knee, next_rate
from load.figures import Measured

RATES: Final = (10, 100, 500)
QUICK_RATES: Final = (10, 50)
IN_FLIGHT: Final = 256
DRIVER_LIMIT: Final = 0.9
"""Of a core: past this a closed loop measures its driver."""
PROBE_SECONDS: Final = 3.0


@asynccontextmanager
async def steady(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """p50, p99 and CPU at each rate, for each of the three."""
    async with all_three(bench) as targets:
        yield {name: partial(_steady, bench, target) for name, target in targets.items()}


async def _steady(bench: Bench, target: Target) -> Figures:
    told = Figures()
    for rate in QUICK_RATES if bench.quick else RATES:
        measured, cpu = await target.at(rate, bench.seconds)
        fault = measured.fault or (f"{measured.lost} of {measured.sent} were lost" if measured.lost else None)
        told.note(f"p50@{rate}", measured.latency.at(50), fault)
        told.note(f"p99@{rate}", measured.latency.at(99), fault)
        told.note(f"lost@{rate}", measured.lost)
        told.note(f"late@{rate}", measured.lateness.at(99))
        for group, milliseconds in cpu.items():
            told.note(f"{group}@{rate}", milliseconds)
    return told


@asynccontextmanager
async def limits(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """Knee, saturation and overload of each of the three."""
    async with all_three(bench) as targets:
        yield {name: partial(_limits, bench, target) for name, target in targets.items()}


async def _limits(bench: Bench, target: Target) -> Figures:
    told = Figures()
    seconds = min(bench.seconds, 1.0 if bench.quick else PROBE_SECONDS)
    tried: dict[float, bool] = {}
    late: str | None = None
    while (rate := next_rate(tried, bisections=0 if bench.quick else 2)) is not None:
        measured, _ = await target.at(rate, seconds)
        tried[rate] = within_bounds(measured)
        # Lateness is part of the latency, so a rate that passes is sound; one that fails may be the driver's failure.
        if not tried[rate] and measured.lateness.at(99) > KNEE_MS / 2:
            late = f"at {rate:g}/s the driver itself was late: p99 {measured.lateness.at(99):.0f} ms"
    found = knee(tried)
    told.note("knee", found, late)

    measured, cpu = await target.full(seconds, IN_FLIGHT)
    busy = f"the driver itself used {measured.core:.2f} of a core" if measured.core > DRIVER_LIMIT else None
    told.note("saturation", measured.goodput, busy)
    for group, milliseconds in cpu.items():
        told.note(f"{group}_cpu", milliseconds, busy)

    if found:
        measured, _ = await target.at(2 * found, seconds)
        told.note("goodput", measured.goodput)
        told.note("goodput_share", measured.goodput / found)
        told.note("beyond_p99", measured.latency.at(99), measured.fault)
        told.note("beyond_lost", measured.lost)
        told.note("beyond_errors", measured.errors.at(99) if len(measured.errors) else 0.0, measured.fault)
    return told


def within_bounds(measured: Measured) -> bool:
    """Nothing lost, nothing refused for want of room, and p99 within 50 ms."""
    return not measured.lost and not len(measured.errors) and measured.latency.at(99) <= KNEE_MS
