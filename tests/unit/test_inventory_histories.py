"""The rules of holding stock, of carts and of orders, against thousands of random histories."""

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from contracts.inventory import (
    Check,
    Clear,
    Commit,
    Committed,
    Expired,
    Fail,
    Held,
    Hold,
    Lookup,
    Money,
    ReadReservation,
    Refused,
    Released,
    ReleaseOrder,
    Remove,
    Removed,
    Request,
    Reservation,
    Restock,
    Restocked,
    Sell,
    Sold,
)
from inventory_service.fingerprint import fingerprint
from inventory_service.state import EXPIRY_PREFIX, Command, Reply
from tests.testkit.effort import histories
from tests.testkit.inventory_model import NOON, InventoryModel, add, commit, restock, sell, take, to_cart, to_shelf


def _shop() -> InventoryModel:
    """Two shoppers have something in their carts already, so that there is something to be ordered."""
    shop = InventoryModel(TEAPOT=7, MUG=9, TRAY=3)
    shop.tell(*(Command("begun", NOON, add(product, 2, user)) for product, user in (("TEAPOT", "ann"), ("MUG", "bob"))))
    return shop


class Checkout(NamedTuple):
    """A commit of the cart as it is when the shopper clicks, or as it was some changes ago."""

    user: str
    order: str
    behind: int
    expect: int | None

    def now(self, shop: InventoryModel) -> Commit:
        return commit(max(0, shop.holders[self.user].revision - self.behind), self.order, self.user, self.expect)


Ask = Request | Checkout
Step = tuple[Ask, str, int, bool]
History = list[list[tuple[Command, list[Reply]]]]

USERS = st.sampled_from(["ann", "bob", "cyd"])
PRODUCTS = st.sampled_from(["TEAPOT", "MUG", "TRAY", "NOPE"])
WHOSE = st.sampled_from([("ann", "o1"), ("ann", "o2"), ("bob", "o3"), ("ann", "o3")])
"""Shoppers and orders; one is asked for by two."""
BEHIND = st.sampled_from([0, 0, 0, 1])
EXPECTED = st.sampled_from([None, 200, 999])
FEW = st.integers(1, 6)

OF_CARTS: list[st.SearchStrategy[Ask]] = [
    st.builds(Hold, user_id=USERS, mode=st.just("add"), product=PRODUCTS, quantity=FEW),
    st.builds(Hold, user_id=USERS, mode=st.just("add"), product=PRODUCTS, quantity=FEW),
    st.builds(Hold, user_id=USERS, mode=st.just("set"), product=PRODUCTS, quantity=st.integers(0, 6)),
    st.builds(Remove, user_id=USERS, product=PRODUCTS),
    st.builds(Clear, user_id=USERS),
    st.builds(Check, user_id=USERS, product=PRODUCTS, session=st.just("s")),
    st.builds(Lookup, user_id=USERS, session=st.just("s"), ids=st.just(("1", "2"))),
    st.builds(lambda user: Fail(user_id=user, command={"type": "holdfast.cart.clear"}), USERS),
]
OF_ORDERS: list[st.SearchStrategy[Ask]] = [
    st.builds(lambda whose, behind, expect: Checkout(whose[0], whose[1], behind, expect), WHOSE, BEHIND, EXPECTED),
    st.builds(lambda whose, units: take(whose[1], whose[0], TEAPOT=units, MUG=1), WHOSE, FEW),
    st.builds(lambda whose: sell(whose[1], whose[0]), WHOSE),
    st.builds(lambda whose: sell(whose[1], whose[0]), WHOSE),
    st.builds(lambda whose: to_cart(whose[1], whose[0]), WHOSE),
    st.builds(lambda whose: to_shelf(whose[1], whose[0]), WHOSE),
    st.builds(lambda whose, shipped: restock(whose[1], whose[0], shipped=shipped), WHOSE, st.booleans()),
    st.builds(lambda whose: ReadReservation(user_id=whose[0], order_id=whose[1], session="s"), WHOSE),
]
STEPS = st.lists(
    st.tuples(
        st.one_of(*OF_CARTS, *OF_ORDERS),
        st.integers(1, 40).map(str),
        st.sampled_from([0, 0, 0, 1, 8, 15, 61]),
        st.booleans(),
    ),
    min_size=10,  # of which hypothesis makes lists of 20 on the average
    max_size=40,
)
"""Requests with an id (few, so that they come twice), the minutes since the last, and whether a batch ends there."""


