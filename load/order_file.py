"""Parse a file of real orders into shoppers with planned requests. No I/O.

The file is CSV with the columns of UCI's "Online Retail" data set: InvoiceNo, StockCode, Description, Quantity,
InvoiceDate (`M/D/YYYY H:MM`), UnitPrice. The rules are those by which the catalogue was built (`docs/catalogue.md`). A
line counts if its code begins with five digits, its quantity is positive, its invoice is not a cancellation (`C…`), and
it has a name and a price above zero. Lines of one product in one invoice are added up.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from infrastructure.storage.csv_file import CsvFileError, shorten
from infrastructure.storage.retail_file import OrderLine, read_order_lines

TIME_PATTERNS: Final = ("%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M")
"""Times as the two editions of the data set write them."""
MAX_UNITS_PER_FRAME: Final = 999
"""Maximum units per frame; a larger demand is split over several frames."""
MINUTE: Final = 60.0


@dataclass(frozen=True, slots=True)
class PlannedAdd:
    """Planned `add` frame, `at` seconds after the file's first minute at the pace of the file."""

    at: float
    product: str
    quantity: int


@dataclass(frozen=True, slots=True)
class PlannedShopper:
    """One invoice: a shopper and the frames to send, in order."""

    invoice: str
    adds: tuple[PlannedAdd, ...]


@dataclass(frozen=True, slots=True)
class OrderFile:
    """Parsed file. `skipped_lines` counts the lines that are not a demand for a product."""

    shoppers: tuple[PlannedShopper, ...]
    skipped_lines: int

    @property
    def seconds(self) -> float:
        """Time from the first to the last frame, at the pace of the file."""
        return max((add.at for shopper in self.shoppers for add in shopper.adds), default=0.0)


def read_order_file(lines: Iterable[str]) -> OrderFile:
    """Parse the lines of a file. The demands of an invoice are spread evenly over its minute.

    Raise `CsvFileError` if a line cannot be parsed, or if there is no order.
    """
    demands: dict[str, tuple[datetime, dict[str, int]]] = {}
    skipped = 0
    for line in read_order_lines(lines):
        when = _parse_time(line)
        if not line.is_demand:
            skipped += 1
            continue
        _, products = demands.setdefault(line.invoice, (when, {}))
        products[line.code] = products.get(line.code, 0) + line.units
    if not demands:
        raise CsvFileError(
            "no order in the file: every line is a fee, a return, a cancellation, or has no name or price"
        )
    begin = min(when for when, _ in demands.values())
    shoppers = [
        PlannedShopper(invoice, _spread((when - begin).total_seconds(), products))
        for invoice, (when, products) in demands.items()
    ]
    return OrderFile(tuple(shoppers), skipped)


def _parse_time(line: OrderLine) -> datetime:
    for pattern in TIME_PATTERNS:
        with contextlib.suppress(ValueError):
            return datetime.strptime(line.time, pattern)  # noqa: DTZ007 - only differences matter
    raise CsvFileError(f"line {line.line}: InvoiceDate must be a time such as 12/1/2010 8:26, not {shorten(line.time)}")


def _spread(minute: float, products: dict[str, int]) -> tuple[PlannedAdd, ...]:
    adds = [
        (product, min(MAX_UNITS_PER_FRAME, units - before))
        for product, units in products.items()
        for before in range(0, units, MAX_UNITS_PER_FRAME)
    ]
    return tuple(
        PlannedAdd(minute + MINUTE * number / len(adds), product, quantity)
        for number, (product, quantity) in enumerate(adds)
    )
