"""Executes items in batches: all that wait are one call, and the next batch is formed while a call is under way.

So the number of calls does not grow with the number of items: under load each call has more of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH: Final = 500
TIMEOUT_SECONDS: Final = 3.0
"""Time limit of a call. Its items fail after that, and so do the ones that wait behind it."""
STALL_SECONDS: Final = 1.0
"""An item that arrives while a call has been under way for longer fails at once."""
STEPS: Final = 30
"""A call is waited for in so many steps. A step takes at least one turn of the event loop, so long turns alone do not
make a call look as if it hung."""


class BatchStalledError(TimeoutError):
    """An item was not executed, or it is unknown if it was: a call does not return."""


class Batcher(Generic[Item, Result]):
    """The items that wait for one kind of call.

    Two items with the same key are never in one batch, so the second sees what the first has done. The items of a batch
    are sorted by key: calls of several processes that lock their items in this order cannot deadlock.

    No item waits for longer than two calls may take. After a failed call one batch at a time tests if calls succeed
    again, and further items fail at once in the meantime.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        key: Callable[[Item], Hashable],
        on_late: Callable[[Sequence[Item], Sequence[Result]], None] = lambda _items, _results: None,
    ) -> None:
        """`execute` returns one result for each item of a batch, in the same order.

        `on_late` receives the items and results of a call that returned after its items had failed.
        """
        self._execute = execute
        self._key = key
        self._on_late = on_late
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._waited: float | None = None
        """The seconds that the present call has been waited for; `None` if there is none."""
        self._has_failed = False
        """The last call failed, and none has succeeded since."""
        self._late: set[asyncio.Future[Any]] = set()
        """Calls that are still under way although their items have failed."""

    async def submit(self, item: Item) -> Result:
        """Execute one item in the next batch, and return its result.

        Raise what the call raises, or `BatchStalledError` if calls do not return.
        """
        loop = asyncio.get_running_loop()
        if self._waited is not None and (self._has_failed or self._waited > STALL_SECONDS):
            raise BatchStalledError("the call before this one does not return")
        done: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, done))
        if self._runner is None:
            # A task of its own: whatever else arrives in this turn of the loop joins the first batch.
            self._runner = loop.create_task(self._run())
        return await done

    async def close(self) -> None:
        """Cancel the calls under way; the items that wait fail."""
        tasks = [*self._late, *([self._runner] if self._runner else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(self._take_all(), BatchStalledError("closed"))

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._take_batch()
                try:
                    results = await self._call([item for item, _ in batch])
                except BaseException as error:
                    self._has_failed = True
                    cause = error if isinstance(error, Exception) else BatchStalledError("closed")
                    self._fail([*batch, *self._take_all()], cause)
                    if not isinstance(error, Exception):
                        raise
                else:
                    self._has_failed = False
                    for (_, done), result in zip(batch, results, strict=True):
                        if not done.done():
                            done.set_result(result)
        finally:
            self._runner = None

    async def _call(self, items: list[Item]) -> Sequence[Result]:
        self._waited = 0.0
        call = asyncio.ensure_future(self._execute(items))
        try:
            for _ in range(STEPS):
                await asyncio.wait([call], timeout=TIMEOUT_SECONDS / STEPS)
                if call.done():
                    break
                self._waited += TIMEOUT_SECONDS / STEPS
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            self._waited = None
        if not call.done():
            # It may still succeed. To cancel it could take longer than its items may wait.
            self._late.add(call)
            call.add_done_callback(lambda ended: self._end_late(items, ended))
            raise BatchStalledError("a call did not return in time")
        return call.result()

    def _end_late(self, items: list[Item], call: "asyncio.Future[Sequence[Result]]") -> None:
        self._late.discard(call)
        if not call.cancelled() and call.exception() is None:
            self._on_late(items, call.result())

    def _take_batch(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        """Remove and return the next batch: the first items that wait, sorted by key, each key once."""
        batch: dict[Any, tuple[Item, asyncio.Future[Result]]] = {}
        rest = []
        for item, done in self._waiting:
            key = self._key(item)
            if done.done():
                continue  # its request was cancelled
            if key in batch or len(batch) >= MAX_BATCH:
                rest.append((item, done))
            else:
                batch[key] = item, done
        self._waiting = rest
        return [batch[key] for key in sorted(batch)]

    def _take_all(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    @staticmethod
    def _fail(items: list[tuple[Item, "asyncio.Future[Result]"]], error: Exception) -> None:
        for _, done in items:
            if not done.done():
                done.set_exception(error)
