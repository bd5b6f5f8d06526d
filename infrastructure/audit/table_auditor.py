"""Background audit of a service's tables, with its result in metrics.

The checks are named queries that return one sentence for each violation. Each service has its own.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, cast

from psycopg.rows import dict_row

from infrastructure.audit.topic_auditor import REST_FACTOR, export_result, truncate_violations, withdraw_result
from infrastructure.storage.postgres import Connection, try_lock

log = logging.getLogger(__name__)

AUDIT_OPTIONS: Final = "-c transaction_timeout=60s -c lock_timeout=2s -c max_parallel_workers_per_gather=0 -c jit=off"
"""Server settings of a background audit: no parallel workers, and a 60 s limit, since a long snapshot keeps VACUUM from
removing dead rows."""

TableCheck = Callable[[Connection], Awaitable[list[str]]]
"""Reads the tables and returns a sentence for each violation."""


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """Read one consistent state of all tables inside this context; writes are refused."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


async def snapshot_time(connection: Connection) -> datetime:
    """Return the time at which the current `snapshot` began, by the clock of Postgres."""
    row = await (await connection.execute("SELECT now()")).fetchone()
    if row is None:
        raise RuntimeError("SELECT now() returned no row")
    return cast("datetime", row[0])


async def run_checks(
    connection: Connection, queries: Mapping[str, str], checks: Sequence[str], **values: Any
) -> tuple[list[str], str, dict[str, Any]]:
    """Return the violations of all `checks`, a digest of the lines of the query `digest`, and the row of `figures`.

    `values` are the parameters of the checks. Call it in a `snapshot`.
    """
    violations: list[str] = []
    for check in checks:
        cursor = await connection.execute(queries[check], values)
        violations += truncate_violations([row[0] for row in await cursor.fetchall()])
    digest = hashlib.sha256()
    async with connection.cursor("digest") as lines:
        await lines.execute(queries["digest"])
        async for (line,) in lines:
            digest.update(line.encode() + b"\n")
    async with connection.cursor(row_factory=dict_row) as counting:
        figures = dict(await (await counting.execute(queries["figures"])).fetchone() or {})
    return violations, digest.hexdigest(), figures


class TableAuditor:
    """Background auditor of a service's tables. Among all replicas one process at a time runs it.

    `connect` returns a connection with `AUDIT_OPTIONS`, whose session takes the advisory lock `name`. The pause between
    two audits is at least `every` seconds.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], name: str, every: float, *, service: str, check: TableCheck
    ) -> None:
        self.connect = connect
        self.name = name
        self.every = every
        self.service = service
        self.check = check
        self._ended = 0.0

    async def run(self) -> None:
        """Wait for the lock, then audit as long as the session lasts. Raises when the session is lost."""
        async with await self.connect() as connection:
            while True:
                if await try_lock(connection, self.name):
                    break
                await asyncio.sleep(self.every)
            try:
                while True:
                    started = time.monotonic()
                    try:
                        await self.audit_once(connection)
                    except Exception:
                        await self._pause(started)  # an audit that took too long once is likely to do so again
                        raise
                    await self._pause(started)
            finally:
                withdraw_result()

    async def _pause(self, started: float) -> None:
        await asyncio.sleep(max(self.every, REST_FACTOR * (time.monotonic() - started)))

    async def audit_once(self, connection: Connection) -> None:
        """Audit once and export the result."""
        started = time.monotonic()
        async with snapshot(connection):
            violations = await self.check(connection)
        self._ended = time.monotonic()
        for violation in violations:
            log.error("audit: %s", violation)
        seconds = self._ended - started
        export_result(self.service, len(violations), age=lambda: time.monotonic() - self._ended, seconds=seconds)
