"""The counting rules, each fact once: windows, shoppers, and orders as baskets; in any order, any number of times."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import cart, orders, payments
from contracts.envelope import Envelope, Message
from contracts.insights import WINDOW_LENGTHS, Figures, Takings, window_key
from contracts.inventory import Line, Money
from order_service.insights import agents
from order_service.insights.model import (
    CART_EVENTS,
    ORDER_EVENTS,
    PAYMENT_EVENTS,
    Event,
    Fact,
    OrderBasket,
    count_changes,
    shoppers_in_windows,
    sum_by_window,
    to_fact,
    windows_containing,
)

NOON = datetime(2026, 11, 21, 12, 34, 56, 789000, tzinfo=UTC)
GBP = Money(amount=250, currency="GBP")


def told(message: Event, at: datetime = NOON) -> Fact | None:
    source = "/" + message.TYPE.split(".")[1]
    event = Envelope(id="x", source=source, type=message.TYPE, subject="k", time=at, data={})
    return to_fact(event, message)


def order(kind: type[Message], version: int, **more: object) -> Event:
    status = kind.TYPE.rpartition(".")[2]
    fields = {"order_id": "o1", "user_id": "u1", "version": version, "status": status, **more}
    found = kind.model_validate(fields)
    assert isinstance(found, orders.Placed | orders.Committed | orders.Confirmed | orders.Cancelled)
    return found


def committed(*products: str) -> orders.Committed:
    lines = tuple(Line(product=product, quantity=2, price=GBP) for product in products)
    found = order(orders.Committed, 2, lines=lines, total=GBP)
    assert isinstance(found, orders.Committed)
    return found


CANCELLED = orders.Cancelled(order_id="o1", user_id="u1", version=4, status="cancelled", reason="declined")


# ---- facts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "counts", "money"),
    [
        (order(orders.Placed, 1, request_id="r1"), {"orders_placed": 1}, {}),
        (committed("A"), {"orders_committed": 1}, {("orders", "GBP"): 1, ("ordered", "GBP"): 250}),
        (order(orders.Confirmed, 4), {"orders_confirmed": 1}, {}),
        (CANCELLED, {"orders_cancelled": 1}, {}),
        (
            payments.Captured(order_id="o1", user_id="u1", payment_id="p1", amount=GBP),
            {"payments_captured": 1},
            {("captured", "GBP"): 250, ("payments", "GBP"): 1},
        ),
        (payments.Declined(order_id="o1", user_id="u1", payment_id="p1", reason="no"), {"payments_declined": 1}, {}),
        (
            payments.Refunded(order_id="o1", user_id="u1", payment_id="p1", refund_id="r1", amount=GBP),
            {"payments_refunded": 1},
            {("refunded", "GBP"): 250},
        ),
        (
            cart.Held(user_id="u1", id="a1", product="A", quantity=1, line_quantity=1, expires_at=NOON, version=1),
            {"holds_granted": 1},
            {},
        ),
        (cart.Refused(user_id="u1", id="a1", product="A", reason="out_of_stock"), {"holds_refused": 1}, {}),
        (cart.Expired(user_id="u1", lines=(), version=7), {"carts_expired": 1}, {}),
    ],
    ids=lambda value: value.TYPE if isinstance(value, Message) else "",
)
def test_figures_that_an_event_adds(message: Event, counts: dict[str, int], money: dict[tuple[str, str], int]) -> None:
    found = told(message)
    assert found is not None
    assert (found.counts, found.money, found.at) == (counts, money, NOON)
    assert found == told(message), "told again, it is the same fact"


def test_a_refused_checkout_is_no_refused_hold() -> None:
    assert told(cart.Refused(user_id="u1", id="c1", reason="cart_changed")) is None


def test_facts_that_differ_have_keys_that_differ() -> None:
    messages: list[Event] = [
        order(orders.Placed, 1, request_id="r1"),
        committed("A"),
        CANCELLED,
        payments.Captured(order_id="o1", user_id="u1", payment_id="p1", amount=GBP),
        payments.Declined(order_id="o1", user_id="u1", payment_id="p1", reason="no"),
        payments.Refunded(order_id="o1", user_id="u1", payment_id="p1", refund_id="p1", amount=GBP),
        cart.Refused(user_id="u1", id="2", product="A", reason="limit"),
        cart.Refused(user_id="u2", id="2", product="A", reason="limit"),
        cart.Expired(user_id="u1", lines=(), version=2),
    ]
    keys = [found.key for message in messages if (found := told(message))]
    assert len(set(keys)) == len(messages)


def test_too_late_is_older_than_the_topic_keeps_anything() -> None:
    found = told(cart.Expired(user_id="u1", lines=(), version=7))
    assert found is not None
    assert not found.is_too_late(NOON + timedelta(days=7))
    assert found.is_too_late(NOON + timedelta(days=7, milliseconds=1))
    assert found.stored_until == NOON + timedelta(days=8), "its key outlives the last moment at which it counts"


def test_only_relevant_messages_are_parsed() -> None:
    for vocabulary, wanted in (
        (ORDER_EVENTS, agents.ORDER_EVENT_FILTER),
        (PAYMENT_EVENTS, agents.PAYMENT_EVENT_FILTER),
        (CART_EVENTS, agents.CART_EVENT_FILTER),
    ):
        for kind in vocabulary.types:
            event = Envelope(id="x", source="/cart", type=kind, subject="k", time=NOON, data={})
            assert wanted(event.encode())
    passed = Envelope(id="x", source="/cart", type=cart.Snapshot.TYPE, subject="k", time=NOON, data={})
    assert not agents.CART_EVENT_FILTER(passed.encode())


# ---- windows -------------------------------------------------------------------------------------------------------

BEGIN = datetime(2020, 1, 1, tzinfo=UTC)
moments = st.timedeltas(timedelta(0), timedelta(days=3650)).map(lambda since: BEGIN + since)


@given(at=moments, hours=st.integers(-12, 14))
def test_an_instant_lies_in_one_window_of_each_length(at: datetime, hours: int) -> None:
    found = dict(windows_containing(at))
    assert found.keys() == WINDOW_LENGTHS.keys()
    for by, start in found.items():
        assert start <= at < start + WINDOW_LENGTHS[by]
        assert (start - BEGIN) % WINDOW_LENGTHS[by] == timedelta(0)
    assert dict(windows_containing(at.astimezone(timezone(timedelta(hours=hours))))) == found, (
        "whatever the offset it is told in"
    )


def test_windows_are_named_by_their_start() -> None:
    assert [window_key(by, start) for by, start in windows_containing(NOON)] == [
        "minute/2026-11-21T12:34Z",
        "hour/2026-11-21T12Z",
        "day/2026-11-21",
    ]


@given(shifts=st.lists(st.integers(0, 200_000), max_size=30), seed=st.randoms())
def test_numbers_do_not_depend_on_the_order_of_arrival(shifts: list[int], seed: object) -> None:
    facts = [found for each in shifts if (found := told(committed("A"), NOON + timedelta(seconds=each)))]
    mixed = list(facts)
    seed.shuffle(mixed)  # type: ignore[attr-defined]
    assert sum_by_window(facts) == sum_by_window(mixed)
    days = {start for by, start, _, _ in sum_by_window(facts) if by == "day"}
    for by in WINDOW_LENGTHS:
        counted = [
            n for (b, _, figure, _), n in sum_by_window(facts).items() if (b, figure) == (by, "orders_committed")
        ]
        assert sum(counted) == len(facts), "each falls into exactly one window of each length"
    assert len(days) <= 3


def test_a_user_who_orders_counts_as_a_visitor() -> None:
    found = told(committed("A"))
    assert found is not None
    assert Counter(each.figure for each in shoppers_in_windows([found])) == {"shoppers": 3, "buyers": 3}
    again = told(committed("B"), NOON + timedelta(milliseconds=1))
    assert again is not None
    assert {each.key for each in shoppers_in_windows([found])} == {each.key for each in shoppers_in_windows([again])}, (
        "once a window"
    )


# ---- ratios --------------------------------------------------------------------------------------------------------


def test_ratios() -> None:
    figures = Figures(
        window="hour/2026-11-21T12Z",
        by="hour",
        start=NOON,
        orders_placed=36,
        orders_confirmed=9,
        orders_cancelled=3,
        payments_captured=8,
        payments_declined=2,
        holds_granted=30,
        holds_refused=10,
        shoppers=20,
        buyers=5,
        takings=(Takings(currency="GBP", orders=4, ordered=1001, captured=900, refunded=1000),),
        version=1,
    )
    assert figures.orders_per_second == 0.01
    assert (figures.order_success_rate, figures.payment_success_rate) == (0.75, 0.8)
    assert (figures.conversion_rate, figures.refusal_rate) == (0.25, 0.25)
    assert (figures.takings[0].average_order, figures.takings[0].revenue) == (250.25, -100)
    empty = Figures(window="hour/2026-11-21T12Z", by="hour", start=NOON, version=1)
    assert (empty.order_success_rate, empty.payment_success_rate, empty.conversion_rate, empty.refusal_rate) == (
        None,
        None,
        None,
        None,
    )
    assert Takings(currency="GBP").average_order is None
    declined = Takings(currency="GBP", orders=3, ordered=3000)
    assert declined.average_order is None
    assert Takings(currency="GBP", orders=4, ordered=2204, captured=1625, payments=3).average_order == 1625 / 3


# ---- baskets -------------------------------------------------------------------------------------------------------

histories = st.lists(
    st.tuples(
        st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=5),
        st.lists(st.booleans(), max_size=5),  # committed sent (True), cancelled sent (False)
    ),
    max_size=12,
)


@given(history=histories)
def test_baskets_are_counted_once_and_taken_out_when_cancelled(history: Sequence[tuple[list[str], list[bool]]]) -> None:
    orders_counted, products, pairs = 0, Counter[str](), Counter[tuple[str, str]]()
    for bought, telling in history:
        basket = OrderBasket()
        for committing in telling:
            after = basket.apply(committed(*bought) if committing else CANCELLED)
            news = count_changes([(basket, after)])
            basket = after
            orders_counted += news.orders
            products.update(news.products)
            pairs.update(news.pairs)
    counted = [sorted(set(bought)) for bought, telling in history if True in telling and False not in telling]
    assert orders_counted == len(counted)
    assert +products == Counter(product for each in counted for product in each)
    assert +pairs == Counter(pair for each in counted for pair in combinations(each, 2))
    assert all(number >= 0 for number in (*products.values(), *pairs.values()))


def test_an_unchanged_state_adds_nothing() -> None:
    basket = OrderBasket().apply(committed("A", "B"))
    news = count_changes([(basket, basket.apply(committed("A", "B"))), (OrderBasket(), OrderBasket().apply(CANCELLED))])
    assert (news.orders, dict(news.products), dict(news.pairs)) == (0, {}, {})
