"""Checkout frames, the view of an order's events, cursors and payment availability, without a server."""

import contextlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import cart, orders
from contracts.ids import derive_id
from contracts.inventory import Line, Money
from contracts.payments import Provider
from rest_api.__main__ import build_state
from rest_api.app import create_app
from rest_api.http import pagination
from rest_api.http.commands.orders import refusal_problem
from rest_api.protocol.client_frames import Checkout, order_id
from rest_api.protocol.effects import Publish
from rest_api.protocol.frame_encoder import outcome
from rest_api.protocol.problems import SLUGS, Problem
from rest_api.protocol.server_frames import OrderFrame
from rest_api.read_models.orders.fold import fold_order, fold_shipment
from rest_api.read_models.payment_status import PaymentStatus
from rest_api.read_models.store import Store
from rest_api.settings import EdgeSettings
from rest_api.websocket.user_state import UserLimits, UserState
from tests.testkit.edge_session import NOW, USER, error, frames_of, make_session, make_user, send

AT = datetime(2026, 11, 21, tzinfo=UTC)
GBP = Money(amount=255, currency="GBP")
LINE = Line(product="TEAPOT", quantity=2, price=GBP)
TOTAL = Money(amount=510, currency="GBP")
ADDRESS = {"name": "Ann", "line1": "1 High Street", "city": "York", "postal_code": "YO1", "country": "GB"}
CHECKOUT: dict[str, Any] = {
    "id": "c1",
    "type": "checkout",
    "version": 3,
    "address": ADDRESS,
    "contact": {"email": "ann@example.org"},
    "payment": {"token": "tok_approve"},
}


# ---- checkout on a socket -------------------------------------------------------------------------------------------


def test_a_checkout_derives_the_order_id_from_its_own() -> None:
    (asked,) = send(make_session(), **CHECKOUT, unheard_of=1)
    order = derive_id(USER, "c1", "order")
    data = {name: CHECKOUT[name] for name in ("version", "address", "contact", "payment")}
    assert asked == Publish("c1", "checkout", {"user_id": USER, "order_id": order, **data})
    parsed = cart.REQUEST_REGISTRY.types["holdfast.cart.checkout"].model_validate_json(json.dumps(asked.data))
    assert isinstance(parsed, cart.Checkout)
    assert order == order_id(USER, "c1")


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"version": None}, "bad_field", "version"),
        ({"version": -1}, "bad_field", "version"),
        ({"version": 2**64}, "bad_field", "version"),
        ({"items": [{"product": "P", "quantity": 1}]}, "bad_field", "version"),
        ({"version": None, "items": []}, "bad_field", "items"),
        ({"version": None, "items": [{"product": "P", "quantity": 0}]}, "bad_quantity", "items.0.quantity"),
        ({"address": None}, "bad_field", "address"),
        ({"address": {**ADDRESS, "country": "Britain"}}, "bad_field", "address.country"),
        ({"contact": {"email": "a\x00@b.c"}}, "bad_field", "contact.email"),
        ({"payment": {"token": ""}}, "bad_field", "payment.token"),
        ({"payment": {"token": "tok_nonsense"}}, "bad_field", "payment.token"),
        ({"expect": {"total": {"amount": 1e308, "currency": "GBP"}}}, "bad_field", "expect.total.amount"),
        ({"user_id": "u2"}, "forbidden", None),
    ],
)
def test_an_invalid_checkout_is_an_error(change: dict[str, Any], code: str, field: str | None) -> None:
    session = make_session(UserState(USER, UserLimits(tokens=frozenset({"tok_approve"})), NOW))
    frame = {name: value for name, value in {**CHECKOUT, **change}.items() if value is not None}
    found = error(session.receive(json.dumps(frame), NOW))
    assert (found["code"], found.get("field")) == (code, field)
    assert not session.user.unanswered


def test_without_a_list_any_token_is_accepted() -> None:
    frame = {**CHECKOUT, "payment": {"token": "pm_1"}}
    assert isinstance(send(make_session(), **frame)[0], Publish)
    assert EdgeSettings(payment_tokens="").accepted_payment_tokens() is None


def test_a_checkout_counts_as_a_change() -> None:
    assert Checkout.CHANGES
    session = make_session(make_user(changes=1))
    send(session, **CHECKOUT)
    assert error(send(session, **{**CHECKOUT, "id": "c2"}))["code"] == "rate_limited"


def test_the_order_is_the_outcome_and_later_steps_go_to_all_sockets() -> None:
    shopper = make_user()
    asking, looking = make_session(shopper), make_session(shopper, "s2")
    send(asking, **CHECKOUT)
    first = cart.Order(user_id=USER, id="c1", order_id="o1", status="committed", order_version=2)
    assert [frame["type"] for frame in frames_of(asking.on_outcome("c1", outcome(first)))] == ["pending", "order"]
    paid = first.model_copy(update={"status": "paid", "order_version": 3})
    for session in (asking, looking):
        (frame,) = frames_of(session.on_outcome("c1", outcome(paid)))
        assert OrderFrame.model_validate(frame).status == "paid"


