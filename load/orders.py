"""A file of real orders as shoppers: who wants what, and when. Pure: text in, shoppers out.

The file is CSV with the columns of UCI's "Online Retail" data set: InvoiceNo, StockCode, Description, Quantity,
InvoiceDate (`M/D/YYYY H:MM`), UnitPrice. The rules are those by which the catalogue was made (`docs/catalogue.md`): a
line counts if its code begins with five digits, its quantity is positive, its invoice is no cancellation (`C…`), and it
has a name and a price above zero; lines of one product in one invoice are one demand.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Final

COLUMNS: Final = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice")
MOST: Final = 999
"""Units that one frame may ask for; a greater demand is asked in several."""
MINUTE: Final = 60.0

_PRODUCT: Final = re.compile(r"^\d{5}")


class OrdersError(ValueError):
    """The file can't be replayed; the message names the line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Want:
    """One frame that a shopper will say, `at` seconds after the file's first minute, at the pace of the file."""

    at: float
    product: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Visit:
    """One invoice: a shopper who wants these, in this order."""

    invoice: str
    wants: tuple[Want, ...]


@dataclass(frozen=True, slots=True)
class Day:
    """What a file comes to; `skipped` are its lines that are no demand for a product."""

    visits: tuple[Visit, ...]
    skipped: int

    @property
    def seconds(self) -> float:
        """From the first to the last frame, at the pace of the file."""
        return max((want.at for visit in self.visits for want in visit.wants), default=0.0)


def read_day(lines: Iterable[str]) -> Day:
    """The day in the lines of a file. The demands of an invoice are spread evenly over its minute.

    `OrdersError` when it is no such file, or when it holds no order at all.
    """
    rows = csv.DictReader(lines)
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise OrdersError(f"line 1: the header lacks {', '.join(missing)}")
    demands: dict[str, tuple[datetime, dict[str, int]]] = {}
    skipped = 0
    for row in rows:
        try:
            name, price = (row["Description"] or "").strip(), Decimal(row["UnitPrice"])
            units, when = int(row["Quantity"]), datetime.strptime(row["InvoiceDate"], "%m/%d/%Y %H:%M")  # noqa: DTZ007 - only differences count
        except (ValueError, TypeError, InvalidOperation):
            raise OrdersError(f"line {rows.line_num}: {', '.join(COLUMNS[3:])} can't be read") from None
        invoice, code = row["InvoiceNo"], row["StockCode"]
        if not (_PRODUCT.match(code) and not invoice.startswith("C") and units > 0 and name and price > 0):
            skipped += 1
            continue
        _, products = demands.setdefault(invoice, (when, {}))
        products[code] = products.get(code, 0) + units
    if not demands:
        raise OrdersError("there is no order in it")
    begin = min(when for when, _ in demands.values())
    visits = [
        Visit(invoice, _spread((when - begin).total_seconds(), products))
        for invoice, (when, products) in demands.items()
    ]
    return Day(tuple(visits), skipped)


def _spread(minute: float, products: dict[str, int]) -> tuple[Want, ...]:
    asked = [
        (product, min(MOST, units - before)) for product, units in products.items() for before in range(0, units, MOST)
    ]
    return tuple(
        Want(minute + MINUTE * number / len(asked), product, quantity)
        for number, (product, quantity) in enumerate(asked)
    )
