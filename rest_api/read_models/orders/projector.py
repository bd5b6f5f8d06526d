"""Feeds the read model of orders from the events of orders, payments and deliveries, and wakes requests that wait."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import orjson

from contracts import deliveries, orders, payments
from contracts.envelope import Envelope, Message, UndecodableError
from contracts.topics import Topic
from infrastructure.process.settings import Settings
from rest_api.read_models.orders.fold import OrderView
from rest_api.read_models.orders.queries import OrderEventRecord, OrderStepRecord, OrderStore
from rest_api.read_models.projector import Event, Projector, Topics
from rest_api.read_models.store import ReadPosition, Store

_STEP_KINDS: Final[dict[Topic, str]] = {payments.EVENTS: "payment", deliveries.EVENTS: "delivery"}
"""The kinds of steps, by the topic on which they are reported."""
_TOPICS: Final[Topics] = {
    orders.EVENTS: orders.EVENT_REGISTRY,
    payments.EVENTS: payments.EVENT_REGISTRY,
    deliveries.EVENTS: deliveries.EVENT_REGISTRY,
}
_ESCAPED_NUL: Final = "\\u0000"
"""A NUL in a text, which Postgres rejects."""


class OrderProjector:
    """The consumer of three topics, and the requests that wait for an order."""

    def __init__(self, settings: Settings, store: Store, order_store: OrderStore) -> None:
        self._orders = order_store
        self._projector = Projector(settings, store, "orders", _TOPICS, self._apply, check=_check_storable)
        self._waiting: defaultdict[str, list[tuple[int, asyncio.Future[OrderView]]]] = defaultdict(list)

    @property
    def fault(self) -> str | None:
        """The reason for which the orders are incomplete; `None` once they have caught up with the start."""
        return self._projector.fault

    async def run(self) -> None:
        """Read from the stored positions, indefinitely. Raises when Kafka or Postgres is unavailable; run it again."""
        await self._projector.run()

    async def wait_for_version(self, order_id: str, version: int, *, seconds: float) -> OrderView | None:
        """Return an order once it is at `version`; after `seconds`, return it as far as it is known."""
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

    async def _apply(self, events: Sequence[Event], positions: Sequence[ReadPosition]) -> None:
        order_events: list[OrderEventRecord] = []
        steps: list[OrderStepRecord] = []
        for event in events:
            envelope, data = event.envelope, _json(event.envelope)
            if event.topic == orders.EVENTS:
                order_events.append(OrderEventRecord(event.message, envelope.time, data))
            else:
                kind, name = _STEP_KINDS[event.topic], envelope.type.rpartition(".")[2]
                steps.append(OrderStepRecord(event.message.order_id, kind, envelope.id, name, envelope.time, data))
        self._resolve_waiting(await self._orders.project(order_events, steps, positions))

    def _resolve_waiting(self, views: Iterable[OrderView]) -> None:
        for view in views:
            for version, future in self._waiting.get(view.order_id, ()):
                if view.version >= version and not future.done():
                    future.set_result(view)


def _check_storable(event: Envelope, _: Message) -> None:
    """Raise `UndecodableError` if Postgres would reject the data of an event."""
    if _ESCAPED_NUL in _json(event):
        raise UndecodableError("bad_data", "a text holds a NUL")


def _json(event: Envelope) -> str:
    return orjson.dumps(event.data).decode()
