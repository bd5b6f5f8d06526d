"""The repair commands on the event store: republish all events, rebuild the read side, erase personal data."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from contracts import orders
from contracts.envelope import Envelope
from contracts.topics import Topic
from infrastructure.storage.postgres import Connection
from order_service.agents import event_envelope
from order_service.model import SagaTimeouts
from order_service.state import Order, evolve
from order_service.store import QUERIES, RecordedEvent, folded_row, read_event, row_of

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


async def republish(connection: Connection, publish: Publish) -> int:
    """Send every event again, ordered within each order. Return their number.

    Consumers keep the greatest version of an order, so a repeat is harmless.
    """
    count = 0
    async for _, order, events in _orders(connection):
        await publish(orders.EVENTS, [event_envelope(order, event, at) for event, at in events])
        count += len(events)
    return count


async def rebuild(connection: Connection, timeouts: SagaTimeouts) -> list[str]:
    """Rebuild the read side from the events. Return the ids of the orders whose rows differed.

    The state of work in progress is kept. An order without a row gets one, is published again and becomes due at once.
    The table is locked meanwhile, so that no batch is decided.
    """
    async with connection.transaction():
        await connection.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        cursor = await connection.execute(QUERIES["read_side"])
        before = {row[0]: row for row in await cursor.fetchall()}
        [(now,)] = await (await connection.execute("SELECT now()")).fetchall()
        differing = sorted(before.keys() - {order_id async for order_id, _, _ in _orders(connection)})
        await connection.execute(QUERIES["delete_orders_without_events"])
        async for order_id, order, _ in _orders(connection):
            if before.get(order_id) != folded_row(order):
                differing.append(order_id)
                await connection.execute(QUERIES["insert_rebuilt"], {"new": [order_id], "users": [order.user_id]})
                row = row_of(order, now, 0, timeouts)
                await connection.execute(QUERIES["save_orders"], [[value] for value in row])
    return differing


async def erase_personal_data(connection: Connection, user_id: str) -> int:
    """Erase the addresses, contacts and payment tokens of a shopper's complete orders. Return their number."""
    return (await connection.execute(QUERIES["erase_personal_data"], {"user": user_id})).rowcount


async def _orders(connection: Connection) -> Any:
    """Yield each order as (order id, folded state, events)."""
    async with connection.transaction(), connection.cursor("events") as cursor:
        await cursor.execute(QUERIES["all_events"])
        order: Order | None = None
        events: list[RecordedEvent] = []
        async for order_id, _, type_, data, at in cursor:
            if order is not None and order.order_id != order_id:
                yield order.order_id, order, events
                order, events = None, []
            event = read_event(type_, data)
            order = evolve(order, event, at)
            events.append((event, at))
        if order is not None:
            yield order.order_id, order, events
