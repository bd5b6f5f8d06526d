"""Comparison of what orders, payment, delivery and inventory have recorded about the same order. Pure.

Each service audits its own records; this comparison finds records that agree with themselves and contradict another
service, such as a capture that payment never made. Payment itself compares with the provider's history.

Facts travel between services as messages. So a fact counts only against an account that was read at least the grace
period (`HOLDFAST_AUDIT_GRACE_SECONDS`) after it: whatever is younger is in flight. While the steps of a cancelled order
are being undone, its stock and its parcel may be ahead of the order.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infrastructure.audit.order_accounts import (
    Account,
    Amount,
    DeliveryEntry,
    Operation,
    OrderEntry,
    OrderLine,
    ParcelEntry,
    PaymentEntry,
    StockEntry,
    Transfer,
)
from infrastructure.audit.topic_auditor import truncate_violations

EARNED: Final = frozenset({"confirmed", "shipped", "delivered"})
"""Statuses of an order that must be paid and sold."""
SENT: Final = frozenset({"shipped", "delivered", "failed"})
"""States of a parcel that has left."""


@dataclass(frozen=True)
class Accounts:
    """Accounts of all services; `None` for a service that the shop does not run."""

    orders: Account[OrderEntry]
    payment: Account[PaymentEntry] | None = None
    delivery: Account[DeliveryEntry] | None = None
    inventory: Account[StockEntry] | None = None

    def known_orders(self) -> list[str]:
        """Return the ids of all orders that any account has."""
        ids = set(self.orders.orders)
        for account in (self.payment, self.delivery, self.inventory):
            ids.update(account.orders if account else ())
        return sorted(ids)


def parse_accounts(printed: Mapping[str, Mapping[str, Any]]) -> Accounts | None:
    """Parse the accounts that audits printed, by the name of the service; `None` without that of the orders."""
    if "orders" not in printed:
        return None

    def account(name: str, kind: Any) -> Any:
        return kind.model_validate(printed[name]) if name in printed else None

    return Accounts(
        orders=account("orders", Account[OrderEntry]),
        payment=account("payment", Account[PaymentEntry]),
        delivery=account("delivery", Account[DeliveryEntry]),
        inventory=account("inventory", Account[StockEntry]),
    )


def compare_accounts(accounts: Accounts) -> list[str]:
    """Return a sentence for each contradiction between the services; the sentence names the order."""
    return [
        sentence
        for rule in RULES
        for sentence in truncate_violations(
            [f"order {order_id}: {found}" for order_id in accounts.known_orders() for found in rule(accounts, order_id)]
        )
    ]


Rule = Callable[[Accounts, str], Iterator[str]]
"""Yields what is wrong with an order, as a clause that follows its id."""

# ---- one order, seen by each service ---------------------------------------------------------------------------------


def _operations(accounts: Accounts, order_id: str) -> dict[str, Operation]:
    entry = accounts.payment.orders.get(order_id) if accounts.payment else None
    return {operation.key: operation for operation in entry.operations} if entry else {}


def _parcels(accounts: Accounts, order_id: str) -> tuple[ParcelEntry, ...]:
    entry = accounts.delivery.orders.get(order_id) if accounts.delivery else None
    return entry.parcels if entry else ()


def _stock(accounts: Accounts, order_id: str) -> StockEntry | None:
    return accounts.inventory.orders.get(order_id) if accounts.inventory else None


# ---- rules -----------------------------------------------------------------------------------------------------------


def unknown_orders(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find money, parcels and stock of orders that the order service does not have."""
    if order_id in accounts.orders.orders:
        return
    for operation in _operations(accounts, order_id).values():
        # A webhook alone makes payment query a charge, whatever order it names.
        if (operation.intent, operation.state) != ("query", "open") and accounts.orders.has_seen(operation.at):
            yield f"payment has {_describe(operation)}; orders does not know the order"
    for parcel in _parcels(accounts, order_id):
        if accounts.orders.has_seen(parcel.at):
            yield f"delivery has parcel {parcel.shipment} as {parcel.state}; orders does not know the order"
    stock = _stock(accounts, order_id)
    if stock and accounts.orders.has_seen(stock.at):
        yield f"inventory has its stock as {_stock_state(stock)}; orders does not know the order"