# ---- the view of an order -------------------------------------------------------------------------------------------

STREAM: list[orders.Event] = [
    orders.Placed(order_id="o", user_id="u", version=1, status="placed", request_id="r", cart_version=3),
    orders.Committed(order_id="o", user_id="u", version=2, status="committed", lines=(LINE,), total=TOTAL),
    orders.Captured(order_id="o", user_id="u", version=3, status="paid", payment_id="p", amount=TOTAL),
    orders.Cancelling(order_id="o", user_id="u", version=4, status="paid", reason="cancelled"),
    orders.Refunded(order_id="o", user_id="u", version=5, status="paid", refund_id="f", amount=TOTAL, refunded=TOTAL),
    orders.Cancelled(order_id="o", user_id="u", version=6, status="cancelled", reason="cancelled", refunded=TOTAL),
]


@pytest.mark.parametrize("length", range(1, len(STREAM) + 1))
def test_an_order_has_the_state_of_its_last_event(length: int) -> None:
    view = fold_order([(event, AT + timedelta(seconds=number)) for number, event in enumerate(STREAM[:length])])
    assert view is not None
    last = STREAM[length - 1]
    assert (view.version, view.status) == (last.version, last.status)
    assert (view.created_at, view.updated_at) == (AT, AT + timedelta(seconds=length - 1))
    assert view.total == (TOTAL if length >= 2 else None)
    assert view.reason == ("cancelled" if length == 6 else None), "while it is being undone it is not cancelled"
    assert view.refunded == (TOTAL if length >= 5 else None)


def test_without_events_there_is_no_order() -> None:
    assert fold_order([]) is None
    assert fold_shipment([]) is None
    assert fold_shipment([("mislaid", AT, {"shipment_id": "s"})]) is None


PARCEL = {"shipment_id": "s", "carrier": "c", "tracking": "t"}


@given(
    st.permutations(
        [
            ("booked", AT, PARCEL),
            ("shipped", AT + timedelta(hours=1), PARCEL),
            ("failed", AT + timedelta(hours=2), {"shipment_id": "s", "reason": "nobody in"}),
        ]
    )
)
def test_a_parcel_has_its_latest_status_whatever_the_order_of_events(steps: list[Any]) -> None:
    found = fold_shipment(steps)
    assert found is not None
    assert (found["status"], found["carrier"], found["reason"]) == ("failed", "c", "nobody in")
    assert [status for status, _ in found["history"]] == ["booked", "shipped", "failed"]


# ---- small rules ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_a_cursor_decodes_to_its_values(values: list[int | str]) -> None:
    assert pagination.decode(pagination.encode(*values)) == values


@given(st.text(max_size=40))
def test_a_malformed_cursor_is_a_problem(text: str) -> None:
    with contextlib.suppress(Problem):
        assert isinstance(pagination.decode(text), list)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - Hypothesis wants them naive
def test_a_cursor_keeps_a_time_exactly(at: datetime) -> None:
    assert pagination.from_microseconds(pagination.to_microseconds(at)) == at


@pytest.mark.parametrize("reason", cart.Refused.model_fields["reason"].annotation.__args__)  # type: ignore[union-attr]  # a Literal has arguments
def test_every_refusal_has_a_problem_of_its_own(reason: Any) -> None:
    problem = refusal_problem(cart.Refused(user_id="u", id="r", reason=reason))
    assert problem.slug in SLUGS
    assert (problem.slug == "unavailable") == (reason == "failed")


def provider(version: int, *, available: bool, since: datetime = AT) -> Provider:
    return Provider(provider="simulated", available=available, since=since, version=version)


def test_orders_are_refused_once_the_provider_is_unavailable_for_too_long() -> None:
    settings = EdgeSettings()
    watch = PaymentStatus(settings, Store(settings), patience=timedelta(seconds=30))
    assert not watch.is_unavailable(AT), "nothing is known"
    watch.update([provider(2, available=False)])
    assert not watch.is_unavailable(AT + timedelta(seconds=30))
    assert watch.is_unavailable(AT + timedelta(seconds=31))
    watch.update([provider(1, available=True)])
    assert watch.is_unavailable(AT + timedelta(seconds=31)), "old news"
    watch.update([provider(3, available=True)])
    assert not watch.is_unavailable(AT + timedelta(days=1))


def test_every_reference_of_the_openapi_description_resolves() -> None:
    described = create_app(build_state(EdgeSettings(), 8080)[0]).openapi()
    references = set(re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(described)))
    assert len(references) > 10
    for reference in references:
        place: Any = described
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    body = described["paths"]["/v1/webhooks/payments"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["data"]["properties"]["metadata"]["required"] == ["order_id", "user_id"]