def _play(shop: InventoryModel, steps: Sequence[Step]) -> History:
    """Play the steps; return for each batch its answers, grouped by the command that caused them."""
    history: History = []
    batch: list[Command] = []
    for ask, id_, minutes, ends in steps:
        batch.append(Command(id_, shop.now, ask.now(shop) if isinstance(ask, Checkout) else ask))
        if ends or minutes:
            history.append(_tell(shop, batch))
            batch = []
            shop.later(minutes=minutes)
    if batch:
        history.append(_tell(shop, batch))
    return history


def _tell(shop: InventoryModel, batch: list[Command]) -> list[tuple[Command, list[Reply]]]:
    answers = shop.tell(*batch)
    return [(command, [answer for answer in answers if answer.command is command]) for command in batch]


def _changed(answer: Reply) -> bool | None:
    """True if a fresh outcome of a request is a change of its cart; `None` if it may be."""
    match answer.outcome:
        case Held() | Expired():
            return True
        case Committed(version=version):
            return None if version == answer.cart.revision else False
        case Removed(version=version) | Released(version=version):
            assert version == answer.cart.revision
            return None
        case _:
            return False


DECIDED = Held | Refused | Removed | Expired | Committed | Sold | Released | Restocked | Reservation


def _is_read(answer: Reply) -> bool:
    return hasattr(answer.command.request, "session")


@settings(max_examples=histories(800), deadline=None)
@given(STEPS)
def test_no_history_breaks_a_rule(steps: list[Step]) -> None:
    shop = _shop()
    revisions = defaultdict(int, {user: holder.revision for user, holder in shop.holders.items()})
    first: dict[tuple[str, str], Any] = {}
    committed: dict[str, Committed] = {}
    for batch in _play(shop, steps):
        for command, answers in batch:
            assert 1 <= len(answers) <= 2
            assert answers[-1].id == command.id
            for answer in answers:
                user = command.request.user_id
                key = (user, EXPIRY_PREFIX + answer.id) if isinstance(answer.outcome, Expired) else command.key
                rise = answer.cart.revision - revisions[user]
                assert rise in (0, 1), "revisions are dense and never go back"
                revisions[user] = answer.cart.revision
                change = _changed(answer) if not answer.replayed else False
                assert change is None or change == rise
                if isinstance(answer.outcome, Held | Expired) and not answer.replayed:
                    assert answer.outcome.version == answer.cart.revision
                if isinstance(answer.outcome, Committed):
                    order = committed.setdefault(answer.outcome.order_id, answer.outcome)
                    assert answer.outcome == order, "an order is committed once"
                if isinstance(answer.outcome, DECIDED) and not _is_read(answer):
                    assert answer.replayed == (key in first), "decided once"
                    assert first.setdefault(key, answer.outcome) == answer.outcome, "and answered the same ever after"
    shop.check()
    assert set(committed) == {order_id for order_id, order in shop.reserved.items() if order.lines}
    for order_id, outcome in committed.items():
        assert (outcome.lines, outcome.total) == (shop.reserved[order_id].lines, _total(outcome))


def _total(outcome: Committed) -> Money:
    return Money(amount=sum(line.quantity * line.price.amount for line in outcome.lines), currency="GBP")


