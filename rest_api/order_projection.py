"""Feeds the read model of orders from what orders, payments and deliveries tell; and wakes who waits for an order."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import orjson
from aiokafka import ConsumerRecord

from infrastructure import metrics
from infrastructure.envelope import Envelope, Undecodable, Vocabulary
from infrastructure.settings import Settings
from infrastructure.topics import Topic
from order_service import messages as orders
from order_service.delivery import messages as deliveries
from order_service.payment import messages as payments
from rest_api.follower import Follower, Polled
from rest_api.order_store import OrderStore, Step, ToldOfOrder
from rest_api.order_view import OrderView
from rest_api.store import Position, Store

log = logging.getLogger(__name__)

_KINDS: Final[tuple[tuple[Topic, str, Vocabulary[Any]], ...]] = (
    (payments.EVENTS, "payment", payments.EVENT_VOCABULARY),
    (deliveries.EVENTS, "delivery", deliveries.EVENT_VOCABULARY),
)
_NO_TEXT: Final = "\\u0000"
"""A NUL in a text, which Postgres does not take."""


class OrderProjection:
    """One follower of three topics, and who waits for what they tell."""

    def __init__(self, settings: Settings, store: Store, order_store: OrderStore) -> None:
        self._store = store
        self._orders = order_store
        self._events = settings.topic(orders.EVENTS)
        self._kinds = {settings.topic(topic): (kind, vocabulary) for topic, kind, vocabulary in _KINDS}
        topics = (orders.EVENTS, *(topic for topic, _, _ in _KINDS))
        self._follower = Follower(settings, store, "orders", topics)
        self._waiting: defaultdict[str, list[tuple[int, asyncio.Future[OrderView]]]] = defaultdict(list)

    @property
    def fault(self) -> str | None:
        """Why the orders are not whole yet; None once they are."""
        return self._follower.fault

    async def run(self) -> None:
        """Read on from where the store is, for ever. Raises when Kafka or Postgres is away: run it again."""
        positions = await self._store.positions(self._follower.names)
        await self._follower.run(positions, self._take)

    async def reached(self, order_id: str, version: int, *, seconds: float) -> OrderView | None:
        """An order once it is at `version`; as far as it is known when that takes more than `seconds`."""
        future: asyncio.Future[OrderView] = asyncio.get_running_loop().create_future()
        entry = (version, future)
        self._waiting[order_id].append(entry)
        try:
            found = await self._orders.order(order_id)
            if found is not None and found.version >= version:
                return found
            done, _ = await asyncio.wait([future], timeout=seconds)
            return future.result() if done else found
        finally:
            self._waiting[order_id].remove(entry)
            if not self._waiting[order_id]:
                del self._waiting[order_id]

    async def _take(self, polled: Polled, positions: list[Position]) -> None:
        told: list[ToldOfOrder] = []
        steps: list[Step] = []
        for records in polled.values():
            for record in records:
                self._read(record, told, steps)
        self._wake(await self._orders.project(told, steps, positions))

    def _wake(self, views: Iterable[OrderView]) -> None:
        for view in views:
            for version, future in self._waiting.get(view.order_id, ()):
                if view.version >= version and not future.done():
                    future.set_result(view)

    def _read(self, record: ConsumerRecord, told: list[ToldOfOrder], steps: list[Step]) -> None:
        try:
            event = Envelope.decode(record.key, record.value)
            data = _storable(event)
            if record.topic == self._events:
                told.append(ToldOfOrder(orders.EVENT_VOCABULARY.parse(event), event.time, data))
                return
            kind, vocabulary = self._kinds[record.topic]
            message = vocabulary.parse(event)
            steps.append(Step(message.order_id, kind, event.id, event.type.rpartition(".")[2], event.time, data))
        except Undecodable as error:
            metrics.IGNORED.labels(record.topic).inc()
            log.warning("%s %s/%s: %s", record.topic, record.partition, record.offset, error)


def _storable(event: Envelope) -> str:
    """The data of an event as JSON that Postgres takes; `Undecodable` when it does not."""
    data = orjson.dumps(event.data).decode()
    if _NO_TEXT in data:
        raise Undecodable("bad_data", "a text holds a NUL")
    return data
