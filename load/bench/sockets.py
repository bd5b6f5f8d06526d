"""Many sockets: memory each, and one change of stock pushed to all who watch it."""

import asyncio
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, Final

import orjson

from load.bench.machine import cpu_seconds, rss_bytes
from load.bench.rounds import OURS, Bench, Figures, Side
from load.bench.stack import opponent
from load.bench.targets import PLAIN
from load.commands import seed_all
from load.driver import Crowd
from load.shop import Shop
from load.visit import UNITS, own_products, passes

SIZES: Final = (1_000, 10_000)
QUICK_SIZES: Final = (50, 200)
REST_SECONDS: Final = 2.0
PUSHES: Final = 5
PUSH_SECONDS: Final = 30.0
SPARE_DESCRIPTORS: Final = 500


def sizes(bench: Bench) -> tuple[int, ...]:
    """How many sockets there shall be, as far as this process may open them; the shop may open as many."""
    if bench.quick:
        return QUICK_SIZES
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
    return tuple(size for size in SIZES if size <= most)


@asynccontextmanager
async def sockets(bench: Bench) -> AsyncIterator[Mapping[str, Side]]:
    """The shop's edge, and a bare FastAPI that has nothing to say to an idle socket."""
    await seed_all(dict.fromkeys(own_products(1), UNITS))
    yield {OURS: partial(_ours, bench), PLAIN: partial(_plain, bench)}


async def _ours(bench: Bench) -> Figures:
    told, few, edge = Figures(), Crowd(), await bench.shop.restart("edge")
    (product,) = own_products(1)
    async with Shop(bench.shop.url) as shop:
        await shop.wait_for(product)
        await asyncio.sleep(REST_SECONDS)
        idle = rss_bytes([edge])
        try:
            for size in sizes(bench):
                guests = await shop.guests(size - len(few.lines))
                await few.enter(shop.stream_url, passes(guests))
                await asyncio.sleep(REST_SECONDS)
                told.note(f"kib@{size}", (rss_bytes([edge]) - idle) / 1024 / size)
            await _push(told, few, edge, product)
        finally:
            few.leave()
            await asyncio.sleep(REST_SECONDS)
    return told


async def _plain(bench: Bench) -> Figures:
    told, few = Figures(), Crowd()
    async with opponent("load.peers.plain_shop", "--postgres", bench.shop.environment["HOLDFAST_POSTGRES_URL"]) as (
        url,
        pid,
    ):
        await asyncio.sleep(REST_SECONDS)
        idle = rss_bytes([pid])
        try:
            for size in sizes(bench):
                count = size - len(few.lines)
                await few.enter(url, [{"Authorization": f"shopper-{size}-{number}"} for number in range(count)])
                await asyncio.sleep(REST_SECONDS)
                told.note(f"kib@{size}", (rss_bytes([pid]) - idle) / 1024 / size)
        finally:
            few.leave()
    return told


async def _push(told: Figures, few: Crowd, edge: int, product: str) -> None:
    """All watch one product; one shopper buys; the time until the last of them has seen it."""
    seen: list[int] = [-1] * len(few.lines)
    newest = -1
    waiting = len(few.lines)
    all_saw = asyncio.Event()

    def hear(shopper: int, frame: Mapping[str, Any]) -> None:
        nonlocal waiting
        if frame["type"] == "stock" and frame["product"] == product and frame["version"] > newest:
            waiting -= seen[shopper] <= newest
            seen[shopper] = max(seen[shopper], frame["version"])
            if not waiting:
                all_saw.set()

    few.hear = hear
    try:
        for number, line in enumerate(few.lines):
            line.send(orjson.dumps({"id": f"watch-{number}", "type": "watch", "products": [product]}))
        await asyncio.wait_for(all_saw.wait(), PUSH_SECONDS)
        await asyncio.sleep(REST_SECONDS)
        times: list[float] = []
        used, missed = cpu_seconds([edge]), 0
        for number in range(PUSHES):
            newest, waiting = max(seen), len(few.lines)
            all_saw.clear()
            begun = perf_counter()
            few.lines[0].send(
                orjson.dumps({"id": f"push-{number}-{newest}", "type": "add", "product": product, "quantity": 1})
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(all_saw.wait(), PUSH_SECONDS)
            missed += waiting
            times.append(perf_counter() - begun)
            await asyncio.sleep(1.0)
        fault = f"{missed} of {PUSHES * len(few.lines)} pushes did not arrive" if missed else None
        told.note("push_ms", 1000 * median(times), fault)
        told.note("push_cpu_ms", 1000 * (cpu_seconds([edge]) - used) / PUSHES, fault)
        told.note("watchers", len(few.lines))
    finally:
        few.hear = None
