"""Holds a second of the inventory hop alone, on one product and over many; and the Redis lock on and off."""

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
"""Requests to fill in for each second that shall be measured."""
LOCKED_QUANTITY: Final = 6
"""More than five at a time: the rule by which a request takes the lock."""
PLAIN_IN_FLIGHT: Final = 64


def requests_of(bench: Bench) -> int:
    """How many requests a topic is filled with."""
    return 500 if bench.quick else round(RATE_GUESS * bench.seconds)


@asynccontextmanager
async def holds(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """The hop, the bare statement and the plain shop, each on one product and over many."""
    many = QUICK_MANY if bench.quick else MANY
    products = {"hot": ["HOT"], "spread": [f"P{number}" for number in range(1, many + 1)]}
    hops = {where: Hop(f"bench-{where}.") for where in products}
    for where, hop in hops.items():
        bench.tell(f"holds: preparing {where}")
        await hop.prepare(products[where])
    async with plain_shop(bench) as target:
        yield {
            OURS: partial(_ours, bench, hops, products),
            BARE: partial(_bare, bench, many),
            PLAIN: partial(_plain, bench, target, products),
        }


async def _ours(bench: Bench, hops: Mapping[str, Hop], products: Mapping[str, list[str]]) -> Figures:
    told = Figures()
    dice = random.Random(len(products))  # noqa: S311 - the same choices every time
    for where, hop in hops.items():
        number = requests_of(bench)
        await hop.fill(
            [f"shopper-{dice.randrange(SHOPPERS)}" for _ in range(number)],
            [dice.choice(products[where]) for _ in range(number)],
        )
        drained = await hop.drain(number)
        few = drained.outcomes.get("held", 0) < number
        told.note(where, drained.holds_a_second, f"not all were granted: {dict(drained.outcomes)}" if few else None)
    return told


async def _bare(bench: Bench, many: int) -> Figures:
    told = Figures()
    for where, number in (("hot", 1), ("spread", many)):
        found = await holds_a_second(
            bench.shop.environment["HOLDFAST_POSTGRES_URL"],
            products=number,
            seconds=bench.seconds / 2,
            connections=CONNECTIONS[1:3] if bench.quick else CONNECTIONS,
        )
        told.note(where, max(found.values()))
        told.note(f"{where}_best_c", max(found, key=lambda connections: found[connections]))
    return told


async def _plain(bench: Bench, target: Target, products: Mapping[str, list[str]]) -> Figures:
    told = Figures()
    for where, some in products.items():
        measured, _ = await target.full(bench.seconds, PLAIN_IN_FLIGHT, some)
        told.note(where, measured.goodput)
    return told


ON, OFF = OURS, "without the lock"


@asynccontextmanager
async def lock(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """Two workers at one product, six units a request, with the Redis lock and without."""
    hops = {ON: Hop("bench-locked."), OFF: Hop("bench-unlocked.", {"HOLDFAST_LOCKS": "false"})}
    for hop in hops.values():
        await hop.prepare(["HOT"])
    yield {side: partial(_crowded, bench, hop) for side, hop in hops.items()}


async def _crowded(bench: Bench, hop: Hop) -> Figures:
    told = Figures()
    number = requests_of(bench)
    first = hop.total  # new shoppers each time: a line holds 999 at most
    users = [f"shopper-{first + each}" for each in range(number)]
    await hop.fill(users, ["HOT"] * number, LOCKED_QUANTITY)
    drained = await hop.drain(number, workers=2)
    told.note("hot", drained.holds_a_second)
    return told
