"""The store of the notification service: notices, preferences and contacts, in the Postgres schema `notifications`.

One connection runs the transactions of all agents, one at a time. The job queues have another connection, on which they
run single statements only.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from psycopg.types.json import Jsonb

from contracts.ids import derive_id
from contracts.inventory import Product
from contracts.notifications import Channel, Forget, Prefer, Request, Send
from contracts.orders import Place
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.postgres import Connection, load_queries
from notification_service.model import (
    OrderSummary,
    PlannedNotice,
    Preferences,
    TrackedCart,
    apply_preference,
    plan_notices,
)

SERVICE: Final = "notifications"
QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
STORE_OPTIONS: Final = "-c statement_timeout=5s -c lock_timeout=3s -c idle_in_transaction_session_timeout=5s -c jit=off"
"""Server settings for the connection of `Store`."""

Connect = Callable[[], Awaitable[Connection]]


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request with its position on its topic; `record` is the value of its record."""

    request: Request
    accepted: datetime
    partition: int
    offset: int
    record: str
    traceparent: str | None
    by_service: bool = False
    """True if another service sent the request."""


def notice_id(user: str, cause: str, channel: Channel) -> str:
    """Return the id of a notice, derived from user, cause and channel, so that a mailbox can detect a repeat."""
    return derive_id(user, cause, channel, "notice")


class SharedConnection:
    """One connection for single statements, opened on first use and again after it was lost."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def __call__(self) -> Connection:
        """Return the connection."""
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await self.connect()
            return self._connection

    async def fetch(self, name: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a named query and return its rows; empty for a statement without a result."""
        cursor = await (await self()).execute(QUERIES[name], values or {})
        return await cursor.fetchall() if cursor.description else []

    async def close(self) -> None:
        """Close the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class Store:
    """Store for the agents' batches, each in one transaction. If a method raises, nothing of the batch is stored."""

    def __init__(self, connect: Connect) -> None:
        self.connection = SharedConnection(connect)
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def store_requests(self, batch: Sequence[ReceivedRequest], now: datetime) -> dict[str, Preferences]:
        """Store the requests of a batch, and return the current preferences of the users who changed theirs."""
        users = {"users": sorted({received.request.user_id for received in batch})}
        answers: dict[str, Preferences] = {}
        async with self._transaction() as connection:
            preferences = {
                user: Preferences(*rest) for user, *rest in await _fetch_all(connection, "preferences", users)
            }
            contact_channels: dict[str, tuple[Channel, ...]] = {
                user: ("email", "sms") if phone else ("email",)
                for user, phone in await _fetch_all(connection, "known_contacts", users)
            }
            for received in batch:
                request, user = received.request, received.request.user_id
                before = preferences.get(user, Preferences())
                match request:
                    case Send():
                        planned = plan_notices(
                            request, before, contact_channels.get(user, ()), age=now - received.accepted
                        )
                        await _insert_notices(connection, received, request, planned)
                    case Prefer():
                        answers[user] = preferences[user] = apply_preference(before, request, received.accepted)
                        await _upsert_preference(connection, user, preferences[user])
                    case Forget():
                        await _erase(connection, user, received.accepted)
                        contact_channels.pop(user, None)
            failpoint("notifications.written")
        return answers

    async def store_contacts(self, orders_placed: Iterable[tuple[Place, datetime]]) -> None:
        """Store the contacts of orders, unless their users were erased since."""
        async with self._transaction() as connection:
            for place, accepted in orders_placed:
                values = {
                    "order_id": place.order_id,
                    "user_id": place.user_id,
                    "email": place.contact.email,
                    "phone": place.contact.phone,
                    "noted_at": accepted,
                }
                await connection.execute(QUERIES["insert_contact"], values)

    async def store_order_summaries(self, orders: Mapping[str, tuple[str, OrderSummary, datetime]]) -> None:
        """Store the summaries of orders: by order id, the user, the summary, and the time of its event."""
        async with self._transaction() as connection:
            for order_id, (user, bought, at) in orders.items():
                words = {"lines": bought.lines, "total": bought.total}
                values = {"order_id": order_id, "user_id": user, "told_at": at, **words}
                await connection.execute(QUERIES["insert_order_summary"], values)

    async def store_paid_orders(self, paid: Mapping[str, str]) -> None:
        """Record that the payment of some orders was captured: the user of each, by order id."""
        async with self._transaction() as connection:
            values = {"orders": list(paid), "users": list(paid.values())}
            await connection.execute(QUERIES["insert_paid_orders"], values)

    async def store_product_names(self, products: Iterable[Product]) -> None:
        """Store the names of products, the latest version of each."""
        latest: dict[str, Product] = {}
        for product in sorted(products, key=lambda each: each.version):
            latest[product.code] = product
        values = {
            "codes": list(latest),
            "names": [product.name for product in latest.values()],
            "versions": [product.version for product in latest.values()],
        }
        async with self._transaction() as connection:
            await connection.execute(QUERIES["upsert_product_names"], values)

    async def product_names(self, codes: Iterable[str]) -> dict[str, str]:
        """Return the known names of some products, by product code."""
        async with self._transaction() as connection:
            rows = await _fetch_all(connection, "product_names", {"codes": sorted(codes)})
        return dict(rows)

    async def order_summaries(self, orders: Iterable[str]) -> dict[str, OrderSummary]:
        """Return the stored summaries of some orders."""
        async with self._transaction() as connection:
            rows = await _fetch_all(connection, "order_summaries", {"orders": sorted(orders)})
        return {order_id: OrderSummary(lines, total) for order_id, lines, total in rows}

    async def update_carts(
        self, users: Iterable[str], change: Callable[[str, TrackedCart], tuple[TrackedCart, datetime | None]]
    ) -> None:
        """Update the carts of some users: `change` returns the new cart, and when to warn of its expiry."""
        sorted_users = sorted(set(users))
        async with self._transaction() as connection:
            rows = await _fetch_all(connection, "carts", {"users": sorted_users})
            before = {user: TrackedCart(version, end, frozenset(products)) for user, version, end, products in rows}
            after = {user: change(user, before.get(user, TrackedCart())) for user in sorted_users}
            changed = {
                user: (cart, due) for user, (cart, due) in after.items() if cart != before.get(user, TrackedCart())
            }
            if changed:
                carts = [cart for cart, _ in changed.values()]
                values = {
                    "users": list(changed),
                    "versions": [cart.version for cart in carts],
                    "ends": [cart.expires_at for cart in carts],
                    "products": [Jsonb(sorted(cart.products)) for cart in carts],
                    "due": [due for _, due in changed.values()],
                }
                await connection.execute(QUERIES["upsert_carts"], values)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._lock:
            connection = await self.connection()
            try:
                async with connection.transaction():
                    yield connection
            except BaseException:
                await self.connection.close()  # it is unknown whether it was committed; a repeat is always safe
                raise


