"""The rules of orders, each as a sentence: holds leave a cart, are sold, and come back."""

from datetime import timedelta
from typing import Any

import pytest

from contracts.envelope import MAX_VALUE_BYTES
from contracts.inventory import (
    MAX_LINES,
    MAX_LOOKUP_IDS,
    MAX_QUANTITY,
    REQUEST_REGISTRY,
    Clear,
    Commit,
    Committed,
    Expired,
    Fail,
    IdReused,
    Line,
    Lookup,
    Money,
    ReadReservation,
    Refused,
    Released,
    Remove,
    Reservation,
    Restocked,
    Sold,
)
from inventory_service.fingerprint import fingerprint
from inventory_service.state import STEP_PREFIX, Command
from tests.testkit.inventory_model import (
    NOON,
    RULES,
    InventoryModel,
    add,
    commit,
    make,
    restock,
    sell,
    take,
    to_cart,
    to_shelf,
)


def line(product: str, quantity: int, price: int = 100) -> Line:
    return Line(product=product, quantity=quantity, price=Money(amount=price, currency="GBP"))


def refused(reason: Any, **more: Any) -> Refused:
    return Refused(reason=reason, order_id="o1", **more)


@pytest.fixture
def shop() -> InventoryModel:
    """Ann has two teapots and a mug in her cart, at revision 2."""
    shop = InventoryModel(TEAPOT=10, MUG=5)
    shop.tell(Command("r1", NOON, add("TEAPOT", 2)), Command("r2", NOON, add("MUG", 1)))
    return shop


# ---- commit ---------------------------------------------------------------------------------------------------------


def test_a_commit_moves_the_whole_cart_to_the_order_at_its_granted_prices(shop: InventoryModel) -> None:
    shop.shelves["TEAPOT"].price = Money(amount=999, currency="GBP")
    before = (shop.stock("TEAPOT"), shop.shelves["TEAPOT"].version, len(shop.ledger))
    [answer] = shop.tell(Command("c", NOON, commit(2)))
    assert answer.outcome == Committed(
        order_id="o1",
        purpose="order",
        lines=(line("MUG", 1), line("TEAPOT", 2)),
        total=Money(amount=300, currency="GBP"),
        version=3,
    )
    assert (answer.cart.revision, answer.cart.lines, answer.cart.expires_at) == (3, (), None)
    assert (shop.stock("TEAPOT"), shop.shelves["TEAPOT"].version, len(shop.ledger)) == before, "the stock is held on"
    shop.check()


def test_an_order_keeps_its_holds_when_the_cart_would_have_expired(shop: InventoryModel) -> None:
    shop.ask(commit(2), "c")
    shop.later(hours=3)
    assert shop.ask(add("MUG", 1), "r3").version == 4
    assert shop.stock("TEAPOT") == (10, 2, 0)


def test_a_cart_that_changed_or_is_empty_is_not_ordered(shop: InventoryModel) -> None:
    assert shop.ask(commit(1), "c1") == refused("cart_changed")
    assert shop.ask(commit(3), "c2") == refused("cart_changed")
    shop.ask(Clear(user_id="ann"), "r3")
    assert shop.ask(commit(2), "c3") == refused("cart_changed")
    assert shop.ask(commit(3), "c4") == refused("cart_empty")
    assert shop.ask(commit(0, "o2", "bob"), "c5") == Refused(reason="cart_empty", order_id="o2")
    assert shop.reserved == {}
    assert shop.holders["ann"].revision == 3


def test_of_two_tabs_that_check_out_one_makes_an_order(shop: InventoryModel) -> None:
    first, second = shop.tell(Command("tab 1", NOON, commit(2, "o1")), Command("tab 2", NOON, commit(2, "o2")))
    assert isinstance(first.outcome, Committed)
    assert second.outcome == Refused(reason="cart_changed", order_id="o2")


def test_another_total_than_was_seen_is_refused(shop: InventoryModel) -> None:
    assert shop.ask(commit(2, expect=299), "c1") == refused("total_changed")
    assert shop.ask(take(TEAPOT=1, expect=299), "c2") == refused("total_changed")
    dollars = Commit(user_id="ann", order_id="o1", version=2, expect=Money(amount=300, currency="USD"))
    assert shop.ask(dollars, "c3") == refused("total_changed")
    assert shop.ask(commit(2, expect=300), "c4").version == 3


