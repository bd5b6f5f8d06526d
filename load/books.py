"""What Postgres says about some shoppers, for comparing it with what they were told. Reads only."""

from collections.abc import Mapping, Sequence

from psycopg import AsyncConnection, sql

from infrastructure.settings import Settings

_GRANTED = """
SELECT product_code, sum(held) FROM {schema}.stock_ledger WHERE user_id = ANY(%s) AND held > 0 GROUP BY product_code
"""


async def granted(settings: Settings, users: Sequence[str]) -> Mapping[str, int]:
    """The units by product that these shoppers were ever granted; a hold that was given back since still counts."""
    schema = sql.Identifier(settings.schema_name("inventory"))
    async with await AsyncConnection.connect(settings.postgres_url, autocommit=True) as connection:
        cursor = await connection.execute(sql.SQL(_GRANTED).format(schema=schema), (list(users),))
        return {product: int(units) for product, units in await cursor.fetchall()}
