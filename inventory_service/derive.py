"""How `inventory.csv` came about: the catalogue that a day's order lines of a real shop come to.

    python -m inventory_service catalogue online-retail-2010-12-01.csv > inventory_service/inventory.csv

The rules, which `docs/catalogue.md` repeats for readers of the file:

- A line counts if its code begins with five digits (`POST`, `D` and the like are fees, not products), its quantity is
  positive and its invoice does not begin with `C` (the others are returns and cancellations), and it has a name and a
  price above zero.
- The price is the latest. The name is the most frequent one, trimmed; of equally frequent ones the latest.
- Lines of one product in one invoice are one demand; a product's demand is the sum of its units over the day.
- The starting stock is twice the day's demand. The tenth of the products that most units were asked for is scarce: it
  gets half of its demand, so that a replay of the day sells it out. No stock is below 5 or above 100.
- Rows stand in the order of their codes, so the same orders always give the same file.
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
LEAST, MOST = 5, 100
SCARCE: Final = 10
"""One product in this many is scarce."""

_PRODUCT: Final = re.compile(r"^\d{5}")


@dataclass(slots=True)
class _Seen:
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


def catalogue_of(orders: Path) -> str:
    """The text of a catalogue file; `orders` is CSV with the columns of UCI's "Online Retail", oldest first."""
    seen: defaultdict[str, _Seen] = defaultdict(_Seen)
    with orders.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            name, price, units = row["Description"].strip(), Decimal(row["UnitPrice"]), int(row["Quantity"])
            product = _PRODUCT.match(row["StockCode"]) and not row["InvoiceNo"].startswith("C") and units > 0
            if product and name and price > 0:
                one = seen[row["StockCode"]]
                one.price, one.latest_name = price, name
                one.names[name] += 1
                one.demand[row["InvoiceNo"]] += units
    popular = sorted(seen, key=lambda code: (-seen[code].units, code))[: len(seen) // SCARCE]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for code, one in sorted(seen.items()):
        stock = one.units // 2 if code in popular else one.units * 2
        rows.writerow((code, one.name, f"{one.price:.2f}", CURRENCY, min(max(stock, LEAST), MOST)))
    return text.getvalue()
