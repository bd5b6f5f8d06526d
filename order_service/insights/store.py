"""The two read models in Postgres: the counts, and the versions up to which they are published.

A number is added in the transaction that stores the key of its fact, so each fact is counted once, however often it is
read. All statements lock rows in the same order.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import ValidationError

from contracts import orders
from contracts.envelope import first_error
from contracts.ids import derive_id
from contracts.insights import MAX_RELATED, Figures, Related, RelatedProduct, Takings, window_key
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.postgres import Connection, load_queries
from order_service.insights.baskets import rule_measures
from order_service.insights.model import (
    Fact,
    OrderBasket,
    ShopperInWindow,
    count_changes,
    shoppers_in_windows,
    sum_by_window,
)

log = logging.getLogger(__name__)

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
STORE_OPTIONS: Final = "-c transaction_timeout=5s -c lock_timeout=4s -c jit=off"
"""Server settings for the connection of `InsightsStore`."""

MAX_PAIRS_PER_TRANSACTION: Final = 5_000
"""The greatest number of product pairs per transaction, unless one order has more: a hundred lines make 4,950."""
_MONEY: Final = ("orders", "ordered", "captured", "refunded", "payments")

Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class CountResult:
    """The result of counting a batch."""

    new_facts: Sequence[Fact]
    """The facts that were counted for the first time."""
    duplicates: int
    """The number of the other facts."""


class InsightsStore:
    """The store of one agent, with one connection that is opened on demand and closed on any error."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self._connection: Connection | None = None

    async def close(self) -> None:
        """Close the connection. The next batch opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await self.connect()
        return self._connection

    # ---- figures ----------------------------------------------------------------------------------------------------

    async def count_facts(self, facts: Iterable[Fact]) -> CountResult:
        """Count the `facts` that were not counted before, in one transaction."""
        by_key = {derive_id(*fact.key): fact for fact in facts}
        if not by_key:
            return CountResult((), 0)
        try:
            connection = await self._open()
            async with connection.transaction():
                fresh = [by_key[key] for key in await _store_new_keys(connection, by_key)]
                sums = sum_by_window(fresh)
                present = {derive_id(*each.key): each for each in shoppers_in_windows(fresh)}
                for key in await _store_new_keys(connection, present):
                    each = present[key]
                    sums[each.by, each.start, each.figure, ""] += 1
                if sums:
                    by, start, figure, currency = zip(*sorted(sums), strict=True)
                    values = [sums[key] for key in zip(by, start, figure, currency, strict=True)]
                    columns = {"by": by, "start": start, "figure": figure, "currency": currency, "value": values}
                    await _execute(connection, "add_tallies", columns)
                    touched = sorted(set(zip(by, start, strict=True)))
                    by, start = zip(*touched, strict=True)
                    await _execute(connection, "touch_windows", {"by": by, "start": start})
                failpoint("insights.written")
        except BaseException:
            await self.close()  # COMMIT may have succeeded; then the stored keys make the retry a no-op
            raise
        return CountResult(fresh, len(by_key) - len(fresh))

    # ---- products bought together ------------------------------------------------------------------------------------

    async def count_baskets(self, events: Iterable[orders.Committed | orders.Cancelled]) -> None:
        """Count each committed order that is not cancelled, a few per transaction, so that none of them times out."""
        part: list[orders.Committed | orders.Cancelled] = []
        pairs = 0
        for event in events:
            lines = len(event.lines) if isinstance(event, orders.Committed) else 0
            more = lines * (lines - 1) // 2
            if part and pairs + more > MAX_PAIRS_PER_TRANSACTION:
                await self._count_baskets(part)
                part, pairs = [], 0
            part.append(event)
            pairs += more
        if part:
            await self._count_baskets(part)

    async def _count_baskets(self, events: Sequence[orders.Committed | orders.Cancelled]) -> None:
        ids = sorted({event.order_id for event in events})
        try:
            connection = await self._open()
            async with connection.transaction():
                await _execute(connection, "insert_baskets", {"orders": ids})
                rows = await _rows(connection, "lock_baskets", {"orders": ids})
                before = {
                    id_: OrderBasket(tuple(codes) if codes else None, cancelled) for id_, codes, cancelled in rows
                }
                after = dict(before)
                for event in events:
                    after[event.order_id] = after[event.order_id].apply(event)
                changed = [id_ for id_ in ids if after[id_] != before[id_]]
                if changed:
                    await _save_baskets(connection, {id_: (before[id_], after[id_]) for id_ in changed})
                failpoint("insights.learnt")
        except BaseException:
            await self.close()
            raise


async def unpublished_figures(connection: Connection, limit: int) -> list[Figures]:
    """Return the figures of windows with unpublished changes, the oldest first.

    A window that no consumer would accept, as of a time far ahead, is marked as published: others must not wait for it.
    """
    result = []
    for by, start, version, figures, currencies, values in await _rows(
        connection, "unpublished_windows", {"limit": limit}
    ):
        try:
            result.append(_figures(by, start, version, zip(figures, currencies, values, strict=True)))
        except ValidationError as error:
            log.error("the %s of %s is not published: %s", by, start, first_error(error))  # noqa: TRY400
            await _execute(connection, "mark_windows_published", {"by": [by], "start": [start], "version": [version]})
    return result


async def mark_figures_published(connection: Connection, published: Sequence[Figures]) -> None:
    """Mark figures as published, at their versions."""
    columns = {
        "by": [f.by for f in published],
        "start": [f.start for f in published],
        "version": [f.version for f in published],
    }
    await _execute(connection, "mark_windows_published", columns)


@dataclass(frozen=True, slots=True)
class UnpublishedList:
    """A list of related products to publish."""

    related: Related
    """The list."""
    changes: int
    """The number of changes of the product that the list includes."""


async def unpublished_related(
    connection: Connection, min_support: float, limit: int, *, stale: bool
) -> list[UnpublishedList]:
    """Return the lists of products with unpublished changes, each with a new version.

    If `stale`, return instead the lists whose last publication counted fewer than 90 percent of the present orders.
    """
    versions: dict[str, int] = dict(
        await _rows(connection, "next_stale" if stale else "next_unpublished", {"limit": limit})
    )
    if not versions:
        return []
    values = {"products": sorted(versions), "min_support": min_support, "most": MAX_RELATED}
    lists: dict[str, list[RelatedProduct]] = {product: [] for product in versions}
    known: dict[str, tuple[int, int]] = {}
    for product, changes, of_product, total, other, together, of_other in await _rows(connection, "related", values):
        known[product] = changes, total
        if other is not None:
            support, confidence, lift = rule_measures(together, of_product, of_other, total)
            lists[product].append(RelatedProduct(product=other, support=support, confidence=confidence, lift=lift))
    return [
        UnpublishedList(
            Related(product=product, orders=total, items=tuple(lists[product]), version=versions[product]), changes
        )
        for product, (changes, total) in known.items()
    ]


async def mark_related_published(connection: Connection, published: Sequence[UnpublishedList]) -> None:
    """Mark lists as published."""
    columns = {
        "products": [each.related.product for each in published],
        "changes": [each.changes for each in published],
        "orders": [each.related.orders for each in published],
    }
    await _execute(connection, "mark_products_published", columns)


async def republish_all(connection: Connection) -> tuple[int, int]:
    """Schedule all windows and lists for publication. Return the number of each."""
    [(figures, lists)] = await _rows(connection, "republish_all", {})
    return figures, lists


async def delete_expired_keys(connection: Connection, limit: int) -> int:
    """Delete at most `limit` keys whose events can no longer be redelivered. Return their number."""
    return (await connection.execute(QUERIES["delete_expired_keys"], {"limit": limit})).rowcount


# ---- rows -----------------------------------------------------------------------------------------------------------


async def _store_new_keys(connection: Connection, by_key: Mapping[str, Fact | ShopperInWindow]) -> list[str]:
    """Store keys. Return those that are new."""
    if not by_key:
        return []
    keys = sorted(by_key)
    until = [by_key[key].stored_until for key in keys]
    return [key for (key,) in await _rows(connection, "insert_keys", {"keys": keys, "until": until})]


async def _save_baskets(connection: Connection, changed: Mapping[str, tuple[OrderBasket, OrderBasket]]) -> None:
    """Store changed baskets and update the counts. The row of the total, which all transactions share, is last."""
    baskets = {
        "orders": list(changed),
        "products": [orjson.dumps(after.products or ()).decode() for _, after in changed.values()],
        "cancelled": [after.cancelled for _, after in changed.values()],
    }
    await _execute(connection, "save_baskets", baskets)
    changes = count_changes(changed.values())
    if changes.pairs:
        first, second = zip(*changes.pairs, strict=True)
        counts = {"first": first, "second": second, "orders": list(changes.pairs.values())}
        await _execute(connection, "add_pairs", counts)
    if changes.products:
        counts = {"products": list(changes.products), "orders": list(changes.products.values())}
        await _execute(connection, "add_products", counts)
    if changes.orders:
        await _execute(connection, "add_orders", {"orders": changes.orders})


def _figures(by: Any, start: datetime, version: int, tallied: Iterable[tuple[str, str, int]]) -> Figures:
    counts: dict[str, int] = {}
    money: dict[str, Counter[str]] = {}
    for figure, currency, value in tallied:
        if currency:
            money.setdefault(currency, Counter())[figure] = value
        else:
            counts[figure] = value
    takings = tuple(
        Takings(currency=currency, **{name: money[currency][name] for name in _MONEY}) for currency in sorted(money)
    )
    return Figures(window=window_key(by, start), by=by, start=start, takings=takings, version=version, **counts)


async def _rows(connection: Connection, name: str, values: Mapping[str, Any]) -> Rows:
    return await (await connection.execute(QUERIES[name], values)).fetchall()


async def _execute(connection: Connection, name: str, values: Mapping[str, Any]) -> None:
    await connection.execute(QUERIES[name], {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()})
