"""The open loop: requests leave at intended instants over many sockets, and an answer counts from the intended one.

Nothing is skipped and nothing waits: when the shop is slow, the next request leaves all the same. What is not answered
within ten seconds is lost. The driver measures itself too, since one that is late or busy measures itself alone.
"""

import asyncio
import gc
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any, Final, Protocol

import orjson

from load.alarm import Alarm
from load.figures import ANSWER_SECONDS, Measured
from load.schedule import Baskets
from load.wire import Line, dial

DIALS_AT_ONCE: Final = 32
FIRST: Final = -10
"""The driver's nice value while it drives, where the system grants it: it needs little, but on time."""
NOT_OUTCOMES: Final = frozenset({"pending", "stock", "welcome", "cart", "expiring", "expired", "notice"})


class Hearing(Protocol):
    """Who gets every frame of a crowd."""

    def __call__(self, shopper: int, frame: Mapping[str, Any]) -> None:
        """A frame came to the shopper of this number."""


class Crowd:
    """Shoppers on open sockets, by number. `hear` gets their frames; what came when nobody listened is gone."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.hear: Hearing | None = None
        self.cut = 0
        """Lines that were cut, not hung up."""
        self._closing = False

    async def enter(
        self,
        url: str,
        headers: Sequence[Mapping[str, str]],
        entered: Callable[[], None] = lambda: None,
    ) -> None:
        """Open one more line to `url` for each of `headers`; raises `OSError` when one can't be had."""
        door = asyncio.Semaphore(DIALS_AT_ONCE)

        async def come(number: int, each: Mapping[str, str]) -> Line:
            async with door:
                line = await dial(url, each, lambda text: self._heard(number, text), self._was_cut)
            entered()
            return line

        first = len(self.lines)
        self.lines += await asyncio.gather(*(come(first + number, each) for number, each in enumerate(headers)))

    def leave(self) -> None:
        """Hang up, all of them."""
        self._closing = True
        for line in self.lines:
            line.close()

    def _heard(self, number: int, text: bytes) -> None:
        if self.hear is not None:
            self.hear(number, orjson.loads(text))

    def _was_cut(self) -> None:
        self.cut += not self._closing


class _Run:
    """One run's requests in flight and what has come of the others."""

    def __init__(self, crowd: Crowd, baskets: Baskets, measured: Measured) -> None:
        self.crowd = crowd
        self.baskets = baskets
        self.measured = measured
        self.name = secrets.token_hex(4)
        self.waiting: dict[str, float] = {}
        self.sending = True
        self.settled = asyncio.Event()
        self.answered: Callable[[int], None] = lambda _shopper: None

    def ask(self, number: int, shopper: int, due: float) -> None:
        """Send the request of this number for a shopper; it was due at `due`."""
        kind, product = self.baskets.next(shopper)
        id_ = f"{self.name}-{number}"
        frame = {"id": id_, "type": kind, "product": product}
        if kind == "add":
            frame["quantity"] = 1  # type: ignore[assignment]  # the one field that is no text
        self.waiting[id_] = due
        self.measured.sent += 1
        with suppress(ConnectionError):  # then it stays unanswered, and counts as lost
            self.crowd.lines[shopper].send(orjson.dumps(frame))

    def hear(self, shopper: int, frame: Mapping[str, Any]) -> None:
        """Note an answer."""
        kind = frame["type"]
        if kind in NOT_OUTCOMES:
            return
        due = self.waiting.pop(frame.get("id") or "", None)
        if due is None:
            return
        took = perf_counter() - due
        if took > ANSWER_SECONDS:
            self._lose()
        elif kind == "error":
            self.measured.outcomes[f"error {frame['code']}"] += 1
            self.measured.errors.record(took)
        else:
            told = f"refused {frame['reason']}" if kind == "refused" else kind
            self.measured.outcomes[told] += 1
            self.measured.latency.record(took)
            self.measured.in_time += self.sending
        self.answered(shopper)
        if not self.waiting and not self.sending:
            self.settled.set()

    async def end(self) -> None:
        """Wait for what is in flight, ten seconds at most; the rest is lost."""
        self.sending = False
        self.answered = lambda _shopper: None
        if self.waiting:
            last = max(self.waiting.values())
            with suppress(TimeoutError):
                await asyncio.wait_for(self.settled.wait(), max(0.0, last + ANSWER_SECONDS - perf_counter()))
        for _ in self.waiting:
            self._lose()
        self.waiting.clear()

    def _lose(self) -> None:
        self.measured.lost += 1
        self.measured.latency.record(ANSWER_SECONDS)


