"""The audit of the orders: complete streams, a read side that matches them, balanced money, published events.

The audit reads one snapshot and changes nothing, so it can run on a busy shop.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import orjson
from psycopg.rows import dict_row

from contracts import inventory, orders
from infrastructure.audit.order_accounts import Amount, OrderEntry, Transfer, order_lines, render_account
from infrastructure.audit.table_auditor import TableCheck, snapshot, snapshot_time
from infrastructure.audit.topic_auditor import (
    AuditedTopic,
    AuditWindow,
    RecordPosition,
    format_position,
    position_of,
    truncate_violations,
)
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process import clock
from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import Connection
from order_service.state import BrokenStream, Order, evolve
from order_service.store import QUERIES, folded_row, read_event

CHECKS: Final = (
    "stream_gaps",
    "read_side_differs",
    "money_differs",
    "closed_without_final_status",
    "overdue",
    "not_published",
    "never_placed",
)


@dataclass(slots=True)
class RecordedOrder:
    """An order with the facts of its events that other services must know too."""

    order: Order
    """The order after its last event."""
    times: dict[str, float] = field(default_factory=dict)
    """The time of the first event of each type; the undone steps are named `undone sale` and so on."""
    captures: dict[str, Transfer] = field(default_factory=dict)
    """The captures, by payment id."""
    refunds: dict[str, Transfer] = field(default_factory=dict)
    """The refunds, by refund id."""

    def add(self, order: Order, event: orders.Event, at: datetime) -> None:
        """Add an event of the order; `order` is its state afterwards."""
        self.order = order
        second = at.timestamp()
        self.times.setdefault(event.TYPE.rpartition(".")[2], second)
        match event:
            case orders.Captured(payment_id=key, amount=money):
                self.captures[key] = _transfer(money, second)
            case orders.Refunded(refund_id=key, amount=money):
                self.refunds[key] = _transfer(money, second)
            case orders.Undone(step=step):
                self.times.setdefault(f"undone {step}", second)
            case _:
                pass

    def entry(self) -> OrderEntry:
        """Return the order's entry in the account."""
        order = self.order
        lines = ((each.product, each.quantity, each.price.amount, each.price.currency) for each in order.lines)
        return OrderEntry(
            user=order.user_id,
            status=order.status,
            is_cancelling=order.is_cancelling,
            total=order.total.amount if order.total else None,
            lines=order_lines(lines),
            times=self.times,
            captures=self.captures,
            refunds=self.refunds,
        )


def _transfer(money: inventory.Money, at: float) -> Transfer:
    return Transfer(amount=Amount(minor=money.amount, currency=money.currency), at=at)


@dataclass(slots=True)
class TopicContents:
    """The content of the topics, to be compared with the event store."""

    requests: AuditedTopic[orders.Request]
    """The reader of `orders.requests` and its dead letters."""
    events: AuditedTopic[orders.Event]
    """The reader of `orders.events`."""
    place_requests: dict[str, RecordPosition] = field(default_factory=dict)
    """The record of each `Place` request, by order id."""
    published: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """The hash of each published event, by order id and version."""
    differing: list[str] = field(default_factory=list)
    """The violations found while reading and comparing events."""

    def add_request(self, record: Any) -> None:
        """Read a record of `orders.requests`."""
        if (read := self.requests.parse(record)) is not None:
            event, message = read
            window = self.requests.window
            if isinstance(message, orders.Place) and window.covers(record) and window.is_within_retention(event):
                self.place_requests[message.order_id] = position_of(record)

    def add_event(self, record: Any) -> None:
        """Read a record of `orders.events`."""
        if (read := self.events.parse(record)) is not None:
            _, message = read
            content = _hashed(message)
            if self.published.setdefault((message.order_id, message.version), content) != content:
                self.differing.append(
                    f"order {message.order_id}: version {message.version} was published with two contents"
                )

    def compare_stored(self, event: orders.Event) -> None:
        """Compare an event of the store with the published one."""
        self.place_requests.pop(event.order_id, None)
        published = self.published.pop((event.order_id, event.version), None)
        if published is not None and published != _hashed(event):
            self.differing.append(
                f"order {event.order_id}: version {event.version} was published with another content than is stored"
            )

    def violations(self) -> list[list[str]]:
        """Return the violations as sentences, grouped by kind. First call `compare_stored` for every stored event."""
        dead_letters = self.requests.dead_letters
        return [
            self.requests.missing_dead_letters(),
            self.differing,
            [
                f"order {order_id}: version {version} was published, but is not stored"
                for order_id, version in self.published
            ],
            [
                f"order {order_id} ({format_position(place)}) was requested, but does not exist"
                for order_id, place in self.place_requests.items()
                if place not in dead_letters
            ],
        ]


