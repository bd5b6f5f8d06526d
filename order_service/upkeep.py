"""What is done with the event store by hand: publish all of it again, compute the read side anew, forget a shopper."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from infrastructure.envelope import Envelope
from infrastructure.postgres import Connection
from infrastructure.topics import Topic
from order_service import messages as orders
from order_service.agents import published
from order_service.model import Rules
from order_service.state import Order, evolve
from order_service.store import QUERIES, Recorded, folded, read_event, row_of

AT_ONCE: Final = 500

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


async def republish(connection: Connection, publish: Publish) -> int:
    """Send every event again, those of an order in theirs; how many that were. Readers keep the greatest version."""
    count = 0
    async for _, order, events in _orders(connection):
        await publish(orders.EVENTS, [published(order, event, at) for event, at in events])
        count += len(events)
    return count


async def rebuild(connection: Connection, rules: Rules) -> list[str]:
    """Compute the read side anew from the events; the ids of the orders for which it said something else.

    What is work in hand is kept; an order that has no row gets one, is published again, and looked at at once. Nobody
    may decide meanwhile, so the table is locked.
    """
    async with connection.transaction():
        await connection.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        cursor = await connection.execute(QUERIES["read_side"])
        before = {row[0]: row for row in await cursor.fetchall()}
        [(now,)] = await (await connection.execute("SELECT now()")).fetchall()
        differing = sorted(before.keys() - {order_id async for order_id, _, _ in _orders(connection)})
        await connection.execute(QUERIES["no_events"])
        async for order_id, order, _ in _orders(connection):
            if before.get(order_id) != folded(order):
                differing.append(order_id)
                await connection.execute(QUERIES["insert_rebuilt"], {"new": [order_id], "users": [order.user_id]})
                row = row_of(order, now, 0, rules)
                await connection.execute(QUERIES["save_orders"], [[value] for value in row])
    return differing


async def forget(connection: Connection, user_id: str) -> int:
    """Erase addresses, contacts and payment tokens of a shopper's orders that are at rest; of how many."""
    return (await connection.execute(QUERIES["forget"], {"user": user_id})).rowcount


async def _orders(connection: Connection) -> Any:
    """Each order: its id, what its events come to, and they."""
    async with connection.transaction(), connection.cursor("events") as cursor:
        await cursor.execute(QUERIES["all_events"])
        order: Order | None = None
        events: list[Recorded] = []
        async for order_id, _, type_, data, at in cursor:
            if order is not None and order.order_id != order_id:
                yield order.order_id, order, events
                order, events = None, []
            event = read_event(type_, data)
            order = evolve(order, event, at)
            events.append((event, at))
        if order is not None:
            yield order.order_id, order, events
