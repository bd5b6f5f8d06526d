"""Deletion of old rows in small batches, as fast as they grow: the one implementation for all services.

A sweep that deleted a full batch goes on at once, so a table cannot grow faster than it is emptied. The pause between
two batches leaves disk time for requests. The number of batches is bounded, so that each table has its turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from infrastructure.observability import metrics
from infrastructure.storage.postgres import Connection

RUN_SECONDS: Final = 60.0
DELETE_LIMIT: Final = 1000
"""Most rows that one statement deletes."""
RETENTION_OPTIONS: Final = "-c statement_timeout=10s -c lock_timeout=2s -c enable_seqscan=off -c jit=off"
"""Server settings for the connection of a `RetentionJob`."""
PAUSE_SECONDS: Final = 0.1
MAX_BATCHES: Final = 1000
"""Most batches of one table in one run."""

Delete = Callable[[], Awaitable[int]]
"""Deletes at most `DELETE_LIMIT` rows, and returns their number."""


async def delete_in_batches(delete: Delete, *, limit: int = DELETE_LIMIT, pause: float = PAUSE_SECONDS) -> int:
    """Repeat `delete` until it finds fewer than `limit` rows; return the number of all deleted rows."""
    total = 0
    for _ in range(MAX_BATCHES):
        deleted = await delete()
        metrics.TRIMMED.inc(deleted)
        total += deleted
        if deleted < limit:
            break
        await asyncio.sleep(pause)
    return total


class Sweep(NamedTuple):
    """A statement that deletes at most `%(limit)s` old rows, with its other parameters."""

    statement: str
    parameters: Mapping[str, Any]


class RetentionJob:
    """Background job of a service: runs each sweep once per minute, over a connection of its own."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *sweeps: Sweep) -> None:
        self.connect = connect
        self.sweeps = sweeps

    async def run(self) -> None:
        """Run until cancelled. Raise when the connection is lost."""
        while True:
            await self.delete_old_rows()
            await asyncio.sleep(RUN_SECONDS)

    async def delete_old_rows(self) -> int:
        """Run each sweep once, and return the number of deleted rows."""
        async with await self.connect() as connection:
            return sum([await _run(connection, sweep) for sweep in self.sweeps])


async def _run(connection: Connection, sweep: Sweep) -> int:
    parameters = {**sweep.parameters, "limit": DELETE_LIMIT}

    async def delete() -> int:
        return (await connection.execute(sweep.statement.encode(), parameters)).rowcount

    return await delete_in_batches(delete)