async def read_topics(settings: Settings, grace: timedelta) -> TopicContents:
    """Read the topics up to their current ends. Raise `BrokerUnavailableError`."""
    window = AuditWindow(clock.now(), grace, orders.REQUESTS.retention or timedelta.max)
    topics = TopicContents(
        AuditedTopic(settings.topic(orders.REQUESTS), orders.REQUEST_REGISTRY, window),
        AuditedTopic(settings.topic(orders.EVENTS), orders.EVENT_REGISTRY, window, ignores_unknown=True),
    )
    readers = {
        topics.requests.name: topics.add_request,
        settings.topic(orders.REQUESTS.dead_letter_topic): topics.requests.add_dead_letter,
        topics.events.name: topics.add_event,
    }
    async for record in read_topic(settings, readers):
        readers[record.topic](record)
    return topics


async def audit(
    connection: Connection, grace: timedelta, topics: TopicContents | None = None, *, with_account: bool = False
) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "digest", "figures": {name: count}}`, on request also `accounts`.

    The digest is a SHA-256 of all events without their times, so no replay changes it. Read `topics` before the call:
    then the tables already contain the result of every record on the topics.
    """
    async with snapshot(connection):
        violations = await checks(grace)(connection)
        recorded: dict[str, RecordedOrder] | None = {} if with_account else None
        read_at = await snapshot_time(connection)
        computed, digest, broken = await _fold_all(connection, topics, recorded)
        differing = [
            f"order {row[0]}: the read side {row[1:]} differs from the fold of its events"
            async for row in _rows(connection, "read_side")
            if computed.pop(row[0], b"") != _hashed_row(row)
        ]
        violations += truncate_violations(broken) + truncate_violations(differing)
        violations += truncate_violations(
            [f"order {order_id} has events, but no row on the read side" for order_id in computed]
        )
        async with connection.cursor(row_factory=dict_row) as cursor:
            figures = dict(await (await cursor.execute(QUERIES["figures"])).fetchone() or {})
    if topics is not None:
        violations += [sentence for kind in topics.violations() for sentence in truncate_violations(kind)]
        figures["order_dead_letters"] = len(topics.requests.dead_letters)
    report = {"ok": not violations, "violations": violations, "digest": digest, "figures": figures}
    if recorded is not None:
        entries = {order_id: order.entry() for order_id, order in recorded.items()}
        report["accounts"] = render_account(entries, read_at, grace)
    return report


def checks(grace: timedelta) -> TableCheck:
    """Return the checks that are SQL queries. A delay shorter than `grace` is not a violation."""
    return partial(_violations, grace=grace)


async def _violations(connection: Connection, *, grace: timedelta) -> list[str]:
    found = []
    for check in CHECKS:
        values = {"grace": grace} if "%(grace)s" in QUERIES[check] else None
        rows = await (await connection.execute(QUERIES[check], values)).fetchall()
        found += truncate_violations([row[0] for row in rows])
    return found


async def _fold_all(
    connection: Connection, topics: TopicContents | None, recorded: dict[str, RecordedOrder] | None
) -> tuple[dict[str, bytes], str, list[str]]:
    """Return the hash of each order's folded row, the digest of all events, and the streams that cannot be folded.

    Add each order to `recorded`.
    """
    computed: dict[str, bytes] = {}
    broken: list[str] = []
    digest = hashlib.sha256()
    order: Order | None = None
    async for order_id, version, type_, data, at in _rows(connection, "all_events"):
        digest.update(orjson.dumps([order_id, version, type_, orjson.loads(data)], option=orjson.OPT_SORT_KEYS) + b"\n")
        event = read_event(type_, data)
        if topics is not None:
            topics.compare_stored(event)
        try:
            order = evolve(order if order and order.order_id == order_id else None, event, at)
        except BrokenStream as error:
            broken.append(str(error))
            order = None
        else:
            computed[order_id] = _hashed_row(folded_row(order))
            if recorded is not None:
                recorded.setdefault(order_id, RecordedOrder(order)).add(order, event, at)
    return computed, digest.hexdigest(), broken


async def _rows(connection: Connection, name: str) -> AsyncIterator[tuple[Any, ...]]:
    async with connection.cursor(name) as cursor:
        await cursor.execute(QUERIES[name])
        async for row in cursor:
            yield row


def _hashed(event: orders.Event) -> bytes:
    return hashlib.blake2b(event.model_dump_json().encode(), digest_size=8).digest()


def _hashed_row(row: tuple[Any, ...]) -> bytes:
    values = [value.timestamp() if isinstance(value, datetime) else value for value in row]
    return hashlib.blake2b(orjson.dumps(values), digest_size=8).digest()
