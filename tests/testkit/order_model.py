"""A small world around one order: an inventory, a provider and a carrier that answer each step, and do it once.

Everything is a frozen value, so a world can be a key: `tests/unit/test_order_arrivals.py` walks through all that can be
reached. A message that was sent is never used up. It can be delivered at any time, in any order, and any number of
times: that is what Kafka, redelivery and replays may do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from contracts import deliveries, inventory, orders, payments
from contracts.ids import derive_id
from order_service import commands, model
from order_service.state import Order, shipment_id

USER: Final = "ann"
CHECKOUT: Final = "c1"
ORDER: Final = derive_id(USER, CHECKOUT, "order")
IDS: Final[dict[str, Any]] = {"order_id": ORDER, "user_id": USER}
NOON: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
RULES: Final = model.SagaTimeouts()
AFTER_PAYMENT_TIMEOUT: Final = NOON + RULES.payment_timeout + timedelta(seconds=1)
POUND: Final = inventory.Money(amount=100, currency="GBP")
TOTAL: Final = inventory.Money(amount=300, currency="GBP")
LINES: Final = (inventory.Line(product="MUG", quantity=3, price=POUND),)
ADDRESS: Final = orders.Address(name="Ann", line1="1 High St", city="Leeds", postal_code="LS1 1AA", country="GB")
CONTACT: Final = orders.Contact(email="ann@example.org")
PLACE: Final = orders.Place(
    **IDS, version=4, address=ADDRESS, contact=CONTACT, payment=orders.Payment(token="tok_approve")
)
PRIVATE: Final = commands.PersonalData.of(PLACE)
COMMIT: Final = inventory.Commit(**IDS, version=4)


EARLY: Final = "early"
"""Marks a deadline that comes while there is patience left."""


class Sent(NamedTuple):
    """A message on its way: to `orders`, `inventory`, `payment` or `delivery`."""

    to: str
    request_id: str
    message: Any


@dataclass(frozen=True)
class SimulatedPayment:
    """The provider's record of one payment."""

    status: str = "new"
    captured: int = 0
    refunds: tuple[tuple[str, int], ...] = ()

    @property
    def refunded(self) -> int:
        return sum(amount for _, amount in self.refunds)


@dataclass(frozen=True)
class Scenario:
    """Events around the order, and requests of people."""

    name: str
    commit: Any = "committed"
    provider: str = "approves"
    carrier: str = "delivers"
    requests: tuple[Any, ...] = ()
    deadline: bool = False
    ends: frozenset[str] = frozenset({"delivered"})


@dataclass(frozen=True)
class SimulatedShop:
    """The state of everything at one moment."""

    order: Order | None = None
    waiting: tuple[model.Incoming, ...] = ()
    answered: frozenset[tuple[model.RequestKey, str | None]] = frozenset()
    holds: str | None = None
    restocked: bool = False
    bank: tuple[tuple[str, SimulatedPayment], ...] = ()
    parcel: str | None = None
    captures: int = 0
    sent: frozenset[Sent] = frozenset()

    @property
    def money(self) -> int:
        """The amount that the provider has captured, over all payments."""
        return sum(each.captured for _, each in self.bank)

    @property
    def refunded(self) -> int:
        """The amount that the provider has refunded."""
        return sum(each.refunded for _, each in self.bank)


def begin(scenario: Scenario) -> SimulatedShop:
    """The cart has sent its two messages; whatever people will ask for may come at any time."""
    first = [Sent("orders", CHECKOUT, PLACE), Sent("inventory", CHECKOUT, COMMIT)]
    first += [Sent("orders", f"asked-{number}", asked) for number, asked in enumerate(scenario.requests)]
    if scenario.deadline:
        first.append(Sent("orders", "", model.Deadline()))
    return SimulatedShop(sent=frozenset(first))


def deliver(world: SimulatedShop, sent: Sent, scenario: Scenario) -> SimulatedShop:
    """The world after `sent` was delivered once more."""
    match sent.to:
        case "orders":
            return _orders(world, sent)
        case "inventory":
            return _inventory(world, sent, scenario)
        case "payment":
            return _payment(world, sent, scenario)
        case _:
            return _delivery(world, sent, scenario)


def successors(world: SimulatedShop, scenario: Scenario) -> Iterator[SimulatedShop]:
    """All worlds that one delivery leads to, but for those that are as they were."""
    for sent in world.sent:
        after = deliver(world, sent, scenario)
        if after != world:
            yield after


