"""Counts delivery again: was everybody told where each parcel has come to, and is each asked after?"""

import hashlib
from datetime import timedelta
from typing import Any, Final

from psycopg import IsolationLevel
from psycopg.rows import dict_row

from infrastructure.audit_topics import shown
from infrastructure.postgres import Connection
from order_service.delivery.store import QUERIES

CHECKS: Final = ("not_told", "left_alone", "overdue", "leased_for_ever", "shipped_twice")


async def audit(connection: Connection, grace: timedelta) -> dict[str, Any]:
    """`{"ok", "violations": [sentence], "digest", "figures": {name: count}}`; reads one snapshot, changes nothing."""
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    async with connection.transaction():
        violations: list[str] = []
        for check in CHECKS:
            cursor = await connection.execute(QUERIES[check], {"grace": grace})
            violations += shown([row[0] for row in await cursor.fetchall()])
        digest = hashlib.sha256()
        async with connection.cursor("digest") as lines:
            await lines.execute(QUERIES["digest"])
            async for (line,) in lines:
                digest.update(line.encode() + b"\n")
        async with connection.cursor(row_factory=dict_row) as cursor_of_figures:
            figures = dict(await (await cursor_of_figures.execute(QUERIES["figures"])).fetchone() or {})
    return {"ok": not violations, "violations": violations, "digest": digest.hexdigest(), "figures": figures}
