"""Driver as a process of its own: it does nothing but send, receive and record.

A driver inside the program that prepares and evaluates a measurement would share its event loop, its garbage and its
priority. This one has a small heap and keeps its sockets served between measurements. `driver_client` starts it. Each
line on standard input is a call, `{"id": 1, "call": "run_open_loop", "arguments": {…}}`, and each line on standard
output a result, `{"id": 1, "result": {…}}`, or an error, `{"id": 1, "error": "…"}`. It ends with its standard input.

    python -m load.driver_process
"""

import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Final

import orjson
import uvloop

from load.driver import ShopperPool, measurement_window, run_closed_loop, run_open_loop, send_from_all
from load.driver import wait_for_first_frame as first_frame_after
from load.measurements import ANSWER_TIMEOUT_SECONDS, Histogram, Measurement
from load.precise_timer import PreciseTimer, poll_seconds
from load.schedule import Arrivals, RequestMix, send_times

MAX_LINE_BYTES: Final = 1 << 26
"""Longest call: the headers of ten thousand shoppers."""
SEED: Final = 1
"""Seed of all random choices, so that each side of a comparison gets the same ones."""

Result = Mapping[str, Any]


class DriverCalls:
    """The calls, by name: each public method takes the arguments of a call and returns its result as JSON values."""

    def __init__(self) -> None:
        self._pools: dict[int, ShopperPool] = {}

    async def connect(
        self, pool: int, url: str, headers: Sequence[Mapping[str, str]], first_frame: str | None = None
    ) -> Result:
        """Open one more socket of `pool` for each of `headers`; return the first frame of type `first_frame`, if any.

        Raise `OSError` if a socket cannot be opened, and `TimeoutError` if no such frame arrives.
        """
        sockets = self._pools.setdefault(pool, ShopperPool())
        if first_frame is None:
            await sockets.connect(url, headers)
            return {"frame": None}
        return {"frame": await first_frame_after(sockets, lambda: sockets.connect(url, headers), first_frame)}

    async def close(self, pool: int) -> Result:
        """Close the sockets of `pool`."""
        sockets = self._pools.pop(pool, None)
        if sockets is not None:
            sockets.close()
        return {}

    async def run_open_loop(
        self, pool: int, products: Sequence[str], rate: float, seconds: float, *, mixed: bool, arrivals: Arrivals
    ) -> Result:
        """Send changes at a steady rate; return a `Measurement`."""
        sockets, rng = self._pools[pool], random.Random(SEED)  # noqa: S311 - no secret
        baskets = RequestMix(len(sockets.connections), products, mixed=mixed, choose=rng.randrange)
        plan = [*send_times(rate, seconds, arrivals, rng.random)]
        return (await run_open_loop(sockets, baskets, plan, rate=rate, seconds=seconds)).as_message()

    async def run_closed_loop(
        self, pool: int, products: Sequence[str], in_flight: int, seconds: float, *, mixed: bool
    ) -> Result:
        """Send changes with `in_flight` of them unanswered at a time; return a `Measurement`."""
        sockets, rng = self._pools[pool], random.Random(SEED)  # noqa: S311 - no secret
        baskets = RequestMix(len(sockets.connections), products, mixed=mixed, choose=rng.randrange)
        return (await run_closed_loop(sockets, baskets, in_flight=in_flight, seconds=seconds)).as_message()

    async def clear_carts(self, pool: int) -> Result:
        """Clear the cart of every shopper, outside any measurement; return how many got no answer."""
        return {"unanswered": await send_from_all(self._pools[pool], {"type": "clear"})}

    async def request_all(self, pool: int, frames: Sequence[Mapping[str, Any]], type_: str, seconds: float) -> Result:
        """Send each shopper's frame, outside any measurement; return the first frame of `type_` that each received.

        Raise `TimeoutError` if a shopper received none within `seconds`.
        """
        sockets, answers, done = self._pools[pool], dict[int, Mapping[str, Any]](), asyncio.Event()

        def on_frame(shopper: int, frame: Mapping[str, Any]) -> None:
            if frame["type"] == type_:
                answers.setdefault(shopper, frame)
                if len(answers) == len(frames):
                    done.set()

        sockets.on_frame = on_frame
        try:
            for connection, frame in zip(sockets.connections, frames, strict=True):
                connection.send(orjson.dumps(frame))
            async with asyncio.timeout(seconds):
                await done.wait()
        finally:
            sockets.on_frame = None
        return {"answers": [answers[shopper] for shopper in range(len(frames))]}

    async def run_stages(
        self, pool: int, frames: Sequence[Mapping[str, Any]], rate: float, field: str, stages: Mapping[str, list[str]]
    ) -> Result:
        """Send each shopper's frame once, at a steady rate, and time the stages that its request reaches.

        `stages` has the stages that a received frame stands for, by the value of its `field`. Return a `Measurement`,
        and by stage a histogram and the number of requests that never reached it.
        """
        sockets = self._pools[pool]
        names = {name for each in stages.values() for name in each}
        measured = Measurement(rate, len(frames) / rate, len(frames))
        latency = {name: Histogram() for name in names}
        due: dict[str, float] = {}
        unreached: dict[str, set[str]] = {}
        done = asyncio.Event()

        def on_frame(shopper: int, frame: Mapping[str, Any]) -> None:  # noqa: ARG001 - the id identifies the shopper
            now, id_ = perf_counter(), frame.get("id") or ""
            for name in unreached.get(id_, set()).intersection(stages.get(frame.get(field, ""), ())):
                unreached[id_].discard(name)
                latency[name].record(now - due[id_])
            if len(due) == len(frames) and not any(unreached.values()):
                done.set()

        timer, poll = PreciseTimer(), poll_seconds(rate)
        with measurement_window(sockets, on_frame, measured):
            started = perf_counter()
            try:
                for number, frame in enumerate(frames):
                    id_ = frame["id"]
                    due[id_], unreached[id_] = started + number / rate, set(names)
                    await timer.sleep_until(due[id_], poll)
                    measured.lateness.record(max(0.0, perf_counter() - due[id_]))
                    with suppress(ConnectionError):  # the request then reaches no stage and is counted as such
                        sockets.connections[number].send(orjson.dumps(frame))
            finally:
                timer.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), ANSWER_TIMEOUT_SECONDS)
        measured.sent = len(frames)
        return {
            "measurement": measured.as_message(),
            "latency": {name: each.encode() for name, each in latency.items()},
            "missed": {name: sum(name in waiting for waiting in unreached.values()) for name in names},
        }


async def serve() -> None:
    """Carry out one call after the other until standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    calls = DriverCalls()
    while line := await reader.readline():
        call = orjson.loads(line)
        try:
            outcome = {"result": await getattr(calls, call["call"])(**call["arguments"])}
        except (OSError, TimeoutError) as error:
            outcome = {"error": f"{call['call']}: {str(error) or type(error).__name__}"}
        sys.stdout.buffer.write(orjson.dumps({"id": call["id"], **outcome}) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(serve())
