"""Add to cart over WebSocket: latency at steady rates, knee, saturation and overload."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from load.bench.rounds import BenchContext, Side, SideResult
from load.bench.significance import KNEE_MS, knee, next_rate
from load.bench.targets import Target, all_targets, target_side
from load.measurements import Measurement

RATES: Final = (10, 100, 500)
QUICK_RATES: Final = (10, 50)
IN_FLIGHT: Final = 256
DRIVER_LIMIT: Final = 0.9
"""Share of a core above which a closed loop measures its driver instead of the target."""
PROBE_SECONDS: Final = 3.0


@asynccontextmanager
async def latency_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield a measurement of p50, p99 and CPU at each rate, for each target."""
    async with all_targets(bench) as targets:
        yield {
            name: target_side(bench, target, partial(_measure_steady, bench, target))
            for name, target in targets.items()
        }


async def _measure_steady(bench: BenchContext, target: Target) -> SideResult:
    result = SideResult()
    for rate in QUICK_RATES if bench.quick else RATES:
        measured, cpu = await target.run_at_rate(rate, bench.seconds)
        invalid_reason = measured.invalid_reason or (
            f"{measured.lost} of {measured.sent} requests were lost" if measured.lost else None
        )
        result.add(f"p50@{rate}", measured.latency.percentile(50), invalid_reason)
        result.add(f"p99@{rate}", measured.latency.percentile(99), invalid_reason)
        result.add(f"lost@{rate}", measured.lost)
        result.add(f"late@{rate}", measured.lateness.percentile(99))
        for group, milliseconds in cpu.items():
            result.add(f"{group}@{rate}", milliseconds)
    return result


@asynccontextmanager
async def limits_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield a measurement of knee, saturation and overload, for each target."""
    async with all_targets(bench) as targets:
        yield {
            name: target_side(bench, target, partial(_measure_limits, bench, target))
            for name, target in targets.items()
        }


async def _measure_limits(bench: BenchContext, target: Target) -> SideResult:
    result = SideResult()
    seconds = min(bench.seconds, 1.0 if bench.quick else PROBE_SECONDS)
    tried: dict[float, bool] = {}
    late: str | None = None
    while (rate := next_rate(tried, bisections=0 if bench.quick else 2)) is not None:
        measured, _ = await target.run_at_rate(rate, seconds)
        tried[rate] = is_within_bounds(measured)
        # Lateness is part of the latency, so a rate that passes is valid; a rate may fail because the driver was late.
        if not tried[rate] and measured.lateness.percentile(99) > KNEE_MS / 2:
            late = f"at {rate:g}/s the driver itself was late: p99 {measured.lateness.percentile(99):.0f} ms"
    knee_rate = knee(tried)
    result.add("knee", knee_rate, late)

    measured, cpu = await target.run_saturated(seconds, IN_FLIGHT)
    busy = f"the driver itself used {measured.core_share:.2f} of a core" if measured.core_share > DRIVER_LIMIT else None
    result.add("saturation", measured.goodput, busy)
    for group, milliseconds in cpu.items():
        result.add(f"{group}_cpu", milliseconds, busy)

    if knee_rate:
        measured, _ = await target.run_at_rate(2 * knee_rate, seconds)
        result.add("goodput", measured.goodput)
        result.add("goodput_share", measured.goodput / knee_rate)
        result.add("beyond_p99", measured.latency.percentile(99), measured.invalid_reason)
        result.add("beyond_lost", measured.lost)
        result.add(
            "beyond_errors", measured.errors.percentile(99) if len(measured.errors) else 0.0, measured.invalid_reason
        )
    return result


def is_within_bounds(measured: Measurement) -> bool:
    """Return True if no request was lost or refused for lack of capacity and p99 is within 50 ms."""
    return not measured.lost and not len(measured.errors) and measured.latency.percentile(99) <= KNEE_MS
