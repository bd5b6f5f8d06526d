"""Reads what the shop says of itself once it rests: its books, its topics, its carts, its lag."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient

from infrastructure.local.services import KINDS
from infrastructure.settings import Settings
from load.chaos import records
from load.chaos.stage import Stage
from load.chaos.truth import DECIDED, Change, Key, OrderEvent, PaymentEvent, Told

GROUPS: Final = tuple(kind.name for kind in KINDS if kind.name != "edge")
CHANGES: Final = frozenset({"cart.add", "cart.set", "cart.remove", "cart.clear", "cart.checkout"})
PAYMENTS: Final = frozenset({"payments.requests.v1", "payments.events.v1"})
PATIENCE_MS: Final = 5_000
LETTERS: Final = tuple(f"{topic}.dlq" for topic in records.TOPICS)


async def books(stage: Stage, users: Sequence[str], products: Sequence[str]) -> dict[str, Any]:
    """`ledger`, `holds`, `reserved`, `revisions` and `log` of a `Truth`, from one snapshot of the database."""
    async with stage.postgres() as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        ledger = await connection.execute(
            "SELECT product_code, version, user_id, requestid, cause, received, held, sold"
            " FROM inventory.stock_ledger WHERE product_code = ANY(%s)",
            [list(products)],
        )
        changes = [Change(*row) for row in await ledger.fetchall()]
        held = await connection.execute(
            "SELECT user_id, product_code, order_id IS NULL, sum(hold_quantity) FROM inventory.hold"
            " WHERE state = 'PENDING' AND (user_id = ANY(%s) OR product_code = ANY(%s)) GROUP BY 1, 2, 3",
            [list(users), list(products)],
        )
        holds: dict[str, dict[str, int]] = {}
        reserved: dict[str, dict[str, int]] = {}
        for user, product, in_the_cart, quantity in await held.fetchall():
            (holds if in_the_cart else reserved).setdefault(user, {})[product] = int(quantity)
        carts = await connection.execute(
            "SELECT user_id, revision FROM inventory.holder WHERE user_id = ANY(%s)", [list(users)]
        )
        revisions = dict(await carts.fetchall())
        decided = await connection.execute(
            "SELECT user_id, requestid, outcome FROM inventory.request_log WHERE user_id = ANY(%s)", [list(users)]
        )
        log: dict[Key, Mapping[str, Any]] = {(user, id_): outcome async for user, id_, outcome in decided}
    return {"ledger": changes, "holds": holds, "reserved": reserved, "revisions": revisions, "log": log}


async def topics(settings: Settings, since: records.Offsets, users: Collection[str]) -> dict[str, Any]:
    """`accepted`, `told`, `duplicates_counted`, `events` and `payments` of a `Truth`, from the topics after `since`.

    Orders are those of `users` alone: one of an earlier scenario would begin in the middle.
    """
    accepted: set[Key] = set()
    told: list[Told] = []
    events: list[OrderEvent] = []
    payments: list[PaymentEvent] = []
    duplicates = 0
    for record in await records.kept(settings, since):
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
                told.append(Told(record.topic, event["subject"], event["requestid"], outcome, replayed))
        elif record.topic in PAYMENTS and data["user_id"] in users:
            payments.append(_payment(type_, data))
        elif record.topic == records.ORDER_EVENTS[0] and data["user_id"] in users:
            events.append(_order_event(type_, data))
    return {
        "accepted": frozenset(accepted),
        "told": told,
        "duplicates_counted": duplicates,
        "events": events,
        "payments": payments,
    }


def _outcome(type_: str, event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The outcome of a shopper's change in a response; none in one that tells something else."""
    data = event["data"]
    if not event.get("requestid"):
        return None
    if type_ == "inventory.decided":
        return dict(data["outcome"]) if data["outcome"]["type"] in DECIDED else None
    if type_ == "cart.order":
        return {"type": "order", **data} if event["source"] == "/cart" else None
    name = type_.removeprefix("cart.")
    return {"type": name, **data} if name in DECIDED else None


def _order_event(type_: str, data: Mapping[str, Any]) -> OrderEvent:
    more = {name: value for name, value in data.items() if name not in {"order_id", "user_id", "version", "status"}}
    name = type_.removeprefix("orders.")
    return OrderEvent(data["order_id"], data["user_id"], data["version"], name, data["status"], more)


def _payment(type_: str, data: Mapping[str, Any]) -> PaymentEvent:
    amount = (data.get("amount") or {}).get("amount", 0)
    key = data.get("refund_id") or data["payment_id"]
    return PaymentEvent(data["order_id"], type_.removeprefix("payments."), key, amount)


def _event(key: bytes | None, value: bytes | None) -> dict[str, Any] | None:
    """The event in a record; none when it is not one that anybody would act on."""
    try:
        event = json.loads(value or b"")
        data = event["data"]
        usable = key == event["subject"].encode() and event["subject"] in {data["user_id"], data.get("order_id")}
        return dict(event) if usable and event.get("requestid", "-") and event["type"] else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _well_formed(event: Mapping[str, Any]) -> bool:
    """Whether a request from outside is one by the contract: what is not goes to the dead letters."""
    quantity = event["data"].get("quantity", 1)
    return (
        bool(event.get("requestid"))
        and event["source"] == "/edge"
        and isinstance(quantity, int)
        and 0 <= quantity < 1000  # noqa: PLR2004 - contract
    )


async def dead_letters(settings: Settings, since: records.Offsets) -> frozenset[tuple[str, int, int]]:
    """Where the records stood that were put aside after `since`."""
    letters = [json.loads(record.value or b"{}")["data"] for record in await records.kept(settings, since)]
    return frozenset((letter["topic"], letter["partition"], letter["offset"]) for letter in letters)


async def locks(stage: Stage) -> list[str]:
    """Locks that lie in Redis now."""
    async with stage.redis() as redis:
        return [key.decode() async for key in redis.scan_iter("lock:*")]


async def lag(settings: Settings) -> dict[str, int]:
    """Records that wait for a worker, by what the groups have committed; by group and topic."""
    end = await records.ends(settings)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka, request_timeout_ms=PATIENCE_MS)
    await admin.start()
    try:
        waiting: dict[str, int] = {}
        for group in GROUPS:
            committed = await admin.list_consumer_group_offsets(f"{settings.prefix}{group}")
            for place, known in committed.items():
                if (behind := end.get(place, 0) - max(0, known.offset)) > 0:
                    of = f"{group} of {place.topic}"
                    waiting[of] = waiting.get(of, 0) + behind
        return waiting
    finally:
        await admin.close()
