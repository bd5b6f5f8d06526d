"""Reader of order lines in the format of UCI's "Online Retail" data set, in both of its editions.

The catalogue is built from such a file and the load tool replays it, so both must count the same lines.
"""

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Final, NamedTuple

from infrastructure.storage.csv_file import CsvFileError, read_rows, shorten

COLUMNS: Final = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice")
SECOND_EDITION: Final = {"Invoice": "InvoiceNo", "Price": "UnitPrice"}
"""Names of the columns in "Online Retail II"."""
FALLBACK_ENCODING: Final = "cp1252"
"""Encoding of the copies of the data set that are not in UTF-8."""

_PRODUCT: Final = re.compile(r"[0-9]{5}")
_UNITS: Final = re.compile(r"-?[0-9]{1,9}\Z")
_PRICE: Final = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?\Z")


class OrderLine(NamedTuple):
    """One line of an invoice; `time` is as the file writes it, `price` in pounds."""

    line: int
    invoice: str
    code: str
    name: str
    units: int
    time: str
    price: Decimal

    @property
    def is_demand(self) -> bool:
        """True if a customer wanted a product: not a fee, return, cancellation, or line without a name or a price."""
        is_product = _PRODUCT.match(self.code) is not None and not self.invoice.startswith("C")
        return is_product and self.units > 0 and bool(self.name) and self.price > 0


def read_order_lines(lines: Iterable[str]) -> Iterator[OrderLine]:
    """Yield the lines of a file in its order. Raise `CsvFileError` with the line that cannot be parsed."""
    for line, fields, error in read_rows(lines, COLUMNS, aliases=SECOND_EDITION):
        if error:
            raise CsvFileError(f"line {line}: {error}")
        invoice, code, name, units, time, price = (fields[column] for column in COLUMNS)
        if not _UNITS.match(units):
            raise CsvFileError(f"line {line}: Quantity must be a whole number such as 6, not {shorten(units)}")
        if not _PRICE.match(price):
            raise CsvFileError(f"line {line}: UnitPrice must be an amount such as 2.55, not {shorten(price)}")
        yield OrderLine(line, invoice, code, name, int(units), time, Decimal(price))
