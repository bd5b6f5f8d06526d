"""The rules of holding stock, each as a sentence; `test_inventory_histories.py` plays them at random."""

from datetime import timedelta
from typing import Any

import pytest

from contracts.inventory import (
    MAX_LINES,
    MAX_QUANTITY,
    REQUESTS,
    Available,
    BadField,
    Check,
    Clear,
    Expire,
    Expired,
    Fail,
    GivenUp,
    Held,
    IdReused,
    LookedUp,
    Lookup,
    Money,
    Refused,
    Remove,
    Removed,
    Request,
    Snapshot,
    Stored,
)
from inventory_service.settings import Settings
from inventory_service.state import Command
from inventory_service.store import LOG_RETENTION, expiry_id
from tests.testkit.inventory_model import NOON, POUND, RULES, InventoryModel, add, make

# ---- grants and refusals --------------------------------------------------------------------------------------------


def test_an_add_holds_more_of_a_product_and_the_answer_carries_the_whole_cart() -> None:
    shop = InventoryModel(TEAPOT=10, MUG=10)
    shop.ask(add("TEAPOT", 2), "r1")
    [answer] = shop.tell(Command("r2", NOON, add("TEAPOT", 3)))
    until = NOON + RULES.idle_timeout
    assert answer.outcome == Held(product="TEAPOT", quantity=3, line_quantity=5, expires_at=until, version=2)
    assert (answer.cart.revision, answer.cart.expires_at) == (2, until)
    assert [(line.product, line.quantity, line.price) for line in answer.cart.lines] == [("TEAPOT", 5, POUND)]
    assert shop.shelves["TEAPOT"].available == 5


def test_a_request_is_granted_wholly_or_not_at_all() -> None:
    shop = InventoryModel(TEAPOT=4)
    shop.ask(add("TEAPOT", 3, "bob"), "r1")
    assert shop.ask(add("TEAPOT", 2), "r2") == Refused(product="TEAPOT", reason="out_of_stock", available=1)
    assert shop.lines() == {}
    assert shop.holders["ann"].revision == 0
    assert shop.ask(add("TEAPOT", 1), "r3").version == 1


def test_a_cart_has_one_currency() -> None:
    shop = InventoryModel(TEAPOT=10, MUG=5)
    shop.ask(add("TEAPOT", 1), "r1")
    shop.shelves["MUG"].price = Money(amount=1500, currency="JPY")
    other = Refused(product="MUG", reason="other_currency")
    assert shop.ask(add("MUG", 1), "r2") == other
    assert shop.ask(make("MUG", 2), "r3") == other
    assert shop.stock("MUG") == (5, 0, 0)
    shop.shelves["TEAPOT"].price = Money(amount=1500, currency="JPY")
    assert shop.ask(add("TEAPOT", 1), "r4").type == "held", "a line keeps the price that it was granted at"
    assert shop.ask(make("TEAPOT", 1), "r5").type == "held"


def test_a_product_that_is_not_there_or_no_longer_for_sale_is_unknown() -> None:
    shop = InventoryModel(TEAPOT=4)
    shop.ask(make("TEAPOT", 3), "r1")
    shop.shelves["TEAPOT"].for_sale = False
    unknown = Refused(product="TEAPOT", reason="unknown_product")
    assert shop.ask(add("TEAPOT", 1), "r2") == unknown
    assert shop.ask(make("TEAPOT", 4), "r3") == unknown
    assert shop.ask(make("TEAPOT", 2), "r4").line_quantity == 2, "what is in the cart may be lowered"
    assert shop.ask(Check(user_id="ann", product="TEAPOT", session="s")) == Available(product="TEAPOT", available=None)
    assert shop.ask(add("NOPE", 1), "r5") == Refused(product="NOPE", reason="unknown_product")


