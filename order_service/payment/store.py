"""Payment's rows: what is wanted is stored here before it is acknowledged, and what became of it for ever."""

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
    """A key that is known already belongs to another order or payment: it is not ours to touch."""


@dataclass(frozen=True, slots=True)
class ProviderState:
    """Whether the provider can be reached, since when, and how often that has changed."""

    available: bool
    since: datetime
    version: int


class PaymentStore:
    """The rows. `connect` gives a connection with `OPTIONS`; after an error it is asked for another."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self._connection: Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    async def accept(self, asked: Sequence[tuple[Request, Envelope]]) -> None:
        """Store what is wanted, in one transaction and in this order; raises what Postgres raises, and nothing is then.

        A notice about a payment that is not ours is nothing. `StepsDiffer` when a key comes with another order.
        """
        async with self._one_at_a_time:
            try:
                connection = self._connection = self._connection or await self.connect()
                async with connection.transaction():
                    await _accept(connection, asked)
            except StepsDiffer:
                raise
            except BaseException:
                await self.close()
                raise

    async def provider(self, name: str, *, available: bool) -> ProviderState:
        """Note whether the provider can be reached; what is known of it then."""
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
        """Give the connection up; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _accept(connection: Connection, asked: Sequence[tuple[Request, Envelope]]) -> None:
    new = {key_of(request): request for request, _ in asked if not isinstance(request, Notified)}
    keys = sorted({key_of(request) for request, _ in asked})
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
        steps = {row["key"]: step_of(row) for row in await cursor.fetchall()}
    for request, event in asked:
        step = steps.get(key_of(request))
        if step is None:
            continue
        same = (step.order_id, step.payment_id) == (request.order_id, request.payment_id)
        if not same or isinstance(request, Refund) != (step.wish == "refund"):
            raise StepsDiffer(f"{step.key} is a {step.wish} of order {step.order_id} and payment {step.payment_id}")
        accepted = accept(step, request)
        steps[step.key] = accepted.step
        await connection.execute(QUERIES["save_step"], _row(accepted.step, event, accepted.ask, accepted.tell))


def _row(step: Step, event: Envelope, ask: bool, tell: bool) -> dict[str, Any]:  # noqa: FBT001 - two columns
    return {
        "key": step.key,
        "wish": step.wish,
        "amount": step.amount.amount if step.amount else None,
        "currency": step.amount.currency if step.amount else None,
        "token": step.token,
        "requestid": event.requestid,
        "traceparent": event.traceparent,
        "ask": ask,
        "tell": tell,
    }


def step_of(row: Mapping[str, Any]) -> Step:
    """The step that a row of the table holds."""
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
    """The columns of what an answer has taught, for the end of a lease. What is new is to be told."""
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
    known: dict[str, Any] = {"reason": after.reason}
    if after.doubted and not before.doubted:
        known |= {"doubted_at": NOW, "tell_at": NOW}
    return known


def _money(amount: int | None, currency: str | None) -> Money | None:
    return None if amount is None or currency is None else Money(amount=amount, currency=currency)
