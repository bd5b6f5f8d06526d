"""The audit of payment: one capture per order, every outcome published, and agreement with the provider's history.

Payment stores an operation before it calls the provider, and an outcome after the provider has reported it. So the
provider's history may be ahead by the outcome of an operation that is open here, and it is never behind.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from infrastructure.audit.order_accounts import Amount, Operation, PaymentEntry, render_account
from infrastructure.audit.table_auditor import run_checks, snapshot, snapshot_time
from infrastructure.audit.topic_auditor import truncate_violations
from infrastructure.storage.postgres import Connection
from order_service.payment.store import QUERIES

CHECKS: Final = ("captured_twice", "refunded_too_much", "not_published", "not_scheduled", "lease_out_of_range")

REPORTED_BY_PROVIDER: Final = frozenset({"captured", "voided", "refunded"})
"""States that are in the provider's history. A decline may be a rejected call, which leaves no trace there."""


@dataclass(frozen=True, slots=True)
class ProviderHistory:
    """The provider's history."""

    entries: Sequence[Mapping[str, Any]]
    """The outcomes, the oldest first."""
    read_at: datetime
    """The time before the first call, by the clock of Postgres. Later outcomes may be missing."""


async def audit(
    connection: Connection, grace: timedelta, history: ProviderHistory | None = None, *, with_account: bool = False
) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "digest", "figures": {name: count}}` from one snapshot.

    The digest covers operations and their outcomes without times. Read `history` from the provider before the call;
    `None` if the provider is unavailable. With `with_account` the result also has `accounts`.
    """
    async with snapshot(connection):
        violations, digest, figures = await run_checks(connection, QUERIES, CHECKS, grace=grace)
        operations = await _operations(connection)
        if history is not None:
            violations += truncate_violations(list(differences(operations, history)))
            figures["provider_remembers"] = len(history.entries)
        report = {"ok": not violations, "violations": violations, "digest": digest, "figures": figures}
        if with_account:
            entries = {order: PaymentEntry(operations=tuple(of_order)) for order, of_order in operations.items()}
            report["accounts"] = render_account(entries, await snapshot_time(connection), grace)
    return report


OperationsByOrder = Mapping[str, Sequence[Operation]]


async def _operations(connection: Connection) -> OperationsByOrder:
    found: dict[str, list[Operation]] = {}
    async with connection.cursor("operations") as rows:
        await rows.execute(QUERIES["operations"])
        async for order, key, user, intent, state, minor, currency, at in rows:
            amount = None if minor is None else Amount(minor=minor, currency=currency)
            operation = Operation(key=key, user=user, intent=intent, state=state, amount=amount, at=at)
            found.setdefault(order, []).append(operation)
    return found


def differences(operations: OperationsByOrder, history: ProviderHistory) -> Iterator[str]:
    """Yield a sentence for each contradiction between the operations and the provider's history.

    A contradiction is an outcome that differs, a capture or refund of an order that only one side has, an order that
    was captured twice, and a key of another order. The outcome of an open operation may be on its way here.
    """
    owners = {operation.key: (order, operation) for order, of_order in operations.items() for operation in of_order}
    reported: dict[str, tuple[str, Amount | None]] = {}
    captured: dict[str, str] = {}
    for entry in history.entries:
        key, order, outcome = entry["key"], entry.get("order_id"), _outcome(entry)
        if reported.setdefault(key, outcome) != outcome:
            yield f"{key}: the provider reports {_describe(reported[key])}, and later {_describe(outcome)}"
        if outcome[0] == "captured" and order and captured.setdefault(order, key) != key:
            yield f"order {order}: the provider captured {captured[order]}, and later {key}"
        owner = owners.get(key)
        # The provider may serve other shops: an order that is unknown here is not one of ours.
        if owner is None and order in operations and outcome[0] in {"captured", "refunded"}:
            yield f"order {order}: the provider has {key} as {_describe(outcome)}; payment has no such key"
        if owner is not None and order and owner[0] != order:
            yield f"order {owner[0]}: {key} belongs to it, but to order {order} at the provider"
    for key, (order, operation) in owners.items():
        outcome = operation.state, operation.amount
        if operation.state == "open":  # the provider may be ahead
            continue
        if key in reported and reported[key] != outcome:
            yield (
                f"order {order}: {key}: the provider reports {_describe(reported[key])},"
                f" payment has stored {_describe(outcome)}"
            )
        elif (
            key not in reported
            and operation.state in REPORTED_BY_PROVIDER
            and operation.at <= history.read_at.timestamp()
        ):
            yield f"order {order}: payment has stored {key} as {_describe(outcome)}; the provider knows nothing of it"


def _outcome(entry: Mapping[str, Any]) -> tuple[str, Amount | None]:
    if entry["type"] not in {"captured", "refunded"}:
        return entry["type"], None
    return entry["type"], Amount(minor=entry["amount"], currency=entry["currency"])


def _describe(outcome: tuple[str, Amount | None]) -> str:
    state, amount = outcome
    return state if amount is None else f"{state} ({amount})"