def test_a_line_and_a_cart_have_limits() -> None:
    shop = InventoryModel(TEAPOT=5000, **{f"P{number}": 1 for number in range(MAX_LINES)})
    shop.ask(add("TEAPOT", MAX_QUANTITY), "r1")
    assert shop.ask(add("TEAPOT", 1), "r2") == Refused(product="TEAPOT", reason="limit")
    answers = shop.tell(*(Command(f"p{number}", NOON, add(f"P{number}", 1)) for number in range(MAX_LINES)))
    assert [type(answer.outcome) for answer in answers] == [Held] * (MAX_LINES - 1) + [Refused]
    assert answers[-1].outcome == Refused(product=f"P{MAX_LINES - 1}", reason="limit")
    assert shop.ask(make("TEAPOT", 5), "r3").line_quantity == 5, "a line that is there may change in a full cart"


def test_a_lower_set_is_granted_even_when_nothing_is_left() -> None:
    shop = InventoryModel(TEAPOT=5)
    shop.ask(add("TEAPOT", 5), "r1")
    assert shop.ask(make("TEAPOT", 2), "r2").line_quantity == 2
    assert shop.shelves["TEAPOT"].available == 3


def test_a_line_keeps_the_price_it_was_first_granted_at() -> None:
    shop = InventoryModel(TEAPOT=5)
    shop.ask(add("TEAPOT", 1), "r1")
    shop.shelves["TEAPOT"].price = Money(amount=999, currency="GBP")
    shop.ask(add("TEAPOT", 1), "r2")
    assert shop.holders["ann"].lines["TEAPOT"].price == POUND
    shop.ask(Remove(user_id="ann", product="TEAPOT"), "r3")
    shop.ask(add("TEAPOT", 1), "r4")
    assert shop.holders["ann"].lines["TEAPOT"].price.amount == 999, "a new line, a new price"


def test_removing_and_clearing_are_never_refused() -> None:
    shop = InventoryModel(TEAPOT=5, MUG=5)
    shop.tell(Command("r1", NOON, add("TEAPOT", 1)), Command("r2", NOON, add("MUG", 1)))
    assert shop.ask(make("TEAPOT", 0), "r3") == Removed(product="TEAPOT", version=3)
    assert shop.ask(Remove(user_id="ann", product="NOPE"), "r4") == Removed(product="NOPE", version=3)
    assert shop.ask(Clear(user_id="ann"), "r5") == Removed(version=4)
    assert shop.ask(Clear(user_id="ann"), "r6") == Removed(version=4)
    assert shop.lines() == {}
    assert shop.holders["ann"].expires_at is None


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_duplicate_repeats_the_outcome_with_the_cart_as_it_is_now() -> None:
    shop = InventoryModel(TEAPOT=5)
    first = shop.ask(add("TEAPOT", 2), "r1")
    shop.ask(add("TEAPOT", 1), "r2")
    [again] = shop.tell(Command("r1", NOON, add("TEAPOT", 2)))
    assert (again.outcome, again.replayed) == (first, True)
    assert (again.cart.revision, shop.lines()) == (2, {"TEAPOT": 3})


@pytest.mark.parametrize("other", [add("TEAPOT", 3), make("TEAPOT", 2), Remove(user_id="ann", product="TEAPOT")])
def test_an_id_that_comes_with_another_content_does_nothing(other: Request) -> None:
    shop = InventoryModel(TEAPOT=5)
    first = shop.ask(add("TEAPOT", 2), "r1")
    assert shop.ask(other, "r1") == IdReused()
    assert shop.lines() == {"TEAPOT": 2}
    assert shop.ask(add("TEAPOT", 2), "r1") == first


def test_two_shoppers_may_use_the_same_id() -> None:
    shop = InventoryModel(TEAPOT=5)
    shop.ask(add("TEAPOT", 1, "ann"), "r1")
    assert shop.ask(add("TEAPOT", 2, "bob"), "r1").line_quantity == 2


def test_a_request_that_comes_too_late_is_refused_once_and_for_all() -> None:
    shop = InventoryModel(TEAPOT=5)
    old = NOON - RULES.max_age - timedelta(seconds=1)
    refused = Refused(product="TEAPOT", reason="expired")
    assert shop.ask(add("TEAPOT", 1), "r1", accepted=old) == refused
    assert ("ann", "r1") in shop.log
    assert shop.ask(add("TEAPOT", 1), "r1", accepted=NOON) == refused
    assert shop.ask(add("TEAPOT", 1), "r2", accepted=NOON - RULES.max_age).version == 1


