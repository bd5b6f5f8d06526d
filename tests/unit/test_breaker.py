"""The circuit breaker by an injected clock: closed, open, half open with one probe."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from infrastructure.security.breaker import BreakerOpen, CircuitBreaker, State, Unavailable


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, changes: list[bool] | None = None) -> CircuitBreaker:
    made = CircuitBreaker("test", threshold=3, pauses=(1.0, 4.0), clock=clock)
    if changes is not None:
        made.on_change = lambda: changes.append(made.available)
    return made


def fails(breaker: CircuitBreaker, error: type[BaseException] = Unavailable) -> None:
    with pytest.raises(error), breaker.attempt():
        raise error


def succeeds(breaker: CircuitBreaker) -> None:
    with breaker.attempt():
        pass


def state(breaker: CircuitBreaker) -> State:
    """Return the current state; it changes with the clock."""
    return breaker.state


def is_refused(breaker: CircuitBreaker) -> bool:
    try:
        succeeds(breaker)
    except BreakerOpen:
        return True
    return False


def test_a_breaker_opens_after_failures_in_a_row_and_not_before() -> None:
    one = breaker(Clock())
    for _ in range(5):
        fails(one)
        fails(one)
        succeeds(one)
    assert (state(one), one.capacity(8)) == ("closed", 8)
    for error in (Unavailable, TimeoutError, asyncio.CancelledError):
        fails(one, error)
    assert (state(one), one.capacity(8), is_refused(one)) == ("open", 0, True)


def test_another_error_is_a_response_not_a_failure() -> None:
    one = breaker(Clock())
    for _ in range(10):
        fails(one, ValueError)
    assert state(one) == "closed"


def test_a_half_open_breaker_admits_one_attempt_and_closes_when_it_succeeds() -> None:
    clock, changes = Clock(), list[bool]()
    one = breaker(clock, changes)
    for _ in range(3):
        fails(one)
    clock.now = 0.99
    assert state(one) == "open"
    clock.now = 1.0
    assert (state(one), one.capacity(8), one.available) == ("half_open", 1, False)
    with one.attempt():
        assert is_refused(one), "one is enough to find out"
    assert (state(one), is_refused(one)) == ("closed", False)
    assert changes == [False, True]


def test_failed_probes_double_the_pause_up_to_a_bound() -> None:
    clock = Clock()
    one = breaker(clock)
    for _ in range(3):
        fails(one)
    for pause in (1.0, 2.0, 4.0, 4.0):
        clock.now += pause - 0.01
        assert state(one) == "open"
        clock.now += 0.01
        assert state(one) == "half_open"
        fails(one)
        assert state(one) == "open"
    clock.now += 4.0
    succeeds(one)
    for _ in range(3):
        fails(one)
    clock.now += 1.0
    assert state(one) == "half_open", "and short again after it was well"


def test_an_earlier_attempt_that_succeeds_closes_the_breaker() -> None:
    one = breaker(Clock())
    with one.attempt():
        for _ in range(3):
            fails(one)
        assert state(one) == "open"
    assert state(one) == "closed"


def test_the_state_of_a_breaker_is_a_metric() -> None:
    clock = Clock()
    one = breaker(clock)

    def metric() -> float | None:
        return REGISTRY.get_sample_value("holdfast_breaker_state", {"breaker": "test"})

    assert metric() == 0
    for _ in range(3):
        fails(one)
    assert metric() == 2
    clock.now = 1.0
    assert metric() == 1


@given(st.lists(st.one_of(st.floats(0, 3), st.booleans()), max_size=60))
def test_a_half_open_breaker_never_admits_two_attempts_and_always_recovers(steps: list[float | bool]) -> None:
    clock = Clock()
    one = breaker(clock)
    for step in steps:
        if isinstance(step, bool):
            if not is_refused(one) and not step and state(one) != "open":
                fails(one)
        else:
            clock.now += step
        assert one.capacity(8) == {"closed": 8, "half_open": 1, "open": 0}[state(one)]
    clock.now += 4.0
    assert not is_refused(one)
    assert state(one) == "closed"
