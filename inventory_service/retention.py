"""The retention job: deletes old outcomes from the request log and creates the ledger's partitions in advance."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from infrastructure.storage.postgres import Connection
from infrastructure.storage.retention import DELETE_LIMIT, RUN_SECONDS, delete_in_batches
from inventory_service.store import LOG_RETENTION, QUERIES


class RetentionJob:
    """Background job that deletes old outcomes in small batches and creates the ledger's next partitions.

    `connect` returns a connection with `store.BACKGROUND_OPTIONS`.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect

    async def run(self) -> None:
        """Run once per minute until cancelled; raises when the connection is lost."""
        while True:
            async with await self.connect() as connection:
                await connection.execute(QUERIES["make_ledger_months"])
                await delete_in_batches(partial(delete_old_outcomes, connection))
            await asyncio.sleep(RUN_SECONDS)


async def delete_old_outcomes(connection: Connection) -> int:
    """Delete at most `DELETE_LIMIT` outcomes that are older than `LOG_RETENTION`, and return their number."""
    result = await connection.execute(QUERIES["delete_old_outcomes"], {"keep": LOG_RETENTION, "limit": DELETE_LIMIT})
    return result.rowcount