TOPICS: Final = {
    inventory.REQUESTS: "inventory",
    payments.REQUESTS: "payment",
    deliveries.REQUESTS: "delivery",
}


def _orders(world: SimulatedShop, sent: Sent) -> SimulatedShop:
    came = model.Incoming(ORDER, USER, sent.request_id, sent.message)
    late = isinstance(sent.message, model.Deadline)
    now = NOON if sent.request_id == EARLY else AFTER_PAYMENT_TIMEOUT
    before: Any = dict(world.answered)
    handled = model.handle(world.order, world.waiting, came, now=now, timeouts=RULES, stored_replies=before)
    for answer in handled.replies:
        key = model.request_key(answer.request)
        assert before.get(key, answer.refusal) == answer.refusal, f"{key} was answered in two ways"
    world = replace(
        world, answered=world.answered | {(model.request_key(each.request), each.refusal) for each in handled.replies}
    )
    if handled.state is None:
        return replace(world, waiting=handled.waiting)
    news = bool(handled.events) or late or isinstance(sent.message, orders.Request)
    owed = commands.next_commands(handled.state, PRIVATE, overdue=late) if news else ()
    return replace(
        world,
        order=replace(handled.state, changed_at=NOON, placed_at=NOON),
        waiting=handled.waiting,
        captures=world.captures + sum(isinstance(event, orders.Captured) for event in handled.events),
        sent=world.sent | {Sent(TOPICS[step.topic], step.request_id, step.message) for step in owed},
    )


def _inventory(world: SimulatedShop, sent: Sent, scenario: Scenario) -> SimulatedShop:
    answer: Callable[..., SimulatedShop] = lambda outcome, **changes: replace(  # noqa: E731
        world, sent=world.sent | {Sent("orders", sent.request_id, outcome)}, **changes
    )
    state: Any = None if world.holds == "refused" else world.holds
    as_it_is = inventory.Reservation(order_id=ORDER, state=state)
    match sent.message:
        case inventory.Commit() if scenario.commit != "committed":
            return answer(inventory.Refused(reason=scenario.commit, order_id=ORDER), holds="refused")
        case inventory.Commit():
            committed = inventory.Committed(order_id=ORDER, purpose="order", lines=LINES, total=TOTAL, version=5)
            return answer(committed, holds=world.holds or "PENDING")
        case inventory.Sell() if world.holds in {"PENDING", "COMMITTED"}:
            return answer(inventory.Sold(order_id=ORDER), holds="COMMITTED")
        case inventory.ReleaseOrder() if world.holds == "PENDING" or (
            world.holds == "CANCELLED" and not world.restocked
        ):
            return answer(inventory.Released(order_id=ORDER, version=6), holds="CANCELLED")
        case inventory.Restock() if world.holds == "COMMITTED" or world.restocked:
            return answer(inventory.Restocked(order_id=ORDER), holds="CANCELLED", restocked=True)
        case _:
            return answer(as_it_is)


def _payment(world: SimulatedShop, sent: Sent, scenario: Scenario) -> SimulatedShop:  # noqa: C901 - one page, one provider
    message = sent.message
    banks = dict(world.bank)
    bank = banks.get(message.payment_id, SimulatedPayment())
    sends: list[Sent] = []
    match message:
        case payments.Charge(amount=amount) if bank.status == "new":
            match scenario.provider:
                case "approves":
                    bank = SimulatedPayment("captured", amount.amount)
                case "declines":
                    bank = SimulatedPayment("declined")
                case "errs":
                    bank = SimulatedPayment("captured", amount.amount - 1)
                case "answers late":
                    bank = SimulatedPayment("open")
                    sends.append(Sent("payment", "the bank's own", payments.Notified(**_payment_ids(message))))
                case _:
                    bank = SimulatedPayment("open")
        case payments.Notified() if bank.status == "open":
            bank = SimulatedPayment("captured", TOTAL.amount)
        case payments.Void() if bank.status in {"new", "open"}:
            bank = SimulatedPayment("voided")
        case payments.Refund(refund_id=refund_id, amount=amount) if bank.status == "captured":
            if refund_id not in dict(bank.refunds):
                bank = replace(bank, refunds=(*bank.refunds, (refund_id, amount.amount)))
            given = inventory.Money(amount=dict(bank.refunds)[refund_id], currency="GBP")
            sends.append(
                Sent("orders", "", payments.Refunded(**_payment_ids(message), refund_id=refund_id, amount=given))
            )
        case payments.Refund():
            return world
    if not isinstance(message, payments.Refund) and bank.status != "new":
        sends.append(Sent("orders", "", _of_bank(bank, _payment_ids(message))))
    banks[message.payment_id] = bank
    return replace(world, bank=tuple(sorted(banks.items())), sent=world.sent | set(sends))


