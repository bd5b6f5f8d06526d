"""Many sockets: memory per socket, and one change of stock pushed to all watchers."""

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
from load.bench.processes import baseline_process
from load.bench.rounds import OURS, BenchContext, Side, SideResult
from load.bench.targets import PLAIN
from load.driver import ShopperPool
from load.holdfast_commands import seed_products
from load.http_client import ShopClient
from load.load_run import UNITS_PER_PRODUCT, auth_headers, load_product_codes

SIZES: Final = (1_000, 10_000)
QUICK_SIZES: Final = (50, 200)
REST_SECONDS: Final = 2.0
PUSHES: Final = 5
PUSH_SECONDS: Final = 30.0
SPARE_DESCRIPTORS: Final = 500


def socket_counts(bench: BenchContext) -> tuple[int, ...]:
    """Return the numbers of sockets to open, within this process's limit of open files; the shop has the same limit."""
    if bench.quick:
        return QUICK_SIZES
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
    return tuple(size for size in SIZES if size <= most)


@asynccontextmanager
async def sockets_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield the shop's edge, and a plain FastAPI service that sends nothing to an idle socket."""
    await seed_products(dict.fromkeys(load_product_codes(1), UNITS_PER_PRODUCT))
    yield {OURS: Side(partial(_measure_edge, bench)), PLAIN: Side(partial(_measure_plain_shop, bench))}


async def _measure_edge(bench: BenchContext) -> SideResult:
    result, pool, edge = SideResult(), ShopperPool(), await bench.shop.restart("edge")
    (product,) = load_product_codes(1)
    async with ShopClient(bench.shop.url) as shop:
        await shop.wait_until_listed(product)
        await asyncio.sleep(REST_SECONDS)
        idle = rss_bytes([edge])
        try:
            for size in socket_counts(bench):
                guests = await shop.create_guests(size - len(pool.connections))
                await pool.connect(shop.stream_url, auth_headers(guests))
                await asyncio.sleep(REST_SECONDS)
                result.add(f"kib@{size}", (rss_bytes([edge]) - idle) / 1024 / size)
            await _measure_push(result, pool, edge, product)
        finally:
            pool.close()
            await asyncio.sleep(REST_SECONDS)
    return result


async def _measure_plain_shop(bench: BenchContext) -> SideResult:
    result, pool = SideResult(), ShopperPool()
    async with baseline_process("load.baselines.plain_shop") as (url, pid):
        await asyncio.sleep(REST_SECONDS)
        idle = rss_bytes([pid])
        try:
            for size in socket_counts(bench):
                count = size - len(pool.connections)
                await pool.connect(url, [{"Authorization": f"shopper-{size}-{number}"} for number in range(count)])
                await asyncio.sleep(REST_SECONDS)
                result.add(f"kib@{size}", (rss_bytes([pid]) - idle) / 1024 / size)
        finally:
            pool.close()
    return result


async def _measure_push(result: SideResult, pool: ShopperPool, edge: int, product: str) -> None:
    """Let all shoppers watch one product and one buy it; measure the time until the last watcher is informed."""
    versions: list[int] = [-1] * len(pool.connections)
    newest = -1
    waiting = len(pool.connections)
    all_informed = asyncio.Event()

    def on_frame(shopper: int, frame: Mapping[str, Any]) -> None:
        nonlocal waiting
        if frame["type"] == "stock" and frame["product"] == product and frame["version"] > newest:
            waiting -= versions[shopper] <= newest
            versions[shopper] = max(versions[shopper], frame["version"])
            if not waiting:
                all_informed.set()

    pool.on_frame = on_frame
    try:
        for number, connection in enumerate(pool.connections):
            connection.send(orjson.dumps({"id": f"watch-{number}", "type": "watch", "products": [product]}))
        await asyncio.wait_for(all_informed.wait(), PUSH_SECONDS)
        await asyncio.sleep(REST_SECONDS)
        times: list[float] = []
        used, missed = cpu_seconds([edge]), 0
        for number in range(PUSHES):
            newest, waiting = max(versions), len(pool.connections)
            all_informed.clear()
            started = perf_counter()
            pool.connections[0].send(
                orjson.dumps({"id": f"push-{number}-{newest}", "type": "add", "product": product, "quantity": 1})
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(all_informed.wait(), PUSH_SECONDS)
            missed += waiting
            times.append(perf_counter() - started)
            await asyncio.sleep(1.0)
        invalid_reason = f"{missed} of {PUSHES * len(pool.connections)} pushes did not arrive" if missed else None
        result.add("push_ms", 1000 * median(times), invalid_reason)
        result.add("push_cpu_ms", 1000 * (cpu_seconds([edge]) - used) / PUSHES, invalid_reason)
        result.add("watchers", len(pool.connections))
    finally:
        pool.on_frame = None
