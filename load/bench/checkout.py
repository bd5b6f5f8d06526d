"""Checkout over WebSocket: time until the order is committed, paid and confirmed, against bare hops and commits.

The baseline is the bare echo with as many hops through Kafka, and as many commits in Postgres between them, as the
stage of an order needs at least. It decides nothing and contacts no payment provider. So the minimum cost of the whole
path is measured as one value in the same round.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from time import perf_counter
from typing import Any, Final, NamedTuple

import orjson

from load.bench.rounds import OURS, BenchContext, Side, SideResult
from load.bench.targets import pool_at_baseline
from load.driver import ShopperPool, measurement_window
from load.holdfast_commands import seed_products
from load.http_client import ShopClient
from load.load_run import UNITS_PER_PRODUCT, connected_pool, load_product_codes
from load.measurements import ANSWER_TIMEOUT_SECONDS, Histogram, Measurement
from load.precise_timer import PreciseTimer

BARE_CHAIN: Final = "bare hops and commits"
RATE: Final = 10
PRODUCTS: Final = 100
WARM_ROUNDS: Final = 2


class OrderStage(NamedTuple):
    """Stage of an order and the minimum number of hops through Kafka and commits in Postgres to reach it."""

    name: str
    hops: int
    commits: int


STAGES: Final = (
    # cart.requests, inventory.requests, inventory.responses, cart.responses; one commit of the stock.
    OrderStage("committed", 4, 1),
    # payments.requests and .events before the last of these; commits: order, twice payment, order again.
    OrderStage("paid", 6, 5),
    # inventory.requests and .responses again; commits: stock and order.
    OrderStage("confirmed", 8, 7),
)
REACHED_STAGES: Final = {
    "committed": ("committed",),
    "paid": ("committed", "paid"),
    "confirmed": ("committed", "paid", "confirmed"),
    "shipped": ("committed", "paid", "confirmed"),
    "delivered": ("committed", "paid", "confirmed"),
}
"""Stages that an order of a given status has reached."""

FrameBuilder = Callable[[int], Mapping[str, Any]]
"""Function that returns a shopper's next frame, without an id."""


