"""Read units granted according to the stock ledger, to compare them with the answers that shoppers received.

This module reads the private schema of the inventory service, which is not part of the public contract.
"""

from collections.abc import Mapping, Sequence

from psycopg import AsyncConnection, sql

from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import conninfo

_GRANTED = """
SELECT product_code, sum(held) FROM {schema}.stock_ledger WHERE user_id = ANY(%s) AND held > 0 GROUP BY product_code
"""


async def granted_units(settings: Settings, users: Sequence[str]) -> Mapping[str, int]:
    """Return the units per product ever granted to `users`. A hold that has been released since still counts."""
    schema = sql.Identifier(settings.schema_name("inventory"))
    async with await AsyncConnection.connect(conninfo(settings.postgres_url), autocommit=True) as connection:
        cursor = await connection.execute(sql.SQL(_GRANTED).format(schema=schema), (list(users),))
        return {product: int(units) for product, units in await cursor.fetchall()}
