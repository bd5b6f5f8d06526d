"""A process that reads no topic: its loops, its health, its end. What `worker.py` is to agents, without Faust's weight.

It ends as a worker does: asked to (SIGTERM or SIGINT: what is in hand is finished; exit 0), or hard (exit 75: its loops
did not let go in time).
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

from infrastructure.health import Check, HealthServer, Page
from infrastructure.settings import Settings

log = logging.getLogger(__name__)

EX_TEMPFAIL: Final = 75
STOP_SECONDS: Final = 8.0
QUIET_SECONDS: Final = 30.0
"""A loop that ran this long before it failed is not one that fails again and again."""
NICENESS: Final = 5
PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


class Daemon:
    """One replica of such a process. Build it, say what it does, then `run` it. `pages` is what else it has to show."""

    def __init__(self, settings: Settings, *, pages: Callable[[str], Page | None] | None = None) -> None:
        self.settings = settings
        self.pages = pages
        self._loops: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._checks: list[Check] = []
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._failing: dict[str, str] = {}
        self._running = False

    def background(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop` for the process's life, again after a pause when it raises."""
        self._loops.append((name, loop))

    def ready_when(self, check: Check) -> None:
        """One more condition for `/readyz`."""
        self._checks.append(check)

    def closing(self, close: Callable[[], Awaitable[None]]) -> None:
        """Call `close` after the loops have ended."""
        self._closers.append(close)

    async def run(self, begin: Callable[[], Awaitable[None]] | None = None) -> int:
        """Do `begin`, then run the loops until asked to stop; the exit code."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        health = HealthServer(
            self.settings.health_host,
            self.settings.health_port,
            live=lambda: None,
            ready=self.why_not_ready,
            pages=self.pages,
        )
        await health.start()
        tasks: list[asyncio.Task[None]] = []
        try:
            if begin is not None and not await unless(stop, begin()):
                return 0
            tasks = [asyncio.create_task(self._forever(name, each)) for name, each in self._loops]
            self._running = True
            gc.collect()
            gc.freeze()  # what is alive now stays: the collector need not walk it again
            log.info("running", extra={"health": health.port})
            await stop.wait()
        finally:
            self._running = False
            loop.call_later(STOP_SECONDS, lambda: os._exit(EX_TEMPFAIL))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for close in self._closers:
                await close()
            await health.stop()
        log.info("stopped")
        return 0

    def why_not_ready(self) -> str | None:
        """None when it runs, no loop is failing and every condition holds."""
        if not self._running:
            return "starting or stopping"
        failing = next((f"{name}: {error}" for name, error in self._failing.items()), None)
        return failing or next((problem for check in self._checks if (problem := check())), None)

    async def _forever(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            cured = asyncio.get_running_loop().call_later(1.0, self._failing.pop, name, None)
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - a loop must not take the others down
                failures = 0 if time.monotonic() - began > QUIET_SECONDS else failures + 1
                pause = PAUSES[min(max(failures, 1), len(PAUSES)) - 1]
                self._failing[name] = f"{type(error).__name__}: {error}"
                log.warning("%s failed, again in %.1f s: %s: %s", name, pause, type(error).__name__, error)
                cured.cancel()
                await asyncio.sleep(pause)
            finally:
                cured.cancel()


async def unless(stop: asyncio.Event, work: Awaitable[None]) -> bool:
    """Whether `work` was done before `stop` was asked for."""
    doing, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not doing.done():
        doing.cancel()
        return False
    doing.result()
    return True


def yield_to_others() -> None:
    """Take less of a busy machine than processes that somebody waits for."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
