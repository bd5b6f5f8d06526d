"""`holdfast audit`: runs the audit of each service, compares their accounts of the orders, and prints one verdict.

Each audit runs as a process with the shop's environment, so that this module imports no service.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import typer
from pydantic import ValidationError
from rich.table import Table

from infrastructure.audit.order_accounts import ACCOUNTS_OPTION
from infrastructure.local.commands import connection, output
from infrastructure.local.commands.order_comparison import Accounts, compare_accounts, parse_accounts
from infrastructure.local.commands.output import AsJson
from infrastructure.local.errors import StackError
from infrastructure.local.supervision.services import SERVICE_TYPES, ServiceType, module_environment

COMPARISON: Final = "between services"
"""Name of the comparison among the services of a report."""
FIGURES: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "cart": {
        "requests_answered": ("requests with an outcome", "requests"),
        "dead_letters": ("dead letters", "records"),
    },
    "inventory": {
        "products": ("products", "products"),
        "received": ("received", "units"),
        "held": ("held", "units"),
        "sold": ("sold", "units"),
        "available": ("available", "units"),
        "holds": ("open holds", "lines"),
        "orders": ("orders and reservations", "orders"),
        "carts": ("carts that are not empty", "carts"),
        "decisions": ("decisions in the log", "requests"),
        "changes": ("changes of stock in the ledger", "rows"),
        "outcomes_told": ("outcomes on the topic", "requests"),
        "dead_letters": ("dead letters", "records"),
    },
    "orders": {
        "orders_placed": ("placed", "orders"),
        "orders_delivered": ("delivered", "orders"),
        "orders_cancelled": ("cancelled", "orders"),
        "orders_under_way": ("under way", "orders"),
        "money_captured": ("captured", "minor units"),
        "money_confirmed": ("earned", "minor units"),
        "money_refunded": ("refunded", "minor units"),
        "money_in_flight": ("in flight", "minor units"),
        "order_dead_letters": ("dead letters", "records"),
    },
    "payment": {
        "steps": ("operations at the provider", "operations"),
        "open": ("without an outcome yet", "operations"),
        "doubted": ("of these, tried at least once", "operations"),
        "captures": ("captures", "operations"),
        "declined": ("declined", "operations"),
        "voided": ("voided", "operations"),
        "captured_too_late": ("captured although a void was requested", "operations"),
        "refunds": ("refunds", "operations"),
        "refunds_owed": ("refunds without an outcome yet", "operations"),
        "captured": ("captured", "minor units"),
        "refunded": ("refunded", "minor units"),
        "provider_remembers": ("outcomes in the provider's history", "outcomes"),
    },
    "delivery": {
        "parcels": ("parcels", "parcels"),
        "waiting": ("not collected yet", "parcels"),
        "shipped": ("on their way", "parcels"),
        "delivered": ("delivered", "parcels"),
        "failed": ("failed", "parcels"),
        "called_off": ("called off", "parcels"),
        "called_off_too_late": ("left although called off", "parcels"),
    },
    "notifications": {
        "notices_queued": ("queued", "notices"),
        "notices_sent": ("sent", "notices"),
        "notices_failed": ("failed", "notices"),
        "notices_not_told": ("muted or skipped", "notices"),
    },
    COMPARISON: {"orders_compared": ("compared order by order", "orders")},
}
"""Label and unit of each figure, by service and by its name in `audit --json`."""


def audit(
    *,
    as_json: AsJson = False,
) -> None:
    """Check for lost, invented or contradicted outcomes and oversold stock; exit status 1 on any violation.

    The audit compares the ledger, the holds, the stock, the request log and the topics, and changes nothing. It also
    compares what inventory, orders, payment with its provider, and delivery have recorded about each order. A fact
    younger than HOLDFAST_AUDIT_GRACE_SECONDS may be in flight. `digest` covers the shop's decisions without their
    times, so a replay does not change it.
    """
    environ = connection.child_environment("HOLDFAST_KAFKA", "HOLDFAST_POSTGRES_URL")
    auditors = [
        kind for kind in SERVICE_TYPES if kind.has_audit and kind.is_installed() and connection.has_service(kind)
    ]
    with ThreadPoolExecutor() as pool:  # threads are enough: each runs a process of its own
        audits = list(pool.map(lambda kind: _run_audit(kind, environ), auditors))
    by_name = {kind.name: found for kind, found in zip(auditors, audits, strict=True)}
    accounts = _accounts(by_name)
    merged = merge_audits(
        {kind.module: by_name[kind.name] for kind in auditors},
        names={kind.module: kind.name for kind in auditors},
        accounts=accounts,
    )
    if as_json:
        output.echo(json.dumps(merged))
    else:
        _show(merged)
    raise typer.Exit(0 if merged["ok"] else 1)


def _run_audit(kind: ServiceType, environ: Mapping[str, str]) -> dict[str, Any]:
    """Run one service's audit and return its JSON answer. Raises `StackError` if the output is not an audit."""
    argv = [sys.executable, "-m", kind.module, "audit", "--json", *[ACCOUNTS_OPTION] * kind.has_order_account]
    child = subprocess.run(argv, env=module_environment(kind.module, environ), stdout=subprocess.PIPE, check=False)
    try:
        answer = json.loads(child.stdout)
        ok, violations = answer["ok"], answer["violations"]
    except (ValueError, KeyError, TypeError):
        raise StackError(f"the audit of {kind.module} ended with status {child.returncode} and no answer") from None
    if ok and (violations or child.returncode):
        answer["ok"] = False
        answer["violations"] = violations or [f"the audit of {kind.module} ended with status {child.returncode}"]
    return dict(answer)


