"""Counts everything again: is what the tables say now what their history adds up to?

It reads one snapshot and changes nothing, so it may run beside a busy shop.
"""

import hashlib
from typing import Any, Final

from psycopg import IsolationLevel
from psycopg.rows import dict_row

from infrastructure.postgres import Connection
from inventory_service.store import QUERIES

CHECKS: Final = (
    "stock_that_differs",
    "prefixes_out_of_bounds",
    "causes_without_a_decision",
    "carts_that_differ",
    "revisions_told_twice",
)
DIGESTS: Final = ("digest_of_stock", "digest_of_holds", "digest_of_decisions")
SHOWN: Final = 20
"""Violations of one kind that are spelled out; the rest is only counted."""


async def audit(connection: Connection) -> dict[str, Any]:
    """`{"ok", "violations": [sentence], "digest", "figures": {name: count}}`.

    The digest is a SHA-256 over stock, holds and decisions without their times: no replay changes it.
    """
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    async with connection.transaction():
        violations: list[str] = []
        for check in CHECKS:
            found = [row[0] for row in await (await connection.execute(QUERIES[check])).fetchall()]
            violations += found[:SHOWN]
            if len(found) > SHOWN:
                violations.append(f"and {len(found) - SHOWN} more of this kind")
        digest = hashlib.sha256()
        for name in DIGESTS:
            async with connection.cursor(name) as cursor:
                await cursor.execute(QUERIES[name])
                async for (line,) in cursor:
                    digest.update(line.encode() + b"\n")
            digest.update(b"\f")
        async with connection.cursor(row_factory=dict_row) as cursor:
            figures = await (await cursor.execute(QUERIES["figures"])).fetchone()
    return {"ok": not violations, "violations": violations, "digest": digest.hexdigest(), "figures": figures}
