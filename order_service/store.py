"""The event store: one Postgres transaction per batch of messages, in two round trips around the pure model.

Round trip one locks the orders by ascending id and reads their events. Round trip two appends the new events and
updates the read side, one row per order. A message is handled only while the row of its order is locked. The key of
the event store (order, version) is the second safeguard: a decision on an old version violates it and fails.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from contracts import inventory, orders
from contracts.orders import EVENT_REGISTRY, Address, Contact, Event, Payment
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.postgres import Connection, load_queries
from infrastructure.storage.retention import Sweep
from order_service.commands import PersonalData, needs_payment_token, needs_personal_data, next_deadline
from order_service.model import (
    Deadline,
    FollowUpRequest,
    Incoming,
    RefusalReason,
    RequestKey,
    RequestReply,
    SagaTimeouts,
    handle,
    is_early,
    request_key,
)
from order_service.state import Order, evolve

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
STORE_OPTIONS: Final = "-c transaction_timeout=5s -c lock_timeout=4s -c jit=off"
"""Server settings for the connection of `OrderStore`."""

EARLY_MESSAGES: Final = {
    each.__name__: each for each in (inventory.Committed, inventory.Refused, inventory.IdReused, orders.Cancel)
}
"""The messages that may arrive too early, by the name in the column `type`: these class names are stored data."""

ERASED: Final = "{}"
"""Payment in a row whose token has been erased."""

PLACE_TIMEOUT: Final = timedelta(seconds=10)
"""The time for which a cancellation waits for its order, which takes one more hop, before it is refused."""

REPLY_RETENTION: Final = timedelta(days=9)
"""The retention of replies, longer than that of the requests on their topic."""

WAITING_RETENTION: Final = timedelta(days=30)
"""The retention of early messages: the request that places their order is on its topic for seven days."""

RecordedEvent = tuple[Event, datetime]
"""An event and its time."""


@dataclass(slots=True)
class OrderBatch:
    """One order in a batch: its stored state, then the result of the batch."""

    order_id: str
    """The id of the order."""
    published: int = 0
    """The version up to which the events are published."""
    attempts: int = 0
    """The number of retries since the last event."""
    state: Order | None = None
    """The folded state, `None` if the order is not placed yet."""
    stream: list[RecordedEvent] = field(default_factory=list)
    """All events of the order, the oldest first."""
    personal_data: PersonalData | None = None
    """The personal data, `None` if erased or not placed yet."""
    waiting: tuple[Incoming, ...] = ()
    """The early messages that wait for the order to advance."""
    replies: list[RequestReply] = field(default_factory=list)
    """The replies that the batch results in."""
    stored_replies: dict[RequestKey, RefusalReason | None] = field(default_factory=dict)
    """The stored replies to requests in the batch, and the new ones."""
    must_send_commands: bool = False
    """True if the batch has a request or a deadline: the open commands are sent even without a new event."""
    overdue: bool = False
    """True if the batch has a deadline of the order."""

    @property
    def unpublished(self) -> list[RecordedEvent]:
        """The events that may not be published yet."""
        return self.stream[self.published :]


def retention_sweeps() -> tuple[Sweep, ...]:
    """Return the sweeps of this schema. Orders and their events are kept."""
    return (
        Sweep(QUERIES["delete_old_replies"], {"kept": REPLY_RETENTION}),
        Sweep(QUERIES["delete_old_waiting"], {"kept": WAITING_RETENTION}),
    )


class OrderStore:
    """Event store of one agent. `connect` must return a connection with `STORE_OPTIONS`; it is called again on error.

    If a method raises, its transaction may or may not have committed. Calling it again with the same arguments is safe.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], timeouts: SagaTimeouts | None = None) -> None:
        self.connect = connect
        self.timeouts = timeouts or SagaTimeouts()
        self._connection: Connection | None = None

    async def transact(self, batch: Sequence[Incoming]) -> list[OrderBatch]:
        """Handle `batch` in order and return one result per order. Raise `UnexpectedMessage` without any effect."""
        try:
            connection = await self._connected()
            now, entries = await self._lock(connection, batch)
            failpoint("orders.locked")
            before = {entry.order_id: (len(entry.stream), entry.waiting) for entry in entries.values()}
            personal_data = self._handle(entries, batch, now)
            await self._write(connection, entries, before, personal_data, now)
        except BaseException:
            await self.close()
            raise
        return [entry for entry in entries.values() if entry.state is not None or entry.replies]

    def _handle(
        self, entries: dict[str, OrderBatch], batch: Sequence[Incoming], now: datetime
    ) -> dict[str, PersonalData]:
        personal_data = {}
        for incoming in batch:
            entry = entries.setdefault(incoming.order_id, OrderBatch(incoming.order_id))
            handled = handle(
                entry.state,
                entry.waiting,
                incoming,
                now=now,
                timeouts=self.timeouts,
                stored_replies=entry.stored_replies,
            )
            if entry.state is None and isinstance(incoming.message, orders.Place):
                entry.personal_data = personal_data[incoming.order_id] = PersonalData.of(incoming.message)
            entry.state, entry.waiting = handled.state, handled.waiting
            entry.stream += [(event, now) for event in handled.events]
            entry.replies += handled.replies
            entry.stored_replies |= {request_key(answer.request): answer.refusal for answer in handled.replies}
            entry.overdue = entry.overdue or isinstance(incoming.message, Deadline)
            entry.must_send_commands = entry.must_send_commands or isinstance(
                incoming.message, orders.Request | Deadline
            )
        return personal_data

    async def _lock(self, connection: Connection, batch: Sequence[Incoming]) -> tuple[datetime, dict[str, OrderBatch]]:
        new = {c.order_id: c.user_id for c in batch if isinstance(c.message, orders.Place) or is_early(None, c)}
        values: dict[str, Any] = {
            "new": list(new),
            "users": list(new.values()),
            "ids": sorted({incoming.order_id for incoming in batch}),
            "requests": [incoming.request_id for incoming in batch if isinstance(incoming.message, FollowUpRequest)],
        }
        names = ("lock_orders", "streams", "personal_data", "waiting")
        async with connection.pipeline():
            await connection.execute("BEGIN")
            clock = await connection.execute("SELECT now()")
            if new:
                await connection.execute(QUERIES["insert_missing"], values)
            locked, streams, privates, waiting = [await connection.execute(QUERIES[name], values) for name in names]
            answered = await connection.execute(QUERIES["answered"], values) if values["requests"] else None
            [(now,)] = await clock.fetchall()
            entries = {id_: OrderBatch(id_, published, attempts) async for _, id_, published, attempts in locked}
            async for order_id, type_, data, at in streams:
                entry = entries[order_id]
                event = read_event(type_, data)
                entry.state = evolve(entry.state, event, at)
                entry.stream.append((event, at))
            async for order_id, *texts in privates:
                entries[order_id].personal_data = read_personal_data(*texts)
            async for order_id, user_id, request_id, type_, message in waiting:
                incoming = Incoming(order_id, user_id, request_id, EARLY_MESSAGES[type_].model_validate_json(message))
                entries[order_id].waiting += (incoming,)
            if answered:
                async for order_id, user_id, request_id, type_, refused in answered:
                    entry = entries.setdefault(order_id, OrderBatch(order_id))
                    entry.stored_replies[user_id, request_id, type_] = refused
        return now, entries

    async def _write(
        self,
        connection: Connection,
        entries: Mapping[str, OrderBatch],
        before: Mapping[str, tuple[int, tuple[Incoming, ...]]],
        personal_data: Mapping[str, PersonalData],
        now: datetime,
    ) -> None:
        new_events = {id_: entry.stream[before.get(id_, (0, ()))[0] :] for id_, entry in entries.items()}
        changed = [
            entry for id_, entry in entries.items() if entry.state is not None and (new_events[id_] or entry.overdue)
        ]
        for entry in changed:
            entry.attempts = 0 if new_events[entry.order_id] else entry.attempts + 1
        unplaced = [entry for entry in entries.values() if entry.state is None and (entry.overdue or entry.waiting)]
        stored = {id_: set(waiting) for id_, (_, waiting) in before.items()}
        plan: list[tuple[str, list[tuple[Any, ...]]]] = [
            ("append_events", [(id_, *event_row(event)) for id_, events in new_events.items() for event, _ in events]),
            (
                "save_orders",
                [row_of(entry.state, now, entry.attempts, self.timeouts) for entry in changed if entry.state],
            ),
            ("set_due", [(entry.order_id, _cancellation_timeout(entry, now)) for entry in unplaced]),
            (
                "save_personal_data",
                [
                    (id_, *(each.model_dump_json() if each is not None else ERASED for each in data))
                    for id_, data in personal_data.items()
                ],
            ),
            (
                "erase_payment_tokens",
                [
                    (entry.order_id,)
                    for entry in entries.values()
                    if entry.state is not None
                    and entry.personal_data is not None
                    and entry.personal_data.payment is not None
                    and not needs_payment_token(entry.state)
                ],
            ),
            (
                "delete_personal_data",
                [
                    (entry.order_id,)
                    for entry in entries.values()
                    if entry.state is not None
                    and entry.personal_data is not None
                    and not needs_personal_data(entry.state)
                ],
            ),
            (
                "add_waiting",
                [
                    (*_key(incoming), incoming.user_id, incoming.message.model_dump_json())
                    for id_, entry in entries.items()
                    for incoming in entry.waiting
                    if incoming not in stored.get(id_, ()) and not isinstance(incoming.message, Deadline)
                ],
            ),
            (
                "drop_waiting",
                [
                    _key(incoming)
                    for id_, kept in stored.items()
                    for incoming in kept
                    if incoming not in entries[id_].waiting
                ],
            ),
            (
                "add_answered",
                [
                    (entry.order_id, *request_key(answer.request), answer.refusal, REPLY_RETENTION)
                    for entry in entries.values()
                    for answer in entry.replies
                    if not answer.replayed
                ],
            ),
        ]
        async with connection.pipeline():
            for name, rows in plan:
                if rows:
                    await connection.execute(QUERIES[name], _columns(rows))
            failpoint("orders.written")
            await connection.execute("COMMIT")

    async def mark_published(self, versions: Mapping[str, int]) -> None:
        """Store the version up to which the events of each order are published."""
        if versions:
            await self._execute("mark_published", _columns(list(versions.items())))

    async def claim_due(self, limit: int) -> list[Incoming]:
        """Claim orders whose deadline has passed and find unpublished ones, at most `limit` of each."""
        found = {
            **dict(await self._execute("claim_due", {"limit": limit})),
            **dict(await self._execute("unpublished", {"limit": limit})),
        }
        return [Incoming(order_id, user_id, "", Deadline()) for order_id, user_id in found.items()]

    async def close(self) -> None:
        """Close the connection. The next call opens another."""
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
            self._connection.prepare_threshold = 0  # prepare at first use: the set of statements is fixed
        return self._connection


