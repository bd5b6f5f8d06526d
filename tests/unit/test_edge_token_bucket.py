"""Token buckets: a burst, then a steady rate; past twice the limit a client is exhausted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_api.security.token_bucket import WINDOW_SECONDS, Allowance, LimitResult, TokenBucket


def test_a_burst_is_granted_up_to_the_size() -> None:
    bucket = TokenBucket(100, now=0)
    assert [bucket.take(0) for _ in range(101)] == [True] * 100 + [False]
    assert bucket.seconds_until_token() == pytest.approx(0.6)


def test_a_token_is_available_after_the_announced_wait() -> None:
    bucket = TokenBucket(100, now=0)
    while bucket.take(0):
        pass
    wait = bucket.seconds_until_token()
    assert not bucket.take(wait * 0.99)
    assert bucket.take(wait * 1.01)


def test_a_clock_that_is_set_back_changes_nothing() -> None:
    bucket = TokenBucket(2, now=100)
    assert bucket.take(100)
    assert bucket.take(50)
    assert not bucket.take(50)


@given(st.integers(1, 50), st.lists(st.floats(0, 5), max_size=300))
def test_no_window_grants_more_than_a_burst_and_one_minute(size: int, gaps: list[float]) -> None:
    bucket, now, granted = TokenBucket(size, now=0), 0.0, []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            granted.append(now)
    for start in granted:
        assert sum(start <= moment <= start + WINDOW_SECONDS for moment in granted) <= 2 * size + 1


def test_requests_are_refused_past_the_limit_and_exhausted_past_its_double() -> None:
    allowance = Allowance(10, now=0)
    verdicts = [allowance.take(0) for _ in range(21)]
    assert verdicts == [LimitResult.GRANTED] * 10 + [LimitResult.REFUSED] * 10 + [LimitResult.EXHAUSTED]
    assert allowance.retry_after == 6
    assert allowance.remaining == 0


def test_a_client_that_waits_as_announced_is_granted() -> None:
    allowance = Allowance(10, now=0)
    for _ in range(11):
        allowance.take(0)
    assert allowance.take(allowance.retry_after) is LimitResult.GRANTED
