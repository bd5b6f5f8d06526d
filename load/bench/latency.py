"""Add to cart over WebSocket: latency at steady rates, knee, saturation and overload."""

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
"""Share of a core above which a closed loop measures its driver instead of the target."""
PROBE_SECONDS: Final = 3.0


@asynccontextmanager
async def steady(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """Yield a measurement of p50, p99 and CPU at each rate, for each target."""
    async with all_three(bench) as targets:
        yield {name: partial(_measure_steady, bench, target) for name, target in targets.items()}


async def _measure_steady(bench: Bench, target: Target) -> Figures:
    result = Figures()
    for rate in QUICK_RATES if bench.quick else RATES:
        measured, cpu = await target.at(rate, bench.seconds)
        fault = measured.fault or (f"{measured.lost} of {measured.sent} requests were lost" if measured.lost else None)
        result.note(f"p50@{rate}", measured.latency.at(50), fault)
        result.note(f"p99@{rate}", measured.latency.at(99), fault)
        result.note(f"lost@{rate}", measured.lost)
        result.note(f"late@{rate}", measured.lateness.at(99))
        for group, milliseconds in cpu.items():
            result.note(f"{group}@{rate}", milliseconds)
    return result


@asynccontextmanager
async def limits(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """Yield a measurement of knee, saturation and overload, for each target."""
    async with all_three(bench) as targets:
        yield {name: partial(_measure_limits, bench, target) for name, target in targets.items()}


async def _measure_limits(bench: Bench, target: Target) -> Figures:
    result = Figures()
    seconds = min(bench.seconds, 1.0 if bench.quick else PROBE_SECONDS)
    tried: dict[float, bool] = {}
    late: str | None = None
    while (rate := next_rate(tried, bisections=0 if bench.quick else 2)) is not None:
        measured, _ = await target.at(rate, seconds)
        tried[rate] = within_bounds(measured)
        # Lateness is part of the latency, so a rate that passes is valid; a rate may fail because the driver was late.
        if not tried[rate] and measured.lateness.at(99) > KNEE_MS / 2:
            late = f"at {rate:g}/s the driver itself was late: p99 {measured.lateness.at(99):.0f} ms"
    knee_rate = knee(tried)
    result.note("knee", knee_rate, late)

    measured, cpu = await target.full(seconds, IN_FLIGHT)
    busy = f"the driver itself used {measured.core:.2f} of a core" if measured.core > DRIVER_LIMIT else None
    result.note("saturation", measured.goodput, busy)
    for group, milliseconds in cpu.items():
        result.note(f"{group}_cpu", milliseconds, busy)

    if knee_rate:
        measured, _ = await target.at(2 * knee_rate, seconds)
        result.note("goodput", measured.goodput)
        result.note("goodput_share", measured.goodput / knee_rate)
        result.note("beyond_p99", measured.latency.at(99), measured.fault)
        result.note("beyond_lost", measured.lost)
        result.note("beyond_errors", measured.errors.at(99) if len(measured.errors) else 0.0, measured.fault)
    return result


def within_bounds(measured: Measured) -> bool:
    """Return True if no request was lost or refused for lack of capacity and p99 is within 50 ms."""
    return not measured.lost and not len(measured.errors) and measured.latency.at(99) <= KNEE_MS
