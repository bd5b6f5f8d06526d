"""Growth with the catalogue, with live carts and with history: time of a hold, and restart time of a worker."""

import random
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from load.bench.inventory_drain import InventoryDrain
from load.bench.processes import stop_process
from load.bench.rounds import OURS, BenchContext, Side, SideResult

CATALOGUES: Final = (100, 10_000, 100_000)
CARTS: Final = (100, 1_000, 10_000)
HISTORIES: Final = (1_000, 10_000, 50_000)
HISTORY_CARTS: Final = 1_000
HOLDS: Final = 10_000
"""Number of requests over which the time of a hold is measured."""
QUICK_DIVISOR: Final = 50
"""Divisor of all sizes in a quick run."""


@asynccontextmanager
async def growth_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield the one side of this experiment, which measures three growth laws."""
    yield {OURS: Side(partial(_measure_growth, bench))}


async def _measure_growth(bench: BenchContext) -> SideResult:
    result = SideResult()
    scale = QUICK_DIVISOR if bench.quick else 1
    for size in CATALOGUES:
        bench.report_progress(f"growth: {size // scale} products")
        await _measure_catalogue(result, size // scale, HOLDS // scale)
    for size in CARTS:
        bench.report_progress(f"growth: {max(2, size // scale)} live carts")
        await _measure_carts(result, "carts", max(2, size // scale), requests=max(2, size // scale))
    for size in HISTORIES:
        bench.report_progress(f"growth: {size // scale} events of {max(2, HISTORY_CARTS // scale)} carts")
        await _measure_carts(result, "history", max(2, HISTORY_CARTS // scale), requests=size // scale)
    return result


async def _measure_catalogue(result: SideResult, size: int, holds: int) -> None:
    products = [f"P{number}" for number in range(1, size + 1)]
    hop = InventoryDrain(f"bench-catalogue-{size}.")
    await hop.prepare(products)
    await hop.fill(["warm"], products[:1])
    async with (
        AsyncExitStack() as stack
    ):  # the first worker publishes the catalogue, which would distort the measurement
        await (await hop.start(stack, "inventory_service", "inventory-1")).wait_until_ready()
        await hop.wait_until_published(size)
    rng = random.Random(size)  # noqa: S311 - the same choices every time
    await hop.fill(
        [f"shopper-{rng.randrange(holds)}" for _ in range(holds)], [rng.choice(products) for _ in range(holds)]
    )
    drained = await hop.drain(holds)
    result.add(f"catalogue_hold@{size}", 1e6 * drained.seconds / holds)
    result.add(f"catalogue_back@{size}", drained.first_seconds)


async def _measure_carts(result: SideResult, law: str, carts: int, *, requests: int) -> None:
    """Fill `carts` with that many requests, let a cart worker load them, kill it, and time its successor."""
    size = carts if law == "carts" else requests
    hop = InventoryDrain(f"bench-{law}-{size}.")
    await hop.prepare(["P1", "P2", "P3"])
    users = [f"shopper-{number % carts}" for number in range(requests)]
    # A line holds at most 999 units, and these carts have three lines.
    await hop.fill(users, [f"P{number // carts % 3 + 1}" for number in range(requests)])
    drained = await hop.drain(requests)
    result.add(f"{law}_hold@{size}", 1e6 * drained.seconds / requests)
    async with AsyncExitStack() as stack:
        first = await hop.start(stack, "cart_service", "cart-1")
        await first.wait_until_ready()
        await hop.wait_until_carts_current(requests)
        await stop_process(first.child, signal.SIGKILL)
        started = time.perf_counter()
        await (await hop.start(stack, "cart_service", "cart-1")).wait_until_ready()
        result.add(f"{law}_back@{size}", time.perf_counter() - started)
