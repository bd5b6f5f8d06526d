"""Job queue in a table: a worker leases rows that are due and passes each to a handler, however slow that is.

A Kafka handler must not wait for a provider that takes ten seconds: its partition would wait for one order. So the
handler stores a row and returns, and a job queue does the rest. Any number of replicas can work on one table.

Besides its own columns, the table has three columns for each job (here the job `due`):

    due_at       timestamptz                   -- when the next attempt is due; null: nothing to do
    due_lease    timestamptz                   -- the row is leased until then
    due_attempts integer NOT NULL DEFAULT 0    -- attempts begun since the last progress

    CREATE INDEX … ON the_table (due_at) WHERE due_at IS NOT NULL

To add work, insert a row with `due_at = now()`. To repeat work, set `due_at` to `now()` at any time: if the row is
leased, it is due again after the attempt in hand. Call `JobWorker.wake` after the commit to avoid a wait for the next
poll. Work is done at least once: a process may crash after the effect and before the row says so.

    async def deliver(row: Row, attempt: int) -> JobResult:
        if attempt > 8:
            return Done({"state": "failed"})     # the handler decides when to give up
        await send(row["body"])                  # an exception or a timeout: retried after a pause
        return Done({"state": "sent"})           # columns are set in the statement that ends the lease

    notices = JobWorker(PostgresJobRows(connect, Job("notice", key="notice_id")), deliver)
    worker.add_background_loop("notices", notices.run)
    worker.add_closer(notices.close)

The connections of `connect` need the server settings `JOB_QUEUE_OPTIONS`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from infrastructure.observability import metrics
from infrastructure.storage.postgres import TRANSIENT_ERRORS, Connection

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
"""Seconds between two polls without a `wake`: how late rows of another replica, or older ones, are found."""
DRAIN_SECONDS: Final = 5.0
"""Time that attempts in hand have to finish when the process stops. Another process repeats the rest."""
LEASE_MARGIN_SECONDS: Final = 5.0
"""Time to write the result: a lease is longer than the deadline by this, but at most twice as long."""
JOB_QUEUE_OPTIONS: Final = "-c statement_timeout=5s -c lock_timeout=2s -c enable_seqscan=off -c jit=off"
"""Server settings of a job queue's connection."""
UNREADABLE_PAUSE: Final = timedelta(hours=1)
"""Time after which a row that cannot be read is tried again: a new version may be able to."""
NOW: Final = sql.SQL("now()")
"""Value for a column: Postgres' clock when the lease ends."""

Row = Mapping[str, Any]
"""A row, by column names, as it was when the lease was taken."""


@dataclass(frozen=True, slots=True)
class Done:
    """Result: the row is not due any more. `columns` are set."""

    columns: Row = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reschedule:
    """Result: progress was made, and the row is due again after `after`. `columns` are set."""

    after: timedelta
    columns: Row = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retry:
    """Result: no progress. The row is retried after a pause, and `attempt` goes on counting. `columns` are set."""

    columns: Row = field(default_factory=dict)


class _Interrupted(Retry):
    """Result: the process stops, and another may lease the row at once."""


_RESULTS: Final[Mapping[type, str]] = {Done: "done", Reschedule: "again", Retry: "failed", _Interrupted: "_givenup"}
"""Values of the label `result` in `holdfast_pumped_total`."""

JobResult = Done | Reschedule | Retry
JobHandler = Callable[[Row, int], Awaitable[JobResult]]
"""Handles one row. `attempt` counts from 1 since the last progress, and includes attempts of crashed processes."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job on a table: `key` is the only column of the primary key, `name` the prefix of the job's columns."""

    table: str
    key: str
    name: str = "due"


@dataclass(frozen=True, slots=True)
class LeasedRow:
    """A row that is leased until `until`. `due` is the time that made it due."""

    row: Row
    key: Any
    attempt: int
    due: datetime
    until: datetime


