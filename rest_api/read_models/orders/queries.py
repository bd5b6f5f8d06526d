"""The read model of orders in the edge's schema: stored events, and one row per order folded from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
from psycopg import AsyncConnection
from pydantic import TypeAdapter

from contracts import orders
from contracts.inventory import Line, Money
from infrastructure.storage.postgres import load_queries
from rest_api.read_models.orders.fold import OrderView, fold_order
from rest_api.read_models.store import SQL_FOLDER, ReadPosition, Row, Store, put_positions

_QUERIES: Final = load_queries(SQL_FOLDER / "order_queries.sql")
_LINES: Final = TypeAdapter(tuple[Line, ...])
PageCursor = tuple[datetime, str]
"""Position in a list: the time and the id of the last entry of the previous page."""


@dataclass(frozen=True, slots=True)
class OrderEventRecord:
    """An event from `orders.events` with its time; `data` is its JSON."""

    event: orders.Event
    at: datetime
    data: str


@dataclass(frozen=True, slots=True)
class OrderStepRecord:
    """An event of a payment or delivery of an order; `kind` is `payment` or `delivery`, `data` is the event's JSON."""

    order_id: str
    kind: str
    event_id: str
    type: str
    at: datetime
    data: str


class OrderStore:
    """Queries of orders and their events, over the pool of the edge's store.

    Methods raise one of `store.UNAVAILABLE_ERRORS` if Postgres is unavailable.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # ---- writing ----------------------------------------------------------------------------------------------------

    async def insert_placed(self, order_id: str, user_id: str, at: datetime) -> None:
        """Insert a requested order with status `placed`, so that it can be read before its first event arrives."""
        await self._store.fetch_all(_QUERIES["put_placed"], {"order_id": [order_id], "user_id": [user_id], "at": [at]})

    async def project(
        self, events: Sequence[OrderEventRecord], steps: Sequence[OrderStepRecord], positions: Sequence[ReadPosition]
    ) -> list[OrderView]:
        """Store events and read positions in one transaction; return the new state of the orders they concern."""
        async with self._store.transaction() as connection:
            if steps:
                await connection.execute(_QUERIES["put_steps"], _step_columns(steps))
            views = await self._fold(connection, events) if events else []
            await put_positions(connection, positions)
        return views

    async def _fold(self, connection: AsyncConnection[Row], events: Sequence[OrderEventRecord]) -> list[OrderView]:
        await connection.execute(_QUERIES["put_events"], _event_columns(events))
        first = {received.event.order_id: received for received in reversed(events)}
        placed = {
            "order_id": list(first),
            "user_id": [received.event.user_id for received in first.values()],
            "at": [received.at for received in first.values()],
        }
        await connection.execute(_QUERIES["put_placed"], placed)
        await connection.execute(_QUERIES["lock_orders"], {"ids": list(first)})
        rows = await (await connection.execute(_QUERIES["all_events"], {"ids": list(first)})).fetchall()
        streams: dict[str, list[tuple[orders.Event, datetime]]] = {}
        for order_id, kind, at, data in rows:
            event = orders.EVENT_REGISTRY.types[kind].model_validate_json(data)
            streams.setdefault(order_id, []).append((event, at))
        views = [view for stream in streams.values() if (view := fold_order(stream)) is not None]
        await connection.execute(_QUERIES["put_orders"], _order_columns(views))
        return views

    # ---- reading ----------------------------------------------------------------------------------------------------

    async def order(self, order_id: str) -> OrderView | None:
        """Return an order; `None` if it is unknown."""
        rows = await self._store.fetch_all(_QUERIES["order"], {"order_id": order_id})
        return _view(rows[0]) if rows else None

    async def orders(self, user_id: str | None, *, limit: int, after: PageCursor | None) -> list[OrderView]:
        """Return a page of orders, newest first: those of `user_id`, or of all users if it is `None`."""
        conditions = {
            "AND user_id = %(user_id)s": user_id is not None,
            "AND (created_at, order_id) < (%(at)s, %(order_id)s)": after is not None,
        }
        query = _QUERIES["orders"].format(conditions=" ".join(text for text, applies in conditions.items() if applies))
        at, order_id = after or (None, None)
        rows = await self._store.fetch_all(query, {"user_id": user_id, "at": at, "order_id": order_id, "limit": limit})
        return [_view(row) for row in rows]

    async def events(self, order_id: str, *, limit: int, after: int) -> list[Row]:
        """Return an order's events above a version, as (version, type, time, data)."""
        return await self._store.fetch_all(_QUERIES["events"], {"order_id": order_id, "after": after, "limit": limit})

    async def steps(self, order_id: str, kind: str, *, limit: int, after: PageCursor) -> list[Row]:
        """Return a page of an order's payment or delivery events, oldest first, as (event id, type, time, data)."""
        at, event_id = after
        parameters = {"order_id": order_id, "kind": kind, "at": at, "event_id": event_id, "limit": limit}
        return await self._store.fetch_all(_QUERIES["steps"], parameters)


def _view(row: Row) -> OrderView:
    order_id, user_id, version, status, reason, lines, total, refunded, created_at, updated_at = row
    return OrderView(
        order_id,
        user_id,
        version,
        status,
        reason,
        _LINES.validate_python(tuple(lines)),
        None if total is None else Money.model_validate(total),
        None if refunded is None else Money.model_validate(refunded),
        created_at,
        updated_at,
    )


def _event_columns(events: Sequence[OrderEventRecord]) -> dict[str, list[Any]]:
    return {
        "order_id": [received.event.order_id for received in events],
        "version": [received.event.version for received in events],
        "type": [received.event.TYPE for received in events],
        "at": [received.at for received in events],
        "data": [received.data for received in events],
    }


def _step_columns(steps: Sequence[OrderStepRecord]) -> dict[str, list[Any]]:
    names = ("order_id", "kind", "event_id", "type", "at", "data")
    return {name: [getattr(step, name) for step in steps] for name in names}


def _order_columns(views: Sequence[OrderView]) -> dict[str, list[Any]]:
    columns = ("order_id", "user_id", "version", "status", "reason", "created_at", "updated_at")
    return {
        **{name: [getattr(view, name) for view in views] for name in columns},
        "lines": [orjson.dumps([line.model_dump() for line in view.lines]).decode() for view in views],
        "total": [_json(view.total) for view in views],
        "refunded": [_json(view.refunded) for view in views],
    }


def _json(money: Money | None) -> str | None:
    return None if money is None else money.model_dump_json()
