"""An inventory in memory for the tests of its rules, and its requests in short form."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.inventory import Commit, Hold, Item, Money, Purpose, ReleaseOrder, Request, Restock, Sell
from inventory_service.model import fold
from inventory_service.state import (
    CartState,
    Command,
    LedgerRow,
    LogEntry,
    LogKey,
    OrderHolds,
    Reply,
    State,
    StockLevel,
    TimeLimits,
    is_due,
)
from inventory_service.store import expiry_id

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
RULES = TimeLimits()
POUND = Money(amount=100, currency="GBP")


class InventoryModel:
    """An inventory in memory: carts, stock, orders and log outlive a batch, and a test moves the clock."""

    def __init__(self, **stock: int) -> None:
        self.rules = RULES
        self.now = NOON
        self.shelves = {
            code: StockLevel(received=units, held=0, sold=0, price=POUND, version=1) for code, units in stock.items()
        }
        self.seeded = dict(stock)
        self.holders: dict[str, CartState] = defaultdict(CartState)
        self.log: dict[LogKey, LogEntry] = {}
        self.reserved: dict[str, OrderHolds] = {}
        self.forgotten: set[LogKey] = set()
        self.ledger: list[LedgerRow] = []

    def tell(self, *batch: Command) -> list[Reply]:
        holders = {command.request.user_id: self.holders[command.request.user_id] for command in batch}
        due = {
            user: expiry_id(user, holder.expires_at, holder.revision)
            for user, holder in holders.items()
            if holder.expires_at and is_due(holder, self.now)
        }
        state = State(self.now, holders, self.shelves, self.log, due, self.rules, self.reserved)
        answers = fold(state, batch)
        self.ledger += state.ledger_rows
        return answers

    def ask(self, request: Request, id_: str = "r", *, accepted: datetime | None = None) -> Any:
        """The outcome of one request that finds its cart alive."""
        [answer] = self.tell(Command(id_, accepted or self.now, request))
        return answer.outcome

    def later(self, **time: float) -> None:
        self.now += timedelta(**time)

    def forget(self) -> None:
        """As the log does after nine days."""
        self.forgotten |= set(self.log)
        self.log.clear()

    def lines(self, user: str = "ann") -> dict[str, int]:
        return {line.product: line.quantity for line in self.holders[user].to_message().lines}

    def stock(self, product: str) -> tuple[int, int, int]:
        """Received, held, sold."""
        shelf = self.shelves[product]
        return shelf.received, shelf.held, shelf.sold

    def check(self) -> None:
        """Assert the invariants of any history."""
        self._check_stock()
        self._check_orders()
        for holder in self.holders.values():
            assert (holder.expires_at is None) == (not holder.lines)
            if holder.expires_at and holder.first_held_at:
                assert holder.expires_at <= holder.first_held_at + RULES.max_lifetime

    def _check_stock(self) -> None:
        folded = {code: [units, 0, 0] for code, units in self.seeded.items()}
        versions = dict.fromkeys(self.shelves, 1)
        for row in self.ledger:
            totals = folded[row.product]
            for place, units in enumerate((row.received, row.held, row.sold)):
                totals[place] += units
            received, held, sold = totals
            assert 0 <= held <= received - sold
            assert sold >= 0
            assert row.received or row.held or row.sold
            versions[row.product] += 1
            assert row.version == versions[row.product], "the ledger of a product has no gap"
            assert row.key in self.log or row.key in self.forgotten
        for code, shelf in self.shelves.items():
            assert [shelf.received, shelf.held, shelf.sold] == folded[code]
            assert shelf.version == versions[code]
            in_carts = sum(holder.lines[code].quantity for holder in self.holders.values() if code in holder.lines)
            assert shelf.held == in_carts + self._of_orders(code, "PENDING")
            assert shelf.sold == self._of_orders(code, "COMMITTED") + (shelf.received - self.seeded[code])

    def _of_orders(self, code: str, state: str) -> int:
        orders = (order for order in self.reserved.values() if order.state == state)
        return sum(line.quantity for order in orders for line in order.lines if line.product == code)

    def _check_orders(self) -> None:
        sold: Counter[tuple[str, str]] = Counter()
        for row in self.ledger:
            if row.order_id:
                sold[row.order_id, row.product] += row.sold - row.received
        for order_id, order in self.reserved.items():
            assert order.order_id == order_id
            for line in order.lines:
                assert sold[order_id, line.product] == (line.quantity if order.state == "COMMITTED" else 0)


def add(product: str, quantity: int, user: str = "ann") -> Hold:
    return Hold(user_id=user, mode="add", product=product, quantity=quantity)


def make(product: str, quantity: int, user: str = "ann") -> Hold:
    return Hold(user_id=user, mode="set", product=product, quantity=quantity)


def commit(
    version: int, order: str = "o1", user: str = "ann", expect: int | None = None, purpose: Purpose = "order"
) -> Commit:
    """A checkout of a cart."""
    total = None if expect is None else Money(amount=expect, currency="GBP")
    return Commit(user_id=user, order_id=order, version=version, expect=total, purpose=purpose)


def take(order: str = "o1", user: str = "ann", expect: int | None = None, **lines: int) -> Commit:
    """An order without a cart."""
    total = None if expect is None else Money(amount=expect, currency="GBP")
    items = tuple(Item(product=code, quantity=units) for code, units in lines.items())
    return Commit(user_id=user, order_id=order, lines=items, expect=total)


def sell(order: str = "o1", user: str = "ann") -> Sell:
    return Sell(user_id=user, order_id=order)


def to_cart(order: str = "o1", user: str = "ann") -> ReleaseOrder:
    return ReleaseOrder(user_id=user, order_id=order, to="cart")


def to_shelf(order: str = "o1", user: str = "ann") -> ReleaseOrder:
    return ReleaseOrder(user_id=user, order_id=order, to="shelf")


def restock(order: str = "o1", user: str = "ann", *, shipped: bool = False) -> Restock:
    return Restock(user_id=user, order_id=order, shipped=shipped)
