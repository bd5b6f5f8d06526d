"""The store of operations. A request is stored before it is acknowledged, and outcomes are kept indefinitely."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from psycopg.rows import dict_row

from infrastructure.envelope import Envelope
from infrastructure.postgres import Connection, load_queries
from infrastructure.pump import NOW
from inventory_service.messages import Money
from order_service.payment.messages import Notified, Refund, Request
from order_service.payment.model import Step, accept, key_of

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
OPTIONS: Final = "-c transaction_timeout=5s -c lock_timeout=4s -c enable_seqscan=off -c jit=off"
"""Server settings for the connection of `PaymentStore`."""


class StepsDiffer(Exception):
    """The key in a request belongs to another order or payment. The request fails permanently."""


@dataclass(frozen=True, slots=True)
class ProviderState:
    """The stored availability of the provider."""

    available: bool
    """True if the provider can be reached."""
    since: datetime
    """The time of the last change."""
    version: int
    """The number of changes, which increases with each one."""


class PaymentStore:
    """The store of operations. `connect` must return a connection with `OPTIONS`; it is called again on error."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self._connection: Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    async def accept(self, batch: Sequence[tuple[Request, Envelope]]) -> None:
        """Store a batch of requests, in order and in one transaction.

        `Notified` for an unknown payment is ignored. Raise `StepsDiffer` if a key belongs to another order or payment,
        or an error of Postgres; nothing is stored then.
        """
        async with self._one_at_a_time:
            try:
                connection = self._connection = self._connection or await self.connect()
                async with connection.transaction():
                    await _accept(connection, batch)
            except StepsDiffer:
                raise
            except BaseException:
                await self.close()
                raise

    async def provider(self, name: str, *, available: bool) -> ProviderState:
        """Store the availability of the provider. Return the stored state."""
        async with self._one_at_a_time:
            try:
                connection = self._connection = self._connection or await self.connect()
                await connection.execute(QUERIES["save_provider"], {"provider": name, "available": available})
                cursor = await connection.execute(QUERIES["provider"], {"provider": name})
                [row] = await cursor.fetchall()
                return ProviderState(*row)
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """Close the connection. The next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _accept(connection: Connection, batch: Sequence[tuple[Request, Envelope]]) -> None:
    new = {key_of(request): request for request, _ in batch if not isinstance(request, Notified)}
    keys = sorted({key_of(request) for request, _ in batch})
    await connection.execute(
        QUERIES["insert_missing"],
        {
            "keys": list(new),
            "orders": [request.order_id for request in new.values()],
            "users": [request.user_id for request in new.values()],
            "payments": [request.payment_id for request in new.values()],
        },
    )
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUERIES["lock_steps"], {"keys": keys})
        operations = {row["key"]: step_of(row) for row in await cursor.fetchall()}
    for request, event in batch:
        operation = operations.get(key_of(request))
        if operation is None:
            continue
        same = (operation.order_id, operation.payment_id) == (request.order_id, request.payment_id)
        if not same or isinstance(request, Refund) != (operation.wish == "refund"):
            raise StepsDiffer(
                f"key {operation.key} belongs to a {operation.wish}"
                f" of order {operation.order_id} and payment {operation.payment_id}"
            )
        accepted = accept(operation, request)
        operations[operation.key] = accepted.step
        await connection.execute(QUERIES["save_step"], _row(accepted.step, event, accepted.ask, accepted.tell))


def _row(operation: Step, event: Envelope, ask: bool, tell: bool) -> dict[str, Any]:  # noqa: FBT001 - two columns
    return {
        "key": operation.key,
        "wish": operation.wish,
        "amount": operation.amount.amount if operation.amount else None,
        "currency": operation.amount.currency if operation.amount else None,
        "token": operation.token,
        "requestid": event.requestid,
        "traceparent": event.traceparent,
        "ask": ask,
        "tell": tell,
    }


def step_of(row: Mapping[str, Any]) -> Step:
    """Return the operation of a stored row."""
    return Step(
        key=row["key"],
        order_id=row["order_id"],
        user_id=row["user_id"],
        payment_id=row["payment_id"],
        wish=row["wish"],
        amount=_money(row["amount"], row["currency"]),
        token=row["token"],
        state=row["state"],
        settled=_money(row["settled_amount"], row["settled_currency"]),
        reason=row["reason"],
        doubted=row["doubted_at"] is not None,
    )


def changes(before: Step, after: Step) -> dict[str, Any]:
    """Return the columns to set when a lease ends. A new outcome is scheduled for publication."""
    if after.state != "open":
        return {
            "state": after.state,
            "settled_amount": after.settled.amount if after.settled else None,
            "settled_currency": after.settled.currency if after.settled else None,
            "reason": after.reason,
            "token": None,
            "settled_at": NOW,
            "tell_at": NOW,
        }
    columns: dict[str, Any] = {"reason": after.reason}
    if after.doubted and not before.doubted:
        columns |= {"doubted_at": NOW, "tell_at": NOW}
    return columns


def _money(amount: int | None, currency: str | None) -> Money | None:
    return None if amount is None or currency is None else Money(amount=amount, currency=currency)
