"""`holdfast seed`, `withdraw`, `migrate`, `republish`, `user`, delegated to the services, and the commands of `load`.

Each runs as a process with the shop's environment, so that this module imports no service. Its output and its exit
status are passed on.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from infrastructure.local.commands import connection, output
from infrastructure.local.commands.output import AsJson
from infrastructure.local.supervision.services import (
    ACCOUNTS_MODULE,
    SEED_MODULE,
    SERVICE_TYPES,
    module_environment,
)

BASKETS_MODULE: Final = "order_service.insights"
"""Module whose `baskets` sub-command computes related products from a file."""
REPUBLISH_MODULES: Final = (SEED_MODULE, "order_service", BASKETS_MODULE)
"""Modules whose `republish` sub-command publishes their state again."""
PASS_THROUGH: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of commands whose arguments are parsed by the program they start."""


def seed(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A CSV file of products.", metavar="FILE")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Load products and stock; products that exist already are not changed.

    The file has the columns product_code, name, price, currency and quantity.
    """
    _run_each("seed", (SEED_MODULE,), str(file), as_json=as_json)


def withdraw(
    codes: Annotated[list[str], typer.Argument(metavar="CODE…", help="Codes of the products.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Take products out of the catalogue: nobody can add them any more. Their stock, holds and orders stay.

    `holdfast seed` with a file that has a product puts it on sale again.
    """
    _run_each("withdraw", (SEED_MODULE,), *codes, as_json=as_json)


def migrate(
    *,
    as_json: AsJson = False,
) -> None:
    """Migrate every service's schema to the current version; drops nothing and can be repeated."""
    _run_each(
        "migrate",
        tuple(kind.module for kind in SERVICE_TYPES if kind.has_migrations and kind.is_installed()),
        as_json=as_json,
    )


def republish(
    *,
    as_json: AsJson = False,
) -> None:
    """Publish again the state of every product and its stock, the events of every order, and the figures.

    Consumers keep the highest version, so they ignore records that they have already. Products are published by the
    running inventory service, figures and related products by the running insights service.
    """
    _run_each("republish", REPUBLISH_MODULES, as_json=as_json)


def _run_each(command: str, modules: tuple[str, ...], *arguments: str, as_json: bool) -> None:
    """Run a sub-command of several modules in turn; stop at the first that fails and exit with its status."""
    environ = connection.child_environment("HOLDFAST_POSTGRES_URL")
    exit_codes: dict[str, int] = {}
    for module in modules:
        argv = [sys.executable, "-m", module, command, *arguments]
        # With --json standard output has only this command's object; the services' output goes to standard error.
        child_environ = module_environment(module, environ)
        child = subprocess.run(argv, env=child_environ, stdout=sys.stderr if as_json else None, check=False)
        exit_codes[module] = child.returncode
        if child.returncode:
            break
    status = next((code for code in exit_codes.values() if code), 0)
    if as_json:
        output.echo(json.dumps({"ok": status == 0, "services": exit_codes}))
    raise typer.Exit(status)


def _exec_load(*arguments: str, needed: tuple[str, ...]) -> None:
    """Replace this process with `python -m load`; with `--help` no shop is needed."""
    argv = [sys.executable, "-m", "load", *arguments]
    help_only = "--help" in arguments
    connection.exec_program(
        argv, connection.inherited_environment() if help_only else connection.child_environment(*needed)
    )


def user(ctx: typer.Context) -> None:
    """List, show, add, disable or delete accounts, or set their roles. The first administrator is added here."""
    argv = [sys.executable, "-m", ACCOUNTS_MODULE, "user", *ctx.args]
    if "--help" in ctx.args or not ctx.args:
        connection.exec_program(argv, connection.inherited_environment())
    environ = connection.child_environment("HOLDFAST_POSTGRES_URL")
    connection.exec_program(argv, module_environment(ACCOUNTS_MODULE, environ))


def prove_oversell(ctx: typer.Context) -> None:
    """Let more buyers compete for a product than it has units, and check that exactly these units are held."""
    needed = ("HOLDFAST_POSTGRES_URL",) if "--control" in ctx.args else ("HOLDFAST_HTTP_URL", "HOLDFAST_POSTGRES_URL")
    _exec_load("prove", "oversell", *ctx.args, needed=needed)


def prove_orders(ctx: typer.Context) -> None:
    """Kill every process in turn during checkouts; each order must end once and all ledgers must balance."""
    _exec_load("prove", "orders", *ctx.args, needed=())


def guests(ctx: typer.Context) -> None:
    """Create new shoppers with `POST /v1/guests` and print their tokens."""
    _exec_load("guests", *ctx.args, needed=("HOLDFAST_HTTP_URL",))


def chaos(ctx: typer.Context) -> None:
    """Inject every kind of fault into a shop of its own, and check that all guarantees hold."""
    _exec_load("chaos", *ctx.args, needed=())


def load(ctx: typer.Context) -> None:
    """Run shoppers at a steady rate over WebSocket; report latency, outcomes and losses."""
    needed = (
        ("HOLDFAST_HTTP_URL", "HOLDFAST_POSTGRES_URL") if "--products" in " ".join(ctx.args) else ("HOLDFAST_HTTP_URL",)
    )
    _exec_load("load", *ctx.args, needed=needed)


def shoppers(ctx: typer.Context) -> None:
    """Replay a file of real orders, and check that every unit was granted or refused."""
    _exec_load("shoppers", *ctx.args, needed=("HOLDFAST_HTTP_URL", "HOLDFAST_POSTGRES_URL"))


def bench(ctx: typer.Context) -> None:
    """Measure a shop of its own and compare it with minimal baselines."""
    _exec_load("bench", *ctx.args, needed=())


def baskets(ctx: typer.Context) -> None:
    """Compute from a file which products are bought together; needs no shop."""
    connection.exec_program(
        [sys.executable, "-m", BASKETS_MODULE, "baskets", *ctx.args], connection.inherited_environment()
    )


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the app."""
    app.command(epilog="Example: holdfast seed inventory.csv")(seed)
    app.command(epilog="Example: holdfast withdraw 85123A")(withdraw)
    app.command(epilog="Example: holdfast migrate")(migrate)
    app.command(epilog="Example: holdfast republish")(republish)
    app.command(context_settings=PASS_THROUGH, add_help_option=False)(user)
    for command in (guests, load, shoppers, bench, baskets):
        app.command(context_settings=PASS_THROUGH, add_help_option=False)(command)
    app.command(context_settings=PASS_THROUGH, add_help_option=False)(chaos)
    prove = typer.Typer(
        no_args_is_help=True,
        help="Prove the shop's guarantees under load and failures.",
        epilog="Example: holdfast prove oversell --buyers 500 --stock 25",
    )
    prove.command("oversell", context_settings=PASS_THROUGH, add_help_option=False)(prove_oversell)
    prove.command("orders", context_settings=PASS_THROUGH, add_help_option=False)(prove_orders)
    app.add_typer(prove, name="prove")
