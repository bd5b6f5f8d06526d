"""Control experiment: the same buyers and stock with a deliberate race condition instead of locks.

A scratch schema with a random name holds one product in a table without a CHECK. Each buyer reads the available
quantity, decides, and writes back the difference, without a row lock. Buyers run in rounds, one connection each, and
all buyers of a round read before the first of them writes. A slow network causes this interleaving now and then; the
barrier causes it every time. Counting and verdict are those of the real proof.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from psycopg import AsyncConnection, sql

from infrastructure.storage.postgres import conninfo
from load.client import new_id
from load.verdict import Attempt, RushVerdict, judge_rush

MAX_CONNECTIONS: Final = 16
"""Size of the connection pool, and so the maximum number of buyers per round."""

METHOD: Final = (
    "no CHECK, no row lock; read, then write back; in rounds of {connections} connections, with a barrier between the "
    "reads and the writes of a round"
)

Connection = AsyncConnection[tuple[Any, ...]]


async def rush_unguarded(postgres_url: str, *, product: str, buyers: int, stock: int) -> RushVerdict:
    """Return the verdict on `buyers` requests for one of `stock` units each, executed without locks."""
    connections = min(MAX_CONNECTIONS, buyers)
    async with AsyncExitStack() as stack:
        pool = [
            await stack.enter_async_context(await AsyncConnection.connect(conninfo(postgres_url), autocommit=True))
            for _ in range(connections)
        ]
        await stack.enter_async_context(_scratch_schema(pool, product, stock))
        attempts: list[Attempt] = []
        for first in range(0, buyers, connections):
            round_ = pool[: buyers - first]
            barrier = asyncio.Barrier(len(round_))
            async with asyncio.TaskGroup() as group:  # a failing buyer must not leave the others waiting at the barrier
                purchases = [group.create_task(_buy(connection, barrier, product)) for connection in round_]
            attempts += [task.result() for task in purchases]
        available = await _available(pool[0], product)
    return judge_rush("rush", attempts, product=product, units=stock, available=available)


async def _buy(connection: Connection, barrier: asyncio.Barrier, product: str) -> Attempt:
    user_id, request_id = new_id(), new_id()
    answer: dict[str, Any] = {"id": request_id, "product": product}
    async with connection.transaction():
        available = await _available(connection, product)
        await barrier.wait()
        if available >= 1:
            await connection.execute("UPDATE stock SET available = %s WHERE product = %s", (available - 1, product))
            await connection.execute("INSERT INTO hold VALUES (%s, %s, 1)", (user_id, product))
            answer |= {"type": "held", "quantity": 1, "line_quantity": 1}
        else:
            answer |= {"type": "refused", "reason": "out_of_stock", "available": available}
    return Attempt(user_id, request_id, (answer,))


async def _available(connection: Connection, product: str) -> int:
    cursor = await connection.execute("SELECT available FROM stock WHERE product = %s", (product,))
    ((available,),) = await cursor.fetchall()
    return int(available)


@asynccontextmanager
async def _scratch_schema(pool: Sequence[Connection], product: str, stock: int) -> AsyncIterator[None]:
    """Create a schema and set it on all connections of `pool`; drop it on exit, also after an error."""
    name = sql.Identifier(f"scratch_{secrets.token_hex(6)}")
    first = pool[0]
    await first.execute(sql.SQL("CREATE SCHEMA {}").format(name))
    try:
        for connection in pool:
            await connection.execute(sql.SQL("SET search_path = {}").format(name))
        await first.execute("CREATE TABLE stock (product text PRIMARY KEY, available int NOT NULL)")
        await first.execute("CREATE TABLE hold (user_id text, product text, quantity int)")
        await first.execute("INSERT INTO stock VALUES (%s, %s)", (product, stock))
        yield
    finally:
        await asyncio.shield(first.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(name)))
