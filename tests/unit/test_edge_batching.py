"""Batches: what waits goes in one call, a key at most once in each, and a call that hangs or fails holds nobody up."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from rest_api.read_models import batching
from rest_api.read_models.batching import Batcher, BatchStalledError

Item = tuple[str, int]


class Server:
    """Executes calls one at a time, each when the test lets it."""

    def __init__(self) -> None:
        self.calls: list[list[Item]] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.late: list[Item] = []
        self.batcher: Batcher[Item, int] = Batcher(self.execute, key=lambda item: item[0], on_late=self.on_late)

    async def execute(self, items: Sequence[Item]) -> list[int]:
        self.calls.append(list(items))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return [number * 10 for _, number in items]

    def on_late(self, items: Sequence[Item], results: Sequence[int]) -> None:
        assert len(items) == len(results)
        self.late += items

    def submit(self, *items: Item) -> list["asyncio.Task[int]"]:
        return [asyncio.create_task(self.batcher.submit(item)) for item in items]

    async def called(self, times: int) -> None:
        async with asyncio.timeout(20):
            while len(self.calls) < times:
                await asyncio.sleep(0)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def results(tasks: list["asyncio.Task[int]"]) -> list[Any]:
    async with asyncio.timeout(20):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_all_that_wait_while_a_call_is_under_way_are_the_next_one() -> None:
    server = Server()
    first = server.submit(("b", 1), ("a", 2))
    await server.called(1)
    second = server.submit(*((f"k{9 - number}", number) for number in range(10)))
    await settle()
    assert server.calls == [[("a", 2), ("b", 1)]], "one call at a time, sorted by key"
    server.go.set()
    assert await results(first) == [10, 20]
    assert await results(second) == [10 * number for number in range(10)]
    assert server.calls[1:] == [[(f"k{number}", 9 - number) for number in range(10)]]


async def test_a_key_is_once_in_a_batch_and_no_batch_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_BATCH", 2)
    server = Server()
    server.go.set()
    assert await results(server.submit(("a", 1), ("a", 2), ("b", 3), ("c", 4), ("a", 5))) == [10, 20, 30, 40, 50]
    assert server.calls == [[("a", 1), ("b", 3)], [("a", 2), ("c", 4)], [("a", 5)]]


async def test_a_call_that_fails_fails_what_waits_behind_it_and_the_next_may_succeed() -> None:
    server = Server()
    server.error = ValueError("no")
    first = server.submit(("a", 1))
    await server.called(1)
    behind = server.submit(("b", 2))
    await settle()
    server.go.set()
    assert await results([*first, *behind]) == [server.error, server.error]
    server.error = None
    assert await results(server.submit(("a", 1))) == [10]
    assert len(server.calls) == 2


async def test_after_a_failure_one_batch_at_a_time_tests_if_calls_succeed_again() -> None:
    server = Server()
    server.error = ValueError("no")
    server.go.set()
    await results(server.submit(("a", 1)))
    server.go.clear()
    server.error = None
    [probe] = server.submit(("a", 1))
    await server.called(2)
    [refused] = await results(server.submit(("b", 2)))
    assert isinstance(refused, BatchStalledError), "at once, although no call has taken long"
    assert not probe.done()
    server.go.set()
    assert await results([probe]) == [10]
    assert await results(server.submit(("b", 2))) == [20]


async def test_while_a_call_hangs_new_items_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "STALL_SECONDS", -1.0)
    server = Server()
    [hanging] = server.submit(("a", 1))
    await server.called(1)
    [refused] = await results(server.submit(("b", 2)))
    assert isinstance(refused, BatchStalledError)
    server.go.set()
    assert await results([hanging]) == [10]


async def test_a_call_that_returns_too_late_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "TIMEOUT_SECONDS", 0.01)
    server = Server()
    failed = await results(server.submit(("a", 1), ("b", 2)))
    assert [type(each) for each in failed] == [BatchStalledError] * 2
    assert server.late == []
    monkeypatch.setattr(batching, "TIMEOUT_SECONDS", 20.0)
    server.go.set()
    assert await results(server.submit(("c", 3))) == [30]
    assert server.late == [("a", 1), ("b", 2)]


async def test_an_item_whose_request_is_cancelled_is_not_executed() -> None:
    server = Server()
    server.submit(("a", 1))
    await server.called(1)
    cancelled, other = server.submit(("b", 2), ("c", 3))
    await settle()
    cancelled.cancel()
    server.go.set()
    assert await results([other]) == [30]
    assert server.calls == [[("a", 1)], [("c", 3)]]


async def test_closing_ends_everything() -> None:
    server = Server()
    tasks = server.submit(("a", 1))
    await server.called(1)
    tasks += server.submit(("b", 2))
    await settle()
    await server.batcher.close()
    assert [type(each) for each in await results(tasks)] == [BatchStalledError] * 2
