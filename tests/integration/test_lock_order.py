"""The one planted bug that only a real Postgres can show: locks taken in another order end in a deadlock.

Two batches want the same three products. A third session holds the one in the middle until both batches wait, each with
what it has locked by then; so the race is placed, not hoped for. In one order for all, the second batch waits at the
first product and has nothing that the first one needs.
"""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from infrastructure.process.settings import Settings as Shared
from infrastructure.storage.statement_pipeline import StatementPipeline, number_placeholders
from inventory_service import store as stores
from inventory_service.store import PostgresStore
from tests.testkit.inventory_store import Schema, add, command, schema

pytestmark = pytest.mark.timeout(20, func_only=True)
ORDERED = "ORDER BY product_code FOR NO KEY UPDATE"
REVERSED = "ORDER BY product_code DESC FOR NO KEY UPDATE"


@pytest.fixture
async def here(settings: Shared) -> AsyncIterator[Schema]:
    async with schema(settings) as made:
        await made.stock(APPLE=10, MELON=10, ZUCCHINI=10)
        yield made


async def meet_in_the_middle(here: Schema, first: PostgresStore, second: PostgresStore) -> list[BaseException]:
    """Run two batches that take all three products at once; return the error of each."""
    await first.transact([command("warm", add("APPLE", user="warm"))])
    async with here.connection.transaction():
        await here.connection.execute("SELECT FROM inventory WHERE product_code = 'MELON' FOR UPDATE")
        batches = [
            asyncio.create_task(
                store.transact([command(code, add(code, user=user)) for code in ("APPLE", "MELON", "ZUCCHINI")])
            )
            for store, user in ((first, "ann"), (second, "bob"))
        ]
        await _both_wait(here)
    done = await asyncio.gather(*batches, return_exceptions=True)
    return [each for each in done if isinstance(each, BaseException)]


async def _both_wait(here: Schema) -> None:
    async with asyncio.timeout(4):
        while True:
            await here.connection.execute("SELECT pg_stat_clear_snapshot()")  # a transaction sees its first look only
            waiting = await here.one(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name ="
                f" '{here.settings.prefix}inventory/{here.settings.replica}'"
            )
            if waiting == 2:
                return
            await asyncio.sleep(0.02)


async def test_batches_that_want_the_same_products_never_deadlock(here: Schema) -> None:
    assert await meet_in_the_middle(here, here.store(), here.store()) == []


async def test_one_worker_that_locks_in_reverse_is_caught(here: Schema) -> None:
    right, wrong = here.store(), here.store()
    query = stores.QUERIES["lock_stock"]
    assert ORDERED in query
    planted = {**stores.STATEMENTS, "lock_stock": number_placeholders(query.replace(ORDERED, REVERSED))}
    wrong._pipeline = StatementPipeline(await wrong.connect(), planted)
    (fault,) = await meet_in_the_middle(here, right, wrong)
    assert isinstance(fault, psycopg.errors.DeadlockDetected)
