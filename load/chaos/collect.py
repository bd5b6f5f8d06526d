"""Collect the shop's state once it is quiescent: inventory's tables, topics, carts, locks, consumer lag.

This module reads private schemas and topics of the services.
"""

import asyncio
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from infrastructure.local.commands.consumer_lag import records_behind
from infrastructure.local.commands.topic_reader import Record
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process.settings import Settings
from load.chaos.checks.observed_state import (
    OUTCOME_TYPES,
    CartView,
    Key,
    LedgerRow,
    OrderEvent,
    PaymentEvent,
    PublishedOutcome,
)
from load.chaos.faults import records
from load.chaos.shop_under_test import Connection, ShopUnderTest

GROUP_TOPICS: Final[Mapping[str, tuple[str, ...]]] = {
    "cart": ("cart.requests.v1", "inventory.responses.v1"),
    "inventory": ("inventory.requests.v1",),
    "orders": ("orders.requests.v1", "inventory.responses.v1", "payments.events.v1", "deliveries.events.v1"),
    "payment": ("payments.requests.v1",),
    "delivery": ("deliveries.requests.v1",),
    "insights": ("orders.events.v1", "payments.events.v1", "cart.responses.v1"),
    "notifications": (
        "notifications.requests.v1",
        "orders.requests.v1",
        "orders.events.v1",
        "cart.responses.v1",
        "catalogue.products.v1",
    ),
}
"""Topics of each consumer group, read from the beginning. Services without a group, such as the edge, commit nothing.
"""
CHANGES: Final = frozenset({"cart.add", "cart.set", "cart.remove", "cart.clear", "cart.checkout"})
PAYMENTS: Final = frozenset({"payments.requests.v1", "payments.events.v1"})
REQUEST_TIMEOUT_MS: Final = 5_000
DEAD_LETTER_TOPICS: Final = tuple(f"{topic}.dlq" for topic in records.TOPICS)
STALE_LOCK_SECONDS: Final = 3.0
"""Three times the lifetime of a lock."""
NO_EXPIRY: Final = -1
"""Redis' time to live of a key without expiry."""


class InventoryTables(NamedTuple):
    """Contents of inventory's tables, as in `ObservedState`."""

    ledger: Sequence[LedgerRow]
    holds: Mapping[str, Mapping[str, int]]
    order_holds: Mapping[str, Mapping[str, int]]
    revisions: Mapping[str, int]
    log: Mapping[Key, Mapping[str, Any]]


class TopicRecords(NamedTuple):
    """Contents of the topics, as in `ObservedState`."""

    accepted: frozenset[Key]
    outcomes: Sequence[PublishedOutcome]
    unreadable: Sequence[str]
    duplicates: int
    events: Sequence[OrderEvent]
    payments: Sequence[PaymentEvent]


async def read_inventory_tables(shop: ShopUnderTest, users: Sequence[str], products: Sequence[str]) -> InventoryTables:
    """Return inventory's rows about `users` and `products`, from one database snapshot."""
    async with shop.postgres() as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        ledger = await connection.execute(
            "SELECT product_code, version, user_id, requestid, cause, received, held, sold"
            " FROM inventory.stock_ledger WHERE product_code = ANY(%s)",
            [list(products)],
        )
        changes = [LedgerRow(*row) for row in await ledger.fetchall()]
        held = await connection.execute(
            "SELECT user_id, product_code, order_id IS NULL, sum(hold_quantity) FROM inventory.hold"
            " WHERE state = 'PENDING' AND (user_id = ANY(%s) OR product_code = ANY(%s)) GROUP BY 1, 2, 3",
            [list(users), list(products)],
        )
        holds: dict[str, dict[str, int]] = {}
        order_holds: dict[str, dict[str, int]] = {}
        for user, product, in_the_cart, quantity in await held.fetchall():
            (holds if in_the_cart else order_holds).setdefault(user, {})[product] = int(quantity)
        revisions = await _revisions(connection, users)
        decided = await connection.execute(
            "SELECT user_id, requestid, outcome FROM inventory.request_log WHERE user_id = ANY(%s)", [list(users)]
        )
        log: dict[Key, Mapping[str, Any]] = {(user, id_): outcome async for user, id_, outcome in decided}
    return InventoryTables(changes, holds, order_holds, revisions, log)


