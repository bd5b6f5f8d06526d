"""The shop, the bare echo and the plain shop behind one driver: the same frames, sockets, rates and rules."""

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


async def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers adds with `held`."""

    crowd: Crowd
    products: list[str]
    pids: Mapping[str, Iterable[int]]
    """Processes by group: `service`, `kafka`, `postgres`."""
    clear: Callable[[], Awaitable[object]] = _nothing
    """Makes room in the carts again, and returns when all that was asked before is done: the next side is measured
    without the queue that this one may have left.
    """

    async def at(self, rate: float, seconds: float) -> tuple[Measured, dict[str, float]]:
        """Adds at a steady rate; what came of it, and milliseconds of CPU a request by group."""
        plan = [*instants(rate, seconds, "constant", random.random)]
        meter = Meter(self.pids)
        measured = await drive(self.crowd, self._baskets(self.products), plan, rate=rate, seconds=seconds)
        cpu = meter.milliseconds(measured.outcomes.total())
        await self.clear()
        return measured, cpu

    async def full(
        self, seconds: float, in_flight: int, products: list[str] | None = None
    ) -> tuple[Measured, dict[str, float]]:
        """As many adds as it takes, `in_flight` at a time."""
        meter = Meter(self.pids)
        baskets = self._baskets(products or self.products)
        measured = await saturate(self.crowd, baskets, in_flight=in_flight, seconds=seconds)
        cpu = meter.milliseconds(measured.outcomes.total())
        await self.clear()
        return measured, cpu

    def _baskets(self, products: list[str]) -> Baskets:
        dice = random.Random(1)  # noqa: S311 - the same choices for each side
        return Baskets(len(self.crowd.lines), products, mixed=False, choose=dice.randrange)


@asynccontextmanager
async def the_shop(bench: Bench) -> AsyncIterator[Target]:
    """The shop, with products of its own and shoppers on open sockets."""
    products = own_products(PRODUCTS)
    await seed_all(dict.fromkeys(products, UNITS))
    async with Shop(bench.shop.url) as shop:
        await shop.wait_for(products[-1])
        async with crowd(shop, await shop.guests(SHOPPERS)) as (few, _):
            yield Target(few, products, bench.shop.groups(), lambda: settle(few, {"type": "clear"}))


@asynccontextmanager
async def bare_echo(bench: Bench) -> AsyncIterator[Target]:
    """The echo, over the shop's own Kafka."""
    arguments = ("--kafka", bench.shop.environment["HOLDFAST_KAFKA"], "--prefix", "bare-echo.")
    async with crowd_at("load.peers.echo", *arguments) as (few, pid):
        yield Target(few, own_products(PRODUCTS), {**bench.shop.groups(), "service": [pid]})


@asynccontextmanager
async def plain_shop(bench: Bench) -> AsyncIterator[Target]:
    """The plain shop, over the shop's own Postgres."""
    arguments = ("--postgres", bench.shop.environment["HOLDFAST_POSTGRES_URL"])
    async with crowd_at("load.peers.plain_shop", *arguments) as (few, pid):
        products = [f"P{number}" for number in range(1, PRODUCTS + 1)]
        yield Target(few, products, {**bench.shop.groups(), "service": [pid]})


@asynccontextmanager
async def crowd_at(module: str, *arguments: str, shoppers: int = SHOPPERS) -> AsyncIterator[tuple[Crowd, int]]:
    """Shoppers on open lines to an opponent, and its process id."""
    few = Crowd()
    async with opponent(module, *arguments) as (url, pid):
        try:
            await few.enter(url, [{"Authorization": f"shopper-{number}"} for number in range(shoppers)])
            yield few, pid
        finally:
            few.leave()


@asynccontextmanager
async def all_three(bench: Bench) -> AsyncIterator[dict[str, Target]]:
    """The three of them, side by side and warm."""
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
