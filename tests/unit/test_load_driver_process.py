"""The driver as a process of its own: what it measures comes back whole, and what fails is a sentence."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from time import perf_counter

import pytest
import uvloop

from load.driver_client import DriverError, driver_process
from load.measurements import Histogram, Measurement
from load.precise_timer import MAX_POLL_SECONDS, PreciseTimer, poll_seconds
from load.priority import raised_priority
from load.raw_websocket import RawServerConnection


def test_a_measurement_survives_the_way_to_another_process() -> None:
    measured = Measurement(100, 2, 3, sent=7, lost=1, core_share=0.25, priority="nice 0")
    measured.outcomes["held"] = 6
    for milliseconds in range(1, 500):
        measured.latency.record(milliseconds / 1000)
    measured.lateness.record(0.0002)
    back = Measurement.from_message(json.loads(json.dumps(measured.as_message())))
    assert back.as_json() == measured.as_json()
    for each in fields(Measurement):
        value = getattr(measured, each.name)
        if not isinstance(value, Histogram):
            assert getattr(back, each.name) == value
    assert len(back.errors) == 0


@pytest.mark.parametrize(
    ("rate", "seconds"), [(0, 0), (1, MAX_POLL_SECONDS), (100, MAX_POLL_SECONDS), (1000, 0.0001), (10_000, 0.00001)]
)
def test_polling_takes_at_most_a_tenth_of_the_time(rate: float, seconds: float) -> None:
    assert poll_seconds(rate) == pytest.approx(seconds)
    assert rate * poll_seconds(rate) <= 0.1 + 1e-9


async def test_a_polling_timer_never_wakes_early_and_lets_others_run() -> None:
    loop, timer = asyncio.get_running_loop(), PreciseTimer()
    ticks: list[int] = []
    until = perf_counter() + 0.02
    loop.call_later(0.015, ticks.append, 1)
    await timer.sleep_until(until, 0.02)
    timer.close()
    assert perf_counter() >= until
    assert ticks == [1]


@pytest.mark.parametrize("real_time", [False, True])
def test_a_raised_priority_is_described_and_taken_back(real_time: bool) -> None:
    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    with raised_priority(real_time=real_time) as priority:
        assert priority.partition(" ")[0] in {"nice", "SCHED_FIFO"}
        assert ("SCHED_FIFO" in priority) == (os.sched_getscheduler(0) & 0xF == os.SCHED_FIFO)
    assert (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) == before


@asynccontextmanager
async def small_shop() -> AsyncIterator[str]:
    """Serve a shop that answers each add with `held`, and each checkout with the statuses of an order."""
    peers: list[RawServerConnection] = []

    def hear(peer: RawServerConnection, text: bytes) -> None:
        frame = json.loads(text)
        fields = {"id": frame["id"], "version": len(peers)}
        if frame["type"] != "checkout":
            peer.send(json.dumps({"type": "held", **fields}).encode())
            return
        for status in ("committed", "confirmed") if frame["id"] != "stuck" else ("committed",):
            peer.send(json.dumps({"type": "order", "status": status, **fields}).encode())

    def peer() -> RawServerConnection:
        peers.append(RawServerConnection(hear))
        return peers[-1]

    server = await asyncio.get_running_loop().create_server(peer, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        for each in peers:
            each.close()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.05)  # the transports' own ends


async def test_every_call_of_the_driver_process() -> None:
    async with small_shop() as url, driver_process() as driver:
        pool, _ = await driver.open_pool(url, [{}] * 3)
        assert pool.size == 3
        measured = await pool.run_open_loop(["A"], 200, 0.2)
        assert (measured.sent, measured.outcomes, measured.lost) == (40, {"held": 40}, 0)
        assert len(measured.latency) == len(measured.lateness) == 40
        assert driver.priority == measured.priority != ""
        closed = await pool.run_closed_loop(["A"], 4, 0.1)
        assert closed.sent == closed.outcomes["held"] > 4
        await pool.clear_carts()
        held = await pool.request_all([{"id": f"a{n}", "type": "add"} for n in range(3)], "held", 5)
        assert [frame["id"] for frame in held] == ["a0", "a1", "a2"]
        stages = {"committed": ["committed"], "confirmed": ["committed", "confirmed"]}
        orders = [{"id": f"c{n}", "type": "checkout"} for n in range(3)]
        staged = await pool.run_stages(orders, 100, "status", stages)
        assert staged.missed == {"committed": 0, "confirmed": 0}
        assert {name: len(each) for name, each in staged.latency.items()} == {"committed": 3, "confirmed": 3}
        assert len(staged.measured.lateness) == 3


async def test_a_failed_call_is_a_sentence_and_the_driver_goes_on() -> None:
    async with small_shop() as url, driver_process() as driver:
        with pytest.raises(DriverError, match="connect"):
            await driver.open_pool("ws://127.0.0.1:1/", [{}])
        pool, _ = await driver.open_pool(url, [{}])
        with pytest.raises(DriverError, match="request_all: TimeoutError"):
            await pool.request_all([{"id": "a", "type": "add"}], "never", 0.05)
        assert (await pool.run_open_loop(["A"], 100, 0.05)).lost == 0
    with pytest.raises(DriverError, match="exited"):
        await pool.run_open_loop(["A"], 100, 0.05)


def test_a_driver_that_is_gone_is_a_sentence_on_every_event_loop() -> None:
    async def call_twice() -> None:
        async with driver_process() as driver:
            child = driver._child
            child.kill()
            await child.wait()
            for _ in range(2):
                with pytest.raises(DriverError, match="exited"):
                    await driver.call("clear_carts", pool=1)

    asyncio.run(call_twice())
    uvloop.run(call_twice())
