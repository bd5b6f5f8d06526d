"""I6: what was captured was sold or given back, once, whoever's books one reads. Pure.

Three books know of the money: the events of the order, the events of payment, and the provider's own; a fourth, the
stock ledger, knows what was sold. Each order must balance in all of them, and then the sums do.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from load.chaos.finding import Finding
from load.chaos.streams import ENDS, streams_of
from load.chaos.truth import OrderEvent, PaymentEvent, Truth


@dataclass(slots=True)
class Account:
    """One order's money by one set of books: minor units by the provider's key."""

    captured: dict[str, int] = field(default_factory=dict)
    refunded: dict[str, int] = field(default_factory=dict)

    @property
    def taken(self) -> int:
        """Minor units that were captured, of all keys."""
        return sum(self.captured.values())

    @property
    def given_back(self) -> int:
        """Minor units that were refunded, of all keys."""
        return sum(self.refunded.values())


@dataclass(frozen=True, slots=True)
class Balance:
    """The sums over all orders, in minor units; `in_flight` belongs to orders that have not ended."""

    captured: int
    confirmed: int
    refunded: int
    in_flight: int


def balanced(truth: Truth) -> Iterator[Finding]:
    """Everything that is wrong with the money, and with the stock that it was paid for."""
    by_payment = accounts(truth.payments)
    movements = _stock(truth)
    for order, stream in streams_of(truth).items():
        own = _of_stream(stream)
        paid = by_payment.get(order, Account())
        yield from _once(order, own, paid, list(stream.values()))
        end = next((event.type for event in stream.values() if event.type in ENDS), None)
        if end is not None:
            yield from _settled(order, end, stream, own, movements[order])
    yield from _provider(truth, by_payment)
    unknown = by_payment.keys() - streams_of(truth).keys()
    for order in unknown:
        if by_payment[order].taken:
            yield Finding(
                "I6", f"{by_payment[order].taken} was captured for order {order}, which has no stream", (order,)
            )
    for user, lines in truth.reserved.items():
        if kept := {product: units for product, units in lines.items() if units}:
            yield Finding("I6", f"stock is kept for orders of {user} at rest: {kept}", (user, *kept))


def balance(truth: Truth) -> Balance:
    """The sums, by the order's events."""
    captured = confirmed = refunded = in_flight = 0
    for stream in streams_of(truth).values():
        account = _of_stream(stream)
        left = account.taken - account.given_back
        ended = any(event.type in ENDS for event in stream.values())
        captured, refunded = captured + account.taken, refunded + account.given_back
        confirmed, in_flight = (confirmed + left, in_flight) if ended else (confirmed, in_flight + left)
    return Balance(captured, confirmed, refunded, in_flight)


def accounts(payments: Sequence[PaymentEvent]) -> dict[str, Account]:
    """Order → its money by payment's events; an event that is there again counts once."""
    found: dict[str, Account] = defaultdict(Account)
    for event in payments:
        if event.type == "captured":
            found[event.order].captured[event.key] = event.amount
        elif event.type == "refunded":
            found[event.order].refunded[event.key] = event.amount
    return found


def _of_stream(stream: Mapping[int, OrderEvent]) -> Account:
    account = Account()
    for event in stream.values():
        if event.type == "captured":
            account.captured[event.data["payment_id"]] = event.data["amount"]["amount"]
        elif event.type == "refunded":
            account.refunded[event.data["refund_id"]] = event.data["amount"]["amount"]
    return account


def _stock(truth: Truth) -> dict[str, set[str]]:
    """Order → what became of its stock, by inventory's log: `sold`, `released`, `restocked`."""
    found: dict[str, set[str]] = defaultdict(set)
    for outcome in truth.log.values():
        if outcome["type"] in {"sold", "released", "restocked"}:
            found[outcome["order_id"]].add(outcome["type"])
    return found


def _once(order: str, own: Account, paid: Account, events: Sequence[OrderEvent]) -> Iterator[Finding]:
    """One capture, the same in the order's and in payment's books, and never more refunded than captured."""
    times = sum(event.type == "captured" for event in events)
    if times > 1 or len(paid.captured) > 1:
        yield Finding("I6", f"order {order} was captured {max(times, len(paid.captured))} times", (order,))
    if own.captured != paid.captured:
        yield Finding("I6", f"order {order} knows of captures {own.captured}, payment of {paid.captured}", (order,))
    if own.refunded != paid.refunded:
        yield Finding("I6", f"order {order} knows of refunds {own.refunded}, payment of {paid.refunded}", (order,))
    if own.given_back > own.taken:
        yield Finding("I6", f"order {order} was refunded {own.given_back} of {own.taken}", (order,))


def _settled(
    order: str, end: str, stream: Mapping[int, OrderEvent], own: Account, stock: set[str]
) -> Iterator[Finding]:
    """An ended order has its money and its stock where its end says."""
    committed = next((event for event in stream.values() if event.type == "committed"), None)
    total = committed.data["total"]["amount"] if committed else 0
    if "sold" in stock and not own.captured:
        yield Finding("I6", f"order {order} was sold, and nothing was captured", (order,))
    if end == "cancelled" and own.taken != own.given_back:
        told = f"captured {own.taken}, refunded {own.given_back}"
        yield Finding("I6", f"order {order} is cancelled: {told}", (order,))
    if end == "cancelled" and "sold" in stock and "restocked" not in stock:
        yield Finding("I6", f"order {order} is cancelled, its stock is still sold", (order,))
    if end == "cancelled" and committed and not stock & {"sold", "released"}:
        yield Finding("I6", f"order {order} is cancelled, its stock was never released", (order,))
    if end == "delivered" and own.taken != total:
        yield Finding("I6", f"order {order} is delivered at {total}, captured was {own.taken}", (order,))
    if end == "delivered" and stock != {"sold"}:
        became = ", ".join(sorted(stock)) or "never sold"
        yield Finding("I6", f"order {order} is delivered, its stock was {became}", (order,))


def _provider(truth: Truth, by_payment: Mapping[str, Account]) -> Iterator[Finding]:
    """The provider did what payment says, and nothing else."""
    if truth.charges is None:
        return
    theirs: dict[str, Account] = defaultdict(Account)
    for key, charge in truth.charges.items():
        if len(charge.captured) > 1:
            yield Finding("I6", f"the provider captured {len(charge.captured)} times under {key}", (charge.order, key))
        if charge.captured:
            theirs[charge.order].captured[key] = sum(charge.captured)
        theirs[charge.order].refunded |= charge.refunded
    for order in {*theirs, *by_payment}:
        ours, other = by_payment.get(order, Account()), theirs.get(order, Account())
        if ours != other:
            yield Finding("I6", f"order {order}: payment says {ours}, the provider {other}", (order,))
