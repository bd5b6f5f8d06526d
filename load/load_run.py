"""`holdfast load`: connect shoppers to a running shop, send at a steady rate, clear the carts and disconnect."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from load.driver import ShopperPool, run_open_loop, send_from_all, wait_for_first_frame
from load.http_client import Guest, ShopClient, ShopUnavailableError
from load.measurements import Measurement
from load.schedule import Arrivals, RequestMix, default_shoppers, send_times, shoppers_needed

UNITS_PER_PRODUCT: Final = 1_000_000
"""Stock of each product that a load run adds: more than it can ever hold."""


class TooFewShoppersError(ValueError):
    """The rate limits do not allow this load for so few shoppers; the message says how many are needed."""


@dataclass(frozen=True, slots=True)
class LoadProfile:
    """Parameters of a load run. `shoppers` `None`: as many as needed; `products` `None`: the shop's own catalogue."""

    rate: float
    seconds: float
    shoppers: int | None = None
    products: int | None = None
    arrivals: Arrivals = "constant"


@dataclass(frozen=True, slots=True)
class ProgressReporter:
    """Progress callbacks of a load run: `begin(name, total)`, then `advance()` for each unit of work."""

    begin: Callable[[str, int], None] = lambda _name, _total: None
    advance: Callable[[], None] = lambda: None


def load_product_codes(number: int) -> list[str]:
    """Return the codes of the products that a load run adds: always the same, so that a shop has them once."""
    return [f"LOAD-{each:06}" for each in range(1, number + 1)]


async def run_load(
    shop: ShopClient,
    profile: LoadProfile,
    *,
    seed: Callable[[Mapping[str, int]], Awaitable[None]],
    withdraw: Callable[[Sequence[str]], Awaitable[None]],
    progress: ProgressReporter,
) -> Measurement:
    """Connect shoppers and measure; products that were added for it are withdrawn afterwards.

    Raise `TooFewShoppersError` before sending if the rate limits forbid it.
    """
    progress.begin("products", 1)
    if profile.products is None:
        products = await products_on_sale(shop)
    else:
        products = load_product_codes(profile.products)
        try:
            await seed(dict.fromkeys(products, UNITS_PER_PRODUCT))
            await shop.wait_until_listed(products[-1])
            return await _measure(shop, profile, products, progress)
        finally:
            progress.begin("products are withdrawn", 1)
            await withdraw(products)
    return await _measure(shop, profile, products, progress)


async def _measure(
    shop: ShopClient, profile: LoadProfile, products: Sequence[str], progress: ProgressReporter
) -> Measurement:
    async with connected_pool(shop, [await shop.create_guest()], progress) as (pool, limits):
        number = profile.shoppers or default_shoppers(profile.rate, profile.seconds, limits)
        needed = shoppers_needed(profile.rate, profile.seconds, limits)
        if number < needed:
            raise TooFewShoppersError(
                f"{number} shoppers are too few: {profile.rate:g} changes per second for {profile.seconds:g} s need"
                f" {needed}."
                f" Each may make {limits} per minute: use --shoppers {needed}, or start the shop with --no-limits"
            )
        progress.begin("shoppers connect", number - 1)
        await pool.connect(shop.stream_url, auth_headers(await shop.create_guests(number - 1)), progress.advance)
        rng = random.Random(number)  # noqa: S311 - the same choices every time, so that runs are comparable
        baskets = RequestMix(number, products, mixed=True, choose=rng.randrange)
        plan = [*send_times(profile.rate, profile.seconds, profile.arrivals, rng.random)]
        progress.begin(f"{profile.rate:g} changes per second", len(plan))
        measured = await run_open_loop(
            pool, baskets, plan, rate=profile.rate, seconds=profile.seconds, on_sent=progress.advance
        )
        progress.begin("carts are cleared", 1)
        await send_from_all(pool, {"type": "clear"})
    return measured


@asynccontextmanager
async def connected_pool(
    shop: ShopClient, guests: Sequence[Guest], progress: ProgressReporter | None = None
) -> AsyncIterator[tuple[ShopperPool, int | None]]:
    """Connect `guests` and yield their sockets and the changes per minute each may make (`None`: no limit)."""
    progress = progress or ProgressReporter()
    pool = ShopperPool()
    try:
        welcome = await wait_for_first_frame(
            pool, lambda: pool.connect(shop.stream_url, auth_headers(guests), progress.advance), "welcome"
        )
        yield pool, welcome["limits"]["changes"]
    finally:
        pool.close()


def auth_headers(guests: Sequence[Guest]) -> list[dict[str, str]]:
    """Return the request headers of each guest."""
    return [{"Authorization": f"Bearer {guest.token}"} for guest in guests]


async def products_on_sale(shop: ShopClient) -> list[str]:
    """Return the codes of the products with units available; raise `ShopUnavailableError` if there are none."""
    products = [item["code"] for item in await shop.list_all("/v1/products?limit=100&available_min=1")]
    if not products:
        raise ShopUnavailableError("no product has units available: add some with --products 100")
    return products
