"""Builder of `inventory.csv`: derives a catalogue from one day of a real shop's order lines.

    python -m inventory_service catalogue online-retail-2010-12-01.csv > inventory_service/inventory.csv

The rules, which `docs/catalogue.md` repeats for readers of the file:

- A line counts if its code begins with five digits (`POST`, `D` and the like are fees, not products), its quantity is
  positive, its invoice does not begin with `C` (those are returns and cancellations), and it has a name and a price
  above zero.
- The price is the latest one. The name is the most frequent one, trimmed; among equally frequent names, the latest.
- All lines of one product in one invoice count as one demand; a product's demand is the sum of its units over the day.
- The initial stock is twice the day's demand. The tenth of the products with the highest demand is scarce and gets half
  of its demand, so that a replay of the day sells it out. Stock is at least 5 and at most 100.
- Rows are sorted by product code, so the same orders always give the same file.
"""

import csv
import io
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

from infrastructure.storage.csv_file import read_text
from infrastructure.storage.retail_file import FALLBACK_ENCODING, read_order_lines
from inventory_service.catalogue import COLUMNS

CURRENCY: Final = "GBP"
MIN_STOCK, MAX_STOCK = 5, 100
SCARCE_ONE_IN: Final = 10
"""One product in this many is scarce."""


@dataclass(slots=True)
class _ProductSales:
    price: Decimal = Decimal(0)
    names: Counter[str] = field(default_factory=Counter)
    latest_name: str = ""
    demand: Counter[str] = field(default_factory=Counter)
    """Units by invoice."""

    @property
    def name(self) -> str:
        most = max(self.names.values())
        if self.names[self.latest_name] == most:
            return self.latest_name
        return next(name for name in reversed(self.names) if self.names[name] == most)

    @property
    def units(self) -> int:
        return sum(self.demand.values())


def catalogue_csv(orders: Path) -> str:
    """Return the text of a catalogue file; `orders` is a CSV in the format of UCI's "Online Retail", oldest first.

    Raises `CsvFileError` with the line of an error, and `OSError` if the file cannot be read.
    """
    seen: defaultdict[str, _ProductSales] = defaultdict(_ProductSales)
    for line in read_order_lines(io.StringIO(read_text(orders, fallback=FALLBACK_ENCODING), newline="")):
        if line.is_demand:
            sales = seen[line.code]
            sales.price, sales.latest_name = line.price, line.name
            sales.names[line.name] += 1
            sales.demand[line.invoice] += line.units
    popular = sorted(seen, key=lambda code: (-seen[code].units, code))[: len(seen) // SCARCE_ONE_IN]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for code, sales in sorted(seen.items()):
        stock = sales.units // 2 if code in popular else sales.units * 2
        rows.writerow((code, sales.name, f"{sales.price:.2f}", CURRENCY, min(max(stock, MIN_STOCK), MAX_STOCK)))
    return text.getvalue()