@settings(max_examples=histories(300), deadline=None)
@given(STEPS, st.data())
def test_replaying_any_part_of_a_history_changes_nothing(steps: list[Step], data: st.DataObject) -> None:
    shop = _shop()
    commands = [command for batch in _play(shop, steps) for command, _ in batch]
    shop.tell(*(Command("settle", NOON, Check(user_id=user, product="MUG", session="s")) for user in shop.holders))

    def everything() -> Any:
        return copy.deepcopy((shop.shelves, dict(shop.holders), shop.log, shop.reserved, len(shop.ledger)))

    before = everything()
    part = commands[: data.draw(st.integers(1, len(commands)))]
    answers = shop.tell(*part)
    assert everything() == before
    assert all(answer.replayed for answer in answers if isinstance(answer.outcome, DECIDED) and not _is_read(answer))


@settings(max_examples=histories(300), deadline=None)
@given(STEPS)
def test_no_order_is_taken_sold_or_given_back_twice_though_the_log_has_forgotten(steps: list[Step]) -> None:
    shop = _shop()
    commands = [command for batch in _play(shop, steps) for command, _ in batch]
    done = {
        (type(command.request), entry.fingerprint["order_id"])
        for command in commands
        if isinstance(command.request, Commit | Sell | ReleaseOrder | Restock)
        and (entry := shop.log[command.key]).outcome.type in ("committed", "sold", "released", "restocked")
        and entry.fingerprint == fingerprint(command.request)  # another step of the order may have had the id before
    }
    shop.forget()
    ledger, orders = len(shop.ledger), dict(shop.reserved)
    for number, command in enumerate(commands):
        request = command.request
        if (type(request), getattr(request, "order_id", None)) in done:
            shop.tell(Command(f"again {number}", shop.now, request))
    assert shop.reserved == orders
    assert {row.cause for row in shop.ledger[ledger:]} <= {"expire"}


@settings(max_examples=histories(200), deadline=None)
@given(STEPS)
def test_a_history_ends_the_same_however_it_is_cut_into_batches(steps: list[Step]) -> None:
    whole, cut = [_shop() for _ in range(2)]
    history = _play(whole, steps)
    outcomes = [answer for batch in history for _, answers in batch for answer in answers]
    alone: list[Reply] = []
    for batch in history:
        for command, _ in batch:
            cut.now = command.accepted_at
            alone += cut.tell(command)
    assert [(a.id, a.outcome, a.cart, a.replayed) for a in outcomes] == [
        (a.id, a.outcome, a.cart, a.replayed) for a in alone
    ]
    assert (whole.log, whole.reserved, whole.shelves) == (cut.log, cut.reserved, cut.shelves)


def test_the_histories_are_eventful() -> None:
    """Without these events the four tests above would show nothing of orders.

    Histories are drawn from one random stream after another until all kinds were seen: whatever the first seed is,
    a few hundred histories show them, and twenty times as many are the bound.
    """
    missing = {
        "committed",
        "sold",
        "released",
        "restocked",
        "reservation",
        "reservation PENDING",
        "reservation COMMITTED",
        "reservation CANCELLED",
        "refused cart_changed",
        "refused cart_empty",
        "refused total_changed",
        "refused expired",
        "refused failed",
        "refused out_of_stock",
        "id_reused",
    }

    @settings(max_examples=100, deadline=None, database=None, phases=[Phase.generate])
    @given(STEPS)
    def look(steps: list[Step]) -> None:
        for batch in _play(_shop(), steps):
            for _, answers in batch:
                for answer in answers:
                    reason = getattr(answer.outcome, "reason", None) or getattr(answer.outcome, "state", None)
                    missing.discard(f"{answer.outcome.type} {reason or ''}".strip())

    first = random.randrange(1 << 32)
    for number in range(50):
        seed(first + number)(look)()
        if not missing:
            return
    raise AssertionError(f"not seen in 5,000 histories from seed {first}: {sorted(missing)}")
