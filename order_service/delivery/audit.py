"""Counts delivery again: was everybody told where each parcel has come to, and is each asked after?"""

from datetime import timedelta
from typing import Any, Final

from infrastructure.auditor import snapshot, tally
from infrastructure.postgres import Connection
from order_service.delivery.store import QUERIES

CHECKS: Final = ("not_told", "left_alone", "overdue", "leased_for_ever", "shipped_twice")


async def audit(connection: Connection, grace: timedelta) -> dict[str, Any]:
    """`{"ok", "violations": [sentence], "digest", "figures": {name: count}}`; reads one snapshot, changes nothing."""
    async with snapshot(connection):
        violations, digest, figures = await tally(connection, QUERIES, CHECKS, grace=grace)
    return {"ok": not violations, "violations": violations, "digest": digest, "figures": figures}
