"""The comparison of the services' accounts of an order: each contradiction is found once, and nothing in flight is."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infrastructure.audit.order_accounts import (
    Account,
    Amount,
    DeliveryEntry,
    Operation,
    OrderEntry,
    ParcelEntry,
    PaymentEntry,
    StockEntry,
    Transfer,
    order_lines,
    render_account,
)
from infrastructure.audit.topic_auditor import MAX_LISTED
from infrastructure.local.commands.audit import merge_audits, verdict
from infrastructure.local.commands.order_comparison import RULES, Accounts, compare_accounts, parse_accounts

NOW = 10_000.0
GRACE = 30.0
LONG_AGO = NOW - 1000
JUST_NOW = NOW - GRACE / 2
LINES = order_lines([("MUG", 2, 100, "GBP"), ("POT", 1, 300, "GBP")])
OTHER_LINES = order_lines([("MUG", 3, 100, "GBP")])
TOTAL = Amount(minor=500, currency="GBP")
LESS = Amount(minor=499, currency="GBP")
DOLLARS = Amount(minor=500, currency="USD")
STAGES = ("placed", "committed", "captured", "confirmed", "booked", "shipped", "delivered")


def transfer(amount: Amount = TOTAL, at: float = LONG_AGO) -> Transfer:
    return Transfer(amount=amount, at=at)


def order(status: str = "delivered", at: float = LONG_AGO, *undone: str, **fields: Any) -> OrderEntry:
    """An order whose events go up to its status, all of the same time."""
    reached = {"paid": "captured"}.get(status, status)
    stages = STAGES[: STAGES.index(reached) + 1]
    paid = "captured" in stages
    given: dict[str, Any] = {
        "user": "ann",
        "status": status,
        "is_cancelling": False,
        "total": TOTAL.minor,
        "lines": LINES if "committed" in stages else (),
        "times": dict.fromkeys(stages, at) | {f"undone {step}": at for step in undone},
        "captures": {"pay": transfer(at=at)} if paid else {},
    }
    return OrderEntry(**given | fields)


def cancelled(after: str, *undone: str, at: float = LONG_AGO, **fields: Any) -> OrderEntry:
    """An order that was cancelled after a stage, with these steps undone."""
    whole = order(after, at, *undone)
    return whole.model_copy(update={"status": "cancelled", "times": {**whole.times, "cancelled": at}} | fields)


def operation(state: str = "captured", intent: str = "charge", key: str = "pay", **fields: Any) -> Operation:
    amount = TOTAL if state in {"captured", "refunded"} else None
    given = {"key": key, "user": "ann", "intent": intent, "state": state, "amount": amount, "at": LONG_AGO}
    return Operation(**given | fields)


def refund(**fields: Any) -> Operation:
    return operation("refunded", "refund", "back", **fields)


def parcel(state: str = "delivered", shipment: str = "box", at: float = LONG_AGO, user: str = "ann") -> ParcelEntry:
    return ParcelEntry(shipment=shipment, user=user, state=state, at=at)


def stock(state: str | None = "COMMITTED", at: float = LONG_AGO, **fields: Any) -> StockEntry:
    return StockEntry(**{"user": "ann", "state": state, "lines": LINES, "at": at} | fields)


def accounts(
    orders: OrderEntry | None,
    payment: tuple[Operation, ...] = (),
    delivery: tuple[ParcelEntry, ...] = (),
    inventory: StockEntry | None = None,
) -> Accounts:
    """Accounts of the one order `o`."""

    def account(entry: Any) -> Any:
        return Account(read_at=NOW, grace=GRACE, orders={"o": entry} if entry is not None else {})

    return Accounts(
        account(orders),
        account(PaymentEntry(operations=payment) if payment else None),
        account(DeliveryEntry(parcels=delivery) if delivery else None),
        account(inventory),
    )


CANCELLED_UNPAID = cancelled("committed", "payment", "holds")
REFUNDED = cancelled("confirmed", "sale", "payment", refunds={"back": transfer()})

AGREEING: dict[str, Accounts] = {
    "nothing": accounts(None),
    "just placed": accounts(order("placed", JUST_NOW)),
    "held": accounts(order("committed"), (operation("open"),), (), stock("PENDING")),
    "refused": accounts(cancelled("placed")),
    "delivered": accounts(order(), (operation(),), (parcel(),), stock()),
    "shipped": accounts(order("shipped"), (operation(),), (parcel("shipped"),), stock()),
    "booked": accounts(order("confirmed"), (operation(),), (parcel("wanted"),), stock()),
    "paid, sale on its way": accounts(order("paid"), (operation(),), (), stock("PENDING")),
    "declined": accounts(CANCELLED_UNPAID, (operation("declined"),), (), stock("CANCELLED")),
    "voided": accounts(CANCELLED_UNPAID, (operation("voided", "void"),), (), stock("CANCELLED")),
    "refunded": accounts(REFUNDED, (operation(), refund()), (parcel("called-off"),), stock("CANCELLED")),
    "delivered, partly refunded": accounts(
        order(refunds={"back": transfer(LESS)}), (operation(), refund(amount=LESS)), (parcel(),), stock()
    ),
    "delivery failed": accounts(
        cancelled("shipped", "delivery", "sale", "payment", refunds={"back": transfer()}),
        (operation(), refund()),
        (parcel("failed"),),
        stock("CANCELLED"),
    ),
    "called off while booked": accounts(
        cancelled("booked", "delivery", "sale", "payment", refunds={"back": transfer()}),
        (operation(), refund()),
        (parcel("called-off"),),
        stock("CANCELLED"),
    ),
    "restocked, still being undone": accounts(
        order("confirmed", is_cancelling=True), (operation(),), (), stock("CANCELLED")
    ),
    "free of charge": accounts(
        order(captures={"pay": transfer(Amount(minor=0, currency="GBP"))}), (), (parcel(),), stock()
    ),
    "webhook about a strange order": accounts(None, (operation("open", "query"),)),
}

IN_FLIGHT: dict[str, Accounts] = {
    "capture not yet known to orders": accounts(order("committed"), (operation(at=JUST_NOW),), (), stock("PENDING")),
    "capture younger than payment's snapshot": accounts(order("paid", JUST_NOW), (), (), stock("PENDING")),
    "refund not yet known to orders": accounts(order(), (operation(), refund(at=JUST_NOW)), (parcel(),), stock()),
    "refund younger than payment's snapshot": accounts(
        order(refunds={"back": transfer(at=JUST_NOW)}), (operation(),), (parcel(),), stock()
    ),
    "order not yet placed": accounts(None, (), (), stock("PENDING", JUST_NOW)),
    "payment of an order not yet placed": accounts(None, (operation("open", at=JUST_NOW),)),
    "parcel of an order not yet placed": accounts(None, (), (parcel("wanted", at=JUST_NOW),)),
    "stock just held": accounts(order("committed", JUST_NOW), (), (), None),
    "stock just sold": accounts(order("committed"), (operation(at=JUST_NOW),), (), stock("COMMITTED", JUST_NOW)),
    "sale younger than inventory's snapshot": accounts(
        order("confirmed", JUST_NOW), (operation(),), (), stock("PENDING")
    ),
    "just restocked": accounts(order("confirmed"), (operation(),), (), stock("CANCELLED", JUST_NOW)),
    "just cancelled": accounts(
        cancelled("committed", "payment", "holds", at=JUST_NOW), (operation("open"),), (), stock("PENDING")
    ),
    "parcel just booked": accounts(order("booked", JUST_NOW), (operation(),), (), stock()),
    "parcel just delivered": accounts(order("delivered", JUST_NOW), (operation(),), (parcel("shipped"),), stock()),
    "parcel of an order just confirmed": accounts(
        order("paid"), (operation(),), (parcel("booked", at=JUST_NOW),), stock("PENDING")
    ),
}

CONTRADICTING: dict[str, tuple[Accounts, str]] = {
    "capture that payment does not know": (
        accounts(order(), (), (parcel(),), stock()),
        "orders (delivered) has capture pay of 500 GBP minor units; payment has no operation with this key",
    ),
    "capture that payment has open": (
        accounts(order(), (operation("open"),), (parcel(),), stock()),
        "payment has charge pay as open",
    ),
    "capture that payment has voided": (
        accounts(order("paid"), (operation("voided", "void"),), (), stock("PENDING")),
        "payment has void pay as voided",
    ),
    "capture that payment has declined": (
        accounts(order("paid"), (operation("declined"),), (), stock("PENDING")),
        "payment has charge pay as declined",
    ),
    "capture of another amount": (
        accounts(order(), (operation(amount=LESS),), (parcel(),), stock()),
        "orders has capture pay of 500 GBP minor units; payment has 499 GBP minor units",
    ),
    "capture in another currency": (
        accounts(order(), (operation(amount=DOLLARS),), (parcel(),), stock()),
        "payment has 500 USD minor units",
    ),
    "capture that orders does not know": (
        accounts(order("committed"), (operation(),), (), stock("PENDING")),
        "payment has capture pay of 500 GBP minor units; orders (committed) does not have it",
    ),
    "capture of a cancelled order": (
        accounts(CANCELLED_UNPAID, (operation(),), (), stock("CANCELLED")),
        "payment has capture pay of 500 GBP minor units; orders (cancelled) does not have it",
    ),
    "refund that payment does not know": (
        accounts(order(refunds={"back": transfer()}), (operation(),), (parcel(),), stock()),
        "orders (delivered) has refund back of 500 GBP minor units; payment has no operation with this key",
    ),
    "refund that payment has open": (
        accounts(
            order(refunds={"back": transfer()}),
            (operation(), operation("open", "refund", "back")),
            (parcel(),),
            stock(),
        ),
        "payment has refund back as open",
    ),
    "refund of another amount": (
        accounts(order(refunds={"back": transfer()}), (operation(), refund(amount=LESS)), (parcel(),), stock()),
        "orders has refund back of 500 GBP minor units; payment has 499 GBP minor units",
    ),
    "refund that orders does not know": (
        accounts(order(), (operation(), refund()), (parcel(),), stock()),
        "payment has refund back of 500 GBP minor units; orders (delivered) does not have it",
    ),
    "payment counted as prevented while payment tries": (
        accounts(CANCELLED_UNPAID, (operation("open"),), (), stock("CANCELLED")),
        "orders has its payment as prevented; payment has charge pay as open",
    ),
    "payment counted as prevented and never requested": (
        accounts(CANCELLED_UNPAID, (), (), stock("CANCELLED")),
        "orders has its payment as prevented; payment does not know the order",
    ),
    "delivered without a capture": (
        accounts(order(captures={}), (), (parcel(),), stock()),
        "orders has it as delivered without a capture",
    ),
    "confirmed without a capture": (
        accounts(order("confirmed", captures={}), (), (), stock()),
        "orders has it as confirmed without a capture",
    ),
    "stock that was never held": (
        accounts(order("committed"), (operation("open"),), (), None),
        "orders has it as committed; inventory never held stock for it",
    ),
    "another quantity": (
        accounts(order(), (operation(),), (parcel(),), stock(lines=OTHER_LINES)),
        "inventory has 3 x MUG at 100 GBP minor units",
    ),
    "other prices": (
        accounts(order(), (operation(),), (parcel(),), stock(lines=order_lines([("MUG", 2, 1, "GBP")]))),
        "inventory has 2 x MUG at 1 GBP minor units",
    ),
    "stock sold without a capture": (
        accounts(order("committed"), (operation("open"),), (), stock()),
        "inventory has its stock as sold; orders has it as committed without a capture",
    ),
    "confirmed, stock only held": (
        accounts(order("confirmed"), (operation(),), (), stock("PENDING")),
        "orders has it as confirmed, its stock sold; inventory has it as held",
    ),
    "delivered, stock released": (
        accounts(order(), (operation(),), (parcel(),), stock("CANCELLED")),
        "orders has it as delivered, its stock sold; inventory has it as released",
    ),
    "cancelled, stock still held": (
        accounts(CANCELLED_UNPAID, (operation("voided"),), (), stock("PENDING")),
        "orders has it as cancelled; inventory has its stock as held",
    ),
    "cancelled, stock sold": (
        accounts(REFUNDED, (operation(), refund()), (), stock()),
        "orders has it as cancelled; inventory has its stock as sold",
    ),
    "cancelled, parcel delivered": (
        accounts(REFUNDED, (operation(), refund()), (parcel(),), stock("CANCELLED")),
        "orders has it as cancelled; delivery has parcel box as delivered",
    ),
    "cancelled, parcel wanted": (
        accounts(REFUNDED, (operation(), refund()), (parcel("wanted"),), stock("CANCELLED")),
        "orders has it as cancelled; delivery has parcel box as wanted",
    ),
    "parcel of an order that is not confirmed": (
        accounts(order("paid"), (operation(),), (parcel("booked"),), stock("PENDING")),
        "delivery has parcel box as booked; orders has it as paid, not confirmed",
    ),
    "delivered without a parcel": (
        accounts(order(), (operation(),), (), stock()),
        "orders has it as delivered; delivery has no parcel of it",
    ),
    "delivered, parcel on its way": (
        accounts(order(), (operation(),), (parcel("shipped"),), stock()),
        "orders has it as delivered; delivery has its parcel as shipped",
    ),
    "shipped, parcel not collected": (
        accounts(order("shipped"), (operation(),), (parcel("booked"),), stock()),
        "orders has it as shipped; delivery has its parcel as booked",
    ),
    "booked, carrier never asked": (
        accounts(order("booked"), (operation(),), (), stock()),
        "orders has it as booked; delivery has no parcel of it",
    ),
    "money of no order": (
        accounts(None, (operation(),)),
        "payment has charge pay of 500 GBP minor units as captured; orders does not know the order",
    ),
    "parcel of no order": (
        accounts(None, (), (parcel("booked"),)),
        "delivery has parcel box as booked; orders does not know the order",
    ),
    "stock sold to no order": (
        accounts(None, (), (), stock()),
        "inventory has its stock as sold; orders does not know the order",
    ),
    "payment of another shopper": (
        accounts(order(), (operation(user="bob"),), (parcel(),), stock()),
        "orders has it as one of ann; payment has it as one of bob",
    ),
    "parcel of another shopper": (
        accounts(order(), (operation(),), (parcel(user="bob"),), stock()),
        "orders has it as one of ann; delivery has it as one of bob",
    ),
    "stock of another shopper": (
        accounts(order(), (operation(),), (parcel(),), stock(user="bob")),
        "orders has it as one of ann; inventory has it as one of bob",
    ),
}


@pytest.mark.parametrize("name", [*AGREEING, *IN_FLIGHT])
def test_accounts_that_agree_or_are_in_flight_are_no_violation(name: str) -> None:
    assert compare_accounts((AGREEING | IN_FLIGHT)[name]) == []


@pytest.mark.parametrize("name", CONTRADICTING)
def test_each_contradiction_is_found_once_and_names_the_order(name: str) -> None:
    compared, expected = CONTRADICTING[name]
    [found] = compare_accounts(compared)
    assert found.startswith("order o: ")
    assert expected in found


def test_a_double_capture_is_named_with_all_its_keys() -> None:
    twice = accounts(order(), (operation(), operation(key="again")), (parcel(),), stock())
    assert compare_accounts(twice) == [
        "order o: payment has capture again of 500 GBP minor units; orders (delivered) does not have it",
        "order o: captured 2 times: again, pay",
    ]


@pytest.mark.parametrize("absent", ["payment", "delivery", "inventory"])
def test_a_service_that_the_shop_does_not_run_is_not_compared(absent: str) -> None:
    whole = accounts(order(), (operation(),), (parcel(),), stock())
    missing: dict[str, Any] = {absent: None}
    assert compare_accounts(dataclasses.replace(whole, **missing)) == []


def test_everything_younger_than_the_grace_period_is_in_flight_and_everything_older_counts() -> None:
    def seen(at: float) -> list[str]:
        return compare_accounts(accounts(order("committed"), (operation(at=at),), (), stock("PENDING")))

    assert seen(NOW - GRACE + 0.001) == []
    assert len(seen(NOW - GRACE)) == 1


def test_many_violations_of_a_kind_are_cut_and_each_kind_is_still_listed() -> None:
    many = {f"o{number:03}": order(captures={}) for number in range(100)}
    lonely = Accounts(Account(read_at=NOW, grace=GRACE, orders=many))
    found = compare_accounts(lonely)
    assert len(found) == MAX_LISTED + 1
    assert found[-1] == f"and {100 - MAX_LISTED} more of this kind"


def test_an_account_survives_being_printed() -> None:
    read_at = datetime(2026, 1, 1, tzinfo=UTC)
    entry = order("shipped", refunds={"back": transfer()})
    printed = {"orders": render_account({"o": entry}, read_at, timedelta(seconds=30))}
    parsed = parse_accounts(printed)
    assert parsed is not None
    assert (parsed.orders.orders, parsed.orders.read_at, parsed.orders.grace) == (
        {"o": entry},
        read_at.timestamp(),
        30,
    )
    assert (parsed.payment, parse_accounts({})) == (None, None)


def test_every_rule_has_a_case() -> None:
    found = {rule.__name__ for compared, _ in CONTRADICTING.values() for rule in RULES if list(rule(compared, "o"))}
    assert found == {rule.__name__ for rule in RULES} - {"double_captures"}


def report(violations: Callable[[], list[str]] = list) -> dict[str, Any]:
    found = violations()
    return {"ok": not found, "violations": found, "digest": "d", "figures": {"captured": 1}}


def test_the_report_has_each_figure_with_its_owner_and_the_verdict_names_who_failed() -> None:
    names = {"order_service": "orders", "order_service.payment": "payment"}
    audits = {"order_service": report(), "order_service.payment": report()}
    whole = merge_audits(audits, names, accounts(order(), (operation(),), (parcel(),), stock()))
    assert {name: part["figures"] for name, part in whole["services"].items()} == {
        "orders": {"captured": 1},
        "payment": {"captured": 1},
        "between services": {"orders_compared": 1},
    }
    assert whole["figures"] == {"captured": 2}
    assert verdict(whole) == "no violations in orders, payment; 1 orders agree between the services"
    audits["order_service.payment"] = report(lambda: ["a ghost"])
    forged = merge_audits(audits, names, accounts(order(), (), (parcel(),), stock()))
    assert not forged["ok"]
    assert len(forged["violations"]) == 2
    assert verdict(forged) == "the audit found violations: payment 1, between services 1"
