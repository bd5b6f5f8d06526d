"""The shop, the bare echo and the plain shop behind one driver: same frames, sockets, rates and rules."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from load.bench.machine import CpuMeter
from load.bench.processes import baseline_process
from load.bench.rounds import OURS, BenchContext, Side, SideResult
from load.bench.steadiness import Window
from load.driver_client import Driver, DriverPool
from load.holdfast_commands import seed_products
from load.http_client import ShopClient
from load.load_run import UNITS_PER_PRODUCT, auth_headers, load_product_codes
from load.measurements import Measurement

ECHO: Final = "bare echo"
PLAIN: Final = "plain FastAPI"
SHOPPERS: Final = 200
PRODUCTS: Final = 1000
WARM_RATE: Final = 200.0
WARM_SECONDS: Final = 5.0


async def _do_nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Target:
    """System that answers `add` frames with `held`."""

    pool: DriverPool
    products: list[str]
    pids: Mapping[str, Iterable[int]]
    """Process ids by group: `service`, `kafka`, `postgres`."""
    clear: Callable[[], Awaitable[object]] = _do_nothing
    """Function that clears the carts and returns once all earlier requests are done, so that the next side is
    measured without a queue left by this one."""
    mixed: bool = False
    """True if shoppers also remove what they added."""

    async def run_at_rate(self, rate: float, seconds: float) -> tuple[Measurement, dict[str, float]]:
        """Send changes at a steady rate; return the result and the CPU milliseconds per request by group."""
        meter = CpuMeter(self.pids)
        measured = await self.pool.run_open_loop(self.products, rate, seconds, mixed=self.mixed)
        cpu = meter.milliseconds(measured.outcomes.total())
        await self.clear()
        return measured, cpu

    async def run_saturated(
        self, seconds: float, in_flight: int, products: list[str] | None = None
    ) -> tuple[Measurement, dict[str, float]]:
        """Send changes with `in_flight` requests unanswered at a time; return as `run_at_rate` does."""
        meter = CpuMeter(self.pids)
        measured = await self.pool.run_closed_loop(products or self.products, in_flight, seconds, mixed=self.mixed)
        cpu = meter.milliseconds(measured.outcomes.total())
        await self.clear()
        return measured, cpu

    async def warm(self, seconds: float, rate: float = WARM_RATE) -> Window:
        """Send changes for one window of warm-up; return the median latency and the CPU milliseconds per request."""
        measured, cpu = await self.run_at_rate(rate, seconds)
        return {"p50": measured.latency.percentile(50), "cpu": round(sum(cpu.values()), 3)}


def target_side(bench: BenchContext, target: Target, measure: Callable[[], Awaitable[SideResult]]) -> Side:
    """Return a side that is measured by `measure` and warmed up by changes at a steady rate."""
    return Side(measure, partial(target.warm, 1.0 if bench.quick else WARM_SECONDS))


@asynccontextmanager
async def holdfast_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Yield the shop, with products of its own and shoppers on open sockets."""
    products = load_product_codes(PRODUCTS)
    await seed_products(dict.fromkeys(products, UNITS_PER_PRODUCT))
    async with ShopClient(bench.shop.url) as shop:
        await shop.wait_until_listed(products[-1])
        async with shop_pool(bench.driver, shop, SHOPPERS) as pool:
            yield Target(pool, products, bench.shop.groups(), pool.clear_carts)


@asynccontextmanager
async def shop_pool(driver: Driver, shop: ShopClient, shoppers: int) -> AsyncIterator[DriverPool]:
    """Create guests and yield their sockets, all of them open."""
    guests = await shop.create_guests(shoppers)
    pool, _ = await driver.open_pool(shop.stream_url, auth_headers(guests))
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def echo_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Yield the echo, over the shop's own Kafka."""
    arguments = ("--kafka", bench.shop.environment["HOLDFAST_KAFKA"], "--prefix", "bare-echo.")
    async with pool_at_baseline(bench.driver, "load.baselines.echo", *arguments) as (pool, pid):
        yield Target(pool, load_product_codes(PRODUCTS), {**bench.shop.groups(), "service": [pid]})


@asynccontextmanager
async def plain_shop_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Yield the plain shop, over the shop's own Postgres."""
    async with pool_at_baseline(bench.driver, "load.baselines.plain_shop") as (pool, pid):
        products = [f"P{number}" for number in range(1, PRODUCTS + 1)]
        yield Target(pool, products, {**bench.shop.groups(), "service": [pid]})


@asynccontextmanager
async def pool_at_baseline(
    driver: Driver, module: str, *arguments: str, shoppers: int = SHOPPERS, python: str = sys.executable
) -> AsyncIterator[tuple[DriverPool, int]]:
    """Start a baseline, connect shoppers to it, and yield their sockets and its process id."""
    async with baseline_process(module, *arguments, python=python) as (url, pid):
        pool, _ = await driver.open_pool(url, [{"Authorization": f"shopper-{number}"} for number in range(shoppers)])
        try:
            yield pool, pid
        finally:
            await pool.close()


@asynccontextmanager
async def all_targets(bench: BenchContext) -> AsyncIterator[dict[str, Target]]:
    """Yield all three targets, running side by side."""
    async with AsyncExitStack() as stack:
        yield {
            OURS: await stack.enter_async_context(holdfast_target(bench)),
            ECHO: await stack.enter_async_context(echo_target(bench)),
            PLAIN: await stack.enter_async_context(plain_shop_target(bench)),
        }
