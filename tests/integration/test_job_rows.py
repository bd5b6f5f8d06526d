"""One suite for rows in Postgres and rows in memory, and what only the real ones show: many workers, one winner."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from functools import partial

import pytest

from infrastructure.process.settings import Settings
from infrastructure.storage import job_queue, postgres
from infrastructure.storage.job_queue import (
    NOW,
    Done,
    Job,
    JobResult,
    JobRows,
    JobWorker,
    LeasedRow,
    PostgresJobRows,
    Row,
)
from infrastructure.storage.postgres import Connection
from tests.testkit.memory_rows import MemoryRows

TABLE = """
CREATE TABLE work (key text PRIMARY KEY, state text, done_at timestamptz, by text,
  do_at timestamptz, do_lease timestamptz, do_attempts int NOT NULL DEFAULT 0)
"""
MINUTE = timedelta(minutes=1)


class Place:
    """Rows to be worked off, with words to plant and to look."""

    def __init__(self, rows: JobRows, connection: Connection | None) -> None:
        self.rows = rows
        self.connection = connection

    async def add(self, *keys: str) -> None:
        if isinstance(self.rows, MemoryRows):
            self.rows.add(*keys)
            return
        for number, key in enumerate(keys):
            await self.run(f"INSERT INTO work (key, do_at) VALUES ('{key}', now() - interval '{60 - number} s')")

    async def knock(self, key: str) -> None:
        if isinstance(self.rows, MemoryRows):
            self.rows.knock(key)
        else:
            await self.run(f"UPDATE work SET do_at = now() WHERE key = '{key}'")

    async def state(self, key: str) -> str | None:
        if isinstance(self.rows, MemoryRows):
            return self.rows.rows[key].columns.get("state")
        assert self.connection is not None
        cursor = await self.connection.execute("SELECT state FROM work WHERE key = %s", (key,))
        [(state,)] = await cursor.fetchall()
        return None if state is None else str(state)

    async def run(self, statement: str) -> None:
        assert self.connection is not None
        await self.connection.execute(statement.encode())

    async def take(self, limit: int = 10, lease: timedelta = MINUTE) -> list[LeasedRow]:
        return [*await self.rows.lease(limit, lease)]


def postgres_rows(settings: Settings) -> PostgresJobRows:
    connect = partial(postgres.connect, settings, "work", options=job_queue.JOB_QUEUE_OPTIONS)
    return PostgresJobRows(connect, Job("work", key="key", name="do"))


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    schema = settings.schema_name("work")
    async with await postgres.connect(settings, "work") as connection:
        await connection.execute(f'CREATE SCHEMA "{schema}"'.encode())
        await connection.execute(TABLE)
        yield connection
        await connection.execute(f'DROP SCHEMA "{schema}" CASCADE'.encode())


@pytest.fixture(params=["memory", "postgres"])
async def place(request: pytest.FixtureRequest, settings: Settings, connection: Connection) -> AsyncIterator[Place]:
    rows: JobRows = MemoryRows() if request.param == "memory" else postgres_rows(settings)
    yield Place(rows, connection)
    await rows.close()


async def test_due_rows_are_leased_once_the_longest_due_first(place: Place) -> None:
    await place.add("a", "b", "c")
    first = await place.take(2)
    assert sorted(leased.key for leased in first) == ["a", "b"]
    assert {leased.attempt for leased in first} == {1}
    assert [leased.key for leased in await place.take()] == ["c"]
    assert await place.take() == []


async def test_a_lease_that_has_run_out_is_given_to_another_and_the_attempt_counts(place: Place) -> None:
    await place.add("a")
    [first] = await place.take(lease=timedelta(0))
    [second] = await place.take()
    assert (first.attempt, second.attempt) == (1, 2)
    assert not await place.rows.finish(first, None, attempts=0, columns={"state": "first"})
    assert await place.rows.finish(second, None, attempts=0, columns={"state": "second", "done_at": NOW})
    assert await place.state("a") == "second"
    assert not await place.rows.finish(second, None, attempts=0, columns={"state": "again"}), "it has ended"


async def test_a_row_is_due_again_after_its_pause_and_keeps_its_attempts(place: Place) -> None:
    await place.add("a", "b")
    leased = {each.key: each for each in await place.take()}
    assert await place.rows.finish(leased["a"], timedelta(0), attempts=1, columns={})
    assert await place.rows.finish(leased["b"], MINUTE, attempts=0, columns={})
    [again] = await place.take()
    assert (again.key, again.attempt) == ("a", 2)


async def test_a_time_that_was_set_meanwhile_stands(place: Place) -> None:
    await place.add("a")
    [leased] = await place.take()
    await place.knock("a")
    assert await place.take() == [], "it is leased"
    assert await place.rows.finish(leased, None, attempts=0, columns={"state": "done"})
    [again] = await place.take()
    assert (again.attempt, again.row["state"]) == (1, "done")


async def test_many_pumps_do_each_row_once(settings: Settings, connection: Connection) -> None:
    keys = [f"row-{number}" for number in range(300)]
    done: list[tuple[str, int]] = []

    def worker(number: int) -> JobWorker:
        async def handle(row: Row, attempt: int) -> JobResult:
            assert attempt == 1
            await asyncio.sleep(0)
            done.append((row["key"], number))
            return Done({"by": str(number)})

        return JobWorker(postgres_rows(settings), handle, concurrency=5)

    workers = [worker(number) for number in range(4)]
    running = [asyncio.create_task(each.run()) for each in workers]
    async with connection.cursor() as cursor:
        await cursor.executemany("INSERT INTO work (key, do_at) VALUES (%s, now())", [(key,) for key in keys])
    for each in workers:
        each.wake()
    async with asyncio.timeout(30):
        while len(done) < len(keys):
            await asyncio.sleep(0.01)
    for task in running:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    for each in workers:
        await each.close()
    assert sorted(key for key, _ in done) == sorted(keys)
    assert len({number for _, number in done}) > 1, "they shared the work"
    cursor_of_rest = await connection.execute("SELECT count(*) FROM work WHERE do_at IS NOT NULL OR by IS NULL")
    assert await cursor_of_rest.fetchone() == (0,)


async def test_a_connection_that_is_cut_is_made_again(settings: Settings, connection: Connection) -> None:
    rows = postgres_rows(settings)
    place = Place(rows, connection)
    await place.add("a")
    [leased] = await place.take()
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = %s AND pid <> pg_backend_pid()",
        (f"{settings.prefix}work/{settings.replica}",),
    )
    with pytest.raises(postgres.TRANSIENT_ERRORS):
        await rows.finish(leased, None, attempts=0, columns={"state": "done"})
    assert await rows.finish(leased, None, attempts=0, columns={"state": "done"})
    assert await place.state("a") == "done"
    await rows.close()