def test_a_checkout_of_a_due_cart_expires_it_and_is_refused_as_expired(shop: InventoryModel) -> None:
    shop.later(minutes=15)
    expired, answer = shop.tell(Command("c", shop.now, commit(2)))
    assert isinstance(expired.outcome, Expired)
    assert answer.outcome == refused("expired")
    assert shop.stock("TEAPOT") == (10, 0, 0)


def test_a_checkout_right_after_the_expiry_is_refused_as_expired(shop: InventoryModel) -> None:
    shop.later(minutes=15)
    shop.tell(Command("s", shop.now, ReadReservation(user_id="ann", order_id="o", session="s")))
    assert shop.holders["ann"].revision == 3
    assert shop.ask(commit(2), "c1") == refused("expired")
    assert shop.ask(commit(1), "c2") == refused("cart_changed")
    assert shop.ask(commit(3), "c3") == refused("cart_empty"), "its shopper knows that it expired"
    shop.ask(add("MUG", 1), "r3")
    assert shop.ask(commit(2), "c4") == refused("cart_changed"), "and has begun another"


def test_lines_are_taken_from_stock_at_current_prices_and_leave_the_cart_alone(shop: InventoryModel) -> None:
    shop.shelves["MUG"].price = Money(amount=250, currency="GBP")
    outcome = shop.ask(take(TEAPOT=3, MUG=4), "c")
    assert outcome.lines == (line("MUG", 4, 250), line("TEAPOT", 3))
    assert (outcome.total.amount, outcome.version) == (1300, 2)
    assert (shop.lines(), shop.holders["ann"].revision) == ({"TEAPOT": 2, "MUG": 1}, 2)
    assert (shop.stock("TEAPOT"), shop.stock("MUG")) == ((10, 5, 0), (5, 5, 0))
    rows = [(row.cause, row.held, row.order_id) for row in shop.ledger[2:]]
    assert rows == [("checkout", 4, "o1"), ("checkout", 3, "o1")]
    shop.check()


def test_lines_are_taken_wholly_or_not_at_all(shop: InventoryModel) -> None:
    assert shop.ask(take(TEAPOT=8, MUG=5), "c1") == refused("out_of_stock", product="MUG", available=4)
    assert shop.ask(take(TEAPOT=1, NOPE=1), "c2") == refused("unknown_product", product="NOPE")
    shop.shelves["TEAPOT"].for_sale = False
    assert shop.ask(take(TEAPOT=1), "c3") == refused("unknown_product", product="TEAPOT")
    assert (shop.stock("TEAPOT"), shop.reserved) == ((10, 2, 0), {})


def test_a_cart_of_two_currencies_has_no_total_and_makes_no_order(shop: InventoryModel) -> None:
    shop.shelves["MUG"].price = Money(amount=1, currency="JPY")
    assert shop.ask(take(TEAPOT=1, MUG=1), "c") == refused("other_currency")
    assert shop.reserved == {}


def test_an_order_of_another_currency_than_the_cart_goes_back_to_stock() -> None:
    shop = InventoryModel(TEAPOT=10, MUG=5)
    shop.tell(Command("r1", NOON, add("TEAPOT", 2)))
    shop.ask(commit(1), "c1")
    shop.shelves["MUG"].price = Money(amount=1, currency="JPY")
    shop.ask(add("MUG", 1), "r2")
    assert shop.ask(to_cart(), "c2").type == "released"
    assert (shop.lines(), shop.stock("TEAPOT")) == ({"MUG": 1}, (10, 0, 0))
    shop.check()


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_repeated_commit_gets_the_same_answer(shop: InventoryModel) -> None:
    first = shop.ask(commit(2), "c")
    [again] = shop.tell(Command("c", NOON, commit(2)))
    assert (again.outcome, again.replayed) == (first, True)
    assert shop.ask(commit(2, "o2"), "c") == IdReused(order_id="o2")
    assert shop.ask(add("MUG", 1), "c") == IdReused()
    assert shop.ask(commit(2, "o2"), "r1") == IdReused(order_id="o2"), "so that whoever waits for it knows"