def test_an_old_hold_is_answered_from_the_log_and_changes_nothing() -> None:
    shop = InventoryModel(TEAPOT=5)
    hold = Command("r1", NOON, add("TEAPOT", 2))
    [held] = shop.tell(hold)
    shop.later(days=8)
    _expired, known = shop.tell(hold)
    assert (known.outcome, known.replayed) == (held.outcome, True)
    shop.later(days=2)
    shop.forget()
    for replayed in (False, True):
        [late] = shop.tell(hold)
        assert (late.outcome, late.replayed) == (Refused(product="TEAPOT", reason="expired"), replayed)
    assert (shop.lines(), shop.stock("TEAPOT")) == ({}, (5, 0, 0))
    shop.check()


def test_a_request_from_the_future_is_an_error_and_stays_one_when_its_time_has_come() -> None:
    shop = InventoryModel(TEAPOT=5)
    too_soon = NOON + timedelta(minutes=5, seconds=1)
    for later in (timedelta(0), timedelta(minutes=1), timedelta(days=1)):
        shop.now = NOON + later
        assert shop.ask(add("TEAPOT", 1), "r1", accepted=too_soon) == BadField(field="time")
    assert shop.shelves["TEAPOT"].held == 0
    assert shop.ask(add("TEAPOT", 1), "r2", accepted=shop.now + timedelta(minutes=5)).version == 1


@pytest.mark.parametrize("kind", ["holdfast.inventory.hold", "holdfast.cart.add"])
def test_a_failed_command_is_refused_and_its_redrive_gets_the_same_answer(kind: str) -> None:
    shop = InventoryModel(TEAPOT=5)
    command = {"type": kind, "user_id": "ann", "mode": "add", "product": "TEAPOT", "quantity": 2}
    failed = Refused(product="TEAPOT", reason="failed")
    assert shop.ask(Fail(user_id="ann", command=command), "r1") == failed
    [again] = shop.tell(Command("r1", NOON, add("TEAPOT", 2)))
    assert (again.outcome, again.replayed) == (failed, True)
    assert shop.lines() == {}


def test_a_failure_that_comes_after_the_decision_changes_nothing() -> None:
    shop = InventoryModel(TEAPOT=5)
    held = shop.ask(add("TEAPOT", 2), "r1")
    command = {"type": "holdfast.inventory.hold", "mode": "add", "product": "TEAPOT", "quantity": 2}
    [answer] = shop.tell(Command("r1", NOON, Fail(user_id="ann", command=command)))
    assert (answer.outcome, answer.replayed) == (held, True)


@pytest.mark.parametrize(
    "command",
    [{}, {"type": "holdfast.cart.add", "product": "a\0b", "quantity": 10**30}, {"type": ["x"], "product": {}}],
)
def test_nonsense_that_failed_can_be_noted(command: dict[str, Any]) -> None:
    shop = InventoryModel()
    assert shop.ask(Fail(user_id="ann", command=command), "r1") == Refused(reason="failed")
    assert set(shop.log["ann", "r1"].fingerprint) == {"type"}


def test_requests_are_remembered_longer_than_any_topic_keeps_them() -> None:
    assert REQUESTS.retention is not None
    segment = timedelta(milliseconds=int(REQUESTS.config()["segment.ms"]))  # Kafka forgets segments, not records
    assert RULES.max_age <= REQUESTS.retention < REQUESTS.retention + segment < LOG_RETENTION
    assert LOG_RETENTION - RULES.max_age > RULES.max_skew, "an id must not be forgotten while it may still be used"


# ---- reads ----------------------------------------------------------------------------------------------------------


