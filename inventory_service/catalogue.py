"""Catalogue files: parse and validate a CSV such as `inventory.csv`, and load it into the tables in one transaction."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

from contracts.currencies import DECIMALS, decimals
from contracts.url_paths import DOT_SEGMENTS
from infrastructure.storage.csv_file import CsvFileError, read_rows, read_text, shorten
from infrastructure.storage.postgres import Connection
from inventory_service.pg_arrays import array_parameters
from inventory_service.store import QUERIES

COLUMNS: Final = ("product_code", "name", "price", "currency", "quantity")
DEFAULT_FILE: Final = Path(__file__).with_name("inventory.csv")
MAX_INT: Final = 2**31 - 1

_CODE: Final = re.compile(r"[ -~]{1,64}\Z")
_PRICE: Final = re.compile(r"[0-9]{1,10}(\.(?P<decimals>[0-9]{1,10}))?\Z")
_QUANTITY: Final = re.compile(r"[0-9]{1,10}\Z")


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

    Prices are in major units, with at most as many decimals as the currency has. Raises `CatalogueError` with the line
    of every error; nothing of an invalid file is returned.
    """
    items: dict[str, CatalogueItem] = {}
    errors: list[str] = []
    try:
        for line, fields, wrong_length in read_rows(io.StringIO(read_text(path), newline=""), COLUMNS):
            row_errors = [wrong_length] if wrong_length else _row_errors(fields)
            if not wrong_length and fields["product_code"] in items:
                row_errors.append(f"product_code {fields['product_code']!r} is already listed above")
            errors += [f"{path}: line {line}: {error}" for error in row_errors]
            if not row_errors:
                items[fields["product_code"]] = _item(fields)
    except CsvFileError as error:
        errors.append(f"{path}: {error}")
    if errors or not items:
        raise CatalogueError("\n".join(errors) or f"{path}: the file lists no products")
    return [*items.values()]


def _item(fields: Mapping[str, str]) -> CatalogueItem:
    minor_units = Decimal(fields["price"]).scaleb(decimals(fields["currency"]))
    return CatalogueItem(
        fields["product_code"], fields["name"], int(minor_units), fields["currency"], int(fields["quantity"])
    )


def _row_errors(fields: Mapping[str, str]) -> list[str]:
    errors = []
    if not _CODE.match(fields["product_code"]):
        errors.append("product_code must be 1 to 64 printable ASCII characters")
    if fields["product_code"] in DOT_SEGMENTS:
        errors.append("product_code must not be . or .., which browsers remove from addresses; choose another code")
    if not 1 <= len(fields["name"]) <= 200 or not fields["name"].isprintable():  # noqa: PLR2004 - as messages.Product
        errors.append("name must be 1 to 200 printable characters")
    currency = fields["currency"]
    if currency not in DECIMALS:
        errors.append(f"currency must be an ISO 4217 code such as GBP, not {shorten(currency)}")
    places = decimals(currency)
    price = _PRICE.match(fields["price"])
    if not price or len(price["decimals"] or "") > places or Decimal(fields["price"]).scaleb(places) > MAX_INT:
        example = f"{2.55:.{places}f}"
        errors.append(
            f"price must be an amount such as {example}, with at most {places} decimals and no other signs,"
            f" not {shorten(fields['price'])}"
        )
    if not _QUANTITY.match(fields["quantity"]) or int(fields["quantity"]) > MAX_INT:
        errors.append(f"quantity must be a whole number from 0, without separators, not {shorten(fields['quantity'])}")
    return errors


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


async def withdraw(connection: Connection, codes: Sequence[str]) -> int:
    """Take products out of the catalogue, so that nobody can add them any more; return how many were in it.

    Stock, holds and history stay. A product of a catalogue file that is loaded later is for sale again.
    """
    async with connection.transaction():
        values = array_parameters({"codes": [*codes]})
        await connection.execute(QUERIES["lock_listed_stock"], values)
        return (await connection.execute(QUERIES["withdraw_products"], values)).rowcount


async def _fetch(connection: Connection, name: str, values: dict[str, str]) -> Iterable[tuple[str, ...]]:
    return await (await connection.execute(QUERIES[name], values)).fetchall()
