"""Changes of carts on other systems that promise durable execution: DBOS and Restate.

They are installed by `make opponents`, in an environment of their own. One system runs at a time, with the servers that
it needs and no others, and each is warmed up until two consecutive windows agree.
"""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from infrastructure.local import processes
from infrastructure.local.servers.port_reservations import reserve_free_port
from infrastructure.local.servers.postgres import Postgres
from infrastructure.local.state import Root
from load.bench.machine import mebibytes_by_name, process_tree
from load.bench.processes import start_shop, stop_shop
from load.bench.rounds import OURS, BenchContext, OthersMeter, Side, SideResult, interference_reason
from load.bench.steadiness import DEFAULT_STEADINESS, Window, has_settled
from load.bench.targets import Target, pool_at_baseline, shop_pool
from load.holdfast_commands import seed_products
from load.http_client import ShopClient, ShopUnavailableError
from load.load_run import UNITS_PER_PRODUCT, load_product_codes

DBOS: Final = "DBOS"
RESTATE: Final = "Restate"
FOLDER: Final = Path(__file__).resolve().parents[2] / ".opponents"
"""Environment that `make opponents` makes."""
SHOPPERS: Final = 60
PRODUCTS: Final = 2000
RATES: Final = (20, 100, 300)
IN_FLIGHT: Final = 64
MAIN_JOB: Final = "edge,cart,inventory"
READY_SECONDS: Final = 60.0
WARM_SECONDS: Final = 5.0

TargetContext = Callable[[], AbstractAsyncContextManager[Target]]


def python_of(folder: Path) -> Path:
    """Return the path of the opponents' interpreter."""
    return folder / "bin" / "python"


def restate_server(folder: Path) -> Path | None:
    """Return the path of the Restate server, or `None` if it is not installed."""
    found = folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server")
    return next((path for path in sorted(found) if os.access(path, os.X_OK)), None)


def missing_reason(name: str, folder: Path) -> str | None:
    """Return a sentence about what is missing for an opponent, or `None` if it is installed."""
    python, module = python_of(folder), name.lower()
    how = "`make opponents` installs it"
    if (
        not python.exists()
        or subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode
    ):
        return f"{name} was skipped: its Python package is not installed; {how}."
    if name == RESTATE and restate_server(folder) is None:
        return f"{name} was skipped: its server is not installed; {how} where there is npm."
    return None


@asynccontextmanager
async def opponents_sides(bench: BenchContext) -> AsyncIterator[Mapping[str, Side]]:
    """Yield the shop and the opponents that are installed."""
    targets: dict[str, TargetContext] = {OURS: partial(_shop_target, bench)}
    for name, context in ((DBOS, _dbos_target), (RESTATE, _restate_target)):
        if reason := missing_reason(name, FOLDER):
            bench.report_progress(reason)
            bench.skipped.append(reason)
        else:
            targets[name] = partial(context, bench)
    yield {name: Side(partial(_measure, bench, name, context)) for name, context in targets.items()}


async def _measure(bench: BenchContext, name: str, context: TargetContext) -> SideResult:
    """Start a system, warm it up, measure it, and stop it."""
    result = SideResult()
    async with context() as target:
        unsteady = await _warm_up(bench, name, target, result)
        others = OthersMeter({str(pid): pid for pid in target.pids["all"]})
        for rate in RATES[:1] if bench.quick else RATES:
            bench.report_progress(f"opponents: {name}, {rate}/s")
            measured, cpu = await target.run_at_rate(rate, bench.seconds)
            lost = f"{measured.lost} of {measured.sent} requests were lost" if measured.lost else None
            invalid_reason = measured.invalid_reason or unsteady or lost
            result.add(f"p50@{rate}", measured.latency.percentile(50), invalid_reason)
            result.add(f"p99@{rate}", measured.latency.percentile(99), invalid_reason)
            result.add(f"cpu@{rate}", cpu["all"], unsteady)
            result.add(f"lost@{rate}", measured.lost)
        for figure, products in (("saturation", target.products), ("hot", target.products[:1])):
            bench.report_progress(f"opponents: {name}, {figure}")
            measured, cpu = await target.run_saturated(bench.seconds / 2, IN_FLIGHT, products)
            result.add(figure, measured.goodput)
            result.add(f"{figure}_cpu", cpu["all"])
        if reason := interference_reason(others.cores()):
            result.invalid_reasons = dict.fromkeys(result.values, reason) | result.invalid_reasons
        if memory := mebibytes_by_name({"all": process_tree(target.pids["all"])}):
            result.add("memory", memory["all"])
    return result