async def read_carts(shop: ShopUnderTest, users: Sequence[str]) -> dict[str, CartView]:
    """Return each shopper's cart and revision in Postgres; an empty one for shoppers that never had one."""
    async with shop.postgres() as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        revisions = await _revisions(connection, users)
        held = await connection.execute(
            "SELECT user_id, product_code, hold_quantity FROM inventory.hold"
            " WHERE order_id IS NULL AND user_id = ANY(%s)",
            [list(users)],
        )
        lines: dict[str, dict[str, int]] = {}
        for user, product, quantity in await held.fetchall():
            lines.setdefault(user, {})[product] = quantity
    return {user: CartView(revisions.get(user, 0), lines.get(user, {})) for user in users}


async def _revisions(connection: Connection, users: Sequence[str]) -> dict[str, int]:
    cursor = await connection.execute(
        "SELECT user_id, revision FROM inventory.holder WHERE user_id = ANY(%s)", [list(users)]
    )
    return dict(await cursor.fetchall())


async def read_topics(settings: Settings, since: records.Offsets, users: Collection[str]) -> TopicRecords:
    """Return the contents of the topics after `since`.

    Orders are restricted to those of `users`: an order of an earlier scenario would be incomplete.
    """
    accepted: set[Key] = set()
    published: list[PublishedOutcome] = []
    events: list[OrderEvent] = []
    payments: list[PaymentEvent] = []
    duplicates = 0
    stored = await records.read_records(settings, since)
    for record in stored:
        event = _event(record.key, record.value)
        if event is None:
            continue
        type_, data = event["type"].removeprefix("holdfast."), event["data"]
        if record.topic == records.REQUESTS[0] and type_ in CHANGES and _well_formed(event):
            accepted.add((event["subject"], event["requestid"]))
        elif record.topic in records.RESPONSES:
            duplicates += type_ == "inventory.decided" and bool(data.get("replayed"))
            if (outcome := _outcome(type_, event)) is not None:
                replayed = bool(data.get("replayed"))
                published.append(
                    PublishedOutcome(record.topic, event["subject"], event["requestid"], outcome, replayed)
                )
        elif record.topic in PAYMENTS and data["user_id"] in users:
            payments.append(_payment(type_, data))
        elif record.topic == records.ORDER_EVENTS[0] and data["user_id"] in users:
            events.append(_order_event(type_, data))
    return TopicRecords(frozenset(accepted), published, undecodable_responses(stored), duplicates, events, payments)


