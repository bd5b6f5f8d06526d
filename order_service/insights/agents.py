"""The Kafka shell of the insights: count each event of the shop once, and publish the results."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from contracts import orders
from contracts.envelope import Envelope
from contracts.insights import FIGURES, RELATED, Figures, Related
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.observability import metrics
from infrastructure.process import clock
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.postgres import Connection, try_lock
from infrastructure.storage.retention import delete_in_batches
from order_service.insights import store as stores
from order_service.insights.model import (
    CART_EVENTS,
    ORDER_EVENTS,
    PAYMENT_EVENTS,
    CartEvent,
    Event,
    Fact,
    OrderEvent,
    PaymentEvent,
    to_fact,
)
from order_service.insights.store import InsightsStore

PUBLISH_INTERVAL: Final = 1.0
"""Seconds between two polls of the publisher, so each window or product is published at most once per second."""
STALE_POLL_INTERVAL: Final = 10
"""Every how many polls the publisher also looks for lists that were computed from far fewer orders than exist now."""
LOCK_RETRY_INTERVAL: Final = 1.0
"""Seconds between two attempts to get the publisher's lock."""
MAX_STATES_PER_POLL: Final = 200
"""The greatest number of figures, and of lists, that one poll publishes."""
RETENTION_INTERVAL: Final = 60.0
"""Seconds between two deletions of expired keys."""
MAX_KEYS_PER_DELETE: Final = 1000
"""The greatest number of keys that one statement deletes."""
PUBLISHER_OPTIONS: Final = "-c statement_timeout=10s -c idle_session_timeout=10s -c jit=off"
"""Server settings for the publisher's connection.

A publisher that is suspended, or waits for Kafka too long, loses its session and so its lock; another one takes over.
"""
MAX_BATCH: Final = 100
"""The greatest number of events that are counted in one transaction."""

E = TypeVar("E", bound=Event)
Connect = Callable[[], Awaitable[Connection]]
Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


def type_filter(types: Iterable[str]) -> Callable[[bytes], bool]:
    """Return a filter: it is False for a record that is certainly of another type, so that most are not parsed."""
    needles = [f'{name}"'.encode() for name in types]
    return lambda value: any(mark in value for mark in needles)


ORDER_EVENT_FILTER: Final = type_filter(ORDER_EVENTS.types)
PAYMENT_EVENT_FILTER: Final = type_filter(PAYMENT_EVENTS.types)
CART_EVENT_FILTER: Final = type_filter(CART_EVENTS.types)


class InsightsAgents:
    """The handlers of the events of one topic. Agents run concurrently, so each needs its own instance and store."""

    def __init__(self, store: InsightsStore, now: Callable[[], datetime] = clock.now) -> None:
        self.store = store
        self.now = now

    async def on_order_events(self, batch: Sequence[ReceivedMessage[OrderEvent]]) -> None:
        """Count a batch of order events, and update the counts of products bought together."""
        await self._count(batch)
        await self.store.count_baskets(
            each.message for each in batch if isinstance(each.message, orders.Committed | orders.Cancelled)
        )

    async def on_payment_events(self, batch: Sequence[ReceivedMessage[PaymentEvent]]) -> None:
        """Count a batch of payment events."""
        await self._count(batch)

    async def on_cart_responses(self, batch: Sequence[ReceivedMessage[CartEvent]]) -> None:
        """Count a batch of cart responses."""
        await self._count(batch)

    async def _count(self, batch: Sequence[ReceivedMessage[E]]) -> None:
        """Count a batch of events in the windows of their times. Repeated and too late events are skipped."""
        now = self.now()
        facts = [found for received in batch if (found := to_fact(received.event, received.message)) is not None]
        in_time = [each for each in facts if not each.is_too_late(now)]
        counted = await self.store.count_facts(in_time)
        failpoint("insights.counted")
        metrics.INSIGHTS_TOO_LATE.inc(len(facts) - len(in_time))
        metrics.INSIGHTS_REPEATED.inc(counted.duplicates)
        _count_metrics(counted.new_facts)

    async def on_permanent_failure(self, received: ReceivedMessage[E], error: Exception) -> None:
        """Do nothing: an event has no reply, and its dead letter keeps it."""


def _count_metrics(facts: Sequence[Fact]) -> None:
    for each in facts:
        for figure, count in each.counts.items():
            metrics.BUSINESS.labels(figure).inc(count)
        for (figure, currency), amount in each.money.items():
            metrics.BUSINESS_MONEY.labels(figure, currency).inc(amount)


class Publisher:
    """The publisher of changed figures and lists. One per shop is active: its session holds the lock `name`.

    `connect` must return a connection with `PUBLISHER_OPTIONS`.
    """

    def __init__(self, connect: Connect, publish: Publish, name: str, min_support: float) -> None:
        self.connect = connect
        self.publish = publish
        self.name = name
        self.min_support = min_support
        self._polls = 0

    async def run(self) -> None:
        """Wait for the lock, then publish until cancelled. Raise when the session is lost."""
        async with await self.connect() as connection:
            while True:
                if await try_lock(connection, self.name):
                    break
                await asyncio.sleep(LOCK_RETRY_INTERVAL)
            while True:
                await self.publish_changes(connection)
                await asyncio.sleep(PUBLISH_INTERVAL)

    async def publish_changes(self, connection: Connection) -> int:
        """Publish changed figures and lists, at most `MAX_STATES_PER_POLL` of each. Return their number."""
        figures = await stores.unpublished_figures(connection, MAX_STATES_PER_POLL)
        await self._publish_states(FIGURES, figures)
        if figures:
            await stores.mark_figures_published(connection, figures)
        lists = await stores.unpublished_related(connection, self.min_support, MAX_STATES_PER_POLL, stale=False)
        if self._polls % STALE_POLL_INTERVAL == 0:
            lists += await stores.unpublished_related(connection, self.min_support, MAX_STATES_PER_POLL, stale=True)
        self._polls += 1
        await self._publish_states(RELATED, [each.related for each in lists])
        if lists:
            await stores.mark_related_published(connection, lists)
        return len(figures) + len(lists)

    async def _publish_states(self, topic: Topic, states: Sequence[Figures | Related]) -> None:
        if states:
            await self.publish(topic, [state_envelope(state) for state in states])
            failpoint("insights.published")
            metrics.PUBLISHED.labels(topic.name).inc(len(states))


def state_envelope(state: Figures | Related) -> Envelope:
    """Return the envelope of a state for its topic."""
    key, role = (state.window, "figures") if isinstance(state, Figures) else (state.product, "related")
    return Envelope.of(
        state,
        source="/insights",
        subject=key,
        event_id=f"{key}/{role}/{state.version}",
        time=clock.now(),
        exclude_none=False,
    )


class RetentionJob:
    """The retention of keys: deletes those whose events can no longer be redelivered."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect

    async def run(self) -> None:
        """Delete expired keys once per minute, in small batches. Raise when the connection is lost."""
        while True:
            async with await self.connect() as connection:
                await delete_in_batches(
                    partial(stores.delete_expired_keys, connection, MAX_KEYS_PER_DELETE), limit=MAX_KEYS_PER_DELETE
                )
            await asyncio.sleep(RETENTION_INTERVAL)
