"""Proofs, load and faults for a running shop."""

import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Final

import psycopg
import typer

from infrastructure.local.commands.output import SafeConsole
from load import cli, holdfast_commands
from load.chaos.command import chaos
from load.chaos.prove_orders import orders
from load.http_client import ConnectionRejectedError, Guest, ShopUnavailableError
from load.prove_oversell import ProofResult, prove_oversell
from load.unguarded_control import MAX_CONNECTIONS, METHOD, rush_unguarded
from load.verdict import FindingKind, RushVerdict
from load.verdict_table import print_verdicts

MAX_BUYERS: Final = 5000

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
proofs = typer.Typer(help="Prove the shop's guarantees.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(proofs, name="prove")
cli.register(app)
app.command(
    epilog="Example: holdfast chaos --quick --seed 1. Exit status: 0 nothing broken, 1 something is, 2 usage error."
)(chaos)


@app.callback()
def _load() -> None:
    """Send load to a shop, prove its guarantees, and break it."""


@proofs.callback()
def _proofs() -> None:
    """Prove the shop's guarantees."""


@proofs.command(
    epilog="Example: holdfast prove oversell --buyers 500 --stock 25. Exit status: 0 proved, 1 refuted, 2 usage error."
)
def oversell(
    buyers: Annotated[int, typer.Option(min=2, max=MAX_BUYERS, help="number of shoppers, each adding one unit")] = 200,
    stock: Annotated[int, typer.Option(min=1, help="units in stock; must be fewer than buyers")] = 25,
    control: Annotated[
        bool, typer.Option("--control", help="run against a scratch schema without locks: must oversell")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Send more buyers than there are units: exactly the available units may be held.

    With --control the same buyers meet the classic race in a scratch schema, and the same verdict must find it
    oversold: exit status 0 if it did.
    """
    if buyers <= stock:
        raise typer.BadParameter(
            f"{buyers} buyers for {stock} units prove nothing: --buyers must be greater than --stock"
        )
    try:
        if control:
            _report_control(asyncio.run(_control(buyers, stock)), as_json=as_json)
        else:
            _report(asyncio.run(_prove(buyers, stock)), as_json=as_json)
    except (ShopUnavailableError, ConnectionRejectedError, psycopg.OperationalError) as error:
        cli.exit_with_error(error)


proofs.command(epilog="Example: holdfast prove orders --orders 200. Exit status: 0 proved, 1 refuted, 2 usage error.")(
    orders
)


@app.command(epilog="Example: holdfast guests 3 --json. Exit status: 0 done, 1 no shop answers, 2 usage error.")
def guests(
    number: Annotated[int, typer.Argument(min=1, max=MAX_BUYERS, metavar="N", help="number of guests")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON array")] = False,
) -> None:
    """Create guests and print their tokens, one per line; --json adds user_id and expires_at."""
    try:
        created = asyncio.run(_guests(number))
    except ShopUnavailableError as error:
        cli.exit_with_error(error)
    typer.echo(
        json.dumps([asdict(guest) for guest in created]) if as_json else "\n".join(guest.token for guest in created)
    )


async def _guests(number: int) -> Sequence[Guest]:
    async with cli.open_shop_client() as shop:
        return await shop.create_guests(number)


async def _prove(buyers: int, stock: int) -> ProofResult:
    cli.raise_descriptor_limit(buyers)
    async with cli.open_shop_client() as shop:
        return await prove_oversell(
            shop,
            buyers=buyers,
            stock=stock,
            seed=holdfast_commands.seed_product,
            withdraw=holdfast_commands.withdraw_products,
            audit=holdfast_commands.run_audit,
            report_progress=lambda text: typer.echo(f"… {text}", err=True),
        )


async def _control(buyers: int, stock: int) -> RushVerdict:
    url = os.environ.get("HOLDFAST_POSTGRES_URL", "")
    return await rush_unguarded(url, product=f"PROOF-{secrets.token_hex(4).upper()}", buyers=buyers, stock=stock)


def _report(proof: ProofResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(proof.as_json()))
    else:
        print_verdicts(SafeConsole(), proof.rushes, proof.findings)
        rush = proof.rushes[0]
        sentence = (
            f"Proved: {rush.attempts} buyers within {proof.spread_ms:.0f} ms, {rush.units} units, {rush.held} held."
            if proof.ok
            else "Refuted: see the findings above."
        )
        typer.echo(f"{sentence} ({proof.product}, {proof.seconds:.1f} s)")
    raise typer.Exit(0 if proof.ok else 1)


def _report_control(verdict: RushVerdict, *, as_json: bool) -> None:
    oversold = verdict.has_finding(FindingKind.OVERSOLD)
    method = METHOD.format(connections=min(MAX_CONNECTIONS, verdict.attempts))
    if as_json:
        typer.echo(json.dumps({"ok": oversold, "oversold": oversold, "method": method, "rushes": [verdict.as_json()]}))
    else:
        typer.echo(
            f"Control passed: without locks, {verdict.held} of {verdict.units} units were sold, and the check of"
            " `prove oversell` found it, as it must. Your shop was not touched."
            if oversold
            else f"Control failed: without locks, only {verdict.held} of {verdict.units} units were sold, so this run"
            " does not show that the check finds an oversell. Run it again."
        )
        typer.echo(f"Method: {method}.")
        print_verdicts(SafeConsole(), [verdict])
    raise typer.Exit(0 if oversold else 1)


if __name__ == "__main__":
    app(prog_name="holdfast")
