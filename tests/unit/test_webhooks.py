"""Signatures of webhooks: ours are valid for five minutes, all others never."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infrastructure.security.webhooks import TOLERANCE, BadSignature, StaleWebhook, sign, verify

SECRET, OTHER = "the secret of the webhooks, long enough", "another secret of webhooks, long enough"
NOW = datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC)
BODY = b'{"type":"charge.captured"}'


def test_a_known_signature() -> None:
    """The signature is that of `printf '1000000000.{}' | openssl dgst -sha256 -hmac secret`."""
    known = "t=1000000000,v1=10447a13c77e61914632c736653543f75b152b77a1573fc15a41baad63fc66a3"
    assert sign("secret", b"{}", datetime.fromtimestamp(1_000_000_000, UTC)) == known


@given(st.binary(max_size=200), st.integers(-300, 300))
def test_a_fresh_signature_is_valid(body: bytes, age: int) -> None:
    verify(SECRET, sign(SECRET, body, NOW), body, NOW + timedelta(seconds=age))


@given(st.binary(max_size=200), st.integers(301, 10**8), st.sampled_from([1, -1]))
def test_a_stale_signature_is_refused_also_from_the_future(body: bytes, age: int, sign_of_age: int) -> None:
    with pytest.raises(StaleWebhook):
        verify(SECRET, sign(SECRET, body, NOW - sign_of_age * timedelta(seconds=age)), body, NOW)


@given(st.binary(max_size=100), st.integers(0, 10_000))
def test_a_signature_of_another_body_secret_or_time_is_refused(body: bytes, place: int) -> None:
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
def test_no_random_header_is_valid_or_raises_another_error(header: str) -> None:
    with pytest.raises(BadSignature):
        verify(SECRET, header, BODY, NOW)


@pytest.mark.parametrize("header", ["", "t=1", "v1=00", "t=,v1=00", "t=1,t=2,v1=00", "t=-1,v1=00", "t=٣,v1=00"])
def test_a_malformed_header_is_refused(header: str) -> None:
    with pytest.raises(BadSignature):
        verify(SECRET, header, BODY, NOW)


def test_one_of_several_signatures_is_enough_while_secrets_are_rotated() -> None:
    old, new = sign(OTHER, BODY, NOW), sign(SECRET, BODY, NOW)
    both = f"{old},{new.partition(',')[2]}"
    verify(SECRET, both, BODY, NOW)
    verify(OTHER, both, BODY, NOW + TOLERANCE)
