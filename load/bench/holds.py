"""Holds per second of the inventory worker alone, for one product and for many, and with the Redis lock on and off."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from load.baselines.bare_hold import CONNECTIONS, holds_per_second
from load.bench.inventory_drain import InventoryDrain
from load.bench.rounds import OURS, BenchContext, Side, SideResult
from load.bench.steadiness import Steadiness, Window
from load.bench.targets import PLAIN, Target, plain_shop_target

BARE_STATEMENT: Final = "bare statement"
SHOPPERS: Final = 10_000
MANY_PRODUCTS: Final = 10_000
QUICK_MANY_PRODUCTS: Final = 500
RATE_GUESS: Final = 4000
"""Number of requests to prepare per second of measurement."""
LOCKED_QUANTITY: Final = 6
"""Quantity above five, for which a request takes the lock."""
PLAIN_IN_FLIGHT: Final = 64
WARM_SECONDS: Final = 2.0
STEADINESS: Final = Steadiness(tolerance=0.2, most_windows=4)
"""Each window starts a worker, so a throughput varies more from one to the next than a latency does."""


def request_count(bench: BenchContext) -> int:
    """Return the number of requests to fill a topic with."""
    return 500 if bench.quick else round(RATE_GUESS * bench.seconds)


@asynccontextmanager
async def holds_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield the inventory worker, the bare statement and the plain shop, each measured for one product and for many."""
    many = QUICK_MANY_PRODUCTS if bench.quick else MANY_PRODUCTS
    products = {"hot": ["HOT"], "spread": [f"P{number}" for number in range(1, many + 1)]}
    hops = {where: InventoryDrain(f"bench-{where}.") for where in products}
    for where, hop in hops.items():
        bench.report_progress(f"holds: preparing {where}")
        await hop.prepare(products[where])
    async with plain_shop_target(bench) as target:
        warm = warm_up_context(bench)
        yield {
            OURS: Side(
                partial(_measure_worker, bench, hops, products),
                partial(_warm, partial(_measure_worker, warm, hops, products)),
            ),
            BARE_STATEMENT: Side(partial(_measure_statement, bench, many)),
            PLAIN: Side(
                partial(_measure_plain_shop, bench, target, products),
                partial(_warm, partial(_measure_plain_shop, warm, target, products)),
            ),
        }


def warm_up_context(bench: BenchContext) -> BenchContext:
    """Return the context of a shorter measurement, for a window of warm-up."""
    return replace(bench, seconds=min(bench.seconds, WARM_SECONDS))


async def _warm(measure: Callable[[], Awaitable[SideResult]]) -> Window:
    return (await measure()).values


async def _measure_worker(
    bench: BenchContext, hops: Mapping[str, InventoryDrain], products: Mapping[str, list[str]]
) -> SideResult:
    result = SideResult()
    rng = random.Random(len(products))  # noqa: S311 - the same choices every time
    for where, hop in hops.items():
        number = request_count(bench)
        await hop.fill(
            [f"shopper-{rng.randrange(SHOPPERS)}" for _ in range(number)],
            [rng.choice(products[where]) for _ in range(number)],
        )
        drained = await hop.drain(number)
        refused = drained.outcomes.get("held", 0) < number
        result.add(
            where,
            drained.holds_per_second,
            f"not all requests were granted: {dict(drained.outcomes)}" if refused else None,
        )
    return result


async def _measure_statement(bench: BenchContext, many: int) -> SideResult:
    result = SideResult()
    for where, number in (("hot", 1), ("spread", many)):
        rates = await holds_per_second(
            bench.shop.environment["HOLDFAST_POSTGRES_URL"],
            products=number,
            seconds=bench.seconds / 2,
            connections=CONNECTIONS[1:3] if bench.quick else CONNECTIONS,
        )
        result.add(where, max(rates.values()))
        result.add(f"{where}_best_c", max(rates, key=lambda connections: rates[connections]))
    return result


async def _measure_plain_shop(bench: BenchContext, target: Target, products: Mapping[str, list[str]]) -> SideResult:
    result = SideResult()
    for where, some in products.items():
        measured, _ = await target.run_saturated(bench.seconds, PLAIN_IN_FLIGHT, some)
        result.add(where, measured.goodput)
    return result


WITH_LOCK, WITHOUT_LOCK = OURS, "without the lock"


@asynccontextmanager
async def lock_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield two workers on one product, six units per request, with the Redis lock and without."""
    hops = {
        WITH_LOCK: InventoryDrain("bench-locked."),
        WITHOUT_LOCK: InventoryDrain("bench-unlocked.", {"HOLDFAST_LOCKS": "false"}),
    }
    for hop in hops.values():
        await hop.prepare(["HOT"])
    yield {
        side: Side(
            partial(_measure_contention, bench, hop),
            partial(_warm, partial(_measure_contention, warm_up_context(bench), hop)),
        )
        for side, hop in hops.items()
    }


async def _measure_contention(bench: BenchContext, hop: InventoryDrain) -> SideResult:
    result = SideResult()
    number = request_count(bench)
    first = hop.total  # new shoppers each time: a line holds at most 999
    users = [f"shopper-{first + each}" for each in range(number)]
    await hop.fill(users, ["HOT"] * number, LOCKED_QUANTITY)
    drained = await hop.drain(number, workers=2)
    result.add("hot", drained.holds_per_second)
    return result
