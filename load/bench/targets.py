"""The shop, the bare echo and the plain shop behind one driver: same frames, sockets, rates and rules."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from load.bench.machine import CpuMeter
from load.bench.processes import baseline_process
from load.bench.rounds import OURS, BenchContext
from load.driver import ShopperPool, run_closed_loop, run_open_loop, send_from_all
from load.holdfast_commands import seed_products
from load.http_client import ShopClient
from load.load_run import UNITS_PER_PRODUCT, connected_pool, load_product_codes
from load.measurements import Measurement
from load.schedule import RequestMix, send_times

ECHO: Final = "bare echo"
PLAIN: Final = "plain FastAPI"
SHOPPERS: Final = 200
PRODUCTS: Final = 1000
WARM_RATE: Final = 200.0
WARM_SECONDS: Final = 10.0


async def _do_nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Target:
    """System that answers `add` frames with `held`."""

    pool: ShopperPool
    products: list[str]
    pids: Mapping[str, Iterable[int]]
    """Process ids by group: `service`, `kafka`, `postgres`."""
    clear: Callable[[], Awaitable[object]] = _do_nothing
    """Function that clears the carts and returns once all earlier requests are done, so that the next side is
    measured without a queue left by this one."""

    async def run_at_rate(self, rate: float, seconds: float) -> tuple[Measurement, dict[str, float]]:
        """Send adds at a steady rate; return the result and the CPU milliseconds per request by group."""
        plan = [*send_times(rate, seconds, "constant", random.random)]
        meter = CpuMeter(self.pids)
        measured = await run_open_loop(self.pool, self._baskets(self.products), plan, rate=rate, seconds=seconds)
        cpu = meter.milliseconds(measured.outcomes.total())
        await self.clear()
        return measured, cpu

    async def run_saturated(
        self, seconds: float, in_flight: int, products: list[str] | None = None
    ) -> tuple[Measurement, dict[str, float]]:
        """Send adds with `in_flight` requests unanswered at a time; return as `run_at_rate` does."""
        meter = CpuMeter(self.pids)
        baskets = self._baskets(products or self.products)
        measured = await run_closed_loop(self.pool, baskets, in_flight=in_flight, seconds=seconds)
        cpu = meter.milliseconds(measured.outcomes.total())
        await self.clear()
        return measured, cpu

    def _baskets(self, products: list[str]) -> RequestMix:
        rng = random.Random(1)  # noqa: S311 - the same choices for each side
        return RequestMix(len(self.pool.connections), products, mixed=False, choose=rng.randrange)


@asynccontextmanager
async def holdfast_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Yield the shop, with products of its own and shoppers on open sockets."""
    products = load_product_codes(PRODUCTS)
    await seed_products(dict.fromkeys(products, UNITS_PER_PRODUCT))
    async with ShopClient(bench.shop.url) as shop:
        await shop.wait_until_listed(products[-1])
        async with connected_pool(shop, await shop.create_guests(SHOPPERS)) as (pool, _):
            yield Target(pool, products, bench.shop.groups(), lambda: send_from_all(pool, {"type": "clear"}))


@asynccontextmanager
async def echo_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Yield the echo, over the shop's own Kafka."""
    arguments = ("--kafka", bench.shop.environment["HOLDFAST_KAFKA"], "--prefix", "bare-echo.")
    async with pool_at_baseline("load.baselines.echo", *arguments) as (pool, pid):
        yield Target(pool, load_product_codes(PRODUCTS), {**bench.shop.groups(), "service": [pid]})


@asynccontextmanager
async def plain_shop_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Yield the plain shop, over the shop's own Postgres."""
    async with pool_at_baseline("load.baselines.plain_shop") as (pool, pid):
        products = [f"P{number}" for number in range(1, PRODUCTS + 1)]
        yield Target(pool, products, {**bench.shop.groups(), "service": [pid]})


@asynccontextmanager
async def pool_at_baseline(
    module: str, *arguments: str, shoppers: int = SHOPPERS
) -> AsyncIterator[tuple[ShopperPool, int]]:
    """Start a baseline, connect shoppers to it, and yield their sockets and its process id."""
    pool = ShopperPool()
    async with baseline_process(module, *arguments) as (url, pid):
        try:
            await pool.connect(url, [{"Authorization": f"shopper-{number}"} for number in range(shoppers)])
            yield pool, pid
        finally:
            pool.close()


@asynccontextmanager
async def all_targets(bench: BenchContext) -> AsyncIterator[dict[str, Target]]:
    """Yield all three targets, running side by side and warmed up."""
    async with AsyncExitStack() as stack:
        targets = {
            OURS: await stack.enter_async_context(holdfast_target(bench)),
            ECHO: await stack.enter_async_context(echo_target(bench)),
            PLAIN: await stack.enter_async_context(plain_shop_target(bench)),
        }
        for name, target in targets.items():
            bench.report_progress(f"warming up: {name}")
            await target.run_at_rate(WARM_RATE, 1.0 if bench.quick else WARM_SECONDS)
        yield targets
