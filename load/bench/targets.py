"""The shop, the bare echo and the plain shop behind one driver: same frames, sockets, rates and rules."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from load.bench.machine import Meter
from load.bench.rounds import OURS, Bench
from load.bench.stack import opponent
from load.commands import seed_all
from load.driver import Crowd, drive, saturate, settle
from load.figures import Measured
from load.schedule import Baskets, instants
from load.shop import Shop
from load.visit import UNITS, crowd, own_products

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

    crowd: Crowd
    products: list[str]
    pids: Mapping[str, Iterable[int]]
    """Process ids by group: `service`, `kafka`, `postgres`."""
    clear: Callable[[], Awaitable[object]] = _do_nothing
    """Function that clears the carts and returns once all earlier requests are done, so that the next side is
    measured without a queue left by this one."""

    async def at(self, rate: float, seconds: float) -> tuple[Measured, dict[str, float]]:
        """Send adds at a steady rate; return the result and the CPU milliseconds per request by group."""
        plan = [*instants(rate, seconds, "constant", random.random)]
        meter = Meter(self.pids)
        measured = await drive(self.crowd, self._baskets(self.products), plan, rate=rate, seconds=seconds)
        cpu = meter.milliseconds(measured.outcomes.total())
        await self.clear()
        return measured, cpu

    async def full(
        self, seconds: float, in_flight: int, products: list[str] | None = None
    ) -> tuple[Measured, dict[str, float]]:
        """Send adds with `in_flight` requests unanswered at a time; return as `at` does."""
        meter = Meter(self.pids)
        baskets = self._baskets(products or self.products)
        measured = await saturate(self.crowd, baskets, in_flight=in_flight, seconds=seconds)
        cpu = meter.milliseconds(measured.outcomes.total())
        await self.clear()
        return measured, cpu

    def _baskets(self, products: list[str]) -> Baskets:
        rng = random.Random(1)  # noqa: S311 - the same choices for each side
        return Baskets(len(self.crowd.lines), products, mixed=False, choose=rng.randrange)


@asynccontextmanager
async def the_shop(bench: Bench) -> AsyncIterator[Target]:
    """Yield the shop, with products of its own and shoppers on open sockets."""
    products = own_products(PRODUCTS)
    await seed_all(dict.fromkeys(products, UNITS))
    async with Shop(bench.shop.url) as shop:
        await shop.wait_for(products[-1])
        async with crowd(shop, await shop.guests(SHOPPERS)) as (pool, _):
            yield Target(pool, products, bench.shop.groups(), lambda: settle(pool, {"type": "clear"}))


@asynccontextmanager
async def bare_echo(bench: Bench) -> AsyncIterator[Target]:
    """Yield the echo, over the shop's own Kafka."""
    arguments = ("--kafka", bench.shop.environment["HOLDFAST_KAFKA"], "--prefix", "bare-echo.")
    async with crowd_at("load.peers.echo", *arguments) as (pool, pid):
        yield Target(pool, own_products(PRODUCTS), {**bench.shop.groups(), "service": [pid]})


@asynccontextmanager
async def plain_shop(bench: Bench) -> AsyncIterator[Target]:
    """Yield the plain shop, over the shop's own Postgres."""
    arguments = ("--postgres", bench.shop.environment["HOLDFAST_POSTGRES_URL"])
    async with crowd_at("load.peers.plain_shop", *arguments) as (pool, pid):
        products = [f"P{number}" for number in range(1, PRODUCTS + 1)]
        yield Target(pool, products, {**bench.shop.groups(), "service": [pid]})


@asynccontextmanager
async def crowd_at(module: str, *arguments: str, shoppers: int = SHOPPERS) -> AsyncIterator[tuple[Crowd, int]]:
    """Start a baseline, connect shoppers to it, and yield their sockets and its process id."""
    pool = Crowd()
    async with opponent(module, *arguments) as (url, pid):
        try:
            await pool.enter(url, [{"Authorization": f"shopper-{number}"} for number in range(shoppers)])
            yield pool, pid
        finally:
            pool.leave()


@asynccontextmanager
async def all_three(bench: Bench) -> AsyncIterator[dict[str, Target]]:
    """Yield all three targets, running side by side and warmed up."""
    async with AsyncExitStack() as stack:
        targets = {
            OURS: await stack.enter_async_context(the_shop(bench)),
            ECHO: await stack.enter_async_context(bare_echo(bench)),
            PLAIN: await stack.enter_async_context(plain_shop(bench)),
        }
        for name, target in targets.items():
            bench.tell(f"warming up: {name}")
            await target.at(WARM_RATE, 1.0 if bench.quick else WARM_SECONDS)
        yield targets
