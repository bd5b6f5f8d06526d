"""Audit of the inventory: the tables must agree with their history, and with the published records.

The audit reads one snapshot and changes nothing, so it may run while the shop is busy.
"""

import hashlib
from datetime import timedelta
from typing import Any, Final

from psycopg.rows import dict_row

from infrastructure.audit.order_accounts import StockEntry, order_lines, render_account
from infrastructure.audit.table_auditor import snapshot, snapshot_time
from infrastructure.audit.topic_auditor import truncate_violations
from infrastructure.storage.postgres import Connection
from inventory_service.audit_topics import InventoryTopicAudit
from inventory_service.store import QUERIES

CHECKS: Final = (
    "stock_mismatches",
    "ledger_prefixes_out_of_bounds",
    "ledger_rows_without_decision",
    "cart_mismatches",
    "duplicate_revisions",
    "order_mismatches",
    "sale_mismatches",
    "commit_mismatches",
)
DIGESTS: Final = ("digest_of_stock", "digest_of_holds", "digest_of_reservations", "digest_of_decisions")


async def audit(
    connection: Connection, topic_audit: InventoryTopicAudit | None = None, account_grace: timedelta | None = None
) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "digest", "figures": {name: count}}`.

    With `account_grace`, the grace period of the comparison between services, the result also has `accounts`.

    The digest is a SHA-256 over stock, holds and decisions without their times, so that no replay changes it.
    `topic_audit` is the audit of the topics. Read the topics before this call: the snapshot then contains everything
    that they report.
    """
    async with snapshot(connection):
        violations = await find_violations(connection)
        digest = hashlib.sha256()
        for name in DIGESTS:
            async with connection.cursor(name) as cursor:
                await cursor.execute(QUERIES[name])
                async for (line,) in cursor:
                    digest.update(line.encode() + b"\n")
            digest.update(b"\f")
        async with connection.cursor(row_factory=dict_row) as cursor:
            figures = dict(await (await cursor.execute(QUERIES["figures"])).fetchone() or {})
        if topic_audit is not None:
            async with connection.cursor("outcomes") as cursor:
                await cursor.execute(QUERIES["outcomes"])
                async for user, id_, outcome in cursor:
                    topic_audit.add_log_entry(user, id_, outcome)
            violations += [sentence for kind in topic_audit.violations() for sentence in truncate_violations(kind)]
            figures |= topic_audit.figures()
        report = {"ok": not violations, "violations": violations, "digest": digest.hexdigest(), "figures": figures}
        if account_grace is not None:
            report["accounts"] = render_account(
                await _order_entries(connection), await snapshot_time(connection), account_grace
            )
    return report


async def _order_entries(connection: Connection) -> dict[str, StockEntry]:
    """Return the state of the holds of each order."""
    entries = {}
    async with connection.cursor("order_accounts") as rows:
        await rows.execute(QUERIES["order_accounts"])
        async for order, user, state, products, quantities, prices, currencies, at in rows:
            lines = order_lines(zip(products, quantities, prices, currencies, strict=True))
            entries[order] = StockEntry(user=user, state=state, lines=lines, at=at)
    return entries


async def find_violations(connection: Connection) -> list[str]:
    """Check the tables against each other, and return a sentence for each violation."""
    return [
        sentence
        for check in CHECKS
        for sentence in truncate_violations(
            [row[0] for row in await (await connection.execute(QUERIES[check])).fetchall()]
        )
    ]
