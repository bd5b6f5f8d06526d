"""Counts a service's tables again and again beside the shop, and exports what it finds.

The checks are named queries that give one sentence for each violation; each service has its own.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from psycopg.rows import dict_row

from infrastructure.audit_topics import SHARE, export, shown, withdraw
from infrastructure.postgres import Connection, try_lock

log = logging.getLogger(__name__)

OPTIONS: Final = "-c transaction_timeout=60s -c lock_timeout=2s -c max_parallel_workers_per_gather=0 -c jit=off"
"""For the audit beside the shop: one core of Postgres' at most, and an end, since no dead row is cleared away behind
the snapshot that it reads."""

Check = Callable[[Connection], Awaitable[list[str]]]
"""Reads the tables and gives a sentence for each violation."""


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """One state of all tables, which nothing here changes."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


async def tally(
    connection: Connection, queries: Mapping[str, str], checks: Sequence[str], **values: Any
) -> tuple[list[str], str, dict[str, Any]]:
    """The sentences of all `checks`, the digest of the lines of the query `digest`, and what `figures` counts.

    `values` are the parameters of the checks. Call it in a `snapshot`.
    """
    violations: list[str] = []
    for check in checks:
        cursor = await connection.execute(queries[check], values)
        violations += shown([row[0] for row in await cursor.fetchall()])
    digest = hashlib.sha256()
    async with connection.cursor("digest") as lines:
        await lines.execute(queries["digest"])
        async for (line,) in lines:
            digest.update(line.encode() + b"\n")
    async with connection.cursor(row_factory=dict_row) as counting:
        figures = dict(await (await counting.execute(queries["figures"])).fetchone() or {})
    return violations, digest.hexdigest(), figures


class Auditor:
    """Audits the tables of `service` for ever; one process of all its replicas does it.

    `connect` gives a connection with `OPTIONS`, whose session holds the lock `name`. Between two audits are at least
    `every` seconds.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], name: str, every: float, *, service: str, check: Check
    ) -> None:
        self.connect = connect
        self.name = name
        self.every = every
        self.service = service
        self.check = check
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
                withdraw()

    async def _rest(self, began: float) -> None:
        await asyncio.sleep(max(self.every, SHARE * (time.monotonic() - began)))

    async def look(self, connection: Connection) -> None:
        """Audit once and export what was found."""
        began = time.monotonic()
        async with snapshot(connection):
            violations = await self.check(connection)
        self._ended = time.monotonic()
        for violation in violations:
            log.error("audit: %s", violation)
        seconds = self._ended - began
        export(self.service, len(violations), age=lambda: time.monotonic() - self._ended, seconds=seconds)
