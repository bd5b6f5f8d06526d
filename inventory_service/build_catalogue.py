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
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

from inventory_service.catalogue import COLUMNS

CURRENCY: Final = "GBP"
MIN_STOCK, MAX_STOCK = 5, 100
SCARCE_ONE_IN: Final = 10
"""One product in this many is scarce."""

_PRODUCT: Final = re.compile(r"^\d{5}")


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
    """Return the text of a catalogue file; `orders` is a CSV in the format of UCI's "Online Retail", oldest first."""
    seen: defaultdict[str, _ProductSales] = defaultdict(_ProductSales)
    with orders.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            name, price, units = row["Description"].strip(), Decimal(row["UnitPrice"]), int(row["Quantity"])
            product = _PRODUCT.match(row["StockCode"]) and not row["InvoiceNo"].startswith("C") and units > 0
            if product and name and price > 0:
                sales = seen[row["StockCode"]]
                sales.price, sales.latest_name = price, name
                sales.names[name] += 1
                sales.demand[row["InvoiceNo"]] += units
    popular = sorted(seen, key=lambda code: (-seen[code].units, code))[: len(seen) // SCARCE_ONE_IN]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for code, sales in sorted(seen.items()):
        stock = sales.units // 2 if code in popular else sales.units * 2
        rows.writerow((code, sales.name, f"{sales.price:.2f}", CURRENCY, min(max(stock, MIN_STOCK), MAX_STOCK)))
    return text.getvalue()
