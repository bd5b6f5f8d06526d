"""The event store: one Postgres transaction for a batch of messages, in two trips around the pure model.

Trip one locks the orders in the order of their ids and reads their events; trip two appends what came true and keeps
the read side, one row an order, in step. A message is handled only while its order's row is locked, and the event
store's key (order, version) is the second guard: who decided on an old version fails there.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from infrastructure.crashpoints import crashpoint
from infrastructure.postgres import Connection, load_queries
from inventory_service import messages as inventory
from order_service import messages as orders
from order_service.messages import EVENT_VOCABULARY, Address, Contact, Event, Payment
from order_service.model import (
    Answer,
    Asked,
    Came,
    Deadline,
    RefusedBecause,
    RequestKey,
    Rules,
    handle,
    is_early,
    key_of,
)
from order_service.state import Order, evolve
from order_service.steps import Private, deadline

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
OPTIONS: Final = "-c transaction_timeout=5s -c lock_timeout=4s -c jit=off"
"""Server settings for the connection of `OrderStore`."""

WAITING: Final = {
    each.__name__: each for each in (inventory.Committed, inventory.Refused, inventory.IdReused, orders.Cancel)
}
"""What may come too early, by the name it is kept under."""

PLACE_PATIENCE: Final = timedelta(seconds=10)
"""How long a cancellation waits for its order, which takes one more hop, before the order is unknown."""

ANSWERS_KEPT: Final = timedelta(days=9)
"""How long it is known what a request was answered: longer than the topic of requests keeps it."""

Recorded = tuple[Event, datetime]
"""An event and when it came true."""


@dataclass(slots=True)
class Turn:
    """What one batch did to one order, and how far the topics know of it."""

    order_id: str
    published: int = 0
    attempts: int = 0
    state: Order | None = None
    stream: list[Recorded] = field(default_factory=list)
    private: Private | None = None
    waiting: tuple[Came, ...] = ()
    answers: list[Answer] = field(default_factory=list)
    answered: dict[RequestKey, RefusedBecause | None] = field(default_factory=dict)
    asked: bool = False
    """Somebody asked something, or the deadline came: what is owed is to be sent, even if nothing has changed."""
    late: bool = False

    @property
    def untold(self) -> list[Recorded]:
        """The events that the topics may not know."""
        return self.stream[self.published :]


class OrderStore:
    """The store of one agent. `connect` gives a connection with `OPTIONS`; after any exception it is asked for another.

    When a method raises, whether it was done is unknown; the same again is always right.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], rules: Rules | None = None) -> None:
        self.connect = connect
        self.rules = rules or Rules()
        self._connection: Connection | None = None

    async def transact(self, batch: Sequence[Came]) -> list[Turn]:
        """Handle `batch` in its order; a turn for each order. Raises `Stray`, and nothing is done then."""
        try:
            connection = await self._connected()
            now, turns = await self._lock(connection, batch)
            crashpoint("orders.locked")
            before = {turn.order_id: (len(turn.stream), turn.waiting) for turn in turns.values()}
            private = self._handle(turns, batch, now)
            await self._write(connection, turns, before, private, now)
        except BaseException:
            await self.close()
            raise
        return [turn for turn in turns.values() if turn.state is not None or turn.answers]

    def _handle(self, turns: dict[str, Turn], batch: Sequence[Came], now: datetime) -> dict[str, Private]:
        private = {}
        for came in batch:
            turn = turns.setdefault(came.order_id, Turn(came.order_id))
            handled = handle(turn.state, turn.waiting, came, now=now, rules=self.rules, answered=turn.answered)
            if turn.state is None and isinstance(came.message, orders.Place):
                turn.private = private[came.order_id] = Private.of(came.message)
            turn.state, turn.waiting = handled.state, handled.waiting
            turn.stream += [(event, now) for event in handled.events]
            turn.answers += handled.answers
            turn.answered |= {key_of(answer.came): answer.refused for answer in handled.answers}
            turn.late = turn.late or isinstance(came.message, Deadline)
            turn.asked = turn.asked or isinstance(came.message, orders.Request | Deadline)
        return private

    async def _lock(self, connection: Connection, batch: Sequence[Came]) -> tuple[datetime, dict[str, Turn]]:
        new = {c.order_id: c.user_id for c in batch if isinstance(c.message, orders.Place) or is_early(None, c)}
        values: dict[str, Any] = {
            "new": list(new),
            "users": list(new.values()),
            "ids": sorted({came.order_id for came in batch}),
            "requests": [came.request_id for came in batch if isinstance(came.message, Asked)],
        }
        names = ("lock_orders", "streams", "privates", "waiting")
        async with connection.pipeline():
            await connection.execute("BEGIN")
            clock = await connection.execute("SELECT now()")
            if new:
                await connection.execute(QUERIES["insert_missing"], values)
            locked, streams, privates, waiting = [await connection.execute(QUERIES[name], values) for name in names]
            answered = await connection.execute(QUERIES["answered"], values) if values["requests"] else None
            [(now,)] = await clock.fetchall()
            turns = {id_: Turn(id_, published, attempts) async for _, id_, published, attempts in locked}
            async for order_id, type_, data, at in streams:
                turn = turns[order_id]
                event = read_event(type_, data)
                turn.state = evolve(turn.state, event, at)
                turn.stream.append((event, at))
            async for order_id, *texts in privates:
                turns[order_id].private = read_private(*texts)
            async for order_id, user_id, request_id, type_, message in waiting:
                came = Came(order_id, user_id, request_id, WAITING[type_].model_validate_json(message))
                turns[order_id].waiting += (came,)
            if answered:
                async for order_id, user_id, request_id, type_, refused in answered:
                    turn = turns.setdefault(order_id, Turn(order_id))
                    turn.answered[user_id, request_id, type_] = refused
        return now, turns

    async def _write(
        self,
        connection: Connection,
        turns: Mapping[str, Turn],
        before: Mapping[str, tuple[int, tuple[Came, ...]]],
        private: Mapping[str, Private],
        now: datetime,
    ) -> None:
        fresh = {id_: turn.stream[before.get(id_, (0, ()))[0] :] for id_, turn in turns.items()}
        moved = [turn for id_, turn in turns.items() if turn.state is not None and (fresh[id_] or turn.late)]
        for turn in moved:
            turn.attempts = 0 if fresh[turn.order_id] else turn.attempts + 1
        alone = [turn for turn in turns.values() if turn.state is None and (turn.late or turn.waiting)]
        held = {id_: set(waiting) for id_, (_, waiting) in before.items()}
        plan: list[tuple[str, list[tuple[Any, ...]]]] = [
            ("append_events", [(id_, *written(event)) for id_, events in fresh.items() for event, _ in events]),
            ("save_orders", [row_of(turn.state, now, turn.attempts, self.rules) for turn in moved if turn.state]),
            ("set_due", [(turn.order_id, _due_alone(turn, now)) for turn in alone]),
            ("save_private", [(id_, *(each.model_dump_json() for each in it)) for id_, it in private.items()]),
            (
                "add_waiting",
                [
                    (*_key(came), came.user_id, came.message.model_dump_json())
                    for id_, turn in turns.items()
                    for came in turn.waiting
                    if came not in held.get(id_, ()) and not isinstance(came.message, Deadline)
                ],
            ),
            (
                "drop_waiting",
                [_key(came) for id_, was in held.items() for came in was if came not in turns[id_].waiting],
            ),
            (
                "add_answered",
                [
                    (turn.order_id, *key_of(answer.came), answer.refused, ANSWERS_KEPT)
                    for turn in turns.values()
                    for answer in turn.answers
                    if not answer.replayed
                ],
            ),
        ]
        async with connection.pipeline():
            for name, rows in plan:
                if rows:
                    await connection.execute(QUERIES[name], _columns(rows))
            crashpoint("orders.written")
            await connection.execute("COMMIT")

    async def mark_published(self, versions: Mapping[str, int]) -> None:
        """The topics know of these orders up to these versions."""
        if versions:
            await self._execute("mark_published", _columns(list(versions.items())))

    async def due(self, limit: int) -> list[Came]:
        """Orders whose deadline has come, each given to one caller, and such as were not published; `limit` of each."""
        found = {
            **dict(await self._execute("claim_due", {"limit": limit})),
            **dict(await self._execute("unpublished", {"limit": limit})),
        }
        return [Came(order_id, user_id, "", Deadline()) for order_id, user_id in found.items()]

    async def close(self) -> None:
        """Give the connection up; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _execute(self, name: str, values: Any) -> list[Any]:
        try:
            cursor = await (await self._connected()).execute(QUERIES[name], values)
            return await cursor.fetchall() if cursor.description else []
        except BaseException:
            await self.close()
            raise

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await self.connect()
            self._connection.prepare_threshold = 0  # prepared at first use: the statements are always the same
        return self._connection


# ---- rows -----------------------------------------------------------------------------------------------------------


def read_event(type_: str, data: str) -> Event:
    """An event as the store has it."""
    return EVENT_VOCABULARY.types[type_].model_validate_json(data)


def written(event: Event) -> tuple[int, str, str]:
    """The version, the type and the data of an event, as the store has it."""
    return event.version, event.TYPE, event.model_dump_json(exclude_none=True)


def read_private(address: str, contact: str, payment: str) -> Private:
    """What is kept apart of an order."""
    return Private(
        Address.model_validate_json(address), Contact.model_validate_json(contact), Payment.model_validate_json(payment)
    )


def folded(order: Order) -> tuple[Any, ...]:
    """The columns of the read side that its events come to, in the order of `read_side`."""
    money = order.total or order.captured
    return (
        order.order_id,
        order.version,
        order.status,
        order.reason,
        money and money.currency,
        order.total and order.total.amount,
        order.captured and order.captured.amount,
        order.refunded,
        sum(refund.amount.amount for refund in order.open_refunds),
        order.placed_at,
        order.since,
    )


def row_of(order: Order, now: datetime, attempts: int, rules: Rules) -> tuple[Any, ...]:
    """The whole row of the read side, as `save_orders` takes it."""
    return (*folded(order), deadline(order, now, attempts, rules), attempts)


def _due_alone(turn: Turn, now: datetime) -> datetime | None:
    """When a cancellation has waited long enough for its order to be placed."""
    cancelled = any(isinstance(came.message, orders.Cancel) for came in turn.waiting)
    return now + PLACE_PATIENCE if cancelled else None


def _key(came: Came) -> tuple[str, str, str]:
    return came.order_id, came.request_id, type(came.message).__name__


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
