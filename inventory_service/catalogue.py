"""The catalogue file and the way into the tables: `inventory.csv`, checked line by line, loaded in one transaction."""

import csv
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NamedTuple

from infrastructure.postgres import Connection
from inventory_service.arrays import scalars, texts
from inventory_service.store import QUERIES

COLUMNS: Final = ("product_code", "name", "price", "currency", "quantity")
DEFAULT_FILE: Final = Path(__file__).with_name("inventory.csv")
MOST: Final = 2**31 - 1

_CODE: Final = re.compile(r"^[ -~]{1,64}$")
_CURRENCY: Final = re.compile(r"^[A-Z]{3}$")


class CatalogueError(ValueError):
    """What is wrong with a catalogue file, one sentence a line of it."""


class Item(NamedTuple):
    """One product of the file; `price` in minor units."""

    code: str
    name: str
    price: int
    currency: str
    quantity: int


class Seeded(NamedTuple):
    """What loading a file came to, in products."""

    added: int
    changed: int
    unchanged: int


def read_catalogue(path: Path) -> list[Item]:
    """The products of a CSV file with at least `COLUMNS` in its header, price in major units with at most two decimals.

    `CatalogueError` names the line and column of everything that is wrong with it; then nothing of it may be used.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise CatalogueError(f"{path}: line 1: the header lacks {', '.join(missing)}")
        items: dict[str, Item] = {}
        faults: list[str] = []
        for row in rows:
            fields = {column: (row[column] or "").strip() for column in COLUMNS}
            wrong = _faults(fields)
            if fields["product_code"] in items:
                wrong.append(f"product_code {fields['product_code']!r} stands above already")
            if wrong:
                faults += [f"{path}: line {rows.line_num}: {fault}" for fault in wrong]
            else:
                items[fields["product_code"]] = Item(
                    fields["product_code"],
                    fields["name"],
                    int(Decimal(fields["price"]) * 100),
                    fields["currency"],
                    int(fields["quantity"]),
                )
    if faults or not items:
        raise CatalogueError("\n".join(faults) or f"{path}: no products in it")
    return [*items.values()]


def _faults(fields: dict[str, str]) -> list[str]:
    wrong = []
    if not _CODE.match(fields["product_code"]):
        wrong.append("product_code must be 1 to 64 printable ASCII characters")
    if not 1 <= len(fields["name"]) <= 200 or not fields["name"].isprintable():  # noqa: PLR2004 - as messages.Product
        wrong.append("name must be 1 to 200 printable characters")
    if not _CURRENCY.match(fields["currency"]):
        wrong.append(f"currency must be an ISO 4217 code such as GBP, not {fields['currency']!r}")
    price = _decimal(fields["price"])
    if price is None or not 0 <= price <= MOST or price * 100 != int(price * 100):
        wrong.append(f"price must be an amount such as 2.55, not {fields['price']!r}")
    if not (fields["quantity"].isascii() and fields["quantity"].isdigit()) or int(fields["quantity"]) > MOST:
        wrong.append(f"quantity must be a whole number from 0, not {fields['quantity']!r}")
    return wrong


def _decimal(text: str) -> Decimal | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


async def seed(connection: Connection, items: Sequence[Item]) -> Seeded:
    """Load a catalogue in one transaction; the same again changes nothing, not even a version.

    A new product gets the file's quantity as received. An existing one gets its name and price, and keeps its stock:
    what was received since is the tables' to know, and holds and sales stand on it.
    """
    values = {
        "codes": texts(item.code for item in items),
        "names": texts(item.name for item in items),
        "prices": scalars(item.price for item in items),
        "currencies": texts(item.currency for item in items),
        "quantities": scalars(item.quantity for item in items),
    }
    async with connection.transaction():
        await connection.execute(QUERIES["lock_listed_stock"], values)
        added = await _rows(connection, "insert_stock", values)
        ledger = {"codes": texts(code for code, _ in added), "quantities": scalars(received for _, received in added)}
        await connection.execute(QUERIES["append_received"], ledger)
        repriced = await _rows(connection, "set_prices", values)
        put = await _rows(connection, "put_products", values | {"repriced": texts(code for (code,) in repriced)})
    new = {code for code, _ in added}
    changed = len({code for code, _ in put} - new)
    return Seeded(len(new), changed, len(items) - len(new) - changed)


async def _rows(connection: Connection, name: str, values: dict[str, str]) -> Iterable[tuple[str, ...]]:
    return await (await connection.execute(QUERIES[name], values)).fetchall()
