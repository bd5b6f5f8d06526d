"""The edge's own Postgres schema: the read model of the catalogue, and the claims of idempotency keys.

The read model of orders stands beside it, in `order_store.py`, over the same pool.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from infrastructure.postgres import LOST, load_queries
from infrastructure.settings import Settings
from inventory_service.messages import Product, Stock

HERE: Final = Path(__file__).parent
SERVICE: Final = "edge"
AWAY: Final[tuple[type[BaseException], ...]] = (*LOST, PoolTimeout)
"""What is raised when Postgres is away."""

_QUERIES: Final = load_queries(HERE / "queries.sql")
_SORTS: Final = {
    "code": ("code", True),
    "name": ("name", True),
    "-name": ("name", False),
    "price": ("amount", True),
    "-price": ("amount", False),
    "available": ("available", True),
    "-available": ("available", False),
}

Position = tuple[str, int, int]
"""Topic, partition, and the offset of the next record to read."""
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A product as the catalogue shows it."""

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
class Filters:
    """Which products, in which order. `words` are prefixes, all of which a product's code or name has."""

    words: tuple[str, ...] | None = None
    category: str | None = None
    available_min: int | None = None
    available_max: int | None = None
    sort: str = "code"


@dataclass(frozen=True, slots=True)
class Claimed:
    """What is known of a taken idempotency key. `seconds` is how long its present holder has had it."""

    fingerprint: str
    seconds: float
    status: int | None
    answer: bytes | None


