"""The store of operations. A request is stored before it is acknowledged, and outcomes are kept indefinitely."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from psycopg.rows import dict_row

from contracts.envelope import Envelope
from contracts.inventory import Money
from contracts.payments import Notified, Refund, Request
from infrastructure.storage.job_queue import NOW
from infrastructure.storage.postgres import Connection, load_queries
from order_service.payment.model import Operation, apply_request, operation_key

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
STORE_OPTIONS: Final = "-c transaction_timeout=5s -c lock_timeout=4s -c enable_seqscan=off -c jit=off"
"""Server settings for the connection of `PaymentStore`."""


class OperationConflict(Exception):
    """The key in a request belongs to another order or payment. The request fails permanently."""


@dataclass(frozen=True, slots=True)
class ProviderAvailability:
    """The stored availability of the provider."""

    available: bool
    """True if the provider can be reached."""
    since: datetime
    """The time of the last change."""
    version: int
    """The number of changes, which increases with each one."""


class PaymentStore:
    """The store of operations. `connect` must return a connection with `STORE_OPTIONS`; it is called again on error."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self._connection: Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    async def store_requests(self, batch: Sequence[tuple[Request, Envelope]]) -> None:
        """Store a batch of requests, in order and in one transaction.

        `Notified` for an unknown payment is ignored. Raise `OperationConflict` if a key belongs to another order or
        payment, or an error of Postgres; nothing is stored then.
        """
        async with self._one_at_a_time:
            try:
                connection = self._connection = self._connection or await self.connect()
                async with connection.transaction():
                    await _accept(connection, batch)
            except OperationConflict:
                raise
            except BaseException:
                await self.close()
                raise

    async def save_availability(self, name: str, *, available: bool) -> ProviderAvailability:
        """Store the availability of the provider. Return the stored state."""
        async with self._one_at_a_time:
            try:
                connection = self._connection = self._connection or await self.connect()
                await connection.execute(QUERIES["save_provider"], {"provider": name, "available": available})
                cursor = await connection.execute(QUERIES["provider"], {"provider": name})
                [row] = await cursor.fetchall()
                return ProviderAvailability(*row)
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """Close the connection. The next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _accept(connection: Connection, batch: Sequence[tuple[Request, Envelope]]) -> None:
    new = {operation_key(request): request for request, _ in batch if not isinstance(request, Notified)}
    keys = sorted({operation_key(request) for request, _ in batch})
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
        operations = {row["key"]: operation_of(row) for row in await cursor.fetchall()}
    for request, event in batch:
        operation = operations.get(operation_key(request))
        if operation is None:
            continue
        same = (operation.order_id, operation.payment_id) == (request.order_id, request.payment_id)
        if not same or isinstance(request, Refund) != (operation.intent == "refund"):
            raise OperationConflict(
                f"key {operation.key} belongs to a {operation.intent}"
                f" of order {operation.order_id} and payment {operation.payment_id}"
            )
        accepted = apply_request(operation, request)
        operations[operation.key] = accepted.operation
        await connection.execute(
            QUERIES["save_step"], _row(accepted.operation, event, accepted.must_call_provider, accepted.must_republish)
        )


def _row(operation: Operation, event: Envelope, ask: bool, tell: bool) -> dict[str, Any]:  # noqa: FBT001 - two columns
    return {
        "key": operation.key,
        "wish": operation.intent,
        "amount": operation.amount.amount if operation.amount else None,
        "currency": operation.amount.currency if operation.amount else None,
        "token": operation.token,
        "requestid": event.requestid,
        "traceparent": event.traceparent,
        "ask": ask,
        "tell": tell,
    }


def operation_of(row: Mapping[str, Any]) -> Operation:
    """Return the operation of a stored row."""
    return Operation(
        key=row["key"],
        order_id=row["order_id"],
        user_id=row["user_id"],
        payment_id=row["payment_id"],
        intent=row["wish"],
        amount=_money(row["amount"], row["currency"]),
        token=row["token"],
        state=row["state"],
        settled_amount=_money(row["settled_amount"], row["settled_currency"]),
        reason=row["reason"],
        outcome_unknown=row["doubted_at"] is not None,
    )


def changed_columns(before: Operation, after: Operation) -> dict[str, Any]:
    """Return the columns to set when a lease ends. A new outcome is scheduled for publication."""
    if after.state != "open":
        return {
            "state": after.state,
            "settled_amount": after.settled_amount.amount if after.settled_amount else None,
            "settled_currency": after.settled_amount.currency if after.settled_amount else None,
            "reason": after.reason,
            "token": None,
            "settled_at": NOW,
            "tell_at": NOW,
        }
    columns: dict[str, Any] = {"reason": after.reason}
    if after.outcome_unknown and not before.outcome_unknown:
        columns |= {"doubted_at": NOW, "tell_at": NOW}
    return columns


def _money(amount: int | None, currency: str | None) -> Money | None:
    return None if amount is None or currency is None else Money(amount=amount, currency=currency)
