"""Reads what the shop says of itself once it rests: its books, its topics, its carts, its lag."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient

from infrastructure.settings import Settings
from load.chaos import records
from load.chaos.stage import Stage
from load.chaos.truth import DECIDED, Change, Key, Told

GROUPS: Final = ("cart", "inventory")
PATIENCE_MS: Final = 5_000
LETTERS: Final = tuple(f"{topic}.dlq" for topic in records.TOPICS[:3])


async def books(stage: Stage, users: Sequence[str], products: Sequence[str]) -> dict[str, Any]:
    """`ledger`, `holds`, `revisions` and `log` of a `Truth`, from one snapshot of the database."""
    async with stage.postgres() as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        ledger = await connection.execute(
            "SELECT product_code, version, user_id, requestid, cause, received, held, sold"
            " FROM inventory.stock_ledger WHERE product_code = ANY(%s)",
            [list(products)],
        )
        changes = [Change(*row) for row in await ledger.fetchall()]
        held = await connection.execute(
            "SELECT user_id, product_code, hold_quantity FROM inventory.hold"
            " WHERE order_id IS NULL AND (user_id = ANY(%s) OR product_code = ANY(%s))",
            [list(users), list(products)],
        )
        holds: dict[str, dict[str, int]] = {}
        for user, product, quantity in await held.fetchall():
            holds.setdefault(user, {})[product] = quantity
        carts = await connection.execute(
            "SELECT user_id, revision FROM inventory.holder WHERE user_id = ANY(%s)", [list(users)]
        )
        revisions = dict(await carts.fetchall())
        decided = await connection.execute(
            "SELECT user_id, requestid, outcome FROM inventory.request_log WHERE user_id = ANY(%s)", [list(users)]
        )
        log: dict[Key, Mapping[str, Any]] = {(user, id_): outcome async for user, id_, outcome in decided}
    return {"ledger": changes, "holds": holds, "revisions": revisions, "log": log}


async def topics(settings: Settings, since: records.Offsets) -> dict[str, Any]:
    """`accepted`, `told` and `duplicates_counted` of a `Truth`, from the topics after `since`."""
    accepted: set[Key] = set()
    told: list[Told] = []
    duplicates = 0
    for record in await records.kept(settings, since):
        event = _event(record.key, record.value)
        if event is None:
            continue
        type_, user, id_, data = (
            event["type"].removeprefix("holdfast."),
            event["subject"],
            event["requestid"],
            event["data"],
        )
        if type_ in {"cart.add", "cart.set", "cart.remove", "cart.clear"} and record.topic == records.REQUESTS[0]:
            if _well_formed(event):
                accepted.add((user, id_))
        elif type_ == "inventory.decided":
            duplicates += bool(data.get("replayed"))
            if data["outcome"]["type"] in DECIDED:
                told.append(Told(record.topic, user, id_, data["outcome"], bool(data.get("replayed"))))
        elif type_.removeprefix("cart.") in DECIDED and record.topic == records.RESPONSES[1]:
            outcome = {"type": type_.removeprefix("cart."), **data}
            told.append(Told(record.topic, user, id_, outcome, bool(data.get("replayed"))))
    return {"accepted": frozenset(accepted), "told": told, "duplicates_counted": duplicates}


def _event(key: bytes | None, value: bytes | None) -> dict[str, Any] | None:
    """The event in a record; none when it is not one that anybody would act on."""
    try:
        event = json.loads(value or b"")
        usable = key == event["subject"].encode() and event["data"]["user_id"] == event["subject"]
        return dict(event) if usable and event["requestid"] and event["type"] else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _well_formed(event: Mapping[str, Any]) -> bool:
    """Whether a request from outside is one by the contract: what is not goes to the dead letters."""
    quantity = event["data"].get("quantity", 1)
    return event["source"] == "/edge" and isinstance(quantity, int) and 0 <= quantity < 1000  # noqa: PLR2004 - contract


async def dead_letters(settings: Settings, since: records.Offsets) -> frozenset[tuple[str, int, int]]:
    """Where the records stood that were put aside after `since`."""
    letters = [json.loads(record.value or b"{}")["data"] for record in await records.kept(settings, since)]
    return frozenset((letter["topic"], letter["partition"], letter["offset"]) for letter in letters)


async def locks(stage: Stage) -> list[str]:
    """Locks that lie in Redis now."""
    async with stage.redis() as redis:
        return [key.decode() async for key in redis.scan_iter("lock:*")]


async def lag(settings: Settings) -> int:
    """Records that wait for a worker, by what the groups have committed."""
    end = await records.ends(settings, records.TOPICS[:3])
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka, request_timeout_ms=PATIENCE_MS)
    await admin.start()
    try:
        waiting = 0
        for group in GROUPS:
            committed = await admin.list_consumer_group_offsets(f"{settings.prefix}{group}")
            waiting += sum(
                max(0, end[partition] - max(0, place.offset))
                for partition, place in committed.items()
                if partition in end
            )
        return waiting
    finally:
        await admin.close()