class Store:
    """The schema, over a small pool of connections."""

    def __init__(self, settings: Settings) -> None:
        schema = settings.schema_name(SERVICE)
        self._pool: AsyncConnectionPool[AsyncConnection[Row]] = AsyncConnectionPool(
            settings.postgres_url,
            kwargs={
                "autocommit": True,
                "application_name": f"{settings.prefix}{SERVICE}/{settings.replica}",
                "options": f'-c search_path="{schema}" -c statement_timeout=5000',
                "connect_timeout": 5,
            },
            min_size=1,
            max_size=6,
            timeout=2.0,
            max_waiting=256,
            open=False,
        )

    async def open(self) -> None:
        """Start the pool; it connects, and reconnects, by itself."""
        await self._pool.open()

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close(timeout=2)

    async def rows(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """What one statement gives, in a transaction of its own."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(query, parameters)
            return await cursor.fetchall() if cursor.description else []

    # ---- the catalogue ----------------------------------------------------------------------------------------------

    async def project(self, products: Sequence[Product], stock: Sequence[Stock], positions: Sequence[Position]) -> None:
        """Take in what two topics told, at most one record a product of each, and how far they have been read."""
        async with self.transaction() as connection:
            if products:
                await connection.execute(_QUERIES["put_products"], _product_columns(products))
            if stock:
                columns = {
                    "code": [level.product for level in stock],
                    "available": [level.available for level in stock],
                    "version": [level.version for level in stock],
                }
                await connection.execute(_QUERIES["put_stock"], columns)
            await put_positions(connection, positions)

    async def resume(self, topics: Sequence[str]) -> tuple[list[Position], list[tuple[str, int, int]]]:
        """Where reading left off, and the stock of everything (code, available, version) as of just there."""
        async with self.transaction(isolation="REPEATABLE READ") as connection:
            positions = await (await connection.execute(_QUERIES["positions"], {"topics": list(topics)})).fetchall()
            levels = await (await connection.execute(_QUERIES["levels"])).fetchall()
        return [(row[0], row[1], row[2]) for row in positions], [(row[0], row[1], row[2]) for row in levels]

    async def positions(self, topics: Sequence[str]) -> list[Position]:
        """How far some topics have been read."""
        rows = await self.rows(_QUERIES["positions"], {"topics": list(topics)})
        return [(row[0], row[1], row[2]) for row in rows]

    async def forget_position(self, topic: str, partition: int) -> None:
        """The topic was made anew."""
        await self.rows(_QUERIES["forget_position"], {"topic": topic, "partition": partition})

    async def names(self, codes: Iterable[str]) -> dict[str, str]:
        """The names of those of some products that the catalogue knows."""
        return dict(await self.rows(_QUERIES["names"], {"codes": list(codes)}))

    async def product(self, code: str) -> Shown | None:
        """One product; None when there is none, or it is no longer for sale."""
        rows = await self.rows(_QUERIES["product"], {"code": code})
        return Shown(*rows[0]) if rows else None

    async def products(self, filters: Filters, *, limit: int, after: tuple[str | int, str] | None) -> list[Shown]:
        """The first `limit` products after `after`: the sort column's value and the code of the last one shown."""
        column, ascending = _SORTS[filters.sort]
        above = ">" if ascending else "<"
        conditions = {
            "AND search @@ to_tsquery('simple', %(query)s)": filters.words is not None,
            "AND category = %(category)s": filters.category is not None,
            "AND available >= %(available_min)s": filters.available_min is not None,
            "AND available <= %(available_max)s": filters.available_max is not None,
            f"AND ({column}, code) {above} (%(value)s, %(code)s)": after is not None,
        }
        query = _QUERIES["products"].format(
            column=column,
            direction="ASC" if ascending else "DESC",
            conditions=" ".join(condition for condition, wanted in conditions.items() if wanted),
        )
        value, code = after or (None, None)
        parameters = {
            # Words are letters and digits alone, so that none of them can be an operator of the query language.
            "query": " & ".join(f"{word}:*" for word in filters.words or ()),
            "category": filters.category,
            "available_min": filters.available_min,
            "available_max": filters.available_max,
            "value": value,
            "code": code,
            "limit": limit,
        }
        return [Shown(*row) for row in await self.rows(query, parameters)]

    # ---- idempotency keys -------------------------------------------------------------------------------------------

    async def claim(self, user_id: str, request_id: str, fingerprint: str) -> Claimed | None:
        """Take an idempotency key; None when it is ours now, else what is known of who has it."""
        key = {"user_id": user_id, "id": request_id}
        while True:
            if await self.rows(_QUERIES["claim"], {**key, "fingerprint": fingerprint}):
                return None
            rows = await self.rows(_QUERIES["claimed"], key)
            if rows:
                return Claimed(*rows[0])

    async def take_over(self, user_id: str, request_id: str, seconds: float) -> bool:
        """Take a claim that has had no answer for `seconds`; False when another was quicker."""
        found = await self.rows(_QUERIES["take_over"], {"user_id": user_id, "id": request_id, "seconds": seconds})
        return bool(found)

    async def release(self, user_id: str, request_id: str) -> None:
        """Leave a claim without an answer to whoever comes next."""
        await self.rows(_QUERIES["release"], {"user_id": user_id, "id": request_id})

    async def answer(self, user_id: str, request_id: str, status: int, answer: bytes) -> None:
        """Keep what was answered."""
        parameters = {"user_id": user_id, "id": request_id, "status": status, "answer": answer}
        await self.rows(_QUERIES["answer"], parameters)

    async def trim_claims(self) -> None:
        """Forget the oldest of the claims that have been kept for two days."""
        await self.rows(_QUERIES["trim_claims"])

    @asynccontextmanager
    async def transaction(self, isolation: str = "READ COMMITTED") -> AsyncIterator[AsyncConnection[Row]]:
        """A connection in a transaction, committed at the end."""
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
            yield connection


async def put_positions(connection: AsyncConnection[Row], positions: Sequence[Position]) -> None:
    """Store how far some topics have been read, in the transaction that stores what was read."""
    topics, partitions, offsets = zip(*positions, strict=True)
    columns = {"topic": list(topics), "partition": list(partitions), "next_offset": list(offsets)}
    await connection.execute(_QUERIES["put_positions"], columns)


def _product_columns(products: Sequence[Product]) -> dict[str, list[Any]]:
    return {
        "code": [product.code for product in products],
        "version": [product.version for product in products],
        "name": [product.name for product in products],
        "category": [product.category for product in products],
        "amount": [product.price.amount for product in products],
        "currency": [product.price.currency for product in products],
        "images": [orjson.dumps(product.images).decode() for product in products],
        "deleted": [product.deleted for product in products],
    }
