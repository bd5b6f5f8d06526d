"""Open-loop driver: sends requests at intended times over many sockets and measures from the intended time.

No request is skipped or delayed: if the shop is slow, the next request is sent nevertheless. A request without an
answer within ten seconds counts as lost. The driver also measures its own lateness and CPU use, since a late or busy
driver measures mostly itself.
"""

import asyncio
import gc
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any, Final, Protocol

import orjson

from load.measurements import ANSWER_TIMEOUT_SECONDS, Measurement
from load.precise_timer import PreciseTimer, poll_seconds
from load.priority import raised_priority
from load.raw_http import RawHttpConnection, open_http_connection
from load.raw_websocket import RawClientConnection, open_connection
from load.schedule import RequestMix

MAX_CONCURRENT_CONNECTS: Final = 32
NON_OUTCOME_TYPES: Final = frozenset({"pending", "stock", "welcome", "cart", "expiring", "expired", "notice"})


class FrameHandler(Protocol):
    """Callback for all frames received by a `ShopperPool`."""

    def __call__(self, shopper: int, frame: Mapping[str, Any]) -> None:
        """Handle a frame received by the shopper with this number."""


class ShopperPool:
    """Shoppers on open sockets, numbered from 0. Their frames are passed to `on_frame`, or dropped if it is `None`."""

    def __init__(self) -> None:
        self.connections: list[RawClientConnection | RawHttpConnection] = []
        self.on_frame: FrameHandler | None = None
        self.lost_connections = 0
        """Number of connections lost, not counting those that `close` closed."""
        self._closing = False

    async def connect(
        self,
        url: str,
        headers: Sequence[Mapping[str, str]],
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        """Open one more connection to `url` (`ws:` or `http:`) for each of `headers`; raise `OSError` if one fails."""
        open_one = open_http_connection if url.startswith("http:") else open_connection
        slots = asyncio.Semaphore(MAX_CONCURRENT_CONNECTS)

        async def connect_one(number: int, each: Mapping[str, str]) -> RawClientConnection | RawHttpConnection:
            async with slots:
                connection = await open_one(url, each, lambda text: self._on_text(number, text), self._on_closed)
            on_connected()
            return connection

        first = len(self.connections)
        self.connections += await asyncio.gather(
            *(connect_one(first + number, each) for number, each in enumerate(headers))
        )

    def close(self) -> None:
        """Close all connections."""
        self._closing = True
        for connection in self.connections:
            connection.close()

    def _on_text(self, number: int, text: bytes) -> None:
        if self.on_frame is not None:
            self.on_frame(number, orjson.loads(text))

    def _on_closed(self) -> None:
        self.lost_connections += not self._closing


class _Run:
    """Requests in flight of one run, and the results of the others."""

    def __init__(self, pool: ShopperPool, baskets: RequestMix, measured: Measurement) -> None:
        self.pool = pool
        self.baskets = baskets
        self.measured = measured
        self.name = secrets.token_hex(4)
        self.waiting: dict[str, float] = {}
        self.sending = True
        self.all_answered = asyncio.Event()
        self.on_answer: Callable[[int], None] = lambda _shopper: None

    def send_request(self, number: int, shopper: int, due: float) -> None:
        """Send request `number` for a shopper; `due` is its intended send time."""
        kind, product = self.baskets.next_request(shopper)
        id_ = f"{self.name}-{number}"
        frame = {"id": id_, "type": kind, "product": product}
        if kind == "add":
            frame["quantity"] = 1  # type: ignore[assignment]  # the only field that is not a string
        self.waiting[id_] = due
        self.measured.sent += 1
        with suppress(ConnectionError):  # the request then stays unanswered and counts as lost
            self.pool.connections[shopper].send(orjson.dumps(frame))

    def on_frame(self, shopper: int, frame: Mapping[str, Any]) -> None:
        """Record an answer."""
        kind = frame["type"]
        if kind in NON_OUTCOME_TYPES:
            return
        due = self.waiting.pop(frame.get("id") or "", None)
        if due is None:
            return
        elapsed = perf_counter() - due
        if elapsed > ANSWER_TIMEOUT_SECONDS:
            self._count_lost()
        elif kind == "error":
            self.measured.outcomes[f"error {frame['code']}"] += 1
            self.measured.errors.record(elapsed)
        else:
            outcome = f"refused {frame['reason']}" if kind == "refused" else kind
            self.measured.outcomes[outcome] += 1
            self.measured.latency.record(elapsed)
            self.measured.answered_in_time += self.sending
        self.on_answer(shopper)
        if not self.waiting and not self.sending:
            self.all_answered.set()

    async def end(self) -> None:
        """Wait up to ten seconds for requests in flight, and count the rest as lost."""
        self.sending = False
        self.on_answer = lambda _shopper: None
        if self.waiting:
            last = max(self.waiting.values())
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self.all_answered.wait(), max(0.0, last + ANSWER_TIMEOUT_SECONDS - perf_counter())
                )
        for _ in self.waiting:
            self._count_lost()
        self.waiting.clear()

    def _count_lost(self) -> None:
        self.measured.lost += 1
        self.measured.latency.record(ANSWER_TIMEOUT_SECONDS)


