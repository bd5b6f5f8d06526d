"""Pipeline of prepared statements on a real server: rows, errors, much data in both directions, a lost connection."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import psycopg
import pytest

from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import Connection, connect
from infrastructure.storage.statement_pipeline import StatementPipeline, number_placeholders

QUERIES = {
    "begin": "BEGIN",
    "commit": "COMMIT",
    "create": "CREATE TEMPORARY TABLE apple (name text, number int CHECK (number > 0))",
    "insert": "INSERT INTO apple SELECT * FROM unnest(%s::text[], %s::int[])",
    "by_name": "SELECT name, number FROM apple WHERE name = ANY(%(names)s::text[]) ORDER BY name",
    "values": "SELECT %(text)s::text, %(number)s::int + 1, %(text)s::text, '2026-11-21 03:24:41+00'::timestamptz, NULL",
    "pid": "SELECT pg_backend_pid()",
    "swallow_and_return": "SELECT repeat(%(text)s::text, 2)",
}


@pytest.fixture
async def pipeline(settings: Settings) -> AsyncIterator[StatementPipeline]:
    """A pipeline on a connection of its own."""
    connection = await connect(settings, "fruit")
    pipeline = StatementPipeline(connection, {name: number_placeholders(query) for name, query in QUERIES.items()})
    yield pipeline
    await pipeline.close()


@pytest.fixture
async def outside(settings: Settings) -> AsyncIterator[Connection]:
    """Another connection to the same server."""
    async with await connect(settings, "fruit") as connection:
        yield connection


def test_a_name_has_one_number_and_each_nameless_placeholder_its_own() -> None:
    assert number_placeholders("a %(x)s b %(y)s c %(x)s") == ("a $1 b $2 c $1", ("x", "y"))
    assert number_placeholders("a %s b %s") == ("a $1 b $2", ())
    assert number_placeholders("BEGIN") == ("BEGIN", ())


async def test_each_statement_returns_its_rows(pipeline: StatementPipeline) -> None:
    for _ in range(2):  # the first time each statement is prepared, the second time it has been
        values, nothing = await pipeline.execute(
            [("values", {"text": 'a "b" \\ ü', "number": "4"}), ("begin", ())],
        )
        assert values == [('a "b" \\ ü', 5, 'a "b" \\ ü', datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC), None)]
        assert nothing == []
        await pipeline.execute([("commit", ())])


async def test_waiting_statements_are_executed_before_the_next_ones(pipeline: StatementPipeline) -> None:
    await pipeline.execute([("create", ())])
    pipeline.enqueue([("begin", ()), ("insert", ["{x,y}", "{1,2}"])])
    *_, rows, last = await pipeline.execute([("by_name", {"names": "{y,x,z}"}), ("commit", ())])
    assert (rows, last) == ([("x", 1), ("y", 2)], [])


async def test_an_error_is_raised_and_nothing_after_it_is_executed(
    pipeline: StatementPipeline, outside: Connection
) -> None:
    [[(pid,)]] = await pipeline.execute([("pid", ())])
    with pytest.raises(psycopg.errors.UndefinedTable):
        await pipeline.execute([("begin", ()), ("by_name", {"names": "{}"}), ("create", ()), ("commit", ())])
    await pipeline.close()
    cursor = await outside.execute("SELECT count(*) FROM pg_class WHERE relname = 'apple'")
    assert await cursor.fetchone() == (0,)
    while True:  # the server ends the session when it sees that its client has gone
        cursor = await outside.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,))
        if await cursor.fetchone() == (0,):
            break


async def test_more_data_than_the_sockets_hold_passes_in_both_directions(pipeline: StatementPipeline) -> None:
    text = "x" * 3_000_000
    results = await pipeline.execute([("swallow_and_return", {"text": text})] * 4)
    assert [len(row) for [(row,)] in results] == [2 * len(text)] * 4


async def test_a_lost_connection_is_an_operational_error(pipeline: StatementPipeline, outside: Connection) -> None:
    [[(pid,)]] = await pipeline.execute([("pid", ())])
    await outside.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with pytest.raises(psycopg.OperationalError):
        await pipeline.execute([("pid", ())])
