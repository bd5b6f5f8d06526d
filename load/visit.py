"""`holdfast load`: a crowd comes into a running shop, shops at a steady rate, empties its carts and leaves."""

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
"""Of each product that a load brings along: more than it can ever hold."""


class TooFewShoppersError(ValueError):
    """The shop's limits allow these shoppers less than was asked for; the message says how many it takes."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a load shall be. `shoppers` and `products` None: as many as it takes; the shop's own catalogue."""

    rate: float
    seconds: float
    shoppers: int | None = None
    products: int | None = None
    arrivals: Arrivals = "constant"


@dataclass(frozen=True, slots=True)
class Telling:
    """Who hears how far a visit has come: `stage(name, total)`, then `step()` for each of them."""

    stage: Callable[[str, int], None] = lambda _name, _total: None
    step: Callable[[], None] = lambda: None


def own_products(number: int) -> list[str]:
    """The codes of the products that a load brings along: always the same, so that a shop has them once."""
    return [f"LOAD-{each:06}" for each in range(1, number + 1)]


async def visit(
    shop: Shop, wish: Wish, *, seed: Callable[[Mapping[str, int]], Awaitable[None]], telling: Telling
) -> Measured:
    """Bring a crowd in and measure it. Raises `TooFewShoppersError` before anything is sent when limits forbid it."""
    telling.stage("products", 1)
    if wish.products is None:
        products = await on_sale(shop)
    else:
        products = own_products(wish.products)
        await seed(dict.fromkeys(products, UNITS))
        await shop.wait_for(products[-1])
    async with crowd(shop, [await shop.guest()], telling) as (few, limits):
        number = wish.shoppers or usual_shoppers(wish.rate, wish.seconds, limits)
        needed = shoppers_needed(wish.rate, wish.seconds, limits)
        if number < needed:
            raise TooFewShoppersError(
                f"{wish.rate:g} changes a second for {wish.seconds:g} s take {needed} shoppers, since each may make "
                f"{limits} a minute, and here are {number}: say --shoppers {needed}, or start the shop with --no-limits"
            )
        telling.stage("shoppers come in", number - 1)
        await few.enter(shop.stream_url, passes(await shop.guests(number - 1)), telling.step)
        dice = random.Random(number)  # noqa: S311 - the same choices every time, so that runs compare
        baskets = Baskets(number, products, mixed=True, choose=dice.randrange)
        plan = [*instants(wish.rate, wish.seconds, wish.arrivals, dice.random)]
        telling.stage(f"{wish.rate:g} changes a second", len(plan))
        measured = await drive(few, baskets, plan, rate=wish.rate, seconds=wish.seconds, sent=telling.step)
        telling.stage("carts are emptied", 1)
        await settle(few, {"type": "clear"})
    return measured


@asynccontextmanager
async def crowd(
    shop: Shop, guests: Sequence[Guest], telling: Telling | None = None
) -> AsyncIterator[tuple[Crowd, int | None]]:
    """A crowd of `guests` on open lines, and how many changes a minute each may make (None: no limit)."""
    telling = telling or Telling()
    few = Crowd()
    try:
        welcome = await first_frame(few, lambda: few.enter(shop.stream_url, passes(guests), telling.step), "welcome")
        yield few, welcome["limits"]["changes"]
    finally:
        few.leave()


def passes(guests: Sequence[Guest]) -> list[dict[str, str]]:
    """The headers that each guest comes in with."""
    return [{"Authorization": f"Bearer {guest.token}"} for guest in guests]


async def on_sale(shop: Shop) -> list[str]:
    """The codes of what the catalogue shows as available."""
    products = [item["code"] for item in await shop.every("/v1/products?limit=100&available_min=1")]
    if not products:
        raise ShopAwayError("nothing is on sale: give a load products of its own with --products 100")
    return products