async def run_open_loop(
    pool: ShopperPool,
    baskets: RequestMix,
    instants: Sequence[float],
    *,
    rate: float,
    seconds: float,
    on_sent: Callable[[], None] = lambda: None,
) -> Measurement:
    """Send one request at each of `instants` (seconds from now, ascending), round-robin over the shoppers."""
    measured = Measurement(rate, seconds, len(pool.connections))
    run = _Run(pool, baskets, measured)
    timer, poll = PreciseTimer(), poll_seconds(rate)
    with measurement_window(pool, run.on_frame, measured):
        started = perf_counter()
        try:
            for number, instant in enumerate(instants):
                due = started + instant
                await timer.sleep_until(due, poll)
                measured.lateness.record(max(0.0, perf_counter() - due))
                run.send_request(number, number % len(pool.connections), due)
                on_sent()
            await timer.sleep_until(started + seconds)
            measured.seconds = perf_counter() - started  # slightly more if the driver could not keep up
        finally:
            timer.close()
        await run.end()
    return measured


async def run_closed_loop(pool: ShopperPool, baskets: RequestMix, *, in_flight: int, seconds: float) -> Measurement:
    """Keep `in_flight` requests unanswered for `seconds`: each answer triggers the next request.

    Latencies of a closed loop mean little; its goodput is the maximum throughput.
    """
    measured = Measurement(0.0, seconds, len(pool.connections))
    run = _Run(pool, baskets, measured)
    with measurement_window(pool, run.on_frame, measured, real_time=False):
        numbers = iter(range(1 << 62))
        run.on_answer = lambda shopper: run.send_request(next(numbers), shopper, perf_counter())
        for each in range(in_flight):
            run.send_request(next(numbers), each % len(pool.connections), perf_counter())
        await asyncio.sleep(seconds)
        await run.end()
    return measured


@contextmanager
def measurement_window(
    pool: ShopperPool, on_frame: FrameHandler, measured: Measurement, *, real_time: bool = True
) -> Iterator[None]:
    """Pass all frames of one run to `on_frame`, with high priority and without garbage collection of what exists.

    On exit `measured` has the driver's priority, its share of a core and the number of connections lost.
    """
    pool.on_frame = on_frame
    gc.collect()
    gc.freeze()
    lost_before, started, cpu_before = pool.lost_connections, perf_counter(), time.process_time()
    try:
        with raised_priority(real_time=real_time) as measured.priority:
            yield
    finally:
        gc.unfreeze()
        pool.on_frame = None
        measured.core_share = (time.process_time() - cpu_before) / max(1e-9, perf_counter() - started)
        measured.lost_connections = pool.lost_connections - lost_before


async def send_from_all(pool: ShopperPool, frame: Mapping[str, Any], *, seconds: float = 30.0) -> int:
    """Send `frame` from every shopper, outside any measurement, and return how many got no answer."""
    waiting: set[str] = set()
    done = asyncio.Event()

    def on_frame(shopper: int, frame: Mapping[str, Any]) -> None:  # noqa: ARG001 - from any shopper
        if frame["type"] != "pending":
            waiting.discard(frame.get("id") or "")
            if not waiting:
                done.set()

    pool.on_frame = on_frame
    for number, connection in enumerate(pool.connections):
        id_ = f"settle-{secrets.token_hex(4)}-{number}"
        waiting.add(id_)
        with suppress(ConnectionError):
            connection.send(orjson.dumps({"id": id_, **frame}))
    with suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), seconds if waiting else 0)
    pool.on_frame = None
    return len(waiting)


async def wait_for_first_frame(
    pool: ShopperPool, connect: Callable[[], Awaitable[None]], type_: str
) -> Mapping[str, Any]:
    """Call `connect` and return the first frame of `type_` received; raise `TimeoutError` if none arrives."""
    received: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

    def on_frame(shopper: int, frame: Mapping[str, Any]) -> None:  # noqa: ARG001 - from any shopper
        if frame["type"] == type_ and not received.done():
            received.set_result(frame)

    pool.on_frame = on_frame
    try:
        await connect()
        return await asyncio.wait_for(received, ANSWER_TIMEOUT_SECONDS)
    finally:
        pool.on_frame = None