def test_reads_answer_in_order_and_leave_no_trace() -> None:
    shop = InventoryModel(TEAPOT=5)
    check = Check(user_id="ann", product="TEAPOT", session="s")
    answers = shop.tell(
        Command("c1", NOON, check),
        Command("r1", NOON, add("TEAPOT", 2)),
        Command("c2", NOON, check),
        Command("l1", NOON, Lookup(user_id="ann", session="s", ids=("r1", "r2", "r1"))),
        Command("s1", NOON, Snapshot(user_id="ann", session="s", epoch="7")),
    )
    assert [answers[0].outcome, answers[2].outcome] == [
        Available(product="TEAPOT", available=5),
        Available(product="TEAPOT", available=3),
    ]
    held = answers[1].outcome
    assert isinstance(held, Held)
    assert answers[3].outcome == LookedUp(outcomes=(Stored(id="r1", outcome=held),), unknown=("r2",))
    assert answers[4].cart.revision == 1
    assert [*shop.log] == [("ann", "r1")]


# ---- expiry ---------------------------------------------------------------------------------------------------------


def test_each_grant_extends_the_cart_but_never_past_the_longest() -> None:
    shop = InventoryModel(TEAPOT=50)
    seen = []
    for number in range(6):
        seen.append(shop.ask(add("TEAPOT", 1), f"r{number}").expires_at - NOON)
        shop.later(minutes=10)
    assert [each.total_seconds() / 60 for each in seen] == [15, 25, 35, 45, 55, 60]


@pytest.mark.parametrize(
    "request_",
    [
        add("TEAPOT", 999),
        add("NOPE", 1),
        Remove(user_id="ann", product="MUG"),
        make("MUG", 0),
        Check(user_id="ann", product="TEAPOT", session="s"),
        Snapshot(user_id="ann", session="s", epoch="e"),
        Lookup(user_id="ann", session="s", ids=("r1",)),
    ],
    ids=str,
)
def test_refusals_removals_and_reads_do_not_extend(request_: Request) -> None:
    shop = InventoryModel(TEAPOT=5, MUG=5)
    shop.tell(Command("r1", NOON, add("TEAPOT", 1)), Command("r2", NOON, add("MUG", 1)))
    before = shop.holders["ann"].expires_at
    shop.later(minutes=1)
    shop.ask(request_, "r3")
    shop.ask(add("TEAPOT", 1), "r1")
    assert shop.holders["ann"].expires_at == before


def test_a_set_to_the_same_quantity_is_a_grant_of_its_own() -> None:
    shop = InventoryModel(TEAPOT=5)
    shop.ask(add("TEAPOT", 2), "r1")
    shop.later(minutes=1)
    held = shop.ask(make("TEAPOT", 2), "r2")
    assert (held.version, held.expires_at) == (2, shop.now + RULES.idle_timeout)
    assert (shop.shelves["TEAPOT"].version, len(shop.ledger)) == (2, 1), "but nothing happens to the stock"


def test_an_emptied_cart_has_no_expiry_and_a_new_one_starts_again() -> None:
    shop = InventoryModel(TEAPOT=5)
    shop.ask(add("TEAPOT", 2), "r1")
    shop.later(minutes=14)
    shop.ask(Remove(user_id="ann", product="TEAPOT"), "r2")
    assert shop.holders["ann"].expires_at is None
    shop.later(hours=5)
    assert shop.ask(add("TEAPOT", 1), "r3").expires_at == shop.now + RULES.idle_timeout


@pytest.mark.parametrize(
    "request_",
    [
        add("TEAPOT", 1),
        Clear(user_id="ann"),
        Check(user_id="ann", product="TEAPOT", session="s"),
        Snapshot(user_id="ann", session="s", epoch="e"),
        Lookup(user_id="ann", session="s", ids=("r1",)),
    ],
    ids=str,
)
def test_whatever_meets_a_due_cart_expires_it_first(request_: Request) -> None:
    shop = InventoryModel(TEAPOT=5)
    due = shop.ask(add("TEAPOT", 2), "r1").expires_at
    shop.later(minutes=15)
    expired, answer = shop.tell(Command("r2", shop.now, request_))
    assert expired.outcome == Expired(lines=(GivenUp(product="TEAPOT", quantity=2),), version=2)
    assert (expired.id, expired.cart.lines, expired.cart.expires_at) == (expiry_id("ann", due, 1), (), None)
    assert (answer.id, shop.shelves["TEAPOT"].held) == ("r2", shop.lines().get("TEAPOT", 0))
    assert shop.ledger[1].cause == "expire"


