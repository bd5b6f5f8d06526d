"""Baseline: a plain shop on FastAPI and Postgres, without broker and batches; each request waits for its own hold.

It is as safe as the shop: requests are stored under the shopper's own id, so a repeated frame gets the first answer,
and answers are sent after the commit. It is fast: one prepared statement and one transaction per request, a connection
pool, uvloop, no compression, no validation beyond the needs of the statement.

    HOLDFAST_POSTGRES_URL=postgresql://… python -m load.baselines.plain_shop
"""

import argparse
import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
import psycopg
import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

SCHEMA: Final = "plain_shop"
CONNECTIONS: Final = 8
PRODUCTS: Final = 10_000
UNITS_PER_PRODUCT: Final = 1_000_000_000

_TABLES: Final = """
CREATE TABLE stock (product text PRIMARY KEY, received int NOT NULL, held int NOT NULL DEFAULT 0,
  CHECK (held >= 0 AND held <= received)) WITH (fillfactor = 50);
CREATE TABLE hold (shopper text, request text, product text NOT NULL, quantity int NOT NULL,
  at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (shopper, request));
"""
_HOLD: Final = """
WITH taken AS (
  UPDATE stock SET held = held + %(quantity)s
   WHERE product = %(product)s AND received - held >= %(quantity)s
     AND NOT EXISTS (SELECT FROM hold WHERE shopper = %(shopper)s AND request = %(request)s) RETURNING product
)
INSERT INTO hold (shopper, request, product, quantity)
SELECT %(shopper)s, %(request)s, product, %(quantity)s FROM taken RETURNING quantity
"""
_HELD_BEFORE: Final = "SELECT quantity FROM hold WHERE shopper = %(shopper)s AND request = %(request)s"


def build_app(pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]]) -> FastAPI:
    """Return the application over a connection pool, which it opens on startup."""

    @asynccontextmanager
    async def manage_pool(_: FastAPI) -> AsyncIterator[None]:
        async with pool:
            await pool.wait()
            gc.collect()
            gc.freeze()
            yield

    app = FastAPI(lifespan=manage_pool)
    numbers = iter(range(1 << 62))

    @app.websocket("/stream")
    async def stream(client: WebSocket) -> None:
        shopper = client.headers.get("authorization") or f"guest-{next(numbers)}"
        await client.accept()
        try:
            while True:
                frame = orjson.loads(await client.receive_text())
                values = {"shopper": shopper, "request": frame["id"], "product": frame["product"]}
                held = await hold({**values, "quantity": frame["quantity"]})
                answer = {"type": "held", "quantity": frame["quantity"]} if held else {"type": "refused"}
                if not held:
                    answer["reason"] = "out_of_stock"
                answer |= {"id": frame["id"], "product": frame["product"]}
                await client.send_text(orjson.dumps(answer).decode())
        except WebSocketDisconnect:
            return

    async def hold(values: dict[str, Any]) -> bool:
        async with pool.connection() as connection:
            try:
                row = await (await connection.execute(_HOLD, values)).fetchone()
            except psycopg.errors.UniqueViolation:  # the same request twice at the same instant
                row = None
            row = row or await (await connection.execute(_HELD_BEFORE, values)).fetchone()
        return row is not None

    return app


async def prepare(url: str) -> None:
    """Create the tables with ample stock of `HOT` and `P1` to `P10000`, dropping any earlier ones."""
    schema = sql.Identifier(SCHEMA)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(schema))
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
        await connection.execute(sql.SQL("SET search_path = {}").format(schema))
        await connection.execute(_TABLES)
        fill = "INSERT INTO stock SELECT 'P' || number, %s FROM generate_series(1, %s) AS number"
        await connection.execute(fill, (UNITS_PER_PRODUCT, PRODUCTS))
        await connection.execute("INSERT INTO stock VALUES ('HOT', %s)", (UNITS_PER_PRODUCT,))
        await connection.execute("ANALYZE stock")


async def run(url: str) -> None:
    """Serve until SIGINT or SIGTERM; print the address as one line of JSON."""
    await prepare(url)
    pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
        url,
        min_size=CONNECTIONS,
        max_size=CONNECTIONS,
        open=False,
        kwargs={"autocommit": True, "options": f"-c search_path={SCHEMA}", "prepare_threshold": 0},
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        build_app(pool), ws="websockets-sansio", ws_per_message_deflate=False, log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for that
        await asyncio.sleep(0.01)
    print(json.dumps({"url": f"ws://127.0.0.1:{listener.getsockname()[1]}/stream"}), flush=True)
    await serving


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    uvloop.run(run(os.environ["HOLDFAST_POSTGRES_URL"]))