class JobRows(Protocol):
    """Storage of a job queue's rows."""

    async def lease(self, limit: int, lease: timedelta) -> Sequence[LeasedRow]:
        """Lease at most `limit` rows that are due and not leased, the oldest first."""
        ...

    async def finish(self, leased: LeasedRow, after: timedelta | None, *, attempts: int, columns: Row) -> bool:
        """End a lease and set `columns`; the row is due again after `after`, or not any more if that is `None`.

        Return false, and change nothing, if the lease had expired. If the due time was changed meanwhile, it is kept.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class PostgresJobRows:
    """Rows of a Postgres table.

    `connect` returns a connection with `JOB_QUEUE_OPTIONS`; it is called again if that connection is lost.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], job: Job) -> None:
        self.connect = connect
        self.job = job
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        columns = {name: sql.Identifier(f"{job.name}_{name}") for name in ("at", "lease", "attempts")}
        self._names = {"table": sql.Identifier(job.table), "key": sql.Identifier(job.key), **columns}
        self._take = sql.SQL(
            "WITH due AS MATERIALIZED ("
            "  SELECT {key} FROM {table} WHERE {at} <= now() AND ({lease} IS NULL OR {lease} <= now())"
            "   ORDER BY {at} LIMIT %(limit)s FOR UPDATE SKIP LOCKED)"
            " UPDATE {table} AS t SET {lease} = now() + %(lease)s, {attempts} = t.{attempts} + 1"
            "  FROM due WHERE t.{key} = due.{key} RETURNING t.*"
        ).format(**self._names)

    async def lease(self, limit: int, lease: timedelta) -> Sequence[LeasedRow]:
        """Lease rows, as in `JobRows`."""
        name = self.job.name
        async with (await self._open_connection()).cursor(row_factory=dict_row) as cursor:
            await cursor.execute(self._take, {"limit": limit, "lease": lease})
            leased = []
            for number in range(cursor.rowcount):
                try:
                    row = await cursor.fetchone()
                except (psycopg.DataError, ValueError) as error:  # a value that an older version could store
                    await cursor.scroll(1)
                    await self._put_aside(cursor.pgresult, number, error)
                    continue
                if row is not None:
                    times = row[f"{name}_at"], row[f"{name}_lease"]
                    leased.append(LeasedRow(row, row[self.job.key], row[f"{name}_attempts"], *times))
            return leased

    async def _put_aside(self, result: Any, number: int, error: Exception) -> None:
        """Postpone a row that cannot be read for `UNREADABLE_PAUSE`, so that it takes no place of a readable one."""
        key = (result.get_value(number, result.fnumber(self.job.key.encode())) or b"").decode(errors="replace")
        log.error("%s %s cannot be read and waits for an hour: %s", self.job.table, key, error)
        statement = sql.SQL("UPDATE {table} SET {lease} = NULL, {at} = now() + {pause} WHERE {key} = {of}").format(
            pause=UNREADABLE_PAUSE, of=key, **self._names
        )
        await (await self._open_connection()).execute(statement)

    async def finish(self, leased: LeasedRow, after: timedelta | None, *, attempts: int, columns: Row) -> bool:
        """End a lease, as in `JobRows`."""
        changes = [
            sql.SQL("{lease} = NULL, {attempts} = {begun}").format(begun=attempts, **self._names),
            sql.SQL("{at} = CASE WHEN {at} = {due} THEN now() + {after}::interval ELSE {at} END").format(
                due=leased.due, after=after, **self._names
            ),
            *(sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in columns.items()),
        ]
        statement = sql.SQL("UPDATE {table} SET {changes} WHERE {key} = {of} AND {lease} = {until}").format(
            changes=sql.SQL(", ").join(changes), of=leased.key, until=leased.until, **self._names
        )
        return bool((await (await self._open_connection()).execute(statement)).rowcount)

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open_connection(self) -> Connection:
        """Return the one connection of all attempts. They send single statements, which psycopg queues."""
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await self.connect()
            return self._connection


