"""Signatures of webhooks: ours count for five minutes, and nobody else's ever."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infrastructure.webhooks import TOLERANCE, BadSignature, StaleWebhook, sign, verify

SECRET, OTHER = "the secret of the webhooks, long enough", "another secret of webhooks, long enough"
NOW = datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC)
BODY = b'{"type":"charge.captured"}'


def test_a_known_signature() -> None:
    """As `printf '1000000000.{}' | openssl dgst -sha256 -hmac secret` has it."""
    known = "t=1000000000,v1=10447a13c77e61914632c736653543f75b152b77a1573fc15a41baad63fc66a3"
    assert sign("secret", b"{}", datetime.fromtimestamp(1_000_000_000, UTC)) == known


@given(st.binary(max_size=200), st.integers(-300, 300))
def test_what_we_signed_counts_while_it_is_fresh(body: bytes, age: int) -> None:
    verify(SECRET, sign(SECRET, body, NOW), body, NOW + timedelta(seconds=age))


@given(st.binary(max_size=200), st.integers(301, 10**8), st.sampled_from([1, -1]))
def test_and_not_afterwards_nor_from_the_future(body: bytes, age: int, sign_of_age: int) -> None:
    with pytest.raises(StaleWebhook):
        verify(SECRET, sign(SECRET, body, NOW - sign_of_age * timedelta(seconds=age)), body, NOW)


@given(st.binary(max_size=100), st.integers(0, 10_000))
def test_another_body_or_secret_or_time_is_nobody_s(body: bytes, place: int) -> None:
    header = sign(SECRET, BODY, NOW)
    moment, _, digest = header.partition(",")
    place %= len(digest) - 3
    flipped = "0" if digest[3 + place] != "0" else "1"
    forged = [
        (sign(OTHER, BODY, NOW), BODY),
        (header, BODY + b" " + body),
        (f"t={int(NOW.timestamp()) + 1},{digest}", BODY),
        (f"{moment},{digest[: 3 + place]}{flipped}{digest[4 + place :]}", BODY),
    ]
    for wrong, sent in forged:
        with pytest.raises(BadSignature):
            verify(SECRET, wrong, sent, NOW)


@given(st.text(max_size=200))
def test_no_header_at_all_is_a_signature_or_an_accident(header: str) -> None:
    with pytest.raises(BadSignature):
        verify(SECRET, header, BODY, NOW)


@pytest.mark.parametrize("header", ["", "t=1", "v1=00", "t=,v1=00", "t=1,t=2,v1=00", "t=-1,v1=00", "t=٣,v1=00"])
def test_a_header_that_is_none(header: str) -> None:
    with pytest.raises(BadSignature):
        verify(SECRET, header, BODY, NOW)


def test_one_of_several_signatures_is_enough_while_secrets_are_rotated() -> None:
    old, new = sign(OTHER, BODY, NOW), sign(SECRET, BODY, NOW)
    both = f"{old},{new.partition(',')[2]}"
    verify(SECRET, both, BODY, NOW)
    verify(OTHER, both, BODY, NOW + TOLERANCE)
