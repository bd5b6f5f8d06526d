"""Rules and templates of notices: events, recipients, channels and times, without a server."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import cart, orders
from contracts.inventory import GivenUp, Line, Money
from contracts.notifications import CHANNELS, Prefer, Send, Template
from notification_service.model import (
    CANCEL_REASON_TEXTS,
    DEFAULT_CHANNELS,
    EXPIRY_WARNING_LEAD,
    MAX_EVENT_AGE,
    OrderSummary,
    PlannedNotice,
    Preferences,
    TrackedCart,
    apply_preference,
    apply_response,
    cart_change_notice,
    expiry_notice,
    format_lines,
    is_paid,
    may_change_cart,
    order_notice,
    plan_notices,
)
from notification_service.templates import SMS_CHARACTERS, TEMPLATES, placeholders, render
from tests.testkit.notifications import event

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
FRESH = timedelta(seconds=1)
GBP = "GBP"
MUGS = (Line(product="MUG", quantity=2, price=Money(amount=425, currency=GBP)),)

messages = st.integers(1, 6).flatmap(
    lambda version: st.one_of(
        st.sampled_from(["MUG", "TEAPOT"]).map(
            lambda product: cart.Held(
                user_id="ann",
                id=f"h{version}",
                product=product,
                quantity=1,
                line_quantity=1,
                expires_at=NOW + timedelta(minutes=version),
                version=version,
            )
        ),
        st.sampled_from(["MUG", "TEAPOT", None]).map(
            lambda product: cart.Removed(user_id="ann", id=f"r{version}", product=product, version=version)
        ),
        st.just(cart.Expired(user_id="ann", lines=(GivenUp(product="MUG", quantity=1),), version=version)),
    )
)


def told(*responses: cart.Response) -> TrackedCart:
    watched = TrackedCart()
    for response in responses:
        watched = apply_response(watched, response)
    return watched


def held(version: int, minutes: float = 15, product: str = "MUG") -> cart.Held:
    ends = NOW + timedelta(minutes=minutes)
    return cart.Held(
        user_id="ann", id="x", product=product, quantity=1, line_quantity=1, expires_at=ends, version=version
    )


def removed(version: int, product: str | None = None) -> cart.Removed:
    return cart.Removed(user_id="ann", id="x", product=product, version=version)


def snapshot(version: int, *lines: Line, session: str | None = None) -> cart.Snapshot:
    return cart.Snapshot(
        user_id="ann", session=session, cart=cart.CartView(version=version, expires_at=NOW, lines=lines)
    )


# ---- who wants what -------------------------------------------------------------------------------------------------


def test_a_user_without_preferences_is_notified_on_every_channel() -> None:
    send = Send(user_id="ann", template="order_confirmed", cause="c", order_id="o")
    assert plan_notices(send, Preferences(), (), age=FRESH) == (
        PlannedNotice("email"),
        PlannedNotice("sms"),
        PlannedNotice("push"),
    )


def test_an_unwanted_notice_is_stored_and_not_sent() -> None:
    send = Send(user_id="ann", template="order_confirmed", cause="c", order_id="o")
    assert plan_notices(send, Preferences(sms=False), (), age=FRESH)[1] == PlannedNotice("sms", "muted")
    named = send.model_copy(update={"channel": "sms"})
    assert plan_notices(named, Preferences(sms=False), (), age=FRESH) == (PlannedNotice("sms", "muted"),)


def test_a_user_without_a_contact_gets_no_mail_about_a_cart() -> None:
    send = expiry_notice("ann", NOW)
    assert plan_notices(send, Preferences(), (), age=FRESH) == (
        PlannedNotice("email", "skipped", "no_contact"),
        PlannedNotice("push"),
    )
    assert plan_notices(send, Preferences(), ("email",), age=FRESH) == (PlannedNotice("email"), PlannedNotice("push"))


def test_old_notices_are_stored_and_not_sent() -> None:
    send = Send(user_id="ann", template="order_shipped", cause="c", order_id="o")
    assert {each.reason for each in plan_notices(send, Preferences(), (), age=MAX_EVENT_AGE + FRESH)} == {"old"}


@given(st.permutations([(True, 1), (False, 2), (True, 3)]))
def test_the_preference_accepted_last_wins_in_any_order(wishes: list[tuple[bool, int]]) -> None:
    stands = Preferences()
    for email, minute in [*wishes, *wishes]:
        wish = Prefer(user_id="ann", email=email, sms=False, push=True)
        stands = apply_preference(stands, wish, NOW + timedelta(minutes=minute))
    assert stands == Preferences(email=True, sms=False, push=True, since=NOW + timedelta(minutes=3))


# ---- orders ---------------------------------------------------------------------------------------------------------


def order_event(kind: type[orders.Event], status: str, **more: object) -> orders.Event:
    return kind.model_validate({"order_id": "o-1", "user_id": "ann", "version": 5, "status": status, **more})


@pytest.mark.parametrize(
    ("happened", "template"),
    [
        (order_event(orders.Confirmed, "confirmed"), "order_confirmed"),
        (order_event(orders.Cancelled, "cancelled", reason="declined"), "payment_failed"),
        (order_event(orders.Cancelled, "cancelled", reason="payment_unavailable"), "payment_failed"),
        (order_event(orders.Cancelled, "cancelled", reason="wrong_amount"), "payment_failed"),
        (order_event(orders.Cancelled, "cancelled", reason="out_of_stock"), "order_cancelled"),
        (order_event(orders.Cancelled, "cancelled", reason="cancelled"), "order_cancelled"),
        (order_event(orders.Shipped, "shipped", shipment_id="s", carrier="Owl", tracking="1"), "order_shipped"),
        (order_event(orders.Delivered, "delivered"), "order_delivered"),
        (order_event(orders.Captured, "paid", payment_id="p", amount={"amount": 1, "currency": GBP}), None),
        (order_event(orders.Cancelling, "paid", reason="cancelled"), None),
    ],
)
def test_an_event_of_an_order_is_worth_this(happened: orders.Event, template: str | None) -> None:
    send = order_notice(happened, None)
    assert (send and send.template) == template
    if send:
        assert (send.cause, send.order_id) == ("order/o-1/5", "o-1")


def test_a_confirmation_says_what_was_bought_when_that_is_known() -> None:
    known = OrderSummary(format_lines(MUGS, {"MUG": "BIG MUG, BLUE"}), "£8.50")
    send = order_notice(order_event(orders.Confirmed, "confirmed"), known)
    assert send is not None
    said = render(send.template, send.params)
    assert "2 × Big mug, blue, £4.25 each" in said.body  # noqa: RUF001
    assert "Total: £8.50" in said.body


def test_every_reason_has_its_words() -> None:
    assert set(CANCEL_REASON_TEXTS) == set(get_args(orders.CancelReason))


UNPAID = (
    "cart_changed",
    "cart_empty",
    "total_changed",
    "expired",
    "out_of_stock",
    "unknown_product",
    "limit",
    "failed",
)


@pytest.mark.parametrize("reason", [*UNPAID, "cancelled", "delivery_failed"])
def test_the_end_of_an_order_that_was_never_paid_is_a_push_notice_alone(reason: str) -> None:
    send = order_notice(order_event(orders.Cancelled, "cancelled", reason=reason), None)
    assert send is not None
    assert (send.channel, send.proven_only) == ("push", False)


@pytest.mark.parametrize("reason", ["declined", "payment_unavailable", "wrong_amount"])
def test_a_failed_payment_is_sent_to_proven_contacts_only(reason: str) -> None:
    send = order_notice(order_event(orders.Cancelled, "cancelled", reason=reason), None)
    assert send is not None
    assert (send.channel, send.proven_only) == (None, True)


@pytest.mark.parametrize("reason", get_args(orders.CancelReason))
def test_money_that_was_taken_is_reported_on_every_channel(reason: str) -> None:
    money = {"amount": 850, "currency": GBP}
    send = order_notice(order_event(orders.Cancelled, "cancelled", reason=reason, refunded=money), None)
    assert send is not None
    assert (send.channel, send.proven_only, send.params["refunded"]) == (None, False, "£8.50")


def test_a_captured_payment_makes_a_paid_order() -> None:
    paid = [
        order_event(orders.Captured, "paid", payment_id="p", amount={"amount": 1, "currency": GBP}),
        order_event(orders.Confirmed, "confirmed"),
    ]
    unpaid = [
        order_event(orders.Placed, "placed", request_id="r"),
        order_event(orders.Committed, "committed", lines=(), total={"amount": 1, "currency": GBP}),
        order_event(orders.Cancelled, "cancelled", reason="declined"),
    ]
    assert [is_paid(each) for each in (*paid, *unpaid)] == [True, True, False, False, False]


def test_a_parameter_without_nul_can_be_stored() -> None:
    with pytest.raises(ValueError, match="body"):
        Send(user_id="ann", template="message", cause="c", params={"body": "a\0b"})


# ---- carts ----------------------------------------------------------------------------------------------------------


def test_a_cart_is_warned_of_two_minutes_before_its_last_end() -> None:
    assert told(held(1), held(2, 16)).warning_time(NOW) == NOW + timedelta(minutes=16) - EXPIRY_WARNING_LEAD


def test_an_emptied_cart_is_not_warned_of() -> None:
    assert told(held(1), removed(2, "MUG")).warning_time(NOW) is None
    assert told(held(1), held(2, product="TEAPOT"), removed(3, "MUG")).warning_time(NOW) is not None
    assert told(held(1), held(2, product="TEAPOT"), removed(3)).warning_time(NOW) is None
    assert told(held(1), snapshot(2)).warning_time(NOW) is None


def test_a_cart_whose_whole_life_is_shorter_than_the_warning_is_not_warned_of() -> None:
    assert told(held(1, minutes=1)).warning_time(NOW) is None


@given(st.lists(messages, max_size=12))
def test_repeated_and_late_events_change_nothing(responses: list[cart.Held | cart.Removed | cart.Expired]) -> None:
    """Each version is one fact: the last response with the version represents it."""
    facts = {response.version: response for response in responses}
    history = [facts[version] for version in sorted(facts)]
    once = told(*history)
    for response in history:
        assert apply_response(once, response) is once


def test_only_a_change_from_elsewhere_is_worth_telling() -> None:
    elsewhere = cart_change_notice(snapshot(7, *MUGS), {})
    assert elsewhere is not None
    assert (elsewhere.template, elsewhere.cause) == ("cart_changed", "cart/changed/7")
    assert cart_change_notice(snapshot(7), {}) is None, (
        "a checkout empties the cart, and its shopper hears of the order"
    )
    assert cart_change_notice(snapshot(7, *MUGS, session="s"), {}) is None
    assert cart_change_notice(held(7), {}) is None


def test_the_prefilter_passes_every_message_that_the_rules_need() -> None:
    for response in (held(1), removed(2), snapshot(3, *MUGS)):
        assert may_change_cart(event(response, "/cart", "ann", "x").encode())
    asked = snapshot(3, *MUGS, session="s")
    order = cart.Order(user_id="ann", id="x", order_id="o", status="paid", order_version=3)
    for silent in (asked, order):
        assert not may_change_cart(event(silent, "/cart", "ann", "x").encode())


# ---- in words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", get_args(Template))
def test_every_template_has_its_words_and_channels(template: Template) -> None:
    assert set(DEFAULT_CHANNELS[template]) <= set(CHANNELS)
    full = render(template, {name: f"<{name}>" for name in placeholders(template)})
    assert len(full.paragraphs) == len(TEMPLATES[template].paragraphs)
    assert "{" not in full.title + full.body
    assert "&lt;" in full.html or not placeholders(template), "what came from outside is text, never markup"
    assert len(full.sms) <= SMS_CHARACTERS
    empty = render(template, {})
    assert "{" not in empty.title + empty.body
    assert empty.title


@given(st.dictionaries(st.sampled_from(["title", "body"]), st.text()))
def test_no_message_can_break_out_of_its_page_or_its_title(params: dict[str, str]) -> None:
    said = render("message", params)
    assert len(said.title.splitlines()) == 1
    assert said.html.count("<p ") == len(said.paragraphs)
    assert said.html.count("<h1") == 1


def test_a_value_is_never_taken_for_a_gap() -> None:
    assert render("message", {"title": "{body}", "body": "secret {title}"}).title == "{body}"


def test_a_long_order_is_not_spelled_out() -> None:
    rows = format_lines(MUGS * 30, {}).splitlines()
    assert (len(rows), rows[0], rows[-1]) == (21, "2 × MUG, £4.25 each", "and 10 more")  # noqa: RUF001


@pytest.mark.parametrize("name", ["X" * 200, "a\r\nBcc: b", "\u2028", "\0"])
def test_no_name_breaks_a_list_or_makes_it_too_long_for_a_parameter(name: str) -> None:
    text = format_lines(
        [MUGS[0].model_copy(update={"product": f"P{number}"}) for number in range(20)],
        {f"P{number}": name for number in range(20)},
    )
    assert len(text.split("\n")) == 20
    assert len(text.splitlines()) == 20
    assert len(text) <= 4000