# ---- rows -----------------------------------------------------------------------------------------------------------


def read_event(type_: str, data: str) -> Event:
    """Return the event of a stored row."""
    return EVENT_REGISTRY.types[type_].model_validate_json(data)


def event_row(event: Event) -> tuple[int, str, str]:
    """Return the version, type and data of an event for its row."""
    return event.version, event.TYPE, event.model_dump_json(exclude_none=True)


def read_personal_data(address: str, contact: str, payment: str) -> PersonalData:
    """Return the personal data of a stored row."""
    return PersonalData(
        Address.model_validate_json(address),
        Contact.model_validate_json(contact),
        None if payment == ERASED else Payment.model_validate_json(payment),
    )


def folded_row(order: Order) -> tuple[Any, ...]:
    """Return the columns of the read side that follow from the events, in the order of the query `read_side`."""
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
        order.changed_at,
    )


def row_of(order: Order, now: datetime, attempts: int, timeouts: SagaTimeouts) -> tuple[Any, ...]:
    """Return the whole row of the read side for the query `save_orders`."""
    return (*folded_row(order), next_deadline(order, now, attempts, timeouts), attempts)


def _cancellation_timeout(entry: OrderBatch, now: datetime) -> datetime | None:
    """Return the time at which a cancellation stops waiting for its order, `None` without a cancellation."""
    cancelled = any(isinstance(incoming.message, orders.Cancel) for incoming in entry.waiting)
    return now + PLACE_TIMEOUT if cancelled else None


def _key(incoming: Incoming) -> tuple[str, str, str]:
    return incoming.order_id, incoming.request_id, type(incoming.message).__name__


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
