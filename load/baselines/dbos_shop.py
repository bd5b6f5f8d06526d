"""Opponent: the same change of a cart on DBOS, which runs each request as a durable workflow over Postgres.

A change is a workflow whose id is that of the request, so that a repeated request gets the first outcome and a crashed
one is completed at the next start. Its one step is a transaction: stock and cart change together, in one statement. Two
processes with four threads each answer HTTP (FastAPI, synchronous handlers), the fastest of the forms that were tried.
It needs the packages of `requirements/opponents.txt` and runs with their interpreter.

    HOLDFAST_POSTGRES_URL=postgresql://… .opponents/bin/python -m load.baselines.dbos_shop
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import anyio.to_thread
import psycopg
import uvicorn
from dbos import DBOS, SetWorkflowID, SQLAlchemyDatasource
from fastapi import FastAPI
from psycopg import sql
from pydantic import BaseModel
from sqlalchemy import text

SCHEMA: Final = "dbos_shop"
SYSTEM_SCHEMA: Final = "dbos_shop_system"
PROCESSES: Final = 2
THREADS: Final = 4
PRODUCTS: Final = 10_000
UNITS_PER_PRODUCT: Final = 1_000_000_000
SCARCE_UNITS: Final = 25
"""Stock of the product `SCARCE`, for a rush of buyers."""

_TABLES: Final = """
CREATE TABLE stock (product text PRIMARY KEY, received int NOT NULL, held int NOT NULL DEFAULT 0,
  CHECK (held >= 0 AND held <= received)) WITH (fillfactor = 50);
CREATE TABLE line (shopper text, product text, quantity int NOT NULL, PRIMARY KEY (shopper, product));
"""
_ADD: Final = text(
    """
WITH taken AS (
  UPDATE dbos_shop.stock SET held = held + :quantity
   WHERE product = :product AND received - held >= :quantity RETURNING product
)
INSERT INTO dbos_shop.line AS line (shopper, product, quantity) SELECT :shopper, product, :quantity FROM taken
ON CONFLICT (shopper, product) DO UPDATE SET quantity = line.quantity + excluded.quantity RETURNING quantity
"""
)
_REMOVE: Final = text(
    """
WITH gone AS (
  DELETE FROM dbos_shop.line WHERE shopper = :shopper AND (product = :product OR :product = '')
  RETURNING product, quantity
)
UPDATE dbos_shop.stock SET held = held - gone.quantity FROM gone WHERE stock.product = gone.product
"""
)


class Change(BaseModel):
    """Body of a request."""

    id: str
    product: str = ""
    quantity: int = 1


def build_app(url: str, process: int) -> FastAPI:
    """Return the application of one process, numbered from 0."""
    DBOS(
        config={
            "name": "dbos-shop",
            "system_database_url": url,
            "dbos_system_schema": SYSTEM_SCHEMA,
            "sys_db_pool_size": THREADS + 2,
            "executor_id": f"process-{process}",
            "application_version": "1",
            "log_level": "ERROR",
        }
    )
    source = SQLAlchemyDatasource.create(url, engine_kwargs={"pool_size": THREADS}, schema=SYSTEM_SCHEMA)

    @source.transaction(isolation_level="READ COMMITTED")
    def apply(shopper: str, kind: str, product: str, quantity: int) -> str:
        values: dict[str, Any] = {"shopper": shopper, "product": product}
        if kind == "add":
            row = source.sql_session().execute(_ADD, {**values, "quantity": quantity}).first()
            return "refused" if row is None else "held"
        source.sql_session().execute(_REMOVE, values)
        return "removed"

    @DBOS.workflow()
    def change_cart(shopper: str, kind: str, product: str, quantity: int) -> str:
        return apply(shopper, kind, product, quantity)

    @asynccontextmanager
    async def launch(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        DBOS.launch()
        yield
        DBOS.destroy()

    app = FastAPI(lifespan=launch)

    @app.post("/cart/{shopper}/{kind}")
    def change(shopper: str, kind: Literal["add", "remove", "clear"], change: Change) -> dict[str, Any]:
        with SetWorkflowID(f"{shopper}/{change.id}"):
            outcome = change_cart(shopper, kind, change.product, change.quantity)
        answer = {"type": outcome, "id": change.id, "product": change.product, "quantity": change.quantity}
        return answer | ({"reason": "out_of_stock"} if outcome == "refused" else {})

    return app


def prepare(url: str) -> None:
    """Create the tables with ample stock of `HOT` and `P1` to `P10000`, dropping any earlier ones."""
    with psycopg.connect(url, autocommit=True) as connection:
        for name in (SCHEMA, SYSTEM_SCHEMA):
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
        connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(SCHEMA)))
        connection.execute(_TABLES)
        fill = "INSERT INTO stock SELECT 'P' || number, %s FROM generate_series(1, %s) AS number"
        connection.execute(fill, (UNITS_PER_PRODUCT, PRODUCTS))
        connection.execute("INSERT INTO stock VALUES ('HOT', %s)", (UNITS_PER_PRODUCT,))
        connection.execute("INSERT INTO stock VALUES ('SCARCE', %s)", (SCARCE_UNITS,))
        connection.execute("ANALYZE stock")


def listener(port: int) -> socket.socket:
    """Return a socket on a port that several processes share; 0 chooses one."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("127.0.0.1", port))
    return found


class ReportingServer(uvicorn.Server):
    """Server that prints one line when it is ready."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print the line."""
        await super().startup(sockets)
        print("ready", flush=True)


def serve(url: str, process: int, port: int) -> None:
    """Serve as one of the processes, until SIGINT or SIGTERM."""
    config = uvicorn.Config(build_app(url, process), log_level="warning", access_log=False, timeout_keep_alive=3600)
    ReportingServer(config).run([listener(port)])


def run(url: str) -> None:
    """Start the processes, print the address as one line of JSON, and stop them at SIGINT or SIGTERM."""
    prepare(url)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    children = []
    with listener(0) as reserved:
        port = reserved.getsockname()[1]
        try:
            for process in range(PROCESSES):
                argv = [
                    sys.executable,
                    "-m",
                    "load.baselines.dbos_shop",
                    "--process",
                    str(process),
                    "--port",
                    str(port),
                ]
                child = subprocess.Popen(argv, stdout=subprocess.PIPE)
                children.append(child)
                assert child.stdout is not None  # a pipe
                if not child.stdout.readline():
                    raise SystemExit(f"a process exited with status {child.wait()} before it was ready")
            print(json.dumps({"url": f"http://127.0.0.1:{port}/cart"}), flush=True)
            for child in children:
                child.wait()
        except KeyboardInterrupt:
            pass
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--process", type=int, help="serve as this one of the processes")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    postgres = os.environ["HOLDFAST_POSTGRES_URL"]
    if given.process is None:
        run(postgres)
    else:
        serve(postgres, given.process, given.port)
