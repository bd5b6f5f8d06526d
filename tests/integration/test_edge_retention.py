"""The edge's tables that clients can grow: a run of the sweep empties them, however much has come."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infrastructure.process.settings import Settings
from infrastructure.storage import retention
from infrastructure.storage.postgres import Connection, connect, migrate
from rest_api.__main__ import MIGRATIONS
from rest_api.read_models.store import SERVICE, Store
from rest_api.security.guest_sessions import GuestSession

MANY = 3 * retention.DELETE_LIMIT + 7
"""Three times what one statement deletes, and some."""


class Schema:
    """The edge's schema, with a connection to plant rows in it and look at it."""

    def __init__(self, store: Store, connection: Connection) -> None:
        self.store = store
        self.connection = connection

    async def run(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        cursor = await self.connection.execute(query.encode(), values)
        return await cursor.fetchall() if cursor.description else []

    async def count(self, table: str) -> int:
        return int((await self.run(f"SELECT count(*) FROM {table}"))[0][0])


@pytest.fixture
async def edge(settings: Settings) -> AsyncIterator[Schema]:
    await migrate(settings, SERVICE, MIGRATIONS)
    store = Store(settings)
    await store.open()
    async with await connect(settings, SERVICE) as connection:
        yield Schema(store, connection)
        await connection.execute(f'DROP SCHEMA "{settings.schema_name(SERVICE)}" CASCADE'.encode())
    await store.close()


async def test_one_run_deletes_all_old_idempotency_keys(edge: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.0)
    for age in ("60 hours", "47 hours"):
        await edge.run(
            "INSERT INTO claim (user_id, id, fingerprint, created_at) SELECT 'ann', %(age)s || n, 'f',"
            " now() - %(age)s::interval FROM generate_series(1, %(many)s) AS n",
            age=age,
            many=MANY,
        )
    assert await edge.store.delete_old_rows() == MANY
    assert await edge.run("SELECT min(now() - created_at) < '48 hours', count(*) FROM claim") == [(True, MANY)]


async def test_orders_that_never_held_stock_are_deleted_after_90_days_with_their_events(edge: Schema) -> None:
    planted = (
        ("refused", 91, "cancelled", "[]"),
        ("requested", 91, "placed", "[]"),
        ("young", 89, "cancelled", "[]"),
        ("bought", 400, "delivered", '[{"product":"P"}]'),
        ("cancelled later", 400, "cancelled", '[{"product":"P"}]'),
    )
    for name, days, status, lines in planted:
        values = {"id": name, "at": datetime.now(UTC) - timedelta(days=days), "status": status, "lines": lines}
        await edge.run(
            "INSERT INTO placed_order (order_id, user_id, status, lines, created_at, updated_at)"
            " VALUES (%(id)s, 'ann', %(status)s, %(lines)s, %(at)s, %(at)s)",
            **values,
        )
        await edge.run("INSERT INTO order_event VALUES (%(id)s, 1, 'orders.placed', %(at)s, '{}')", **values)
        await edge.run("INSERT INTO order_step VALUES (%(id)s, 'payment', 'e', 't', %(at)s, '{}')", **values)
    assert await edge.store.delete_old_rows() == 2
    for table in ("placed_order", "order_event", "order_step"):
        left = await edge.run(f"SELECT order_id FROM {table} ORDER BY order_id")
        assert left == [("bought",), ("cancelled later",), ("young",)], table


async def test_ended_sessions_are_deleted(edge: Schema) -> None:
    now = datetime.now(UTC)
    for number in range(20):
        await edge.store.replace_tokens(f"old{number}", 1, now - timedelta(hours=2), 60)
    await edge.store.replace_tokens("ann", 1, now + timedelta(days=1), 60)
    assert await edge.store.delete_old_rows() == 20
    assert await edge.run("SELECT user_id FROM guest_session") == [("ann",)]


async def test_a_session_knows_its_newest_token_and_the_one_before_the_overlap(edge: Schema) -> None:
    end = datetime.now(UTC) + timedelta(days=1)
    steps = [(1000, (0, 1000)), (1040, (0, 1000)), (1060, (1000, 1060)), (1100, (1000, 1060)), (2000, (1060, 2000))]
    for issued_at, expected in steps:
        assert await edge.store.replace_tokens("ann", issued_at, end, 60) == GuestSession(*expected)
    assert await edge.store.replace_tokens("ann", 1500, end, 60) == GuestSession(1060, 2000), "a late one moves nothing"
    assert await edge.store.guest_session("ann") == GuestSession(1060, 2000)
    assert await edge.store.guest_session("bob") == GuestSession()
    assert await edge.store.changed_sessions(30) == {"ann": GuestSession(1060, 2000)}
