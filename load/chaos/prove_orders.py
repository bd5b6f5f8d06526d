"""Proof that every order ends once and all money is accounted for, although every process is killed in turn.

A temporary shop is started, since processes of a shop in use must not be killed. Its payment deadline is a few seconds
(`SHORT_DEADLINES`) instead of ten minutes. Shoppers check out at a steady rate, one card in five failing,
while every process and every server is killed with SIGKILL in turn. Afterwards every order must have ended, and the
accounts of orders, payment, provider and stock must agree: the checks are those of `holdfast chaos`.
"""

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from infrastructure.local.commands.output import SafeConsole
from load.chaos.checks import rare_outcomes
from load.chaos.command import print_failure
from load.chaos.runner import ScenarioResult, run_scenario, scenario_products
from load.chaos.scenarios import Scenario
from load.chaos.shop_under_test import SHORT_DEADLINES, ShopUnderTest
from load.cli import exit_with_error, raise_descriptor_limit
from load.http_client import ShopUnavailableError

SHOPPERS: Final = 48
MAX_ORDERS: Final = 100_000
MIN_ORDERS_FOR_RARE_OUTCOMES: Final = 1000
"""From this number of orders on, each rare outcome must have occurred; with fewer orders it may not."""
KILL_COUNT_PREFIX: Final = "kill-each: "


def orders(
    *,
    number: Annotated[int, typer.Option("--orders", min=10, max=MAX_ORDERS, help="number of checkouts")] = 2000,
    rate: Annotated[float, typer.Option(min=0.1, max=100, help="checkouts per second")] = 8,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of all random choices; default: a random one")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep the shop's directory and logs")] = False,
) -> None:
    """Check out repeatedly, one card in five failing, while every process is killed with SIGKILL in turn.

    Each order must end delivered or cancelled, and all accounts must balance. A temporary shop is started for this,
    with a payment deadline of 4 s instead of ten minutes.
    """
    chosen = seed if seed is not None else secrets.randbelow(10_000)
    scenario = Scenario(
        "orders", ("kill-each", "expire"), replays_records=True, shoppers=SHOPPERS, checkouts=number, rate=rate
    )
    folder = Path(tempfile.mkdtemp(prefix="holdfast-prove-orders-"))
    raise_descriptor_limit(4 * SHOPPERS)
    try:
        result = asyncio.run(_prove(scenario, chosen, folder))
    except ShopUnavailableError as error:
        exit_with_error(f"{error}; its logs are in {folder / 'root' / 'logs'}")
    missing = (
        [name for name in rare_outcomes.RARE_OUTCOMES if not result.counts.get(name)]
        if number >= MIN_ORDERS_FOR_RARE_OUTCOMES
        else []
    )
    ok = not result.findings and not missing
    if as_json:
        typer.echo(json.dumps({**result.as_json(), "ok": ok, "seed": chosen, "never": missing}))
    else:
        _show(SafeConsole(highlight=False), result)
    if result.findings:
        print_failure(result, chosen)
    for name in missing:
        typer.echo(f"did not occur: {name} ({rare_outcomes.RARE_OUTCOMES[name]})", err=True)
    if not as_json:
        count = result.counts.get("orders", 0)
        verdict = "Proved: all orders ended, all accounts balance" if ok else "Refuted"
        typer.echo(f"{verdict}. {count} orders, {result.seconds:.0f} s, seed {chosen}.")
    if ok and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        typer.echo(f"history and logs are in {folder}", err=True)
    raise typer.Exit(0 if ok else 1)


async def _prove(scenario: Scenario, seed: int, folder: Path) -> ScenarioResult:
    shop = ShopUnderTest(folder / "root")
    try:
        settings = " ".join(f"{name}={value}" for name, value in SHORT_DEADLINES.items())
        typer.echo(f"… starting a temporary shop: {settings}", err=True)
        await shop.start(sys.stderr)
        await shop.seed(scenario_products(scenario))
        return await run_scenario(
            shop, scenario, seed=seed, folder=folder, report_progress=lambda text: typer.echo(f"… {text}", err=True)
        )
    finally:
        await shop.stop()


def _show(console: Console, result: ScenarioResult) -> None:
    counts = result.counts
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("orders", str(counts.get("orders", 0)))
    for name, count in counts.items():
        if name == "delivered" or name.startswith("cancelled: "):
            table.add_row(f"  {name}", str(count))
    for name in ("captured", "confirmed", "refunded", "in_flight"):
        table.add_row(name.replace("_", " "), f"{getattr(result.balance, name) / 100:,.2f} GBP")
    for name in rare_outcomes.RARE_OUTCOMES:
        table.add_row(name, str(counts.get(name, 0)))
    console.print(table)
    killed = ", ".join(
        f"{name.removeprefix(KILL_COUNT_PREFIX)} {n}"
        for name, n in counts.items()
        if name.startswith(KILL_COUNT_PREFIX)
    )
    console.print(f"killed (SIGKILL): {killed or 'nothing'}")