def test_lines_in_another_order_are_the_same_request(shop: InventoryModel) -> None:
    first = shop.ask(take(TEAPOT=1, MUG=1), "c")
    [again] = shop.tell(Command("c", NOON, take(MUG=1, TEAPOT=1)))
    assert (again.outcome, again.replayed) == (first, True)


def test_an_order_is_taken_once_even_when_the_log_has_forgotten(shop: InventoryModel) -> None:
    first = shop.ask(commit(2), "c")
    shop.ask(add("MUG", 1), "r3")
    shop.forget()
    shop.later(days=10)
    expired, answer = shop.tell(Command("c", NOON, commit(2)))
    assert isinstance(expired.outcome, Expired)
    assert answer.outcome == first, "though it is older than seven days"
    shop.check()


def test_another_shoppers_order_is_refused(shop: InventoryModel) -> None:
    shop.ask(commit(2), "c")
    shop.ask(add("MUG", 1, "bob"), "r1")
    assert shop.ask(commit(1, "o1", "bob"), "c") == refused("failed")
    nothing = Reservation(order_id="o1", state=None)
    for step in (sell("o1", "bob"), to_shelf("o1", "bob"), restock("o1", "bob")):
        assert shop.ask(step, step.TYPE) == nothing
    assert shop.ask(ReadReservation(user_id="bob", order_id="o1", session="s")) == nothing
    assert shop.reserved["o1"].user == "ann"
    shop.check()


def test_a_commit_comes_too_late_like_any_change_and_its_steps_never_do(shop: InventoryModel) -> None:
    old = NOON - RULES.max_age - timedelta(seconds=1)
    assert shop.ask(commit(2), "c1", accepted=old) == refused("expired")
    assert shop.ask(commit(2), "c2", accepted=NOON + timedelta(minutes=6)).type == "bad_field"
    shop.ask(commit(2), "c3")
    assert shop.ask(sell(), "o1/sell", accepted=old) == Sold(order_id="o1")
    assert shop.ask(restock(), "o1/restock", accepted=NOON + timedelta(days=1)) == Restocked(order_id="o1")


def test_no_client_can_take_the_id_of_a_step(shop: InventoryModel) -> None:
    shop.ask(commit(2), "c")
    shop.ask(Remove(user_id="ann", product="NOPE"), "o1/sell")
    assert shop.ask(sell(), "o1/sell") == Sold(order_id="o1")
    assert ("ann", f"{STEP_PREFIX}o1/sell") in shop.log
    assert shop.ask(Remove(user_id="ann", product="NOPE"), "o1/sell").type == "removed"


# ---- what comes after it --------------------------------------------------------------------------------------------


def test_holds_are_sold_once(shop: InventoryModel) -> None:
    shop.ask(commit(2), "c")
    for id_ in ("o1/sell", "o1/sell", "another"):
        [answer] = shop.tell(Command(id_, NOON, sell()))
        assert answer.outcome == Sold(order_id="o1")
    assert (shop.stock("TEAPOT"), shop.stock("MUG")) == ((10, 0, 2), (5, 0, 1))
    assert answer.cart.revision == 3, "and no cart changed"
    assert [(row.cause, row.held, row.sold) for row in shop.ledger[2:]] == [("sell", -1, 1), ("sell", -2, 2)]
    shop.check()


def test_holds_come_back_to_the_cart_at_their_prices_as_after_a_granted_add(shop: InventoryModel) -> None:
    shop.ask(commit(2), "c")
    shop.shelves["TEAPOT"].price = Money(amount=999, currency="GBP")
    shop.later(minutes=30)
    shop.ask(make("MUG", 2), "r3")
    shop.later(minutes=10)
    [answer] = shop.tell(Command("o1/release", shop.now, to_cart()))
    assert answer.outcome == Released(order_id="o1", version=5)
    assert (answer.cart.revision, answer.cart.lines) == (5, (line("MUG", 3), line("TEAPOT", 2)))
    assert answer.cart.expires_at == shop.now + RULES.idle_timeout
    assert shop.reserved["o1"].state == "CANCELLED"
    assert shop.stock("TEAPOT") == (10, 2, 0)
    shop.check()


