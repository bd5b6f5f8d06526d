"""The proof that every order ends once, and every penny is accounted for, whoever dies meanwhile.

A shop of its own is started, since one that people use is not to be killed: with a patience of seconds for payments
(`load.chaos.stage.IMPATIENT`), where a shop in business waits ten minutes. Shoppers check out at a steady pace, one
card in five faulty, while every process and every server is killed with -9 in turn. Then all must have ended, and the
books of orders, of payment, of the provider and of the stock must agree: the checks are those of `holdfast chaos`.
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

from load.chaos import rare
from load.chaos.command import tell_failure
from load.chaos.run import Result, play, products_of
from load.chaos.scenarios import Scenario
from load.chaos.stage import IMPATIENT, Stage
from load.measuring import die, room_for_sockets
from load.shop import ShopAwayError

SHOPPERS: Final = 48
MAX_ORDERS: Final = 100_000
ENOUGH: Final = 1000
"""From so many orders on, each of the rare ways must have been taken; of fewer that cannot be asked."""
KILLED: Final = "kill-each: "


def orders(
    *,
    number: Annotated[int, typer.Option("--orders", min=10, max=MAX_ORDERS, help="checkouts that are begun")] = 2000,
    rate: Annotated[float, typer.Option(min=0.1, max=100, help="of them a second")] = 8,
    seed: Annotated[int | None, typer.Option(min=0, help="what is left to chance is drawn from it")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep the shop's directory, with its logs")] = False,
) -> None:
    """Check out again and again, one card in five faulty, while every process is killed with -9 in turn.

    Each order must end delivered or cancelled, and all books balance. A shop of its own is started for this and thrown
    away: one that is patient with payments for 4 s instead of ten minutes.
    """
    chosen = seed if seed is not None else secrets.randbelow(10_000)
    scenario = Scenario(
        "orders", ("kill-each", "expire"), replayed=True, shoppers=SHOPPERS, checkouts=number, rate=rate
    )
    folder = Path(tempfile.mkdtemp(prefix="holdfast-prove-orders-"))
    room_for_sockets(4 * SHOPPERS)
    try:
        result = asyncio.run(_prove(scenario, chosen, folder))
    except ShopAwayError as error:
        die(f"{error}; its logs are in {folder / 'root' / 'logs'}")
    missing = [name for name in rare.EVERY if not result.counts.get(name)] if number >= ENOUGH else []
    ok = not result.findings and not missing
    if as_json:
        typer.echo(json.dumps({**result.as_json(), "ok": ok, "seed": chosen, "never": missing}))
    else:
        _show(Console(highlight=False), result)
    if result.findings:
        tell_failure(result, chosen)
    for name in missing:
        typer.echo(f"never happened: {name} ({rare.EVERY[name]})", err=True)
    if not as_json:
        count = result.counts.get("orders", 0)
        verdict = "Proved: all ended, all books balance" if ok else "Refuted"
        typer.echo(f"{verdict}. {count} orders, {result.seconds:.0f} s, seed {chosen}.")
    if ok and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        typer.echo(f"the history and the shop's logs are in {folder}", err=True)
    raise typer.Exit(0 if ok else 1)


async def _prove(scenario: Scenario, seed: int, folder: Path) -> Result:
    stage = Stage(folder / "root")
    try:
        told = " ".join(f"{name}={value}" for name, value in IMPATIENT.items())
        typer.echo(f"… starting a shop of its own: {told}", err=True)
        await stage.up(sys.stderr)
        await stage.seed(products_of(scenario))
        return await play(
            stage, scenario, seed=seed, folder=folder, tell=lambda what: typer.echo(f"… {what}", err=True)
        )
    finally:
        await stage.down()


def _show(console: Console, result: Result) -> None:
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
    for name in rare.EVERY:
        table.add_row(name, str(counts.get(name, 0)))
    console.print(table)
    killed = ", ".join(f"{name.removeprefix(KILLED)} {n}" for name, n in counts.items() if name.startswith(KILLED))
    console.print(f"killed with -9: {killed or 'nothing'}")