async def _fetch_all(connection: Connection, name: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return await (await connection.execute(QUERIES[name], values)).fetchall()


async def _insert_notices(
    connection: Connection, received: ReceivedRequest, send: Send, planned: Sequence[PlannedNotice]
) -> None:
    for notice in planned:
        values = {
            "notice_id": notice_id(send.user_id, send.cause, notice.channel),
            "user_id": send.user_id,
            "cause": send.cause,
            "channel": notice.channel,
            "template": send.template,
            "params": Jsonb(send.params),
            "order_id": send.order_id,
            "until": send.until,
            "accepted_at": received.accepted,
            "status": notice.status,
            "reason": notice.reason,
            "traceparent": received.traceparent,
            "request": received.record,
            "partition": received.partition,
            "offset": received.offset,
            "redrives": send.redrives,
            "by_service": received.by_service,
            "proven_only": send.proven_only,
            "recipient": send.recipient,
        }
        await connection.execute(QUERIES["upsert_notice"], values)


async def _upsert_preference(connection: Connection, user: str, preferences: Preferences) -> None:
    values = {
        "user_id": user,
        "email": preferences.email,
        "sms": preferences.sms,
        "push": preferences.push,
        "since": preferences.since,
    }
    await connection.execute(QUERIES["upsert_preference"], values)


async def _erase(connection: Connection, user: str, at: datetime) -> None:
    values = {"user_id": user, "at": at}
    for name in (
        "insert_erasure",
        "delete_contacts",
        "delete_paid_orders",
        "delete_order_summaries",
        "delete_claims",
        "delete_sms",
        "erase_notices",
    ):
        await connection.execute(QUERIES[name], values)
