"""Counts payment again: was each order paid for once, was everybody told, and does the provider say the same?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from infrastructure.audit_topics import shown
from infrastructure.auditor import snapshot, tally
from infrastructure.postgres import Connection
from order_service.payment.store import QUERIES

CHECKS: Final = ("captured_twice", "refunded_too_much", "not_told", "left_alone", "leased_for_ever")

Books = Mapping[str, tuple[str, int | None]]
"""The outcome of each key: its state, and how much in minor units."""


async def audit(
    connection: Connection, grace: timedelta, history: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """`{"ok", "violations": [sentence], "digest", "figures": {name: count}}`; reads one snapshot, changes nothing.

    The digest is over steps and their outcomes without times. `history` is the provider's, read before this is called;
    none when it could not be reached.
    """
    async with snapshot(connection):
        violations, digest, figures = await tally(connection, QUERIES, CHECKS, grace=grace)
        if history is not None:
            settled = await (await connection.execute(QUERIES["settled"])).fetchall()
            ours: Books = {key: (state, amount) for key, _, state, amount, _ in settled}
            violations += shown(list(differences(ours, history)))
            figures["provider_remembers"] = len(history)
    return {"ok": not violations, "violations": violations, "digest": digest, "figures": figures}


def differences(ours: Books, history: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One sentence for each key of which both know, and say different things; and for what the provider did twice."""
    theirs: dict[str, tuple[str, int | None]] = {}
    captured: dict[str, str] = {}
    for entry in history:
        key, order = entry["key"], entry["order_id"]
        said = entry["type"], entry["amount"] if entry["type"] in {"captured", "refunded"} else None
        if theirs.setdefault(key, said) != said:
            yield f"{key}: the provider says {theirs[key]}, and then {said}"
        if entry["type"] == "captured" and order and captured.setdefault(order, key) != key:
            yield f"order {order}: the provider has captured {captured[order]}, and then {key}"
    for key, known in ours.items():
        if key in theirs and theirs[key] != known:
            yield f"{key}: the provider says {theirs[key]}, and we {known}"
