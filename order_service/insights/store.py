"""The two read models in Postgres: what was counted, and how far it has been told.

Numbers are added up in the transaction that remembers what they came from, so each thing counts once, whoever reads it
how often. Every statement locks its rows in one order.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from infrastructure.crashpoints import crashpoint
from infrastructure.ids import derived
from infrastructure.postgres import Connection, load_queries
from order_service import messages as orders
from order_service.insights.baskets import measures
from order_service.insights.messages import MOST_RELATED, Figures, Related, RelatedProduct, Takings, window
from order_service.insights.model import Basket, Fact, Presence, learnt, presences, tallies

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
OPTIONS: Final = "-c transaction_timeout=5s -c lock_timeout=4s -c jit=off"
"""Server settings for the connection of `Store`."""

PAIRS_AT_ONCE: Final = 5_000
"""Pairs of products that one transaction counts, or those of one order: a hundred lines make 4,950."""
_MONEY: Final = ("orders", "ordered", "captured", "refunded")

Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Counted:
    """What a batch came to: facts that were new, and how many were not."""

    fresh: Sequence[Fact]
    repeated: int


class Store:
    """One connection, opened when it is needed and given up when anything goes wrong with it."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self._connection: Connection | None = None

    async def close(self) -> None:
        """Give the connection up; the next batch opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await self.connect()
        return self._connection

    # ---- figures ----------------------------------------------------------------------------------------------------

    async def count(self, facts: Iterable[Fact]) -> Counted:
        """Add to the windows those of `facts` that have not been counted, in one transaction."""
        given = {derived(*fact.key): fact for fact in facts}
        if not given:
            return Counted((), 0)
        try:
            connection = await self._open()
            async with connection.transaction():
                fresh = [given[key] for key in await _remember(connection, given)]
                sums = tallies(fresh)
                present = {derived(*each.key): each for each in presences(fresh)}
                for key in await _remember(connection, present):
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
                crashpoint("insights.written")
        except BaseException:
            await self.close()  # whether COMMIT arrived is unknown, and the keys know
            raise
        return Counted(fresh, len(given) - len(fresh))

    # ---- what is bought together ------------------------------------------------------------------------------------

    async def learn(self, events: Iterable[orders.Committed | orders.Cancelled]) -> None:
        """Count the orders that are committed and not cancelled, each once; a few at a time, so that it gets done."""
        part: list[orders.Committed | orders.Cancelled] = []
        pairs = 0
        for event in events:
            lines = len(event.lines) if isinstance(event, orders.Committed) else 0
            more = lines * (lines - 1) // 2
            if part and pairs + more > PAIRS_AT_ONCE:
                await self._learn(part)
                part, pairs = [], 0
            part.append(event)
            pairs += more
        if part:
            await self._learn(part)

    async def _learn(self, events: Sequence[orders.Committed | orders.Cancelled]) -> None:
        ids = sorted({event.order_id for event in events})
        try:
            connection = await self._open()
            async with connection.transaction():
                await _execute(connection, "begin_baskets", {"orders": ids})
                rows = await _rows(connection, "lock_baskets", {"orders": ids})
                before = {id_: Basket(tuple(codes) if codes else None, cancelled) for id_, codes, cancelled in rows}
                after = dict(before)
                for event in events:
                    after[event.order_id] = after[event.order_id].after(event)
                changed = [id_ for id_ in ids if after[id_] != before[id_]]
                if changed:
                    await _save(connection, {id_: (before[id_], after[id_]) for id_ in changed})
                crashpoint("insights.learnt")
        except BaseException:
            await self.close()
            raise


async def untold_figures(connection: Connection, limit: int) -> list[Figures]:
    """The windows with something new, the oldest first."""
    found = await _rows(connection, "untold_windows", {"limit": limit})
    return [
        _figures(by, start, version, zip(figures, currencies, values, strict=True))
        for by, start, version, figures, currencies, values in found
    ]


async def figures_told(connection: Connection, told: Sequence[Figures]) -> None:
    """These have been published, at these versions."""
    columns = {"by": [f.by for f in told], "start": [f.start for f in told], "version": [f.version for f in told]}
    await _execute(connection, "windows_told", columns)


@dataclass(frozen=True, slots=True)
class Untold:
    """A list to publish, and the state of its product that it tells of."""

    related: Related
    changes: int


async def untold_related(connection: Connection, min_support: float, limit: int, *, stale: bool) -> list[Untold]:
    """Lists with something new; when `stale` those whose measures are of far fewer orders. Each under a new version."""
    versions: dict[str, int] = dict(await _rows(connection, "next_stale" if stale else "next_untold", {"limit": limit}))
    if not versions:
        return []
    values = {"products": sorted(versions), "min_support": min_support, "most": MOST_RELATED}
    lists: dict[str, list[RelatedProduct]] = {product: [] for product in versions}
    known: dict[str, tuple[int, int]] = {}
    for product, changes, of_product, total, other, together, of_other in await _rows(connection, "related", values):
        known[product] = changes, total
        if other is not None:
            support, confidence, lift = measures(together, of_product, of_other, total)
            lists[product].append(RelatedProduct(product=other, support=support, confidence=confidence, lift=lift))
    return [
        Untold(Related(product=product, orders=total, items=tuple(lists[product]), version=versions[product]), changes)
        for product, (changes, total) in known.items()
    ]


async def related_told(connection: Connection, told: Sequence[Untold]) -> None:
    """These have been published."""
    columns = {
        "products": [each.related.product for each in told],
        "changes": [each.changes for each in told],
        "orders": [each.related.orders for each in told],
    }
    await _execute(connection, "products_told", columns)


async def tell_all_again(connection: Connection) -> tuple[int, int]:
    """Have every window and every list published once more; how many there are of each."""
    [(figures, lists)] = await _rows(connection, "tell_all_again", {})
    return figures, lists


async def trim(connection: Connection, limit: int) -> int:
    """Forget keys that can no longer come again; how many that were."""
    return (await connection.execute(QUERIES["trim_counted"], {"limit": limit})).rowcount


# ---- rows -----------------------------------------------------------------------------------------------------------


async def _remember(connection: Connection, given: Mapping[str, Fact | Presence]) -> list[str]:
    """Those of some keys that are new."""
    if not given:
        return []
    keys = sorted(given)
    until = [_until(given[key]) for key in keys]
    return [key for (key,) in await _rows(connection, "remember", {"keys": keys, "until": until})]


def _until(remembered: Fact | Presence) -> datetime:
    return remembered.remembered_until if isinstance(remembered, Fact) else remembered.until


async def _save(connection: Connection, changed: Mapping[str, tuple[Basket, Basket]]) -> None:
    """Write baskets that changed and what that adds to the counts; the row of all orders comes last."""
    baskets = {
        "orders": list(changed),
        "products": [orjson.dumps(after.products or ()).decode() for _, after in changed.values()],
        "cancelled": [after.cancelled for _, after in changed.values()],
    }
    await _execute(connection, "save_baskets", baskets)
    news = learnt(changed.values())
    if news.pairs:
        first, second = zip(*news.pairs, strict=True)
        counts = {"first": first, "second": second, "orders": list(news.pairs.values())}
        await _execute(connection, "add_pairs", counts)
    if news.products:
        counts = {"products": list(news.products), "orders": list(news.products.values())}
        await _execute(connection, "add_products", counts)
    if news.orders:
        await _execute(connection, "add_orders", {"orders": news.orders})


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
    return Figures(window=window(by, start), by=by, start=start, takings=takings, version=version, **counts)


async def _rows(connection: Connection, name: str, values: Mapping[str, Any]) -> Rows:
    return await (await connection.execute(QUERIES[name], values)).fetchall()


async def _execute(connection: Connection, name: str, values: Mapping[str, Any]) -> None:
    await connection.execute(QUERIES[name], {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()})
