"""I6: all captured money was either earned by a delivered order or refunded, exactly once, in every account. No I/O.

Three sources know of the money: the events of the order, the events of payment, and the provider's own records. A
fourth, the stock ledger, knows which stock was sold. Each order must balance in all of them, and then the sums do.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from load.chaos.checks.observed_state import ObservedState, OrderEvent, PaymentEvent
from load.chaos.checks.order_streams import TERMINAL_TYPES, streams_by_order
from load.chaos.checks.violation import Violation


@dataclass(slots=True)
class Account:
    """One order's money according to one source: minor units by the provider's key."""

    captured: dict[str, int] = field(default_factory=dict)
    refunded: dict[str, int] = field(default_factory=dict)

    @property
    def captured_total(self) -> int:
        """Minor units captured, over all keys."""
        return sum(self.captured.values())

    @property
    def refunded_total(self) -> int:
        """Minor units refunded, over all keys."""
        return sum(self.refunded.values())


@dataclass(frozen=True, slots=True)
class Balance:
    """Sums over all orders in minor units; `in_flight` belongs to orders that have not ended."""

    captured: int
    confirmed: int
    refunded: int
    in_flight: int


def check_money(state: ObservedState) -> Iterator[Violation]:
    """Yield all violations about money and the stock that it paid for."""
    by_payment = accounts_by_order(state.payments)
    movements = _stock_operations(state)
    for order, stream in streams_by_order(state).items():
        own = _account_of(stream)
        paid = by_payment.get(order, Account())
        yield from _check_captures(order, own, paid, list(stream.values()))
        end = next((event.type for event in stream.values() if event.type in TERMINAL_TYPES), None)
        if end is not None:
            yield from _check_ended(order, end, stream, own, movements[order])
    yield from _check_provider(state, by_payment)
    unknown = by_payment.keys() - streams_by_order(state).keys()
    for order in unknown:
        if by_payment[order].captured_total:
            yield Violation(
                "I6",
                f"{by_payment[order].captured_total} was captured for order {order}, which has no events",
                (order,),
            )
    for user, lines in state.order_holds.items():
        if kept := {product: units for product, units in lines.items() if units}:
            yield Violation("I6", f"stock is still held for orders of {user}: {kept}", (user, *kept))


def sum_balance(state: ObservedState) -> Balance:
    """Return the sums according to the events of the orders."""
    captured = confirmed = refunded = in_flight = 0
    for stream in streams_by_order(state).values():
        account = _account_of(stream)
        left = account.captured_total - account.refunded_total
        ended = any(event.type in TERMINAL_TYPES for event in stream.values())
        captured, refunded = captured + account.captured_total, refunded + account.refunded_total
        confirmed, in_flight = (confirmed + left, in_flight) if ended else (confirmed, in_flight + left)
    return Balance(captured, confirmed, refunded, in_flight)


def accounts_by_order(payments: Sequence[PaymentEvent]) -> dict[str, Account]:
    """Return the account of each order according to payment's events; a repeated event counts once."""
    found: dict[str, Account] = defaultdict(Account)
    for event in payments:
        if event.type == "captured":
            found[event.order].captured[event.key] = event.amount
        elif event.type == "refunded":
            found[event.order].refunded[event.key] = event.amount
    return found


def _account_of(stream: Mapping[int, OrderEvent]) -> Account:
    account = Account()
    for event in stream.values():
        if event.type == "captured":
            account.captured[event.data["payment_id"]] = event.data["amount"]["amount"]
        elif event.type == "refunded":
            account.refunded[event.data["refund_id"]] = event.data["amount"]["amount"]
    return account


def _stock_operations(state: ObservedState) -> dict[str, set[str]]:
    """Return, by order, the stock operations in inventory's log: `sold`, `released`, `restocked`."""
    found: dict[str, set[str]] = defaultdict(set)
    for outcome in state.log.values():
        if outcome["type"] in {"sold", "released", "restocked"}:
            found[outcome["order_id"]].add(outcome["type"])
    return found


def _check_captures(order: str, own: Account, paid: Account, events: Sequence[OrderEvent]) -> Iterator[Violation]:
    """Yield violations unless there is one capture, order and payment agree, and refunds do not exceed captures."""
    times = sum(event.type == "captured" for event in events)
    if times > 1 or len(paid.captured) > 1:
        yield Violation("I6", f"order {order} was captured {max(times, len(paid.captured))} times", (order,))
    if own.captured != paid.captured:
        yield Violation("I6", f"order {order} has captures {own.captured}, payment has {paid.captured}", (order,))
    if own.refunded != paid.refunded:
        yield Violation("I6", f"order {order} has refunds {own.refunded}, payment has {paid.refunded}", (order,))
    if own.refunded_total > own.captured_total:
        yield Violation(
            "I6", f"order {order}: {own.refunded_total} refunded, but only {own.captured_total} captured", (order,)
        )


def _check_ended(
    order: str, end: str, stream: Mapping[int, OrderEvent], own: Account, stock: set[str]
) -> Iterator[Violation]:
    """Yield violations unless money and stock of an ended order are as its end requires."""
    committed = next((event for event in stream.values() if event.type == "committed"), None)
    total = committed.data["total"]["amount"] if committed else 0
    if "sold" in stock and not own.captured:
        yield Violation("I6", f"order {order}: stock was sold, but nothing was captured", (order,))
    if end == "cancelled" and own.captured_total != own.refunded_total:
        amounts = f"captured {own.captured_total}, refunded {own.refunded_total}"
        yield Violation("I6", f"order {order} is cancelled, but {amounts}", (order,))
    if end == "cancelled" and "sold" in stock and "restocked" not in stock:
        yield Violation("I6", f"order {order} is cancelled, but its stock is still sold", (order,))
    if end == "cancelled" and committed and not stock & {"sold", "released"}:
        yield Violation("I6", f"order {order} is cancelled, but its stock was never released", (order,))
    if end == "delivered" and own.captured_total != total:
        yield Violation(
            "I6", f"order {order} is delivered for {total}, but {own.captured_total} was captured", (order,)
        )
    if end == "delivered" and stock != {"sold"}:
        operations = ", ".join(sorted(stock)) or "never sold"
        yield Violation("I6", f"order {order} is delivered, but its stock was {operations}", (order,))


def _check_provider(state: ObservedState, by_payment: Mapping[str, Account]) -> Iterator[Violation]:
    """Yield violations unless the provider's records equal payment's events."""
    if state.charges is None:
        return
    theirs: dict[str, Account] = defaultdict(Account)
    for key, charge in state.charges.items():
        if len(charge.captured) > 1:
            yield Violation(
                "I6", f"the provider captured {len(charge.captured)} times with key {key}", (charge.order, key)
            )
        if charge.captured:
            theirs[charge.order].captured[key] = sum(charge.captured)
        theirs[charge.order].refunded |= charge.refunded
    for order in {*theirs, *by_payment}:
        ours, other = by_payment.get(order, Account()), theirs.get(order, Account())
        if ours != other:
            yield Violation("I6", f"order {order}: payment has {ours}, the provider {other}", (order,))
