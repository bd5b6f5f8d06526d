"""Works off the rows of a table that are due, some at a time, however slow the world is that they wait for.

A Kafka handler must not wait for a provider that takes ten seconds: a partition would stand still for one order. So the
handler stores a row and leaves, and a pump does the rest. Any number of replicas pump one table side by side.

A table has, beside its own columns, three for each job that a pump does on it (here the job `due`):

    due_at       timestamptz                   -- when there is something to do; null: nothing
    due_lease    timestamptz                   -- a pump is at it until then
    due_attempts integer NOT NULL DEFAULT 0    -- begun since something last came of it

    CREATE INDEX … ON the_table (due_at) WHERE due_at IS NOT NULL

To add work, insert a row with `due_at = now()`; to have a row looked at again, set its `due_at` to `now()` at any time,
also while it is leased: then it is looked at once more after the attempt in hand. `Pump.wake` after the commit spares
the wait for the next look. Work is done at least once: a process may die after the effect and before the row says so.

    async def deliver(row: Row, attempt: int) -> Verdict:
        if attempt > 8:
            return Done({"state": "failed"})     # giving up is the handler's to decide
        await send(row["body"])                  # whatever it raises, or taking too long: again after a pause
        return Done({"state": "sent"})           # columns are set in the statement that ends the lease

    pump = Pump(PostgresRows(connect, Job("notice", key="notice_id")), deliver)  # connect with `OPTIONS`
    worker.background("pump", pump.run)
    worker.closing(pump.close)
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

from psycopg import sql
from psycopg.rows import dict_row

from infrastructure import metrics
from infrastructure.postgres import LOST, Connection

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 0.5
"""Seconds between two looks when nobody wakes the pump: a row of another replica, or of the past, is found by then."""
DRAIN_SECONDS: Final = 5.0
"""How long attempts in hand may go on once the process stops; what is not done then, another does."""
MARGIN_SECONDS: Final = 5.0
"""A lease is at most this much longer than an attempt may take, and at most twice as long: its end is to be written."""
OPTIONS: Final = "-c statement_timeout=5s -c lock_timeout=2s -c enable_seqscan=off -c jit=off"
"""Server settings for a pump's connection."""
NOW: Final = sql.SQL("now()")
"""As the value of a column: Postgres' clock, as it is when the lease ends."""

Row = Mapping[str, Any]
"""A row as it was when the lease was taken, by column names."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left to do for now; `columns` are set."""

    columns: Row = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Again:
    """Something came of it, and there is more to do `after` that time."""

    after: timedelta
    columns: Row = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing came of it: again after the pump's pause, and `attempt` goes on counting."""

    columns: Row = field(default_factory=dict)


class _GivenUp(Failed):
    """The process stops in the middle of it: another may have it at once."""


Verdict = Done | Again | Failed
Handle = Callable[[Row, int], Awaitable[Verdict]]
"""Acts on one row. `attempt` is 1 the first time since something came of it, and counts what a dead process began."""


@dataclass(frozen=True, slots=True)
class Job:
    """Which rows: `key` is the table's primary key, one column; `name` is what the job's own columns begin with."""

    table: str
    key: str
    name: str = "due"


@dataclass(frozen=True, slots=True)
class Leased:
    """A row that is this pump's until `until`; `due` is what made it due."""

    row: Row
    key: Any
    attempt: int
    due: datetime
    until: datetime


class Rows(Protocol):
    """Where the rows are."""

    async def take(self, limit: int, lease: timedelta) -> Sequence[Leased]:
        """Lease at most `limit` rows that are due and not leased, the longest due first."""
        ...

    async def finish(self, leased: Leased, after: timedelta | None, *, attempts: int, columns: Row) -> bool:
        """End a lease: due again `after` that time, or not; false when it had run out, and then nothing is changed.

        A time that somebody has set meanwhile stands.
        """
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


class PostgresRows:
    """Rows of a table. `connect` gives a connection with `OPTIONS`; when that is lost, another is asked for."""

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

    async def take(self, limit: int, lease: timedelta) -> Sequence[Leased]:
        """Lease at most `limit` rows."""
        name = self.job.name
        async with (await self._connected()).cursor(row_factory=dict_row) as cursor:
            await cursor.execute(self._take, {"limit": limit, "lease": lease})
            return [
                Leased(row, row[self.job.key], row[f"{name}_attempts"], row[f"{name}_at"], row[f"{name}_lease"])
                for row in await cursor.fetchall()
            ]

    async def finish(self, leased: Leased, after: timedelta | None, *, attempts: int, columns: Row) -> bool:
        """End a lease."""
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
        return bool((await (await self._connected()).execute(statement)).rowcount)

    async def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connected(self) -> Connection:
        """One connection for all attempts: each has only single statements to say, and psycopg queues them."""
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await self.connect()
            return self._connection