def test_released_holds_that_exceed_the_carts_limit_become_free_stock() -> None:
    shop = InventoryModel(TEAPOT=3000, MUG=5, **{f"P{number}": 1 for number in range(MAX_LINES)})
    shop.tell(Command("r1", NOON, add("TEAPOT", MAX_QUANTITY - 1)), Command("r2", NOON, add("MUG", 5)))
    shop.ask(commit(2), "c")
    shop.ask(add("TEAPOT", 3), "r3")
    shop.tell(*(Command(f"p{number}", NOON, add(f"P{number}", 1)) for number in range(MAX_LINES - 1)))
    assert shop.ask(to_cart(), "o1/release").version == 4 + MAX_LINES
    assert (shop.lines()["TEAPOT"], len(shop.lines())) == (MAX_QUANTITY, MAX_LINES)
    assert (shop.stock("TEAPOT"), shop.stock("MUG")) == ((3000, MAX_QUANTITY, 0), (5, 0, 0))
    assert {(row.product, row.held) for row in shop.ledger if row.cause == "release-order"} == {
        ("TEAPOT", -2),
        ("MUG", -5),
    }
    shop.check()


def test_a_release_without_any_room_leaves_the_cart_as_it_is() -> None:
    shop = InventoryModel(TEAPOT=3000)
    shop.ask(add("TEAPOT", 5), "r1")
    shop.ask(commit(1), "c")
    until = shop.ask(add("TEAPOT", MAX_QUANTITY), "r2").expires_at
    shop.later(minutes=1)
    assert shop.ask(to_cart(), "o1/release") == Released(order_id="o1", version=3)
    assert (shop.holders["ann"].expires_at, shop.stock("TEAPOT")) == (until, (3000, MAX_QUANTITY, 0))
    shop.check()


def test_released_holds_return_to_stock(shop: InventoryModel) -> None:
    shop.ask(commit(2), "c")
    assert shop.ask(to_shelf(), "o1/release") == Released(order_id="o1", version=3)
    assert (shop.stock("TEAPOT"), shop.lines(), shop.holders["ann"].revision) == ((10, 0, 0), {}, 3)
    assert shop.ask(to_cart(), "another") == Released(order_id="o1", version=3), "once is enough"
    assert shop.lines() == {}
    shop.check()


@pytest.mark.parametrize(("shipped", "left"), [(False, (10, 0, 0)), (True, (12, 0, 2))])
def test_restocked_units_are_available_again(shop: InventoryModel, shipped: bool, left: tuple[int, int, int]) -> None:
    shop.ask(commit(2), "c")
    shop.ask(sell(), "o1/sell")
    for id_ in ("o1/restock", "o1/restock", "another"):
        assert shop.ask(restock(shipped=shipped), id_) == Restocked(order_id="o1")
    assert shop.stock("TEAPOT") == left
    assert shop.shelves["TEAPOT"].available == 10
    shop.check()


def test_a_step_that_the_state_does_not_allow_is_answered_with_the_state(shop: InventoryModel) -> None:
    lines = (line("MUG", 1), line("TEAPOT", 2))
    assert shop.ask(sell(), "s0") == Reservation(order_id="o1", state=None)
    assert shop.ask(restock(), "b0") == Reservation(order_id="o1", state=None)
    shop.ask(commit(2), "c")
    assert shop.ask(restock(), "b1") == Reservation(order_id="o1", state="PENDING", lines=lines)
    shop.ask(sell(), "s1")
    assert shop.ask(to_cart(), "f1") == Reservation(order_id="o1", state="COMMITTED", lines=lines)
    assert shop.ask(restock(), "b1").state == "PENDING", "what was not done is not done later, under the same id"
    assert shop.reserved["o1"].state == "COMMITTED"
    shop.ask(restock(), "b2")
    assert shop.ask(sell(), "s2") == Reservation(order_id="o1", state="CANCELLED", lines=lines)
    shop.check()


def test_a_release_that_comes_before_its_commit_closes_the_order(shop: InventoryModel) -> None:
    assert shop.ask(to_cart(), "o1/release") == Released(order_id="o1", version=2)
    assert shop.ask(commit(2), "c") == refused("failed")
    assert shop.ask(sell(), "o1/sell") == Reservation(order_id="o1", state="CANCELLED")
    assert shop.ask(ReadReservation(user_id="ann", order_id="o1", session="s")).state == "CANCELLED"
    assert (shop.lines(), shop.holders["ann"].revision) == ({"TEAPOT": 2, "MUG": 1}, 2)
    shop.forget()
    assert shop.ask(commit(2), "c") == refused("failed"), "for ever"
    assert shop.ask(commit(2, "o2"), "c2").version == 3


