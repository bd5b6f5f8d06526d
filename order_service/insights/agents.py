"""The shell of the insights: read the shop's events, count each once, and say what has come of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final, TypeVar

from infrastructure import clock, metrics
from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import Envelope
from infrastructure.guard import Received
from infrastructure.postgres import Connection, try_lock
from infrastructure.topics import Topic
from order_service import messages as orders
from order_service.insights import store as stores
from order_service.insights.messages import FIGURES, RELATED, Figures, Related
from order_service.insights.model import CART_EVENTS, ORDER_EVENTS, PAYMENT_EVENTS, Event, Fact, OrderEvent, fact
from order_service.insights.store import Store

EVERY: Final = 1.0
"""Seconds between two looks of the publisher, and so at most one state a second of one window or product."""
STALE_EVERY: Final = 10
"""Looks between two for lists that are of far fewer orders than there are now."""
COMPETE_EVERY: Final = 1.0
AT_ONCE: Final = 200
TRIM_EVERY: Final = 60.0
TRIM_AT_ONCE: Final = 1000
OPTIONS: Final = "-c statement_timeout=10s -c idle_session_timeout=10s -c jit=off"
"""A publisher that is stopped, or waits for Kafka too long, loses its session and with it the lock: another goes on."""
MAX_BATCH: Final = 100

E = TypeVar("E", bound=Event)
Connect = Callable[[], Awaitable[Connection]]
Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


def wanted(types: Iterable[str]) -> Callable[[bytes], bool]:
    """Whether a record may be of one of some types: most of a topic is not, and need not be parsed to see that."""
    marks = [f'{name}"'.encode() for name in types]
    return lambda value: any(mark in value for mark in marks)


WANTED_ORDERS: Final = wanted(ORDER_EVENTS.types)
WANTED_PAYMENTS: Final = wanted(PAYMENT_EVENTS.types)
WANTED_CARTS: Final = wanted(CART_EVENTS.types)


class Counting:
    """What is done with the events of one of the three topics; agents take turns, so each has a store of its own."""

    def __init__(self, store: Store, now: Callable[[], datetime] = clock.now) -> None:
        self.store = store
        self.now = now

    async def on_events(self, batch: Sequence[Received[E]]) -> None:
        """Add each to the windows of its own time, unless it has been."""
        now = self.now()
        facts = [found for received in batch if (found := fact(received.event, received.message)) is not None]
        in_time = [each for each in facts if not each.too_late(now)]
        counted = await self.store.count(in_time)
        crashpoint("insights.counted")
        metrics.INSIGHTS_TOO_LATE.inc(len(facts) - len(in_time))
        metrics.INSIGHTS_REPEATED.inc(counted.repeated)
        _export(counted.fresh)

    async def on_orders(self, batch: Sequence[Received[OrderEvent]]) -> None:
        """The same, and learn from orders what is bought together."""
        await self.on_events(batch)
        await self.store.learn(
            each.message for each in batch if isinstance(each.message, orders.Committed | orders.Cancelled)
        )

    async def put_aside(self, received: Received[E], error: Exception) -> None:
        """Nobody waits for an answer; the dead letter keeps the record."""


def _export(facts: Sequence[Fact]) -> None:
    for each in facts:
        for figure, count in each.counts.items():
            metrics.BUSINESS.labels(figure).inc(count)
        for (figure, currency), amount in each.money.items():
            metrics.BUSINESS_MONEY.labels(figure, currency).inc(amount)


class Publisher:
    """Makes new figures and lists known. One a shop: its session holds the lock `name`; `connect` with `OPTIONS`."""

    def __init__(self, connect: Connect, publish: Publish, name: str, min_support: float) -> None:
        self.connect = connect
        self.publish = publish
        self.name = name
        self.min_support = min_support
        self._looks = 0

    async def run(self) -> None:
        """Compete for the lock, then publish for as long as the session lasts; raises when it is lost."""
        async with await self.connect() as connection:
            while True:
                if await try_lock(connection, self.name):
                    break
                await asyncio.sleep(COMPETE_EVERY)
            while True:
                await self.look(connection)
                await asyncio.sleep(EVERY)

    async def look(self, connection: Connection) -> int:
        """Publish what is new since the last look, at most `AT_ONCE` of each kind; how many states that were."""
        figures = await stores.untold_figures(connection, AT_ONCE)
        await self._tell(FIGURES, figures)
        if figures:
            await stores.figures_told(connection, figures)
        lists = await stores.untold_related(connection, self.min_support, AT_ONCE, stale=False)
        if self._looks % STALE_EVERY == 0:
            lists += await stores.untold_related(connection, self.min_support, AT_ONCE, stale=True)
        self._looks += 1
        await self._tell(RELATED, [each.related for each in lists])
        if lists:
            await stores.related_told(connection, lists)
        return len(figures) + len(lists)

    async def _tell(self, topic: Topic, states: Sequence[Figures | Related]) -> None:
        if states:
            await self.publish(topic, [event(state) for state in states])
            crashpoint("insights.published")
            metrics.PUBLISHED.labels(topic.name).inc(len(states))


def event(state: Figures | Related) -> Envelope:
    """A state as it stands on its topic."""
    key, role = (state.window, "figures") if isinstance(state, Figures) else (state.product, "related")
    return Envelope(
        id=f"{key}/{role}/{state.version}",
        source="/insights",
        type=state.TYPE,
        subject=key,
        time=clock.now(),
        data=state.model_dump(mode="json"),
    )


class Housekeeper:
    """Forgets keys that can no longer come again, in small batches."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect

    async def run(self) -> None:
        """Tidy once a minute; raises when the connection is lost."""
        while True:
            async with await self.connect() as connection:
                while (gone := await stores.trim(connection, TRIM_AT_ONCE)) == TRIM_AT_ONCE:
                    metrics.TRIMMED.inc(gone)
                    await asyncio.sleep(0.1)
                metrics.TRIMMED.inc(gone)
            await asyncio.sleep(TRIM_EVERY)
