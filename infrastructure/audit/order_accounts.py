"""Accounts of orders: what one service has recorded about each order, for a comparison with the other services.

The audit of a service prints its account with `--accounts`; `holdfast audit` compares the accounts. Amounts are minor
units. Times are seconds since 1970, by the clock of Postgres.
"""

import argparse
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

ACCOUNTS_OPTION: Final = "--accounts"
"""Option of a service's audit: include the account, which has an entry for each order."""


def add_audit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an audit that can print an account."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        ACCOUNTS_OPTION, action="store_true", help="with --json: include each order, as `holdfast audit` compares them"
    )


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Amount(_Value):
    """Amount of money in minor units of a currency."""

    minor: int
    currency: str

    def __str__(self) -> str:
        return f"{self.minor} {self.currency} minor units"


class OrderLine(_Value):
    """Line of an order at its price."""

    product: str
    quantity: int
    price: Amount


class Transfer(_Value):
    """Capture or refund with its time."""

    amount: Amount
    at: float


class OrderEntry(_Value):
    """An order as the order service has recorded it."""

    user: str
    status: str
    is_cancelling: bool
    """True while the steps of a cancelled order are being undone."""
    total: int | None
    """Total in minor units, `None` until the stock is held."""
    lines: tuple[OrderLine, ...] = ()
    times: Mapping[str, float] = {}
    """Time of the first event of each type, such as `confirmed`; the undone steps are named `undone sale` and so on."""
    captures: Mapping[str, Transfer] = {}
    """Captures by payment id."""
    refunds: Mapping[str, Transfer] = {}
    """Refunds by refund id."""


class Operation(_Value):
    """Operation of payment at the provider, under the provider's idempotency key."""

    key: str
    user: str
    intent: str
    state: str
    """`open` until the provider has reported the outcome."""
    amount: Amount | None = None
    """Captured or refunded amount."""
    at: float
    """Time of the outcome; of an open operation, the time of its request."""


class PaymentEntry(_Value):
    """An order as payment has recorded it."""

    operations: tuple[Operation, ...]


class ParcelEntry(_Value):
    """An order as delivery has recorded it: its parcel."""

    shipment: str
    user: str
    state: str
    at: float
    """Time of the last move; of a parcel that has not moved yet, the time of its request."""


class DeliveryEntry(_Value):
    """An order as delivery has recorded it."""

    parcels: tuple[ParcelEntry, ...]


class StockEntry(_Value):
    """An order as inventory has recorded it: its holds."""

    user: str
    state: str | None
    """State of the holds: `PENDING`, `COMMITTED` (sold) or `CANCELLED`; `None` without holds."""
    lines: tuple[OrderLine, ...] = ()
    at: float
    """Time of the last change of stock for the order."""


E = TypeVar("E", OrderEntry, PaymentEntry, DeliveryEntry, StockEntry)


class Account(_Value, Generic[E]):
    """Account of one service: an entry for each order that it knows."""

    read_at: float
    """Time of the snapshot from which the account was read."""
    grace: float
    """Seconds that a fact may take to reach the other services."""
    orders: Mapping[str, E]

    def has_seen(self, at: float) -> bool:
        """Return whether a fact of the time `at` must be known in this account: it is older by the grace period."""
        return at + self.grace <= self.read_at


def render_account(entries: Mapping[str, BaseModel], read_at: datetime, grace: timedelta) -> dict[str, Any]:
    """Return an account as the JSON object that an audit prints under `accounts`."""
    return {
        "read_at": read_at.timestamp(),
        "grace": grace.total_seconds(),
        "orders": {order: entry.model_dump(mode="json", exclude_defaults=True) for order, entry in entries.items()},
    }


def order_lines(lines: Iterable[tuple[str, int, int, str]]) -> tuple[OrderLine, ...]:
    """Return lines given as product, quantity, price in minor units and currency, ordered by product."""
    return tuple(
        OrderLine(product=product, quantity=quantity, price=Amount(minor=minor, currency=currency))
        for product, quantity, minor, currency in sorted(lines)
    )
