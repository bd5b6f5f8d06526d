"""Checkout over WebSocket: time until the order is committed, paid and confirmed, against bare hops and commits.

The baseline is the bare echo with as many hops through Kafka, and as many commits in Postgres between them, as the
stage of an order needs at least. It decides nothing and contacts no payment provider. So the minimum cost of the whole
path is measured as one value in the same round.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple

from load.bench.rounds import OURS, BenchContext, Side, SideResult
from load.bench.steadiness import Window
from load.bench.targets import pool_at_baseline, shop_pool
from load.driver_client import DriverPool
from load.holdfast_commands import seed_products
from load.http_client import ShopClient
from load.load_run import UNITS_PER_PRODUCT, load_product_codes

BARE_CHAIN: Final = "bare hops and commits"
RATE: Final = 10
PRODUCTS: Final = 100
FILL_SECONDS: Final = 60.0


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
"""Stages that an order of a given status has reached: only frames of type `order` have a status."""


@asynccontextmanager
async def checkout_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield the shop and the bare chain of each stage."""
    shoppers = max(3, round(RATE * bench.seconds))
    products = load_product_codes(PRODUCTS)
    await seed_products(dict.fromkeys(products, UNITS_PER_PRODUCT))
    async with AsyncExitStack() as stack:
        shop = await stack.enter_async_context(ShopClient(bench.shop.url))
        await shop.wait_until_listed(products[-1])
        pool = await stack.enter_async_context(shop_pool(bench.driver, shop, shoppers))
        chains = {stage: await stack.enter_async_context(_chain(bench, stage, shoppers)) for stage in STAGES}
        measures = {OURS: partial(_measure_shop, pool, products), BARE_CHAIN: partial(_measure_chains, chains)}
        yield {name: Side(measure, partial(_warm, measure)) for name, measure in measures.items()}


@asynccontextmanager
async def _chain(bench: BenchContext, stage: OrderStage, shoppers: int) -> AsyncIterator[DriverPool]:
    arguments = ("--kafka", bench.shop.environment["HOLDFAST_KAFKA"])
    sizes = ("--hops", str(stage.hops), "--commits", str(stage.commits), "--prefix", f"bare-{stage.name}.")
    async with pool_at_baseline(bench.driver, "load.baselines.echo", *arguments, *sizes, shoppers=shoppers) as (
        pool,
        _,
    ):
        yield pool


async def _warm(measure: Callable[[], Awaitable[SideResult]]) -> Window:
    values = (await measure()).values
    return {name: value for name, value in values.items() if name.endswith("_p50")}


async def _measure_shop(pool: DriverPool, products: Sequence[str]) -> SideResult:
    run = secrets.token_hex(4)
    held = await pool.request_all(
        [
            {"id": f"fill-{run}-{number}", "type": "add", "product": products[number % len(products)], "quantity": 1}
            for number in range(pool.size)
        ],
        "held",
        FILL_SECONDS,
    )
    checkout = {
        "type": "checkout",
        "address": {"name": "A", "line1": "B", "city": "C", "postal_code": "D", "country": "GB"},
        "payment": {"token": "tok_approve"},
    }
    frames = [
        # One address gets a limited number of mails, so each order has its own.
        {**checkout, "version": each["version"], "contact": {"email": f"bench-{secrets.token_hex(8)}@example.com"}}
        for each in held
    ]
    return await _measure(pool, frames, "status", REACHED_STAGES)


async def _measure_chains(chains: Mapping[OrderStage, DriverPool]) -> SideResult:
    result = SideResult()
    for stage, pool in chains.items():
        frames = [{"type": "checkout"}] * pool.size
        stage_result = await _measure(pool, frames, "type", {"held": (stage.name,)})
        result.values |= stage_result.values
        result.invalid_reasons |= stage_result.invalid_reasons
    return result


async def _measure(
    pool: DriverPool, frames: Sequence[Mapping[str, Any]], field: str, stages: Mapping[str, Sequence[str]]
) -> SideResult:
    """Send one request per shopper at a steady rate, and measure from the intended send time to each stage."""
    run = secrets.token_hex(4)
    staged = await pool.run_stages(
        [{"id": f"{run}-{number}", **frame} for number, frame in enumerate(frames)], RATE, field, stages
    )
    result = SideResult()
    for name, latency in staged.latency.items():
        lost = staged.missed[name]
        missed = f"{lost} of {len(frames)} orders were never {name}" if lost else None
        invalid_reason = staged.measured.invalid_reason or missed
        result.add(f"{name}_p50", latency.percentile(50), invalid_reason)
        result.add(f"{name}_p99", latency.percentile(99), invalid_reason)
    return result
