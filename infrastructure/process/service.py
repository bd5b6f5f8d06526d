"""Scaffold of a service process: signals, health endpoints, background loops, closers and a bounded stop.

`messaging/worker.py` adds the agents of a Faust app, `background_service.py` is a process with background loops only.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from infrastructure.process.health import HealthCheck, HealthServer, HttpResponse
from infrastructure.process.settings import Settings

log = logging.getLogger(__name__)

EX_TEMPFAIL: Final = 75
"""Exit status of a process that had to end before its work was finished. Another replica repeats the work."""
STOP_SECONDS: Final = 8.0
"""Time that each part of a stop may take. After that the process ends with `EX_TEMPFAIL`."""
STABLE_SECONDS: Final = 30.0
"""A background loop that ran for this long before it failed is restarted after the first of the pauses again."""
CURED_SECONDS: Final = 1.0
"""A background loop that has run for this long since its restart no longer counts as failing."""
PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before a background loop is restarted, by the number of failures in a row."""
NICENESS: Final = 5
YOUNG_OBJECTS: Final = 10_000
"""New objects after which the garbage collector looks for cycles among them. A batch creates thousands, all without
cycles, and Python's default of 700 made that search a twelfth of its CPU time."""


class ServiceProcess:
    """One replica of a service. Build it, register its loops, checks and closers, then call `run` once.

    `pages` serves further paths on the health port.
    """

    def __init__(self, settings: Settings, *, pages: Callable[[str], HttpResponse | None] | None = None) -> None:
        self.settings = settings
        self.pages = pages
        self._loops: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._checks: list[HealthCheck] = []
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._failing: dict[str, str] = {}
        """The last error of each background loop that is failing."""
        self._running = False
        self._health_port = settings.health_port
        self._hard_exit: asyncio.TimerHandle | None = None

    # ---- registration -----------------------------------------------------------------------------------------------

    def add_background_loop(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop` for the life of the process, and restart it after a pause when it raises."""
        self._loops.append((name, loop))

    def add_readiness_check(self, check: HealthCheck) -> None:
        """Add a condition for `/readyz`."""
        self._checks.append(check)

    def add_closer(self, close: Callable[[], Awaitable[None]]) -> None:
        """Call `close` after the work and the background loops have stopped."""
        self._closers.append(close)

    # ---- life -------------------------------------------------------------------------------------------------------

    async def run(self, begin: Callable[[], Awaitable[None]] | None = None) -> int:
        """Await `begin`, then work until SIGTERM or SIGINT; return the exit status. Call it once."""
        stop = stop_on_signals()
        health = HealthServer(
            self.settings.health_host,
            self.settings.health_port,
            live=self.liveness_problem,
            ready=self.readiness_problem,
            pages=self.pages,
        )
        await health.start()
        try:
            if begin is not None and not await run_until_stopped(stop, begin()):
                return 0
            self._health_port = health.port
            return await self._work(stop)
        finally:
            if self._hard_exit is None:
                self._exit_hard_after(STOP_SECONDS)
            for close in self._closers:
                await close()
            await health.stop()

    async def _work(self, stop: asyncio.Event) -> int:
        """Run the background loops until `stop` is set; return the exit status."""
        async with self._background_loops():
            await stop.wait()
        log.info("stopped")
        return 0

    @asynccontextmanager
    async def _background_loops(self) -> AsyncIterator[None]:
        """Run the background loops inside the context, during which the process counts as running.

        On exit the loops are cancelled and awaited, for at most `STOP_SECONDS`.
        """
        tasks = [asyncio.create_task(self._restart_on_failure(name, each)) for name, each in self._loops]
        self._running = True
        gc.collect()
        gc.freeze()  # objects that exist now will stay: the garbage collector need not visit them again
        gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
        log.info("running", extra={"health": self._health_port})
        try:
            yield
        finally:
            self._running = False
            self._exit_hard_after(STOP_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _exit_hard_after(self, seconds: float) -> None:
        """End the process with `EX_TEMPFAIL` unless it has ended after `seconds`; replaces an earlier limit."""
        if self._hard_exit is not None:
            self._hard_exit.cancel()
        self._hard_exit = asyncio.get_running_loop().call_later(seconds, lambda: os._exit(EX_TEMPFAIL))

    async def _restart_on_failure(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop` and restart it whenever it raises, after a pause that grows with the failures in a row."""
        failures = 0
        while True:
            started = time.monotonic()
            cured = asyncio.get_running_loop().call_later(CURED_SECONDS, self._failing.pop, name, None)
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - a failing loop must not stop the rest of the process
                failures = 1 if time.monotonic() - started > STABLE_SECONDS else failures + 1
                pause = PAUSES[min(failures, len(PAUSES)) - 1]
                self._failing[name] = f"{type(error).__name__}: {error}"
                log.warning("%s failed, again in %.1f s: %s: %s", name, pause, type(error).__name__, error)
                cured.cancel()
                await asyncio.sleep(pause)
            finally:
                cured.cancel()

    # ---- health -----------------------------------------------------------------------------------------------------

    def liveness_problem(self) -> str | None:
        """Return why `/livez` must fail: `None` here, since a hung process does not answer at all."""
        return None

    def readiness_problem(self) -> str | None:
        """Return why `/readyz` must fail; `None` if the process runs, no loop is failing and every check passes."""
        if not self._running:
            return "starting or stopping"
        failing = next((f"{name}: {error}" for name, error in self._failing.items()), None)
        return failing or self._failed_check()

    def _failed_check(self) -> str | None:
        return next((problem for check in self._checks if (problem := check())), None)


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGINT or SIGTERM sets. Call it in the running event loop."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def run_until_stopped(stop: asyncio.Event, work: Awaitable[None]) -> bool:
    """Await `work`, but cancel it when `stop` is set first; return whether it was finished."""
    doing, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not doing.done():
        doing.cancel()
        return False
    doing.result()
    return True


def lower_priority() -> None:
    """Lower the scheduling priority of this process below that of processes whose answers are waited for."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
