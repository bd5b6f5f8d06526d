"""Idempotency keys in a real Postgres: two edges at once, a server that stalls, and connections that break."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import Connection, connect, migrate
from rest_api.__main__ import MIGRATIONS
from rest_api.read_models import claims as claims_module
from rest_api.read_models.claims import ClaimStore, IdempotencyRecord
from rest_api.read_models.store import SERVICE, UNAVAILABLE_ERRORS
from tests.testkit.tcp_proxy import Proxy, ProxyFault

PATIENCE = 60.0


@dataclass
class Edges:
    """Two edges of one shop; a proxy lies between the first one and Postgres."""

    one: ClaimStore
    two: ClaimStore
    proxy: Proxy
    connection: Connection

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        return await (await self.connection.execute(query.encode())).fetchall()


@pytest.fixture
def proxy(settings: Settings) -> Iterator[Proxy]:
    address = urlsplit(settings.postgres_url)
    proxy = Proxy((address.hostname or "", address.port or 5432))
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
async def edges(settings: Settings, proxy: Proxy) -> AsyncIterator[Edges]:
    await migrate(settings, SERVICE, MIGRATIONS)
    address = urlsplit(settings.postgres_url)
    user = address.netloc.rpartition("@")[0]
    behind = urlunsplit(address._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))
    one, two = ClaimStore(settings.model_copy(update={"postgres_url": behind})), ClaimStore(settings)
    async with await connect(settings, SERVICE) as connection:
        await one.open()
        await two.open()
        yield Edges(one, two, proxy, connection)
        proxy.fault = ProxyFault()
        await one.close()
        await two.close()
        await connection.execute(f'DROP SCHEMA "{settings.schema_name(SERVICE)}" CASCADE'.encode())


async def test_each_key_is_claimed_once_whichever_edge_is_first(edges: Edges) -> None:
    keys = [(f"user {number % 7}", f"key {number}") for number in range(600)]
    rng = random.Random(1)
    attempts = [(store, key) for store in (edges.one, edges.two) for key in keys * 2]
    rng.shuffle(attempts)
    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*(store.claim(*key, f"content of {key}") for store, key in attempts))
    won = [key for (_, key), record in zip(attempts, found, strict=True) if record is None]
    assert sorted(won) == sorted(keys)
    for (_, key), record in zip(attempts, found, strict=True):
        if record is not None:
            assert (record.fingerprint, record.status, record.response) == (f"content of {key}", None, None)


async def test_a_final_response_is_stored_once_and_seen_by_all(edges: Edges) -> None:
    for name in ("a", "b", "c"):
        assert await edges.one.claim("ann", name, "f") is None
    await asyncio.gather(
        edges.one.store_response("ann", "a", 202, b"accepted"),
        edges.one.store_response("ann", "b", 200, b"held"),
        edges.one.release("ann", "c"),
    )
    assert await seen(edges.two, "a") == ("f", 202, b"accepted")
    assert await seen(edges.two, "b") == ("f", 200, b"held")
    await edges.two.store_response("ann", "a", 200, b"held, too")
    await asyncio.gather(*(store.store_response("ann", "a", 200, b"later") for store in (edges.one, edges.two)))
    await asyncio.gather(edges.two.store_response("ann", "b", 202, b"accepted"), edges.one.release("ann", "a"))
    assert await seen(edges.one, "a") == ("f", 200, b"held, too")
    assert await seen(edges.one, "b") == ("f", 200, b"held")
    assert await seen(edges.two, "c") == ("f", None, None)
    took = await asyncio.gather(*(store.take_over("ann", "c", 10.0) for store in (edges.one, edges.two) * 2))
    assert sorted(took) == [False, False, False, True], "a released claim may be taken over at once, by one"


async def seen(store: ClaimStore, name: str) -> tuple[str, int | None, bytes | None]:
    record = await store.claim("ann", name, "other content")
    assert isinstance(record, IdempotencyRecord)
    return record.fingerprint, record.status, record.response


async def test_responses_of_two_edges_do_not_deadlock(edges: Edges) -> None:
    names = [f"key {number}" for number in range(300)]
    await asyncio.gather(*(edges.one.claim("ann", name, "f") for name in names))
    async with asyncio.timeout(PATIENCE):
        for _ in range(5):
            work = [
                store.store_response("ann", name, 202, b"accepted")
                for store, order in ((edges.one, names), (edges.two, names[::-1]))
                for name in order
            ]
            await asyncio.gather(*work)


async def test_while_postgres_stalls_claims_are_refused_and_none_is_left_behind(edges: Edges) -> None:
    assert await edges.one.claim("ann", "before", "f") is None
    edges.proxy.fault = ProxyFault(hole=True)
    async with asyncio.timeout(PATIENCE):
        first = asyncio.create_task(edges.one.claim("ann", "during", "f"))
        with pytest.raises(UNAVAILABLE_ERRORS):
            await first
        for name in ("during", "another"):
            with pytest.raises(UNAVAILABLE_ERRORS):
                await edges.one.claim("ann", name, "f")
        edges.proxy.fault = ProxyFault()  # the bytes that were held back arrive now
        while True:
            try:
                assert await edges.one.claim("ann", "after", "f") is None
                break
            except UNAVAILABLE_ERRORS:
                await asyncio.sleep(0.05)
        while [row async for row in _recent_claims(edges)] != ["after", "before"]:
            await asyncio.sleep(0.05)


async def _recent_claims(edges: Edges) -> AsyncIterator[str]:
    """Yield the keys whose claims may not be taken over."""
    for (name,) in await edges.rows("SELECT id FROM claim WHERE claimed_at > now() - interval '1 hour' ORDER BY id"):
        yield name


async def test_claims_continue_after_their_connections_broke(edges: Edges) -> None:
    assert await edges.one.claim("ann", "before", "f") is None
    assert edges.proxy.reset()
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                record = await edges.one.claim("ann", "after", "f")
                break
            except UNAVAILABLE_ERRORS:
                await asyncio.sleep(0.05)
    assert record is None or record.status is None
    assert await seen(edges.one, "before") == ("f", None, None)


async def test_every_statement_is_a_lookup_by_key(edges: Edges, settings: Settings) -> None:
    """The statistics are those of a table of one row, then of a large one."""
    parameters: dict[str, Any] = {
        "claim": {"users": ["u"], "ids": ["a"], "fingerprints": ["f"]},
        "complete": {"users": ["u"], "ids": ["a"], "statuses": [200], "answers": [b"x"]},
        "take_over": {"user_id": "u", "id": "a", "seconds": 1.0},
    }
    await edges.one.claim("u", "a", "f")
    async with await psycopg.AsyncConnection.connect(
        settings.postgres_url,
        options=f'-c search_path="{settings.schema_name(SERVICE)}" {claims_module.OPTIONS}',
        autocommit=True,
    ) as connection:
        for rows in (1, 20_000):
            await connection.execute(
                "INSERT INTO claim (user_id, id, fingerprint) SELECT 'many', n::text, 'f' FROM generate_series(1, %s) n"
                " ON CONFLICT DO NOTHING",
                (rows,),
            )
            await connection.execute("ANALYZE claim")
            for name, values in parameters.items():
                query = f"EXPLAIN (FORMAT JSON) {claims_module._QUERIES[name]}".encode()
                [(plan,)] = await (await connection.execute(query, values)).fetchall()
                text = json.dumps(plan)
                assert '"Seq Scan"' not in text, text
                assert '"Index Cond"' in text, text