class Pump:
    """Gives rows that are due to `handle`, at most `concurrency` at a time, each for at most `deadline` seconds.

    An attempt that fails, raises or takes too long is made again after a pause with jitter that doubles from the first
    of `pauses` to the second. `room`, when given, says how many may be in hand at this moment: a circuit breaker's say.
    `then` is called after each end that is written.
    """

    def __init__(  # noqa: PLR0913 - each has a default that is right for most
        self,
        rows: Rows,
        handle: Handle,
        *,
        name: str = "pump",
        concurrency: int = 8,
        deadline: float = 10.0,
        pauses: tuple[float, float] = (0.5, 60.0),
        room: Callable[[], int] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.rows = rows
        self.handle = handle
        self.name = name
        self.concurrency = concurrency
        self.deadline = deadline
        self.pauses = pauses
        self.room = room
        self.then = then
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._more = False

    def wake(self) -> None:
        """Look now: rows were added, or there is room again."""
        self._woken.set()

    async def run(self) -> None:
        """Pump until cancelled, then drain; raises when the rows can't be reached, and may be run again."""
        try:
            while True:
                self._woken.clear()
                await self._fill()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._woken.wait()
        except asyncio.CancelledError:
            await self._drain()
            raise

    async def close(self) -> None:
        """Drain, and give connections back."""
        await self._drain()
        await self.rows.close()

    async def _fill(self) -> None:
        allowed = self.concurrency if self.room is None else min(self.concurrency, self.room())
        free = allowed - len(self._tasks)
        if free <= 0:
            return
        lease = self.deadline + min(self.deadline, MARGIN_SECONDS)
        ends = time.monotonic() + lease
        taken = await self.rows.take(free, timedelta(seconds=lease))
        self._more = len(taken) == free
        for leased in taken:
            task = asyncio.create_task(self._attempt(leased, ends))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if self._more:  # there was no room for all: now there is
            self.wake()

    async def _drain(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _attempt(self, leased: Leased, ends: float) -> None:
        with metrics.PUMP_SECONDS.labels(self.name).time():
            verdict = await self._verdict(leased)
        written = await self._finish(leased, verdict, ends)
        metrics.PUMPED.labels(self.name, type(verdict).__name__.lower() if written else "lost").inc()
        if written and self.then is not None:
            self.then()
        if isinstance(verdict, Again) and not verdict.after:
            self.wake()

    async def _verdict(self, leased: Leased) -> Verdict:
        try:
            async with asyncio.timeout(self.deadline):
                return await self.handle(leased.row, leased.attempt)
        except asyncio.CancelledError:
            return _GivenUp()
        except Exception as error:  # noqa: BLE001 - whatever it is, the row stays and the others go on
            told = f"{type(error).__name__}: {error}"
            log.warning("%s: attempt %d at %s failed: %s", self.name, leased.attempt, leased.key, told)
            return Failed()

    async def _finish(self, leased: Leased, verdict: Verdict, ends: float) -> bool:
        """Write what came of it, for as long as the lease lasts: the database may be away for a moment."""
        match verdict:
            case Done():
                after, attempts = None, 0
            case Again(after=after):
                attempts = 0
            case _GivenUp():
                after, attempts = timedelta(0), leased.attempt
            case Failed():
                after, attempts = self._pause(leased.attempt), leased.attempt
        while time.monotonic() < ends:
            try:
                if await self.rows.finish(leased, after, attempts=attempts, columns=verdict.columns):
                    return True
                break
            except LOST as error:
                log.warning("%s: what came of %s is not written yet: %s", self.name, leased.key, error)
                await asyncio.sleep(0.2)
        log.warning("%s: the lease of %s ran out; what came of it is found out again", self.name, leased.key)
        return False

    def _pause(self, attempt: int) -> timedelta:
        first, longest = self.pauses
        pause = min(first * 2 ** min(attempt - 1, 30), longest)
        return timedelta(seconds=random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
