"""The encoding of every frame, and the AsyncAPI document against AsyncAPI's own schema."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from jsonschema import Draft7Validator
from pydantic import ValidationError

from contracts import cart, orders
from contracts.inventory import BadField, Committed, GivenUp, Held, Line, Money, Refused
from rest_api.protocol import client_frames, frame_encoder, server_frames
from rest_api.protocol.asyncapi import document

AT = datetime(2026, 11, 21, 3, 40, 1, 870_000, tzinfo=UTC)
STAMP = "2026-11-21T03:40:01.870Z"
GBP = Money(amount=295, currency="GBP")


def test_a_cart_has_names_a_total_and_pending_changes() -> None:
    view = cart.CartView(
        version=9,
        expires_at=AT,
        lines=(Line(product="P", quantity=2, price=GBP), Line(product="Q", quantity=1, price=GBP)),
        pending=(cart.PendingRequest(id="a", type="add", product="P", quantity=1, since=AT - timedelta(hours=1)),),
    )
    body = frame_encoder.cart_body("u1", view, {"P": "TEAPOT"}, "EUR")
    assert body == {
        "user_id": "u1",
        "version": 9,
        "expires_at": STAMP,
        "total": {"amount": 885, "currency": "GBP"},
        "lines": [
            {"product": "P", "name": "TEAPOT", "quantity": 2, "price": {"amount": 295, "currency": "GBP"}},
            {"product": "Q", "name": "Q", "quantity": 1, "price": {"amount": 295, "currency": "GBP"}},
        ],
        "pending": [
            {"id": "a", "type": "add", "product": "P", "quantity": 1, "since": "2026-11-21T02:40:01.870Z"},
        ],
    }
    frame = orjson.loads(frame_encoder.cart_frame(body, "c1"))
    assert (frame["type"], frame["id"]) == ("cart", "c1")
    server_frames.CartFrame.model_validate_json(frame_encoder.cart_frame(body))


def test_the_total_of_an_empty_cart_is_zero_in_the_shops_currency() -> None:
    pending = (cart.PendingRequest(id="a", type="clear", since=AT),)
    body = frame_encoder.cart_body("u1", cart.CartView(version=0, pending=pending), {}, "EUR")
    assert body["total"] == {"amount": 0, "currency": "EUR"}
    assert body["expires_at"] is None
    assert body["pending"] == [{"id": "a", "type": "clear", "since": STAMP}]


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        (
            cart.Held(user_id="u", id="a", product="P", quantity=1, line_quantity=3, expires_at=AT, version=4),
            {
                "type": "held",
                "id": "a",
                "product": "P",
                "quantity": 1,
                "line_quantity": 3,
                "expires_at": STAMP,
                "version": 4,
            },
        ),
        (
            cart.Refused(user_id="u", id="a", product="P", reason="limit", replayed=True),
            {"type": "refused", "id": "a", "product": "P", "reason": "limit", "available": None, "replayed": True},
        ),
        (
            cart.Refused(user_id="u", id="a", reason="failed"),
            {"type": "refused", "id": "a", "reason": "failed", "available": None},
        ),
        (
            cart.Removed(user_id="u", id="a", product="P", version=5),
            {"type": "removed", "id": "a", "product": "P", "version": 5},
        ),
        (cart.Removed(user_id="u", id="a", version=5), {"type": "removed", "id": "a", "version": 5}),
        (
            cart.Expired(user_id="u", lines=(GivenUp(product="P", quantity=2),), version=6),
            {"type": "expired", "lines": [{"product": "P", "quantity": 2}], "version": 6},
        ),
    ],
)
def test_an_outcome_is_encoded_as_its_frame(message: frame_encoder.OutcomeMessage, frame: dict[str, Any]) -> None:
    assert frame_encoder.outcome(message) == orjson.dumps(frame)


ORDER = {"type": "order", "id": "a", "order_id": "o", "status": "committed", "order_version": 2}


def test_an_order_is_encoded_from_its_response_and_from_the_log() -> None:
    moved = cart.Order(user_id="u", id="a", order_id="o", status="cancelled", order_version=7, reason="declined")
    changed = {"status": "cancelled", "order_version": 7, "reason": "declined"}
    assert frame_encoder.outcome(moved) == orjson.dumps({**ORDER, **changed})
    stored = Committed(order_id="o", purpose="order", lines=(), total=GBP, version=4)
    assert frame_encoder.outcome(stored, "a", replayed=True) == orjson.dumps({**ORDER, "replayed": True})


def test_a_pending_checkout_hides_its_command() -> None:
    commit = cart.PendingCommit(order_id="o", version=3)
    pending = cart.PendingRequest(id="a", type="checkout", since=AT, commit=commit)
    body = frame_encoder.cart_body("u1", cart.CartView(version=0, pending=(pending,)), {}, "EUR")
    assert body["pending"] == [{"id": "a", "type": "checkout", "since": STAMP}]


def test_a_stored_error_is_encoded_as_an_error() -> None:
    told = frame_encoder.outcome(BadField(field="time"), "a", replayed=True)
    frame = server_frames.Error.model_validate_json(told)
    assert (frame.id, frame.code, frame.field) == ("a", "bad_field", "time")


def test_availability_of_an_unknown_product_is_null() -> None:
    message = cart.Availability(user_id="u", id="k", session="s", product="P", available=None)
    frame = {"type": "availability", "id": "k", "product": "P", "available": None}
    assert frame_encoder.availability(message) == orjson.dumps(frame)


def test_a_stored_outcome_equals_the_first_frame_marked_replayed() -> None:
    seen: dict[str, Any] = {"product": "P", "quantity": 1, "line_quantity": 3, "expires_at": AT, "version": 4}
    first = frame_encoder.outcome(cart.Held(user_id="u", id="a", **seen))
    assert frame_encoder.outcome(Held(**seen), "a", replayed=True) == frame_encoder.mark_replayed(first)
    refused = Refused(product="P", reason="out_of_stock", available=0, order_id="o")
    frame = {"type": "refused", "id": "a", "product": "P", "reason": "out_of_stock", "available": 0, "replayed": True}
    assert frame_encoder.outcome(refused, "a", replayed=True) == orjson.dumps(frame)


def test_internal_fields_are_hidden_from_notices_and_resumes() -> None:
    notice = cart.Notice(user_id="u", notice_id="n", template="t", title="T", body="é", cause="c")
    frame = {"type": "notice", "notice_id": "n", "template": "t", "title": "T", "body": "é", "cause": "c"}
    assert frame_encoder.notice(notice) == orjson.dumps(frame)
    view = cart.CartView(version=1)
    resumed = cart.Resumed(user_id="u", id="r", session="s", cart=view, pending=("a",), unknown=("b",))
    assert frame_encoder.resumed(resumed) == orjson.dumps(
        {"type": "resumed", "id": "r", "pending": ["a"], "unknown": ["b"]}
    )


def test_the_description_is_valid_asyncapi_3() -> None:
    schema = orjson.loads((Path(__file__).parent / "asyncapi" / "asyncapi-3.0.0.json").read_bytes())
    faults = [
        f"{list(fault.absolute_path)}: {fault.message[:200]}"
        for fault in Draft7Validator(schema).iter_errors(document("127.0.0.1:8080"))
    ]
    assert faults == []


def test_every_reference_of_the_description_resolves() -> None:
    described = document("127.0.0.1:8080")
    found = list(_references(described))
    assert found
    for reference in found:
        place: Any = described
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_frame_is_described() -> None:
    told = document("127.0.0.1:8080")["channels"]["stream"]["messages"]
    assert len(told) == len(get_args(client_frames.Client)) + len(get_args(server_frames.Server))
    assert {"client.add", "client.checkout", "server.welcome", "server.order", "server.error"} <= told.keys()


def _references(place: object) -> Any:
    if isinstance(place, dict):
        for name, value in place.items():
            if name == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(place, list):
        for value in place:
            yield from _references(value)


@pytest.mark.parametrize("field", ["name", "line1", "line2", "city", "postal_code"])
@pytest.mark.parametrize("control", ["\x00", "\x1b", "\x7f", "\x80", "\x9b", "\x9f", "\u2028", "\u2029"], ids=repr)
def test_a_new_address_has_no_control_character_and_an_old_one_stays_readable(field: str, control: str) -> None:
    address = {"name": "A", "line1": "B", "city": "C", "postal_code": "D", "country": "GB", field: f"x{control}y"}
    order = {"version": 1, "address": address, "contact": {"email": "a@b.example"}, "payment": {"token": "tok_approve"}}
    with pytest.raises(ValidationError, match="address"):
        client_frames.Wanted.model_validate_json(orjson.dumps(order))
    if control >= "\x80":
        assert field in orders.Address.model_validate(address).model_dump()