async def _warm_up(bench: BenchContext, name: str, target: Target, result: SideResult) -> str | None:
    """Load a system until two consecutive windows agree; return why it is not warm if the bound is reached."""
    windows: list[Window] = []
    rule = DEFAULT_STEADINESS
    while not has_settled(windows, rule) and len(windows) < (1 if bench.quick else rule.most_windows):
        bench.report_progress(f"opponents: warming up, window {len(windows) + 1}, {name}")
        windows.append(await target.warm(1.0 if bench.quick else WARM_SECONDS, rate=RATES[1]))
    result.add("warm_windows", len(windows))
    return None if has_settled(windows, rule) else f"{name} was not steady after {len(windows)} windows of warm-up"


@asynccontextmanager
async def _shop_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Start the services of an add-to-cart with their servers, and yield them."""
    shop = await start_shop(bench.shop.root, "--no-limits", "--only", MAIN_JOB)
    try:
        products = load_product_codes(PRODUCTS)
        await seed_products(dict.fromkeys(products, UNITS_PER_PRODUCT))
        async with ShopClient(shop.url) as client:
            await client.wait_until_listed(products[-1])
            async with shop_pool(bench.driver, client, SHOPPERS) as pool:
                yield Target(pool, products, {"all": [*shop.pids.values()]}, pool.clear_carts, mixed=True)
    finally:
        await stop_shop()


@asynccontextmanager
async def _dbos_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Start Postgres with the shop's own settings, and DBOS; yield both."""
    python = str(python_of(FOLDER))
    async with AsyncExitStack() as stack:
        url, postgres = await stack.enter_async_context(temporary_postgres())
        stack.enter_context(environment(HOLDFAST_POSTGRES_URL=url))
        started = pool_at_baseline(bench.driver, "load.baselines.dbos_shop", shoppers=SHOPPERS, python=python)
        pool, pid = await stack.enter_async_context(started)
        yield Target(pool, opponent_products(), {"all": [pid, postgres]}, pool.clear_carts, mixed=True)


@asynccontextmanager
async def _restate_target(bench: BenchContext) -> AsyncIterator[Target]:
    """Start Restate with its handlers; yield both."""
    arguments = ("--server", str(restate_server(FOLDER)))
    async with pool_at_baseline(
        bench.driver, "load.baselines.restate_shop", *arguments, shoppers=SHOPPERS, python=str(python_of(FOLDER))
    ) as (pool, pid):
        yield Target(pool, opponent_products(), {"all": [pid]}, pool.clear_carts, mixed=True)


def opponent_products() -> list[str]:
    """Return the codes of the products that each opponent has."""
    return [f"P{number}" for number in range(1, PRODUCTS + 1)]


@asynccontextmanager
async def temporary_postgres() -> AsyncIterator[tuple[str, int]]:
    """Run a Postgres in a temporary directory, with the settings of the local stack; yield its URL and process id.

    Raise `ShopUnavailableError` if it does not answer in time.
    """
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", ignore_cleanup_errors=True) as folder:
        root = Root(Path(folder))
        root.create()
        server = Postgres(root, reserve_free_port(), root.secrets())
        await asyncio.to_thread(server.prepare)
        child = server.start(root.log_file(server.name))
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not server.is_answering():
                    if child.poll() is not None:
                        raise ShopUnavailableError(f"Postgres exited with status {child.returncode}")
                    await asyncio.sleep(0.05)
            yield server.url(), child.pid
        finally:
            processes.send_signal([psutil.Process(child.pid)], server.stop_signal)
            await asyncio.to_thread(child.wait)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of this process's environment, and restore them on exit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
