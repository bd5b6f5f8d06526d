"""How every service reaches its own Postgres schema: one way to connect, one way to name queries, one way to migrate.

A service owns one schema, named `prefix + service`. Its connections see that schema alone, so its queries name no
schema, and two shops, or two test runs, live side by side in one database.
"""

import asyncio
import logging
import re
import time
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from infrastructure.crashpoints import crashpoint
from infrastructure.settings import Settings

log = logging.getLogger(__name__)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

PATIENCE: Final = 60.0
"""Seconds that `migrate` waits for a Postgres that does not answer yet, and for another migration to end."""

LOST: Final[tuple[type[BaseException], ...]] = (
    psycopg.OperationalError,  # also deadlocks, serialization failures, lock and statement timeouts, a full disk
    psycopg.InterfaceError,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,  # a standby that has not been promoted yet
    TimeoutError,
)
"""What passes by itself: try the same again on a new connection. Every other error of Postgres is for good."""

_NAMED: Final = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_NUMBERED: Final = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")

# A dead peer is noticed in seconds, on both sides: by us from the keepalives, by the server even in mid-statement.
_LINK: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}
_OPTIONS: Final = "-c client_connection_check_interval=1000 -c TimeZone=UTC"


def load_queries(path: Path) -> dict[str, str]:
    """The blocks of a `queries.sql`, by the names in their `-- name: x` lines; `ValueError` when a name comes twice."""
    _, *parts = _NAMED.split(path.read_text(encoding="utf-8"))
    names, bodies = parts[::2], parts[1::2]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path}: named more than once: {', '.join(sorted(twice))}")
    return {name: body.strip().removesuffix(";") for name, body in zip(names, bodies, strict=True)}


async def connect(settings: Settings, service: str, *, options: str = "") -> Connection:
    """A connection in autocommit whose search path is the schema of `service`, and nothing else.

    `options` are more server settings, as `-c name=value -c …`. Raises `psycopg.OperationalError` when Postgres does
    not answer within five seconds. The caller closes it.
    """
    given = conninfo_to_dict(settings.postgres_url).get("options") or ""
    schema = settings.schema_name(service)
    return await psycopg.AsyncConnection.connect(
        settings.postgres_url,
        autocommit=True,
        application_name=f"{settings.prefix}{service}/{settings.replica}",
        options=f'{given} {_OPTIONS} -c search_path="{schema}" {options}'.strip(),
        **_LINK,
    )


async def wait_for(settings: Settings, service: str, *, options: str = "", patience: float = PATIENCE) -> Connection:
    """Like `connect`, but tries for `patience` seconds before it raises what the last try raised."""
    until, told = time.monotonic() + patience, False
    while True:
        try:
            return await connect(settings, service, options=options)
        except psycopg.OperationalError as error:
            if time.monotonic() >= until:
                raise
            if not told:
                log.warning("waiting for Postgres: %s", error)
                told = True
            await asyncio.sleep(0.2)


async def migrate(settings: Settings, service: str, folder: Path) -> None:
    """Bring the schema of `service` up to the last of the numbered files in `folder`; applied ones are not run again.

    Each `0001_name.sql` is one transaction together with its row in `schema_migration`, so it is applied wholly or
    not at all. Migrations of one schema queue behind a session-level advisory lock. Should the one in front be killed,
    its lock goes with its connection, which the server checks every second even in mid-statement. `TimeoutError` when
    the lock isn't free within a minute.
    """
    files = _numbered(folder)
    schema = settings.schema_name(service)
    connection = await wait_for(settings, service)
    try:
        await _lock(connection, f"{schema} migrations")
        await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration"
            " (number int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = {number async for (number,) in await connection.execute("SELECT number FROM schema_migration")}
        for number, file in files.items():
            if number in applied:
                continue
            async with connection.transaction():
                await connection.execute(file.read_bytes())
                await connection.execute(
                    "INSERT INTO schema_migration (number, name) VALUES (%s, %s)", (number, file.stem)
                )
                crashpoint("migrate.applied")
            log.info("migrated %s to %s", schema, file.stem)
    finally:
        await connection.close()


def _numbered(folder: Path) -> dict[int, Path]:
    """The migrations of a folder in their order; `ValueError` for a stray file or a number that comes twice."""
    found: dict[int, Path] = {}
    for file in sorted(folder.glob("*.sql")):
        match = _NUMBERED.match(file.name)
        if match is None:
            raise ValueError(f"{file}: a migration is called like 0001_what_it_does.sql")
        if found.setdefault(int(match[1]), file) is not file:
            raise ValueError(f"{file}: the number {match[1]} is taken by {found[int(match[1])].name}")
    return found


async def _lock(connection: Connection, name: str) -> None:
    """Take the advisory lock `name` for this session; asked for again and again, so that waiting has an end."""
    until = time.monotonic() + PATIENCE
    while not await try_lock(connection, name):
        if time.monotonic() >= until:
            raise TimeoutError(f"another session has held the lock {name!r} for a minute")
        await asyncio.sleep(0.1)


async def try_lock(connection: Connection, name: str) -> bool:
    """Whether this session now holds the advisory lock `name`, which ends with the session."""
    cursor = await connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,))
    row = await cursor.fetchone()
    return row is not None and row[0] is True