def _outcome(type_: str, event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the outcome of a shopper's change in a response, or `None` if the response is about something else."""
    data = event["data"]
    if not event.get("requestid"):
        return None
    if type_ == "inventory.decided":
        return dict(data["outcome"]) if data["outcome"]["type"] in OUTCOME_TYPES else None
    if type_ == "cart.order":
        return {"type": "order", **data} if event["source"] == "/cart" else None
    name = type_.removeprefix("cart.")
    return {"type": name, **data} if name in OUTCOME_TYPES else None


def _order_event(type_: str, data: Mapping[str, Any]) -> OrderEvent:
    more = {name: value for name, value in data.items() if name not in {"order_id", "user_id", "version", "status"}}
    name = type_.removeprefix("orders.")
    return OrderEvent(data["order_id"], data["user_id"], data["version"], name, data["status"], more)


def _payment(type_: str, data: Mapping[str, Any]) -> PaymentEvent:
    amount = (data.get("amount") or {}).get("amount", 0)
    key = data.get("refund_id") or data["payment_id"]
    return PaymentEvent(data["order_id"], type_.removeprefix("payments."), key, amount)


def _event(key: bytes | None, value: bytes | None) -> dict[str, Any] | None:
    """Return the event in a record, or `None` if it is not valid."""
    try:
        event = json.loads(value or b"")
        data = event["data"]
        usable = key == event["subject"].encode() and event["subject"] in {data["user_id"], data.get("order_id")}
        return dict(event) if usable and event.get("requestid", "-") and event["type"] else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def undecodable_responses(stored: Iterable[Record]) -> list[str]:
    """Return the positions of invalid records on response topics, to which only the shop writes."""
    return [
        f"{record.topic} {record.partition}/{record.offset}"
        for record in stored
        if record.topic in records.RESPONSES
        and record.value != records.DEEPLY_NESTED
        and _event(record.key, record.value) is None
    ]


def _well_formed(event: Mapping[str, Any]) -> bool:
    """Return True if a request from outside is valid by the contract; others are dead-lettered."""
    quantity = event["data"].get("quantity", 1)
    return (
        bool(event.get("requestid"))
        and event["source"] == "/edge"
        and isinstance(quantity, int)
        and 0 <= quantity < 1000  # noqa: PLR2004 - the contract's limit
    )


async def read_dead_letters(
    settings: Settings, dead_letter_offsets: records.Offsets, since: records.Offsets
) -> frozenset[tuple[str, int, int]]:
    """Return the original positions of dead letters written after `dead_letter_offsets`, of records after `since`."""
    written = [
        json.loads(record.value or b"{}")["data"]
        for record in await records.read_records(settings, dead_letter_offsets)
    ]
    positions = ((dead_letter["topic"], dead_letter["partition"], dead_letter["offset"]) for dead_letter in written)
    return frozenset(each for each in positions if each[2] >= since.get(TopicPartition(each[0], each[1]), 0))


async def find_stale_locks(shop: ShopUnderTest) -> list[str]:
    """Return the Redis locks without expiry, and those held by the same owner for longer than a lock lives."""
    async with shop.redis() as redis:
        first = {key.decode(): (await redis.get(key), await redis.pttl(key)) async for key in redis.scan_iter("lock:*")}
        if not first:
            return []
        await asyncio.sleep(STALE_LOCK_SECONDS)
        return stale_locks(first, {name: await redis.get(name) for name in first})


def stale_locks(first: Mapping[str, tuple[object, int]], later: Mapping[str, object]) -> list[str]:
    """Return the locks that will not be released, given owners and milliseconds to live at first, and owners later.

    A lock that exists for a moment is fine: its owner may be working.
    """
    return sorted(
        name
        for name, (owner, milliseconds) in first.items()
        if milliseconds == NO_EXPIRY or (owner is not None and later[name] == owner)
    )


async def read_lag(settings: Settings) -> dict[str, int]:
    """Return the number of records not yet committed, by group and topic."""
    first, end = await records.offset_range(
        settings, sorted({topic for topics in GROUP_TOPICS.values() for topic in topics})
    )
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=REQUEST_TIMEOUT_MS)
    await admin.start()
    try:
        waiting: dict[str, int] = {}
        for group in GROUP_TOPICS:
            committed = await admin.list_consumer_group_offsets(f"{settings.prefix}{group}")
            waiting |= unread_records(
                group, {partition: found.offset for partition, found in committed.items()}, first, end
            )
        return waiting
    finally:
        await admin.close()


def unread_records(
    group: str, committed: records.Offsets, first: records.Offsets, end: records.Offsets
) -> dict[str, int]:
    """Return the records that a group has not committed, by group and topic; all, for partitions it never committed."""
    own = {partition: offset for partition, offset in end.items() if partition.topic in GROUP_TOPICS[group]}
    # Records deleted by retention are not counted.
    positions = {partition: max(committed.get(partition, 0), first.get(partition, 0)) for partition in own}
    return {f"{group} of {topic}": number for topic, number in records_behind(positions, first, own).items() if number}
