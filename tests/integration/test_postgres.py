"""Migrations: applied once, in order, wholly or not at all, under crashes and under many processes at once."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from infrastructure.storage.postgres import Connection, connect, load_queries, migrate

FIRST = "CREATE TABLE apple (n int); INSERT INTO apple VALUES (1);"


@pytest.fixture
async def outside(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the service's schema, which is gone afterwards."""
    async with await connect(settings, "fruit") as connection:
        yield connection
        await connection.execute(f'DROP SCHEMA IF EXISTS "{settings.schema_name("fruit")}" CASCADE')


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name.lstrip('_')}.sql").write_text(text)
    return folder


async def _applied(connection: Connection) -> list[str]:
    cursor = await connection.execute("SELECT name FROM schema_migration ORDER BY number")
    return [name for (name,) in await cursor.fetchall()]


async def test_each_migration_is_applied_once_in_its_order(
    settings: Settings, outside: Connection, tmp_path: Path
) -> None:
    await migrate(settings, "fruit", _write(tmp_path, _0002_more="INSERT INTO apple VALUES (2)", _0001_apples=FIRST))
    await migrate(settings, "fruit", _write(tmp_path, _0003_most="INSERT INTO apple VALUES (3)"))
    await migrate(settings, "fruit", tmp_path)
    assert await _applied(outside) == ["0001_apples", "0002_more", "0003_most"]
    assert await (await outside.execute("SELECT n FROM apple ORDER BY n")).fetchall() == [(1,), (2,), (3,)]


async def test_many_at_once_apply_it_once(settings: Settings, outside: Connection, tmp_path: Path) -> None:
    slow = "SELECT pg_sleep(0.3); INSERT INTO apple VALUES (2)"
    folder = _write(tmp_path, _0001_apples=FIRST, _0002_slow=slow)
    await asyncio.gather(*(migrate(settings, "fruit", folder) for _ in range(4)))
    assert await (await outside.execute("SELECT count(*) FROM apple")).fetchone() == (2,)


async def test_a_migration_that_fails_leaves_nothing(settings: Settings, outside: Connection, tmp_path: Path) -> None:
    folder = _write(tmp_path, _0001_apples=FIRST, _0002_wrong="INSERT INTO apple VALUES (2); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(settings, "fruit", folder)
    assert await _applied(outside) == ["0001_apples"]
    assert await (await outside.execute("SELECT n FROM apple")).fetchall() == [(1,)]
    await migrate(settings, "fruit", _write(tmp_path, _0002_wrong="INSERT INTO apple VALUES (2)"))
    assert await _applied(outside) == ["0001_apples", "0002_wrong"]


async def test_a_killed_migration_does_not_block_the_next(
    settings: Settings, outside: Connection, tmp_path: Path
) -> None:
    folder = _write(tmp_path, _0001_apples=FIRST, _0002_stuck="INSERT INTO apple VALUES (2); SELECT pg_sleep(3600)")
    with _migrating(settings, folder) as stuck:
        try:
            while True:
                cursor = await outside.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'PgSleep'",
                    (f"{settings.prefix}fruit/solo",),
                )
                if await cursor.fetchone() == (1,):
                    break
                assert stuck.poll() is None
                await asyncio.sleep(0.05)
        finally:
            stuck.send_signal(signal.SIGKILL)
    await migrate(settings, "fruit", _write(tmp_path, _0002_stuck="INSERT INTO apple VALUES (2)"))
    assert await (await outside.execute("SELECT count(*) FROM apple")).fetchone() == (2,)


def _migrating(settings: Settings, folder: Path) -> subprocess.Popen[bytes]:
    program = (
        "import asyncio, pathlib; from infrastructure.storage.postgres import migrate;"
        "from infrastructure.process.settings import Settings;"
        f"asyncio.run(migrate(Settings(), 'fruit', pathlib.Path({str(folder)!r})))"
    )
    environment = {"HOLDFAST_POSTGRES_URL": settings.postgres_url, "HOLDFAST_PREFIX": settings.prefix}
    return subprocess.Popen([sys.executable, "-c", program], env=environment)


async def test_waiting_for_postgres_has_an_end(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"postgres_url": "postgresql://nobody@127.0.0.1:1/nothing"})
    with pytest.raises(psycopg.OperationalError):
        await postgres.connect_when_available(nowhere, "fruit", patience=0.5)


@pytest.mark.parametrize(
    ("names", "told"),
    [(["1_a"], "expected a name like"), (["0001_a", "0001_b"], "0001_a.sql has the number 0001 already")],
)
async def test_a_folder_must_be_in_order(names: list[str], told: str, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        await migrate(settings, "fruit", _write(tmp_path, **dict.fromkeys((f"_{name}" for name in names), "SELECT 1")))


async def test_a_connection_sees_its_schema_alone(settings: Settings, outside: Connection, tmp_path: Path) -> None:
    await migrate(settings, "fruit", _write(tmp_path, _0001_apples=FIRST))
    async with await connect(settings, "tree", options="-c statement_timeout=7s") as other:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await other.execute("SELECT FROM apple")
        assert await (await other.execute("SHOW statement_timeout")).fetchone() == ("7s",)


def test_queries_are_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "queries.sql"
    file.write_text("-- A page.\n-- name: one\n-- why\nSELECT 1;\n\n-- name: two\nSELECT 2\n")
    assert load_queries(file) == {"one": "-- why\nSELECT 1", "two": "SELECT 2"}
    file.write_text("-- name: one\nSELECT 1\n-- name: one\nSELECT 2\n")
    with pytest.raises(ValueError, match="more than once: one"):
        load_queries(file)