async def drive(
    crowd: Crowd,
    baskets: Baskets,
    instants: Sequence[float],
    *,
    rate: float,
    seconds: float,
    sent: Callable[[], None] = lambda: None,
) -> Measured:
    """Send one request at each of `instants` (seconds from now, in order), the shoppers taking turns."""
    measured = Measured(rate, seconds, len(crowd.lines))
    run = _Run(crowd, baskets, measured)
    alarm = Alarm()
    with listening(crowd, run.hear, measured):
        begun = perf_counter()
        try:
            for number, instant in enumerate(instants):
                due = begun + instant
                await alarm.until(due)
                measured.lateness.record(max(0.0, perf_counter() - due))
                run.ask(number, number % len(crowd.lines), due)
                sent()
            await alarm.until(begun + seconds)
            measured.seconds = perf_counter() - begun  # a little more when the driver could not keep up
        finally:
            alarm.close()
        await run.end()
    return measured


async def saturate(crowd: Crowd, baskets: Baskets, *, in_flight: int, seconds: float) -> Measured:
    """Keep `in_flight` requests unanswered for `seconds`: the next leaves when one is answered.

    Latencies of a closed loop say little; its goodput is the most that can be had.
    """
    measured = Measured(0.0, seconds, len(crowd.lines))
    run = _Run(crowd, baskets, measured)
    with listening(crowd, run.hear, measured):
        numbers = iter(range(1 << 62))
        run.answered = lambda shopper: run.ask(next(numbers), shopper, perf_counter())
        for each in range(in_flight):
            run.ask(next(numbers), each % len(crowd.lines), perf_counter())
        await asyncio.sleep(seconds)
        await run.end()
    return measured


@contextmanager
def listening(crowd: Crowd, hear: Hearing, measured: Measured) -> Iterator[None]:
    """Hear the crowd for one run, with the collector quiet; `measured` gets the driver's own share of a core."""
    crowd.hear = hear
    gc.collect()
    gc.freeze()
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(nice, FIRST))
    cut, begun, used = crowd.cut, perf_counter(), time.process_time()
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        gc.unfreeze()
        crowd.hear = None
        measured.core = (time.process_time() - used) / max(1e-9, perf_counter() - begun)
        measured.cut = crowd.cut - cut


async def settle(crowd: Crowd, frame: Mapping[str, Any], *, seconds: float = 30.0) -> int:
    """Every shopper says `frame` under an id of its own, outside any measurement; how many were not answered."""
    waiting: set[str] = set()
    done = asyncio.Event()

    def hear(shopper: int, frame: Mapping[str, Any]) -> None:  # noqa: ARG001 - any of them
        if frame["type"] != "pending":
            waiting.discard(frame.get("id") or "")
            if not waiting:
                done.set()

    crowd.hear = hear
    for number, line in enumerate(crowd.lines):
        id_ = f"settle-{secrets.token_hex(4)}-{number}"
        waiting.add(id_)
        with suppress(ConnectionError):
            line.send(orjson.dumps({"id": id_, **frame}))
    with suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), seconds if waiting else 0)
    crowd.hear = None
    return len(waiting)


async def first_frame(crowd: Crowd, open_lines: Callable[[], Awaitable[None]], type_: str) -> Mapping[str, Any]:
    """The first frame of a type that the crowd hears while `open_lines` brings it in, and shortly after."""
    heard: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

    def hear(shopper: int, frame: Mapping[str, Any]) -> None:  # noqa: ARG001 - any of them
        if frame["type"] == type_ and not heard.done():
            heard.set_result(frame)

    crowd.hear = hear
    try:
        await open_lines()
        return await asyncio.wait_for(heard, ANSWER_SECONDS)
    finally:
        crowd.hear = None
