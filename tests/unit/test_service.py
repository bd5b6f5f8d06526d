"""The scaffold of a service process: restarts of background loops, readiness, stop on a signal."""

import asyncio
import gc
import os
import signal
import time

import pytest

from infrastructure.process.service import PAUSES, ServiceProcess, run_until_stopped
from infrastructure.process.settings import Settings


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> ServiceProcess:
    monkeypatch.setattr(ServiceProcess, "_exit_hard_after", lambda *_: None)  # it would end the test run
    monkeypatch.setattr(gc, "freeze", lambda: None)
    return ServiceProcess(Settings(health_port=0))


async def test_a_loop_that_fails_again_and_again_is_restarted_after_longer_pauses(
    process: ServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await _pauses(process, monkeypatch, ran=[0.0] * 6) == [*PAUSES, PAUSES[-1]]


async def test_a_loop_that_ran_for_long_before_it_failed_is_restarted_after_the_first_pause(
    process: ServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await _pauses(process, monkeypatch, ran=[0.0, 0.0, 31.0, 0.0]) == [0.2, 0.5, 0.2, 0.5]


async def _pauses(process: ServiceProcess, monkeypatch: pytest.MonkeyPatch, *, ran: list[float]) -> list[float]:
    """Return the pauses after each run of a loop that fails after the seconds in `ran`."""
    clock = 0.0
    pauses: list[float] = []

    async def loop() -> None:
        nonlocal clock
        clock += ran[len(pauses)]
        raise ConnectionResetError

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == len(ran):
            raise asyncio.CancelledError

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await process._restart_on_failure("loop", loop)
    return pauses


async def test_a_process_is_ready_while_its_loops_run_and_its_checks_pass(process: ServiceProcess) -> None:
    problems: list[str | None] = ["no printer"]
    process.add_readiness_check(lambda: problems[-1])
    assert process.readiness_problem() == "starting or stopping"
    async with process._background_loops():
        assert process.readiness_problem() == "no printer"
        problems.append(None)
        assert process.readiness_problem() is None
        process._failing["writing"] = "OSError: full"
        assert process.readiness_problem() == "writing: OSError: full"
    assert process.readiness_problem() == "starting or stopping"


async def test_a_signal_stops_the_loops_then_calls_the_closers(process: ServiceProcess) -> None:
    events: list[str] = []
    running = asyncio.Event()

    async def loop() -> None:
        running.set()
        try:
            await asyncio.sleep(3600)
        finally:
            events.append("stopped")

    async def close() -> None:
        events.append("closed")

    process.add_background_loop("loop", loop)
    process.add_closer(close)
    working = asyncio.create_task(process.run())
    await asyncio.wait_for(running.wait(), 5)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(working, 5) == 0
    assert events == ["stopped", "closed"]


async def test_a_signal_while_the_process_begins_ends_it(process: ServiceProcess) -> None:
    begun = asyncio.Event()

    async def begin() -> None:
        begun.set()
        await asyncio.sleep(3600)

    working = asyncio.create_task(process.run(begin))
    await asyncio.wait_for(begun.wait(), 5)
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(working, 5) == 0


async def test_an_error_before_the_stop_is_raised() -> None:
    async def work() -> None:
        raise OSError("planted")

    with pytest.raises(OSError, match="planted"):
        await run_until_stopped(asyncio.Event(), work())