def _payment_ids(message: Any) -> dict[str, Any]:
    return {**IDS, "payment_id": message.payment_id}


def _of_bank(bank: SimulatedPayment, ids: dict[str, Any]) -> payments.Event:
    match bank.status:
        case "captured":
            return payments.Captured(**ids, amount=inventory.Money(amount=bank.captured, currency="GBP"))
        case "declined":
            return payments.Declined(**ids, reason="no")
        case "voided":
            return payments.Voided(**ids)
        case _:
            return payments.Unknown(**ids, reason="no answer")


def _delivery(world: SimulatedShop, sent: Sent, scenario: Scenario) -> SimulatedShop:
    ids = {**IDS, "shipment_id": shipment_id(ORDER)}
    parcel, sends = world.parcel, []
    match sent.message:
        case deliveries.Book() if parcel is None:
            parcel = "booked"
            sends.append(Sent("delivery", "", "fetch"))
        case deliveries.CallOff() if parcel in {None, "booked"}:
            parcel = "called off"
        case "fetch" if parcel == "booked":
            parcel = "shipped"
            sends.append(Sent("delivery", "", "arrive"))
        case "arrive" if parcel == "shipped":
            parcel = "failed" if scenario.carrier == "fails" else "delivered"
    carried = {**ids, "carrier": "Swift", "tracking": "T1"}
    told: dict[str, list[Any]] = {
        "booked": [deliveries.Booked(**carried)],
        "shipped": [deliveries.Shipped(**carried)],
        "called off": [deliveries.CalledOff(**ids)],
        "delivered": [deliveries.Delivered(**ids)],
        "failed": [deliveries.Failed(**ids, reason="nobody there")],
    }
    sends += [Sent("orders", "", event) for event in told.get(parcel or "", [])]
    return replace(world, parcel=parcel, sent=world.sent | set(sends))


# ---- what must hold -------------------------------------------------------------------------------------------------


def safety_violation(world: SimulatedShop) -> str | None:  # noqa: PLR0911 - one for each wrong
    """Yield the faults of a state, at any moment."""
    order = world.order
    if world.captures > 1 or sum(each.captured > 0 for _, each in world.bank) > 1:
        return "two captures"
    if world.refunded > world.money:
        return "more was given back than captured"
    if order is not None and order.captured is not None and order.captured.amount != world.money:
        return "the order and the provider know of different sums"
    if world.holds == "COMMITTED" and world.money == 0:
        return "sold without a capture"
    if world.holds == "CANCELLED" and not world.restocked and world.money > world.refunded:
        return "released although captured"
    if order is not None and order.reason is not None:
        if world.refunded == world.money > 0 and world.holds == "COMMITTED" and order.is_cancelling:
            return "money was given back before the sale was undone"
        if world.restocked and world.parcel not in {None, "called off", "failed"}:
            return "restocked with the parcel still under way"
    if order is not None and list(order.undone_steps) != [effect for effect in UNDOING if effect in order.undone_steps]:
        return "not undone in reverse order"
    return None


UNDOING: Final = ("delivery", "sale", "payment", "holds")


def liveness_violation(world: SimulatedShop, scenario: Scenario) -> str | None:  # noqa: PLR0911 - one for each wrong
    """Yield the faults of a state in which every message is delivered and leads to nothing new."""
    order = world.order
    if order is None or not order.is_complete:
        return "it does not end"
    if world.waiting:
        return "something still waits"
    if order.status not in scenario.ends:
        return f"it ends as {order.status}"
    if order.status == "delivered" and (world.parcel, world.holds) != ("delivered", "COMMITTED"):
        return "delivered is not what happened"
    if order.status == "delivered" and world.money != TOTAL.amount:
        return "delivered, and not paid"
    if order.status == "cancelled":
        if world.money != world.refunded:
            return "cancelled, and the money is not back"
        if world.holds not in {"refused", "CANCELLED"}:
            return "cancelled, and the stock is not back"
    return None
