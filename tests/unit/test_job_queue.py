"""The job queue over rows in memory: leases, concurrency, retries and draining."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest

from infrastructure.storage import job_queue as pumps
from infrastructure.storage.job_queue import Done, JobHandler, JobResult, JobWorker, Reschedule, Retry, Row
from tests.testkit.memory_rows import MemoryRows


@asynccontextmanager
async def running_worker(rows: MemoryRows, handle: JobHandler, **more: object) -> AsyncIterator[JobWorker]:
    worker = JobWorker(rows, handle, **{"pauses": (0.01, 0.02), **more})  # type: ignore[arg-type]
    running = asyncio.create_task(_again_and_again(worker.run))
    try:
        yield worker
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await worker.close()


async def _again_and_again(run: Callable[[], Awaitable[None]]) -> None:
    """Run the job queue as a service runs its background loops."""
    while True:
        with suppress(TimeoutError):
            await run()
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_due_rows_are_handled_once_the_oldest_first() -> None:
    rows, done = MemoryRows(), list[str]()
    rows.add("a", "b", "c", "d")

    async def handle(row: Row, attempt: int) -> JobResult:
        assert attempt == 1
        done.append(row["key"])
        return Done({"state": "done"})

    async with running_worker(rows, handle, concurrency=2):
        await until(lambda: all(row.at is None and row.lease is None for row in rows.rows.values()))
    assert done == ["a", "b", "c", "d"]
    assert {row.columns["state"] for row in rows.rows.values()} == {"done"}


async def test_concurrency_is_bounded_and_a_slow_row_delays_no_other() -> None:
    rows, in_hand, most, slow = MemoryRows(), 0, 0, asyncio.Event()
    rows.add("slow", *map(str, range(20)))

    async def handle(row: Row, _: int) -> JobResult:
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        await (slow.wait() if row["key"] == "slow" else asyncio.sleep(0))
        in_hand -= 1
        return Done()

    async with running_worker(rows, handle, concurrency=3):
        await until(lambda: sum(row.at is not None for row in rows.rows.values()) == 1)
        assert rows.rows["slow"].at is not None
        slow.set()
        await until(lambda: rows.rows["slow"].at is None)
    assert most == 3


async def test_a_wake_leases_a_new_row_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "POLL_SECONDS", 60.0)
    rows, done = MemoryRows(), asyncio.Event()

    async def handle(row: Row, _: int) -> JobResult:
        done.set()
        return Done()

    async with running_worker(rows, handle) as worker:
        await until(lambda: rows.looks)
        rows.add("a")
        worker.wake()
        await asyncio.wait_for(done.wait(), 10)


@pytest.mark.parametrize("count", [1, 20])
async def test_further_due_rows_do_not_wait_for_the_next_poll(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "POLL_SECONDS", 60.0)
    rows, steps = MemoryRows(), dict[str, int]()
    rows.add(*map(str, range(count)))

    async def handle(row: Row, _: int) -> JobResult:
        steps[row["key"]] = steps.get(row["key"], 0) + 1
        return Done() if steps[row["key"]] == 3 else Reschedule(timedelta(0))

    async with running_worker(rows, handle, concurrency=2):
        await until(lambda: all(row.at is None for row in rows.rows.values()))
    assert set(steps.values()) == {3}


@pytest.mark.parametrize("how", ["raises", "says so", "takes too long"])
async def test_a_failed_row_is_retried_and_its_attempts_count_until_there_is_progress(how: str) -> None:
    rows, attempts = MemoryRows(), list[int]()
    rows.add("a")

    async def handle(_: Row, attempt: int) -> JobResult:
        attempts.append(attempt)
        if len(attempts) == 4:
            return Reschedule(timedelta(0), {"half": "done"})
        if len(attempts) == 5:
            return Done()
        if how == "raises":
            raise ValueError("not today")
        if how == "takes too long":
            await asyncio.sleep(60)
        return Retry()

    async with running_worker(rows, handle, deadline=0.02):
        await until(lambda: rows.rows["a"].at is None)
    assert attempts == [1, 2, 3, 4, 1]
    assert rows.rows["a"].columns == {"half": "done"}


async def test_pauses_double_up_to_a_bound() -> None:
    worker = JobWorker(MemoryRows(), _nothing, pauses=(1.0, 10.0))
    for attempt, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (5000, 10.0)):
        pauses = {worker._retry_pause(attempt).total_seconds() for _ in range(100)}
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


async def test_a_row_that_becomes_due_during_an_attempt_is_handled_once_more() -> None:
    rows, seen = MemoryRows(), list[str]()
    rows.add("a")

    async def handle(row: Row, _: int) -> JobResult:
        seen.append(row.get("wish", "charge"))
        if len(seen) == 1:
            rows.rows["a"].columns["wish"] = "void"
            rows.knock("a")
            await asyncio.sleep(0.01)
        return Done()

    async with running_worker(rows, handle):
        await until(lambda: rows.rows["a"].at is None)
    assert seen == ["charge", "void"]


async def test_the_owner_of_an_expired_lease_changes_nothing() -> None:
    rows, first, seen = MemoryRows(), asyncio.Event(), list[int]()
    rows.add("a")

    async def handle(_: Row, attempt: int) -> JobResult:
        seen.append(attempt)
        if attempt == 1:
            await first.wait()
            return Done({"by": "the first"})
        return Done({"by": "the second"})

    async with running_worker(rows, handle), running_worker(rows, handle):
        await until(lambda: seen)
        rows.rows["a"].lease = rows.now()  # as if time had passed
        await until(lambda: rows.rows["a"].at is None)
        first.set()
    assert (seen, rows.rows["a"].columns) == ([1, 2], {"by": "the second"})


async def test_rows_are_handled_after_an_outage_of_their_database() -> None:
    rows, calls = MemoryRows(), 0
    rows.add("a")

    async def handle(_: Row, __: int) -> JobResult:
        nonlocal calls
        calls += 1
        rows.lost = 2  # when the result is to be written
        return Done()

    rows.lost = 3
    async with running_worker(rows, handle, deadline=5.0):
        await until(lambda: rows.rows["a"].at is None)
    assert calls == 1, "what came of it was not forgotten"


async def test_no_more_rows_are_leased_than_the_capacity_admits() -> None:
    rows, capacity, in_hand = MemoryRows(), 0, set[str]()
    rows.add("a", "b", "c")
    go_on = asyncio.Event()

    async def handle(row: Row, _: int) -> JobResult:
        in_hand.add(row["key"])
        await go_on.wait()
        return Done()

    async with running_worker(rows, handle, capacity=lambda: capacity) as worker:
        for _ in range(3):
            worker.wake()
            await asyncio.sleep(0)
        assert (rows.looks, in_hand) == (0, set())
        capacity = 1
        worker.wake()
        await until(lambda: in_hand)
        worker.wake()
        await asyncio.sleep(0.01)
        assert in_hand == {"a"}
        capacity = 8
        go_on.set()
        worker.wake()
        await until(lambda: all(row.at is None for row in rows.rows.values()))


async def test_a_stopping_worker_leases_nothing_and_interrupts_slow_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pumps, "DRAIN_SECONDS", 0.05)
    rows, begun = MemoryRows(), list[str]()
    rows.add("quick", "endless")

    async def handle(row: Row, _: int) -> JobResult:
        begun.append(row["key"])
        await asyncio.sleep(0.01 if row["key"] == "quick" else 60)
        return Done()

    async with running_worker(rows, handle):
        await until(lambda: len(begun) == 2)
        rows.add("new")
    assert begun == ["quick", "endless"]
    assert rows.rows["quick"].at is None
    endless = rows.rows["endless"]
    assert (endless.lease, endless.attempts) == (None, 1)
    assert endless.at is not None
    assert endless.at <= rows.now(), "another may have it at once"
    assert rows.rows["new"].lease is None


async def _nothing(_: Row, __: int) -> JobResult:
    return Done()