def _accounts(audits: Mapping[str, Mapping[str, Any]]) -> Accounts | None:
    try:
        return parse_accounts({name: found["accounts"] for name, found in audits.items() if "accounts" in found})
    except ValidationError as error:
        raise StackError(f"an audit printed an account that cannot be read: {error.errors()[0]['msg']}") from None


def merge_audits(
    audits: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, str] | None = None,
    accounts: Accounts | None = None,
) -> dict[str, Any]:
    """Merge the audits of several services, by module, and the comparison of their accounts.

    Figures of the same name are summed in `figures`, and each belongs to its service in `services`; `names` has the
    services' names by module. The digests are hashed together; a service that makes no decisions of its own has none.
    """
    figures: dict[str, Any] = {}
    services: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()
    for module, answer in sorted(audits.items()):
        if "digest" in answer:
            digest.update(f"{module}\0{answer['digest']}\n".encode())
        of_service = answer.get("figures", {})
        for name, figure in of_service.items():
            both_numbers = isinstance(figure, int) and isinstance(figures.get(name), int)
            figures[name] = figures[name] + figure if both_numbers else figure
        services[(names or {}).get(module, module)] = _part(answer["violations"], of_service, ok=answer["ok"])
    if accounts is not None:
        found = compare_accounts(accounts)
        services[COMPARISON] = _part(found, {"orders_compared": len(accounts.known_orders())}, ok=True)
    violations = [violation for part in services.values() for violation in part["violations"]]
    ok = all(part["ok"] for part in services.values())
    return {
        "ok": ok,
        "violations": violations,
        "digest": digest.hexdigest(),
        "figures": figures,
        "services": services,
    }


def _part(violations: Sequence[Any], figures: Mapping[str, Any], *, ok: bool) -> dict[str, Any]:
    return {"ok": ok and not violations, "violations": list(violations), "figures": dict(figures)}


def _show(report: Mapping[str, Any]) -> None:
    """Print the verdict, the violations, and the figures of each service under its name."""
    console = output.wide_console()
    services: Mapping[str, Mapping[str, Any]] = report["services"]
    console.print(verdict(report), style="green" if report["ok"] else "red", markup=False, soft_wrap=True)
    for name, part in services.items():
        for violation in part["violations"]:
            text = violation if isinstance(violation, str) else json.dumps(violation)
            console.print(f"violation ({name}): {text}", style="red", markup=False, soft_wrap=True)
    for name, part in services.items():
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", min_width=40)
        table.add_column(justify="right", min_width=10)
        table.add_column(style="dim")
        for figure, value in part["figures"].items():
            label, unit = FIGURES.get(name, {}).get(figure, (figure.replace("_", " "), ""))
            table.add_row(f"  {label}", value if isinstance(value, str) else json.dumps(value), unit)
        console.print(f"\n{name}", style="bold")
        console.print(table)
    console.print(f"\ndigest of all decisions {report['digest']}", style="dim")


def verdict(report: Mapping[str, Any]) -> str:
    """Return the verdict of an audit in one sentence."""
    services: Mapping[str, Mapping[str, Any]] = report["services"]
    checked = ", ".join(name for name in services if name != COMPARISON)
    if report["ok"]:
        orders = services.get(COMPARISON, {}).get("figures", {}).get("orders_compared")
        compared = "" if orders is None else f"; {orders} orders agree between the services"
        return f"no violations in {checked}{compared}"
    failed = ", ".join(f"{name} {len(part['violations'])}" for name, part in services.items() if not part["ok"])
    return f"the audit found violations: {failed}"


def register(app: typer.Typer) -> None:
    """Add `audit` to the app."""
    app.command(epilog="Example: holdfast audit --json")(audit)
