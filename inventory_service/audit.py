"""Counts everything again: is what the tables say now what their history adds up to, and what the topics were told?

It reads one snapshot and changes nothing, so it may run beside a busy shop.
"""

import hashlib
from typing import Any, Final

from psycopg.rows import dict_row

from infrastructure.audit_topics import shown
from infrastructure.auditor import snapshot
from infrastructure.postgres import Connection
from inventory_service.audit_topics import Told
from inventory_service.store import QUERIES

CHECKS: Final = (
    "stock_that_differs",
    "prefixes_out_of_bounds",
    "causes_without_a_decision",
    "carts_that_differ",
    "revisions_told_twice",
    "orders_that_differ",
    "sales_that_differ",
    "commits_that_differ",
)
DIGESTS: Final = ("digest_of_stock", "digest_of_holds", "digest_of_reservations", "digest_of_decisions")


async def audit(connection: Connection, told: Told | None = None) -> dict[str, Any]:
    """`{"ok", "violations": [sentence], "digest", "figures": {name: count}}`.

    The digest is a SHA-256 over stock, holds and decisions without their times: no replay changes it. `told` is what
    was read from the topics, before this is called, so that whatever stands there is in the tables by now.
    """
    async with snapshot(connection):
        violations = await violations_of(connection)
        digest = hashlib.sha256()
        for name in DIGESTS:
            async with connection.cursor(name) as cursor:
                await cursor.execute(QUERIES[name])
                async for (line,) in cursor:
                    digest.update(line.encode() + b"\n")
            digest.update(b"\f")
        async with connection.cursor(row_factory=dict_row) as cursor:
            figures = dict(await (await cursor.execute(QUERIES["figures"])).fetchone() or {})
        if told is not None:
            async with connection.cursor("outcomes") as cursor:
                await cursor.execute(QUERIES["outcomes"])
                async for user, id_, outcome in cursor:
                    told.logged(user, id_, outcome)
            violations += [sentence for kind in told.violations() for sentence in shown(kind)]
            figures |= told.figures()
    return {"ok": not violations, "violations": violations, "digest": digest.hexdigest(), "figures": figures}


async def violations_of(connection: Connection) -> list[str]:
    """What the tables say of themselves: a sentence for each violation."""
    return [
        sentence
        for check in CHECKS
        for sentence in shown([row[0] for row in await (await connection.execute(QUERIES[check])).fetchall()])
    ]
