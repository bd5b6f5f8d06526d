"""The whole shop as a user starts it: time until ready, memory and CPU at rest, and the first load after a start."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from load.bench.machine import ProcessMeter, mebibytes_by_name
from load.bench.processes import MeasuredShop, start_shop, stop_shop
from load.bench.rounds import OURS, BenchContext, OthersMeter, Side, SideResult, interference_reason
from load.bench.steadiness import DEFAULT_STEADINESS, Steadiness, Window, has_settled
from load.bench.targets import PRODUCTS, SHOPPERS, shop_pool
from load.driver_client import DriverPool
from load.holdfast_commands import seed_products
from load.http_client import ShopClient
from load.load_run import UNITS_PER_PRODUCT, load_product_codes
from load.measurements import Measurement

RATE: Final = 100.0
IN_FLIGHT: Final = 256
SETTLE_SECONDS: Final = 10.0
"""Time between ready and the measurement at rest: the first requests of a start are over then."""
REST_FACTOR: Final = 3
"""The measurement at rest is this many times as long as one under load, since little CPU is used."""
STEADINESS: Final = Steadiness(DEFAULT_STEADINESS.tolerance, most_windows=12)
PERCENTILES: Final = (50, 90, 99)


@asynccontextmanager
async def start_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Start a whole shop once and stop it, so that later starts find its data and caches; yield the shop as a side."""
    bench.report_progress("start: the first start, which creates the data")
    await start_shop(bench.shop.root, "--no-limits")
    try:
        await seed_products(dict.fromkeys(load_product_codes(PRODUCTS), UNITS_PER_PRODUCT))
    finally:
        await stop_shop()
    yield {OURS: Side(partial(_measure, bench))}


async def _measure(bench: BenchContext) -> SideResult:
    """Start the shop and load it, stop it, start it again and leave it at rest."""
    result = SideResult()
    starts = []
    for measure in (_measure_load, _measure_rest):
        started = time.perf_counter()
        shop = await start_shop(bench.shop.root, "--no-limits")
        starts.append(time.perf_counter() - started)
        try:
            await measure(bench, shop, result)
        finally:
            await stop_shop()
    result.add("up_s", sum(starts) / len(starts))
    return result


async def _measure_load(bench: BenchContext, shop: MeasuredShop, result: SideResult) -> None:
    async with ShopClient(shop.url) as client, shop_pool(bench.driver, client, SHOPPERS) as pool:
        first, disturbed_first = await _run_window(bench, shop, pool, bench.seconds)
        unsteady = await _warm_up(bench, pool, result)
        meter = ProcessMeter(shop.families())
        warm, disturbed = await _run_window(bench, shop, pool, bench.seconds)
        _add_cpu(result, "request", meter.milliseconds_per(warm.outcomes.total()))
        for percentile in PERCENTILES:
            before, after = first.latency.percentile(percentile), warm.latency.percentile(percentile)
            result.add(f"first_p{percentile}", before, disturbed_first)
            result.add(f"warm_p{percentile}", after, disturbed or unsteady)
            result.add(
                f"ratio_p{percentile}", before / after if after else 0.0, disturbed_first or disturbed or unsteady
            )
        result.add("first_lost", first.lost)
        result.add("late", max(first.lateness.percentile(99), warm.lateness.percentile(99)))

        bench.report_progress("start: saturated")
        meter = ProcessMeter(shop.families())
        saturated = await pool.run_closed_loop(_products(), IN_FLIGHT, bench.seconds / 2, mixed=True)
        _add_cpu(result, "saturated", meter.milliseconds_per(saturated.outcomes.total()))
        result.add("saturation", saturated.goodput)
        await pool.clear_carts()
    if memory := mebibytes_by_name(shop.families()):
        result.add("after_total", sum(memory.values()))


async def _measure_rest(bench: BenchContext, shop: MeasuredShop, result: SideResult) -> None:
    bench.report_progress("start: at rest")
    await asyncio.sleep(1.0 if bench.quick else SETTLE_SECONDS)
    others, meter = OthersMeter(shop.pids), ProcessMeter(shop.families())
    await asyncio.sleep(REST_FACTOR * bench.seconds)
    _add_cpu(result, "rest", meter.percent_of_a_core(), interference_reason(others.cores()))
    if memory := mebibytes_by_name(shop.families()):
        for name, mebibytes in memory.items():
            result.add(f"memory.{name}", mebibytes)
        result.add("memory_total", sum(memory.values()))


def _add_cpu(result: SideResult, kind: str, by_name: Mapping[str, float], invalid_reason: str | None = None) -> None:
    """Add the figure of each process, their sum, and the sum of those that are not Kafka, Postgres or Redis."""
    for name, value in by_name.items():
        result.add(f"{kind}.{name}", value, invalid_reason)
    result.add(f"{kind}_total", sum(by_name.values()), invalid_reason)
    own = [value for name, value in by_name.items() if not MeasuredShop.is_server(name)]
    result.add(f"{kind}_own", sum(own), invalid_reason)


async def _warm_up(bench: BenchContext, pool: DriverPool, result: SideResult) -> str | None:
    """Load the shop until two consecutive windows agree; return why the shop is not warm if the bound is reached."""
    windows: list[Window] = []
    while not has_settled(windows, STEADINESS) and len(windows) < (1 if bench.quick else STEADINESS.most_windows):
        bench.report_progress(f"start: warming up, window {len(windows) + 1}")
        measured = await pool.run_open_loop(_products(), RATE, bench.seconds / 2, mixed=True)
        windows.append({"p50": measured.latency.percentile(50), "p90": measured.latency.percentile(90)})
        await pool.clear_carts()
    result.add("warm_windows", len(windows))
    return None if has_settled(windows, STEADINESS) else f"not steady after {len(windows)} windows of warm-up"


async def _run_window(
    bench: BenchContext, shop: MeasuredShop, pool: DriverPool, seconds: float
) -> tuple[Measurement, str | None]:
    """Load the shop; return the result and why it is not valid, if so."""
    bench.report_progress(f"start: {seconds:g} s at {RATE:g}/s")
    others = OthersMeter(shop.pids)
    measured = await pool.run_open_loop(_products(), RATE, seconds, mixed=True)
    invalid_reason = measured.invalid_reason or interference_reason(others.cores())
    await pool.clear_carts()
    return measured, invalid_reason


def _products() -> list[str]:
    return load_product_codes(PRODUCTS)
