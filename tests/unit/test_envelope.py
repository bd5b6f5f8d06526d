from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import cart
from contracts.envelope import MAX_VALUE_BYTES, Envelope, UndecodableError
from tests.testkit.envelopes import EVENT, GOLDEN, changed


def test_an_event_is_one_line_of_json_and_reads_back_as_it_was() -> None:
    assert EVENT.encode() == GOLDEN
    assert Envelope.decode(b"ann", GOLDEN) == EVENT
    assert cart.REQUEST_REGISTRY.parse(EVENT) == cart.Add(user_id="ann", product="85123A", quantity=2)


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_message_determines_the_attributes_of_its_event() -> None:
    message = cart.Add(user_id="ann", product="85123A", quantity=2)
    assert Envelope.of(message, source="/edge", request_id="1", time=EVENT.time) == EVENT
    unchecked = Envelope.of(message, source="/edge", request_id="1", time=EVENT.time, validate=False)
    assert unchecked.encode() == GOLDEN


def test_an_event_takes_request_id_time_and_trace_from_its_cause() -> None:
    cause = EVENT.model_copy(update={"traceparent": TRACE})
    event = Envelope.of(cart.Add(user_id="bob", product="85123A", quantity=2), source="/cart", cause=cause)
    assert (event.id, event.subject, event.requestid, event.time) == ("bob/1/add", "bob", "1", EVENT.time)
    assert (event.traceparent or "").split("-")[1] == TRACE.split("-")[1]
    assert event.traceparent != TRACE


def test_arguments_override_the_defaults_of_an_event() -> None:
    later = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
    data = {"user_id": "ann"}
    event = Envelope.of(
        cart.Add,
        source="/cart",
        cause=EVENT,
        subject="ann",
        event_id="x",
        request_id="2",
        time=later,
        traceparent=TRACE,
        data=data,
    )
    assert (event.id, event.type, event.requestid, event.time) == ("x", cart.Add.TYPE, "2", later)
    assert (event.traceparent, event.data) == (TRACE, data)


def test_a_field_without_a_value_is_left_out_or_written_as_null() -> None:
    order = cart.Order(user_id="ann", id="1", order_id="o", status="paid", order_version=3)
    without = Envelope.of(order, source="/orders", request_id="1", time=EVENT.time)
    assert "reason" not in without.data
    whole = Envelope.of(order, source="/orders", request_id="1", time=EVENT.time, exclude_none=False)
    assert whole.data["reason"] is None


def test_an_event_without_a_time_or_with_a_class_and_no_data_is_an_error() -> None:
    with pytest.raises(ValueError, match="time"):
        Envelope.of(cart.Add(user_id="ann", product="A", quantity=1), source="/edge", request_id="1")
    with pytest.raises(TypeError, match="instance"):
        Envelope.of(cart.Add, source="/edge", subject="ann", request_id="1", time=EVENT.time)


def test_fields_may_be_added() -> None:
    value = changed(data={"user_id": "ann", "product": "85123A", "quantity": 2, "colour": "red"}, tenant="x")
    assert cart.REQUEST_REGISTRY.parse(Envelope.decode(b"ann", value)) == cart.REQUEST_REGISTRY.parse(EVENT)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, GOLDEN, "no_key"),
        (b"", GOLDEN, "no_key"),
        (b"bob", GOLDEN, "wrong_key"),
        (b"ann", None, "not_json"),
        (b"ann", b"hello", "not_json"),
        (b"ann", b"\xff\xfe", "not_utf8"),
        (b"ann", b"[" * 10_000, "not_json"),
        (b"ann", b"[]", "not_cloudevent"),
        (b"ann", b"{}", "not_cloudevent"),
        (b"ann", changed(specversion="0.3"), "not_cloudevent"),
        (b"ann", GOLDEN.replace(b'"specversion":"1.0",', b""), "not_cloudevent"),
        (b"ann", changed(time="yesterday"), "not_cloudevent"),
        (b"ann", changed(time="2026-11-21T03:24:41"), "not_cloudevent"),
        (b"ann", changed(requestid="x" * 65), "not_cloudevent"),
        (b"ann", changed(data=3), "not_cloudevent"),
        (b"ann", changed(type="holdfast.cart.steal"), "unknown_type"),
        (b"ann", changed(type="holdfast.inventory.decided"), "unknown_type"),
        (b"ann", changed(source="/payment"), "wrong_source"),
        (b"ann", changed(data={"user_id": "bob", "product": "A", "quantity": 1}), "wrong_key"),
        (b"ann", changed(data={"user_id": "ann", "product": "A"}), "bad_data"),
        *(
            (b"ann", changed(data={"user_id": "ann", "product": "A", "quantity": quantity}), "bad_data")
            for quantity in (0, -1, 1000, 1.5, "3", True, None, 2**63, 1e308)
        ),
        (b"ann", changed(data={"user_id": "ann", "product": "A\u0000", "quantity": 1}), "bad_data"),
        (b"ann", changed(data={"user_id": "ann", "product": "", "quantity": 1}), "bad_data"),
        (b"ann", GOLDEN + b" " * MAX_VALUE_BYTES, "too_big"),
        (b"ann", GOLDEN.replace(b":2}", b":NaN}"), "not_json"),
        (b"ann", GOLDEN.replace(b":2}", b":1e400}"), "not_json"),
    ],
)
def test_a_record_that_cannot_be_processed_has_a_reason(key: bytes | None, value: bytes | None, reason: str) -> None:
    with pytest.raises(UndecodableError) as caught:
        cart.REQUEST_REGISTRY.parse(Envelope.decode(key, value))
    assert caught.value.reason == reason


@given(st.binary(max_size=200) | st.text().map(str.encode), st.binary(min_size=1, max_size=20))
def test_any_bytes_are_decoded_or_undecodable(value: bytes, key: bytes) -> None:
    with pytest.raises(UndecodableError):
        cart.REQUEST_REGISTRY.parse(Envelope.decode(key, value))