def test_a_duplicate_that_meets_a_due_cart_expires_it_too() -> None:
    shop = InventoryModel(TEAPOT=5)
    held = shop.ask(add("TEAPOT", 2), "r1")
    shop.later(minutes=15)
    expired, answer = shop.tell(Command("r1", NOON, add("TEAPOT", 2)))
    assert isinstance(expired.outcome, Expired)
    assert (answer.outcome, answer.replayed, answer.cart.lines) == (held, True, ())


def test_an_expiry_request_expires_a_due_cart_and_is_then_answered_the_same() -> None:
    shop = InventoryModel(TEAPOT=5)
    due = shop.ask(add("TEAPOT", 2), "r1").expires_at
    knock = Command(expiry_id("ann", due, 1), due, Expire(user_id="ann", due=due))
    assert shop.tell(knock) == [], "not due yet"
    shop.later(minutes=15)
    first, again = shop.tell(knock, knock)
    assert (first.outcome, first.id, first.replayed) == (again.outcome, knock.id, False)
    assert again.replayed
    shop.later(minutes=60)
    shop.ask(add("TEAPOT", 1), "r2")
    [stale] = shop.tell(knock)
    assert (stale.outcome, stale.cart.revision) == (first.outcome, 3), "an old knock spares the next cart"


def test_an_expiry_request_for_a_changed_cart_expires_it_under_its_own_id() -> None:
    shop = InventoryModel(TEAPOT=5, MUG=5)
    shop.tell(Command("r1", NOON, add("TEAPOT", 2)), Command("r2", NOON, add("MUG", 1)))
    due = NOON + RULES.idle_timeout
    knocks = [Command(expiry_id("ann", due, revision), due, Expire(user_id="ann", due=due)) for revision in (2, 3)]
    shop.ask(Remove(user_id="ann", product="MUG"), "r3")
    shop.later(minutes=15)
    first, again = shop.tell(*knocks, knocks[0])
    assert (first.id, again.id, again.replayed) == (knocks[1].id, knocks[1].id, True)
    assert isinstance(first.outcome, Expired)


def test_carts_that_are_due_at_the_same_instant_expire_each_for_itself() -> None:
    shop = InventoryModel(TEAPOT=5)
    ids = set()
    for number in range(2):
        shop.now = NOON  # the clock was set back
        shop.ask(add("TEAPOT", 2), f"r{number}")
        shop.later(minutes=15)
        expired, _ = shop.tell(Command("s", shop.now, Snapshot(user_id="ann", session="s", epoch="e")))
        ids.add(expired.id)
    assert len(ids) == 2
    assert len({row.key for row in shop.ledger}) == 4


def test_no_client_can_take_the_id_of_a_coming_expiry() -> None:
    shop = InventoryModel(TEAPOT=5)
    due = shop.ask(add("TEAPOT", 2), "r1").expires_at
    shop.ask(Remove(user_id="ann", product="NOPE"), expiry_id("ann", due, 1))
    shop.later(minutes=15)
    [expired] = shop.tell(Command(expiry_id("ann", due, 1), due, Expire(user_id="ann", due=due)))
    assert isinstance(expired.outcome, Expired)
    assert shop.shelves["TEAPOT"].held == 0


def test_a_failed_request_leaves_even_a_due_cart_alone() -> None:
    shop = InventoryModel(TEAPOT=5)
    shop.ask(add("TEAPOT", 2), "r1")
    shop.later(minutes=15)
    fail = Fail(user_id="ann", command={"type": "holdfast.cart.clear"})
    assert shop.ask(fail, "r2") == Refused(reason="failed")
    assert shop.lines() == {"TEAPOT": 2}


def test_the_times_can_be_set() -> None:
    rules = Settings(hold_minutes=1, hold_longest_minutes=2).time_limits
    shop = InventoryModel(TEAPOT=5)
    shop.rules = rules
    assert shop.ask(add("TEAPOT", 1), "r1").expires_at == NOON + timedelta(minutes=1)
