"""`holdfast load`: connect shoppers to a running shop, send at a steady rate, clear the carts and disconnect."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from load.driver import Crowd, drive, first_frame, settle
from load.figures import Measured
from load.schedule import Arrivals, Baskets, instants, shoppers_needed, usual_shoppers
from load.shop import Guest, Shop, ShopAwayError

UNITS: Final = 1_000_000
"""Stock of each product that a load run adds: more than it can ever hold."""


class TooFewShoppersError(ValueError):
    """The rate limits do not allow this load for so few shoppers; the message says how many are needed."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Parameters of a load run. `shoppers` `None`: as many as needed; `products` `None`: the shop's own catalogue."""

    rate: float
    seconds: float
    shoppers: int | None = None
    products: int | None = None
    arrivals: Arrivals = "constant"


@dataclass(frozen=True, slots=True)
class Telling:
    """Progress callbacks of a load run: `stage(name, total)`, then `step()` for each unit of work."""

    stage: Callable[[str, int], None] = lambda _name, _total: None
    step: Callable[[], None] = lambda: None


def own_products(number: int) -> list[str]:
    """Return the codes of the products that a load run adds: always the same, so that a shop has them once."""
    return [f"LOAD-{each:06}" for each in range(1, number + 1)]


async def visit(
    shop: Shop, wish: Wish, *, seed: Callable[[Mapping[str, int]], Awaitable[None]], telling: Telling
) -> Measured:
    """Connect shoppers and measure. Raise `TooFewShoppersError` before sending if the rate limits forbid it."""
    telling.stage("products", 1)
    if wish.products is None:
        products = await on_sale(shop)
    else:
        products = own_products(wish.products)
        await seed(dict.fromkeys(products, UNITS))
        await shop.wait_for(products[-1])
    async with crowd(shop, [await shop.guest()], telling) as (pool, limits):
        number = wish.shoppers or usual_shoppers(wish.rate, wish.seconds, limits)
        needed = shoppers_needed(wish.rate, wish.seconds, limits)
        if number < needed:
            raise TooFewShoppersError(
                f"{number} shoppers are too few: {wish.rate:g} changes per second for {wish.seconds:g} s need {needed}."
                f" Each may make {limits} per minute: use --shoppers {needed}, or start the shop with --no-limits"
            )
        telling.stage("shoppers connect", number - 1)
        await pool.enter(shop.stream_url, passes(await shop.guests(number - 1)), telling.step)
        rng = random.Random(number)  # noqa: S311 - the same choices every time, so that runs are comparable
        baskets = Baskets(number, products, mixed=True, choose=rng.randrange)
        plan = [*instants(wish.rate, wish.seconds, wish.arrivals, rng.random)]
        telling.stage(f"{wish.rate:g} changes per second", len(plan))
        measured = await drive(pool, baskets, plan, rate=wish.rate, seconds=wish.seconds, sent=telling.step)
        telling.stage("carts are cleared", 1)
        await settle(pool, {"type": "clear"})
    return measured


@asynccontextmanager
async def crowd(
    shop: Shop, guests: Sequence[Guest], telling: Telling | None = None
) -> AsyncIterator[tuple[Crowd, int | None]]:
    """Connect `guests` and yield their sockets and the changes per minute each may make (`None`: no limit)."""
    telling = telling or Telling()
    pool = Crowd()
    try:
        welcome = await first_frame(pool, lambda: pool.enter(shop.stream_url, passes(guests), telling.step), "welcome")
        yield pool, welcome["limits"]["changes"]
    finally:
        pool.leave()


def passes(guests: Sequence[Guest]) -> list[dict[str, str]]:
    """Return the request headers of each guest."""
    return [{"Authorization": f"Bearer {guest.token}"} for guest in guests]


async def on_sale(shop: Shop) -> list[str]:
    """Return the codes of the products with units available; raise `ShopAwayError` if there are none."""
    products = [item["code"] for item in await shop.every("/v1/products?limit=100&available_min=1")]
    if not products:
        raise ShopAwayError("no product has units available: add some with --products 100")
    return products
