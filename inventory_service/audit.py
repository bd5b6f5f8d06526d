"""Counts everything again: is what the tables say now what their history adds up to, and what the topics were told?

It reads one snapshot and changes nothing, so it may run beside a busy shop.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from psycopg import IsolationLevel
from psycopg.rows import dict_row

from infrastructure import metrics
from infrastructure.audit_topics import shown
from infrastructure.postgres import Connection, try_lock
from inventory_service.audit_topics import Told
from inventory_service.store import QUERIES

log = logging.getLogger(__name__)

CHECKS: Final = (
    "stock_that_differs",
    "prefixes_out_of_bounds",
    "causes_without_a_decision",
    "carts_that_differ",
    "revisions_told_twice",
)
DIGESTS: Final = ("digest_of_stock", "digest_of_holds", "digest_of_decisions")
OPTIONS: Final = "-c transaction_timeout=60s -c lock_timeout=2s -c max_parallel_workers_per_gather=0 -c jit=off"
"""For the audit beside the shop: one core of Postgres' at most, and an end, since no dead row is cleared away behind
the snapshot that it reads."""
SHARE: Final = 20
"""It rests this many times as long as it took: at most a twentieth of a core, however long the history has become."""


async def audit(connection: Connection, told: Told | None = None) -> dict[str, Any]:
    """`{"ok", "violations": [sentence], "digest", "figures": {name: count}}`.

    The digest is a SHA-256 over stock, holds and decisions without their times: no replay changes it. `told` is what
    was read from the topics, before this is called, so that whatever stands there is in the tables by now.
    """
    async with _snapshot(connection):
        violations = await _violations(connection)
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


@asynccontextmanager
async def _snapshot(connection: Connection) -> AsyncIterator[None]:
    """One state of all tables, which nothing here changes."""
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    async with connection.transaction():
        yield


async def _violations(connection: Connection) -> list[str]:
    return [
        sentence
        for check in CHECKS
        for sentence in shown([row[0] for row in await (await connection.execute(QUERIES[check])).fetchall()])
    ]


class Auditor:
    """Audits the tables again and again beside the shop, and exports what it finds; one process of all does it.

    `connect` gives a connection with `OPTIONS`, whose session holds the lock `name`.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], name: str, every: float) -> None:
        self.connect = connect
        self.name = name
        self.every = every
        self._ended = 0.0

    async def run(self) -> None:
        """Compete for the lock, then audit for as long as the session lasts; raises when it is lost."""
        async with await self.connect() as connection:
            while True:
                if await try_lock(connection, self.name):
                    break
                await asyncio.sleep(self.every)
            try:
                while True:
                    began = time.monotonic()
                    try:
                        await self.look(connection)
                    except Exception:
                        await self._rest(began)  # what took too long once will do so again
                        raise
                    await self._rest(began)
            finally:
                for gauge in (metrics.AUDIT_VIOLATIONS, metrics.AUDIT_AGE, metrics.AUDIT_SECONDS):
                    gauge.clear()  # another process knows it now

    async def _rest(self, began: float) -> None:
        await asyncio.sleep(max(self.every, SHARE * (time.monotonic() - began)))

    async def look(self, connection: Connection) -> None:
        """Audit once and export what was found."""
        began = time.monotonic()
        async with _snapshot(connection):
            violations = await _violations(connection)
        self._ended = time.monotonic()
        for violation in violations:
            log.error("audit: %s", violation)
        metrics.AUDIT_VIOLATIONS.labels("inventory").set(len(violations))
        metrics.AUDIT_AGE.labels("inventory").set_function(lambda: time.monotonic() - self._ended)
        metrics.AUDIT_SECONDS.labels("inventory").set(self._ended - began)
