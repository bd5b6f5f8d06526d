"""Catalogue files: parse and validate a CSV such as `inventory.csv`, and load it into the tables in one transaction."""

import csv
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NamedTuple

from infrastructure.storage.postgres import Connection
from inventory_service.pg_arrays import array_parameters
from inventory_service.store import QUERIES

COLUMNS: Final = ("product_code", "name", "price", "currency", "quantity")
DEFAULT_FILE: Final = Path(__file__).with_name("inventory.csv")
MAX_INT: Final = 2**31 - 1

_CODE: Final = re.compile(r"^[ -~]{1,64}$")
_CURRENCY: Final = re.compile(r"^[A-Z]{3}$")


class CatalogueError(ValueError):
    """A catalogue file is invalid; the message has one sentence per error, each on a line of its own."""


class CatalogueItem(NamedTuple):
    """One product of the file; `price` in minor units."""

    code: str
    name: str
    price: int
    currency: str
    quantity: int


class SeedResult(NamedTuple):
    """Number of products that loading a file added, changed and left unchanged."""

    added: int
    changed: int
    unchanged: int


def read_catalogue(path: Path) -> list[CatalogueItem]:
    """Return the products of a CSV file with at least `COLUMNS` in its header.

    Prices are in major units, with at most two decimals. Raises `CatalogueError` with the line and column of every
    error; nothing of an invalid file is returned.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise CatalogueError(f"{path}: line 1: the header lacks {', '.join(missing)}")
        items: dict[str, CatalogueItem] = {}
        errors: list[str] = []
        for row in rows:
            fields = {column: (row[column] or "").strip() for column in COLUMNS}
            row_errors = _row_errors(fields)
            if fields["product_code"] in items:
                row_errors.append(f"product_code {fields['product_code']!r} is already listed above")
            if row_errors:
                errors += [f"{path}: line {rows.line_num}: {error}" for error in row_errors]
            else:
                items[fields["product_code"]] = CatalogueItem(
                    fields["product_code"],
                    fields["name"],
                    int(Decimal(fields["price"]) * 100),
                    fields["currency"],
                    int(fields["quantity"]),
                )
    if errors or not items:
        raise CatalogueError("\n".join(errors) or f"{path}: the file lists no products")
    return [*items.values()]


def _row_errors(fields: dict[str, str]) -> list[str]:
    errors = []
    if not _CODE.match(fields["product_code"]):
        errors.append("product_code must be 1 to 64 printable ASCII characters")
    if not 1 <= len(fields["name"]) <= 200 or not fields["name"].isprintable():  # noqa: PLR2004 - as messages.Product
        errors.append("name must be 1 to 200 printable characters")
    if not _CURRENCY.match(fields["currency"]):
        errors.append(f"currency must be an ISO 4217 code such as GBP, not {fields['currency']!r}")
    price = _decimal(fields["price"])
    if price is None or not 0 <= price <= MAX_INT or price * 100 != int(price * 100):
        errors.append(f"price must be an amount such as 2.55, not {fields['price']!r}")
    if not (fields["quantity"].isascii() and fields["quantity"].isdigit()) or int(fields["quantity"]) > MAX_INT:
        errors.append(f"quantity must be a whole number from 0, not {fields['quantity']!r}")
    return errors


def _decimal(text: str) -> Decimal | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


async def seed(connection: Connection, items: Sequence[CatalogueItem]) -> SeedResult:
    """Load a catalogue in one transaction. Loading the same file again changes nothing, not even a version.

    A new product gets the file's quantity as received. An existing product gets the file's name and price and keeps its
    stock, because deliveries, holds and sales have changed it since.
    """
    columns: dict[str, list[str | int]] = {
        "codes": [item.code for item in items],
        "names": [item.name for item in items],
        "prices": [item.price for item in items],
        "currencies": [item.currency for item in items],
        "quantities": [item.quantity for item in items],
    }
    values = array_parameters(columns)
    async with connection.transaction():
        await connection.execute(QUERIES["lock_listed_stock"], values)
        added = await _fetch(connection, "insert_stock", values)
        ledger = array_parameters(
            {"codes": [code for code, _ in added], "quantities": [received for _, received in added]}
        )
        await connection.execute(QUERIES["append_received"], ledger)
        repriced = await _fetch(connection, "set_prices", values)
        put = await _fetch(
            connection, "put_products", values | array_parameters({"repriced": [code for (code,) in repriced]})
        )
    new = {code for code, _ in added}
    changed = len({code for code, _ in put} - new)
    return SeedResult(len(new), changed, len(items) - len(new) - changed)


async def _fetch(connection: Connection, name: str, values: dict[str, str]) -> Iterable[tuple[str, ...]]:
    return await (await connection.execute(QUERIES[name], values)).fetchall()
