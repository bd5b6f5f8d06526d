"""What the service keeps: notices and how their users are reached, in the Postgres schema `notifications`.

One connection does the transactions of all agents, one after the other; the pumps have another, on which they say
single statements only.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from psycopg.types.json import Jsonb

from infrastructure.crashpoints import crashpoint
from infrastructure.ids import derived
from infrastructure.postgres import Connection, load_queries
from notification_service.messages import Channel, Forget, Prefer, Request, Send
from notification_service.model import Bought, Planned, Preferences, Watched, plan, preferred
from order_service.messages import Place

SERVICE: Final = "notifications"
QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
OPTIONS: Final = "-c statement_timeout=5s -c lock_timeout=3s -c idle_in_transaction_session_timeout=5s -c jit=off"
"""Server settings for the connection of `Store`."""

Connect = Callable[[], Awaitable[Connection]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it stood on its topic: `record` is its value there."""

    request: Request
    accepted: datetime
    partition: int
    offset: int
    record: str
    traceparent: str | None


def notice_id(user: str, cause: str, channel: Channel) -> str:
    """The id of a notice: the same for the same cause and channel, so that a mailbox can tell a repetition."""
    return derived(user, cause, channel, "notice")


class Link:
    """One connection, opened when it is asked for and again when it was lost: for whoever says single statements."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def __call__(self) -> Connection:
        """The connection."""
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await self.connect()
            return self._connection

    async def rows(self, name: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """What the named query finds; nothing when it only changes something."""
        cursor = await (await self()).execute(QUERIES[name], values or {})
        return await cursor.fetchall() if cursor.description else []

    async def close(self) -> None:
        """Give it up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class Store:
    """Keeps what the agents hear, each batch in one transaction; when it raises, nothing of the batch is kept."""

    def __init__(self, connect: Connect) -> None:
        self.link = Link(connect)
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Give the connection up."""
        await self.link.close()

    async def keep(self, batch: Sequence[Asked], now: datetime) -> dict[str, Preferences]:
        """Store the notices that are asked for, and preferences; what the users that said theirs prefer after that."""
        users = {"users": sorted({asked.request.user_id for asked in batch})}
        said: dict[str, Preferences] = {}
        async with self._transaction() as connection:
            preferences = {user: Preferences(*rest) for user, *rest in await _all(connection, "preferences", users)}
            known: dict[str, tuple[Channel, ...]] = {
                user: ("email", "sms") if phone else ("email",)
                for user, phone in await _all(connection, "known_contacts", users)
            }
            for asked in batch:
                request, user = asked.request, asked.request.user_id
                before = preferences.get(user, Preferences())
                match request:
                    case Send():
                        planned = plan(request, before, known.get(user, ()), age=now - asked.accepted)
                        await _keep_notices(connection, asked, request, planned)
                    case Prefer():
                        said[user] = preferences[user] = preferred(before, request, asked.accepted)
                        await _keep_preference(connection, user, preferences[user])
                    case Forget():
                        await _forget(connection, user, asked.accepted)
                        known.pop(user, None)
            crashpoint("notifications.written")
        return said

    async def keep_contacts(self, places: Iterable[tuple[Place, datetime]]) -> None:
        """Remember how a shopper is reached about an order, unless they were forgotten since."""
        async with self._transaction() as connection:
            for place, accepted in places:
                values = {
                    "order_id": place.order_id,
                    "user_id": place.user_id,
                    "email": place.contact.email,
                    "phone": place.contact.phone,
                    "noted_at": accepted,
                }
                await connection.execute(QUERIES["keep_contact"], values)

    async def keep_bought(self, orders: Mapping[str, tuple[str, Bought, datetime]]) -> None:
        """Remember what orders come to: by order, its user, the words, and when it was told."""
        async with self._transaction() as connection:
            for order_id, (user, bought, at) in orders.items():
                words = {"lines": bought.lines, "total": bought.total}
                values = {"order_id": order_id, "user_id": user, "told_at": at, **words}
                await connection.execute(QUERIES["keep_bought"], values)

    async def bought(self, orders: Iterable[str]) -> dict[str, Bought]:
        """What those of some orders come to of which that is known."""
        async with self._transaction() as connection:
            found = await _all(connection, "bought", {"orders": sorted(orders)})
        return {order_id: Bought(lines, total) for order_id, lines, total in found}

    async def follow(
        self, users: Iterable[str], change: Callable[[str, Watched], tuple[Watched, datetime | None]]
    ) -> None:
        """Bring some carts up to what `change` makes of them: the cart, and when to warn of its end."""
        wanted = sorted(set(users))
        async with self._transaction() as connection:
            found = await _all(connection, "carts", {"users": wanted})
            before = {user: Watched(version, end, frozenset(products)) for user, version, end, products in found}
            after = {user: change(user, before.get(user, Watched())) for user in wanted}
            changed = {user: (cart, due) for user, (cart, due) in after.items() if cart != before.get(user, Watched())}
            if changed:
                carts = [cart for cart, _ in changed.values()]
                values = {
                    "users": list(changed),
                    "versions": [cart.version for cart in carts],
                    "ends": [cart.expires_at for cart in carts],
                    "products": [Jsonb(sorted(cart.products)) for cart in carts],
                    "due": [due for _, due in changed.values()],
                }
                await connection.execute(QUERIES["keep_carts"], values)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._turn:
            connection = await self.link()
            try:
                async with connection.transaction():
                    yield connection
            except BaseException:
                await self.link.close()  # whether it was committed is unknown; the same again is always right
                raise


async def _all(connection: Connection, name: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return await (await connection.execute(QUERIES[name], values)).fetchall()


async def _keep_notices(connection: Connection, asked: Asked, send: Send, planned: Sequence[Planned]) -> None:
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
            "accepted_at": asked.accepted,
            "status": notice.status,
            "reason": notice.reason,
            "traceparent": asked.traceparent,
            "request": asked.record,
            "partition": asked.partition,
            "offset": asked.offset,
            "redrives": send.redrives,
        }
        await connection.execute(QUERIES["keep_notice"], values)


async def _keep_preference(connection: Connection, user: str, stands: Preferences) -> None:
    values = {
        "user_id": user,
        "email": stands.email,
        "sms": stands.sms,
        "push": stands.push,
        "since": stands.since,
    }
    await connection.execute(QUERIES["keep_preference"], values)


async def _forget(connection: Connection, user: str, at: datetime) -> None:
    values = {"user_id": user, "at": at}
    for name in ("remember_forgetting", "forget_contacts", "forget_bought", "forget_sms", "forget_notices"):
        await connection.execute(QUERIES[name], values)
