"""Access of a service to its own Postgres schema: connections, named queries, migrations.

A service owns one schema, named `prefix + service`. Its connections see only that schema, so its queries name none, and
two shops or two test runs can share a database.
"""

import asyncio
import logging
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format
from psycopg_pool import AsyncConnectionPool

from contracts.envelope import EARLIEST_TIME, LATEST_TIME
from infrastructure.process.environment import remove_foreign_variables
from infrastructure.process.failpoints import failpoint
from infrastructure.process.settings import Settings

log = logging.getLogger(__name__)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

WAIT_SECONDS: Final = 60.0
"""Seconds that `migrate` waits for Postgres to respond, and for another migration to end."""

TRANSIENT_ERRORS: Final[tuple[type[BaseException], ...]] = (
    psycopg.OperationalError,  # also deadlocks, serialization failures, lock and statement timeouts, a full disk
    psycopg.InterfaceError,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,  # a standby that has not been promoted yet
    TimeoutError,
)
"""Errors that pass: retry on a new connection. All other errors of Postgres are permanent."""

_NAMED: Final = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_NUMBERED: Final = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")

# Both sides detect a dead peer within seconds: we by keepalives, the server even during a statement.
_CONNECTION_PARAMETERS: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}
_OPTIONS: Final = "-c client_connection_check_interval=1000 -c TimeZone=UTC"


_TIMESTAMPTZ: Final = psycopg.adapters.types["timestamptz"].oid
_TimestamptzLoader: Final = psycopg.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT)


class BoundedTimestamptzLoader(Loader):
    """Loader of times that PostgreSQL can store and Python cannot represent: each is the nearest accepted time.

    psycopg raises an error for them, and with such a row it refuses the whole result. The rows of others must not wait
    for one that an older version has stored.
    """

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        assert _TimestamptzLoader is not None
        self._load = _TimestamptzLoader(oid, context).load

    def load(self, data: Buffer) -> datetime:
        """Return the time."""
        try:
            loaded: datetime = self._load(data)
        except psycopg.DataError:
            text = bytes(data)
            return EARLIEST_TIME if text.startswith(b"-") or text.endswith(b"BC") else LATEST_TIME
        return loaded


psycopg.adapters.register_loader("timestamptz", BoundedTimestamptzLoader)


def create_pool(
    settings: Settings, service: str, *, size: int, options: str, max_waiting: int = 0
) -> AsyncConnectionPool[Connection]:
    """Return a pool of connections to the schema of `service`, which is not open yet.

    It has at most `size` connections, with the server settings of `options`. A request for one waits for two seconds at
    most. If `max_waiting` requests wait already, a further one fails at once; 0 means without a limit.
    """
    return AsyncConnectionPool(
        conninfo(settings.postgres_url),
        kwargs={
            "autocommit": True,
            "application_name": f"{settings.prefix}{service}/{settings.replica}",
            "options": f'-c search_path="{settings.schema_name(service)}" {options}',
            "connect_timeout": 5,
        },
        min_size=1,
        max_size=size,
        timeout=2.0,
        max_waiting=max_waiting,
        open=False,
    )


def load_queries(path: Path) -> dict[str, str]:
    """Return the queries of a `queries.sql` by the names in their `-- name: x` lines. Names must be unique."""
    _, *parts = _NAMED.split(path.read_text(encoding="utf-8"))
    names, bodies = parts[::2], parts[1::2]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"{path}: names used more than once: {', '.join(sorted(repeated))}")
    return {name: body.strip().removesuffix(";") for name, body in zip(names, bodies, strict=True)}


def conninfo(url: str) -> str:
    """Return `url` for psycopg, after it has been made to decide alone.

    If it names a database, the variables of libpq in the environment, meant for other programs, are removed.
    """
    if url:
        remove_foreign_variables(libpq=False)
    return url


async def connect(settings: Settings, service: str, *, options: str = "") -> Connection:
    """Return a connection in autocommit mode whose search path is the schema of `service` only. The caller closes it.

    `options` are further server settings, as `-c name=value -c …`. Raises `psycopg.OperationalError` if Postgres does
    not respond within five seconds.
    """
    given = conninfo_to_dict(settings.postgres_url).get("options") or ""
    schema = settings.schema_name(service)
    return await psycopg.AsyncConnection.connect(
        conninfo(settings.postgres_url),
        autocommit=True,
        application_name=f"{settings.prefix}{service}/{settings.replica}",
        options=f'{given} {_OPTIONS} -c search_path="{schema}" {options}'.strip(),
        **_CONNECTION_PARAMETERS,
    )


async def connect_when_available(
    settings: Settings, service: str, *, options: str = "", patience: float = WAIT_SECONDS
) -> Connection:
    """Connect as `connect` does, but retry for `patience` seconds before the last error is raised."""
    until, logged = time.monotonic() + patience, False
    while True:
        try:
            return await connect(settings, service, options=options)
        except psycopg.OperationalError as error:
            if time.monotonic() >= until:
                raise
            if not logged:
                log.warning("waiting for Postgres: %s", error)
                logged = True
            await asyncio.sleep(0.2)


async def migrate(settings: Settings, service: str, folder: Path) -> None:
    """Apply the numbered SQL files in `folder` that the schema of `service` does not have yet. Creates the schema.

    Each `0001_name.sql` runs in one transaction together with its row in `schema_migration`, so it is applied wholly or
    not at all. Migrations of one schema wait for each other by a session-level advisory lock. If a migrating process is
    killed, its lock ends with its connection, which the server checks every second, even during a statement. Raises
    `TimeoutError` if the lock is not free within a minute.
    """
    files = _numbered(folder)
    schema = settings.schema_name(service)
    connection = await connect_when_available(settings, service)
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
                failpoint("migrate.applied")
            log.info("migrated %s to %s", schema, file.stem)
    finally:
        await connection.close()


def _numbered(folder: Path) -> dict[int, Path]:
    """Return the migrations of a folder in order. Raise `ValueError` for another file name or a duplicate number."""
    found: dict[int, Path] = {}
    for file in sorted(folder.glob("*.sql")):
        match = _NUMBERED.match(file.name)
        if match is None:
            raise ValueError(f"{file}: expected a name like 0001_what_it_does.sql")
        if found.setdefault(int(match[1]), file) is not file:
            raise ValueError(f"{file}: {found[int(match[1])].name} has the number {match[1]} already")
    return found


async def _lock(connection: Connection, name: str) -> None:
    """Take the advisory lock `name` for this session. It is polled, so that there is a time limit."""
    until = time.monotonic() + WAIT_SECONDS
    while not await try_lock(connection, name):
        if time.monotonic() >= until:
            raise TimeoutError(f"another session has held the lock {name!r} for a minute")
        await asyncio.sleep(0.1)


async def try_lock(connection: Connection, name: str) -> bool:
    """Try to take the advisory lock `name`, which ends with the session; return whether this session has it."""
    cursor = await connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,))
    row = await cursor.fetchone()
    return row is not None and row[0] is True