def shoppers(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find records of an order under another shopper."""
    order = accounts.orders.orders.get(order_id)
    if order is None:
        return
    stock = _stock(accounts, order_id)
    others = [("payment", operation.user) for operation in _operations(accounts, order_id).values()]
    others += [("delivery", parcel.user) for parcel in _parcels(accounts, order_id)]
    others += [("inventory", stock.user)] if stock else []
    for service, user in dict.fromkeys(others):
        if user != order.user:
            yield f"orders has it as one of {order.user}; {service} has it as one of {user}"


def captures(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find captures that only one of orders and payment has, or that differ."""
    yield from _transfers(accounts, order_id, "captured", "capture", lambda order: order.captures)


def refunds(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find refunds that only one of orders and payment has, or that differ."""
    yield from _transfers(accounts, order_id, "refunded", "refund", lambda order: order.refunds)


def _transfers(
    accounts: Accounts,
    order_id: str,
    state: str,
    name: str,
    of_order: Callable[[OrderEntry], Mapping[str, Transfer]],
) -> Iterator[str]:
    order = accounts.orders.orders.get(order_id)
    if order is None or accounts.payment is None:
        return
    operations, known = _operations(accounts, order_id), of_order(order)
    for key, transfer in known.items():
        operation = operations.get(key)
        made = operation if operation and operation.state == state else None
        if made and made.amount != transfer.amount:
            yield f"orders has {name} {key} of {transfer.amount}; payment has {made.amount}"
        # An order for nothing is paid without payment.
        elif made is None and transfer.amount.minor and accounts.payment.has_seen(transfer.at):
            instead = _describe(operation) if operation else "no operation with this key"
            yield f"orders ({order.status}) has {name} {key} of {transfer.amount}; payment has {instead}"
    for key, operation in operations.items():
        if operation.state == state and key not in known and accounts.orders.has_seen(operation.at):
            yield f"payment has {name} {key} of {operation.amount}; orders ({order.status}) does not have it"


def double_captures(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find orders that were captured more than once, whichever service has the captures."""
    order = accounts.orders.orders.get(order_id)
    keys = set(order.captures) if order else set()
    keys |= {key for key, operation in _operations(accounts, order_id).items() if operation.state == "captured"}
    if len(keys) > 1:
        yield f"captured {len(keys)} times: {', '.join(sorted(keys))}"


def prevented_payments(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find orders whose payment counts as voided or declined, although payment is still trying."""
    order = accounts.orders.orders.get(order_id)
    if order is None or accounts.payment is None or order.captures:
        return
    undone = order.times.get("undone payment")
    if undone is None or not accounts.payment.has_seen(undone):
        return
    operations = _operations(accounts, order_id).values()
    charges = [operation for operation in operations if operation.intent != "refund"]
    if not charges:
        yield "orders has its payment as prevented; payment does not know the order"
    for operation in charges:
        if operation.state == "open":
            yield f"orders has its payment as prevented; payment has {_describe(operation)}"


def unpaid_orders(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find orders that are confirmed or delivered without a capture."""
    order = accounts.orders.orders.get(order_id)
    if order and order.status in EARNED and not order.captures:
        yield f"orders has it as {order.status} without a capture"


def stock_lines(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find orders whose lines or prices are not those of the stock that is held for them."""
    order, stock = accounts.orders.orders.get(order_id), _stock(accounts, order_id)
    if order is None or accounts.inventory is None or "committed" not in order.times:
        return
    if not accounts.inventory.has_seen(order.times["committed"]):
        return
    if stock is None or stock.state is None:
        yield f"orders has it as {order.status}; inventory never held stock for it"
    elif stock.lines != order.lines:
        yield f"orders has the lines {_describe_lines(order.lines)}; inventory has {_describe_lines(stock.lines)}"


def sales(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find stock that is sold without a paid order, and confirmed orders whose stock is not sold."""
    order, stock = accounts.orders.orders.get(order_id), _stock(accounts, order_id)
    if order is None or accounts.inventory is None or stock is None:
        return
    if stock.state == "COMMITTED" and "captured" not in order.times and accounts.orders.has_seen(stock.at):
        yield f"inventory has its stock as sold; orders has it as {order.status} without a capture"
    confirmed = order.times.get("confirmed")
    if confirmed is None or not accounts.inventory.has_seen(confirmed) or order.is_cancelling:
        return
    returned = "undone sale" in order.times or not accounts.orders.has_seen(stock.at)
    if stock.state == "PENDING" or (stock.state == "CANCELLED" and not returned):
        yield f"orders has it as {order.status}, its stock sold; inventory has it as {_stock_state(stock)}"


def cancelled_orders(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find cancelled orders whose stock is still held or sold, or whose parcel is on its way."""
    order = accounts.orders.orders.get(order_id)
    if order is None or order.status != "cancelled":
        return
    cancelled, stock = order.times.get("cancelled", 0.0), _stock(accounts, order_id)
    if (
        stock
        and stock.state in {"PENDING", "COMMITTED"}
        and accounts.inventory
        and accounts.inventory.has_seen(cancelled)
    ):
        yield f"orders has it as cancelled; inventory has its stock as {_stock_state(stock)}"
    for parcel in _parcels(accounts, order_id):
        left_over = parcel.state not in {"called-off", "failed"}
        if left_over and accounts.delivery and accounts.delivery.has_seen(cancelled):
            yield f"orders has it as cancelled; delivery has parcel {parcel.shipment} as {parcel.state}"


def parcels(accounts: Accounts, order_id: str) -> Iterator[str]:
    """Find parcels of orders that are not confirmed, and orders that are ahead of their parcels."""
    order = accounts.orders.orders.get(order_id)
    if order is None or accounts.delivery is None:
        return
    found = _parcels(accounts, order_id)
    for parcel in found:
        if "confirmed" not in order.times and accounts.orders.has_seen(parcel.at):
            state = f"{order.status}, not confirmed"
            yield f"delivery has parcel {parcel.shipment} as {parcel.state}; orders has it as {state}"
    states = {parcel.state for parcel in found}
    expected = (
        ("delivered", frozenset({"delivered"})),
        ("shipped", SENT),
        ("booked", SENT | {"booked", "called-off"}),
    )
    for event, allowed in expected:
        at = order.times.get(event)
        if at is not None and accounts.delivery.has_seen(at) and not states & allowed:
            instead = f"its parcel as {', '.join(sorted(states))}" if states else "no parcel of it"
            yield f"orders has it as {event}; delivery has {instead}"
            return


RULES: Final[tuple[Rule, ...]] = (
    unknown_orders,
    shoppers,
    captures,
    double_captures,
    refunds,
    prevented_payments,
    unpaid_orders,
    stock_lines,
    sales,
    cancelled_orders,
    parcels,
)
"""Rules of the comparison. The violations of each are listed together, and the first twenty in full."""

# ---- text ------------------------------------------------------------------------------------------------------------


def _describe(operation: Operation) -> str:
    amount = f" of {operation.amount}" if isinstance(operation.amount, Amount) else ""
    return f"{operation.intent} {operation.key}{amount} as {operation.state}"


def _stock_state(stock: StockEntry) -> str:
    return {"PENDING": "held", "COMMITTED": "sold", "CANCELLED": "released"}.get(stock.state or "", "never held")


def _describe_lines(lines: tuple[OrderLine, ...]) -> str:
    return ", ".join(f"{line.quantity} x {line.product} at {line.price}" for line in lines) or "no lines"