class JobWorker:
    """Worker of a job queue: passes due rows to `handle`, `concurrency` at a time, each for up to `deadline` seconds.

    An attempt that returns `Retry`, raises or takes too long is retried after a pause with jitter, which doubles from
    the first of `pauses` to the second. `capacity` returns how many attempts may run at this moment, for example those
    that a circuit breaker admits. `on_finished` is called after each result that was written.
    """

    def __init__(  # noqa: PLR0913 - each has a default that is right for most
        self,
        rows: JobRows,
        handle: JobHandler,
        *,
        name: str = "pump",
        concurrency: int = 8,
        deadline: float = 10.0,
        pauses: tuple[float, float] = (0.5, 60.0),
        capacity: Callable[[], int] | None = None,
        on_finished: Callable[[], None] | None = None,
    ) -> None:
        self.rows = rows
        self.handle = handle
        self.name = name
        self.concurrency = concurrency
        self.deadline = deadline
        self.pauses = pauses
        self.capacity = capacity
        self.on_finished = on_finished
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._has_more = False

    def wake(self) -> None:
        """Poll now, because rows were added or there is capacity again."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled, then finish the attempts in hand. Raises if rows are unreachable: run it again then."""
        try:
            while True:
                self._woken.clear()
                await self._lease_due_rows()
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._woken.wait()
        except asyncio.CancelledError:
            await self._drain()
            raise

    async def close(self) -> None:
        """Finish the attempts in hand, and close the connections."""
        await self._drain()
        await self.rows.close()

    async def _lease_due_rows(self) -> None:
        allowed = self.concurrency if self.capacity is None else min(self.concurrency, self.capacity())
        free = allowed - len(self._tasks)
        if free <= 0:
            return
        lease = self.deadline + min(self.deadline, LEASE_MARGIN_SECONDS)
        lease_end = time.monotonic() + lease
        leased_rows = await self.rows.lease(free, timedelta(seconds=lease))
        self._has_more = len(leased_rows) == free
        for leased in leased_rows:
            task = asyncio.create_task(self._attempt(leased, lease_end))
            self._tasks.add(task)
            task.add_done_callback(self._on_done)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if self._has_more:  # there was no capacity for all due rows: now there is
            self.wake()

    async def _drain(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _attempt(self, leased: LeasedRow, lease_end: float) -> None:
        with metrics.JOB_SECONDS.labels(self.name).time():
            result = await self._handle(leased)
        written = await self._finish(leased, result, lease_end)
        metrics.JOB_ATTEMPTS.labels(self.name, _RESULTS[type(result)] if written else "lost").inc()
        if written and self.on_finished is not None:
            self.on_finished()
        if isinstance(result, Reschedule) and not result.after:
            self.wake()

    async def _handle(self, leased: LeasedRow) -> JobResult:
        try:
            async with asyncio.timeout(self.deadline):
                return await self.handle(leased.row, leased.attempt)
        except asyncio.CancelledError:
            return _Interrupted()
        except Exception as error:  # noqa: BLE001 - whatever failed, the row stays due and the others go on
            reason = f"{type(error).__name__}: {error}"
            log.warning("%s: attempt %d at %s failed: %s", self.name, leased.attempt, leased.key, reason)
            return Retry()

    async def _finish(self, leased: LeasedRow, result: JobResult, lease_end: float) -> bool:
        """Write the result, and retry until the lease expires: the database may be away for a moment."""
        match result:
            case Done():
                after, attempts = None, 0
            case Reschedule(after=after):
                attempts = 0
            case _Interrupted():
                after, attempts = timedelta(0), leased.attempt
            case Retry():
                after, attempts = self._retry_pause(leased.attempt), leased.attempt
        while time.monotonic() < lease_end:
            try:
                if await self.rows.finish(leased, after, attempts=attempts, columns=result.columns):
                    return True
                break
            except TRANSIENT_ERRORS as error:
                log.warning("%s: the result of %s is not written yet: %s", self.name, leased.key, error)
                await asyncio.sleep(0.2)
            except Exception as error:  # noqa: BLE001 - the row must not be repeated at the end of each lease
                log.error("%s: the result of %s cannot be written: %s", self.name, leased.key, error)  # noqa: TRY400
                if isinstance(result, Retry) and not result.columns:
                    break
                return await self._finish(leased, Retry(), lease_end)
        log.warning("%s: the lease of %s expired; its attempt is repeated", self.name, leased.key)
        return False

    def _retry_pause(self, attempt: int) -> timedelta:
        first, longest = self.pauses
        pause = min(first * 2 ** min(attempt - 1, 30), longest)
        return timedelta(seconds=random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
