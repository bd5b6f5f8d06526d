"""The audit of payment: one capture per order, every outcome published, and agreement with the provider's history."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from infrastructure.audit.table_auditor import run_checks, snapshot
from infrastructure.audit.topic_auditor import truncate_violations
from infrastructure.storage.postgres import Connection
from order_service.payment.store import QUERIES

CHECKS: Final = ("captured_twice", "refunded_too_much", "not_published", "not_scheduled", "lease_out_of_range")

Outcomes = Mapping[str, tuple[str, int | None]]
"""The outcome of each key: its state, and the amount in minor units."""


async def audit(
    connection: Connection, grace: timedelta, history: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "digest", "figures": {name: count}}` from one snapshot.

    The digest covers operations and their outcomes without times. Read `history` from the provider before the call;
    `None` if the provider is unavailable.
    """
    async with snapshot(connection):
        violations, digest, figures = await run_checks(connection, QUERIES, CHECKS, grace=grace)
        if history is not None:
            settled = await (await connection.execute(QUERIES["settled"])).fetchall()
            stored_outcomes: Outcomes = {key: (state, amount) for key, _, state, amount, _ in settled}
            violations += truncate_violations(list(differences(stored_outcomes, history)))
            figures["provider_remembers"] = len(history)
    return {"ok": not violations, "violations": violations, "digest": digest, "figures": figures}


def differences(stored_outcomes: Outcomes, history: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each key with different outcomes here and there, and for each duplicate at the provider."""
    reported: dict[str, tuple[str, int | None]] = {}
    captured: dict[str, str] = {}
    for entry in history:
        key, order = entry["key"], entry["order_id"]
        outcome = entry["type"], entry["amount"] if entry["type"] in {"captured", "refunded"} else None
        if reported.setdefault(key, outcome) != outcome:
            yield f"{key}: the provider reports {reported[key]}, and later {outcome}"
        if entry["type"] == "captured" and order and captured.setdefault(order, key) != key:
            yield f"order {order}: the provider captured {captured[order]}, and later {key}"
    for key, stored in stored_outcomes.items():
        if key in reported and reported[key] != stored:
            yield f"{key}: the provider reports {reported[key]}, the service stored {stored}"
