"""The edge's Postgres schema: the read model of the catalogue, sessions of guests, and retention.

`orders/queries.py` keeps the read model of orders in the same schema, over the same pool; `claims.py` has the
idempotency keys, over a pool of its own.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from contracts.inventory import Product, Stock
from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import TRANSIENT_ERRORS, create_pool, load_queries
from infrastructure.storage.retention import DELETE_LIMIT, delete_in_batches
from rest_api.read_models import search_terms
from rest_api.read_models.search_terms import SearchQuery
from rest_api.security.guest_sessions import GuestSession

SQL_FOLDER: Final = Path(__file__).parent
SERVICE: Final = "edge"
UNAVAILABLE_ERRORS: Final[tuple[type[BaseException], ...]] = (*TRANSIENT_ERRORS, PoolTimeout)
"""Exceptions raised when Postgres is unavailable."""

_QUERIES: Final = load_queries(SQL_FOLDER / "queries.sql")
_SWEEPS: Final = ("delete_old_claims", "delete_refused_orders", "delete_ended_sessions")
"""The statements that delete old rows."""
_SORTS: Final = {
    "code": ("code", True),
    "name": ("name", True),
    "-name": ("name", False),
    "price": ("amount", True),
    "-price": ("amount", False),
    "available": ("available", True),
    "-available": ("available", False),
}

INDEX_BATCH: Final = 500
"""Number of products that are indexed in one transaction."""
MAX_COUNT: Final = 10_000
"""Number of products up to which matches are counted."""

ReadPosition = tuple[str, int, int]
"""Topic, partition, and the offset of the next record to read."""
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ProductRow:
    """A row of the catalogue: a product with its stock."""

    code: str
    name: str
    category: str | None
    amount: int
    currency: str
    images: list[str]
    available: int
    version: int
    stock_version: int


@dataclass(frozen=True, slots=True)
class ProductFilters:
    """Filters and sort order of a product list.

    `search` matches words of the product's code or name. A filter that is `None` does not apply.
    """

    search: SearchQuery | None = None
    category: str | None = None
    available_min: int | None = None
    available_max: int | None = None
    sort: str = "code"


class Store:
    """Queries of the edge's schema, over a small connection pool.

    Call `open` before use and `close` at the end. Queries raise one of `UNAVAILABLE_ERRORS` if Postgres is unavailable.
    """

    def __init__(self, settings: Settings) -> None:
        self._pool = create_pool(settings, SERVICE, size=6, options="-c statement_timeout=5000", max_waiting=256)

    async def open(self) -> None:
        """Start the pool, which connects and reconnects in the background."""
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close(timeout=2)

    async def fetch_all(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """Execute one statement in a transaction of its own and return its rows."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(query, parameters)
            return await cursor.fetchall() if cursor.description else []

    # ---- the catalogue ----------------------------------------------------------------------------------------------

    async def project(
        self, products: Sequence[Product], stock: Sequence[Stock], positions: Sequence[ReadPosition]
    ) -> None:
        """Store products, stock levels and read positions in one transaction.

        Each product may occur at most once in `products` and once in `stock`.
        """
        async with self.transaction() as connection:
            if products:
                words = [search_terms.index_lexemes(product.code, product.name) for product in products]
                await connection.execute(_QUERIES["put_products"], _product_columns(products, words))
                await _put_vocabulary(connection, words)
            if stock:
                columns = {
                    "code": [level.product for level in stock],
                    "available": [level.available for level in stock],
                    "version": [level.version for level in stock],
                }
                await connection.execute(_QUERIES["put_stock"], columns)
            await put_positions(connection, positions)

    async def index_products(self) -> int:
        """Index the products whose words were found by other rules, or in another name; return their number."""
        indexed, last = 0, ""
        while True:
            version = {"words_version": search_terms.INDEX_VERSION}
            rows = await self.fetch_all(_QUERIES["unindexed"], {**version, "code": last, "limit": INDEX_BATCH})
            if not rows:
                return indexed
            words = [search_terms.index_lexemes(code, name) for code, name in rows]
            codes, names = zip(*rows, strict=True)
            columns = {"code": list(codes), "name": list(names), "words": _as_json(words)}
            async with self.transaction() as connection:
                await connection.execute(_QUERIES["index_products"], {**version, **columns})
                await _put_vocabulary(connection, words)
            indexed, last = indexed + len(rows), codes[-1]

    async def load_stock_and_positions(
        self, topics: Sequence[str]
    ) -> tuple[list[ReadPosition], list[tuple[str, int, int]]]:
        """Return the stored positions and, from the same snapshot, all stock levels (code, available, version)."""
        async with self.transaction(isolation="REPEATABLE READ") as connection:
            positions = await (await connection.execute(_QUERIES["positions"], {"topics": list(topics)})).fetchall()
            levels = await (await connection.execute(_QUERIES["stock_levels"])).fetchall()
        return [(row[0], row[1], row[2]) for row in positions], [(row[0], row[1], row[2]) for row in levels]

    async def positions(self, topics: Sequence[str]) -> list[ReadPosition]:
        """Return the stored read positions of some topics."""
        rows = await self.fetch_all(_QUERIES["positions"], {"topics": list(topics)})
        return [(row[0], row[1], row[2]) for row in rows]

    async def delete_position(self, topic: str, partition: int) -> None:
        """Delete the read position of a partition whose topic has been recreated."""
        await self.fetch_all(_QUERIES["forget_position"], {"topic": topic, "partition": partition})

    async def product_names(self, codes: Iterable[str]) -> dict[str, str]:
        """Return the names of products by code; unknown codes are omitted."""
        return dict(await self.fetch_all(_QUERIES["product_names"], {"codes": list(codes)}))

    async def product(self, code: str) -> ProductRow | None:
        """Return a product; `None` if it is unknown or no longer for sale."""
        rows = await self.fetch_all(_QUERIES["product"], {"code": code})
        return ProductRow(*rows[0]) if rows else None

    async def products(
        self, filters: ProductFilters, *, limit: int, after: tuple[str | int, str] | None
    ) -> list[ProductRow]:
        """Return a page of products.

        `after` is the position of the previous page's last product: the value of its sort column, and its code.
        """
        column, ascending = _SORTS[filters.sort]
        above = ">" if ascending else "<"
        conditions, parameters = _conditions(filters)
        if after is not None:
            conditions += f" AND ({column}, code) {above} (%(value)s, %(code)s)"
            parameters |= {"value": after[0], "code": after[1]}
        query = _QUERIES["products"].format(
            column=column, direction="ASC" if ascending else "DESC", conditions=conditions
        )
        return [ProductRow(*row) for row in await self.fetch_all(query, {**parameters, "limit": limit})]

    async def count_products(self, filters: ProductFilters) -> int:
        """Return the number of products that match, at most `MAX_COUNT`."""
        conditions, parameters = _conditions(filters)
        query = _QUERIES["count_products"].format(conditions=conditions)
        [(count,)] = await self.fetch_all(query, {**parameters, "limit": MAX_COUNT})
        return int(count)

    async def word_counts(self, words: Iterable[str]) -> dict[str, int]:
        """Return in how many products for sale each word is found, counted up to a hundred."""
        columns = {word: search_terms.word_tsquery(word) for word in words}
        rows = await self.fetch_all(_QUERIES["word_counts"], {"word": list(columns), "query": list(columns.values())})
        return dict(rows)

    async def similar_words(self, word: str) -> list[str]:
        """Return words of the catalogue, now or formerly, that may be at most one edit from a word."""
        rows = await self.fetch_all(_QUERIES["similar_words"], {"keys": search_terms.lookup_keys(word)})
        return [row[0] for row in rows]

    # ---- sessions of guests -----------------------------------------------------------------------------------------

    async def replace_tokens(self, user_id: str, issued_at: int, ends_at: datetime, overlap: float) -> GuestSession:
        """Store that a guest has a newer token, from `issued_at`; the older ones end after `overlap` seconds."""
        parameters = {"user_id": user_id, "issued_at": issued_at, "ends_at": ends_at, "overlap": overlap}
        return GuestSession(*(await self.fetch_all(_QUERIES["replace_tokens"], parameters))[0])

    async def guest_session(self, user_id: str) -> GuestSession:
        """Return which tokens of a guest have ended."""
        rows = await self.fetch_all(_QUERIES["guest_session"], {"user_id": user_id})
        return GuestSession(*rows[0]) if rows else GuestSession()

    async def changed_sessions(self, seconds: float) -> dict[str, GuestSession]:
        """Return the sessions that changed in the last `seconds`, by user."""
        rows = await self.fetch_all(_QUERIES["changed_sessions"], {"seconds": seconds})
        return {user_id: GuestSession(*times) for user_id, *times in rows}

    # ---- retention --------------------------------------------------------------------------------------------------

    async def delete_old_rows(self) -> int:
        """Delete all old rows that clients could add without end, in batches, and return their number."""
        return sum([await delete_in_batches(partial(self._delete, name)) for name in _SWEEPS])

    async def _delete(self, name: str) -> int:
        async with self._pool.connection() as connection:
            return (await connection.execute(_QUERIES[name], {"limit": DELETE_LIMIT})).rowcount

    @asynccontextmanager
    async def transaction(self, isolation: str = "READ COMMITTED") -> AsyncIterator[AsyncConnection[Row]]:
        """Open a transaction on a pooled connection, and commit it at the end of the context."""
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
            yield connection


