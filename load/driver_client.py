"""Start the driver process and call it."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson

from infrastructure.local.supervision.services import python_path
from infrastructure.process.environment import child_environment
from load.driver_process import MAX_LINE_BYTES
from load.measurements import Histogram, Measurement
from load.schedule import Arrivals

EXIT_SECONDS: Final = 10.0


class DriverError(OSError):
    """The driver could not do what it was asked, or has exited; the message has the details."""


class Driver:
    """A running driver process, which carries out one call at a time."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self._lock = asyncio.Lock()
        self._ids = itertools.count(1)
        self._pools = itertools.count(1)
        self.priority = ""
        """Scheduling priority of the process during the last measurement at a steady rate."""

    async def open_pool(
        self, url: str, headers: Sequence[Mapping[str, str]], first_frame: str | None = None
    ) -> "tuple[DriverPool, Mapping[str, Any]]":
        """Open a socket for each of `headers`; return them and the first frame of type `first_frame`, or an empty one.

        Raise `DriverError` if a socket cannot be opened or no such frame arrives.
        """
        pool = DriverPool(self, next(self._pools))
        try:
            return pool, await pool.connect(url, headers, first_frame)
        except BaseException:
            await pool.close()
            raise

    async def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of a call; raise `DriverError` if it failed."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None  # both are pipes
        async with self._lock:
            id_ = next(self._ids)
            try:
                self._child.stdin.write(orjson.dumps({"id": id_, "call": name, "arguments": arguments}) + b"\n")
                await self._child.stdin.drain()
                answer: dict[str, Any] = {}
                while answer.get("id") != id_:  # the answer to a cancelled call may come first
                    line = await self._child.stdout.readline()
                    if not line:
                        raise DriverError(f"the driver exited with status {await self._child.wait()} during {name}")
                    answer = orjson.loads(line)
            except (ConnectionError, RuntimeError) as error:  # uvloop raises the latter for a pipe that is closed
                raise DriverError(f"the driver has exited before {name}") from error
        if "error" in answer:
            raise DriverError(f"the driver failed: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result


@dataclass(frozen=True, slots=True)
class StageResult:
    """Result of `run_stages`: the driver's own figures, and by stage the latencies and the requests that missed it."""

    measured: Measurement
    latency: Mapping[str, Histogram]
    missed: Mapping[str, int]


class DriverPool:
    """Shoppers on open sockets of the driver process."""

    def __init__(self, driver: Driver, number: int) -> None:
        self._driver = driver
        self._number = number
        self.size = 0
        """Number of open sockets."""

    async def connect(
        self, url: str, headers: Sequence[Mapping[str, str]], first_frame: str | None = None
    ) -> Mapping[str, Any]:
        """Open one more socket for each of `headers`; return and raise as `Driver.open_pool`."""
        result = await self._driver.call(
            "connect", pool=self._number, url=url, headers=headers, first_frame=first_frame
        )
        self.size += len(headers)
        frame: Mapping[str, Any] = result["frame"] or {}
        return frame

    async def close(self) -> None:
        """Close the sockets, if the driver is still running."""
        with suppress(DriverError):
            await self._driver.call("close", pool=self._number)

    async def run_open_loop(
        self,
        products: Sequence[str],
        rate: float,
        seconds: float,
        *,
        mixed: bool = False,
        arrivals: Arrivals = "constant",
    ) -> Measurement:
        """Send changes at a steady rate and measure; `mixed` shoppers also remove."""
        options = {"rate": rate, "seconds": seconds, "mixed": mixed, "arrivals": arrivals}
        result = await self._driver.call("run_open_loop", pool=self._number, products=products, **options)
        measured = Measurement.from_message(result)
        self._driver.priority = measured.priority
        return measured

    async def run_closed_loop(
        self, products: Sequence[str], in_flight: int, seconds: float, *, mixed: bool = False
    ) -> Measurement:
        """Send changes with `in_flight` of them unanswered at a time, and measure."""
        options = {"in_flight": in_flight, "seconds": seconds, "mixed": mixed}
        result = await self._driver.call("run_closed_loop", pool=self._number, products=products, **options)
        return Measurement.from_message(result)

    async def clear_carts(self) -> None:
        """Clear the cart of every shopper, outside any measurement."""
        await self._driver.call("clear_carts", pool=self._number)

    async def request_all(
        self, frames: Sequence[Mapping[str, Any]], type_: str, seconds: float
    ) -> Sequence[Mapping[str, Any]]:
        """Send each shopper's frame and return the first frame of `type_` that each received.

        Raise `DriverError` if a shopper received none within `seconds`.
        """
        result = await self._driver.call("request_all", pool=self._number, frames=frames, type_=type_, seconds=seconds)
        answers: Sequence[Mapping[str, Any]] = result["answers"]
        return answers

    async def run_stages(
        self, frames: Sequence[Mapping[str, Any]], rate: float, field: str, stages: Mapping[str, Sequence[str]]
    ) -> StageResult:
        """Send each shopper's frame once, at a steady rate, and time the stages that each request reaches.

        `stages` has the stages that a received frame stands for, by the value of its `field`.
        """
        result = await self._driver.call(
            "run_stages", pool=self._number, frames=frames, rate=rate, field=field, stages=stages
        )
        measured = Measurement.from_message(result["measurement"])
        self._driver.priority = measured.priority
        latency = {name: Histogram.decode(text) for name, text in result["latency"].items()}
        return StageResult(measured, latency, result["missed"])


@asynccontextmanager
async def driver_process() -> AsyncIterator[Driver]:
    """Run a driver process and yield it; it ends on exit."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "load.driver_process",
        env=child_environment(python_path(), secrets=()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        start_new_session=True,  # Ctrl-C must not end it before its sockets are closed
    )
    try:
        yield Driver(child)
    finally:
        assert child.stdin is not None  # a pipe
        child.stdin.close()
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
