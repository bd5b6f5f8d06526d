from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_service import messages as cart
from infrastructure.envelope import MAX_VALUE_BYTES, Envelope, Undecodable

EVENT = Envelope(
    id="ann/1/add",
    source="/edge",
    type="holdfast.cart.add",
    subject="ann",
    time=datetime(2026, 11, 21, 3, 24, 41, 118_000, tzinfo=UTC),
    requestid="1",
    data={"user_id": "ann", "product": "85123A", "quantity": 2},
)
# As the contract prints it: what is on the wire must not change by accident.
GOLDEN = (
    b'{"specversion":"1.0","id":"ann/1/add","source":"/edge","type":"holdfast.cart.add","subject":"ann",'
    b'"time":"2026-11-21T03:24:41.118Z","datacontenttype":"application/json","requestid":"1",'
    b'"data":{"user_id":"ann","product":"85123A","quantity":2}}'
)


def changed(**fields: object) -> bytes:
    return orjson.dumps({**orjson.loads(GOLDEN), **fields})


def test_an_event_is_one_line_of_json_and_reads_back_as_it_was() -> None:
    assert EVENT.encode() == GOLDEN
    assert Envelope.decode(b"ann", GOLDEN) == EVENT
    assert cart.REQUEST_VOCABULARY.parse(EVENT) == cart.Add(user_id="ann", product="85123A", quantity=2)


def test_fields_may_be_added() -> None:
    value = changed(data={"user_id": "ann", "product": "85123A", "quantity": 2, "colour": "red"}, tenant="x")
    assert cart.REQUEST_VOCABULARY.parse(Envelope.decode(b"ann", value)) == cart.REQUEST_VOCABULARY.parse(EVENT)


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
def test_what_can_not_be_acted_on_says_why(key: bytes | None, value: bytes | None, reason: str) -> None:
    with pytest.raises(Undecodable) as caught:
        cart.REQUEST_VOCABULARY.parse(Envelope.decode(key, value))
    assert caught.value.reason == reason


@given(st.binary(max_size=200) | st.text().map(str.encode), st.binary(min_size=1, max_size=20))
def test_no_bytes_do_anything_but_read_or_be_refused(value: bytes, key: bytes) -> None:
    with pytest.raises(Undecodable):
        cart.REQUEST_VOCABULARY.parse(Envelope.decode(key, value))