async def put_positions(connection: AsyncConnection[Row], positions: Sequence[ReadPosition]) -> None:
    """Store read positions; call this in the transaction that stores the records read."""
    if not positions:
        return
    topics, partitions, offsets = zip(*positions, strict=True)
    columns = {"topic": list(topics), "partition": list(partitions), "next_offset": list(offsets)}
    await connection.execute(_QUERIES["put_positions"], columns)


async def _put_vocabulary(connection: AsyncConnection[Row], words: Iterable[Iterable[str]]) -> None:
    new = sorted({word for each in words for word in search_terms.vocabulary(each)})
    columns = {"word": new, "keys": _as_json(map(search_terms.correction_keys, new))}
    await connection.execute(_QUERIES["put_vocabulary"], columns)


def _conditions(filters: ProductFilters) -> tuple[str, dict[str, Any]]:
    """Return the conditions of a list in SQL, and their parameters."""
    parameters = {
        "search": None if filters.search is None else filters.search.tsquery,
        "category": filters.category,
        "available_min": filters.available_min,
        "available_max": filters.available_max,
    }
    conditions = {
        "search": "words @@ %(search)s::tsquery",
        "category": "category = %(category)s",
        "available_min": "available >= %(available_min)s",
        "available_max": "available <= %(available_max)s",
    }
    given = {name: value for name, value in parameters.items() if value is not None}
    return "".join(f" AND {conditions[name]}" for name in given), given


def _as_json(values: Iterable[Iterable[str]]) -> list[str]:
    return [orjson.dumps(list(value)).decode() for value in values]


def _product_columns(products: Sequence[Product], words: Iterable[Iterable[str]]) -> dict[str, Any]:
    return {
        "code": [product.code for product in products],
        "version": [product.version for product in products],
        "name": [product.name for product in products],
        "category": [product.category for product in products],
        "amount": [product.price.amount for product in products],
        "currency": [product.price.currency for product in products],
        "images": [orjson.dumps(product.images).decode() for product in products],
        "deleted": [product.deleted for product in products],
        "words": _as_json(words),
        "words_version": search_terms.INDEX_VERSION,
    }