@asynccontextmanager
async def checkout_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield the shop and the bare chain of each stage."""
    shoppers = max(3, round(RATE * bench.seconds))
    products = load_product_codes(PRODUCTS)
    await seed_products(dict.fromkeys(products, UNITS_PER_PRODUCT))
    async with AsyncExitStack() as stack:
        shop = await stack.enter_async_context(ShopClient(bench.shop.url))
        await shop.wait_until_listed(products[-1])
        pool, _ = await stack.enter_async_context(connected_pool(shop, await shop.create_guests(shoppers)))
        chains = {stage: await stack.enter_async_context(_chain(bench, stage, shoppers)) for stage in STAGES}
        for _ in range(1 if bench.quick else WARM_ROUNDS):
            await _measure_shop(bench, pool, products)
            await _measure_chains(bench, chains)
        yield {OURS: partial(_measure_shop, bench, pool, products), BARE_CHAIN: partial(_measure_chains, bench, chains)}


@asynccontextmanager
async def _chain(bench: BenchContext, stage: OrderStage, shoppers: int) -> AsyncIterator[ShopperPool]:
    arguments = ("--kafka", bench.shop.environment["HOLDFAST_KAFKA"])
    sizes = ("--hops", str(stage.hops), "--commits", str(stage.commits), "--prefix", f"bare-{stage.name}.")
    async with pool_at_baseline("load.baselines.echo", *arguments, *sizes, shoppers=shoppers) as (pool, _):
        yield pool


async def _measure_shop(bench: BenchContext, pool: ShopperPool, products: Sequence[str]) -> SideResult:
    versions = await _fill_carts(pool, products)
    checkout = {
        "type": "checkout",
        "address": {"name": "A", "line1": "B", "city": "C", "postal_code": "D", "country": "GB"},
        "payment": {"token": "tok_approve"},
    }
    names = [stage.name for stage in STAGES]

    def frame(shopper: int) -> dict[str, Any]:
        contact = {"email": f"bench-{secrets.token_hex(8)}@example.com"}  # one address gets a limited number of mails
        return {**checkout, "version": versions[shopper], "contact": contact}

    return await _measure(bench, pool, frame, _reached_stages, names)


async def _measure_chains(bench: BenchContext, chains: Mapping[OrderStage, ShopperPool]) -> SideResult:
    result = SideResult()
    for stage, pool in chains.items():
        names = [stage.name]
        stage_result = await _measure(bench, pool, lambda _: {"type": "checkout"}, lambda _: names, names)  # noqa: B023 - called at once
        result.values |= stage_result.values
        result.invalid_reasons |= stage_result.invalid_reasons
    return result


def _reached_stages(frame: Mapping[str, Any]) -> Sequence[str]:
    return REACHED_STAGES.get(frame.get("status", ""), ()) if frame["type"] == "order" else ()


async def _measure(
    bench: BenchContext,
    pool: ShopperPool,
    build_frame: FrameBuilder,
    reached: Callable[[Mapping[str, Any]], Sequence[str]],
    names: Sequence[str],
) -> SideResult:
    """Send one request per shopper at a steady rate, and measure from the intended send time to each stage."""
    run = secrets.token_hex(4)
    open_stages: dict[str, set[str]] = {}
    due: dict[str, float] = {}
    latency = {name: Histogram() for name in names}
    measured = Measurement(RATE, bench.seconds, len(pool.connections))
    done = asyncio.Event()

    def on_frame(shopper: int, frame: Mapping[str, Any]) -> None:  # noqa: ARG001 - the id identifies the shopper
        now, id_ = perf_counter(), frame.get("id") or ""
        for name in open_stages.get(id_, set()).intersection(reached(frame)):
            open_stages[id_].discard(name)
            latency[name].record(now - due[id_])
        if len(due) == len(pool.connections) and not any(open_stages.values()):
            done.set()

    timer = PreciseTimer()
    with measurement_window(pool, on_frame, measured):
        started = perf_counter()
        try:
            for shopper, connection in enumerate(pool.connections):
                id_ = f"{run}-{shopper}"
                due[id_], open_stages[id_] = started + shopper / RATE, set(names)
                await timer.sleep_until(due[id_])
                measured.lateness.record(max(0.0, perf_counter() - due[id_]))
                with suppress(ConnectionError):  # the order then reaches no stage and is counted as such
                    connection.send(orjson.dumps({"id": id_, **build_frame(shopper)}))
        finally:
            timer.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), ANSWER_TIMEOUT_SECONDS)
    result = SideResult()
    for name in names:
        lost = sum(name in waiting for waiting in open_stages.values())
        invalid_reason = measured.invalid_reason or (f"{lost} of {len(due)} orders were never {name}" if lost else None)
        result.add(f"{name}_p50", latency[name].percentile(50), invalid_reason)
        result.add(f"{name}_p99", latency[name].percentile(99), invalid_reason)
    return result


async def _fill_carts(pool: ShopperPool, products: Sequence[str]) -> dict[int, int]:
    """Add one unit to every cart and return the version of each cart afterwards."""
    versions: dict[int, int] = {}
    done = asyncio.Event()

    def on_frame(shopper: int, frame: Mapping[str, Any]) -> None:
        if frame["type"] == "held":
            versions[shopper] = frame["version"]
            if len(versions) == len(pool.connections):
                done.set()

    pool.on_frame = on_frame
    for shopper, connection in enumerate(pool.connections):
        frame = {"id": secrets.token_hex(8), "type": "add", "product": products[shopper % len(products)], "quantity": 1}
        connection.send(orjson.dumps(frame))
    await asyncio.wait_for(done.wait(), ANSWER_TIMEOUT_SECONDS)
    pool.on_frame = None
    return versions
