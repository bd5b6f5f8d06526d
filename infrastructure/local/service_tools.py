"""`holdfast seed`, `migrate`, `audit`, and the commands of `load`: sub-commands of the services and of the driver.

Each is run as a process with the shop's environment, so that nothing here imports a service; what it prints and the
status it ends with are passed on.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from infrastructure.local import reach
from infrastructure.local.errors import Fault
from infrastructure.local.services import KINDS, SEEDER

LEARNER: Final = "order_service.insights"
"""The module whose `baskets` sub-command learns from a file."""
PUBLISHERS: Final = (SEEDER, "order_service", LEARNER)
"""The modules whose `republish` sub-command sends what they know again."""
PASS_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Arguments that are the sub-command's to read."""


def seed(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A CSV file of products.", metavar="FILE")
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Load products and stock; what is there already stays as it is.

    The file has the columns product_code, name, price, currency and quantity.
    """
    _run_each("seed", (SEEDER,), str(file), as_json=as_json)


def migrate(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Bring every service's schema to the present; nothing is dropped, and a second time changes nothing."""
    _run_each("migrate", tuple(kind.module for kind in KINDS if kind.owns and kind.installed()), as_json=as_json)


def republish(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Send the state of every product and its stock, the events of every order, and the figures, again.

    Readers keep the greatest version, so what they have they ignore. Products are sent by the running inventory,
    figures and related products by the running insights.
    """
    _run_each("republish", PUBLISHERS, as_json=as_json)


def _run_each(command: str, modules: tuple[str, ...], *arguments: str, as_json: bool) -> None:
    """Run one sub-command of some modules in turn; the first that fails ends it with its own status."""
    environ = reach.child_environment("HOLDFAST_POSTGRES_URL")
    done: dict[str, int] = {}
    for module in modules:
        argv = [sys.executable, "-m", module, command, *arguments]
        # With --json the answer is ours alone; what the services say goes beside it.
        done[module] = subprocess.run(argv, env=environ, stdout=sys.stderr if as_json else None, check=False).returncode
        if done[module]:
            break
    status = next((code for code in done.values() if code), 0)
    if as_json:
        typer.echo(json.dumps({"ok": status == 0, "services": done}))
    raise typer.Exit(status)


def audit(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Check that nothing was lost, made up, told in two ways or sold twice; exit status 1 on any violation.

    It folds the ledger, the holds, the stock, the request log and the topics, and changes nothing. `digest` covers
    what the shop has decided, without times: no replay changes it.
    """
    environ = reach.child_environment("HOLDFAST_KAFKA", "HOLDFAST_POSTGRES_URL")
    auditors = [kind.module for kind in KINDS if kind.audits and kind.installed() and reach.has(kind)]
    with ThreadPoolExecutor() as pool:  # each is a process of its own
        audits = list(pool.map(lambda module: _audit(module, environ), auditors))
    whole = add_up(dict(zip(auditors, audits, strict=True)))
    if as_json:
        typer.echo(json.dumps(whole))
    else:
        _show_audit(whole)
    raise typer.Exit(0 if whole["ok"] else 1)


def _audit(module: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """What one service's audit prints. Raises Fault when it prints no audit."""
    argv = [sys.executable, "-m", module, "audit", "--json"]
    child = subprocess.run(argv, env=environ, stdout=subprocess.PIPE, check=False)
    try:
        answer = json.loads(child.stdout)
        ok, violations = answer["ok"], answer["violations"]
    except (ValueError, KeyError, TypeError):
        raise Fault(f"the audit of {module} ended with {child.returncode} and no answer") from None
    if ok and (violations or child.returncode):
        answer["ok"] = False
        answer["violations"] = violations or [f"the audit of {module} ended with {child.returncode}"]
    return dict(answer)


def add_up(audits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One audit of several services' audits, by module: numbers of one name are summed, digests are digested.

    A service that decides nothing by itself has no digest.
    """
    figures: dict[str, Any] = {}
    digest = hashlib.sha256()
    for module, answer in sorted(audits.items()):
        if "digest" in answer:
            digest.update(f"{module}\0{answer['digest']}\n".encode())
        for name, figure in answer.get("figures", {}).items():
            both_numbers = isinstance(figure, int) and isinstance(figures.get(name), int)
            figures[name] = figures[name] + figure if both_numbers else figure
    violations = [violation for _, answer in sorted(audits.items()) for violation in answer["violations"]]
    ok = not violations and all(answer["ok"] for answer in audits.values())
    return {"ok": ok, "violations": violations, "digest": digest.hexdigest(), "figures": figures}


def _show_audit(whole: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, figure in whole["figures"].items():
        table.add_row(str(name).replace("_", " "), figure if isinstance(figure, str) else json.dumps(figure))
    console.print(table)
    for violation in whole["violations"]:
        text = violation if isinstance(violation, str) else json.dumps(violation)
        console.print(f"violation: {text}", style="red", markup=False)
    console.print(f"digest {whole['digest']}", style="dim")
    console.print("[green]nothing lost, nothing made up" if whole["ok"] else "[red]the books do not balance")


def _driver(*arguments: str, needed: tuple[str, ...]) -> None:
    """Go on as `python -m load`; its help needs no shop."""
    argv = [sys.executable, "-m", "load", *arguments]
    help_only = "--help" in arguments
    reach.become(argv, reach.inherited() if help_only else reach.child_environment(*needed))


def prove_oversell(ctx: typer.Context) -> None:
    """Send buyers at fewer units than they want: exactly the units there are may be held."""
    needed = ("HOLDFAST_POSTGRES_URL",) if "--control" in ctx.args else ("HOLDFAST_HTTP_URL", "HOLDFAST_POSTGRES_URL")
    _driver("prove", "oversell", *ctx.args, needed=needed)


def prove_orders(ctx: typer.Context) -> None:
    """Check out while every process is killed with -9 in turn: each order ends once, and all books balance."""
    _driver("prove", "orders", *ctx.args, needed=())


def guests(ctx: typer.Context) -> None:
    """New shoppers' tokens, as `POST /v1/guests` gives them."""
    _driver("guests", *ctx.args, needed=("HOLDFAST_HTTP_URL",))


def chaos(ctx: typer.Context) -> None:
    """Break a shop of its own in every way there is, and check that no promise was broken."""
    _driver("chaos", *ctx.args, needed=())


def load(ctx: typer.Context) -> None:
    """Shoppers at a steady rate over WebSocket: latency, outcomes, what was lost."""
    needed = (
        ("HOLDFAST_HTTP_URL", "HOLDFAST_POSTGRES_URL") if "--products" in " ".join(ctx.args) else ("HOLDFAST_HTTP_URL",)
    )
    _driver("load", *ctx.args, needed=needed)


def shoppers(ctx: typer.Context) -> None:
    """Replay a file of real orders, and check that every unit was granted or refused."""
    _driver("shoppers", *ctx.args, needed=("HOLDFAST_HTTP_URL", "HOLDFAST_POSTGRES_URL"))


def bench(ctx: typer.Context) -> None:
    """Measure a shop of its own beside bare opponents."""
    _driver("bench", *ctx.args, needed=())


def baskets(ctx: typer.Context) -> None:
    """Learn from a file which products are bought together; needs no shop."""
    reach.become([sys.executable, "-m", LEARNER, "baskets", *ctx.args], reach.inherited())


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: holdfast seed inventory.csv")(seed)
    app.command(epilog="Example: holdfast migrate")(migrate)
    app.command(epilog="Example: holdfast republish")(republish)
    app.command(epilog="Example: holdfast audit --json")(audit)
    for command in (guests, load, shoppers, bench, baskets):
        app.command(context_settings=PASS_ON, add_help_option=False)(command)
    app.command(context_settings=PASS_ON, add_help_option=False)(chaos)
    prove = typer.Typer(
        no_args_is_help=True,
        help="Proofs that the shop keeps its word.",
        epilog="Example: holdfast prove oversell --buyers 500 --stock 25",
    )
    prove.command("oversell", context_settings=PASS_ON, add_help_option=False)(prove_oversell)
    prove.command("orders", context_settings=PASS_ON, add_help_option=False)(prove_orders)
    prove.callback()(_proofs)
    app.add_typer(prove, name="prove")


def _proofs() -> None:
    """Proofs that the shop keeps its word."""
