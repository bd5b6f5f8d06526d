"""The audit of delivery: every move is published, and every open parcel has a scheduled call to the carrier."""

from datetime import timedelta
from typing import Any, Final

from infrastructure.audit.table_auditor import run_checks, snapshot
from infrastructure.storage.postgres import Connection
from order_service.delivery.store import QUERIES

CHECKS: Final = ("not_published", "not_scheduled", "overdue", "lease_out_of_range", "shipped_twice")


async def audit(connection: Connection, grace: timedelta) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "digest", "figures": {name: count}}` from one snapshot."""
    async with snapshot(connection):
        violations, digest, figures = await run_checks(connection, QUERIES, CHECKS, grace=grace)
    return {"ok": not violations, "violations": violations, "digest": digest, "figures": figures}
