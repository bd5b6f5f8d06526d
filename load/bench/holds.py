"""Holds per second of the inventory worker alone, for one product and for many, and with the Redis lock on and off."""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from load.bench.hop import Hop
from load.bench.rounds import OURS, Bench, Figures, Side
from load.bench.targets import PLAIN, Target, plain_shop
from load.peers.bare_hold import CONNECTIONS, holds_a_second

BARE: Final = "bare statement"
SHOPPERS: Final = 10_000
MANY: Final = 10_000
QUICK_MANY: Final = 500
RATE_GUESS: Final = 4000
"""Number of requests to prepare per second of measurement."""
LOCKED_QUANTITY: Final = 6
"""Quantity above five, for which a request takes the lock."""
PLAIN_IN_FLIGHT: Final = 64


def requests_of(bench: Bench) -> int:
    """Return the number of requests to fill a topic with."""
    return 500 if bench.quick else round(RATE_GUESS * bench.seconds)


@asynccontextmanager
async def holds(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """Yield the inventory worker, the bare statement and the plain shop, each measured for one product and for many."""
    many = QUICK_MANY if bench.quick else MANY
    products = {"hot": ["HOT"], "spread": [f"P{number}" for number in range(1, many + 1)]}
    hops = {where: Hop(f"bench-{where}.") for where in products}
    for where, hop in hops.items():
        bench.tell(f"holds: preparing {where}")
        await hop.prepare(products[where])
    async with plain_shop(bench) as target:
        yield {
            OURS: partial(_measure_worker, bench, hops, products),
            BARE: partial(_measure_statement, bench, many),
            PLAIN: partial(_measure_plain_shop, bench, target, products),
        }


async def _measure_worker(bench: Bench, hops: Mapping[str, Hop], products: Mapping[str, list[str]]) -> Figures:
    result = Figures()
    rng = random.Random(len(products))  # noqa: S311 - the same choices every time
    for where, hop in hops.items():
        number = requests_of(bench)
        await hop.fill(
            [f"shopper-{rng.randrange(SHOPPERS)}" for _ in range(number)],
            [rng.choice(products[where]) for _ in range(number)],
        )
        drained = await hop.drain(number)
        refused = drained.outcomes.get("held", 0) < number
        result.note(
            where,
            drained.holds_a_second,
            f"not all requests were granted: {dict(drained.outcomes)}" if refused else None,
        )
    return result


async def _measure_statement(bench: Bench, many: int) -> Figures:
    result = Figures()
    for where, number in (("hot", 1), ("spread", many)):
        rates = await holds_a_second(
            bench.shop.environment["HOLDFAST_POSTGRES_URL"],
            products=number,
            seconds=bench.seconds / 2,
            connections=CONNECTIONS[1:3] if bench.quick else CONNECTIONS,
        )
        result.note(where, max(rates.values()))
        result.note(f"{where}_best_c", max(rates, key=lambda connections: rates[connections]))
    return result


async def _measure_plain_shop(bench: Bench, target: Target, products: Mapping[str, list[str]]) -> Figures:
    result = Figures()
    for where, some in products.items():
        measured, _ = await target.full(bench.seconds, PLAIN_IN_FLIGHT, some)
        result.note(where, measured.goodput)
    return result


ON, OFF = OURS, "without the lock"


@asynccontextmanager
async def lock(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """Yield two workers on one product, six units per request, with the Redis lock and without."""
    hops = {ON: Hop("bench-locked."), OFF: Hop("bench-unlocked.", {"HOLDFAST_LOCKS": "false"})}
    for hop in hops.values():
        await hop.prepare(["HOT"])
    yield {side: partial(_measure_contention, bench, hop) for side, hop in hops.items()}


async def _measure_contention(bench: Bench, hop: Hop) -> Figures:
    result = Figures()
    number = requests_of(bench)
    first = hop.total  # new shoppers each time: a line holds at most 999
    users = [f"shopper-{first + each}" for each in range(number)]
    await hop.fill(users, ["HOT"] * number, LOCKED_QUANTITY)
    drained = await hop.drain(number, workers=2)
    result.note("hot", drained.holds_a_second)
    return result
