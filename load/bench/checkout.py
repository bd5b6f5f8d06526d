"""Checkout over WebSocket: how long until the order is committed, paid and confirmed, beside bare hops and commits.

The opponent is the bare echo with as many hops through Kafka, and as many commits in Postgres between them, as that
stage of an order needs at least; nothing is decided, and nobody is asked for money. So the sum that it costs to go this
way at all is measured in one piece, in the same round.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from time import perf_counter
from typing import Any, Final, NamedTuple

import orjson

from load.alarm import Alarm
from load.bench.rounds import OURS, Bench, Figures, Side
from load.bench.targets import crowd_at
from load.commands import seed_all
from load.driver import Crowd, listening
from load.figures import ANSWER_SECONDS, Histogram, Measured
from load.shop import Shop
from load.visit import UNITS, crowd, own_products

BARE: Final = "bare hops and commits"
RATE: Final = 10
PRODUCTS: Final = 100
WARM_ROUNDS: Final = 2


class Stage(NamedTuple):
    """How far an order has come; what it takes to get there at least: hops through Kafka, commits in Postgres."""

    name: str
    hops: int
    commits: int


STAGES: Final = (
    # cart.requests, inventory.requests, inventory.responses, cart.responses; the stock's commit.
    Stage("committed", 4, 1),
    # payments.requests and .events before the last of these; the order's, payment's two, and the order's again.
    Stage("paid", 6, 5),
    # inventory.requests and .responses once more; the stock's commit and the order's.
    Stage("confirmed", 8, 7),
)
FURTHER: Final = {
    "committed": ("committed",),
    "paid": ("committed", "paid"),
    "confirmed": ("committed", "paid", "confirmed"),
    "shipped": ("committed", "paid", "confirmed"),
    "delivered": ("committed", "paid", "confirmed"),
}
"""What an order of a status has been through."""

Ask = Callable[[int], Mapping[str, Any]]
"""The next frame of the shopper of this number, without an id."""


@asynccontextmanager
async def checkouts(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """The shop, and the bare chain of each stage."""
    shoppers = max(3, round(RATE * bench.seconds))
    products = own_products(PRODUCTS)
    await seed_all(dict.fromkeys(products, UNITS))
    async with AsyncExitStack() as stack:
        shop = await stack.enter_async_context(Shop(bench.shop.url))
        await shop.wait_for(products[-1])
        few, _ = await stack.enter_async_context(crowd(shop, await shop.guests(shoppers)))
        chains = {stage: await stack.enter_async_context(_chain(bench, stage, shoppers)) for stage in STAGES}
        for _ in range(1 if bench.quick else WARM_ROUNDS):
            await _ours(bench, few, products)
            await _bare(bench, chains)
        yield {OURS: partial(_ours, bench, few, products), BARE: partial(_bare, bench, chains)}


@asynccontextmanager
async def _chain(bench: Bench, stage: Stage, shoppers: int) -> AsyncIterator[Crowd]:
    servers = bench.shop.environment
    arguments = ("--kafka", servers["HOLDFAST_KAFKA"], "--postgres", servers["HOLDFAST_POSTGRES_URL"])
    sizes = ("--hops", str(stage.hops), "--commits", str(stage.commits), "--prefix", f"bare-{stage.name}.")
    async with crowd_at("load.peers.echo", *arguments, *sizes, shoppers=shoppers) as (few, _):
        yield few


async def _ours(bench: Bench, few: Crowd, products: Sequence[str]) -> Figures:
    versions = await _fill(few, products)
    checkout = {
        "type": "checkout",
        "address": {"name": "A", "line1": "B", "city": "C", "postal_code": "D", "country": "GB"},
        "contact": {"email": "bench@example.com"},
        "payment": {"token": "tok_approve"},
    }
    names = [stage.name for stage in STAGES]
    return await _measure(bench, few, lambda shopper: {**checkout, "version": versions[shopper]}, _been_through, names)


async def _bare(bench: Bench, chains: Mapping[Stage, Crowd]) -> Figures:
    told = Figures()
    for stage, few in chains.items():
        names = [stage.name]
        found = await _measure(bench, few, lambda _: {"type": "checkout"}, lambda _: names, names)  # noqa: B023 - at once
        told.values |= found.values
        told.faults |= found.faults
    return told


def _been_through(frame: Mapping[str, Any]) -> Sequence[str]:
    return FURTHER.get(frame.get("status", ""), ()) if frame["type"] == "order" else ()


async def _measure(
    bench: Bench,
    few: Crowd,
    ask: Ask,
    reached: Callable[[Mapping[str, Any]], Sequence[str]],
    names: Sequence[str],
) -> Figures:
    """Every shopper asks once, at a steady rate; from the intended instant to each stage."""
    run = secrets.token_hex(4)
    open_stages: dict[str, set[str]] = {}
    due: dict[str, float] = {}
    latency = {name: Histogram() for name in names}
    measured = Measured(RATE, bench.seconds, len(few.lines))
    done = asyncio.Event()

    def hear(shopper: int, frame: Mapping[str, Any]) -> None:  # noqa: ARG001 - the id says whose it is
        now, id_ = perf_counter(), frame.get("id") or ""
        for name in open_stages.get(id_, set()).intersection(reached(frame)):
            open_stages[id_].discard(name)
            latency[name].record(now - due[id_])
        if len(due) == len(few.lines) and not any(open_stages.values()):
            done.set()

    alarm = Alarm()
    with listening(few, hear, measured):
        begun = perf_counter()
        try:
            for shopper, line in enumerate(few.lines):
                id_ = f"{run}-{shopper}"
                due[id_], open_stages[id_] = begun + shopper / RATE, set(names)
                await alarm.until(due[id_])
                measured.lateness.record(max(0.0, perf_counter() - due[id_]))
                with suppress(ConnectionError):  # then it gets nowhere, and is counted as that
                    line.send(orjson.dumps({"id": id_, **ask(shopper)}))
        finally:
            alarm.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), ANSWER_SECONDS)
    told = Figures()
    for name in names:
        lost = sum(name in waiting for waiting in open_stages.values())
        fault = measured.fault or (f"{lost} of {len(due)} were never {name}" if lost else None)
        told.note(f"{name}_p50", latency[name].at(50), fault)
        told.note(f"{name}_p99", latency[name].at(99), fault)
    return told


async def _fill(few: Crowd, products: Sequence[str]) -> dict[int, int]:
    """Everyone puts one unit into the cart; the version of each cart after it."""
    versions: dict[int, int] = {}
    done = asyncio.Event()

    def hear(shopper: int, frame: Mapping[str, Any]) -> None:
        if frame["type"] == "held":
            versions[shopper] = frame["version"]
            if len(versions) == len(few.lines):
                done.set()

    few.hear = hear
    for shopper, line in enumerate(few.lines):
        frame = {"id": secrets.token_hex(8), "type": "add", "product": products[shopper % len(products)], "quantity": 1}
        line.send(orjson.dumps(frame))
    await asyncio.wait_for(done.wait(), ANSWER_SECONDS)
    few.hear = None
    return versions