def test_the_outcomes_of_the_longest_orders_fit_into_a_record() -> None:
    codes = [f"P{number:03}".ljust(64, "x") for number in range(MAX_LINES)]
    shop = InventoryModel(**dict.fromkeys(codes, 1000))
    ids = tuple(f"c{number:02}".ljust(64, "x") for number in range(MAX_LOOKUP_IDS))
    for each in ids:
        assert len(shop.ask(take(each, "ann", None, **dict.fromkeys(codes, 1)), each).lines) == MAX_LINES
    found = shop.ask(Lookup(user_id="ann", session="s", ids=ids))
    assert [stored.outcome.order_id for stored in found.outcomes] == [*ids]
    assert len(found.model_dump_json()) < MAX_VALUE_BYTES / 2, "the other half is for the cart"


def test_a_reservation_is_read_in_order_and_leaves_no_trace(shop: InventoryModel) -> None:
    read = ReadReservation(user_id="ann", order_id="o1", session="s")
    none, _, pending, _, sold = shop.tell(
        Command("a", NOON, read),
        Command("c", NOON, commit(2, purpose="reservation")),
        Command("a", NOON, read),
        Command("s", NOON, sell()),
        Command("a", NOON, read),
    )
    assert [each.outcome.state for each in (none, pending, sold)] == [None, "PENDING", "COMMITTED"]  # type: ignore[union-attr]
    assert len(shop.log) == 4


# ---- failures -------------------------------------------------------------------------------------------------------

ADDRESS = {"name": "Ann", "line1": "1 Quay", "city": "Ayr", "postal_code": "1", "country": "GB"}


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        (commit(2, expect=300).model_dump(mode="json") | {"type": Commit.TYPE}, commit(2, expect=300)),
        (take(TEAPOT=1, MUG=1).model_dump(mode="json") | {"type": Commit.TYPE}, take(MUG=1, TEAPOT=1)),
        (
            {
                "type": "holdfast.cart.checkout",
                "order_id": "o1",
                "version": 2,
                "address": ADDRESS,
                "expect": {"total": {"amount": 300, "currency": "GBP"}},
            },
            commit(2, expect=300),
        ),
        (
            {
                "type": "holdfast.cart.checkout",
                "order_id": "o1",
                "items": [{"product": "TEAPOT", "quantity": 1}],
                "expect": None,
            },
            take(TEAPOT=1),
        ),
    ],
    ids=["inventory's", "inventory's, with lines", "the cart's", "the cart's, with items"],
)
def test_a_failed_commit_is_refused_and_its_redrive_gets_the_same_answer(
    shop: InventoryModel, command: dict[str, Any], request_: Commit
) -> None:
    assert shop.ask(Fail(user_id="ann", command=command), "c") == refused("failed")
    [again] = shop.tell(Command("c", NOON, request_))
    assert (again.outcome, again.replayed) == (refused("failed"), True)
    assert "address" not in shop.log["ann", "c"].fingerprint, "and no personal data is kept of it"


@pytest.mark.parametrize(
    "command", [{"order_id": "o1"}, {"order_id": "o1", "version": 1e30, "items": 7}, {"order_id": "o1", "expect": [1]}]
)
def test_a_checkout_that_makes_no_sense_can_be_noted(shop: InventoryModel, command: dict[str, Any]) -> None:
    fail = Fail(user_id="ann", command={"type": "holdfast.cart.checkout", **command})
    assert shop.ask(fail, "c") == refused("failed")
    assert fingerprint(fail) == {"type": "checkout", "order_id": "o1"}


@pytest.mark.parametrize(
    "data",
    [
        {"order_id": "o1"},
        {"order_id": "o1", "version": 1, "lines": [{"product": "P", "quantity": 1}]},
        {"order_id": "o1", "lines": []},
        {"order_id": "o1", "lines": [{"product": "P", "quantity": 1}] * 2},
        {"order_id": "o1", "lines": [{"product": "P", "quantity": 0}]},
    ],
)
def test_a_commit_is_of_a_cart_or_of_some_lines(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"version|lines|quantity"):
        REQUEST_REGISTRY.types[Commit.TYPE].model_validate({"user_id": "ann", **data})
